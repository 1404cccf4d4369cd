"""Features of a future that was not seen: tokens of a clip, and those that the predictor expects after it."""

import jax
import jax.numpy as jnp

from jepa_jax.models.encoder import token_grid


def steps_ahead(seconds, fps, tubelet_size):
    """Return how many time steps of tokens lie between the end of a clip and a moment after it, rounded down.

    Args:
      seconds: float32 `[B]`, or a number.
      fps: frames per second of the clip.
      tubelet_size: frames per token.

    Source: evals/action_anticipation_frozen/modelcustom/vit_encoder_predictor_concat_ar.py.
    """
    return jnp.asarray(seconds * jnp.float32(fps) / tubelet_size).astype(jnp.int32)


def furthest_grid(encoder, seeing, seconds):
    """Return the (t, h, w) token grid that reaches as far as `anticipate` predicts.

    Args:
      encoder: `VideoEncoder`.
      seeing: see `anticipate`; also `frames` and `crop_size`.
      seconds: the largest that is asked for.

    Raises:
      ValueError: if a clip, or what is predicted at once, is not a whole number of tubelets and patches, or is
        predicted from less than it.
    """
    grid = token_grid(seeing.frames, seeing.crop_size, seeing.crop_size, encoder.patch_size, encoder.tubelet_size)
    ahead, rest = divmod(seeing.output_frames, encoder.tubelet_size)
    if rest or not 1 <= ahead <= grid[0]:
        raise ValueError(f"output_frames is {seeing.output_frames}; it must be a multiple of the encoder's tubelet_size, "
                         f"{encoder.tubelet_size}, of at most {seeing.frames} frames")
    return grid[0] + int(steps_ahead(seconds, seeing.fps, encoder.tubelet_size)) + ahead, *grid[1:]


def anticipate(encoder, predictor, params, video, seconds, seeing, grid):
    """Encode clips and predict what their encoder would say about the time after them.

    Args:
      encoder, predictor: `VideoEncoder` and `MaskedPredictor`; the second may be None if `seeing` leaves it out.
      params: dict with the keys encoder and predictor.
      video: float `[B, T, H, W, 3]`, normalised.
      seconds: float32 `[B]`, from the end of every clip to the moment that is predicted.
      seeing: as `weights.anticipation.Anticipation`: `fps` of the clip; `output_frames` that are predicted at once;
        `num_steps`, how often, each time with the prediction in place of the oldest tokens; `mask_index` of the
        predictor; `use_encoder` and `use_predictor`, whose tokens are returned.
      grid: of `furthest_grid`.

    Returns:
      `[B, N, D]`: tokens of the encoder, then those predicted, none of them normalised further. No gradient.

    Source: evals/action_anticipation_frozen/modelcustom/vit_encoder_predictor_concat_ar.py (AnticipativeWrapper).
    """
    context = encoder.apply({"params": params["encoder"]}, video)
    found = [context] * seeing.use_encoder
    if seeing.use_predictor:
        batch, length = context.shape[:2]
        per_step = grid[1] * grid[2]
        predicted = seeing.output_frames // encoder.tubelet_size * per_step
        skipped = per_step * steps_ahead(seconds, seeing.fps, encoder.tubelet_size)
        context_ids = jnp.broadcast_to(jnp.arange(length), (batch, length))
        target_ids = length + skipped[:, None] + jnp.arange(predicted)
        for _ in range(seeing.num_steps):
            # Parity: a later prediction is asked for at the same place, of a context that has moved on.
            future = predictor.apply({"params": params["predictor"]}, context, context_ids, target_ids, grid, seeing.mask_index)
            found.append(future)
            context = jnp.concatenate([context[:, predicted:], future.astype(context.dtype)], axis=1)
    dtype = jnp.result_type(*found)
    return jax.lax.stop_gradient(jnp.concatenate([tokens.astype(dtype) for tokens in found], axis=1))
