"""The arguments of `prepare`: one subcommand for each kind of source."""

from __future__ import annotations

import argparse
import dataclasses
import os

from jepa_jax.commandline.parsing import Parser
from jepa_jax.commandline.types import (
    assignment,
    count,
    crf,
    fraction,
    names,
    non_negative_float,
    pair,
    positive,
    positive_float,
    rate,
    shard_set_name,
)
from jepa_jax.data import claims, manifest, publish, remote, tars
from jepa_jax.data.sources import droid, examples, lerobot, rlds, tfds
from jepa_jax.data.transcode import ImageSpec, VideoSpec
from jepa_jax.data.workers import usable_cores
from jepa_jax.prepare import curate, features

_EXAMPLES = """examples:
  python -m jepa_jax.prepare videos ~/videos --output data/mine
  python -m jepa_jax.prepare videos '/ssv2/*.webm' --output data/ssv2 --size 256 --workers 16
  python -m jepa_jax.prepare videos k400_train.csv --output data/k400 --per-shard 512
  python -m jepa_jax.prepare videos scenes.jsonl --output data/scenes
  python -m jepa_jax.prepare images ~/photos imagenet.tar --output data/photos
  python -m jepa_jax.prepare droid ~/droid_raw --output data/droid --views left,right
  python -m jepa_jax.prepare videos gs://mine/videos --output s3://other/shards
SRC and DIR may be URLs (gs:// and s3:// need the extras gcs and s3); a remote DIR needs room on this
host for one shard, in $TMPDIR. Run the same command again to finish a run that was stopped."""


