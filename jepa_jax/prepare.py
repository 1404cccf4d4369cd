"""Turn folders, globs or CSVs of videos and images into shards: `python -m jepa_jax.prepare`."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys

import tqdm

from jepa_jax.data import listing, shards
from jepa_jax.data.transcode import ImageSpec, VideoSpec

_EXAMPLES = """examples:
  python -m jepa_jax.prepare videos ~/videos --output data/mine
  python -m jepa_jax.prepare videos '/ssv2/*.webm' --output data/ssv2 --size 256 --workers 16
  python -m jepa_jax.prepare videos k400_train.csv --output data/k400 --per-shard 512
  python -m jepa_jax.prepare images ~/photos --output data/photos

SRC is a folder (searched through), a glob in quotes, a file, or a CSV without header:
'path label' per line, separated by the last space or by '::', the label an integer.
Run the same command again to finish a run that was stopped."""
_NAMES_SHOWN = 5


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments without the program's name; those of the process if None.

    Returns:
        Exit status: 0; 1 when nothing was written or too much was skipped; 2 when
        the arguments, the list or the folder are unusable.
    """
    args = _parser().parse_args(argv)
    try:
        report = _run(args)
    except (listing.ListError, shards.ShardError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        # Without this, leaving would wait for the files now being converted.
        for child in multiprocessing.active_children():
            child.kill()
        sys.stderr.write("stopped; finished shards are kept, run the same command again to go on\n")
        return 130
    return _finish(report, args)


def _run(args: argparse.Namespace) -> shards.ShardReport:
    if args.kind == "videos":
        suffixes = listing.VIDEO_SUFFIXES
        spec = VideoSpec(args.size, args.gop, args.crf, args.min_frames)
    else:
        suffixes, spec = listing.IMAGE_SUFFIXES, ImageSpec(args.size)
    items = listing.list_items(args.sources, suffixes)
    plan = shards.ShardPlan(args.output, args.name, args.per_shard, spec)
    skipped = 0
    with tqdm.tqdm(total=len(items), unit=args.kind[:-1], dynamic_ncols=True, smoothing=0.05) as bar:

        def on_item(count: int, skips: int) -> None:
            nonlocal skipped
            skipped += skips
            if skips:
                bar.set_postfix_str(f"{skipped} skipped", refresh=False)
            bar.update(count)

        return shards.write_shards(items, plan, workers=args.workers, overwrite=args.overwrite, on_item=on_item)


def _finish(report: shards.ShardReport, args: argparse.Namespace) -> int:
    """Write the report as text and JSON and judge it."""
    total = report.written + len(report.skips)
    fraction = len(report.skips) / total
    path = os.path.join(args.output, f"{args.name}-report.json")
    summary = {
        "written": report.written,
        "skipped": len(report.skips),
        "hours": report.seconds / 3600,
        "bytes": report.bytes,
        "skips_by_reason": shards.skip_counts(report),
        "skips": [{"path": path, "reason": reason, "message": text} for path, reason, text in report.skips],
    }
    shards.write_json(path, summary)
    hours = f", {report.seconds / 3600:.3g} hours" if args.kind == "videos" else ""
    lines = [f"{report.written} of {total} {args.kind} in {args.output}{hours}, {report.bytes / 1e6:.1f} MB"]
    for reason, count in summary["skips_by_reason"].items():
        names = [name for name, other, _ in report.skips if other == reason]
        more = f", and {count - _NAMES_SHOWN} more" if count > _NAMES_SHOWN else ""
        lines.append(f"skipped, {reason}: {count} ({', '.join(names[:_NAMES_SHOWN])}{more})")
    lines.append(f"report: {path}")
    status = 0
    if not report.written:
        lines.append("error: nothing was written; every file was skipped for the reasons above")
        status = 1
    elif fraction > args.max_skip_fraction:
        lines.append(
            f"error: {fraction:.1%} of the files were skipped, more than --max-skip-fraction "
            f"{args.max_skip_fraction:g}; the shards are complete, raise the limit to accept them"
        )
        status = 1
    sys.stdout.write("\n".join(lines) + "\n")
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m jepa_jax.prepare",
        description="Turn videos or images into shards for training.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = parser.add_subparsers(dest="kind", required=True)
    for kind, name in (("videos", "clips"), ("images", "images")):
        sub = kinds.add_parser(
            kind, help=f"make shards of {kind}", epilog=_EXAMPLES, formatter_class=parser.formatter_class
        )
        sub.add_argument("sources", nargs="+", metavar="SRC", help="folder, glob, file or CSV")
        sub.add_argument("--output", required=True, metavar="DIR", help="folder for the shards")
        sub.add_argument("--name", default=name, type=_name, help=f"first part of the shards' names (default {name})")
        sub.add_argument("--size", default=256, type=_positive, help="short side, pixels; never enlarged (default 256)")
        sub.add_argument(
            "--per-shard",
            default=64 if kind == "videos" else 1024,
            type=_positive,
            help="files per shard (default %(default)s)",
        )
        sub.add_argument(
            "--workers", default=os.cpu_count(), type=_count, help="processes; 0 for none (default: one per core)"
        )
        sub.add_argument(
            "--max-skip-fraction",
            default=0.1,
            type=_fraction,
            help="exit with status 1 when more of the files are skipped (default %(default)s)",
        )
        sub.add_argument("--overwrite", action="store_true", help="remove the shards of that name and begin again")
    videos = kinds.choices["videos"]
    videos.add_argument("--gop", default=12, type=_positive, help="frames between key frames (default %(default)s)")
    videos.add_argument("--crf", default=18, type=_crf, help="x264 quality, 0 (best) to 51 (default %(default)s)")
    videos.add_argument(
        "--min-frames", default=8, type=_positive, help="skip videos with fewer frames (default %(default)s)"
    )
    return parser


def _count(text: str) -> int:
    if (number := int(text)) < 0:
        raise argparse.ArgumentTypeError(f"{number} is below 0")
    return number


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number} is below 1")
    return number


def _crf(text: str) -> int:
    if not 0 <= (number := int(text)) <= 51:
        raise argparse.ArgumentTypeError(f"{number} is not in 0..51")
    return number


def _fraction(text: str) -> float:
    if not 0 <= (number := float(text)) <= 1:
        raise argparse.ArgumentTypeError(f"{number} is not between 0 and 1")
    return number


def _name(text: str) -> str:
    if not text or os.sep in text or text.startswith("."):
        raise argparse.ArgumentTypeError(f"{text!r} is no file name")
    return text


if __name__ == "__main__":
    sys.exit(main())
