"""PyTorch files, read as data: a pickle that wants more than tensors and numbers is refused."""

import os
import pickle
import re
import zipfile

import numpy as np

from jepa_jax.weights.bundle import WeightsError

# Where a scalar of numpy comes from, by old and new numpy.
_SCALAR_NAMES = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")


def import_torch(purpose):
    """Import PyTorch, or say why it is needed.

    Raises:
      WeightsError: if it is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise WeightsError(
            f"{purpose} .pt files needs PyTorch: pip install torch (its CPU build is enough). Hugging Face "
            "folders and our own need no PyTorch"
        ) from error
    return torch


def read_torch(path):
    """Read a `.pt` file without running code from it; large tensors stay on the disk until used.

    Returns:
      dict as stored.

    Raises:
      WeightsError: if it is missing, cut short, holds no dict, or wants to run code.
    """
    torch = import_torch("reading")
    if not os.path.isfile(path):
        raise WeightsError(f"{path} does not exist")
    try:
        with torch.serialization.safe_globals(_harmless()):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        if wanted:
            reason = f"its pickle wants {wanted[1]}, more than tensors and numbers, which could run code"
        else:
            reason = "it is no PyTorch checkpoint, or one that could run code"
        raise WeightsError(f"{path} is refused: {reason}") from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        size = os.path.getsize(path)
        raise WeightsError(f"{path} ({size} bytes) is no whole PyTorch file: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path} holds a {type(content).__name__}; needed: a dict of networks")
    return content


def _harmless():
    # Scalars of numpy are what loss meters leave behind; they are data, not code.
    kinds = [type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8")]
    return [np.dtype, *kinds, *((np._core.multiarray.scalar, name) for name in _SCALAR_NAMES)]


def to_numpy(tensor):
    """Turn a tensor into a numpy array, sharing memory; half precision is widened to float32, which is exact.

    Raises:
      TypeError, RuntimeError: for tensors without plain memory, such as sparse ones.
    """
    tensor = tensor.detach()
    return (tensor.float() if tensor.is_floating_point() and tensor.itemsize < 4 else tensor).numpy()


def write_torch(content, path):
    """Write a dict of numpy arrays, nested in dicts and lists, as a `.pt` file.

    Raises:
      WeightsError: if PyTorch is missing or the disk refuses.
    """
    torch = import_torch("writing")
    try:
        torch.save(_to_torch(torch, content), path)
    except RuntimeError as error:
        raise WeightsError(f"cannot write {path}: {str(error).splitlines()[0]}") from error


def _to_torch(torch, value):
    if isinstance(value, dict):
        return {key: _to_torch(torch, item) for key, item in value.items()}
    if isinstance(value, list):
        return [_to_torch(torch, item) for item in value]
    return torch.from_numpy(np.ascontiguousarray(value)) if isinstance(value, np.ndarray) else value
