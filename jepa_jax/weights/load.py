"""`load`: from a path or a name to a model that runs."""

import dataclasses

import jax
import jax.numpy as jnp
from absl import logging

from jepa_jax.weights import store
from jepa_jax.weights.bundle import choose_networks, network_sha256
from jepa_jax.weights.model import Model


def load(path, *, encoder=None, networks=None, dtype=None, probe=0, hints=None, verify=False):
    """Load weights of any format, checked strictly.

    Args:
      path: a folder made by `python -m jepa_jax.convert`, the workdir of a run, a Hugging Face
        folder, a `.pt` file of the official code, or the name of a model on the Hugging Face hub.
      encoder: "target_encoder" (EMA weights, what evaluation uses) or "encoder"; by default the
        first of the two that is there.
      networks: which of "encoder", "predictor", "action_predictor" and "probe" to load; all that
        are there if None; an error if one is not there.
      dtype: compute dtype; bfloat16 on GPU and TPU and float32 on CPU if None. Weights stay float32.
      probe: which probe, for files with several.
      hints: `jepa_jax.weights.hints.Hints`, for what weights leave open.
      verify: hash the weights and compare with the stored hash.

    Returns:
      (model, params): a `Model`, and a dict with its weights on the default device.

    Raises:
      WeightsError: if the weights are not what they should be; nothing loads half-way.
      CheckpointError: if the checkpoint of a run cannot be read.
    """
    chosen = {}

    def choose(names):
        # Readers of files with many networks ask before they read them.
        chosen.update(choose_networks(names, encoder, probe, networks))
        return tuple(chosen.values())

    bundle = store.read(path, hints, choose, verify)
    if not chosen:
        choose(tuple(bundle.networks))
    bundle = compute_in(bundle, dtype)
    found = {name: bundle.networks[source] for name, source in chosen.items()}
    model = Model(
        networks={name: network.module for name, network in found.items()},
        preprocessing=bundle.preprocessing,
        sha256={name: network.sha256 or network_sha256(network.params) for name, network in found.items()},
        labels=bundle.labels,
        protocol=bundle.protocol,
        provenance=bundle.provenance,
        notes=bundle.notes,
        world_model=bundle.world_model,
    )
    for note in model.notes:
        logging.info("%s: %s", path, note)
    return model, {name: _to_device(network.params) for name, network in found.items()}


def compute_in(bundle, dtype=None):
    """Return a `Bundle` whose networks compute in `dtype`; in bfloat16 on GPU and TPU and float32 on CPU if None."""
    dtype = jnp.dtype(dtype or (jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16))
    networks = {name: network._replace(module=network.module.clone(dtype=dtype)) for name, network in bundle.networks.items()}
    return dataclasses.replace(bundle, networks=networks)


def load_with_encoder(path, encoder_path=None, networks=("encoder", "action_predictor"), **options):
    """Load weights whose encoder may lie elsewhere, such as those of an action predictor.

    Args:
      path: as in `load`.
      encoder_path: where the encoder is; None for `path`.
      networks: which to load; of `path` without the encoder where that has a path of its own.
      **options: of `load`.

    Returns:
      (model, params) as `load` returns them.

    Raises:
      WeightsError, CheckpointError: as `load` does.
    """
    if not encoder_path:
        return load(path, networks=networks, **options)
    model, params = load(path, networks=tuple(name for name in networks if name != "encoder"), **options)
    other, weights = load(encoder_path, networks=("encoder",), **options)
    joined = dataclasses.replace(
        model, networks=model.networks | other.networks, sha256=model.sha256 | other.sha256,
        preprocessing=other.preprocessing if model.world_model is None else model.preprocessing,
        notes=(*model.notes, *other.notes),
    )
    return joined, params | weights


def _to_device(tree):
    """Move a nested dict to the device tensor by tensor and empty it, so that large weights are not held twice."""
    moved = {}
    for name in list(tree):
        value = tree.pop(name)
        moved[name] = _to_device(value) if isinstance(value, dict) else jax.device_put(value).block_until_ready()
    return moved
