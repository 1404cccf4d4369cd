"""Tokens of several layers, segments and views of a video, put together for a probe."""

import einops
import jax.numpy as jnp
import numpy as np

from jepa_jax.models.sincos import sincos_frequencies


def join_levels(tokens):
    """Join the outputs of several layers along the tokens.

    Args:
      tokens: `[L, ..., N, D]`, as from `VideoEncoder.encode_layers`.

    Returns:
      `[..., L*N, D]`, all tokens of the first layer first.

    Source: evals/video_classification_frozen/modelcustom/vit_encoder_multiclip_multilevel.py.
    """
    return einops.rearrange(tokens, "l ... n d -> ... (l n) d")


def time_table(width, frame_indices, tubelet_size):
    """Build the position of every tubelet in its video, for `join_segments`.

    Args:
      width: channels D of the tokens, even.
      frame_indices: int `[S, B, T]`, the frames of S segments as counted in the video.
      tubelet_size: frames per token.

    Returns:
      float32 `[S, B, t, D]`, the sine/cosine row of the first frame of every tubelet, to 1e-3 at frame 10,000. Parity: the
      official table ends at a number of frames that is set, 128 by default.

    Source: evals/video_classification_frozen/modelcustom/vit_encoder_multiclip.py.
    """
    first = jnp.asarray(frame_indices)[..., ::tubelet_size, None]
    angles = first.astype(jnp.float32) * np.float32(sincos_frequencies(width))
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def join_segments(tokens, times=None):
    """Join the segments of a video along the tokens, view by view.

    Args:
      tokens: `[S, V, B, N, D]`: S segments in time, V views. They may come from `join_levels`.
      times: optional float `[S, B, t, D]` from `time_table`, added to the tokens of every view.
        It is for tokens of a single layer, N = t * h * w. Parity: no released probe uses it.

    Returns:
      `[V, B, S*N, D]` in the dtype of `tokens`, all tokens of the first segment first.

    Raises:
      ValueError: if N is not a whole number of time steps.

    Source: evals/video_classification_frozen/modelcustom/vit_encoder_multiclip.py.
    """
    if times is not None:
        length, steps = tokens.shape[3], times.shape[2]
        if length % steps:
            raise ValueError(f"{length} tokens of a segment are not a whole number of {steps} time steps")
        times = jnp.repeat(jnp.asarray(times, tokens.dtype), length // steps, axis=2)
        tokens = tokens + times[:, None]
    return einops.rearrange(tokens, "s v b n d -> v b (s n) d")


def average_tokens(tokens, grid, factors):
    """Average over rectangles of the tokens of a frame.

    Args:
      tokens: float `[..., h*w, D]`.
      grid: (h, w).
      factors: (down, across), sides of the rectangles, which divide h and w.

    Returns:
      `[..., (h / down) * (w / across), D]`.
    """
    (h, w), (down, across) = grid, factors
    return einops.reduce(
        tokens, "... (h down w across) d -> ... (h w) d", "mean", h=h // down, down=down, w=w // across, across=across
    )
