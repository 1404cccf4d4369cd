"""RandAugment for clips: a few random operations, the same for every frame of a clip.

Pillow does the operations, as in the official code, so pictures are equal to the last bit.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

_MAX_LEVEL = 10.0
# An operation that was chosen is still left out half of the time.
_APPLIED = 0.5
_FILL = (128, 128, 128)
_MIDDLE = 128
_FORM = re.compile(r"rand-m(?P<m>[\d.]+)-n(?P<n>\d+)(-mstd(?P<std>[\d.]+))?-inc1")


@dataclass(frozen=True)
class RandAugmentSpec:
    """Describe the distribution of operations.

    Args:
        magnitude: mean strength, in [0, 10].
        layers: operations chosen per clip, with replacement.
        std: standard deviation of the strength.
    """

    magnitude: float = 7.0
    layers: int = 4
    std: float = 0.5


class Operation(NamedTuple):
    """Name one operation and its argument; None where it takes none."""

    name: str
    argument: float | None


def parse_spec(text: str) -> RandAugmentSpec:
    """Read a spec in the form of the official configs.

    Args:
        text: such as 'rand-m7-n4-mstd0.5-inc1': magnitude, layers, standard deviation
            (0 if left out), and operations that get stronger with the magnitude.

    Returns:
        The spec.

    Raises:
        ValueError: another form, or a number out of range.
    """
    found = _FORM.fullmatch(text)
    if not found:
        raise ValueError(f"{text!r} is no RandAugment policy; the form is rand-m7-n4-mstd0.5-inc1")
    spec = RandAugmentSpec(float(found["m"]), int(found["n"]), float(found["std"] or 0))
    if spec.magnitude > _MAX_LEVEL or spec.layers < 1:
        raise ValueError(f"{text!r}: m must be at most {_MAX_LEVEL:g} and n at least 1")
    return spec


def choose_operations(spec: RandAugmentSpec, uniforms: np.ndarray, normals: np.ndarray) -> list[Operation]:
    """Choose the operations of one clip.

    Args:
        spec: their distribution.
        uniforms: `[layers, 3]` in [0, 1): which operation, whether it is left out, its sign.
        normals: `[layers]` standard normal numbers, for the strength.

    Returns:
        Operations in order of application; those left out are not in it.

    Source: src/datasets/utils/video/randaugment.py
    """
    names = list(_OPERATIONS)
    chosen = []
    for (which, left_out, sign), normal in zip(np.asarray(uniforms, float), np.asarray(normals, float), strict=True):
        if left_out > _APPLIED:
            continue
        name = names[int(which * len(names))]
        level = min(_MAX_LEVEL, max(0.0, spec.magnitude + spec.std * normal))
        argument = _OPERATIONS[name][0]
        chosen.append(Operation(name, argument and argument(level / _MAX_LEVEL, -1.0 if sign > 0.5 else 1.0)))
    return chosen


def draw_operations(spec: RandAugmentSpec | None, rng: np.random.Generator) -> list[Operation]:
    """Draw the numbers for `choose_operations` from a generator; no spec gives no operation."""
    if spec is None:
        return []
    return choose_operations(spec, rng.random((spec.layers, 3)), rng.standard_normal(spec.layers))


def apply_operations(frames: Sequence[np.ndarray], operations: Sequence[Operation]) -> list[np.ndarray]:
    """Apply operations to every frame.

    Args:
        frames: uint8 `[H, W, 3]` each.
        operations: from `choose_operations`.

    Returns:
        The frames, uint8 `[H, W, 3]`; those given where there is nothing to do.
    """
    if not operations:
        return list(frames)
    done = []
    for frame in frames:
        image = Image.fromarray(frame)
        for name, argument in operations:
            image = _OPERATIONS[name][1](image, argument)
        done.append(np.asarray(image))
    return done


def _affine(image: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=_FILL)


def _rotate(image: Image.Image, degrees: float) -> Image.Image:
    return image.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=_FILL)


def _posterize(image: Image.Image, bits: int) -> Image.Image:
    # New versions of Pillow refuse 0 bits; old ones gave black, and a policy can ask for it.
    return image.point([level & 256 - 2 ** (8 - bits) for level in range(256)] * 3)


def _solarize_add(image: Image.Image, amount: int) -> Image.Image:
    return image.point([min(255, level + amount) if level < _MIDDLE else level for level in range(256)] * 3)


def _enhance(kind: type) -> tuple:
    return lambda r, sign: 1 + sign * 0.9 * r, lambda image, factor: kind(image).enhance(factor)


# Name: (argument from r = magnitude / 10 and a sign, or None; what is done to a picture with it).
# The order is the official one, since a uniform number chooses among them.
_OPERATIONS = {
    "AutoContrast": (None, lambda image, _: ImageOps.autocontrast(image)),
    "Equalize": (None, lambda image, _: ImageOps.equalize(image)),
    "Invert": (None, lambda image, _: ImageOps.invert(image)),
    "Rotate": (lambda r, sign: sign * 30 * r, _rotate),
    "Posterize": (lambda r, sign: 4 - int(4 * r), _posterize),
    "Solarize": (lambda r, sign: 256 - min(256, int(256 * r)), ImageOps.solarize),
    "SolarizeAdd": (lambda r, sign: int(110 * r), _solarize_add),
    "Color": _enhance(ImageEnhance.Color),
    "Contrast": _enhance(ImageEnhance.Contrast),
    "Brightness": _enhance(ImageEnhance.Brightness),
    "Sharpness": _enhance(ImageEnhance.Sharpness),
    "ShearX": (lambda r, sign: sign * 0.3 * r, lambda image, x: _affine(image, (1, x, 0, 0, 1, 0))),
    "ShearY": (lambda r, sign: sign * 0.3 * r, lambda image, y: _affine(image, (1, 0, 0, y, 1, 0))),
    "TranslateX": (
        lambda r, sign: sign * 0.45 * r, lambda image, part: _affine(image, (1, 0, part * image.width, 0, 1, 0))
    ),
    "TranslateY": (
        lambda r, sign: sign * 0.45 * r, lambda image, part: _affine(image, (1, 0, 0, 0, 1, part * image.height))
    ),
}
OPERATION_NAMES = tuple(_OPERATIONS)
