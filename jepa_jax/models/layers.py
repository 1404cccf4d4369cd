"""The one transformer block and the one stack of blocks that every model uses."""

import functools
import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jepa_jax.models.attention import attention, block_causal_attention
from jepa_jax.models.norms import LayerNorm
from jepa_jax.models.precision import widen
from jepa_jax.models.rope import rotate

ACTIVATIONS = ("gelu", "swiglu", "swiglu_wide")
# JAX's own policies that go by the operation do not see into the products here, which have their own derivative.
_LINEAR = "linear"
REMAT_POLICIES = {
    "full": None,
    "dots": jax.checkpoint_policies.save_only_these_names(_LINEAR),
}
_INIT_STD = 0.02


class FrameCache(NamedTuple):
    """Keys and values of earlier frames, kept so that later frames need not compute them again.

    What was kept is never copied: every call adds arrays of its own. Heads lie side by side, as a TPU pads a last axis to 128.

    Attributes:
      keys, values: tuples of `[depth, B, N, D]`, N tokens of whole frames, from the first frames to the last; inside a block
        without the first axis. Keys are rotated already.
    """

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]

    @property
    def length(self):
        """Count the tokens."""
        return sum(part.shape[-2] for part in self.keys)


def _normal(scale=1.0):
    # The official truncation is at an absolute +-2, a hundred sigma away.
    def init(rng, shape, dtype):
        return (_INIT_STD * jax.random.normal(rng, shape, jnp.float32) * scale).astype(dtype)

    return init


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _product(x, kernel, dimension_numbers, precision=None, preferred_element_type=None):
    """Multiply `[..., i]` by `[i, o]`, with the signature of `jax.lax.dot_general`, in the dtype of `x`."""
    return jax.lax.dot_general(x, kernel.astype(x.dtype), dimension_numbers, precision, preferred_element_type)


def _product_forward(x, kernel, *static):
    return _product(x, kernel, *static), (x, kernel)


def _product_backward(dimension_numbers, precision, preferred_element_type, residuals, d_out):
    x, kernel = residuals
    leading = tuple(range(x.ndim - 1))
    d_x = jax.lax.dot_general(d_out, kernel.astype(x.dtype), (((x.ndim - 1,), (1,)), ((), ())), precision)
    # Automatic differentiation computes the transpose of this product and transposes it back,
    # which takes XLA on CPU up to three times as long.
    # In the dtype of the kernel: devices then add up their parts in float32, also where they compute in bfloat16.
    wide = jnp.promote_types(x.dtype, kernel.dtype)
    d_kernel = jax.lax.dot_general(x, d_out, ((leading, leading), ((), ())), precision, wide)
    return d_x.astype(x.dtype), d_kernel.astype(kernel.dtype)


_product.defvjp(_product_forward, _product_backward)


def _kept_product(*args, **options):
    """Multiply as `_product` does, and name what comes out for `REMAT_POLICIES`."""
    return checkpoint_name(_product(*args, **options), _LINEAR)


def _promote(x, kernel, bias, dtype=None):
    """Bring the input and the bias of a layer to the dtype it computes in; `_product` does so with the kernel."""
    return x.astype(dtype), kernel, None if bias is None else bias.astype(dtype)


def dense(features, name, dtype, param_dtype, init_scale=1.0):
    """Make a biased linear layer with the official initialisation (normal, std 0.02)."""
    return nn.Dense(
        features, name=name, dtype=dtype, param_dtype=param_dtype, kernel_init=_normal(init_scale),
        dot_general=_kept_product, promote_dtype=_promote,
    )


