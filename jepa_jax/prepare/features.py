"""`prepare features`: encode the frames of trajectory shards once, so that training reads features instead."""

from __future__ import annotations

import argparse
import functools
import os
import shutil
import sys
from collections.abc import Sequence

import tqdm

from jepa_jax.commandline import types
from jepa_jax.commandline.stdout import write_lines
from jepa_jax.data import publish, remote, shards, trajectory_frames
from jepa_jax.data.errors import DataError, RecordError
from jepa_jax.data.trajectory_frames import ALL_FRAMES, Estimate, FrameSpec
from jepa_jax.data.workers import usable_cores
from jepa_jax.prepare import report

_DETAIL = """SRC are shards of robot trajectories, as `prepare droid`, `lerobot` and `rlds` make them. Their states,
actions and camera poses are kept whole; each video is replaced by the encoder's tokens of some frames, every
frame encoded by itself, in bfloat16. Then train on the new shards, with or without the encoder:
  python -m jepa_jax.train --config=configs/world_model.py:droid_vitg --config.data.paths="('DIR',)" ...
--size, --crop-aspect and --fps must be those of the config (data.size, data.crop_aspect, data.fps). Of a
trajectory rows 0, step, 2 step, ... are stored, so training windows start at these; --phases 4 lets them start
at four times as many rows for four times the bytes, --all-frames at every row.
Finished shards are kept when the command is stopped; run it again to go on. SRC and DIR may be URLs."""
_UNITS = "trajectories"
# What a training sample of the released recipe holds; reports count bytes by it.
_CLIP_FRAMES = 8
# One decoded trajectory may have a hundred megabytes.
_AHEAD = 2


