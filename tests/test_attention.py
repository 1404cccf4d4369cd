"""Every attention backend computes the same thing, on one device and on eight."""

import functools
import importlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas
from jax.experimental.pallas import tpu as pltpu

from jepa_jax.models.attention import attention, block_causal_attention, choose_backend
from jepa_jax.training import sharding

# The package re-exports a function under the name of this module.
module = importlib.import_module("jepa_jax.models.attention")


def _inputs(batch, length, heads, dim, dtype=jnp.float32):
    rngs = jax.random.split(jax.random.key(0), 4)
    return [jax.random.normal(rng, (batch, length, heads, dim), dtype) for rng in rngs]


def _pull_back(attend, q, k, v, cotangent):
    def run(q, k, v):
        out, pull_back = jax.vjp(attend, q, k, v)
        return out, pull_back(cotangent)

    return jax.jit(run)(q, k, v)


def _value_and_gradients(backend, *inputs):
    return _pull_back(functools.partial(attention, backend=backend), *inputs)


def _reference(q, k, v):
    scores = np.einsum("bqhd,bkhd->bhqk", q, k, dtype=np.float64) / np.sqrt(q.shape[-1])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bhqk,bkhd->bqhd", weights / weights.sum(-1, keepdims=True), v)


@pytest.mark.parametrize("backend", ["xla", "chunked"])
def test_equals_the_definition(backend):
    q, k, v, _ = _inputs(2, 37, 3, 16)
    np.testing.assert_allclose(attention(q, k, v, backend), _reference(*map(np.asarray, (q, k, v))), atol=2e-6)


# Below a chunk, above it, and not a multiple of it.
@pytest.mark.parametrize("length", [1, 40, 64, 150])
def test_chunked_equals_xla(monkeypatch, length):
    monkeypatch.setattr(module, "QUERY_CHUNK", 64)
    inputs = _inputs(2, length, 2, 16)
    expected = _value_and_gradients("xla", *inputs)
    chex.assert_trees_all_close(_value_and_gradients("chunked", *inputs), expected, atol=1e-5)


# Whole and padded blocks; head widths of the predictor, of most encoders, and of ViT-H.
@pytest.mark.parametrize("length, dim", [(128, 64), (200, 32), (300, 64), (130, 80)])
def test_flash_equals_xla(length, dim):
    inputs = _inputs(2, length, 2, dim)
    expected = _value_and_gradients("xla", *inputs)
    with pltpu.force_tpu_interpret_mode():
        result = jax.block_until_ready(_value_and_gradients("flash", *inputs))
    chex.assert_trees_all_close(result, expected, atol=2e-5)


# One learned query over many tokens, a later frame over all before it, more queries than keys,
# and queries or keys alone in need of padding.
@pytest.mark.parametrize("num_queries, num_keys", [(1, 150), (150, 40), (128, 200), (70, 256)])
@pytest.mark.parametrize("backend", ["xla", "chunked", "flash"])
def test_other_numbers_of_queries_than_keys(monkeypatch, backend, num_queries, num_keys):
    monkeypatch.setattr(module, "QUERY_CHUNK", 64)
    q, _, _, cotangent = _inputs(2, num_queries, 2, 32)
    _, k, v, _ = _inputs(2, num_keys, 2, 32)
    with pltpu.force_tpu_interpret_mode():
        out, gradients = jax.block_until_ready(_value_and_gradients(backend, q, k, v, cotangent))
    np.testing.assert_allclose(out, _reference(*map(np.asarray, (q, k, v))), atol=1e-5)
    chex.assert_trees_all_close(gradients, _value_and_gradients("xla", q, k, v, cotangent)[1], atol=2e-5)


def _dense_block_causal(q, k, v, block):
    """Block-causal attention by its definition, with the N x N mask."""
    frame = jnp.arange(q.shape[1]) // block
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
    scores = jnp.where(frame[:, None] >= frame, scores, -jnp.inf)
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores, axis=-1), v)


