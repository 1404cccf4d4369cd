"""Libraries that only some sources need."""

from __future__ import annotations

import importlib
from types import ModuleType

from jepa_jax.data.listing import ListError


def need(module: str, extra: str) -> ModuleType:
    """Import an optional library.

    Args:
        module: its dotted name.
        extra: what to install with this package to have it.

    Returns:
        The module.

    Raises:
        ListError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not (module == error.name or module.startswith(error.name + ".")):
            raise
        raise ListError(
            f"this source needs {module}, which is not installed; `bash launch/setup.sh {extra}` installs it"
        ) from error