def add(kinds) -> None:
    """Add the subcommand, which sets `run`."""
    sub = kinds.add_parser(
        "features", help="make shards of an encoder's features from shards of robot trajectories", description=_DETAIL,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    arg = sub.add_argument
    arg("sources", nargs="+", metavar="SRC", help="shards of trajectories: their folder, a glob, files, or URLs")
    arg("--model", required=True, metavar="PATH", help="encoder: any weights that `embed` takes")
    arg("--output", required=True, metavar="DIR", help="folder for the shards, or a URL")
    arg("--name", default="features", type=types.shard_set_name,
        help="first part of the shards' names (default %(default)s)")  # fmt: skip
    arg("--size", type=types.positive, default=256, help="side of the crops, pixels (default %(default)s)")
    arg("--crop-aspect", nargs=2, type=types.positive_float, default=(0.75, 1.35), metavar=("LOW", "HIGH"),
        help="width/height of the centered crop lies between (default 0.75 1.35)")  # fmt: skip
    arg("--fps", type=types.positive_float, default=4.0, help="frames per second (default %(default)g)")
    phases = sub.add_mutually_exclusive_group()
    phases.add_argument("--phases", type=types.positive, default=1, metavar="N",
                        help="first rows of windows within a step (default 1)")  # fmt: skip
    phases.add_argument("--all-frames", dest="phases", action="store_const", const=ALL_FRAMES, help="store every row")
    arg("--views", default=(), type=types.names(), metavar="NAME,...", help="cameras to keep (default all)")
    arg("--dtype", choices=("float32", "bfloat16"),
        help="the encoder computes in (default: bfloat16, float32 on a CPU); stored is always bfloat16")  # fmt: skip
    arg("--batch", type=types.positive, default=32, help="frames encoded together (default %(default)s)")
    arg("--workers", type=types.count, default=usable_cores(),
        help="processes that decode; 0 for none (default: one per core)")  # fmt: skip
    arg("--per-shard", type=types.positive, default=16, help="trajectories per shard (default %(default)s)")
    arg("--max-skip-fraction", default=0.1, type=types.fraction,
        help="exit with status 1 when more of the trajectories are skipped (default %(default)s)")  # fmt: skip
    arg("--dry-run", action="store_true", help="say how much would be written, and stop")
    arg("--overwrite", action="store_true", help="remove the shards of that name and begin again")
    sub.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Encode.

    Returns:
        Exit status: 0; 1 when nothing was written or too much was skipped; 2 when arguments, shards,
        weights or the folder are unusable.

    Raises:
        ShardError, DataError, UrlError, OSError: as in `shards.write_shards`.
    """
    # Here, so that the other subcommands and their worker processes start without JAX.
    from jepa_jax.features.spread import SpreadModel
    from jepa_jax.features.trajectories import EncodingError
    from jepa_jax.training.checkpoint import CheckpointError
    from jepa_jax.weights.bundle import WeightsError
    from jepa_jax.weights.load import load

    try:
        publish.check_folder(args.output)
        items = trajectory_frames.list_trajectories(args.sources)
        if not items:
            raise DataError("no trajectories", f"{', '.join(args.sources)}: the shards hold no records")
        model = SpreadModel(*load(args.model, networks=("encoder",), dtype=args.dtype, verify=True))
        spec = _make_spec(args, model)
        expected = trajectory_frames.estimate(items, spec)
        write_lines(_expected_lines(expected, items, spec, args))
        return 0 if args.dry_run else _encode(args, items, model, spec, expected)
    except (WeightsError, CheckpointError, RecordError, EncodingError, ValueError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2


def _make_spec(args: argparse.Namespace, model) -> FrameSpec:
    low, high = args.crop_aspect
    if low > high:
        raise ValueError(f"--crop-aspect {low:g} {high:g}: the first number must not be above the second")
    return FrameSpec(
        encoder_sha256=model.sha256, compute_dtype=model.dtype, grid=model.frame_grid(args.size), width=model.width,
        size=args.size, aspect=(low, high), fps=args.fps, phases=args.phases, views=args.views,
    )  # fmt: skip


def _encode(args: argparse.Namespace, items: Sequence, model, spec: FrameSpec, expected: Estimate) -> int:
    from jepa_jax.features.trajectories import Meter, encode_trajectories, warm_up

    batch = -(-args.batch // model.devices) * model.devices
    plan = shards.ShardPlan(args.output, args.name, args.per_shard, spec, divided=True)
    seconds = warm_up(model, spec, batch)
    meter = Meter()
    with tqdm.tqdm(total=len(items), unit=f" {_UNITS}", dynamic_ncols=True, smoothing=0.05) as bar:
        skipped = 0

        def on_item(count: int, skips: int) -> None:
            nonlocal skipped
            skipped += skips
            if meter.frames:
                rates = meter.rates()
                bar.set_postfix_str(
                    f"{rates['frames_per_s']:.0f} frames/s, waiting {rates['wait_share']:.0%}, {skipped} skipped",
                    refresh=False,
                )
            bar.update(count)

        counts = shards.write_shards(
            items, plan, workers=args.workers, overwrite=args.overwrite, on_item=on_item, ahead=_AHEAD,
            finish=functools.partial(encode_trajectories, model, spec=spec, batch=batch, meter=meter),
        )  # fmt: skip
    measured = _measure(counts, spec, meter) | {"model": args.model, "batch": batch, "compile_s": seconds}
    lines, status = report.finish(counts, plan, _UNITS, args.max_skip_fraction, measured)
    write_lines(lines[:1] + _measured_lines(measured, spec) + lines[1:])
    return status


def _measure(counts: shards.ShardReport, spec: FrameSpec, meter) -> dict:
    """Return what the JSON report says of features; rates are of this run."""
    return {
        "frames": counts.features,
        "encoder_sha256": spec.encoder_sha256,
        "feature_bytes": counts.features * spec.frame_bytes,
        "bytes_per_clip": _CLIP_FRAMES * spec.frame_bytes,
        "clip_frames": _CLIP_FRAMES,
        "this_run": {"frames": meter.frames} | (meter.rates() if meter.frames else {}),
    }


def _expected_lines(expected: Estimate, items: Sequence, spec: FrameSpec, args: argparse.Namespace) -> list[str]:
    exact = "" if expected.looked_at == len(items) else f", by {expected.looked_at} of them"
    lines = [
        f"{len(items)} trajectories{exact}: {expected.frames} frames, {_size(expected.num_bytes)} of {spec.origin}; "
        f"{_size(_CLIP_FRAMES * spec.frame_bytes)} per clip of {_CLIP_FRAMES} frames"
    ]
    if not remote.is_remote(args.output):
        free = shutil.disk_usage(_existing(args.output)).free
        lines.append(f"free in {args.output}: {_size(free)}")
        if free < expected.num_bytes:
            lines.append("note: that is less than needed, unless an earlier run has written a part of it")
    return lines


def _measured_lines(measured: dict, spec: FrameSpec) -> list[str]:
    lines = [f"{measured['frames']} frames as {spec.origin}: {_size(measured['feature_bytes'])}"]
    lines.append(f"training reads {_size(measured['bytes_per_clip'])} of them for each clip of {_CLIP_FRAMES} frames")
    rates = measured["this_run"]
    if rates["frames"]:
        lines.append(
            f"this run: {rates['frames']} frames at {rates['frames_per_s']:.1f} frames/s, {rates['wait_share']:.0%} of "
            "the time waiting for decoded frames"
        )
    return lines


def _existing(path: str) -> str:
    """Return the folder that a path is in or will be in."""
    path = os.path.abspath(path)
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return path


def _size(num_bytes: float) -> str:
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if num_bytes >= scale:
            return f"{num_bytes / scale:.3g} {unit}"
    return f"{num_bytes / 1e3:.3g} kB"
