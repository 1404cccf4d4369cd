"""Files of tensors on disk: safetensors, hashes, and outputs that appear whole or not at all."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile

# Makes numpy know bfloat16, which safetensors then returns.
import ml_dtypes  # noqa: F401
import numpy as np
import safetensors
import safetensors.numpy

from jepa_jax.weights.bundle import WeightsError

_HASH_BLOCK = 2**24


def read_safetensors(path):
    """Read every tensor of a safetensors file as dict of numpy arrays.

    Raises:
      WeightsError: if the file is missing, cut short or damaged.
    """
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}


@contextlib.contextmanager
def _opened(path):
    """Open a safetensors file; what goes wrong with it is a WeightsError."""
    if not os.path.isfile(path):
        raise WeightsError(f"{path} does not exist")
    try:
        with safetensors.safe_open(path, "np") as file:
            yield file
    except (safetensors.SafetensorError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path} ({os.path.getsize(path)} bytes) is no whole safetensors file: {error}") from error


def read_metadata(path):
    """Read the texts in the header of a safetensors file as dict; errors are those of `read_safetensors`."""
    with _opened(path) as file:
        return file.metadata() or {}


def write_safetensors(tensors, path, metadata=None):
    """Write numpy arrays; equal tensors give equal bytes, whatever their order.

    Args:
      tensors: dict from name to array.
      path: file.
      metadata: dict of further texts for the header.

    Raises:
      WeightsError: if the disk refuses.
    """
    tensors = {name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)}
    try:
        # The library lets nobody else read its files; an ordinary new file says what is usual here.
        with open(path, "wb") as file:
            mode = os.fstat(file.fileno()).st_mode
        safetensors.numpy.save_file(tensors, path, metadata={"format": "pt"} | (metadata or {}))
        os.chmod(path, mode)
    except (safetensors.SafetensorError, OSError) as error:
        raise WeightsError(f"cannot write {path}: {error}") from error


def read_json(path):
    """Read a JSON object.

    Returns:
      dict.

    Raises:
      WeightsError: if the file is missing, is no JSON, or holds something else.
    """
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except FileNotFoundError as error:
        raise WeightsError(f"{path} does not exist") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise WeightsError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path} holds a JSON {type(content).__name__}; needed: an object")
    return content


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
    parent, name = os.path.split(path)
    scratch = None
    try:
        os.makedirs(parent, exist_ok=True)
        # A name of its own: another conversion, or a person, may use any fixed one.
        scratch = tempfile.mkdtemp(prefix=f".{name}.partial-", dir=parent)
        partial = os.path.join(scratch, name)
        if folder:
            os.mkdir(partial)
        yield partial
        _sync(partial)
        if folder:
            os.rename(partial, path)
        else:
            # Unlike renaming, this fails if the destination has appeared meanwhile.
            os.link(partial, path)
        _sync_entry(parent)
    except OSError as error:
        raise WeightsError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if scratch:
            shutil.rmtree(scratch, ignore_errors=True)


def _sync(path):
    """Wait until a file, or a folder of ours and the files in it, are on the disk."""
    if os.path.isdir(path):
        for name in os.listdir(path):
            _sync_entry(os.path.join(path, name))
    _sync_entry(path)


def _sync_entry(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
