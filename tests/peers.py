"""Packages that only comparisons need: installed by `bash launch/test.sh --torch`."""

import importlib.util
import os

import pytest


def need(*packages):
    """Skip the test, or the file that calls this while it is imported, if a package is not installed.

    `launch/test.sh --torch` asks for the comparisons; there, a missing package is a failure.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if not missing:
        return
    message = f"{' and '.join(missing)} not installed, so this was not tried: bash launch/test.sh --torch"
    if os.environ.get("JEPA_JAX_TEST_PEERS"):
        pytest.fail(message)
    pytest.skip(message, allow_module_level=True)
