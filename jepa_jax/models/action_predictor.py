"""The action-conditioned predictor: the features of the next frame from features, actions and states so far."""

import flax.linen as nn
import jax.numpy as jnp

from jepa_jax.models.layers import BlockStack, LayerNorm, dense, head_dim, mlp_hidden_dim
from jepa_jax.models.rope import grid_positions, rotary_angles

_ACTIVATION = "gelu"


class ActionPredictor(nn.Module):
    """V-JEPA 2-AC predictor, a transformer over frames in which each frame sees itself and earlier ones.

    The sequence of a frame is its action, state, optionally extrinsics, and its h * w patch
    tokens; all of them share the blocks.

    Attributes:
      output_dim: width D of the features.
      width, depth, num_heads, mlp_ratio: size of the predictor itself.
      action_dim, state_dim, extrinsics_dim: numbers per frame.
      use_extrinsics: give every frame a token for the pose of the camera. The weights for it
        exist either way.
      grid: (h, w) for which the predictor was built.
      rope_layout, norm_eps, attention, remat, dtype, param_dtype, residual_dtype: as in
        `VideoEncoder`.

    Source: src/models/ac_predictor.py.
    """

    output_dim: int
    width: int = 1024
    depth: int = 24
    num_heads: int = 16
    mlp_ratio: float = 4.0
    action_dim: int = 7
    state_dim: int = 7
    extrinsics_dim: int = 6
    use_extrinsics: bool = False
    grid: tuple[int, int] = (16, 16)
    rope_layout: str = "tiled"
    norm_eps: float = 1e-6
    attention: str = "auto"
    remat: str = "none"
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32
    residual_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, tokens, actions, states, extrinsics=None, grid=None):
        """Predict the features of the frame after each frame.

        Args:
          tokens: `[B, T*h*w, D]` features of T frames, any number of them, row-major over
            (time, row, column).
          actions: `[B, T, action_dim]`, the action taken in each frame.
          states: `[B, T, state_dim]`.
          extrinsics: `[B, T, extrinsics_dim]`; given exactly if `use_extrinsics`.
          grid: (h, w) of these frames; None for the grid the predictor was built for. Positions of
            rows and columns are spread over the height of the latter.

        Returns:
          `[B, T*h*w, D]` in `dtype`: at the tokens of step t, the features of step t + 1.

        Raises:
          ValueError: if the shapes contradict each other or the attributes.
        """
        h, w = grid or self.grid
        conditions = {"action": actions, "state": states, "extrinsics": extrinsics}
        if not self.use_extrinsics:
            if extrinsics is not None:
                raise ValueError("extrinsics were given to a predictor with use_extrinsics=False")
            del conditions["extrinsics"]
        frames = self._check(tokens, conditions, h * w)
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        if not self.use_extrinsics:
            # Parity: the weights exist, unused, in every official checkpoint.
            dense(self.width, "extrinsics", **types)(jnp.zeros((1, self.extrinsics_dim), self.dtype))
        patches = dense(self.width, "embed", **types)(tokens)
        parts = [dense(self.width, name, **types)(value)[:, :, None] for name, value in conditions.items()]
        parts.append(patches.reshape(-1, frames, h * w, self.width))
        x = jnp.concatenate(parts, axis=2).astype(self.residual_dtype)
        per_frame = x.shape[2]
        angles = rotary_angles(
            self._positions(frames, h, w, len(conditions)), head_dim(self.width, self.num_heads), self.rope_layout
        )
        x, _ = BlockStack(
            self.depth, self.num_heads, mlp_hidden_dim(self.width, self.mlp_ratio, _ACTIVATION), _ACTIVATION,
            self.norm_eps, self.attention, self.remat, residual_dtype=self.residual_dtype, causal_block=per_frame,
            name="blocks", **types,
        )(x.reshape(-1, frames * per_frame, self.width), angles[None])
        x = x.reshape(-1, frames, per_frame, self.width)[:, :, len(conditions) :]
        x = LayerNorm(self.norm_eps, name="norm", **types)(x.reshape(-1, frames * h * w, self.width))
        return dense(self.output_dim, "proj", **types)(x)

    def _check(self, tokens, conditions, patches):
        """Return the number of frames."""
        batch, length, width = tokens.shape
        if width != self.output_dim:
            raise ValueError(f"this predictor takes features of width {self.output_dim}, not {width}")
        if not length or length % patches:
            raise ValueError(f"{length} tokens are not a whole number of frames of {patches} tokens")
        frames = length // patches
        for name, value in conditions.items():
            needed = (batch, frames, getattr(self, f"{name}_dim"))
            found = None if value is None else tuple(value.shape)
            if found != needed:
                raise ValueError(f"{name} must be an array of shape {needed} beside {frames} frames, not {found}")
        return frames

    def _positions(self, frames, h, w, num_conditions):
        """Return float32 `[T * (A + h*w), 3]`: the position of every token of the sequence."""
        cells = grid_positions(jnp.arange(frames * h * w), (frames, h, w)).astype(jnp.float32)
        # Parity: columns too are spread over the height of the grid the predictor was built for.
        cells = cells * jnp.array([1.0, self.grid[0] / h, self.grid[0] / w])
        # Tokens that are not patches turn with time only: position 0 does not rotate.
        times = jnp.zeros((frames, num_conditions, 3)).at[..., 0].set(jnp.arange(frames)[:, None])
        return jnp.concatenate([times, cells.reshape(frames, h * w, 3)], axis=1).reshape(-1, 3)
