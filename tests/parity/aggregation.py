"""Tokens of several segments and views are put together as officially."""

import jax.numpy as jnp
import numpy as np
import pytest

from compiling import fast_jit
from jepa_jax.models import convert, join_segments, time_table
from parity.files import load, subtree
from parity.networks import build_encoder


@pytest.mark.parametrize("kind", ["plain", "posembed"])
def test_clip_aggregation(golden, kind):
    arrays, config = load(golden, "clip_aggregation")
    encoder = build_encoder(config)
    params = {"params": convert.encoder_from_official(subtree(arrays, "params/"), encoder)}
    tokens = fast_jit(encoder.apply)(params, jnp.asarray(np.moveaxis(arrays["in/clips"], 1, -1)))
    tokens = tokens.reshape(config["num_clips"], config["num_views"], config["batch"], *tokens.shape[1:])
    times = None
    if kind == "posembed":
        times = time_table(config["embed_dim"], arrays["in/clip_indices"], config["tubelet_size"])
    views = join_segments(tokens, times)
    assert len(views) == config["num_views"]
    for number, view in enumerate(views):
        np.testing.assert_allclose(view, arrays[f"out/{kind}_view_{number}"], atol=2e-5, rtol=2e-5)
