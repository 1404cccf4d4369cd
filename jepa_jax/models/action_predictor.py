"""The action-conditioned predictor: the features of the next frame from features, actions and states so far."""

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange

from jepa_jax.models.layers import BlockStack, dense, head_dim, mlp_hidden_dim
from jepa_jax.models.norms import LayerNorm
from jepa_jax.models.rope import grid_positions, rotary_angles

CONDITIONING = ("tokens", "adaln")
_ACTIVATION = "gelu"


class ActionPredictor(nn.Module):
    """V-JEPA 2-AC predictor, a transformer over frames in which each frame sees itself and earlier ones.

    The sequence of a frame is its action, state, optionally extrinsics, and its h * w patch
    tokens; all of them share the blocks. Or actions, states and extrinsics are no tokens but
    scale, shift and gate the blocks.

    Attributes:
      output_dim: width D of the features.
      width, depth, num_heads, mlp_ratio: size of the predictor itself.
      action_dim, state_dim, extrinsics_dim: numbers per frame.
      use_extrinsics: condition every frame on the pose of the camera too. Conditioning by tokens
        has the weights for it either way.
      grid: (h, w) for which the predictor was built.
      conditioning: how actions, states and extrinsics come in: "tokens" (released weights) or
        "adaln". With the latter, a predictor that was just initialised does not depend on them.
      merge: squares of merge x merge patch tokens become one token of the blocks, and come apart again behind them: for
        more and smaller patches at the cost of few. Released weights have 1.
      predicts_change: add what comes out to the features that went in, so that a new predictor starts
        as a copy of the frame. Released weights predict the features themselves.
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
    conditioning: str = "tokens"
    merge: int = 1
    predicts_change: bool = False
    rope_layout: str = "tiled"
    norm_eps: float = 1e-6
    attention: str = "auto"
    remat: str = "none"
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32
    residual_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, tokens, actions, states, extrinsics=None, grid=None, past=None, keep=False):
        """Predict the features of the frame after each frame.

        Args:
          tokens: `[B, T*h*w, D]` features of T frames, any number of them, row-major over
            (time, row, column).
          actions: `[B, T, action_dim]`, the action taken in each frame.
          states: `[B, T, state_dim]`.
          extrinsics: `[B, T, extrinsics_dim]`; given exactly if `use_extrinsics`.
          grid: (h, w) of these frames; None for the grid the predictor was built for. Positions of
            rows and columns are spread over the height of the latter.
          past: `FrameCache` of the frames before these, from a call with `keep`; None if these are
            the first. The other arguments are of the new frames alone.
          keep: return a `FrameCache` too; static.

        Returns:
          `[B, T*h*w, D]` in `dtype`: at the tokens of step t, the features of step t + 1. With
          `keep`, (that, `FrameCache` of all frames so far).

        Raises:
          ValueError: if the shapes contradict each other or the attributes.
        """
        h, w = grid or self.grid
        conditions = self._conditions(actions, states, extrinsics)
        frames = self._check(tokens, conditions, h, w)
        per_frame, side = self.tokens_per_frame(h * w), self.merge
        h, w = h // side, w // side
        num_conditions = per_frame - h * w
        first = self._past_frames(past, len(tokens), per_frame)
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        merged = rearrange(tokens, "b (t h p w q) d -> b t (h w) (p q d)", t=frames, h=h, p=side, q=side)
        x = dense(self.width, "embed", **types)(merged)
        embedded = [dense(self.width, name, **types)(value) for name, value in conditions.items()]
        modulation = None
        if self.conditioning == "tokens":
            x = jnp.concatenate([*(value[:, :, None] for value in embedded), x], axis=2)
            if not self.use_extrinsics:
                # Parity: the weights exist, unused, in every official checkpoint.
                dense(self.width, "extrinsics", **types)(jnp.zeros((1, self.extrinsics_dim), self.dtype))
        else:
            modulation = nn.silu(sum(embedded))
        angles = rotary_angles(
            self._positions(frames, h, w, num_conditions, first), head_dim(self.width, self.num_heads), self.rope_layout
        )
        x, _, cache = BlockStack(
            self.depth, self.num_heads, mlp_hidden_dim(self.width, self.mlp_ratio, _ACTIVATION), _ACTIVATION,
            self.norm_eps, self.attention, self.remat, residual_dtype=self.residual_dtype, causal_block=per_frame,
            name="blocks", **types,
        )(x.reshape(-1, frames * per_frame, self.width), angles[None], past=past, modulation=modulation, keep=keep)
        x = x.reshape(-1, frames, per_frame, self.width)[:, :, num_conditions:]
        x = LayerNorm(self.norm_eps, name="norm", **types)(x.reshape(-1, frames * h * w, self.width))
        x = dense(side**2 * self.output_dim, "proj", init_scale=0.0 if self.predicts_change else 1.0, **types)(x)
        x = rearrange(x, "b (t h w) (p q d) -> b (t h p w q) d", t=frames, h=h, p=side, q=side)
        if self.predicts_change:
            x = tokens.astype(x.dtype) + x
        return (x, cache) if keep else x

    def tokens_per_frame(self, patches):
        """Count the tokens that the blocks see of a frame of so many patches, those of its conditions included."""
        told = 2 + self.use_extrinsics if self.conditioning == "tokens" else 0
        return told + patches // self.merge**2

    def check_grid(self, grid):
        """Raise ValueError unless a grid (h, w) is made of whole squares of `merge` x `merge` tokens."""
        h, w = grid
        if self.merge < 1 or h % self.merge or w % self.merge:
            raise ValueError(f"merge is {self.merge}; it must be at least 1, and divide both sides of the grid of {h} x {w} tokens")

    def _conditions(self, actions, states, extrinsics):
        """Return what conditions a frame, by name and in the order of the sequence."""
        if self.conditioning not in CONDITIONING:
            raise ValueError(f"conditioning {self.conditioning!r} is unknown; choose one of {CONDITIONING}")
        conditions = {"action": actions, "state": states}
        if self.use_extrinsics:
            return conditions | {"extrinsics": extrinsics}
        if extrinsics is not None:
            raise ValueError("extrinsics were given to a predictor with use_extrinsics=False")
        return conditions

    def _check(self, tokens, conditions, h, w):
        """Return the number of frames."""
        batch, length, width = tokens.shape
        self.check_grid((h, w))
        patches = h * w
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

    def _past_frames(self, past, batch, per_frame):
        """Return the number of frames in a cache."""
        if past is None:
            return 0
        if len(past.keys) != len(past.values):
            raise ValueError(f"past has {len(past.keys)} arrays of keys and {len(past.values)} of values; there must be one of each per call")
        for name, parts in past._asdict().items():
            for part, key in zip(parts, past.keys):
                length = key.shape[2]
                if part.shape != (self.depth, batch, length, self.width) or length % per_frame:
                    raise ValueError(
                        f"{name} of past must be of shape {(self.depth, batch, 'N', self.width)}, with N tokens in frames of "
                        f"{per_frame}, not {part.shape}"
                    )
        return past.length // per_frame

    def _positions(self, frames, h, w, num_conditions, first=0):
        """Return float32 `[T * (A + h*w), 3]`: the position of every token, of frames that start at step `first`."""
        cells = grid_positions(first * h * w + jnp.arange(frames * h * w), (frames, h, w)).astype(jnp.float32)
        # Parity: columns too are spread over the height of the grid the predictor was built for.
        height = self.grid[0] // self.merge
        cells = cells * jnp.array([1.0, height / h, height / w])
        # Tokens that are not patches turn with time only: position 0 does not rotate.
        times = jnp.zeros((frames, num_conditions, 3)).at[..., 0].set(first + jnp.arange(frames)[:, None])
        return jnp.concatenate([times, cells.reshape(frames, h * w, 3)], axis=1).reshape(-1, 3)