def parser() -> argparse.ArgumentParser:
    """Build the parser; each subcommand sets `plan(args) -> (items, spec)` and `units`, or `run(args) -> status`."""
    top = Parser(
        prog="python -m jepa_jax.prepare",
        description="Turn videos, images or robot trajectories into shards for training.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = top.add_subparsers(dest="kind", required=True)
    for add in (_add_videos, _add_images, _add_droid, _add_lerobot, _add_rlds, _add_tfds, features.add, curate.add):
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
    sub.add_argument("--output", required=True, metavar="DIR", help="folder for the shards, or a URL")
    sub.add_argument(
        "--name", default=name, type=shard_set_name, help=f"first part of the shards' names (default {name})"
    )
    sub.add_argument("--size", default=256, type=positive, help="short side, pixels; never enlarged (default 256)")
    sub.add_argument("--per-shard", default=per_shard, type=positive, help="items per shard (default %(default)s)")
    sub.add_argument(
        "--workers", default=usable_cores(), type=count, help="processes; 0 for none (default: one per usable core)"
    )
    sub.add_argument(
        "--beam", action="store_true",
        help="run as an Apache Beam pipeline; SRC and DIR must be URLs or the same on all workers; --workers is unused",
    )  # fmt: skip
    sub.add_argument(
        "--beam-options", default="", metavar="'OPTION ...'",
        help="options of that pipeline, after an equals sign: --beam-options='--runner=FlinkRunner --parallelism=64'",
    )  # fmt: skip
    sub.add_argument(
        "--max-skip-fraction", default=0.1, type=fraction,
        help="exit with status 1 when more of the items are skipped (default %(default)s)",
    )  # fmt: skip
    sub.add_argument(
        "--overwrite", action="store_true",
        help="replace the shards of that name; stopped, the same command goes on with replacing them",
    )  # fmt: skip
    return sub


def _add_video_options(sub, what: str) -> None:
    sub.add_argument("--gop", default=12, type=positive, help="frames between key frames (default %(default)s)")
    sub.add_argument("--crf", default=18, type=crf, help="x264 quality, 0 (best) to 51 (default %(default)s)")
    sub.add_argument(
        "--min-frames", default=8, type=positive, help=f"skip {what} with fewer frames (default %(default)s)"
    )


def _add_videos(kinds) -> None:
    sub = _subcommand(
        kinds, "videos", "videos", "clips", 64, "videos; a folder, glob, file, CSV or manifest of scenes",
        "SRC is a folder (searched through), a glob in quotes, a file, or a list:\n"
        "  CSV without header: 'path label' per line, separated by the last space or by '::', the label an integer\n"
        "  manifest of scenes: JSON lines with path, start, end (seconds; Infinity for that of the video) and perhaps\n"
        "  label; or a CSV with that header\n"
        "Lists are held in memory, about 0.5 kB a line.",
    )  # fmt: skip
    _add_video_options(sub, "videos and scenes")
    sub.add_argument(
        "--max-seconds", default=60.0, type=non_negative_float,
        help="store longer videos and scenes as consecutive records PATH#t=START,END of about this length, since "
        "each clip is read with its whole record; 0 for never (default %(default)g)",
    )  # fmt: skip
    sub.set_defaults(
        plan=lambda args: (
            manifest.list_videos(args.sources),
            VideoSpec(
                size=args.size, gop=args.gop, crf=args.crf, min_frames=args.min_frames, max_seconds=args.max_seconds
            ),
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
        help="skip trajectories whose end effector turns faster, rad/s (default %(default)s): that finds damage, "
        "rotation vectors, quaternions and large angles in degrees, but neither angles in reverse order, which turn as "
        "smoothly (a note says where the third one behaves like a roll), nor small ones in degrees",
    )  # fmt: skip
    sub.add_argument(
        "--max-gap", default=1.0, type=positive_float,
        help="skip trajectories with more seconds between two rows by their time stamps, where there are any; shorter "
        "gaps are noted (default %(default)g)",
    )  # fmt: skip


def _video_settings(args) -> dict:
    return {
        "size": args.size,
        "gop": args.gop,
        "crf": args.crf,
        "min_frames": args.min_frames,
        "max_turn": args.max_turn,
        "max_gap": args.max_gap,
    }


def _add_droid(kinds) -> None:
    sub = _subcommand(
        kinds, "droid", "trajectories", "droid", 32, "robot trajectories of the raw DROID release; its folder",
        "SRC is a folder (searched for trajectory.h5) or a list of such folders, one a line (the official index).\n"
        "The mp4 headers of DROID may state 60 frames/s although frames were recorded at 15 Hz. --rate says which of\n"
        "them sampling counts with: 'header' (the official rule, which the released weights were trained by), 'true'\n"
        "(measured from the time stamps), or a number of Hz. Where the two differ the report says so. Views whose\n"
        "headers differ are refused under 'header'. Folders found are written to DIR/droid-index.txt, which may be\n"
        "given as SRC: it spares the search of another run.",
    )  # fmt: skip
    _add_robot_options(sub)
    sub.add_argument(
        "--views", default=("left",), type=names(droid.VIEWS), metavar="NAME,...",
        help=f"cameras to keep, of {', '.join(droid.VIEWS)} (default left)",
    )  # fmt: skip
    sub.add_argument("--rate", default="header", type=rate, metavar="header|true|HZ", help="see above (default header)")
    sub.add_argument(
        "--row-tolerance", default=2, type=count,
        help="accept so many rows beyond the last frame, and (unless 0) one frame beyond the last row; the surplus is "
        "cut off and counted (default %(default)s: many videos of the release lack their last frame)",
    )  # fmt: skip
    sub.set_defaults(
        plan=lambda args: (
            _list_droid(args),
            droid.DroidSpec(
                **_video_settings(args), views=args.views, rate=args.rate, row_tolerance=args.row_tolerance
            ),
        )
    )


def _list_droid(args):
    """List trajectories, and keep the list beside the shards when these are begun."""
    items = droid.list_droid(args.sources)
    path = os.path.join(args.output, "droid-index.txt")
    if args.overwrite or not remote.is_file(path):
        text = droid.index_text(items, absolute=remote.is_remote(args.output))
        with claims.writing(path), publish.new_file(path) as partial, open(partial, "wb") as file:
            file.write(text.encode(errors="backslashreplace"))
    return items


def _add_state_options(sub) -> None:
    sub.add_argument(
        "--rotation", default="none", choices=("none", "xyz-euler"),
        help="xyz-euler: the state is x y z (m), three extrinsic xyz angles (rad), and what else there is; "
        "none: joints or anything else (default none)",
    )  # fmt: skip
    sub.add_argument(
        "--gripper-range", type=pair, metavar="OPEN,CLOSED",
        help="the gripper's value when fully open and fully closed: numbers of the state named 'gripper' (or the "
        "seventh of a pose) are rescaled to 0 and 1, so that robots can be mixed; without it they stay as recorded, as recorded "
        "actions always do",
    )  # fmt: skip


def _add_lerobot(kinds) -> None:
    sub = _subcommand(
        kinds, "lerobot", "trajectories", "lerobot", 32, "robot trajectories of LeRobot data sets; their folders",
        "SRC is a LeRobot data set, version 2.0, 2.1 or 3.x (meta/info.json), or a folder above several.\n"
        "Recorded actions are stored as they are. Training derives actions from the states unless the robot of its\n"
        "config says source='recorded'; in most data sets (ALOHA, SO-100) they are the joints to arrive at, not changes,\n"
        "so that it then has to say mode='absolute' too.",
    )  # fmt: skip
    _add_robot_options(sub)
    sub.add_argument(
        "--views", default=(), type=names(), metavar="NAME,...",
        help="cameras to keep (default all but depth); training draws one of those that are there for every clip",
    )
    sub.add_argument(
        "--state", default=("observation.state",), type=names(), metavar="COLUMN,...",
        help="columns that make up the state (default observation.state)",
    )  # fmt: skip
    sub.add_argument("--action", default="action", metavar="COLUMN", help="column of recorded actions; '' for none")
    _add_state_options(sub)
    sub.set_defaults(
        plan=lambda args: (
            lerobot.list_lerobot(args.sources, args.views),
            lerobot.LeRobotSpec(
                **_video_settings(args), views=args.views, state=args.state, action=args.action,
                rotation=args.rotation.replace("-", " "), gripper_range=args.gripper_range,
            ),
        )
    )  # fmt: skip


def _add_rlds(kinds) -> None:
    sub = _subcommand(
        kinds, "rlds", "trajectories", "rlds", 32, "robot episodes as RLDS (DROID, Open X-Embodiment); their folder",
        "SRC is a folder (searched for *.tfrecord* and *.array_record* of --split), a glob in quotes or a file; of\n"
        "several versions of one data set name one. --preset says\n"
        "which features mean what; the other options change it. Names of features are\n"
        "those in features.json, without 'steps/'.",
    )  # fmt: skip
    _add_robot_options(sub)
    sub.add_argument(
        "--split", default="train", help="part of data sets in folders, as file names state it; 'all' (default train)"
    )
    sub.add_argument("--preset", default="none", choices=sorted(rlds.PRESETS), help="features of a known data set")
    sub.add_argument(
        "--views", type=names(), metavar="NAME,...", help="keep these of the preset's cameras (default all)"
    )
    sub.add_argument(
        "--view",
        action="append",
        type=assignment,
        metavar="NAME=FEATURE",
        help="a camera; again for each, for all of them",
    )
    sub.add_argument("--state", type=names(), metavar="FEATURE,...", help="features that make up the state")
    sub.add_argument("--action", metavar="FEATURE", help="feature of recorded actions; '' for none")
    sub.add_argument(
        "--instruction", type=names(), metavar="FEATURE,...", help="the task in words; the first one counts"
    )
    sub.add_argument("--rate", type=positive_float, metavar="HZ", help="steps per second, which RLDS does not store")
    _add_state_options(sub)
    sub.set_defaults(rotation=None, plan=_plan_rlds)


def _plan_rlds(args):
    fields = rlds.PRESETS[args.preset]
    if args.views:
        fields = rlds.with_views(fields, args.views)
    given = {
        "views": tuple(args.view) if args.view else None, "state": args.state, "action": args.action,
        "instruction": args.instruction, "rate": args.rate, "gripper_range": args.gripper_range,
        "rotation": args.rotation and args.rotation.replace("-", " "),
    }  # fmt: skip
    fields = dataclasses.replace(fields, **{key: value for key, value in given.items() if value is not None})
    # The settings first: they are quicker to judge than a folder.
    spec = rlds.RldsSpec(**_video_settings(args), fields=fields)
    return examples.list_examples(args.sources, args.split), spec


def _add_tfds(kinds) -> None:
    sub = _subcommand(
        kinds, "tfds", "examples", "tfds", 1024, "images or videos of TensorFlow Datasets; their folders",
        "SRC is the folder of one version of a prepared data set (features.json), as ArrayRecord or TFRecord.",
    )  # fmt: skip
    _add_video_options(sub, "videos")
    sub.add_argument("--split", default="train", help="part of the data set, or 'all' (default train)")
    sub.add_argument("--picture", metavar="FEATURE", help="the image or video (default: the only one)")
    sub.add_argument(
        "--label", metavar="FEATURE", help="the label; '' for none (default: the only one, if there is one)"
    )
    sub.add_argument("--rate", default=0.0, type=positive_float, metavar="HZ", help="frames per second of videos")
    sub.set_defaults(plan=_plan_tfds)


def _plan_tfds(args):
    fields = tfds.read_fields(args.sources, args.picture, args.label)
    settings = {"size": args.size, "gop": args.gop, "crf": args.crf, "min_frames": args.min_frames}
    spec = tfds.TfdsSpec(**settings, fields=fields, rate=args.rate if fields.video else 0.0)
    return tfds.list_tfds(args.sources, args.split), spec
