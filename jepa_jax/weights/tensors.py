"""Files of tensors on disk: safetensors, hashes, and outputs that appear whole or not at all."""

import contextlib
import hashlib
import os
import shutil

# Makes numpy know bfloat16, which safetensors then returns.
import ml_dtypes  # noqa: F401
import numpy as np
import safetensors
import safetensors.numpy

from jepa_jax.weights.bundle import WeightsError

_PARTIAL = ".partial"
_HASH_BLOCK = 2**24


def read_safetensors(path):
    """Read every tensor of a safetensors file as dict of numpy arrays.

    Raises:
      WeightsError: if the file is missing, cut short or damaged.
    """
    if not os.path.isfile(path):
        raise WeightsError(f"{path} does not exist")
    try:
        with safetensors.safe_open(path, "np") as file:
            return {name: file.get_tensor(name) for name in file.keys()}
    except (safetensors.SafetensorError, TypeError) as error:
        raise WeightsError(f"{path} ({os.path.getsize(path)} bytes) is no whole safetensors file: {error}") from error


def write_safetensors(tensors, path):
    """Write numpy arrays; equal tensors give equal bytes, whatever their order.

    Raises:
      WeightsError: if the disk refuses.
    """
    tensors = {name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)}
    try:
        safetensors.numpy.save_file(tensors, path, metadata={"format": "pt"})
        # The library lets nobody else read its files.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(path, 0o666 & ~umask)
    except (safetensors.SafetensorError, OSError) as error:
        raise WeightsError(f"cannot write {path}: {error}") from error


def file_sha256(path):
    """Hash a file, or the files of a folder by name, as 64 hexadecimal digits."""
    if os.path.isdir(path):
        lines = [f"{name} {file_sha256(os.path.join(path, name))}" for name in sorted(os.listdir(path))]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def refuse_existing(path):
    """Raise WeightsError if something is at `path`: nothing is ever overwritten."""
    if os.path.lexists(path):
        raise WeightsError(f"{path} exists already; nothing is overwritten: remove it or choose another destination")


@contextlib.contextmanager
def whole_output(path, *, folder):
    """Yield a path beside `path` to write to; it gets its name when the block ends well, and is removed otherwise.

    Args:
      path: destination, which must not exist.
      folder: whether it is a folder, which is then made.

    Raises:
      WeightsError: if something is there already, or the disk refuses.
    """
    path = os.path.abspath(path)
    refuse_existing(path)
    partial = path + _PARTIAL
    _remove(partial)
    try:
        os.makedirs(partial if folder else os.path.dirname(path), exist_ok=True)
        yield partial
        _sync(partial)
        os.rename(partial, path)
        _sync(os.path.dirname(path))
    except OSError as error:
        raise WeightsError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        _remove(partial)


def _remove(path):
    if os.path.isdir(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.remove(path)


def _sync(path):
    """Wait until a file, or a folder and the files in it, are on the disk."""
    names = [os.path.join(path, name) for name in os.listdir(path)] if os.path.isdir(path) else []
    for name in (*names, path):
        descriptor = os.open(name, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
