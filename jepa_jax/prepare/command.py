"""The command line of `prepare`: list, convert, report."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import tqdm

from jepa_jax.commandline import interrupt
from jepa_jax.commandline.stdout import write_lines
from jepa_jax.data import listing, shards
from jepa_jax.data.claims import ShardError
from jepa_jax.data.errors import DataError
from jepa_jax.data.publish import check_folder
from jepa_jax.data.remote import UrlError
from jepa_jax.prepare import arguments, beam, report


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments without the program's name; those of the process if None.

    Returns:
        Exit status: 0; 1 when nothing was written or too much was skipped; 2 when
        the arguments, the list or the folder are unusable.
    """
    args = arguments.parser().parse_args(argv)
    try:
        if hasattr(args, "run"):
            return args.run(args)
        # First: looking through the sources may take long.
        check_folder(args.output)
        items, spec = args.plan(args)
        if not items:
            raise listing.ListError(f"{', '.join(args.sources)}: lists no {args.units}")
        plan = shards.ShardPlan(args.output, args.name, args.per_shard, spec)
        counts = _write(items, plan, args)
        lines, status = report.finish(counts, plan, args.units, args.max_skip_fraction)
    except (listing.ListError, ShardError, UrlError, DataError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        return interrupt.stop(interrupt.SHARDS_KEPT)
    write_lines(lines)
    return status


def _write(items: Sequence, plan: shards.ShardPlan, args: argparse.Namespace) -> shards.ShardReport:
    if args.beam:
        return beam.write_shards(items, plan, overwrite=args.overwrite, options=args.beam_options)
    skipped = 0
    with tqdm.tqdm(total=len(items), unit=f" {args.units}", dynamic_ncols=True, smoothing=0.05) as bar:

        def on_item(count: int, skips: int) -> None:
            nonlocal skipped
            skipped += skips
            if skips:
                bar.set_postfix_str(f"{skipped} skipped", refresh=False)
            bar.update(count)

        return shards.write_shards(items, plan, workers=args.workers, overwrite=args.overwrite, on_item=on_item)
