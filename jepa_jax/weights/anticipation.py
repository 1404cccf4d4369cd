"""What a probe that anticipates actions was trained to see, and which actions it knows; kept with its weights."""

import dataclasses
import math

from jepa_jax.weights.bundle import WeightsError


@dataclasses.dataclass(frozen=True)
class Anticipation:
    """How a probe sees the time before an action.

    Attributes:
      name: for people, e.g. "ek100".
      frames: frames of a clip.
      fps: their rate, frames per second; the step in native frames is rounded down to a whole one.
      crop_size: side of the central square, pixels.
      output_frames: frames of the future that are predicted at once.
      num_steps: how often the future is predicted, each time from what was predicted before.
      use_encoder, use_predictor: whose tokens the probe gets.
      mask_index: which mask token of the predictor stands for the future. Parity: released evaluations use 1;
        what training sees is the index of the clip group, 0 where there is one.
    """

    name: str = "ek100"
    frames: int = 32
    fps: float = 8.0
    crop_size: int = 256
    output_frames: int = 2
    num_steps: int = 1
    use_encoder: bool = True
    use_predictor: bool = True
    mask_index: int = 1

    def __post_init__(self):
        if min(self.frames, self.crop_size, self.output_frames, self.num_steps) < 1 or not 0 < self.fps < math.inf or self.mask_index < 0:
            raise WeightsError(f"impossible protocol: {self}; frames, fps, crop_size, output_frames and num_steps are above 0, "
                               "mask_index is at least 0")
        if not (self.use_encoder or self.use_predictor):
            raise WeightsError("protocol.use_encoder and protocol.use_predictor are both off; a probe needs tokens of one at least")

    def describe(self):
        """Say it in words."""
        future = f"{self.output_frames} frames ahead" + (f", {self.num_steps} times" if self.num_steps > 1 else "")
        parts = ["the encoder"] * self.use_encoder + [f"the predictor (mask token {self.mask_index}, {future})"] * self.use_predictor
        return f"{self.name}: {self.frames} frames at {self.fps:g}/s, {self.crop_size} pixels, tokens of {' and '.join(parts)}"

    def roles(self):
        """Return which networks it needs."""
        return ("encoder", "predictor") if self.use_predictor else ("encoder",)


def to_json(seeing, classes):
    """Return what `from_json` reads, as JSON-able dict.

    Args:
      seeing: `Anticipation`.
      classes: dict of `verb` and `noun`, numbers in the order of the probes' outputs, and `action`, pairs of them.
    """
    plain = {output: [list(one) if isinstance(one, tuple) else one for one in values] for output, values in classes.items()}
    return dataclasses.asdict(seeing) | {"classes": plain}


def from_json(content, what):
    """Read what `to_json` made: (`Anticipation`, dict of tuples as its `classes`).

    Raises:
      WeightsError: if it is something else.
    """
    try:
        fields = dict(content)
        classes = {output: tuple(tuple(one) if isinstance(one, list) else one for one in values)
                   for output, values in fields.pop("classes").items()}
        return Anticipation(**fields), classes
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise WeightsError(f"{what} does not say what its probes anticipate: {error}") from error
