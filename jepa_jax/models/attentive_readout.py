"""A small network that reads numbers off the tokens of a frame: what is where, and nothing else. Pure functions."""

import math

import jax
import jax.numpy as jnp

from jepa_jax.models.norms import normalize_latents

# Every query points at a place: what is there and where it is goes through a layer of its own.
_PLACE, _VALUE = 32, 32


def init_readout(key, tokens, width, outputs, *, queries=16, hidden=256):
    """Draw the weights of a readout.

    Args:
      key: JAX key.
      tokens: N, of a frame.
      width: D, of a token.
      outputs: K, numbers that are read.
      queries: places that are looked at.
      hidden: width of the hidden layer.

    Returns:
      dict of float32 arrays.
    """
    keys = jax.random.split(key, 5)
    draw = lambda number, *shape, fan_in: jax.random.normal(keys[number], shape) / math.sqrt(fan_in)
    return {
        "query": draw(0, width, queries, fan_in=width), "where": jnp.zeros((queries, tokens)),
        "place": draw(1, tokens, _PLACE, fan_in=1), "value": draw(2, queries, width + _PLACE, _VALUE, fan_in=width + _PLACE),
        "hidden": draw(3, queries * _VALUE, hidden, fan_in=queries * _VALUE), "hidden_bias": jnp.zeros(hidden),
        "out": 0.1 * draw(4, hidden, outputs, fan_in=hidden), "out_bias": jnp.zeros(outputs),
    }


def apply_readout(params, latents):
    """Read frames: attention of a few queries over tokens and their places, and a hidden layer on what they find.

    Args:
      params: as `init_readout` draws them.
      latents: `[..., N, D]`; normalised before use.

    Returns:
      float32 `[..., K]`.
    """
    tokens = normalize_latents(jnp.asarray(latents, jnp.float32))
    weights = jax.nn.softmax(jnp.einsum("...nd,dq->...qn", tokens, params["query"]) + params["where"], axis=-1)
    found = [jnp.einsum("...qn,...nd->...qd", weights, tokens), jnp.einsum("...qn,np->...qp", weights, params["place"])]
    values = jnp.einsum("...qd,qdv->...qv", jnp.concatenate(found, axis=-1), params["value"])
    hidden = jax.nn.gelu(values.reshape(*values.shape[:-2], -1) @ params["hidden"] + params["hidden_bias"])
    return hidden @ params["out"] + params["out_bias"]
