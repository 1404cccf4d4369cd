"""From labelled videos to batches for training a probe: segments, augmented, with their classes. A function of (seed, step)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jepa_jax.data.labelled import LabelledFile, ListSource, class_of
from jepa_jax.data.mixing import Mixture, RowPipeline
from jepa_jax.data.records import ClipRecord, ShardSource
from jepa_jax.data.segments import Seeing, make_row, read_augmented
from jepa_jax.data.skips import MAX_BAD_FRACTION
from jepa_jax.data.specs import AugmentSpec, CropSpec, GroupSpec, check_process, check_specs


class LabelledPipeline(RowPipeline):
    """Make the batches of one process out of labelled videos or images.

    A batch is `{'video': uint8 [b, S, T, H, W, 3] (T is 1 if `still`), 'label': int32 [b]}`, with erasing also 'erase_boxes' int32 `[b, S, 4]`
    and 'erase_seeds' uint32 `[b, S]`, where `seeing` uses times also 'frame_indices' int32 `[b, S, frames]`.

    Args:
        group: frames, step, batch size and names of the sources.
        sources: those of the group, opened.
        crop: the random crop of every segment.
        augment: operations and erasing of every segment.
        seeing: segments, frames and step.
        num_classes: classes are 0 to num_classes - 1; a video with another is replaced.
        seed: of the order, the windows, crops and augmentation.
        still: all are images, of which one frame each is given.
        max_bad_fraction: of the records of any source.
        process_index, process_count: which rows of each global batch are made here.

    Raises:
        ValueError: a setting is out of range.
        DataError: 'empty source'.
    """

    def __init__(
        self,
        group: GroupSpec,
        sources: Sequence[ListSource | ShardSource],
        crop: CropSpec,
        augment: AugmentSpec,
        seeing: Seeing,
        num_classes: int,
        *,
        seed: int,
        still: bool = False,
        max_bad_fraction: float = MAX_BAD_FRACTION,
        process_index: int = 0,
        process_count: int = 1,
    ):
        check_specs([group], crop, augment, {group.name: None})
        check_process([group], process_index, process_count)
        make = _RowMaker(crop, augment, seeing, num_classes, still)
        mixture = Mixture(group, sources, make, seed=seed, max_bad_fraction=max_bad_fraction)
        super().__init__(group, mixture, process_index, process_count)


class _RowMaker:
    """Turn a record into a row; a class so that workers can unpickle it."""

    def __init__(self, crop: CropSpec, augment: AugmentSpec, seeing: Seeing, num_classes: int, still: bool):
        self._crop, self._augment, self._seeing, self._num_classes, self._still = crop, augment, seeing, num_classes, still

    def __call__(self, record: ClipRecord | LabelledFile, rng: np.random.Generator) -> dict[str, np.ndarray]:
        label = class_of(record, self._num_classes)
        found = read_augmented(record, self._seeing, self._crop, self._augment, rng, self._still)
        return make_row(found, self._seeing, self._augment) | {"label": np.int32(label)}
