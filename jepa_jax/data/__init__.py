"""Shards of encoded clips, and the batches made from them. No jax in here."""

from jepa_jax.data.errors import DataError
from jepa_jax.data.iterate import BatchIterator, WorkerDied, make_iterator
from jepa_jax.data.mixing import Notes
from jepa_jax.data.pipeline import ClipPipeline
from jepa_jax.data.records import ClipRecord, ShardSource, decode_record, encode_record, resolve_shards
from jepa_jax.data.skips import Skip, SkipCounter
from jepa_jax.data.specs import AugmentSpec, CropSpec, GroupSpec, SourceSpec

__all__ = [
    "AugmentSpec",
    "BatchIterator",
    "ClipPipeline",
    "ClipRecord",
    "CropSpec",
    "DataError",
    "GroupSpec",
    "Notes",
    "ShardSource",
    "Skip",
    "SkipCounter",
    "SourceSpec",
    "WorkerDied",
    "decode_record",
    "encode_record",
    "make_iterator",
    "resolve_shards",
]
