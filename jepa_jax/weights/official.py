"""Checkpoints of the official PyTorch code (`.pt`): pretraining, cooldown, action-conditioned, probes.

Source: app/vjepa/train.py, app/vjepa_droid/train.py, evals/*/eval.py (what they save).
"""

import dataclasses
import json
import os
import pickle
import zipfile

import numpy as np

from jepa_jax.weights import inference, native, official_config, released, runs, tensors
from jepa_jax.weights.bundle import ENCODERS, PROBE, Bundle, Network, WeightsError, check_tensors, check_values
from jepa_jax.weights.hints import CROP_SIZE, FRAMES, Hints

SUFFIXES = (".pt", ".pth", ".pth.tar")
_PREDICTOR, _PROBES, _CARD = "predictor", "classifiers", "jepa_jax"
# Entries that are no weights of a network, and why they are left out.
_LEFT_OUT = {
    "opt": "optimizer state: training goes on with fresh moments",
    "scaler": "loss scaling of half-precision training",
}
# Numbers about the training, kept in the provenance.
_FACTS = {"epoch": int, "loss": float, "batch_size": int, "world_size": int, "lr": float}
# Pretraining wraps networks twice, the other programs once.
_WRAPPERS = ("module.", "backbone.")
_TABLES = {"encoder": "pos_embed", "predictor": "predictor_pos_embed"}


def read(path, hints=None):
    """Read a `.pt` file without running code from it.

    Args:
      path: the file.
      hints: `Hints` for what weights do not show.

    Returns:
      `Bundle`.

    Raises:
      WeightsError: if it is damaged, wants to run code, holds anything unknown, or leaves something open.
    """
    hints, name = hints or Hints(), os.path.basename(path)
    content = _load(path)
    card = content.pop(_CARD, None)
    # A bare state dict is one network.
    if content and all(hasattr(value, "shape") for value in content.values()):
        content = {"encoder": content}
    _refuse_unknown(content, path)
    known = released.FILES.get(name)
    notes = [f"left out: {key} ({reason})" for key, reason in _LEFT_OUT.items() if content.get(key) is not None]
    if known and card is None:
        size = None if _PROBES in content else hints.size or known.size
        hints = dataclasses.replace(hints, size=size, crop_size=hints.crop_size or known.crop_size)
        notes.append(f"taken for the released {name}, by its name: {known.size}, input of {known.crop_size} pixels")
    config = official_config.read_config(hints.config) if hints.config else None
    if config:
        hints = official_config.add_to_hints(config, hints, hints.config)
    described, _, rest = native.read_card(card, f"{path}: {_CARD}") if card else ({}, {}, None)
    states = _states(content, path)
    networks = {}
    for key, state in states.items():
        encoder = next((network.module for network in networks.values()), None)
        module = described.get(key) or inference.infer(
            inference.kind_of(key), state, hints, notes, f"{path}: {key}", encoder
        )
        networks[key] = _network(key, module, state, hints, notes, f"{path}: {key}")
    if config:
        official_config.compare(config, networks, hints.config)
    if not networks:
        raise WeightsError(f"{path} holds no network; it has {', '.join(content) or 'nothing'}")
    facts = {key: number(content[key]) for key, number in _FACTS.items() if content.get(key) is not None}
    provenance = {"format": "official", "source": name, "source_sha256": tensors.file_sha256(path)} | facts
    return _finish(networks, rest, known, hints, provenance, notes)


def _finish(networks, rest, known, hints, provenance, notes):
    """Add what surrounds the networks: from the file's own card, the released table, or the hints."""
    if rest is None:
        has_encoder = any(name in networks for name in ENCODERS)
        if has_encoder and not hints.crop_size:
            notes.append(f"input of {CROP_SIZE} pixels assumed, which the weights do not show (--crop-size)")
        protocol = hints.protocol or (known.protocol if known else None)
        rest = Bundle(
            {},
            runs.preprocessing(hints.crop_size or CROP_SIZE, hints.frames or FRAMES) if has_encoder else None,
            hints.labels,
            released.find_protocol(protocol) if protocol else None,
        )
    kept = {key: value for key, value in rest.provenance.items() if key not in provenance}
    lines = tuple(dict.fromkeys((*rest.notes, *notes)))
    return Bundle(networks, rest.preprocessing, rest.labels, rest.protocol, kept | provenance, lines)


