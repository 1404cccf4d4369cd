"""Eight fake CPU devices for every test, and the folder of golden arrays."""

import os
import pathlib

import pytest

_DEVICES = "--xla_force_host_platform_device_count"

# JAX reads both when it is first imported, so they are set before any test module is.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if _DEVICES not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_DEVICES}=8".strip()


def pytest_addoption(parser):
    parser.addoption(
        "--golden", type=pathlib.Path, default=pathlib.Path(__file__).parent / "golden",
        help="folder of golden arrays in the format of tests/golden/README.md",
    )


@pytest.fixture(scope="session")
def golden(request):
    """Folder of golden arrays."""
    folder = request.config.getoption("--golden")
    if not folder.is_dir():
        pytest.fail(f"--golden {folder} is not a folder")
    return folder
