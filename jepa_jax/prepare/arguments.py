"""The arguments of `prepare`: one subcommand for each kind of source."""

from __future__ import annotations

import argparse
import os

from jepa_jax.data import manifest, tars
from jepa_jax.data.sources import droid
from jepa_jax.data.transcode import ImageSpec, VideoSpec
from jepa_jax.prepare.types import count, crf, fraction, positive, positive_float, rate, shard_set_name, views

_EXAMPLES = """examples:
  python -m jepa_jax.prepare videos ~/videos --output data/mine
  python -m jepa_jax.prepare videos '/ssv2/*.webm' --output data/ssv2 --size 256 --workers 16
  python -m jepa_jax.prepare videos k400_train.csv --output data/k400 --per-shard 512
  python -m jepa_jax.prepare videos scenes.jsonl --output data/scenes
  python -m jepa_jax.prepare images ~/photos imagenet.tar --output data/photos
  python -m jepa_jax.prepare droid ~/droid_raw --output data/droid --views left,right
Run the same command again to finish a run that was stopped."""


def parser() -> argparse.ArgumentParser:
    """Build the parser; each subcommand sets `plan(args) -> (items, spec)` and `units`."""
    top = argparse.ArgumentParser(
        prog="python -m jepa_jax.prepare",
        description="Turn videos, images or robot trajectories into shards for training.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = top.add_subparsers(dest="kind", required=True)
    for add in (_add_videos, _add_images, _add_droid):
        add(kinds)
    return top


def _subcommand(kinds, kind: str, units: str, name: str, per_shard: int, sources: str, detail: str):
    """Add a subcommand with the arguments that all of them have."""
    sub = kinds.add_parser(
        kind, help=f"make shards of {sources.partition(';')[0]}", description=detail,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    sub.set_defaults(units=units)
    sub.add_argument("sources", nargs="+", metavar="SRC", help=sources)
    sub.add_argument("--output", required=True, metavar="DIR", help="folder for the shards")
    sub.add_argument("--name", default=name, type=shard_set_name, help=f"first part of the shards' names (default {name})")
    sub.add_argument("--size", default=256, type=positive, help="short side, pixels; never enlarged (default 256)")
    sub.add_argument("--per-shard", default=per_shard, type=positive, help="items per shard (default %(default)s)")
    sub.add_argument(
        "--workers", default=os.cpu_count(), type=count, help="processes; 0 for none (default: one per core)"
    )
    sub.add_argument(
        "--max-skip-fraction", default=0.1, type=fraction,
        help="exit with status 1 when more of the items are skipped (default %(default)s)",
    )  # fmt: skip
    sub.add_argument("--overwrite", action="store_true", help="remove the shards of that name and begin again")
    return sub


def _add_video_options(sub, what: str) -> None:
    sub.add_argument("--gop", default=12, type=positive, help="frames between key frames (default %(default)s)")
    sub.add_argument("--crf", default=18, type=crf, help="x264 quality, 0 (best) to 51 (default %(default)s)")
    sub.add_argument("--min-frames", default=8, type=positive, help=f"skip {what} with fewer frames (default %(default)s)")


def _add_videos(kinds) -> None:
    sub = _subcommand(
        kinds, "videos", "videos", "clips", 64, "videos; a folder, glob, file, CSV or manifest of scenes",
        "SRC is a folder (searched through), a glob in quotes, a file, or a list:\n"
        "  CSV without header: 'path label' per line, separated by the last space or by '::', the label an integer\n"
        "  manifest of scenes: JSON lines with path, start, end (seconds) and, if any, label; or a CSV with that header",
    )  # fmt: skip
    _add_video_options(sub, "videos and scenes")
    sub.set_defaults(
        plan=lambda args: (
            manifest.list_videos(args.sources),
            VideoSpec(size=args.size, gop=args.gop, crf=args.crf, min_frames=args.min_frames),
        )
    )


def _add_images(kinds) -> None:
    sub = _subcommand(
        kinds, "images", "images", "images", 1024, "images; a folder, glob, file, CSV or tar",
        "SRC is a folder (searched through, tars in it too), a glob in quotes, a file, a plain .tar, or a CSV\n"
        "without header: 'path label' per line. A tar may hold tars, as ImageNet's does.",
    )  # fmt: skip
    sub.set_defaults(plan=lambda args: (tars.list_images(args.sources), ImageSpec(size=args.size)))


def _add_robot_options(sub) -> None:
    _add_video_options(sub, "trajectories")
    sub.add_argument(
        "--max-turn", default=10.0, type=positive_float,
        help="skip trajectories whose end effector turns faster, rad/s: their angles are in another order or unit "
        "(default %(default)s)",
    )  # fmt: skip


def _video_settings(args) -> dict:
    return {"size": args.size, "gop": args.gop, "crf": args.crf, "min_frames": args.min_frames, "max_turn": args.max_turn}


def _add_droid(kinds) -> None:
    sub = _subcommand(
        kinds, "droid", "trajectories", "droid", 32, "robot trajectories of the raw DROID release; its folder",
        "SRC is a folder (searched for trajectory.h5) or a list of trajectory folders, one a line (the official index).\n"
        "The mp4 headers of DROID may state 60 frames/s although frames were recorded at 15 Hz. --rate says which of\n"
        "them sampling counts with: 'header' (the official rule, which the released weights were trained by), 'true'\n"
        "(measured from the time stamps), or a number of Hz. Where the two differ the report says so.",
    )  # fmt: skip
    _add_robot_options(sub)
    sub.add_argument(
        "--views", default=("left",), type=views(droid.VIEWS), metavar="NAME,...",
        help=f"cameras to keep, of {', '.join(droid.VIEWS)} (default left)",
    )  # fmt: skip
    sub.add_argument("--rate", default="header", type=rate, metavar="header|true|HZ", help="see above (default header)")
    sub.add_argument(
        "--row-tolerance", default=0, type=count,
        help="cut rows and frames to the shorter where their numbers differ by no more (default %(default)s)",
    )  # fmt: skip
    sub.set_defaults(
        plan=lambda args: (
            droid.list_droid(args.sources),
            droid.DroidSpec(**_video_settings(args), views=args.views, rate=args.rate, row_tolerance=args.row_tolerance),
        )
    )
