"""Analytic operation counts; XLA's own cost analysis counts the body of a scan once."""

from jepa_jax.models.layers import mlp_hidden_dim


def stack_flops(tokens, width, depth, mlp_ratio, activation="gelu", pairs=None):
    """Count the multiply-add operations (2 each) of a forward pass through a block stack.

    Args:
      tokens: tokens of one sample.
      width, depth, mlp_ratio, activation: as in `BlockStack`.
      pairs: of a token and one that it attends to; None if all attend to all.

    Returns:
      Floating-point operations as a float. Norms and softmax are left out.
    """
    matrices = 2 if activation == "gelu" else 3
    linear = 8 * width**2 + 2 * matrices * width * mlp_hidden_dim(width, mlp_ratio, activation)
    pairs = tokens**2 if pairs is None else pairs
    return float(depth * (tokens * linear + 4 * pairs * width))


def encoder_flops(encoder, tokens):
    """Count the forward operations of a `VideoEncoder` that sees `tokens` tokens."""
    patch = 2 * encoder.tubelet_size * encoder.patch_size**2 * 3 * encoder.width
    return tokens * patch + stack_flops(tokens, encoder.width, encoder.depth, encoder.mlp_ratio, encoder.activation)


def predictor_flops(predictor, num_context, num_target):
    """Count the forward operations of a `MaskedPredictor` for one sample."""
    projections = 2 * predictor.width * predictor.output_dim * (num_context + num_target)
    tokens = num_context + num_target
    return projections + stack_flops(
        tokens, predictor.width, predictor.depth, predictor.mlp_ratio, predictor.activation
    )


def action_predictor_flops(predictor, patches, frames, past=0):
    """Count the forward operations of an `ActionPredictor` for one clip.

    Args:
      patches: patch tokens of a frame.
      frames: frames that are computed; each attends to itself and those before it.
      past: frames before them whose keys and values are kept.
    """
    conditions = {"action": predictor.action_dim, "state": predictor.state_dim}
    if predictor.use_extrinsics:
        conditions["extrinsics"] = predictor.extrinsics_dim
    width, per_frame = predictor.width, patches
    projections = frames * 2 * width * (2 * patches * predictor.output_dim + sum(conditions.values()))
    if predictor.conditioning == "tokens":
        per_frame += len(conditions)
    else:
        projections += frames * predictor.depth * 2 * width * 6 * width
    # Frame by frame, to itself and all before it.
    pairs = per_frame**2 * sum(past + number for number in range(1, frames + 1))
    return projections + stack_flops(frames * per_frame, width, predictor.depth, predictor.mlp_ratio, pairs=pairs)
