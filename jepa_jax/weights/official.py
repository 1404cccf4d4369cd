"""Checkpoints of the official PyTorch code (`.pt`): pretraining, cooldown, action-conditioned, probes.

Source: app/vjepa/train.py, app/vjepa_droid/train.py, evals/*/eval.py (what they save).
"""

import dataclasses
import json
import math
import os

from jepa_jax.weights import inference, native, official_config, released, runs, tensors
from jepa_jax.weights.bundle import ENCODERS, PROBE, Bundle, Network, WeightsError, check_tensors, check_values
from jepa_jax.weights.hints import CROP_SIZE, FRAMES, Hints
from jepa_jax.weights.torch_files import read_torch, to_numpy, write_torch

SUFFIXES = (".pt", ".pth", ".pth.tar")
_PREDICTOR, _PROBES, _CARD = "predictor", "classifiers", "jepa_jax"
# Entries that are no weights of a network, and why they are left out.
_LEFT_OUT = {
    "opt": "optimizer state: training goes on with fresh moments",
    "scaler": "loss scaling of half-precision training",
}
# Numbers about the training, kept in the provenance.
_FACTS = {"epoch": int, "loss": float, "batch_size": int, "world_size": int, "lr": float}
# Pretraining wraps networks twice, the other programs once; compilation adds a name of its own.
_WRAPPERS = ("module.", "backbone.", "_orig_mod.")
_TABLES = {"encoder": "pos_embed", "predictor": "predictor_pos_embed"}


def read(path, hints=None, choose=None):
    """Read a `.pt` file without running code from it.

    Args:
      path: the file.
      hints: `Hints` for what weights do not show.
      choose: function from the names of its networks to those to convert; all if None. All are checked.

    Returns:
      `Bundle`.

    Raises:
      WeightsError: if it is damaged, wants to run code, holds anything unknown, or leaves something open.
    """
    hints, name = hints or Hints(), os.path.basename(path)
    content = read_torch(path)
    card = content.pop(_CARD, None)
    # A bare state dict is one network.
    if content and all(hasattr(value, "shape") for value in content.values()):
        content = {"encoder": content}
    _refuse_unknown(content, path)
    described, sha256, rest = native.read_card(card, f"{path}: {_CARD}") if card else ({}, {}, None)
    known = released.FILES.get(name) if card is None else None
    notes = [f"left out: {key} ({reason})" for key, reason in _LEFT_OUT.items() if content.get(key) is not None]
    if known:
        notes.append(f"taken for the released {name}, by its name: {known.size}, input of {known.crop_size} pixels")
        hints = dataclasses.replace(
            hints,
            size=None if _PROBES in content else hints.size or known.size,
            crop_size=hints.crop_size or known.crop_size,
            positions=hints.positions or "rope",
        )
    if hints.config:
        hints = official_config.add_to_hints(official_config.read_config(hints.config), hints, hints.config)
    states, networks, encoder = _states(content, path), {}, None
    wanted = choose(tuple(states)) if choose else tuple(states)
    for key, state in states.items():
        what = f"{path}: {key}"
        module = described.get(key) or inference.infer(inference.kind_of(key), state, hints, notes, what, encoder)
        encoder = module if key in ENCODERS else encoder
        _check(key, module, state, notes, what)
        if key in wanted:
            state = check_values(state, what)
            networks[key] = Network(module, inference.from_official(module, state))
            native.check_sha256(networks[key].params, sha256.get(key), what)
    if not states:
        raise WeightsError(f"{path} holds no network; it has {', '.join(content) or 'nothing'}")
    provenance = {"format": "official", "source": name, "source_sha256": tensors.file_sha256(path)}
    provenance |= _facts(content, path)
    return _surround(networks, rest, known, hints, provenance, notes)


def _facts(content, what):
    """Return the numbers about the training."""
    found = {key: content[key] for key in _FACTS if content.get(key) is not None}
    try:
        numbers = {key: _FACTS[key](value) for key, value in found.items()}
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{what}: one of {', '.join(found)} is no number: {error}") from error
    # JSON has no NaN.
    return {key: value if math.isfinite(value) else None for key, value in numbers.items()}


