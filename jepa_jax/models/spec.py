"""Networks as plain data: what a checkpoint has to say so that its network can be built again."""

import dataclasses

import jax
import jax.numpy as jnp

from jepa_jax.models.action_predictor import ActionPredictor
from jepa_jax.models.encoder import VideoEncoder
from jepa_jax.models.predictor import MaskedPredictor
from jepa_jax.models.probe import AttentiveProbe

# How a network runs is chosen where it runs; only what it computes is described.
_RUNTIME = {"attention", "remat", "dtype", "param_dtype", "residual_dtype", "parent", "name"}


def _encoder_inputs(encoder):
    return (jnp.zeros((1, encoder.tubelet_size, encoder.patch_size, encoder.patch_size, 3)),)


def _predictor_inputs(predictor):
    ids = jnp.zeros((1, 1), jnp.int32)
    return jnp.zeros((1, 1, predictor.output_dim)), ids, ids, predictor.table_grid


def _action_predictor_inputs(predictor):
    def per_frame(size):
        return jnp.zeros((1, 1, size))

    extrinsics = per_frame(predictor.extrinsics_dim) if predictor.use_extrinsics else None
    side = predictor.merge
    return (
        jnp.zeros((1, side**2, predictor.output_dim)),
        per_frame(predictor.action_dim),
        per_frame(predictor.state_dim),
        extrinsics,
        (side, side),
    )


def _probe_inputs(probe):
    return (jnp.zeros((1, 1, probe.width)),)


# Class by name, with the smallest inputs it can be initialised on.
_NETWORKS = {
    "VideoEncoder": (VideoEncoder, _encoder_inputs),
    "MaskedPredictor": (MaskedPredictor, _predictor_inputs),
    "ActionPredictor": (ActionPredictor, _action_predictor_inputs),
    "AttentiveProbe": (AttentiveProbe, _probe_inputs),
}


class SpecError(ValueError):
    """Say why a description does not describe a network."""


def describe(network):
    """Describe a network as JSON-able data: its class and the fields that decide what it computes.

    Args:
      network: one of the modules of `jepa_jax.models`.

    Returns:
      dict with `class` and the fields; tuples appear as lists.
    """
    fields = {field.name: getattr(network, field.name) for field in _fields(type(network))}
    return {"class": type(network).__name__} | {name: _plain(value) for name, value in fields.items()}


def build(spec, **runtime):
    """Build the network that `describe` described.

    Args:
      spec: dict as from `describe`; fields with a default may be missing.
      **runtime: attention, remat, dtype, param_dtype, residual_dtype.

    Raises:
      SpecError: if the class or a field is unknown, or a field is missing.
    """
    fields = dict(spec)
    name = fields.pop("class", None)
    if name not in _NETWORKS:
        raise SpecError(f"network class {name!r} is unknown; known: {', '.join(_NETWORKS)}")
    network = _NETWORKS[name][0]
    known = _fields(network)
    unknown = fields.keys() - {field.name for field in known}
    missing = {field.name for field in known if field.default is dataclasses.MISSING} - fields.keys()
    if unknown or missing:
        raise SpecError(f"{name} has no field {sorted(unknown)}" if unknown else f"{name} lacks {sorted(missing)}")
    return network(**{key: _hashable(value) for key, value in fields.items()}, **runtime)


def abstract_params(network):
    """Return the parameters of a network as nested dict of `jax.ShapeDtypeStruct`; nothing is computed."""
    return jax.eval_shape(lambda rng: init_params(network, rng), jax.random.key(0))


def init_params(network, rng):
    """Draw the parameters of a network, which do not depend on how large its inputs are."""
    return network.init(rng, *_NETWORKS[type(network).__name__][1](network))["params"]


def _fields(network):
    return [field for field in dataclasses.fields(network) if field.name not in _RUNTIME]


def _plain(value):
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _hashable(value):
    return tuple(_hashable(item) for item in value) if isinstance(value, (list, tuple)) else value
