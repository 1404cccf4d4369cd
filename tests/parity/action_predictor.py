"""The action-conditioned predictor equals the official one, and its weights survive conversion."""

import jax.numpy as jnp
import numpy as np
import pytest

from compiling import fast_jit
from jepa_jax.models import ActionPredictor, convert
from jepa_jax.models.attention import block_causal_attention
from parity.files import load, subtree
from parity.networks import grid_of

ACTION_PREDICTORS = ("ac_predictor", "ac_predictor_ext")


def build_action_predictor(config, **fields):
    """Build the predictor a golden config describes."""
    return ActionPredictor(
        config["embed_dim"], config["predictor_embed_dim"], config["depth"], config["num_heads"],
        use_extrinsics=config["use_extrinsics"], grid=grid_of(config)[1:], **({"norm_eps": config["norm_eps"]} | fields),
    )


@pytest.mark.parametrize("call", ["full", "part", "single"])
@pytest.mark.parametrize("name", ACTION_PREDICTORS)
def test_action_predictor(golden, name, call):
    arrays, config = load(golden, name)
    params = {"params": convert.action_predictor_from_official(subtree(arrays, "params/"))}
    parts = ("x", "actions", "states", "extrinsics")[: 3 + config["use_extrinsics"]]
    inputs = [arrays[f"in/{part}_{call}"] for part in parts]
    predicted = fast_jit(build_action_predictor(config).apply)(params, *inputs)
    np.testing.assert_allclose(predicted, arrays[f"out/x_{call}"], atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("name", ACTION_PREDICTORS)
def test_who_sees_whom(golden, name):
    """Equal scores and one-hot values: the output of a token shows which tokens it sees."""
    arrays, config = load(golden, name)
    mask = arrays["out/attn_mask"]
    per_frame = config["cond_tokens"] + int(np.prod(grid_of(config)[1:]))
    zeros, values = jnp.zeros((1, len(mask), 1, len(mask))), jnp.eye(len(mask))[None, :, None]
    out = fast_jit(block_causal_attention, static_argnums=(3, 4))(zeros, zeros, values, per_frame, "xla")
    np.testing.assert_allclose(out[0, :, 0], mask / mask.sum(1, keepdims=True), atol=1e-6)


@pytest.mark.parametrize("name", ACTION_PREDICTORS)
def test_action_predictor_weights_round_trip(golden, name):
    state = subtree(load(golden, name)[0], "params/")
    back = convert.action_predictor_to_official(convert.action_predictor_from_official(state))
    assert back.keys() == state.keys()
    for key, value in back.items():
        np.testing.assert_array_equal(value, state[key], key)


@pytest.mark.parametrize("factor, close", [(1, True), (10, False), (0.1, False)])
def test_norm_eps_of_action_predictor(golden, factor, close):
    arrays, config = load(golden, "norm_eps")
    predictor = build_action_predictor(config["ac"], norm_eps=config["ac"]["norm_eps"] * factor)
    params = {"params": convert.action_predictor_from_official(subtree(arrays, "params/ac/"))}
    inputs = [arrays[f"in/ac/{part}"] for part in ("x", "actions", "states")]
    predicted = fast_jit(predictor.apply)(params, *inputs)
    assert np.allclose(predicted, arrays["out/ac/x"], atol=1e-4) == close
