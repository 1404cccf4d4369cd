"""Run `prepare` as an Apache Beam pipeline, so that a cluster's own engine spreads the work."""

from __future__ import annotations

import functools
import pickle
import shlex
from collections.abc import Sequence

from jepa_jax.data import claims, shards
from jepa_jax.data.conversion import PlannedItem
from jepa_jax.data.sources.libraries import need
from jepa_jax.data.workers import one_thread_per_image


def write_shards(
    items: Sequence[PlannedItem], plan: shards.ShardPlan, *, overwrite: bool, options: str
) -> shards.ShardReport:
    """Write the same shards as `shards.write_shards`, one shard being one element of a pipeline.

    The folder, and the sources, must be URLs or there under the same paths on every worker. A
    run that was stopped goes on when it is started again, with or without Beam.

    Args:
        items, plan, overwrite: as in `shards.write_shards`.
        options: of the pipeline, such as '--runner=FlinkRunner --parallelism=64'.

    Returns:
        The counts over all shards, those of earlier runs included.

    Raises:
        ShardError: as in `shards.write_shards`, or the pipeline failed.
        ListError: Beam is not installed.
    """
    beam = need("apache_beam", "beam")
    pipeline_options = need("apache_beam.options.pipeline_options", "beam")
    with claims.claimed(plan):
        done, todo, count = shards.begin(items, plan, overwrite=overwrite)
        if not todo:
            claims.settle(plan)
            return done
        try:
            with beam.Pipeline(options=pipeline_options.PipelineOptions(shlex.split(options))) as pipeline:
                # Pickled here: Beam would turn items into tuples without names.
                elements = [pickle.dumps((index, tuple(part))) for index, part in todo]
                work = functools.partial(_write_one, plan=plan, count=count)
                pipeline | beam.Create(elements) | beam.Reshuffle() | beam.Map(work)
        # Runners wrap what a worker raised in a RuntimeError of their own.
        except RuntimeError as error:
            raise claims.ShardError(f"the Beam pipeline failed: {error}") from error
        total, left, _ = shards.begin(items, plan)
        if left:
            raise claims.ShardError(
                f"the Beam pipeline ended, but {len(left)} of {count} shards are not in {plan.folder}: it must be the "
                "same folder on every worker"
            )
        claims.settle(plan)
    total.skips.sort()
    return total


def _write_one(element: bytes, plan: shards.ShardPlan, count: int) -> int:
    one_thread_per_image()
    index, part = pickle.loads(element)
    return shards.write_one(part, plan, index, count).written
