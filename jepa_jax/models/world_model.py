"""The world model as pure functions: frames to latents, latents and actions to the latents that follow."""

import jax
import jax.numpy as jnp

from jepa_jax.models.norms import normalize_latents
from jepa_jax.models.pixels import PIXEL_MEAN, PIXEL_STD, normalize_pixels


def encode_frames(encoder, params, video, *, at_once=None, mean=PIXEL_MEAN, std=PIXEL_STD, layers=()):
    """Encode every frame by itself, held for one tubelet, so that no latent knows of another frame.

    Args:
      encoder: `VideoEncoder`.
      params: its parameters.
      video: `[B, F, H, W, 3]`, uint8 RGB or float that is normalised already.
      at_once: frames of each clip in memory at once; None for all. It does not change the result.
      mean, std: float32 `[3]`, in units of [0, 1], for uint8 frames.
      layers: static tuple of L 0-based blocks whose outputs are wanted; empty for the encoder's output.

    Returns:
      `[B, F, h*w, D]`, every latent normalised, in float32 or wider; of several layers `[B, F, h*w, L*D]`, the
      normalised latents of each one after the other.

    Raises:
      ValueError: if the video has another type or rank or no frame, or `at_once` is below 1.
    """
    known = video.dtype == jnp.uint8 or jnp.issubdtype(video.dtype, jnp.floating)
    if not known or video.ndim != 5 or not video.shape[1]:
        raise ValueError(f"video must be uint8 or float [B, F, H, W, 3], not {video.dtype} {tuple(video.shape)}")
    batch, frames = video.shape[:2]
    at_once = frames if at_once is None else at_once
    if at_once < 1:
        raise ValueError(f"at_once is {at_once} frames; it must be at least 1")
    # Even chunks, so that few frames of padding are encoded.
    num_chunks = -(-frames // at_once)
    chunk = -(-frames // num_chunks)

    def encode(clips):
        # Clips stay the outer axis: over it the batch is spread over devices.
        images = clips.reshape(-1, *clips.shape[2:])
        if images.dtype == jnp.uint8:
            images = normalize_pixels(images, mean, std)
        if layers:
            latents = normalize_latents(encoder.apply({"params": params}, images, layers, method="encode_layers"))
            latents = jnp.concatenate(list(latents), axis=-1)
        else:
            latents = normalize_latents(encoder.apply({"params": params}, images))
        return latents.reshape(batch, -1, *latents.shape[1:])

    if num_chunks == 1:
        return encode(video)
    video = jnp.pad(video, ((0, 0), (0, num_chunks * chunk - frames), (0, 0), (0, 0), (0, 0)))
    chunks = jnp.moveaxis(video.reshape(batch, num_chunks, chunk, *video.shape[2:]), 1, 0)
    latents = jnp.moveaxis(jax.lax.map(encode, chunks), 0, 1)
    return latents.reshape(batch, -1, *latents.shape[3:])[:, :frames]


def predict_next(predictor, params, latents, actions, states, extrinsics=None, *, grid=None, past=None, keep=False):
    """Predict the latents of the frame after each frame from that frame and those before it.

    Args:
      predictor: `ActionPredictor`.
      params: its parameters.
      latents: `[B, F, h*w, D]`, normalised.
      actions, states, extrinsics: `[B, F, ...]` of these frames; extrinsics exactly if the
        predictor uses them.
      grid: (h, w); None for the grid the predictor was built for.
      past, keep: as in `ActionPredictor`: the frames before these, and whether to return all so far.

    Returns:
      `[B, F, h*w, D]` in float32 or wider, normalised: at frame t, the latents of frame t + 1. With
      `keep`, (that, `FrameCache`).
    """
    tokens = latents.reshape(len(latents), -1, latents.shape[-1])
    out = predictor.apply({"params": params}, tokens, actions, states, extrinsics, grid, past, keep)
    out, cache = out if keep else (out, None)
    out = normalize_latents(out).reshape(latents.shape)
    return (out, cache) if keep else out


def rollout(
    predictor, params, latents, actions, states, extrinsics=None,
    *, grid=None, cached=True, integrate=None, detach=False,
):
    """Predict H frames open loop: each from the context and from the predictions before it.

    Args:
      predictor: `ActionPredictor`.
      params: its parameters.
      latents: `[B, C, h*w, D]` of C >= 1 context frames, normalised.
      actions: `[B, C-1+H, action_dim]`, from the first context frame on; their number decides H.
      states: `[B, C-1+H, state_dim]`, true states; with `integrate`, of the context alone: `[B, C, state_dim]`.
      extrinsics: `[B, C-1+H, extrinsics_dim]`, or None.
      grid: (h, w); None for the grid the predictor was built for.
      cached: keep keys and values, so that every step computes one frame. Otherwise every
        step computes all frames so far, as the official code does; the result is the same.
      integrate: function (state `[B, state_dim]`, action `[B, action_dim]`) -> next state.
      detach: let no gradient through the latents handed from one step to the next.

    Returns:
      `[B, H, h*w, D]` in float32 or wider: the predicted latents of the H frames after the context.

    Raises:
      ValueError: if the numbers of frames contradict each other.

    Source: app/vjepa_droid/train.py (forward_predictions).
    """
    context, total = latents.shape[1], actions.shape[1]
    if not 1 <= context <= total:
        raise ValueError(
            f"{context} context frames and {total} actions; there must be at least one context frame, and an action "
            "for every frame from the first one on"
        )
    states = _all_states(context, actions, states, integrate)
    conditions = (actions, states) if extrinsics is None else (actions, states, extrinsics)
    for name, value in zip(("states", "extrinsics"), conditions[1:]):
        if value.shape[1] != total:
            raise ValueError(f"{value.shape[1]} {name} beside {total} actions; there must be one of each per frame")
    frames, cache, predictions = latents, None, []
    for end in range(context, total + 1):
        start = end - frames.shape[1]
        out = predict_next(
            predictor, params, frames, *(value[:, start:end] for value in conditions),
            grid=grid, past=cache, keep=cached and end < total,
        )
        if cached and end < total:
            out, cache = out
        predictions.append(out[:, -1:])
        last = jax.lax.stop_gradient(out[:, -1:]) if detach else out[:, -1:]
        frames = last if cached else jnp.concatenate([frames, last], axis=1)
    return jnp.concatenate(predictions, axis=1)


def _all_states(context, actions, states, integrate):
    """Return the states of all frames that are computed."""
    if integrate is None:
        return states
    if states.shape[1] != context:
        raise ValueError(f"{states.shape[1]} states for {context} context frames; integrated states start from theirs")
    steps = [states[:, -1]]
    for step in range(context - 1, actions.shape[1] - 1):
        steps.append(integrate(steps[-1], actions[:, step]))
    return jnp.concatenate([states[:, :-1], jnp.stack(steps, axis=1)], axis=1)