@pytest.mark.parametrize("backend, length, block", [
    ("xla", 60, 20), ("xla", 60, 60), ("xla", 4, 1), ("chunked", 200, 100), ("flash", 60, 30),
    # Three blocks share a product, and the last product has two; then one has all of them.
    ("chunked", 100, 20), ("chunked", 60, 20),
])
def test_block_causal_equals_the_mask(monkeypatch, backend, length, block):
    monkeypatch.setattr(module, "QUERY_CHUNK", 64)
    monkeypatch.setattr(module, "_SHARED_ROWS", 70)
    inputs = _inputs(2, length, 2, 16)
    expected = _pull_back(functools.partial(_dense_block_causal, block=block), *inputs)
    with pltpu.force_tpu_interpret_mode():
        attend = functools.partial(block_causal_attention, block=block, backend=backend)
        result = jax.block_until_ready(_pull_back(attend, *inputs))
    chex.assert_trees_all_close(result, expected, atol=2e-5)


def test_block_causal_computes_only_what_is_seen():
    """Of 8 x 8 frame pairs 36 are seen; plain attention computes 64."""
    q, k, v, _ = _inputs(1, 512, 2, 32)

    def flops(attend):
        return jax.jit(attend).lower(q, k, v).compile().cost_analysis()["flops"]

    plain = flops(functools.partial(attention, backend="xla"))
    assert flops(functools.partial(block_causal_attention, block=64, backend="xla")) < 37 / 64 * plain


@pytest.mark.parametrize("block", [0, 7, 24])
def test_unequal_blocks(block):
    q, k, v, _ = _inputs(1, 12, 1, 8)
    with pytest.raises(ValueError, match=f"12 tokens are not a whole number of blocks of {block}"):
        block_causal_attention(q, k, v, block)


@pytest.mark.parametrize("backend", ["xla", "chunked", "flash"])
def test_half_precision_stays_close(backend):
    inputs = _inputs(1, 96, 2, 64)
    halves = [x.astype(jnp.bfloat16) for x in inputs]
    expected = _value_and_gradients("xla", *[x.astype(jnp.float32) for x in halves])
    with pltpu.force_tpu_interpret_mode():
        result = jax.block_until_ready(_value_and_gradients(backend, *halves))
    chex.assert_trees_all_equal_dtypes(result, jax.tree.map(lambda x: x.astype(jnp.bfloat16), expected))
    chex.assert_trees_all_close(jax.tree.map(lambda x: x.astype(jnp.float32), result), expected, atol=0.03)


@pytest.mark.parametrize("backend", ["xla", "chunked"])
def test_float64_is_not_narrowed(backend):
    with jax.enable_x64(True):
        q, k, v = (jnp.asarray(np.random.default_rng(i).normal(size=(1, 20, 2, 8))) for i in range(3))
        out = attention(q, k, v, backend)
        assert out.dtype == jnp.float64
        np.testing.assert_allclose(out, _reference(*map(np.asarray, (q, k, v))), atol=1e-13)


@pytest.mark.parametrize("backend, fsdp, sequence", [
    ("xla", 2, 1), ("chunked", 2, 1), ("chunked", 8, 1), ("flash", 4, 1), ("xla", 2, 2), ("chunked", 2, 2), ("chunked", 1, 4), ("flash", 1, 2),
])
def test_sharded_equals_unsharded(monkeypatch, backend, fsdp, sequence):
    # The TPU interpreter makes devices wait for each other, which on a machine with fewer
    # cores than devices may never end; the plain interpreter does not.
    monkeypatch.setattr(pallas, "pallas_call", functools.partial(pallas.pallas_call, interpret=True))
    # 4 does not divide 70: then queries stay whole.
    inputs = _inputs(8, 70, 2, 32)
    expected = _value_and_gradients("xla", *inputs)
    mesh = sharding.make_mesh(fsdp, sequence=sequence)
    with sharding.use_mesh(mesh):
        inputs = [jax.device_put(x, sharding.batch_sharding(mesh)) for x in inputs]
        result = _value_and_gradients(backend, *inputs)
    assert not result[0].is_fully_replicated
    chex.assert_trees_all_close(result, expected, atol=2e-5)