def _surround(networks, rest, known, hints, provenance, notes):
    """Add what surrounds the networks: from the file's own card, or from the released table and the hints."""
    if rest is not None:
        provenance |= {"from": rest.provenance} if rest.provenance else {}
        return dataclasses.replace(rest, networks=networks, provenance=provenance, notes=(*rest.notes, *notes))
    pre = None
    if any(name in ENCODERS for name in networks):
        if not hints.crop_size:
            notes.append(f"input of {CROP_SIZE} pixels assumed, which the weights do not show (--crop-size)")
        pre = runs.preprocessing(hints.crop_size or CROP_SIZE, hints.frames or FRAMES)
    protocol = released.PROTOCOLS[known.protocol] if known and known.protocol else None
    return Bundle(networks, pre, None, protocol, provenance, tuple(dict.fromkeys(notes)))


def _refuse_unknown(content, path):
    allowed = {*ENCODERS, _PREDICTOR, _PROBES, *_LEFT_OUT, *_FACTS}
    unknown = [str(key) for key in content if key not in allowed]
    if unknown:
        raise WeightsError(f"{path} has unknown entries: {', '.join(unknown)}; known: {', '.join(sorted(allowed))}")


def _states(content, path):
    """Return the state dict of every network by its name in a bundle, with bare names and numpy arrays."""
    found = {name: content[name] for name in (*ENCODERS, _PREDICTOR) if content.get(name) is not None}
    found |= {f"{PROBE}{i}": state for i, state in enumerate(content.get(_PROBES) or ())}
    states = {}
    for name, state in found.items():
        what = f"{path}: {name}"
        if not isinstance(state, dict) or not all(hasattr(value, "shape") for value in state.values()):
            raise WeightsError(f"{what} is no dict of tensors")
        states[name] = bare = {}
        for key, value in state.items():
            key = _bare_name(str(key))
            if key in bare:
                raise WeightsError(f"{what} holds {key} twice, with different prefixes")
            try:
                bare[key] = to_numpy(value)
            except (TypeError, RuntimeError, AttributeError) as error:
                raise WeightsError(f"{what}: {key} is no plain tensor: {str(error).splitlines()[0]}") from error
    if inference.is_action_predictor(states.get(_PREDICTOR, ())):
        states["action_predictor"] = states.pop(_PREDICTOR)
    return states


def _bare_name(key):
    while wrapper := next((wrapper for wrapper in _WRAPPERS if key.startswith(wrapper)), None):
        key = key.removeprefix(wrapper)
    return key


def _check(name, module, state, notes, what):
    """Check names and shapes of a state dict against a network."""
    table = _TABLES.get(inference.kind_of(name))
    if table in state and module.positions == "rope":
        notes.append(f"left out: {name}.{table} (fixed table, not used with rotary positions)")
    shapes = {key: value.shape for key, value in state.items()}
    check_tensors(shapes, inference.official_shapes(module), what, allowed=(table,))


def write(bundle, path):
    """Write a bundle as a `.pt` file that the official code reads.

    Raises:
      WeightsError: if the official code computes something else than these networks, if the
        destination exists, or PyTorch is missing.
    """
    if {"predictor", "action_predictor"} <= bundle.networks.keys():
        raise WeightsError(
            "the official code has one predictor per file; these weights hold a masked and an "
            "action-conditioned one: choose with --networks"
        )
    wrapper = "module." if "action_predictor" in bundle.networks else "module.backbone."
    content, probes = {}, []
    for name, network in bundle.networks.items():
        inference.refuse_unofficial(name, network.module)
        state = inference.to_official(network.module, network.params)
        if name.startswith(PROBE):
            probes.append({f"module.{key}": value for key, value in state.items()})
        else:
            entry = _PREDICTOR if name == "action_predictor" else name
            content[entry] = {wrapper + key: value for key, value in state.items()}
    if probes:
        content[_PROBES] = probes
    content |= {key: bundle.provenance[key] for key in _FACTS if key in bundle.provenance}
    # Probes are numbered by their place in the file.
    names = [name for name in bundle.networks if not name.startswith(PROBE)]
    order = {name: bundle.networks[name] for name in names}
    order |= {f"{PROBE}{i}": bundle.networks[name] for i, name in enumerate(bundle.probes())}
    content[_CARD] = json.dumps(native.card(dataclasses.replace(bundle, networks=order)))
    with tensors.whole_output(path, folder=False) as partial:
        write_torch(content, partial)
