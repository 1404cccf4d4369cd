"""Softmax attention behind one function, with one backend per platform."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

# Queries whose scores are held at once by the chunked backend: 784 x 8192 fp32
# is 26 MB, which stays near the cache and keeps the matrix products large.
QUERY_CHUNK = 784
# Queries of small causal blocks that the chunked backend takes together.
_SHARED_ROWS = 192
# The TPU kernel works on blocks of this many tokens.
FLASH_BLOCK = 128


def _score_dtype(q):
    return jnp.promote_types(q.dtype, jnp.float32)


def _xla(q, k, v):
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=_score_dtype(q))
    weights = jax.nn.softmax(scores / math.sqrt(q.shape[-1]), axis=-1)
    return jnp.einsum("bhqk,bkhd->bqhd", weights.astype(v.dtype), v)


def _hide(scores, block, axis=0):
    """Set scores of later blocks to -inf; queries run along `axis`, and the last query is at the last key."""
    if block is None:
        return scores
    queries, keys = (jax.lax.broadcasted_iota(jnp.int32, scores.shape, side) for side in (axis, 1 - axis))
    past = scores.shape[1 - axis] - scores.shape[axis]
    return jnp.where((queries + past) // block >= keys // block, scores, -jnp.inf)


def _softmax_rows(q, k, v, block):
    """Return (output `[c, d]`, logarithmic normaliser of the scores `[c]`)."""
    scores = jnp.matmul(q, k.T, preferred_element_type=_score_dtype(q)) / math.sqrt(q.shape[-1])
    scores = _hide(scores, block)
    largest = jnp.max(scores, axis=-1, keepdims=True)
    weights = jnp.exp(scores - largest)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    out = jnp.matmul(weights.astype(v.dtype), v, preferred_element_type=weights.dtype) / total
    return out.astype(v.dtype), (largest + jnp.log(total))[:, 0]


# With a derivative of its own, this has no forward-mode (jvp) derivative; nothing needs one.
@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _attend_rows(q, k, v, block=None):
    """Attend with the queries `[c, d]` of one head to its tokens `[N, d]`, all or none of later blocks."""
    return _softmax_rows(q, k, v, block)[0]


def _attend_rows_forward(q, k, v, block):
    # The backward pass recomputes the scores instead of keeping them.
    out, normaliser = _softmax_rows(q, k, v, block)
    return out, (q, k, v, normaliser)


def _attend_rows_backward(block, residuals, d_out):
    # Scores are `[N, c]` here. On CPU, XLA multiplies a large transposed matrix with a narrow
    # one up to eight times slower than a plain one; automatic differentiation needs that
    # twice. This way it occurs once, and there the copy is made explicitly: without the
    # barrier XLA would fold it into the product again.
    q, k, v, normaliser = residuals
    wide, scale = normaliser.dtype, 1.0 / math.sqrt(q.shape[-1])
    scores = jnp.matmul(k, q.T, preferred_element_type=wide) * scale
    weights = jnp.exp(_hide(scores, block, axis=1) - normaliser)
    d_weights = jnp.matmul(v, d_out.T, preferred_element_type=wide)
    d_scores = weights * (d_weights - jnp.sum(weights * d_weights, axis=0)) * scale
    d_scores = d_scores.astype(q.dtype)
    d_q = jnp.matmul(jax.lax.optimization_barrier(d_scores.T), k)
    return d_q, jnp.matmul(d_scores, q), jnp.matmul(weights.astype(v.dtype), d_out)


_attend_rows.defvjp(_attend_rows_forward, _attend_rows_backward)


def _chunked(q, k, v, block=None):
    """Attend head by head in two-dimensional products, a chunk of queries at a time, or with `block` all at once."""
    batch, length, heads, dim = q.shape

    def flat(x):
        return x.swapaxes(1, 2).reshape(batch * heads, x.shape[1], dim)

    # Even chunks, so that at most a few rows of padding are computed.
    num_chunks = 1 if block else -(-length // QUERY_CHUNK)
    chunk = -(-length // num_chunks)

    def head(qkv):
        q, k, v = qkv
        if num_chunks == 1:
            return _attend_rows(q, k, v, block)
        q = jnp.pad(q, ((0, num_chunks * chunk - length), (0, 0))).reshape(num_chunks, chunk, dim)
        return jax.lax.map(lambda q: _attend_rows(q, k, v), q).reshape(-1, dim)[:length]

    out = jax.lax.map(head, (flat(q), flat(k), flat(v)))
    return out.reshape(batch, heads, length, dim).swapaxes(1, 2)


def _cudnn(q, k, v):
    return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")


def _flash(q, k, v):
    from jax.experimental.pallas.ops.tpu import flash_attention as kernel

    lengths = {"q": q.shape[1], "k": k.shape[1]}
    padded = {side: -(-length // FLASH_BLOCK) * FLASH_BLOCK for side, length in lengths.items()}

    def pad(x, side):
        return jnp.pad(x, ((0, 0), (0, padded[side] - x.shape[1]), (0, 0), (0, 0))).swapaxes(1, 2)

    def segment(side):
        ids = jnp.arange(padded[side]) >= lengths[side]
        return jnp.broadcast_to(ids.astype(jnp.int32), (q.shape[0], padded[side]))

    # The kernel needs whole blocks. Segment 1 holds the padding, so no real token sees it;
    # padded queries alone harm nobody and are cut off.
    segments = kernel.SegmentIds(segment("q"), segment("k")) if padded["k"] != lengths["k"] else None
    block = {side: next(size for size in (512, 256, FLASH_BLOCK) if padded[side] % size == 0) for side in padded}
    blocks = {name: 1 if name == "block_b" else block[name.split("_")[1]] for name in kernel.BlockSizes.__dataclass_fields__}
    out = kernel.flash_attention(
        pad(q, "q"), pad(k, "k"), pad(v, "k"), segment_ids=segments, sm_scale=1.0 / math.sqrt(q.shape[-1]),
        block_sizes=kernel.BlockSizes(**blocks),
    )
    return out.swapaxes(1, 2)[:, : lengths["q"]]


def _per_shard(attend, parts_of_batch=False, whole_queries=False):
    """Run a backend that XLA cannot partition on each device's part of the batch and of the queries.

    With `parts_of_batch`, XLA can, as long as only the batch is split. With `whole_queries`, those of a clip stay
    together: what hides keys from them counts both from the end.
    """

    @functools.wraps(attend)
    def sharded(q, k, v):
        mesh = jax.sharding.get_abstract_mesh()
        batch, tokens = (_axes_that_divide(mesh, name, size) for name, size in (("batch", q.shape[0]), ("tokens", q.shape[1])))
        tokens = None if whole_queries else tokens
        if mesh.empty or mesh.size == 1 or (parts_of_batch and tokens is None):
            return attend(q, k, v)
        # Keys and values are gathered: every query sees all of them.
        queries, others = PartitionSpec(batch, tokens), PartitionSpec(batch)
        return jax.shard_map(attend, mesh=mesh, in_specs=(queries, others, others), out_specs=queries, check_vma=False)(q, k, v)

    return sharded


def _axes_that_divide(mesh, name, size):
    """Return the mesh axes that an axis of some name and size is split over; None if it is whole, as where it does not divide."""
    (axes,) = nn.logical_to_mesh_axes((name,))
    over = math.prod(mesh.shape[axis] for axis in ((axes,) if isinstance(axes, str) else axes or ()) if not mesh.empty)
    return axes if over > 1 and size % over == 0 else None


BACKENDS = {
    "xla": _xla,
    "chunked": _per_shard(_chunked),
    "cudnn": _per_shard(_cudnn, parts_of_batch=True),
    "flash": _per_shard(_flash),
}


def choose_backend(name, dtype, platform=None):
    """Resolve "auto" to the backend that suits a platform.

    Args:
      name: "auto" or a key of `BACKENDS`.
      dtype: compute dtype of queries, keys and values.
      platform: "cpu", "gpu" or "tpu"; the default backend of JAX if None.

    Raises:
      ValueError: if the name is unknown.
    """
    if name in BACKENDS:
        return name
    if name != "auto":
        raise ValueError(f"attention backend {name!r} is unknown; choose 'auto' or one of {sorted(BACKENDS)}")
    platform = platform or jax.default_backend()
    if platform == "tpu":
        return "flash"
    if platform == "gpu":
        # cuDNN's fused kernel takes half precision only.
        return "cudnn" if jnp.dtype(dtype).itemsize == 2 else "xla"
    return "chunked"


def attention(q, k, v, backend="auto"):
    """Compute softmax(q k^T / sqrt(d)) v over all tokens.

    Args:
      q: `[B, Nq, K, d]`.
      k, v: `[B, N, K, d]`, of the dtype of `q`; the softmax is float32.
      backend: "auto" or a key of `BACKENDS`. The backends agree within rounding.

    Returns:
      `[B, Nq, K, d]` in the dtype of `v`.
    """
    return BACKENDS[choose_backend(backend, q.dtype)](q, k, v)


def block_causal_attention(q, k, v, block, backend="auto"):
    """Compute attention in which a token sees its own and earlier blocks of tokens.

    Args:
      q: `[B, Nq, K, d]`, the last blocks of tokens.
      k, v: `[B, N, K, d]` of all blocks, of the dtype of `q`; the softmax is float32.
      block: tokens per block; divides Nq and N.
      backend: "auto" or a key of `BACKENDS`.

    Returns:
      `[B, Nq, K, d]` in the dtype of `v`.

    Raises:
      ValueError: if there is not a whole number of blocks, or fewer keys than queries.
    """
    length, past = q.shape[1], k.shape[1] - q.shape[1]
    for tokens in (length, past):
        if block < 1 or tokens % block:
            raise ValueError(f"{tokens} tokens are not a whole number of blocks of {block}")
    if past < 0:
        raise ValueError(f"{length} queries are the last of the tokens, but there are only {k.shape[1]} keys")
    # Block by block: hidden scores are never computed, and any backend without a mask will do. On CPU, products of a
    # few rows cost more in loops than hidden scores do: there, small blocks share a product.
    chosen = choose_backend(backend, q.dtype)
    rows = block * max(1, _SHARED_ROWS // block) if chosen == "chunked" else block
    attend = BACKENDS[chosen] if rows == block else _per_shard(functools.partial(_chunked, block=block), whole_queries=True)
    parts = []
    for start in range(0, length, rows):
        end = min(start + rows, length)
        parts.append(attend(q[:, start:end], k[:, : past + end], v[:, : past + end]))
    return jnp.concatenate(parts, axis=1)
