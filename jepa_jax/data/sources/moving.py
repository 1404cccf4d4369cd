"""Clips of pictures that move over real video, behind obstacles: class x direction x speed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, NamedTuple

import cv2
import numpy as np

from jepa_jax.data.encoding import Encoding, encode_video, rgb_frames
from jepa_jax.data.records import ClipRecord
from jepa_jax.data.sources.pictures import CLIPS, DIGITS, PROCEDURAL, SPLITS, Pictures, read_backgrounds, read_pictures

# Counter-clockwise from the right, as seen on the screen. Eight, since with four a blurred streak's axis would be half the answer.
DIRECTIONS = ("E", "NE", "N", "NW", "W", "SW", "S", "SE")
SPEEDS = ("slow", "medium", "fast")
LABELS = ("class", "direction", "speed")
# Sides of the frame per second, and how much a clip's speed varies around its class: no two classes touch.
_SIDES_PER_SECOND, _SPEED_JITTER = (0.125, 0.25, 0.5), 0.15
# Side of the picture as part of the frame's; MNIST leaves a margin of a seventh around its digits.
_PICTURE_SCALE = (0.45, 0.56)
# How much of their contrast backgrounds keep: small pictures have to be legible.
_BACKGROUND_CONTRAST = 0.7
_OUTLINE = 0.03
_POLE, _BOX = (0.08, 0.13), (0.14, 0.24)


class Draw(NamedTuple):
    """Name one clip to draw, and its labels.

    Args:
        split: of `SPLITS`.
        seed, number: of the set, and of the clip in its split.
        picture: its number.
        label: its class.
        direction, speed: numbers in `DIRECTIONS` and `SPEEDS`.
    """

    split: str
    seed: int
    number: int
    picture: int
    label: int
    direction: int
    speed: int

    @property
    def name(self) -> str:
        """Name the clip in reports and records: what moves where, for people."""
        return (
            f"motion/{self.split}/{self.seed}/{self.number:06d}/"
            f"{self.label},{DIRECTIONS[self.direction]},{SPEEDS[self.speed]},picture-{self.picture}"
        )

    def value(self, kind: str) -> int:
        """Return the label of a kind of `LABELS`."""
        return {"class": self.label, "direction": self.direction, "speed": self.speed}[kind]


def plan_clips(pictures: Pictures, split: str, seed: int, count: int) -> list[Draw]:
    """Choose what every clip shows: combinations of labels equally often, then pictures equally often.

    Args:
        pictures: to choose from.
        split: of `SPLITS`; the other one's pictures are not used.
        seed: of the set.
        count: of clips; every combination is equally frequent if it is a multiple of their number.

    Returns:
        The clips, in an order that says nothing.

    Raises:
        ListError: as in `Pictures.of_split`.
    """
    rng = np.random.default_rng([seed, SPLITS.index(split)])
    numbers = [rng.permutation(part) for part in pictures.of_split(split)]
    cells = [
        (label, direction, speed)
        for label in range(pictures.num_classes) for direction in range(len(DIRECTIONS)) for speed in range(len(SPEEDS))
    ]  # fmt: skip
    draws, used = [], [0] * pictures.num_classes
    while len(draws) < count:
        for cell in rng.permutation(len(cells))[: count - len(draws)]:
            label, direction, speed = cells[cell]
            picture = int(numbers[label][used[label] % len(numbers[label])])
            used[label] += 1
            draws.append(Draw(split, seed, len(draws), picture, label, direction, speed))
    return draws


@dataclass(frozen=True)
class MovingSpec(Encoding):
    """Say how clips are drawn and stored.

    Args:
        size: side of the frames, pixels; even.
        gop: as in `Encoding`.
        crf: x264 quality; small frames need a better one than videos of cameras.
        frames, fps: of a clip.
        label: which of `LABELS` the records carry.
        images: as in `read_pictures`.
        backgrounds: as in `background_files`.
        clutter: 1 for backgrounds and obstacles, 0 for neither, or between.
    """

    kind: ClassVar[str] = "video"
    size: int = 64
    crf: int = 17
    frames: int = 16
    fps: float = 8.0
    label: str = "direction"
    images: str = DIGITS
    backgrounds: str = CLIPS
    clutter: float = 1.0

    def convert(self, item: Draw) -> ClipRecord:
        """Draw one clip and make its record.

        Raises:
            ListError: as in `read_pictures` and `read_backgrounds`.
            DataError: as in `encode_video`.
        """
        rate = Fraction(self.fps).limit_denominator(1001)
        video = encode_video(rgb_frames(draw_clip(item, self)), rate, self, item.name)
        return ClipRecord(
            "video", video.data, float(rate), video.num_frames, video.height, video.width, item.name, item.value(self.label)
        )


def draw_clip(draw: Draw, spec: MovingSpec) -> np.ndarray:
    """Draw the frames of a clip.

    The picture moves on a torus: what leaves at one side comes in at the other. So at every moment all places are equally
    likely, whatever the direction and speed, and a single frame tells neither.

    Args:
        draw: what it shows.
        spec: how.

    Returns:
        uint8 `[T, H, W, 3]`.

    Raises:
        ListError: as in `read_pictures` and `read_backgrounds`.
    """
    rng = np.random.default_rng([draw.seed, SPLITS.index(draw.split), draw.number])
    ink, outline = _stencil(read_pictures(spec.images).images[draw.picture], spec.size, rng)
    frames = _background(draw.split, spec, rng)
    color = _bright_color(rng)
    for frame, (x, y) in zip(frames, _path(draw, spec, rng), strict=True):
        frame *= 1 - _shift(outline, x, y)[..., None]
        frame += _shift(ink, x, y)[..., None] * color
    if spec.clutter:
        _hide(frames, spec, rng)
    return np.clip(np.rint(frames), 0, 255).astype(np.uint8)


def _path(draw: Draw, spec: MovingSpec, rng: np.random.Generator) -> np.ndarray:
    """Place the picture in every frame, `[T, 2]`, pixels right of and below the middle."""
    per_second = _SIDES_PER_SECOND[draw.speed] * rng.uniform(1 - _SPEED_JITTER, 1 + _SPEED_JITTER)
    angle = 2 * np.pi * draw.direction / len(DIRECTIONS)
    # Rows of a picture are counted downwards.
    step = per_second * spec.size / spec.fps * np.array([np.cos(angle), -np.sin(angle)])
    return rng.uniform(0, spec.size, 2) + np.arange(spec.frames)[:, None] * step


def _stencil(image: np.ndarray, size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return how much ink, and ink with a dark outline, there is at every pixel, float64 `[size, size]` in 0..1."""
    side = round(size * rng.uniform(*_PICTURE_SCALE))
    scaled = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA if side < len(image) else cv2.INTER_LINEAR)
    before = (size - side) // 2
    ink = np.pad(scaled / 255.0, (before, size - side - before))
    width = 2 * max(1, round(_OUTLINE * size)) + 1
    return ink, cv2.dilate(ink, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (width, width)))


