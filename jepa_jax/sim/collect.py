"""Collect trajectories of a simulated robot: `python -m jepa_jax.sim.collect --output shards/tabletop`."""

from __future__ import annotations

import argparse
import glob
import os
import sys
import time

import jax
import tqdm

from jepa_jax.commandline import interrupt, types
from jepa_jax.commandline.skipped import list_reasons
from jepa_jax.commandline.stdout import write_lines
from jepa_jax.data import remote, shards
from jepa_jax.data.claims import ShardError
from jepa_jax.data.errors import DataError
from jepa_jax.data.publish import check_folder, write_json
from jepa_jax.data.records import ShardSource
from jepa_jax.data.workers import usable_cores
from jepa_jax.sim.cameras import CAMERAS
from jepa_jax.sim.episodes import (
    PANDA,
    SPECS,
    SPLITS,
    TABLETOP,
    WORLDS,
    Draw,
    EpisodeSpec,
    phase_shares,
)
from jepa_jax.sim.nuisance import Nuisance
from jepa_jax.sim.panda.installed import MissingSimulatorError, check_installed
from jepa_jax.sim.world import CONTROL_RATE

_EXAMPLES = """examples:
  python -m jepa_jax.sim.collect --output shards/tabletop
  python -m jepa_jax.sim.collect --output shards/heldout --split test --episodes 200
  python -m jepa_jax.sim.collect --output shards/clean --nuisance 0 --camera front,left --size 128
  python -m jepa_jax.sim.collect --output shards/lamps --nuisance light=1,camera=0.5
  python -m jepa_jax.sim.collect --world panda --output shards/panda --size 128 --camera front,wrist --processes 8

Scripted and noisy policies reach, grasp, carry and place a box and a cup, or move freely, at 4 Hz. States, actions,
camera poses and where the objects are come along. Actions are recorded as they were commanded: at the edge of the
workspace, on a table or an object, and with something between the fingers, the arm does less than it was told.
Run the same command again to finish a run that was stopped."""


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments without the program's name; those of the process if None.

    Returns:
        Exit status: 0; 1 if episodes are missing, which the report explains; 2 when the arguments or the folder are unusable; 130 when stopped.
    """
    args = _parser().parse_args(argv)
    # Worker processes would fight over an accelerator; and all machines shall make the same pictures.
    os.environ["JAX_PLATFORMS"] = "cpu"
    jax.config.update("jax_platforms", "cpu")
    spec = SPECS[args.world](
        size=args.size, crf=args.crf, min_frames=1, frames=args.frames, cameras=args.camera, nuisance=args.nuisance
    )
    draws = [Draw(args.split, args.seed, number, args.world) for number in range(args.episodes)]
    plan = shards.ShardPlan(args.output, args.name or args.world, args.per_shard, spec)
    try:
        if args.world == PANDA:
            check_installed()
        check_folder(args.output)
        earlier = 0 if args.overwrite else len(remote.glob(_pattern(plan))) * args.per_shard
        begun = time.monotonic()
        with tqdm.tqdm(total=len(draws), unit=" episodes", dynamic_ncols=True, smoothing=0.05) as bar:
            counts = shards.write_shards(
                draws, plan, workers=args.workers, overwrite=args.overwrite, on_item=lambda count, _: bar.update(count)
            )
        lines = _finish(counts, plan, earlier, time.monotonic() - begun)
        missing = _missing(counts)
    except (ShardError, remote.UrlError, DataError, MissingSimulatorError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        return interrupt.stop(interrupt.SHARDS_KEPT)
    write_lines(lines + missing)
    return 1 if missing else 0


def _missing(counts: shards.ShardReport) -> list[str]:
    """Explain what is missing: a simulator fails for no episode, unless something is wrong with it."""
    if not counts.skips:
        return []
    return [*list_reasons(counts.skips), f"error: {len(counts.skips)} of {counts.items} episodes are missing; first: {counts.skips[0][2]}. Once that is "
            "repaired, --overwrite begins again"]


def _pattern(plan: shards.ShardPlan) -> str:
    return os.path.join(glob.escape(plan.folder), f"{glob.escape(plan.name)}-*.array_record")


def _finish(counts: shards.ShardReport, plan: shards.ShardPlan, earlier: int, seconds: float) -> list[str]:
    """Write the JSON report beside the shards; return it as lines of text."""
    source = ShardSource([_pattern(plan)], kind="trajectory")
    shares = phase_shares(source[index] for index in range(len(source)))
    frames = round(counts.seconds * CONTROL_RATE)
    path = os.path.join(plan.folder, f"{plan.name}-report.json")
    report = {"episodes": counts.written, "skipped": len(counts.skips), "frames": frames, "bytes": counts.bytes, "steps_by_phase": shares}
    write_json(path, report)
    pictures = max(0, counts.written - earlier) * plan.spec.frames * len(plan.spec.cameras)
    return [
        (
            f"{counts.written} episodes in {plan.folder}: {frames} steps, {counts.seconds / 3600:.3g} hours, "
            f"{counts.bytes / 1e6:.1f} MB"
        ),
        "steps: " + ", ".join(f"{name} {share:.0%}" for name, share in shares.items()),
        f"{pictures} frames drawn in {seconds:.0f} s, {pictures / seconds:.0f} frames/s",
        f"report: {path}",
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m jepa_jax.sim.collect", description="Collect trajectories of a simulated robot.",
        epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    arg = parser.add_argument
    arg("--output", required=True, metavar="DIR", help="folder for the shards")
    arg("--world", default=TABLETOP, choices=WORLDS,
        help="tabletop (in JAX, kinematic) or panda (a Franka arm in MuJoCo; extra 'sim') (default %(default)s)")
    arg("--name", type=types.shard_set_name, help="first part of their names (default: the world's)")
    arg("--episodes", default=2000, type=types.positive, metavar="N", help="default %(default)s")
    arg("--frames", default=32, type=types.positive, metavar="N", help="per episode (default %(default)s)")
    arg("--size", default=64, type=types.even, help="side of the frames, pixels, even (default %(default)s)")
    arg("--camera", default=("front",), type=types.names(CAMERAS), metavar="NAME[,NAME...]",
        help=f"of {', '.join(CAMERAS)} (default front)")  # fmt: skip
    arg("--nuisance", default=Nuisance.all(1.0), type=read_nuisance, metavar="X",
        help=f"strength from 0 to 1 (default 1), or KIND=X,... with kinds {', '.join(Nuisance._fields)}")  # fmt: skip
    arg("--seed", default=0, type=types.count, help="default %(default)s")
    arg("--split", default=SPLITS[0], choices=SPLITS,
        help="episodes of one are never in the other, whatever the seeds (default %(default)s)")
    arg("--crf", default=EpisodeSpec.crf, type=types.crf,
        help="x264 quality, 0 (best) to 51 (default %(default)s)")  # fmt: skip
    arg("--per-shard", default=64, type=types.positive, metavar="N", help="episodes per shard (default %(default)s)")
    arg("--workers", "--processes", default=usable_cores(), type=types.count, help="processes; 0 for none (default: one per core)")
    arg("--overwrite", action="store_true", help="remove the shards of that name and begin again")
    return parser


def read_nuisance(text: str) -> Nuisance:
    """Read one strength, or KIND=STRENGTH pairs with commas between them; kinds that are not named have none."""
    try:
        return Nuisance.all(float(text))
    except ValueError as error:
        if "=" not in text:
            raise argparse.ArgumentTypeError(f"{text!r} is no strength from 0 to 1") from error
    pairs = [types.assignment(part) for part in text.split(",")]
    found = dict(pairs)
    if unknown := sorted(set(found) - set(Nuisance._fields)):
        raise argparse.ArgumentTypeError(f"there is no nuisance {', '.join(unknown)}; kinds: {', '.join(Nuisance._fields)}")
    if len(found) < len(pairs):
        raise argparse.ArgumentTypeError(f"{text!r} gives a kind of nuisance twice")
    return Nuisance(**{kind: types.fraction(value) for kind, value in found.items()})


if __name__ == "__main__":
    sys.exit(main())
