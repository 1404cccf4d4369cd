"""Networks as data: every class is described, written as JSON, and built again the same."""

import json

import chex
import jax
import jax.numpy as jnp
import pytest

from jepa_jax.models import ActionPredictor, AttentiveProbe, MaskedPredictor, VideoEncoder
from jepa_jax.models.spec import SpecError, abstract_params, build, describe

# One of every class, with every kind of field off its default.
NETWORKS = {
    "encoder": VideoEncoder(48, 2, 3, mlp_ratio=48 / 11, patch_size=4, rope_grid=(3, 5), activation="swiglu"),
    "sincos encoder": VideoEncoder(48, 2, 3, patch_size=4, positions="sincos", table_grid=(2, 3, 4), uniform_power=False),
    "predictor": MaskedPredictor(48, 36, 2, 3, num_mask_tokens=3, rope_layout="interleaved", norm_eps=1e-5),
    "action predictor": ActionPredictor(48, 36, 2, 3, action_dim=4, state_dim=5, use_extrinsics=True, grid=(3, 4)),
    "plain action predictor": ActionPredictor(48, 36, 2, 3, extrinsics_dim=9),
    "modulated action predictor": ActionPredictor(48, 36, 2, 3, conditioning="adaln"),
    "probe": AttentiveProbe(48, 1, 3),
    "anticipation": AttentiveProbe(48, 3, 3, num_queries=3, outputs=(("verb", 5), ("noun", 7), ("action", 9))),
}


def _count(network):
    return sum(leaf.size for leaf in jax.tree.leaves(abstract_params(network)))


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_round_trip(network):
    spec = json.loads(json.dumps(describe(network)))
    assert spec["class"] == type(network).__name__
    again = build(spec)
    assert again == network and hash(again) == hash(network)
    assert build(spec, remat="full", dtype=jnp.bfloat16) == network.copy(remat="full", dtype=jnp.bfloat16)


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_what_runs_is_not_described(network):
    other = network.copy(attention="xla", remat="full", dtype=jnp.bfloat16, residual_dtype=jnp.bfloat16)
    assert describe(other) == describe(network)
    assert not {"attention", "remat", "dtype"} & describe(network).keys()


def test_fields_with_a_default_may_be_missing():
    assert build({"class": "AttentiveProbe", "width": 64}) == AttentiveProbe(64)


def test_abstract_parameters_are_the_real_ones():
    network = NETWORKS["plain action predictor"]
    inputs = [jnp.zeros((2, 3, size)) for size in (48, 7, 7)]
    params = jax.eval_shape(lambda rng: network.init(rng, *inputs, grid=(1, 1)), jax.random.key(0))["params"]
    chex.assert_trees_all_equal_shapes_and_dtypes(abstract_params(network), params)


@pytest.mark.parametrize("width, expected", [(1024, 49_514_670), (1280, 77_294_254), (1408, 93_494_190)])
def test_published_probe_sizes(width, expected):
    assert _count(AttentiveProbe(width)) == expected


def test_published_action_predictor_size():
    assert _count(ActionPredictor(1408)) == _count(ActionPredictor(1408, use_extrinsics=True)) == 305_220_992


@pytest.mark.parametrize("spec, message", [
    ({"width": 48}, "network class None is unknown; known: VideoEncoder, MaskedPredictor, ActionPredictor, AttentiveProbe"),
    ({"class": "Decoder"}, "network class 'Decoder' is unknown"),
    ({"class": "AttentiveProbe", "width": 48, "heads": 3}, r"AttentiveProbe has no field \['heads'\]"),
    ({"class": "ActionPredictor"}, r"ActionPredictor lacks \['output_dim'\]"),
])
def test_wrong_descriptions(spec, message):
    with pytest.raises(SpecError, match=message):
        build(spec)
