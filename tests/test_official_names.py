"""Conversion of official weights: shapes without values, and states that do not fit."""

import re

import jax
import numpy as np
import pytest

from jepa_jax.models import convert
from jepa_jax.models.spec import abstract_params
from parity.action_predictor import ACTION_PREDICTORS, build_action_predictor
from parity.files import load, subtree
from parity.networks import ENCODERS, PREDICTORS, build_encoder, build_predictor
from parity.probes import PROBES, build_probe

CASES = (
    [(name, build_encoder) for name in ENCODERS]
    + [(name, build_predictor) for name in PREDICTORS]
    + [(name, build_action_predictor) for name in ACTION_PREDICTORS]
    + [(name, build_probe) for name in PROBES]
)
FIXED_TABLES = {"pos_embed", "predictor_pos_embed"}


def _converters(network):
    """Return (from, to) functions of the state or params alone."""
    if type(network).__name__ == "VideoEncoder":
        return (lambda state: convert.encoder_from_official(state, network),
                lambda params: convert.encoder_to_official(params, network))
    name = {"MaskedPredictor": "predictor", "ActionPredictor": "action_predictor", "AttentiveProbe": "probe"}
    name = name[type(network).__name__]
    return getattr(convert, f"{name}_from_official"), getattr(convert, f"{name}_to_official")


def _load(golden, name, build_network):
    arrays, config = load(golden, name)
    network = build_network(config)
    state = {key: value for key, value in subtree(arrays, "params/").items() if key not in FIXED_TABLES}
    return network, state, *_converters(network)


@pytest.mark.parametrize("name, build_network", CASES, ids=[name for name, _ in CASES])
def test_names_and_shapes_without_values(golden, name, build_network):
    """A network tells the official names and shapes of its weights; nothing is allocated for it."""
    network, state, read, write = _load(golden, name, build_network)
    hollow = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), abstract_params(network))
    shapes = {key: value.shape for key, value in write(hollow).items()}
    assert shapes == {key: value.shape for key, value in state.items()}
    # And the other way round.
    expected = {jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree.leaves_with_path(hollow)}
    found = {jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree.leaves_with_path(read(state))}
    assert found == expected


@pytest.mark.parametrize("name, build_network", CASES, ids=[name for name, _ in CASES])
def test_every_tensor_is_needed_and_no_other(golden, name, build_network):
    _, state, read, _ = _load(golden, name, build_network)
    # Without its last mask token a predictor is a smaller one.
    last_token = max((key for key in state if key.startswith("mask_tokens.")), default=None)
    for missing in state.keys() - {last_token}:
        with pytest.raises(KeyError, match=re.escape(missing)):
            read({key: value for key, value in state.items() if key != missing})
    with pytest.raises(ValueError, match="do not belong to it: blocks.0.what, extra, extra.weight"):
        read(state | {"extra": 1, "blocks.0.what": 2, "extra.weight": 3})


def test_all_missing_tensors_are_named(golden):
    _, state, read, _ = _load(golden, "attentive_classifier_d4", build_probe)
    gone = ("pooler.query_tokens", "linear.bias", "pooler.blocks.1.norm1.weight", "pooler.blocks.2.mlp.fc2.bias")
    with pytest.raises(KeyError) as error:
        read({key: value for key, value in state.items() if key not in gone})
    assert all(name in str(error.value) for name in gone) and "norm2" not in str(error.value)


def test_probe_without_a_head(golden):
    _, state, read, _ = _load(golden, "attentive_classifier_d1", build_probe)
    with pytest.raises(KeyError, match="probe state lacks tensors: linear.weight, linear.bias"):
        read({key: value for key, value in state.items() if not key.startswith("linear.")})


def test_outputs_that_no_official_probe_has():
    params = {"query_tokens": 0, "cross": 0, "verb": 0, "tool": 0}
    with pytest.raises(ValueError, match=r"probe outputs \['tool'\] have no official name; those of label, verb"):
        convert.probe_to_official(params)
