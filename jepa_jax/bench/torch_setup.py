"""Find and set up PyTorch and transformers, which are optional.

This file imports no JAX, whose memory would then count as theirs.
"""

import importlib

from jepa_jax.data.workers import usable_cores

_DEVICES = {"cpu": "cpu", "gpu": "cuda"}


class MissingTorch(ImportError):
    """Say that the optional PyTorch or transformers is not installed, or has no device to compare on."""


def import_peer(name):
    """Import PyTorch ("torch") or Hugging Face's transformers, which are optional.

    Raises:
      MissingTorch: if it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingTorch(f"--against needs {name}: pip install 'jepa_jax[peers]'") from error


def choose_device(platform):
    """Name the PyTorch device that is the one we use: "cpu" or "cuda".

    Args:
      platform: as JAX names it.

    Raises:
      MissingTorch: if PyTorch is missing or sees no GPU where we use one.
    """
    torch = import_peer("torch")
    device = _DEVICES.get(platform)
    if device is None or (device == "cuda" and not torch.cuda.is_available()):
        raise MissingTorch(f"PyTorch {torch.__version__} has no device to compare with {platform}; "
                           "install a build of it for this accelerator")
    return device


def make_fast(device):
    """Let PyTorch in this process use what we use: all cores, and on GPU the reduced float32 product."""
    torch = import_peer("torch")
    torch.set_num_threads(usable_cores())
    if device == "cuda":
        torch.set_float32_matmul_precision("high")