def _load(path):
    torch = import_torch("reading")
    if not os.path.isfile(path):
        raise WeightsError(f"{path} does not exist")
    try:
        # Scalars of numpy are what loss meters leave behind; they are data, not code.
        with torch.serialization.safe_globals(_harmless()):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        reason = str(error).strip().splitlines()[-1]
        raise WeightsError(
            f"{path} is refused: it is no checkpoint, or its pickle wants more than tensors, which could "
            f"run code ({reason})"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        size = os.path.getsize(path)
        raise WeightsError(f"{path} ({size} bytes) is no whole PyTorch file: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path} holds a {type(content).__name__}; needed: a dict of networks")
    return content


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


def _harmless():
    return [
        np.dtype,
        np.ndarray,
        np._core.multiarray.scalar,
        *(type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8")),
    ]


def _refuse_unknown(content, path):
    allowed = {*ENCODERS, _PREDICTOR, _PROBES, *_LEFT_OUT, *_FACTS}
    unknown = [str(key) for key in content if key not in allowed]
    if unknown:
        raise WeightsError(f"{path} has unknown entries: {', '.join(unknown)}; known: {', '.join(sorted(allowed))}")


def _states(content, path):
    """Return the state dict of every network by its name in a bundle, with bare names and float32 arrays."""
    found = {name: content[name] for name in (*ENCODERS, _PREDICTOR) if content.get(name) is not None}
    found |= {f"{PROBE}{i}": state for i, state in enumerate(content.get(_PROBES) or ())}
    states = {}
    for name, state in found.items():
        what = f"{path}: {name}"
        if not isinstance(state, dict) or not all(hasattr(value, "shape") for value in state.values()):
            raise WeightsError(f"{what} is no dict of tensors")
        bare = {}
        for key, value in state.items():
            for wrapper in _WRAPPERS:
                key = key.removeprefix(wrapper)
            if key in bare:
                raise WeightsError(f"{what} holds {key} twice, with different prefixes")
            # Upcasting is exact; numpy has no bfloat16.
            bare[key] = (value.float() if value.is_floating_point() else value).numpy()
        states[name] = check_values(bare, what)
    if inference.is_action_predictor(states.get(_PREDICTOR, ())):
        states["action_predictor"] = states.pop(_PREDICTOR)
    return states


def _network(name, module, state, hints, notes, what):
    """Check every tensor against the module, and convert."""
    kind = inference.kind_of(name)
    if hints.heads.get(kind, module.num_heads) != module.num_heads:
        raise WeightsError(f"{what} says {module.num_heads} heads, --heads says {hints.heads[kind]}")
    table = _TABLES.get(kind)
    if table in state and module.positions == "rope":
        notes.append(f"left out: {name}.{table} (fixed table, not used with rotary positions)")
    shapes = {key: value.shape for key, value in state.items()}
    check_tensors(shapes, inference.official_shapes(module), what, allowed=(table,))
    return Network(module, inference.from_official(module, state))


def write(bundle, path):
    """Write a bundle as a `.pt` file that the official code reads.

    Raises:
      WeightsError: if the official code computes something else than these networks, if the
        destination exists, or PyTorch is missing.
    """
    torch = import_torch("writing")
    wrapper = "module." if "action_predictor" in bundle.networks else "module.backbone."
    content, probes = {}, []
    for name, network in bundle.networks.items():
        inference.refuse_unofficial(name, network.module)
        state = inference.to_official(network.module, network.params)
        if name.startswith(PROBE):
            probes.append(
                {"module." + key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in state.items()}
            )
        else:
            entry = _PREDICTOR if name == "action_predictor" else name
            content[entry] = {wrapper + key: torch.from_numpy(np.ascontiguousarray(v)) for key, v in state.items()}
    if {"predictor", "action_predictor"} <= bundle.networks.keys():
        raise WeightsError(
            "the official code has one predictor per file; these weights hold a masked and an "
            "action-conditioned one: choose with --networks"
        )
    if probes:
        content[_PROBES] = probes
    content |= {key: bundle.provenance[key] for key in _FACTS if key in bundle.provenance}
    content[_CARD] = json.dumps(native.card(bundle))
    with tensors.whole_output(path, folder=False) as partial:
        torch.save(content, partial)
