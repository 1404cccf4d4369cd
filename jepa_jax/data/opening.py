"""The first records of a source, by which a run knows what it was given."""

from __future__ import annotations

from collections.abc import Iterator

from jepa_jax.data.errors import DataError
from jepa_jax.data.records import Record, ShardSource

# Records that may be bad before the data as a whole are refused at the start.
LOOKED_AT = 10


def readable(source: ShardSource, name: str = "") -> Iterator[Record]:
    """Yield those of the first records of a source that can be read.

    Args:
        source: the shards, opened.
        name: of the shards, for messages.

    Raises:
        DataError: 'empty source', or why the first record cannot be read, if none of the first ones can.
    """
    if not len(source):
        raise DataError("empty source", f"the shards{f' at {name}' if name else ''} hold no records; prepare them again")
    problems, looked_at = [], min(LOOKED_AT, len(source))
    for number in range(looked_at):
        try:
            record = source[number]
        except DataError as error:
            problems.append(error)
        else:
            yield record
    if len(problems) == looked_at:
        raise problems[0]
