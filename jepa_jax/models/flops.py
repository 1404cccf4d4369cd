"""Analytic operation counts; XLA's own cost analysis counts the body of a scan once."""

from typing import NamedTuple

from jepa_jax.models.layers import head_dim, mlp_hidden_dim


class Pass(NamedTuple):
    """One network over some tokens, in one step.

    Attributes:
      network: name of the network.
      module: it.
      samples, tokens: of the global batch, and of each sample.
      flops: of one sample, forward.
      attention_flops: the part of them that multiplies tokens with tokens.
      trained: has a backward pass, and with remat a second forward pass.
    """

    network: str
    module: object
    samples: int
    tokens: int
    flops: float
    attention_flops: float
    trained: bool

    @property
    def head_dim(self):
        """Return the channels of a head."""
        return head_dim(self.module.width, self.module.num_heads)


def total_flops(passes):
    """Count the operations of a step, without recomputation."""
    # A backward pass costs twice the forward pass.
    return sum(one.samples * one.flops * (3 if one.trained else 1) for one in passes)


def recomputed_flops(passes):
    """Count what the backward pass of a step computes a second time, by the remat policies of the networks."""
    kept = {"none": lambda one: 0.0, "dots": lambda one: one.attention_flops, "full": lambda one: one.flops}
    return sum(one.samples * kept[one.module.remat](one) for one in passes if one.trained)


def attention_flops(network, pairs):
    """Count the operations of softmax attention over so many pairs of tokens, forward, in all blocks."""
    return float(4 * network.depth * network.width * pairs)


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
    width = predictor.width
    projections = frames * 2 * width * (2 * patches * predictor.output_dim + sum(conditions.values()))
    if predictor.conditioning != "tokens":
        projections += frames * predictor.depth * 2 * width * 6 * width
    tokens, pairs = action_tokens(predictor, patches, frames, past)
    return projections + stack_flops(tokens, width, predictor.depth, predictor.mlp_ratio, pairs=pairs)


def action_tokens(predictor, patches, frames, past=0):
    """Count the tokens of a clip, and the pairs of a token and one it attends to; arguments as `action_predictor_flops`."""
    per_frame = predictor.tokens_per_frame(patches)
    # Frame by frame, to itself and all before it.
    return frames * per_frame, per_frame**2 * sum(past + number for number in range(1, frames + 1))
