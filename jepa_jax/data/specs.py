"""What a mixture is made of: sources, groups of clips of one shape, crops and augmentations."""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jepa_jax.data.randaugment import RandAugmentSpec

GROUP_KINDS = ("video", "image")
# The last part of a path that names files rather than a folder.
_FILES = re.compile(r"[*?\[]|\.array_record$")


@dataclass(frozen=True)
class SourceSpec:
    """Name the shards of one source and its share of a group's clips.

    Args:
        paths: directories, globs or files, as in `records.resolve_shards`.
        weight: relative to the other sources of the group, above 0.
    """

    paths: tuple[str, ...]
    weight: float

    @property
    def name(self) -> str:
        """Join the paths, as messages show them."""
        return ", ".join(os.fspath(path) for path in self.paths)


@dataclass(frozen=True)
class GroupSpec:
    """Describe clips of one shape that share a sub-batch.

    Args:
        name: key of the group in a batch.
        kind: 'video' or 'image'.
        frames: frames of the clip the model sees.
        fps: sampling rate, frames per second; not used by images and with `step`.
        batch_size: clips per step over all processes.
        sources: where they come from.
        step: native frames from one to the next, instead of a rate.
    """

    name: str
    kind: str
    frames: int
    fps: float
    batch_size: int
    sources: tuple[SourceSpec, ...]
    step: int | None = None

    def shape_text(self) -> str:
        """Say how many clips of what shape a step takes."""
        rate = f"at {self.fps:g}/s" if self.step is None else f"every {self.step}"
        shape = f"{self.frames} frames {rate}" if self.kind == "video" else "images"
        return f"{self.batch_size} x {shape} per step"

    def labels(self) -> tuple[str, ...]:
        """Give every source a short name of its own, as counts and metrics show it.

        It is 'group/folder', with as many folders above it as tell the sources apart.
        """
        found: list[str] = []
        for number, ending in enumerate(_endings([_folders(source.paths[0]) for source in self.sources])):
            label = f"{self.name}/{'/'.join(ending) or number}"
            numbered = (f"{label}.{count}" for count in itertools.count(number))
            found.append(next(name for name in itertools.chain([label], numbered) if name not in found))
        return tuple(found)


@dataclass(frozen=True)
class CropSpec:
    """Describe the random resized crop.

    Args:
        size: side of the result, pixels.
        scale: smallest and largest part of the frame's area.
        aspect: smallest and largest width/height.
        flip: probability of mirroring left to right.
    """

    size: int
    scale: tuple[float, float]
    aspect: tuple[float, float]
    flip: float


@dataclass(frozen=True)
class AugmentSpec:
    """Describe what else is done to clips; by default nothing, as in released pretraining.

    Args:
        motion_shift: draw two crops and move from one to the other over the clip.
        rand_augment: operations on whole frames before the crop, or None.
        erase: probability that a box of the clip becomes noise. Clips travel as uint8 and the
            noise belongs to normalised pixels, so a batch only says where it goes and which
            seed it has; `models.pixels.erase_boxes` puts it in on the device.
    """

    motion_shift: bool = False
    rand_augment: RandAugmentSpec | None = None
    erase: float = 0.0


NO_AUGMENT = AugmentSpec()


def _folders(path: str | os.PathLike) -> tuple[str, ...]:
    """Split the folders of a path, with nothing but letters, digits and ._- in them."""
    parts = [part for part in os.fspath(path).split("/") if part and not _FILES.search(part)]
    return tuple(re.sub(r"[^A-Za-z0-9._-]+", "_", part) for part in parts)


def _endings(paths: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Cut every path to its shortest end that no other path has."""
    ends = []
    for path in paths:
        others = [other for other in paths if other != path]
        lengths = range(1, len(path) + 1)
        alone = (n for n in lengths if all(other[-n:] != path[-n:] for other in others))
        ends.append(path[-next(alone, len(path)) :] if path else ())
    return ends


def check_specs(groups: Sequence[GroupSpec], crop: CropSpec, augment: AugmentSpec, samplers: Mapping) -> None:
    """Check everything but the shards.

    Args:
        groups, crop, augment: what is checked.
        samplers: the mask samplers by group name.

    Raises:
        ValueError: a setting is out of range.
    """
    names = [group.name for group in groups]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"group names are {names}; give at least one, all different")
    if set(samplers) != set(names):
        raise ValueError(f"mask samplers are for {sorted(samplers)}, groups are {sorted(names)}")
    if crop.size < 1 or not all(0 < low <= high < math.inf for low, high in (crop.scale, crop.aspect)):
        raise ValueError(f"{crop}: size, scale and aspect must be positive and finite, with low <= high")
    for name, probability in (("flip", crop.flip), ("erase", augment.erase)):
        if not 0 <= probability <= 1:
            raise ValueError(f"{name} is {probability}; it is a probability, between 0 and 1")
    for group in groups:
        _check_group(group)


def _check_group(group: GroupSpec) -> None:
    if group.kind not in GROUP_KINDS:
        raise ValueError(f"group {group.name!r} has kind {group.kind!r}; allowed: {', '.join(map(repr, GROUP_KINDS))}")
    if group.frames < 1 or (group.kind == "video" and not 0 < group.fps < math.inf):
        raise ValueError(f"group {group.name!r}: frames {group.frames} and fps {group.fps} must be above 0 and finite")
    if group.batch_size < 1:
        raise ValueError(f"group {group.name!r}: batch_size {group.batch_size} must be above 0")
    if not group.sources or not all(0 < source.weight < math.inf for source in group.sources):
        raise ValueError(
            f"group {group.name!r}: weights {[source.weight for source in group.sources]} must be above 0 and finite; "
            "leave a source out instead of giving it weight 0"
        )


def check_process(groups: Sequence[GroupSpec], process_index: int, process_count: int) -> None:
    """Check that the rows of every group can be dealt to the processes.

    Raises:
        ValueError: there is no such process, or a batch does not divide.
    """
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index {process_index} is not in 0..{process_count - 1}")
    for group in groups:
        if group.batch_size % process_count:
            raise ValueError(
                f"group {group.name!r}: batch_size {group.batch_size} is not a positive multiple of the "
                f"{process_count} processes"
            )
