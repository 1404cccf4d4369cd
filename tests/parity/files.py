"""Golden files."""

import functools
import json

import numpy as np
import pytest


@functools.lru_cache(maxsize=4)
def _read(path):
    with np.load(path) as arrays:
        arrays = dict(arrays)
    return arrays, json.loads(str(arrays.pop("config")))


def load(golden, name):
    """Read `NAME.npz` of a golden folder as (dict of arrays, config)."""
    path = golden / f"{name}.npz"
    if not path.is_file():
        pytest.fail(f"{path} is missing; the golden folder must hold {name}.npz")
    return _read(path)


def subtree(arrays, prefix):
    """Take the arrays whose names start with `prefix`, without it."""
    return {name[len(prefix):]: value for name, value in arrays.items() if name.startswith(prefix)}
