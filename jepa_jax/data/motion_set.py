"""Make a labelled set of moving pictures: `python -m jepa_jax.data.motion_set --output shards/motion`."""

from __future__ import annotations

import argparse
import glob
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import tqdm

from jepa_jax.commandline import interrupt, types
from jepa_jax.commandline.stdout import write_lines
from jepa_jax.data import remote, shards
from jepa_jax.data.claims import ShardError, ShardPlan
from jepa_jax.data.errors import DataError
from jepa_jax.data.listing import ListError
from jepa_jax.data.publish import check_folder, new_file
from jepa_jax.data.records import ShardSource
from jepa_jax.data.sources import pictures
from jepa_jax.data.sources.moving import DIRECTIONS, LABELS, SPEEDS, Draw, MovingSpec, draw_clip, plan_clips
from jepa_jax.data.workers import usable_cores

_EXAMPLES = f"""examples:
  python -m jepa_jax.data.motion_set --output shards/motion
  python -m jepa_jax.data.motion_set --output data/motion --lists
  python -m jepa_jax.data.motion_set --output shards/clean --clutter 0 --clips 2400 --test-clips 480
  python -m jepa_jax.data.motion_set --output shards/mine --images mine.npz --backgrounds '/data/videos/*.mp4' --size 128

Handwritten digits move over real video and behind obstacles in one of {len(DIRECTIONS)} directions at one of {len(SPEEDS)} speeds. Training and
test clips share no digit and no background frame. A single frame tells neither direction nor speed. What is needed:
  {pictures.INSTALL}
(wheels of 1.4 and 2.3 MB, BSD-3-Clause; only their data are read). DIR/train and DIR/test are shards for pretraining and
probes, whose label is the one of --label; --lists adds mp4 files and a list `path label` for every kind of label.
Run the same command again to finish a run that was stopped."""
_SHEET_FRAMES = 8
_WRITERS = 16


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments without the program's name; those of the process if None.

    Returns:
        Exit status: 0; 1 when clips are missing; 2 when the arguments or the folder are unusable; 130 when stopped.
    """
    args = _parser().parse_args(argv)
    spec = MovingSpec(
        size=args.size, crf=args.crf, frames=args.frames, fps=args.fps, label=args.label, images=args.images,
        backgrounds=args.backgrounds, clutter=args.clutter,
    )  # fmt: skip
    begun = time.monotonic()
    lines, missing = [], 0
    try:
        check_folder(args.output)
        # Before anything is written, and in one place: what is wrong here is wrong for every clip.
        images = pictures.read_pictures(args.images)
        for split in pictures.SPLITS:
            pictures.read_backgrounds(args.backgrounds, split, 2 * args.size)
        for split, count in zip(pictures.SPLITS, (args.clips, args.test_clips), strict=True):
            draws = plan_clips(images, split, args.seed, count)
            plan = ShardPlan(remote.join(args.output, split), "motion", args.per_shard, spec)
            counts = _write(draws, plan, args)
            missing += len(counts.skips)
            lines += _describe(split, draws, counts, images)
            lines += [f"  not drawn: {name}: {message}" for name, _, message in counts.skips[:3]]
            if args.lists:
                lines.append(_write_lists(draws, plan, args.output))
        lines.append(f"picture: {_draw_sheet(draws, spec, args.output)}; {time.monotonic() - begun:.0f} s in all")
    except (ShardError, remote.UrlError, DataError, ListError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        return interrupt.stop(interrupt.SHARDS_KEPT)
    write_lines(lines)
    return int(missing > 0)


def _write(draws: Sequence[Draw], plan: ShardPlan, args: argparse.Namespace) -> shards.ShardReport:
    name = draws[0].split
    with tqdm.tqdm(total=len(draws), desc=name, unit=" clips", dynamic_ncols=True, smoothing=0.05) as bar:
        return shards.write_shards(
            draws, plan, workers=args.workers, overwrite=args.overwrite, on_item=lambda count, _: bar.update(count)
        )


def _describe(split: str, draws: Sequence[Draw], counts: shards.ShardReport, images: pictures.Pictures) -> list[str]:
    spread = []
    for kind, number in zip(LABELS, (images.num_classes, len(DIRECTIONS), len(SPEEDS)), strict=True):
        found = np.bincount([draw.value(kind) for draw in draws], minlength=number)
        spread.append(f"{number} x {found.min()}" + (f"-{found.max()}" if np.ptp(found) else "") + f" by {kind}")
    different = len({draw.picture for draw in draws})
    return [
        f"{split}: {counts.written} clips of {different} pictures, {counts.seconds / 60:.1f} minutes, {counts.bytes / 1e6:.1f} MB; "
        + ", ".join(spread)
    ]


def _write_lists(draws: Sequence[Draw], plan: ShardPlan, output: str) -> str:
    """Write every clip as a file and a list of them per kind of label; files that are there are kept."""
    folder = remote.absolute(output)
    split = draws[0].split
    by_name = {draw.name: draw for draw in draws}
    source = ShardSource([os.path.join(glob.escape(plan.folder), f"{plan.name}-*")])

    def store(index: int) -> tuple[str, Draw]:
        record = source[index]
        draw = by_name[record.source_id]
        path = remote.join(folder, f"clips/{split}/{draw.number:06d}.mp4")
        if remote.size(path) != len(record.data):
            with new_file(path) as partial, open(partial, "wb") as file:
                file.write(record.data)
        return path, draw

    # Every file is waited for until it is on the disk.
    with ThreadPoolExecutor(_WRITERS) as pool:
        stored = pool.map(store, range(len(source)))
        entries = list(tqdm.tqdm(stored, total=len(source), desc=f"{split} files", unit=" files", dynamic_ncols=True))
    for kind in LABELS:
        with new_file(remote.join(folder, f"{split}_{kind}.csv")) as partial, open(partial, "w", encoding="utf-8") as file:
            file.writelines(f"{path} {draw.value(kind)}\n" for path, draw in entries)
    return f"  lists: {', '.join(f'{split}_{kind}.csv' for kind in LABELS)} in {folder}"


def _draw_sheet(draws: Sequence[Draw], spec: MovingSpec, output: str) -> str:
    """Draw a clip of every direction, a row each, and return the picture's name."""
    rows = []
    for direction in range(len(DIRECTIONS)):
        draw = next((draw for draw in draws if draw.direction == direction), None)
        if draw is not None:
            frames = draw_clip(draw, spec)[np.linspace(0, spec.frames - 1, _SHEET_FRAMES).astype(int)]
            rows.append(np.concatenate([np.pad(frame, ((2, 2), (2, 2), (0, 0)), constant_values=255) for frame in frames], 1))
    sheet = cv2.cvtColor(np.concatenate(rows), cv2.COLOR_RGB2BGR)
    path = remote.join(output, "motion.png")
    factor = max(1, round(128 / spec.size))
    with new_file(path) as partial, open(partial, "wb") as file:
        large = cv2.resize(sheet, None, fx=factor, fy=factor, interpolation=cv2.INTER_NEAREST)
        file.write(cv2.imencode(".png", large)[1].tobytes())
    return path


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m jepa_jax.data.motion_set", description="Make a labelled video set: class x direction x speed of moving digits.",
        epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    arg = parser.add_argument
    arg("--output", required=True, metavar="DIR", help="folder; gets train/ and test/")
    arg("--clips", default=9600, type=types.positive, metavar="N", help="for training; multiples of 240 are balanced (default %(default)s)")
    arg("--test-clips", default=2400, type=types.positive, metavar="N", help="default %(default)s")
    arg("--label", default=MovingSpec.label, choices=LABELS, help="which label the shards carry (default %(default)s)")
    arg("--lists", action="store_true", help="write mp4 files and train_class.csv, test_class.csv, … as well")
    arg("--size", default=MovingSpec.size, type=types.even, help="side of the frames, pixels, even (default %(default)s)")
    arg("--frames", default=MovingSpec.frames, type=types.positive, metavar="N", help="per clip (default %(default)s)")
    arg("--fps", default=MovingSpec.fps, type=types.positive_float, help="frames per second (default %(default)s)")
    arg("--clutter", default=MovingSpec.clutter, type=types.fraction,
        help="1 for backgrounds and obstacles, 0 for neither, or between (default %(default)s)")  # fmt: skip
    arg("--images", default=pictures.DIGITS, metavar="FILE",
        help="a .npz with uint8 images [N, H, W], 0 for no ink, and integer labels [N] (default: the digits in %(default)s)")  # fmt: skip
    arg("--backgrounds", default=pictures.CLIPS, metavar="GLOB",
        help=f"videos, of which up to 16 serve, or {pictures.PROCEDURAL} for drifting noise (default: the clips in %(default)s)")  # fmt: skip
    arg("--seed", default=0, type=types.count, help="default %(default)s")
    arg("--crf", default=MovingSpec.crf, type=types.crf, help="x264 quality, 0 (best) to 51 (default %(default)s)")
    arg("--per-shard", default=480, type=types.positive, metavar="N", help="clips per shard (default %(default)s)")
    arg("--workers", default=usable_cores(), type=types.count, help="processes; 0 for none (default: one per core)")
    arg("--overwrite", action="store_true", help="remove the shards of that name and begin again")
    return parser


if __name__ == "__main__":
    sys.exit(main())
