"""Find and read the `tf.train.Example`s in TFRecord and ArrayRecord files, without TensorFlow."""

from __future__ import annotations

import functools
import os
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from array_record.python import array_record_module

from jepa_jax.data import folders, remote
from jepa_jax.data.copies import DEFAULT_CACHE
from jepa_jax.data.errors import DataError
from jepa_jax.data.listing import ListError, Rejected
from jepa_jax.data.manifest import reject_duplicates
from jepa_jax.data.records import count_records
from jepa_jax.data.sources.libraries import need

_TFRECORD, _ARRAY_RECORD = ".tfrecord", ".array_record"
# As TensorFlow Datasets names its files, and the folders of versions.
_SPLIT = re.compile(r"-([^-.]+)\.(?:tfrecord|array_record)")
_VERSION = re.compile(r"\d+\.\d+\.\d+")
ALL_SPLITS = "all"
# ArrayRecord has an index of its own.
_NO_OFFSET = -1

# Each record: its length (uint64) and the checksum of that; its bytes and their checksum.
_HEADER = struct.Struct("<QI")
_CHECKSUM = struct.Struct("<I")
_MASK = 0xA282EAD8


class Example(NamedTuple):
    """Name one record of a file: its number and, in a TFRecord file, where its bytes are."""

    path: str
    number: int
    offset: int
    length: int

    @property
    def name(self) -> str:
        """Name the example in reports and records."""
        return f"{folders.printable(self.path)}#{self.number}"


def list_examples(sources: Sequence[str], split: str = ALL_SPLITS) -> list[Example | Rejected]:
    """Find the records in files.

    Args:
        sources: folders, searched for files with '.tfrecord' or '.array_record' in
            their names, globs, or files, also behind URLs. There, an ArrayRecord file is kept
            in the cache of `copies` once an example of it is read.
        split: the part of data sets in folders that is wanted, by the names of files such as
            NAME-train.tfrecord-00000-of-00002, or ALL_SPLITS. Files whose names state none are too.

    Returns:
        Examples in the order of the files; a place where a file cannot be read
        further is rejected as 'unreadable tfrecord' or 'unreadable shard', an
        example that is listed again as 'duplicate id'.

    Raises:
        ListError: a source does not exist, holds no such file or not that split, or two
            versions of one data set are found.
    """
    files = [file for source in sources for file in _files(source, split)]
    _check_versions(files)
    items: list[Example | Rejected] = []
    for file in files:
        number = 0
        try:
            places = _array_places(file) if _ARRAY_RECORD in os.path.basename(file) else record_places(file)
            for number, place in enumerate(places, 1):
                items.append(Example(file, number - 1, *place))
        except DataError as error:
            items.append(Rejected(f"{folders.printable(file)}#{number}", error.reason, str(error)))
    return reject_duplicates(items)


def _files(source: str, split: str) -> list[str]:
    if remote.is_file(source):
        return [source]
    if remote.is_folder(source):
        files = remote.find(source, lambda name: _TFRECORD in name or _ARRAY_RECORD in name)
    else:
        files, split = [file for file in remote.glob(source) if remote.is_file(file)], ALL_SPLITS
    if not files:
        raise ListError(
            f"{source!r} holds no file with {_TFRECORD!r} or {_ARRAY_RECORD!r} in its name, and is none; check the path"
        )
    splits = {file: _split_of(file) for file in files}
    wanted = [file for file in files if split == ALL_SPLITS or splits[file] in (split, None)]
    if not wanted:
        known = ", ".join(sorted({name for name in splits.values() if name}))
        raise ListError(f"{source!r} has no split {split!r}; it has {known}: choose by --split, or {ALL_SPLITS!r}")
    return wanted


def _split_of(file: str) -> str | None:
    found = _SPLIT.search(os.path.basename(file))
    return found and found[1]


def _check_versions(files: Sequence[str]) -> None:
    """Refuse to mix versions of one data set, which mostly hold the same episodes."""
    versions: dict[str, set[str]] = {}
    for folder in {os.path.dirname(file) for file in files}:
        parent, name = os.path.split(folder)
        if _VERSION.fullmatch(name):
            versions.setdefault(parent, set()).add(name)
    for parent, names in sorted(versions.items()):
        if len(names) > 1:
            raise ListError(
                f"{parent} holds several versions of one data set, {', '.join(sorted(names))}: name the folder of one"
            )


def _array_places(path: str) -> Iterator[tuple[int, int]]:
    try:
        count = count_records(path)
    except DataError as error:
        raise _unreadable_shard(path) if error.reason == "unreadable shard" else error from error
    return ((_NO_OFFSET, 0) for _ in range(count))


def _unreadable_shard(path: str) -> DataError:
    return DataError("unreadable shard", f"{path} is no readable ArrayRecord file: it is cut short or damaged")


@functools.lru_cache(maxsize=8)
def _array_reader(path: str) -> array_record_module.ArrayRecordReader:
    with DEFAULT_CACHE.open_path(path) as file:
        reader = array_record_module.ArrayRecordReader(file, "readahead_buffer_size:0")
    if not reader.ok():
        raise _unreadable_shard(path)
    return reader


