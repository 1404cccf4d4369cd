"""Labelled images and videos of data sets that TensorFlow Datasets prepared, as ArrayRecord or TFRecord.

The files are read directly: `tensorflow_datasets` itself cannot load a description with a
video in it unless TensorFlow is installed. A data set is a folder with features.json beside
its files, which are named NAME-SPLIT.FORMAT-00000-of-00008.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jepa_jax.data import remote
from jepa_jax.data.encoding import Encoding, encode_video, rgb_frames, storable_rate
from jepa_jax.data.errors import DataError
from jepa_jax.data.listing import ListError, Rejected
from jepa_jax.data.records import ClipRecord
from jepa_jax.data.sources.examples import Example, list_examples, read_example
from jepa_jax.data.transcode import ImageSpec, store_image_bytes
from jepa_jax.data.video import decode_image

_FEATURES = "features.json"


@dataclass(frozen=True)
class Fields:
    """Say which features of an example mean what.

    Args:
        picture: the image or video.
        video: whether it is a video.
        label: the integer label; '' for none.
    """

    picture: str
    video: bool
    label: str


def list_tfds(sources: Sequence[str], split: str) -> list[Example | Rejected]:
    """Find the examples of a split.

    Args:
        sources: folders with features.json.
        split: such as 'train', or 'all'.

    Returns:
        As `examples.list_examples`.

    Raises:
        ListError: a source is no data set or has no such split.
    """
    return list_examples(sources, split)


def read_fields(sources: Sequence[str], picture: str | None, label: str | None) -> Fields:
    """Find out which features hold the pictures and the labels.

    Args:
        sources: folders with features.json, all of the same features.
        picture, label: names of features; found by their kind if None. '' for no label.

    Returns:
        The fields.

    Raises:
        ListError: there is no readable description, or not just one feature of a kind.
    """
    found = {_fields_of(source, picture, label) for source in sources}
    if len(found) > 1:
        raise ListError(f"the sources have different features: {', '.join(map(str, found))}; prepare them one by one")
    return found.pop()


def _fields_of(source: str, picture: str | None, label: str | None) -> Fields:
    path = os.path.join(source, _FEATURES)
    try:
        features = json.loads(remote.read_text(path))["featuresDict"]["features"]
        kinds = {name: str(feature["pythonClassName"]).rpartition(".")[2] for name, feature in features.items()}
    except FileNotFoundError as error:
        raise ListError(
            f"{source!r} holds no {_FEATURES}; name the folder of one version of a data set, such as NAME/1.0.0"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ListError(f"{path} is no readable description of features: {error!r}") from error
    picture = picture or _only(kinds, ("Image", "Video"), "--picture", path)
    labels = [name for name, kind in kinds.items() if kind == "ClassLabel"]
    if label is None:
        label = labels[0] if len(labels) == 1 else ""
    for name in filter(None, (picture, label)):
        if name not in kinds:
            raise ListError(f"{path} has no feature {name!r}; it has {', '.join(kinds)}")
    return Fields(picture, kinds[picture] == "Video", label)


def _only(kinds: Mapping[str, str], wanted: Sequence[str], flag: str, path: str) -> str:
    names = [name for name, kind in kinds.items() if kind in wanted]
    if len(names) != 1:
        raise ListError(
            f"{path} has {len(names)} features of kind {' or '.join(wanted)} ({', '.join(names)}); choose by {flag}"
        )
    return names[0]


@dataclass(frozen=True)
class TfdsSpec(Encoding):
    """Say how examples are read and stored.

    Args:
        size, gop, crf: as in `Encoding`; images use the size only.
        min_frames: videos with fewer frames are skipped.
        fields: which features mean what.
        rate: frames per second of videos, which the data set does not store; 0.0 for images.

    Raises:
        ListError: a video without a rate.
    """

    min_frames: int = 8
    fields: Fields = Fields("image", False, "label")
    rate: float = 0.0

    def __post_init__(self):
        if self.fields.video and not self.rate > 0:
            raise ListError(f"feature {self.fields.picture!r} is a video; give its frames per second by --rate")

    @property
    def kind(self) -> str:
        """Name the kind of record."""
        return "video" if self.fields.video else "image"

    def convert(self, item: Example) -> ClipRecord:
        """Make the record of one example.

        Raises:
            DataError: 'example lacks data', 'too short', or as in `examples.read_example`,
                `transcode.store_image_bytes` and `encoding.encode_video`.
        """
        values = read_example(item)
        shots, label = values.get(self.fields.picture), None
        if not isinstance(shots, list) or not shots:
            raise DataError(
                "example lacks data", f"{item.name}: feature {self.fields.picture!r} holds no encoded pictures"
            )
        if self.fields.label:
            found = values.get(self.fields.label)
            if not isinstance(found, np.ndarray) or found.shape != (1,):
                raise DataError(
                    "example lacks data", f"{item.name}: feature {self.fields.label!r} holds no single number"
                )
            label = int(found[0])
        if not self.fields.video:
            return store_image_bytes(shots[0], ImageSpec(self.size), item.name, label)
        if len(shots) < self.min_frames:
            raise DataError(
                "too short", f"{item.name}: {len(shots)} frames; at least {self.min_frames} are wanted (--min-frames)"
            )
        try:
            frames = rgb_frames(decode_image(shot) for shot in shots)
            video = encode_video(frames, storable_rate(self.rate, item.name), self, item.name)
        except DataError as error:
            raise DataError(error.reason, f"{item.name}: {error}") from error
        return ClipRecord("video", video.data, self.rate, video.num_frames, video.height, video.width, item.name, label)
