"""Analytic operation counts; XLA's own cost analysis counts the body of a scan once."""

from jepa_jax.models.layers import mlp_hidden_dim


def stack_flops(tokens, width, depth, mlp_ratio, activation="gelu"):
    """Count the multiply-add operations (2 each) of a forward pass through a block stack.

    Args:
      tokens: tokens of one sample; all attend to all.
      width, depth, mlp_ratio, activation: as in `BlockStack`.

    Returns:
      Floating-point operations as a float. Norms and softmax are left out.
    """
    matrices = 2 if activation == "gelu" else 3
    linear = 8 * width**2 + 2 * matrices * width * mlp_hidden_dim(width, mlp_ratio, activation)
    return float(depth * (tokens * linear + 4 * tokens**2 * width))


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