# Checkpointed: what its derivative needs is computed again from the input, which the backward
# pass would otherwise find as several arrays of the hidden width.
@functools.partial(jax.checkpoint, prevent_cse=False)
def gelu(x):
    """Compute x Phi(x), exactly, in float32 or wider; the result has the dtype of `x`."""
    wide = widen(x)
    return (0.5 * wide * (1.0 + jax.lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)


def _modulate(x, scale, shift=0.0):
    """Compute x * (1 + scale) + shift for tokens `[B, N, D]`, with one scale and shift `[B, F, 1, D]` per frame."""
    if scale is None:
        return x
    frames = x.reshape(*scale.shape[:2], -1, x.shape[-1])
    return (frames * (1.0 + scale) + shift).reshape(x.shape)


def head_dim(width, num_heads):
    """Return the channels per head.

    Raises:
      ValueError: if the heads do not divide the width.
    """
    if width % num_heads:
        raise ValueError(f"width {width} is not divisible by num_heads {num_heads}")
    return width // num_heads


def mlp_hidden_dim(width, ratio, activation):
    """Return the hidden width of the MLP.

    Source: src/models/utils/modules.py (SwiGLUFFN) for the gated forms.
    """
    hidden = int(width * ratio)
    if activation == "swiglu_wide":
        return -(-int(2 * hidden / 3) // 8) * 8
    return hidden


class Mlp(nn.Module):
    """Feed-forward part of a block: exact GELU, or gated SiLU.

    Attributes:
      hidden_dim: hidden width, see `mlp_hidden_dim`.
      activation: one of `ACTIVATIONS`.
      init_scale: factor on the initial `fc2` kernel.
    """

    hidden_dim: int
    activation: str
    dtype: jnp.dtype
    param_dtype: jnp.dtype
    init_scale: jax.Array | float = 1.0

    @nn.compact
    def __call__(self, x):
        types = (self.dtype, self.param_dtype)
        width = x.shape[-1]
        hidden = dense(self.hidden_dim, "fc1", *types)(x)
        if self.activation == "gelu":
            return dense(width, "fc2", *types, self.init_scale)(gelu(hidden))
        # Parity: depth rescaling at initialisation goes by the name fc2, which in
        # the gated form is the value branch and not the output.
        value = dense(self.hidden_dim, "fc2", *types, self.init_scale)(x)
        return dense(width, "fc3", *types)(jax.nn.silu(hidden) * value)


class Attention(nn.Module):
    """Multi-head self-attention with one fused qkv projection.

    Attributes:
      num_heads: heads K; the width must divide by it.
      backend: see `jepa_jax.models.attention`.
      init_scale: factor on the initial output projection.
      causal_block: tokens per block of block-causal attention; None: all see all.
      keep: return the keys and values.

    Call args:
      x: `[B, N, D]`.
      angles: float32 `[B or 1, N, d]` rotary angles, or None.
      past: `FrameCache` of tokens before these, or None.

    Returns:
      (out, cache): `[B, N, D]`, and the `FrameCache` of these tokens alone, None without `keep`.
    """

    num_heads: int
    backend: str
    dtype: jnp.dtype
    param_dtype: jnp.dtype
    init_scale: jax.Array | float = 1.0
    causal_block: int | None = None
    keep: bool = False

    @nn.compact
    def __call__(self, x, angles, past=None):
        batch, length, width = x.shape
        types = (self.dtype, self.param_dtype)
        qkv = dense(3 * width, "qkv", *types)(x)
        qkv = qkv.reshape(batch, length, 3, self.num_heads, head_dim(width, self.num_heads))
        q, k, v = (qkv[:, :, i] for i in range(3))
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        cache = FrameCache(*((value.reshape(x.shape),) for value in (k, v)))
        if past is not None:
            join = lambda old, new: jnp.concatenate([*(part.reshape(batch, -1, *new.shape[2:]) for part in old), new], axis=1)
            k, v = join(past.keys, k), join(past.values, v)
        if self.causal_block is None:
            out = attention(q, k, v, self.backend)
        else:
            out = block_causal_attention(q, k, v, self.causal_block, self.backend)
        out = dense(width, "proj", *types, self.init_scale)(out.reshape(batch, length, width))
        return out, cache if self.keep else None


class Block(nn.Module):
    """Pre-norm transformer block: attention, then MLP, each added to the residual.

    Call args:
      x: `[B, N, D]` residual stream in `residual_dtype`.
      layer: 1-based index of the block (int or float scalar, may be traced); only
        initialisation looks at it.
      angles: float32 `[B or 1, N, d]` rotary angles, or None.
      past: `FrameCache` of this block from the tokens before these, or None.
      modulation: `[B, F, D]`, one vector per frame that scales, shifts and gates both halves for
        the tokens of that frame; None for a plain block. At first a block is as without it.

    Returns:
      (x, cache): the residual stream, and the `FrameCache` of these tokens alone, None without `keep`.

    Source: src/models/utils/modules.py (Block); the official block has no modulation.
    """

    num_heads: int
    mlp_hidden: int
    activation: str
    norm_eps: float
    attention: str
    dtype: jnp.dtype
    param_dtype: jnp.dtype
    residual_dtype: jnp.dtype
    causal_block: int | None = None
    keep: bool = False

    @nn.compact
    def __call__(self, x, layer, angles, past=None, modulation=None):
        # Output projections start smaller the deeper they sit.
        # Source: src/models/vision_transformer.py (_rescale_blocks).
        scale = jax.lax.rsqrt(2.0 * layer)
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        scale1 = shift1 = gate1 = scale2 = shift2 = gate2 = None
        if modulation is not None:
            vectors = dense(6 * x.shape[-1], "modulation", init_scale=0.0, **types)(modulation)
            scale1, shift1, gate1, scale2, shift2, gate2 = jnp.split(vectors[:, :, None], 6, axis=-1)
        h = LayerNorm(self.norm_eps, name="norm1", **types)(x)
        attend = Attention(
            self.num_heads, self.attention, init_scale=scale, causal_block=self.causal_block, keep=self.keep,
            name="attention", **types,
        )
        h, cache = attend(_modulate(h, scale1, shift1), angles, past)
        x = x + _modulate(h, gate1).astype(self.residual_dtype)
        h = LayerNorm(self.norm_eps, name="norm2", **types)(x)
        mlp = Mlp(self.mlp_hidden, self.activation, init_scale=scale, name="mlp", **types)
        h = mlp(_modulate(h, scale2, shift2))
        x = x + _modulate(h, gate2).astype(self.residual_dtype)
        return nn.with_logical_constraint(x, ("batch", "tokens", "width")), cache


class BlockStack(nn.Module):
    """`depth` blocks run by one scan; their parameters are stacked on a leading axis.

    Attributes:
      remat: what the backward pass finds instead of computing it again: "none" keeps all, "dots" what comes out of linear
        layers, "full" what goes into blocks.
      residual_dtype: dtype of the residual stream between blocks.
      causal_block: tokens per frame when a token may see its own and earlier frames only,
        None when all see all.

    Call args:
      x: `[B, N, D]`.
      angles: float32 rotary angles `[B or 1, N, d]`, or None.
      layers: static tuple of 0-based block indices whose outputs are wanted.
      past: `FrameCache` of tokens before these, which these see too; or None.
      modulation: `[B, F, D]`, see `Block`; or None.
      keep: return the keys and values of `past` and these tokens.

    Returns:
      (x, kept, cache): the last output `[B, N, D]`; `kept` `[len(layers), B, N, D]`, the outputs
      of `layers` in the order asked (other layers are not stored); `FrameCache`, None without `keep`.
    """

    depth: int
    num_heads: int
    mlp_hidden: int
    activation: str = "gelu"
    norm_eps: float = 1e-6
    attention: str = "auto"
    remat: str = "none"
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32
    residual_dtype: jnp.dtype = jnp.float32
    causal_block: int | None = None

    def _check(self, layers):
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation {self.activation!r} is unknown; choose one of {ACTIVATIONS}")
        if self.remat != "none" and self.remat not in REMAT_POLICIES:
            raise ValueError(f"remat {self.remat!r} is unknown; choose 'none' or one of {sorted(REMAT_POLICIES)}")
        if len(set(layers)) != len(layers) or any(not 0 <= i < self.depth for i in layers):
            raise ValueError(f"layers {layers} must be distinct block indices in 0..{self.depth - 1}")

    @nn.compact
    def __call__(self, x, angles=None, layers=(), past=None, modulation=None, keep=False):
        self._check(layers)
        block_class = Block
        if self.remat != "none":
            # Inside a scan the compiler cannot merge recomputation with the forward
            # pass, so the barrier against it (prevent_cse) is not needed.
            block_class = nn.remat(Block, policy=REMAT_POLICIES[self.remat], prevent_cse=False)
        block = block_class(
            num_heads=self.num_heads, mlp_hidden=self.mlp_hidden, activation=self.activation,
            norm_eps=self.norm_eps, attention=self.attention, dtype=self.dtype,
            param_dtype=self.param_dtype, residual_dtype=self.residual_dtype, causal_block=self.causal_block,
            keep=keep, name="layers",
        )

        def body(block, carry, layer, slot, past, angles, modulation):
            x, kept = carry
            x, cache = block(x, layer, angles, past, modulation)
            if layers:
                # The slot of a layer nobody asked for is out of range, and dropped.
                kept = kept.at[slot].set(x, mode="drop")
            return (x, kept), cache

        slots = [layers.index(i) if i in layers else len(layers) for i in range(self.depth)]
        x = x.astype(self.residual_dtype)
        carry = (x, jnp.zeros((len(layers), *x.shape), x.dtype))
        scan = nn.scan(
            body, variable_axes={"params": 0}, split_rngs={"params": True},
            in_axes=(0, 0, 0, nn.broadcast, nn.broadcast), length=self.depth,
        )
        depths = jnp.arange(1.0, self.depth + 1)
        (x, kept), cache = scan(block, carry, depths, jnp.array(slots), past, angles, modulation)
        if keep and past is not None:
            cache = FrameCache(*(old + new for old, new in zip(past, cache)))
        return x, kept, cache
