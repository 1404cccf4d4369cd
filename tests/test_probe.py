"""The attentive probe: any number of tokens, in any order; precision, initialisation, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compiling import fast_jit
from jepa_jax.models import AttentiveProbe, join_levels, join_segments, time_table

ANTICIPATION = (("verb", 3), ("noun", 4), ("action", 5))


def _tokens(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), (*shape, 48))


def _random(probe):
    """Initialise, then move every value away from where it starts."""
    leaves, treedef = jax.tree.flatten(fast_jit(probe.init)(jax.random.key(0), _tokens(1, 1)))
    rngs = jax.random.split(jax.random.key(1), len(leaves))
    return treedef.unflatten([x + 0.2 * jax.random.normal(rng, x.shape) for x, rng in zip(leaves, rngs)])


@pytest.mark.parametrize("depth", [1, 3])
def test_tokens_have_no_position(depth):
    probe = AttentiveProbe(48, depth, 3, num_queries=3, outputs=ANTICIPATION)
    params, tokens, apply = _random(probe), _tokens(2, 14), fast_jit(probe.apply)
    logits = apply(params, tokens)
    assert {name: value.shape for name, value in logits.items()} == {"verb": (2, 3), "noun": (2, 4), "action": (2, 5)}
    for name, value in apply(params, tokens[:, ::-1]).items():
        np.testing.assert_allclose(value, logits[name], atol=1e-5)
    # A sum over all tokens weighted to one: doubling them changes nothing, dropping some does.
    np.testing.assert_allclose(apply(params, jnp.tile(tokens, (1, 2, 1)))["noun"], logits["noun"], atol=1e-5)
    assert not np.allclose(apply(params, tokens[:, :7])["noun"], logits["noun"], atol=1e-3)


def test_every_output_has_its_query():
    probe = AttentiveProbe(48, 1, 3, num_queries=3, outputs=ANTICIPATION)
    params = _random(probe)
    queries = params["params"]["query_tokens"]
    changed = {"params": params["params"] | {"query_tokens": queries.at[1].add(1.0)}}
    apply = fast_jit(probe.apply)
    before, after = apply(params, _tokens(2, 9)), apply(changed, _tokens(2, 9))
    for name in before:
        assert np.allclose(before[name], after[name], atol=1e-6) == (name != "noun")


def test_half_precision():
    tokens = _tokens(2, 14)
    probe = AttentiveProbe(48, 2, 3, outputs=(("label", 6),))
    half = probe.copy(dtype=jnp.bfloat16, residual_dtype=jnp.bfloat16)
    params = _random(probe)
    initial = jax.eval_shape(half.init, jax.random.key(0), tokens)
    assert {leaf.dtype for leaf in jax.tree.leaves(initial)} == {jnp.dtype(jnp.float32)}
    logits = fast_jit(half.apply)(params, tokens.astype(jnp.bfloat16))["label"]
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, fast_jit(probe.apply)(params, tokens)["label"], atol=0.2)
    pooled = jax.eval_shape(lambda params: half.apply(params, tokens, method="pool"), params)
    assert pooled.shape == (2, 1, 48) and pooled.dtype == jnp.bfloat16


@pytest.mark.parametrize("depth, last", [(1, 1), (2, 1), (4, 3)])
def test_initialisation(depth, last):
    probe = AttentiveProbe(192, depth, 3, num_queries=16, outputs=tuple((f"o{i}", 50) for i in range(16)))
    params = fast_jit(probe.init)(jax.random.key(0), jnp.zeros((1, 1, 192)))["params"]
    cross = params["cross"]
    np.testing.assert_allclose(cross["mlp"]["fc2"]["kernel"].std(), 0.02 / (2 * last) ** 0.5, rtol=0.03)
    for kernel in (params["query_tokens"], cross["q"]["kernel"], cross["kv"]["kernel"], params["o3"]["kernel"]):
        np.testing.assert_allclose(kernel.std(), 0.02, rtol=0.05)
    assert set(cross) == {"norm1", "q", "kv", "norm2", "mlp"} and ("blocks" in params) == (depth > 1)
    if depth > 1:
        kernels = params["blocks"]["layers"]["attention"]["proj"]["kernel"]
        np.testing.assert_allclose(kernels[-1].std(), 0.02 / (2 * last) ** 0.5, rtol=0.03)


@pytest.mark.parametrize("fields, message", [
    ({"width": 40}, "this probe takes tokens of width 40, not 48"),
    ({"num_heads": 5, "depth": 1}, "width 48 is not divisible by num_heads 5"),
    ({"num_heads": 5}, "width 48 is not divisible by num_heads 5"),
    ({"depth": 0}, "depth of a probe is 0; it must be at least 1"),
    ({"num_queries": 3}, "num_queries is 3; it must be the number of outputs, 1"),
    ({"remat": "some"}, "remat 'some' is unknown"),
    ({"attention": "slow"}, "attention backend 'slow' is unknown"),
])
def test_mistakes_are_named(fields, message):
    probe = AttentiveProbe(**({"width": 48, "num_heads": 3} | fields))
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(probe.init, jax.random.key(0), _tokens(1, 2))


def test_order_of_joined_tokens():
    """Segment by segment, in a segment layer by layer, in a layer token by token."""
    levels, segments, views, batch, length = 2, 3, 2, 2, 4
    tokens = jnp.arange(levels * segments * views * batch * length).reshape(levels, segments, views, batch, length, 1)
    joined = join_segments(join_levels(tokens))
    assert joined.shape == (views, batch, segments * levels * length, 1)
    expected = [tokens[level, segment, 1, 0, :, 0] for segment in range(segments) for level in range(levels)]
    np.testing.assert_array_equal(joined[1, 0, :, 0], np.concatenate(expected))


def test_time_table_must_fit():
    times = time_table(48, np.arange(12).reshape(1, 2, 6), 2)
    assert times.shape == (1, 2, 3, 48) and times.dtype == np.float32
    with pytest.raises(ValueError, match="8 tokens of a segment are not a whole number of 3 time steps"):
        join_segments(_tokens(1, 1, 2, 8), times)
    tokens = _tokens(1, 1, 2, 9).astype(jnp.bfloat16)
    assert join_segments(tokens, times).dtype == jnp.bfloat16
