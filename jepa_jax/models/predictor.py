"""The predictor: latents of hidden tokens from the latents of visible ones."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jepa_jax.models.encoder import POSITIONS
from jepa_jax.models.layers import BlockStack, dense, mlp_hidden_dim
from jepa_jax.models.norms import LayerNorm
from jepa_jax.models.rope import grid_positions, rotary_angles
from jepa_jax.models.sincos import sincos_table


class MaskedPredictor(nn.Module):
    """V-JEPA 2 predictor, a narrow transformer over context and mask tokens.

    Attributes:
      output_dim: width D of the encoder.
      width, depth, num_heads, mlp_ratio: size of the predictor itself.
      num_mask_tokens: learned vectors that stand for a token to predict.
      zero_init_mask_tokens: start them at zero rather than normal, std 0.02.
      positions, rope_layout, table_grid, uniform_power, activation, norm_eps,
      attention, remat, dtype, param_dtype, residual_dtype: as in `VideoEncoder`.

    Source: src/models/predictor.py.
    """

    output_dim: int
    width: int = 384
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    num_mask_tokens: int = 10
    zero_init_mask_tokens: bool = True
    positions: str = "rope"
    rope_layout: str = "tiled"
    table_grid: tuple[int, int, int] = (8, 16, 16)
    uniform_power: bool = True
    activation: str = "gelu"
    norm_eps: float = 1e-6
    attention: str = "auto"
    remat: str = "none"
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32
    # Parity: joining context with float32 mask tokens promotes the official residual.
    residual_dtype: jnp.dtype = jnp.float32

    def __call__(self, context, context_ids, target_ids, grid, mask_index=0):
        """Predict the latents of target tokens.

        Args:
          context: `[B, Kc, D]` encoder output at `context_ids`.
          context_ids, target_ids: int32 `[B, Kc]`, `[B, Kt]` token ids.
          grid: (t, h, w) token grid the ids refer to.
          mask_index: which mask token to use, modulo `num_mask_tokens`. Training
            uses the index of the clip group. Parity: released evaluations use 1.

        Returns:
          `[B, Kt, D]` in `dtype`, in the order of `target_ids`.
        """
        return self._predict(context, context_ids, target_ids, grid, mask_index, targets_only=True)

    def predict_all(self, context, context_ids, target_ids, grid, mask_index=0):
        """Like calling, but return context positions too: `[B, Kc + Kt, D]`, context first."""
        return self._predict(context, context_ids, target_ids, grid, mask_index, targets_only=False)

    @nn.compact
    def _predict(self, context, context_ids, target_ids, grid, mask_index, targets_only):
        if self.positions not in POSITIONS:
            raise ValueError(f"positions {self.positions!r} is unknown; choose one of {POSITIONS}")
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = dense(self.width, "embed", **types)(context)
        init = nn.initializers.zeros if self.zero_init_mask_tokens else nn.initializers.normal(0.02)
        mask_tokens = self.param("mask_tokens", init, (self.num_mask_tokens, self.width), self.param_dtype)
        mask_token = mask_tokens[mask_index % self.num_mask_tokens].astype(self.residual_dtype)
        ids = jnp.concatenate([context_ids, target_ids], axis=1)
        x = jnp.concatenate([
            x.astype(self.residual_dtype),
            jnp.broadcast_to(mask_token, (*target_ids.shape, self.width)),
        ], axis=1)
        angles = None
        if self.positions == "rope":
            angles = rotary_angles(grid_positions(ids, grid), self.width // self.num_heads, self.rope_layout)
        else:
            if tuple(grid[1:]) != tuple(self.table_grid[1:]) or grid[0] > self.table_grid[0]:
                raise ValueError(f"the sincos table of this predictor is for grid {self.table_grid} or fewer time steps, "
                                 f"not for {tuple(grid)}; rope takes any grid")
            table = sincos_table(self.width, self.table_grid, self.uniform_power)
            x = x + jnp.asarray(table, x.dtype)[ids]
        # Attention does not care about order and positions travel with the tokens,
        # so the official sort by id and its inverse are left out.
        x, _, _ = BlockStack(
            self.depth, self.num_heads, mlp_hidden_dim(self.width, self.mlp_ratio, self.activation),
            self.activation, self.norm_eps, self.attention, self.remat,
            residual_dtype=self.residual_dtype, name="blocks", **types,
        )(x, angles)
        if targets_only:
            x = jax.lax.slice_in_dim(x, context_ids.shape[1], x.shape[1], axis=1)
        x = LayerNorm(self.norm_eps, name="norm", **types)(x)
        return dense(self.output_dim, "proj", **types)(x)
