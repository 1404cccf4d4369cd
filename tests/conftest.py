"""Eight fake CPU devices for every test, and the folder of golden arrays."""

import os
import pathlib
import tempfile

import fsspec
import pytest

_DEVICES = "--xla_force_host_platform_device_count"
# Tests compile much and run little.
_QUICK_COMPILATION = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"

# JAX reads these when it is first imported, so they are set before any test module is.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Shared by the test processes and the commands they start.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", tempfile.mkdtemp(prefix="jepa_jax_tests_"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
if _DEVICES not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_DEVICES}=8 {_QUICK_COMPILATION}".strip()

pytest.register_assert_rewrite("parity")


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


@pytest.fixture
def memory():
    """The in-memory file system (`memory://`), empty."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    yield system
    system.store.clear()
