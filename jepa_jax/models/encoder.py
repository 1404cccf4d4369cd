"""Vision transformer over the tubelets of a clip, or over the patches of an image."""

import einops
import flax.linen as nn
import jax.numpy as jnp

from jepa_jax.models.layers import BlockStack, dense, mlp_hidden_dim
from jepa_jax.models.norms import LayerNorm
from jepa_jax.models.rope import grid_positions, rotary_angles
from jepa_jax.models.sincos import resample_table, sincos_table

POSITIONS = ("rope", "sincos")


def token_grid(frames, height, width, patch_size=16, tubelet_size=2):
    """Return the (t, h, w) token grid of a clip.

    Args:
      frames: number of frames; a single frame counts as one whole tubelet.
      height, width: pixels.

    Raises:
      ValueError: if a size is not a whole number of tubelets or patches.
    """
    frames = tubelet_size if frames == 1 else frames
    sizes = (("frames", frames, "tubelet_size", tubelet_size), ("height", height, "patch_size", patch_size),
             ("width", width, "patch_size", patch_size))
    for name, size, unit, step in sizes:
        if size < step or size % step:
            raise ValueError(f"{name} of a clip is {size}; it must be a multiple of {unit}, {step}")
    return frames // tubelet_size, height // patch_size, width // patch_size


def gather_tokens(tokens, ids):
    """Pick tokens: `[B, N, D]`, int32 `[B, K]` -> `[B, K, D]`."""
    return jnp.take_along_axis(tokens, ids[..., None], axis=1)


class VideoEncoder(nn.Module):
    """V-JEPA 2 encoder.

    Attributes:
      width, depth, num_heads, mlp_ratio: size; see `jepa_jax.models.variants`.
      patch_size, tubelet_size: pixels and frames per token. A tubelet of 1 with
        `table_grid[0] == 1` is the official image model.
      positions: "rope" or "sincos".
      rope_layout: "tiled" (released weights) or "interleaved" (corrected).
      rope_grid: (h, w) by which rotary positions are read from token ids; None for the grid
        of the input. Parity: Hugging Face always uses `crop_size // patch_size`.
      table_grid: (t, h, w) for which the sincos table is built; not used by rope.
      uniform_power: channel split of the sincos table.
      activation, norm_eps, attention, remat, dtype, param_dtype, residual_dtype:
        see `jepa_jax.models.layers.BlockStack`.

    Source: src/models/vision_transformer.py.
    """

    width: int
    depth: int
    num_heads: int
    mlp_ratio: float = 4.0
    patch_size: int = 16
    tubelet_size: int = 2
    positions: str = "rope"
    rope_layout: str = "tiled"
    rope_grid: tuple[int, int] | None = None
    table_grid: tuple[int, int, int] = (8, 16, 16)
    uniform_power: bool = True
    activation: str = "gelu"
    norm_eps: float = 1e-6
    attention: str = "auto"
    remat: str = "none"
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32
    residual_dtype: jnp.dtype = jnp.float32

    def __call__(self, video, ids=None):
        """Encode a clip or an image.

        Args:
          video: normalised `[B, T, H, W, 3]`, any size that is a multiple of the
            tubelet, or an image `[B, H, W, 3]`, which is held for one tubelet.
          ids: int32 `[B, K]` tokens to keep, or None for all. Kept tokens attend
            only to each other and keep their position in the clip.

        Returns:
          `[B, N, D]` or `[B, K, D]` in `dtype`, after the final norm. Tokens are
          row-major over (time, row, column).

        Raises:
          ValueError: if the clip is not a whole number of tubelets.
        """
        return self._encode(video, ids, ())[0]

    def encode_layers(self, video, layers, ids=None):
        """Encode and return the outputs of chosen blocks, each after the final norm.

        Args:
          layers: static tuple of 0-based block indices.

        Returns:
          `[len(layers), B, N or K, D]` in `dtype`, in the order of `layers`.
        """
        return self._encode(video, ids, tuple(layers))[1]

    @nn.compact
    def _encode(self, video, ids, layers):
        if self.positions not in POSITIONS:
            raise ValueError(f"positions {self.positions!r} is unknown; choose one of {POSITIONS}")
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        if video.ndim == 4:
            video = video[:, None]
        grid = token_grid(*video.shape[1:4], self.patch_size, self.tubelet_size)
        if video.shape[1] == 1:
            video = jnp.repeat(video, self.tubelet_size, axis=1)
        patches = einops.rearrange(
            video, "b (t u) (h p) (w q) c -> b (t h w) (u p q c)",
            u=self.tubelet_size, p=self.patch_size, q=self.patch_size,
        )
        # Dropping tokens before the embedding gives the same numbers for less work.
        x = patches if ids is None else gather_tokens(patches, ids)
        x = dense(self.width, "patch_embed", **types)(x)
        ids = jnp.arange(patches.shape[1])[None] if ids is None else ids
        angles = None
        if self.positions == "rope":
            rope_grid = grid if self.rope_grid is None else (grid[0], *self.rope_grid)
            angles = rotary_angles(grid_positions(ids, rope_grid), self.width // self.num_heads, self.rope_layout)
        else:
            table = sincos_table(self.width, self.table_grid, self.uniform_power)
            x = x + jnp.asarray(resample_table(table, self.table_grid, grid), x.dtype)[ids]
        stack = BlockStack(
            self.depth, self.num_heads, mlp_hidden_dim(self.width, self.mlp_ratio, self.activation),
            self.activation, self.norm_eps, self.attention, self.remat,
            residual_dtype=self.residual_dtype, name="blocks", **types,
        )
        x, kept, _ = stack(x, angles, layers)
        norm = LayerNorm(self.norm_eps, name="norm", **types)
        return norm(x), norm(kept)
