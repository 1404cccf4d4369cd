"""Any path to a bundle, and a bundle to any format."""

import os

from jepa_jax.training.checkpoint import holds_checkpoint
from jepa_jax.weights import huggingface, hub, native, official, runs, tensors
from jepa_jax.weights.bundle import WeightsError
from jepa_jax.weights.hints import Hints
from jepa_jax.weights.settle import settle

FORMATS = ("jax", "official", "huggingface")


def read(path, hints=None, choose=None, verify=False):
    """Read weights, whatever their format.

    Args:
      path: a folder of ours, the workdir of a run, a Hugging Face folder, a `.pt` file, or the name of
        a model on the Hugging Face hub.
      hints: `Hints`: what `.pt` files do not show; labels and protocol of a probe; how rotary positions are
        read. Everything else in it is compared with the weights.
      choose: function from the names of the networks there to those that are wanted. Our folders and
        `.pt` files then convert nothing else; the others are read whole.
      verify: hash the weights of our folders and compare; `.pt` files that we wrote always are.

    Returns:
      `Bundle`.

    Raises:
      WeightsError: if there are no weights, or they are not what they should be.
      CheckpointError: if the checkpoint of a run does not fit its description.
    """
    path, hints = os.fspath(path), hints or Hints()
    return settle(_read(path, hints, choose, verify), hints, path)


def _read(path, hints, choose, verify):
    if not os.path.exists(path):
        if hub.is_name(path):
            return huggingface.read(hub.fetch(path), path)
        raise WeightsError(f"{path} does not exist")
    if os.path.isfile(path):
        if path.lower().endswith(official.SUFFIXES):
            return official.read(path, hints, choose)
        raise WeightsError(f"{path} is a file of unknown kind; give a {', '.join(official.SUFFIXES)} file, or a folder")
    if os.path.isfile(os.path.join(path, native.FILE)):
        return native.read(path, choose, verify)
    if os.path.isfile(os.path.join(path, huggingface.CONFIG)) and _is_huggingface(path):
        return huggingface.read(path)
    if holds_checkpoint(path):
        return runs.read(path)
    names = ", ".join(sorted(os.listdir(path))[:8]) or "nothing"
    raise WeightsError(
        f"{path} holds no weights: no {native.FILE} (ours), no {huggingface.CONFIG} with {huggingface.WEIGHTS} "
        f"(Hugging Face), no checkpoints (a run); it has {names}"
    )


def _is_huggingface(path):
    # The workdir of a run holds a config.json too.
    weights = (huggingface.WEIGHTS, huggingface.INDEX)
    if any(os.path.isfile(os.path.join(path, name)) for name in weights):
        return True
    with open(os.path.join(path, huggingface.CONFIG), encoding="utf-8", errors="replace") as file:
        return '"model_type"' in file.read()


def choose_format(path, name=None):
    """Return the format to write: the one asked for, or what the destination's name says.

    Raises:
      WeightsError: if the name is unknown, or contradicts the destination.
    """
    is_file = os.fspath(path).lower().endswith(official.SUFFIXES)
    if name is None:
        return "official" if is_file else "jax"
    if name not in FORMATS:
        raise WeightsError(f"format {name!r} is unknown; choose one of {', '.join(FORMATS)}")
    if is_file != (name == "official"):
        needed = f"a file ending in {official.SUFFIXES[0]}" if name == "official" else "a folder"
        raise WeightsError(f"format {name!r} is {needed}, not {path}")
    return name


def check_destination(path, format=None):
    """Raise WeightsError if `path` exists or does not go with the format; costs nothing."""
    choose_format(path, format)
    tensors.refuse_existing(path)


def write(bundle, path, format=None):
    """Write a bundle.

    Args:
      bundle: `Bundle`.
      path: destination, which must not exist.
      format: one of `FORMATS`; by default `.pt` destinations are official, others are ours. Hugging
        Face has one encoder: the one that evaluation uses, see `bundle.choose_encoder`.

    Raises:
      WeightsError: if the destination exists, or the format cannot hold these networks.
    """
    format = choose_format(path, format)
    {"jax": native.write, "official": official.write, "huggingface": huggingface.write}[format](bundle, path)
