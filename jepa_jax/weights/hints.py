"""What weights do not say about their network, and how it is decided."""

import dataclasses

from jepa_jax.models import NAMES, encoder_size
from jepa_jax.models.layers import mlp_hidden_dim
from jepa_jax.weights import released
from jepa_jax.weights.bundle import WeightsError

# Of the last training phase of most released models; weights do not show them.
CROP_SIZE, FRAMES = 256, 64
# Below this many channels per head, rotary positions have no room.
_MIN_HEAD_DIM = 6


@dataclasses.dataclass(frozen=True)
class Hints:
    """What the caller knows about weights that do not show it; None and () leave it to us.

    Attributes:
      size: named size of the encoder; checked against the weights.
      heads: dict from "encoder", "predictor", "action_predictor" or "probe" to attention heads.
      positions: "rope" or "sincos".
      crop_size: side of the input in training, pixels.
      frames: frames per clip in training.
      protocol: name of the protocol of a probe, from `released.PROTOCOLS`.
      labels: class names of a probe.
      use_extrinsics: whether an action-conditioned predictor gets camera extrinsics.
      config: path of the YAML config of the official training run; it fills the fields above and is
        checked against the weights.
      rope_grid: "input" reads rotary positions off the real input, as the official code does;
        "config" off the configured crop size, as Hugging Face does.
    """

    size: str | None = None
    heads: dict[str, int] = dataclasses.field(default_factory=dict)
    positions: str | None = None
    crop_size: int | None = None
    frames: int | None = None
    protocol: str | None = None
    labels: tuple[str, ...] | None = None
    use_extrinsics: bool = False
    config: str | None = None
    rope_grid: str = "input"


def decide_heads(kind, width, hints, notes):
    """Choose the number of attention heads of a network that is no named size.

    Args:
      kind: "encoder", "predictor", "action_predictor" or "probe".
      width: channels.
      hints: `Hints`.
      notes: list that gets a line about what was assumed.

    Raises:
      WeightsError: if nothing says it, or the width does not divide by it.
    """
    heads = hints.heads.get(kind, released.HEADS.get((kind, width)))
    if heads is None:
        divisors = [n for n in range(1, width) if width % n == 0 and width // n >= _MIN_HEAD_DIM]
        raise WeightsError(
            f"the {kind} is {width} channels wide, which is no released size, and weights do not show the "
            f"number of attention heads; give it: --heads {kind}=N, N one of {divisors}"
        )
    if heads < 1 or width % heads:
        raise WeightsError(f"{kind}: {heads} heads do not divide its width {width}")
    if kind not in hints.heads:
        notes.append(
            f"{kind}: {heads} attention heads, which weights do not show; released ones of this width have them"
        )
    return heads


def decide_size(width, depth, hidden, activation, hints, notes):
    """Find the named size of an encoder.

    Args:
      width, depth, hidden, activation: read off the weights; `hidden` is the width of the MLP.
      hints: `Hints`; its size and heads are checked.
      notes: list that gets a line if a choice was made.

    Returns:
      Fields of `encoder_size`, or {} where no named size fits.

    Raises:
      WeightsError: if the hints say another size, or other heads than the size has.
    """
    key = (width, depth, hidden, activation)
    fitting = [name for name in NAMES if not name.endswith("_rope") and _key(name) == key]
    if hints.size is not None:
        wanted = _key(hints.size)
        if wanted != key:
            raise WeightsError(
                f"the weights are not {hints.size} (width {wanted[0]}, depth {wanted[1]}, MLP {wanted[2]}): they have "
                f"width {width}, depth {depth}, MLP {hidden}"
                + (f", which is {' or '.join(fitting)}" if fitting else "")
            )
        fitting = [hints.size.removesuffix("_rope")]
    if not fitting:
        return {}
    heads = {name: encoder_size(name)["num_heads"] for name in fitting}
    asked = hints.heads.get("encoder")
    if asked is not None and asked not in heads.values():
        raise WeightsError(
            f"{asked} heads for the encoder contradict its size: "
            + ", ".join(f"{name} has {number}" for name, number in heads.items())
        )
    order = sorted(fitting, key=lambda name: (heads[name] != asked, name not in released.PREFERRED_SIZES))
    if len(fitting) > 1 and asked is None:
        notes.append(
            f"encoder: {order[0]} with {heads[order[0]]} heads, as released; by its shapes it could be "
            + ", ".join(f"{name} ({heads[name]} heads)" for name in order[1:])
            + " (--size)"
        )
    return {key: value for key, value in encoder_size(order[0]).items() if key != "positions"}


def _key(name):
    try:
        size = encoder_size(name)
    except ValueError as error:
        raise WeightsError(str(error)) from error
    return size["width"], size["depth"], mlp_hidden_dim(size["width"], size["mlp_ratio"], "gelu"), "gelu"


def mlp_ratio(width, hidden, activation):
    """Return a ratio that gives exactly this hidden width.

    Raises:
      WeightsError: if there is none, which no real network has.
    """
    # The wide gated form keeps two thirds of it, rounded up to a multiple of 8. The quotient may
    # be a rounding too small.
    start = hidden / width if activation != "swiglu_wide" else (3 * (hidden - 4) / 2) / width
    for ratio in (*sorted({encoder_size(name)["mlp_ratio"] for name in NAMES}), start, start * (1 + 1e-12)):
        if mlp_hidden_dim(width, ratio, activation) == hidden:
            return ratio
    raise WeightsError(f"no MLP ratio gives {hidden} hidden channels for width {width} and {activation}")