def test_a_sequence_axis_splits_the_queries():
    q, k, v, _ = _inputs(2, 64, 2, 32)
    mesh = sharding.make_mesh(2, jax.devices()[:8], sequence=4)
    with sharding.use_mesh(mesh):
        out = jax.jit(functools.partial(attention, backend="chunked"))(q, k, v)
    assert {shard.data.shape for shard in out.addressable_shards} == {(1, 16, 2, 32)} and out.sharding.spec[1] == "sequence"
    np.testing.assert_allclose(out, attention(q, k, v, "xla"), atol=2e-6)


@pytest.mark.parametrize("block", [10, 100])
def test_block_causal_over_a_sequence_axis(block):
    """Blocks that share a product, and blocks that do not."""
    *inputs, _ = _inputs(2, 200, 2, 16)
    mesh = sharding.make_mesh(1, jax.devices()[:4], sequence=2)
    with sharding.use_mesh(mesh):
        out = jax.jit(functools.partial(block_causal_attention, block=block, backend="chunked"))(*inputs)
    np.testing.assert_allclose(out, _dense_block_causal(*inputs, block), atol=2e-6)


def test_batch_that_does_not_divide_over_the_mesh():
    inputs = _inputs(3, 20, 2, 8)
    expected = _value_and_gradients("xla", *inputs)
    with sharding.use_mesh(sharding.make_mesh(2)):
        chex.assert_trees_all_close(_value_and_gradients("chunked", *inputs), expected, atol=1e-5)


def test_within_a_device_of_its_own():
    """Whoever has split the work himself, as `Runner` does with episodes, is not split once more."""
    *inputs, _ = _inputs(4, 20, 2, 8)
    mesh = sharding.make_mesh(devices=jax.devices()[:4])
    rows = sharding.batch_sharding(mesh).spec
    out = jax.jit(jax.shard_map(functools.partial(attention, backend="chunked"), mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False))(*inputs)
    np.testing.assert_allclose(out, attention(*inputs, "xla"), atol=2e-6)


def test_chunked_holds_one_chunk_of_scores():
    """Forward and backward need less than one head's score matrix; plain XLA needs them all."""
    inputs = _inputs(1, 2048, 4, 32)

    def temporary_bytes(backend):
        run = jax.jit(lambda *x: _value_and_gradients(backend, *x))
        return run.lower(*inputs).compile().memory_analysis().temp_size_in_bytes

    all_scores = 4 * 2048 * 2048 * 4
    operands = sum(x.nbytes for x in inputs)
    assert temporary_bytes("xla") > all_scores
    # A few copies of the operands and of a chunk (about a third of one head).
    chunk = module.QUERY_CHUNK * 2048 * 4
    assert temporary_bytes("chunked") < 4 * chunk + 4 * operands < 1.1 * all_scores


@pytest.mark.parametrize("platform, dtype, expected", [
    ("cpu", jnp.float32, "chunked"), ("cpu", jnp.bfloat16, "chunked"),
    ("gpu", jnp.float32, "xla"), ("gpu", jnp.float16, "cudnn"), ("gpu", jnp.bfloat16, "cudnn"),
    ("tpu", jnp.float32, "flash"), ("tpu", jnp.bfloat16, "flash"),
])
def test_automatic_choice(platform, dtype, expected):
    assert choose_backend("auto", dtype, platform) == expected
    assert choose_backend("xla", dtype, platform) == "xla"


def test_default_platform():
    assert choose_backend("auto", jnp.float32) == choose_backend("auto", jnp.float32, jax.default_backend())


def test_unknown_backend():
    q, k, v, _ = _inputs(1, 4, 1, 8)
    with pytest.raises(ValueError, match="'fast' is unknown; choose 'auto' or one of .*chunked.*cudnn.*flash.*xla"):
        attention(q, k, v, "fast")