def _shift(stencil: np.ndarray, x: float, y: float) -> np.ndarray:
    """Move a stencil around the torus, between pixels too."""
    for axis, distance in ((1, x), (0, y)):
        whole = int(np.floor(distance))
        part = distance - whole
        stencil = (1 - part) * np.roll(stencil, whole, axis) + part * np.roll(stencil, whole + 1, axis)
    return stencil


def _bright_color(rng: np.random.Generator) -> np.ndarray:
    color = rng.uniform(90, 255, 3)
    return color * 255 / color.max()


def _background(split: str, spec: MovingSpec, rng: np.random.Generator) -> np.ndarray:
    """Cut a moving background, float64 `[T, size, size, 3]`."""
    if spec.backgrounds == PROCEDURAL:
        frames = _texture(spec, rng)
    else:
        videos = read_backgrounds(spec.backgrounds, split, 2 * spec.size)
        frames = _cut(videos[rng.integers(len(videos))], spec, rng)
    grey = 90.0
    return grey + spec.clutter * _BACKGROUND_CONTRAST * (frames - 110.0)


def _cut(video: np.ndarray, spec: MovingSpec, rng: np.random.Generator) -> np.ndarray:
    """Take a box and some frames of a video, forwards or backwards; a short one swings to and fro."""
    count = len(video)
    places = (int(rng.integers(max(1, count - spec.frames + 1))) + np.arange(spec.frames)) % (2 * count - 2)
    places = np.minimum(places, 2 * count - 2 - places)[:: rng.choice([-1, 1])]
    side = int(rng.integers(spec.size, 2 * spec.size + 1))
    top, left = (int(rng.integers(length - side + 1)) for length in video.shape[1:3])
    boxes = video[places, top : top + side, left : left + side][:, :, :: rng.choice([-1, 1])]
    shrunk = [cv2.resize(box, (spec.size, spec.size), interpolation=cv2.INTER_AREA) for box in np.ascontiguousarray(boxes)]
    return np.stack(shrunk).astype(np.float64)


def _texture(spec: MovingSpec, rng: np.random.Generator) -> np.ndarray:
    """Draw blurred noise of several sizes that drifts at a random speed."""
    side = 2 * spec.size
    noise = sum(
        cv2.resize(rng.normal(size=(cells, cells, 3)), (side, side), interpolation=cv2.INTER_CUBIC) for cells in (4, 12, 32)
    )
    drift, angle = rng.uniform(0, spec.size), rng.uniform(0, 2 * np.pi)
    middle = (side - spec.size) / 2
    times = np.linspace(-0.5, 0.5, spec.frames)
    corners = middle + drift * times[:, None] * np.array([np.cos(angle), np.sin(angle)])
    cut = [noise[round(y) :, round(x) :][: spec.size, : spec.size] for x, y in corners]
    return 110 + 30 * np.stack(cut)


def _hide(frames: np.ndarray, spec: MovingSpec, rng: np.random.Generator) -> None:
    """Put a pole across the frames and a box somewhere, in front of everything."""
    side = spec.size
    pole, width, height = (
        max(1, round(spec.clutter * side * rng.uniform(*scale))) for scale in (_POLE, _BOX, _BOX)
    )
    upright = bool(rng.integers(2))
    shapes: Sequence[tuple[int, int]] = ((side, pole) if upright else (pole, side), (height, width))
    for rows, columns in shapes:
        top, left = (int(rng.integers(side - length + 1)) for length in (rows, columns))
        frames[:, top : top + rows, left : left + columns] = rng.uniform(40, 150, 3)