def record_places(path: str) -> Iterator[tuple[int, int]]:
    """Find the records of a file without reading them.

    Args:
        path: the file, not compressed.

    Yields:
        Offset and length of each record's bytes.

    Raises:
        DataError: 'unreadable tfrecord', where a header is damaged or the file ends
            inside a record; the places before it were given.
    """
    try:
        with remote.open_binary(path) as file:
            size, position = file.seek(0, os.SEEK_END), 0
            while position < size:
                file.seek(position)
                header = file.read(_HEADER.size)
                if len(header) < _HEADER.size:
                    raise _unreadable(path, position, "ends inside a header")
                length, checksum = _HEADER.unpack(header)
                if checksum != _masked_checksum(header[:8]):
                    raise _unreadable(path, position, "has a damaged header, or is compressed or no TFRecord file")
                if position + _HEADER.size + length + _CHECKSUM.size > size:
                    raise _unreadable(path, position, "ends inside a record")
                yield position + _HEADER.size, length
                position += _HEADER.size + length + _CHECKSUM.size
    except OSError as error:
        raise DataError("unreadable tfrecord", f"{path}: {error.strerror or error}") from error


def _unreadable(path: str, position: int, what: str) -> DataError:
    return DataError("unreadable tfrecord", f"{path} {what} at byte {position}; what follows in this file is lost")


def read_example(item: Example) -> dict[str, list[bytes] | np.ndarray]:
    """Read one example.

    Args:
        item: as found by `list_examples`.

    Returns:
        By feature its list of bytes, or its numbers: float32 or int64 `[n]`.

    Raises:
        DataError: 'unreadable tfrecord', 'unreadable shard', 'corrupt record' or 'not an example'.
    """
    payload = _read_array(item) if item.offset == _NO_OFFSET else _read_record(item)
    message = need("google.protobuf.message", "sources")
    try:
        example = example_class().FromString(payload)
    except message.DecodeError as error:
        raise DataError("not an example", f"{item.name}: {error}") from error
    return {name: _values(feature) for name, feature in _features(example).items()}


def _read_record(item: Example) -> bytes:
    try:
        data = remote.read_range(item.path, item.offset, item.length + _CHECKSUM.size)
    except OSError as error:
        raise DataError("unreadable tfrecord", f"{item.path}: {error.strerror or error}") from error
    payload, checksum = data[: item.length], data[item.length :]
    if len(checksum) < _CHECKSUM.size or _CHECKSUM.unpack(checksum)[0] != _masked_checksum(payload):
        raise DataError("corrupt record", f"{item.name}: the record at byte {item.offset} fails its checksum")
    return payload


def _read_array(item: Example) -> bytes:
    try:
        return _array_reader(item.path).read([item.number])[0]
    except FileNotFoundError as error:
        raise DataError("missing file", f"{item.path}: no such file") from error
    # ArrayRecord reports every kind of damage as a RuntimeError.
    except RuntimeError as error:
        raise DataError("corrupt record", f"{item.name}: {error}") from error


def _features(example) -> Mapping:
    return example.features.feature


def _values(feature) -> list[bytes] | np.ndarray:
    if feature.HasField("bytes_list"):
        return list(feature.bytes_list.value)
    if feature.HasField("int64_list"):
        return np.array(feature.int64_list.value, np.int64)
    return np.array(feature.float_list.value, np.float32)


def _masked_checksum(data: bytes) -> int:
    crc = need("google_crc32c", "sources").value(data)
    return ((crc >> 15 | crc << 17) + _MASK) & 0xFFFFFFFF


@functools.cache
def example_class() -> type:
    """Build the protocol buffer class of `tf.train.Example`: a map from names to lists of bytes, floats or integers."""
    descriptor_pb2 = need("google.protobuf.descriptor_pb2", "sources")
    pools = need("google.protobuf.descriptor_pool", "sources")
    factory = need("google.protobuf.message_factory", "sources")
    kinds, labels = descriptor_pb2.FieldDescriptorProto, descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="jepa_jax/example.proto", package="jepa_jax.tf", syntax="proto3")

    def message(parent, name: str, *fields: tuple):
        made = parent.add(name=name)
        for number, (field, kind, label, type_name) in enumerate(fields, 1):
            made.field.add(name=field, number=number, type=kind, label=label, type_name=type_name)
        return made

    one, many = labels.LABEL_OPTIONAL, labels.LABEL_REPEATED
    top = file.message_type
    message(top, "BytesList", ("value", kinds.TYPE_BYTES, many, None))
    message(top, "FloatList", ("value", kinds.TYPE_FLOAT, many, None))
    message(top, "Int64List", ("value", kinds.TYPE_INT64, many, None))
    lists = [
        (f"{name}_list", kinds.TYPE_MESSAGE, one, f".jepa_jax.tf.{name.title()}List") for name in ("bytes", "float")
    ]
    feature = message(top, "Feature", *lists, ("int64_list", kinds.TYPE_MESSAGE, one, ".jepa_jax.tf.Int64List"))
    feature.oneof_decl.add(name="kind")
    for field in feature.field:
        field.oneof_index = 0
    features = message(top, "Features", ("feature", kinds.TYPE_MESSAGE, many, ".jepa_jax.tf.Features.FeatureEntry"))
    entry = message(
        features.nested_type, "FeatureEntry",
        ("key", kinds.TYPE_STRING, one, None), ("value", kinds.TYPE_MESSAGE, one, ".jepa_jax.tf.Feature"),
    )  # fmt: skip
    entry.options.map_entry = True
    message(top, "Example", ("features", kinds.TYPE_MESSAGE, one, ".jepa_jax.tf.Features"))
    pool = pools.DescriptorPool()
    pool.Add(file)
    return factory.GetMessageClass(pool.FindMessageTypeByName("jepa_jax.tf.Example"))
