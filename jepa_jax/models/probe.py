"""The attentive probe: class scores from the frozen tokens of an encoder."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from jepa_jax.models.attention import attention
from jepa_jax.models.layers import BlockStack, Mlp, dense, head_dim, mlp_hidden_dim
from jepa_jax.models.norms import LayerNorm

_ACTIVATION = "gelu"


class CrossBlock(nn.Module):
    """Block in which queries gather from tokens: cross-attention, then MLP, each added to the queries.

    Attributes:
      init_scale: factor on the initial `fc2` kernel of the MLP.
      num_heads, mlp_hidden, norm_eps, dtype, param_dtype, residual_dtype:
        see `jepa_jax.models.layers.BlockStack`.

    Call args:
      queries: `[B, Q, D]` in `residual_dtype`.
      tokens: `[B, N, D]`.

    Returns:
      (x, weights): `[B, Q, D]` in `residual_dtype`; float32 `[B, Q, N]`, how much each query took of each token, the mean
      over heads.

    Source: src/models/utils/modules.py (CrossAttentionBlock).
    """

    num_heads: int
    mlp_hidden: int
    norm_eps: float
    init_scale: float
    dtype: jnp.dtype
    param_dtype: jnp.dtype
    residual_dtype: jnp.dtype

    @nn.compact
    def __call__(self, queries, tokens):
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        batch, _, width = queries.shape
        heads = (self.num_heads, head_dim(width, self.num_heads))
        # Parity: the queries are not normalised before their projection, and the result of
        # the attention is not projected.
        q = dense(width, "q", **types)(queries).reshape(batch, -1, *heads)
        kv = dense(2 * width, "kv", **types)(LayerNorm(self.norm_eps, name="norm1", **types)(tokens))
        kv = kv.reshape(batch, -1, 2, *heads)
        # A few queries: their scores are small, and kernels made for many would pad them.
        gathered = attention(q, kv[:, :, 0], kv[:, :, 1], "xla").reshape(batch, -1, width)
        # Compiled programs that do not return the weights do not compute them.
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, kv[:, :, 0], preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(scores / math.sqrt(heads[1]), axis=-1).mean(1)
        x = queries + gathered.astype(self.residual_dtype)
        h = LayerNorm(self.norm_eps, name="norm2", **types)(x)
        h = Mlp(self.mlp_hidden, _ACTIVATION, init_scale=self.init_scale, name="mlp", **types)(h)
        return x + h.astype(self.residual_dtype), weights


class AttentiveProbe(nn.Module):
    """Attentive probe: self-attention over the tokens, learned queries that gather from them, linear heads.

    Attributes:
      width: channels D of the tokens.
      depth: blocks in all: `depth - 1` of self-attention, then one of cross-attention.
      num_heads: heads of all blocks; released probes have 16 for every encoder.
      num_queries: learned queries, one per output.
      outputs: (name, number of classes) of every linear head, in the order of the queries.
        Action anticipation has verb, noun and action, or action alone.
      norm_eps: 1e-5 in released probes, unlike encoders; 1e-6 in those of Hugging Face.
      attention, remat: of the self-attention blocks.
      mlp_ratio, dtype, param_dtype, residual_dtype: as in `VideoEncoder`.

    Source: src/models/attentive_pooler.py, evals/action_anticipation_frozen/models.py.
    """

    width: int
    depth: int = 4
    num_heads: int = 16
    mlp_ratio: float = 4.0
    num_queries: int = 1
    outputs: tuple[tuple[str, int], ...] = (("label", 174),)
    norm_eps: float = 1e-5
    attention: str = "auto"
    remat: str = "none"
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32
    residual_dtype: jnp.dtype = jnp.float32

    def __call__(self, tokens):
        """Score classes.

        Args:
          tokens: `[B, N, D]` features, any number of tokens; they have no position here.

        Returns:
          dict from the name of an output to its logits `[B, classes]`, float32.

        Raises:
          ValueError: if the width differs, or the queries do not match the outputs.
        """
        return self._run(tokens)[1]

    def pool(self, tokens):
        """Return what the queries gathered, before the heads: `[B, Q, D]` in `residual_dtype`."""
        return self._run(tokens)[0]

    def weigh(self, tokens):
        """Return how much each query takes of each token: float32 `[B, Q, N]`, the mean over heads; a query's sum is 1.

        Blocks of self-attention have mixed the tokens before, where `depth` is above 1.
        """
        return self._run(tokens)[2]

    def _check(self, tokens):
        if tokens.shape[-1] != self.width:
            raise ValueError(f"this probe takes tokens of width {self.width}, not {tokens.shape[-1]}")
        if self.depth < 1:
            raise ValueError(f"depth of a probe is {self.depth}; it must be at least 1")
        if self.num_queries != len(self.outputs):
            raise ValueError(f"num_queries is {self.num_queries}; it must be the number of outputs, {len(self.outputs)}")

    @nn.compact
    def _run(self, tokens):
        self._check(tokens)
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype, "residual_dtype": self.residual_dtype}
        hidden = mlp_hidden_dim(self.width, self.mlp_ratio, _ACTIVATION)
        if self.depth > 1:
            stack = BlockStack(
                self.depth - 1, self.num_heads, hidden, _ACTIVATION, self.norm_eps, self.attention, self.remat,
                name="blocks", **types,
            )
            tokens, _, _ = stack(tokens)
        init = nn.initializers.normal(0.02)
        queries = self.param("query_tokens", init, (self.num_queries, self.width), self.param_dtype)
        queries = jnp.broadcast_to(queries.astype(self.residual_dtype), (tokens.shape[0], *queries.shape))
        # Parity: at initialisation the last block counts as deep as the one before it.
        scale = (2 * max(self.depth - 1, 1)) ** -0.5
        gather = CrossBlock(self.num_heads, hidden, self.norm_eps, scale, name="cross", **types)
        pooled, weights = gather(queries, tokens)
        # Heads are small, so they may be exact.
        wide = jnp.promote_types(self.dtype, jnp.float32)
        logits = {
            name: dense(classes, name, wide, self.param_dtype)(pooled[:, i])
            for i, (name, classes) in enumerate(self.outputs)
        }
        return pooled, logits, weights
