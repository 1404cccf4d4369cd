"""Judge trained models on held-out data: `python -m jepa_jax.evaluate rollout SHARDS --model RUN --output DIR`."""

import argparse
import glob
import os
import sys

import jax
import numpy as np
from tqdm import tqdm

from jepa_jax import evaluate_anticipation, evaluate_distance, evaluate_probe, evaluate_robot
from jepa_jax.commandline import interrupt, types
from jepa_jax.commandline.parsing import Parser
from jepa_jax.commandline.skipped import list_reasons, too_many
from jepa_jax.commandline.stdout import write_lines
from jepa_jax.data import DataError, ShardSource
from jepa_jax.data.errors import RecordError
from jepa_jax.data.publish import check_folder, new_file, write_json
from jepa_jax.data.trajectories import KIND
from jepa_jax.evals import comparison, controls, rollout_report, samples
from jepa_jax.evals.readout import Frames, decode_positions
from jepa_jax.evals.rollouts import measure, read_latents
from jepa_jax.robots.presets import PRESETS, make_spec
from jepa_jax.robots.world import bind_model
from jepa_jax.sim.panda.installed import MissingSimulatorError
from jepa_jax.tasks import recordings
from jepa_jax.training.checkpoint import CheckpointError
from jepa_jax.viz import canvas, rollouts
from jepa_jax.weights import store
from jepa_jax.weights.bundle import WeightsError
from jepa_jax.weights.load import load_with_encoder

# Subcommands with a module of their own: name, module, what they tell.
_ELSEWHERE = (
    ("robot", evaluate_robot, "whether policies reach goals in closed loop, in a simulator"),
    ("probe", evaluate_probe, "how well probes classify labelled videos"),
    ("distance", evaluate_distance, "learn how many steps frames are apart, as a planner's energy"),
    ("anticipate", evaluate_anticipation, "how often probes foresee actions"),
)
_EXAMPLES = """examples:
  python -m jepa_jax.evaluate rollout shards/heldout --model runs/ac --output reports/ac
  python -m jepa_jax.evaluate rollout shards/heldout --model runs/ac --output reports/ac --decode --extra box_position
  python -m jepa_jax.evaluate compare 'pretrained=reports/seed*-pretrained.json' 'random=reports/seed*-random.json'
  python -m jepa_jax.evaluate compare 'pretrained=reports/seed*/probe.json' 'random=reports/random-seed*/probe.json'
  python -m jepa_jax.evaluate compare 'pretrained=runs/evidence/seed*/closed_loop-encoder/robot.json'
  python -m jepa_jax.evaluate controls --model runs/encoder --output runs/controls
  python -m jepa_jax.evaluate rollout shards/droid --model vjepa2-ac-vitg.pt --output reports/released --samples 50"""
_ROLLOUT = """Say whether a world model uses actions at all: how far its predictions are from the frames that came,
one step from true frames and in open loop, beside what copying the last frame, the mean action and actions
of other trajectories reach, and what each action number changes. Give trajectories that training has not seen.
DIR gets report.json and report.png. Exit status: 0; 1 if too many trajectories could not be used; 2 if
nothing could be judged."""
_CONTROLS = """Write the frozen encoders that a trained one must beat: DIR/random, the same network newly initialised, and
DIR/patches, which hands on the pixels of every patch. Train a world model on each, as on the trained one."""
_COMPARE = """Put reports of `evaluate rollout`, or of `evaluate probe` (the best probe of each), side by side: a row for each NAME, a column
for each number, and how much better the first is. Of several reports, such as those of several seeds, the lowest and the highest number are shown.
Of `evaluate robot` there is a row for each NAME and policy and a column for each task, over the episodes of all reports of NAME together."""
REPORT, PICTURE = "report.json", "report.png"
_POSITION = "position"
# Steps that are predicted by default, where training clips are as long.
_HORIZON = 8
# Records named in the report; a data set may have thousands that are too short.
_NAMED = 100


def main(argv=None):
    """Run the command line.

    Args:
      argv: arguments without the program's name; those of the process if None.

    Returns:
      Exit status: 0; 1 if too much of the data could not be used; 2 if nothing could be judged; 130 when stopped.
    """
    args = _parser().parse_args(argv)
    try:
        return args.run(args)
    except (CheckpointError, DataError, MissingSimulatorError, RecordError, WeightsError, OSError, ValueError) as error:
        # Foreseen: the message says what to do, and a stack trace would bury it.
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        return interrupt.stop(getattr(args, "stopped", "stopped; no report was written"))


def _rollout(args):
    """Make the rollout report; returns the exit status."""
    check_folder(args.output)
    source = ShardSource(args.shards, KIND)
    record = samples.first_record(source)
    stored = samples.holds_latents(record, args.view)
    networks = ("action_predictor",) if stored and not args.encoder else ("encoder", "action_predictor")
    model, params = load_with_encoder(args.model, args.encoder, networks)
    robot = make_spec({"preset": args.robot}, record) if args.robot else None
    trained = bind_model(model, robot, args.fps)
    if args.view:
        trained = trained._replace(views=args.view)
    world, notes = trained.world, [*model.notes, *trained.notes]
    if args.horizon is None:
        args.horizon = max(1, min(_HORIZON, trained.frames - args.context))
    if args.context + args.horizon > trained.frames:
        notes.append(f"trained on clips of {trained.frames} frames: predictions from more than {trained.frames - 1} are "
                     "beyond what training has seen")
    maker = samples.make_maker(trained, args.shards, args.context + args.horizon, latents=stored)
    with tqdm(total=args.samples, desc="reading", unit=" samples", dynamic_ncols=True) as bar:
        found = samples.read_samples(source, maker, args.samples, seed=args.seed, extras=args.extra, on_sample=bar.update)
    if len(found) < args.samples:
        notes.append(f"{len(found)} samples instead of {args.samples}: the data hold no more different ones")
    notes += _pace_notes(found.step_seconds, trained)
    targets = _positions(found, world.robot, args)
    with tqdm(total=len(found), desc="predicting (compiles first)", unit=" samples", dynamic_ncols=True) as bar:
        measured = measure(world, params, found, context=args.context, batch_size=args.batch, seed=args.seed,
                           keep_latents=bool(targets), on_samples=bar.update)
    decoded = {}
    if targets:
        fit_on = _fitting(trained, params, args) if args.fit else None
        decoded = decode_positions(measured.read, targets, found.trajectory, context=args.context, fit_on=fit_on, seed=args.seed)
    report = rollout_report.summarize(measured, found, world.robot, decoded=decoded, seed=args.seed)
    return _write(report, measured, found, trained, model, notes, args)


def _pace_notes(seconds, trained):
    """Say so if steps of the data last longer or shorter than those of the training, or than each other."""
    notes, middle = [], np.median(seconds)
    if seconds.max() > (1 + recordings.ALIKE) * seconds.min():
        notes.append(f"steps last {seconds.min():.3g} to {seconds.max():.3g} s, as recordings of several rates are sampled at whole rows; the "
                     "middle one is reported")
    if abs(middle / trained.step_seconds - 1) > recordings.ALIKE:
        notes.append(f"a step lasts {middle:.3g} s in these data, {trained.step_seconds:.3g} s in training")
    return notes


def _positions(found, robot, args):
    """Return what is to be read off latents: dict from a name to `[N, F, K]`, m."""
    positions = {name: found.extras[name] for name in args.extra}
    if args.decode:
        positions = {_POSITION: found.arrays["states"][..., _position_part(robot)]} | positions
    return positions


def _fitting(trained, params, args):
    """Read the frames that the readout is fitted on, pairs from as many trajectories as there are; `Frames`."""
    source = ShardSource(args.fit, KIND)
    maker = samples.make_maker(trained, args.fit, 2, latents=samples.holds_latents(samples.first_record(source), args.view))
    with tqdm(total=args.fit_samples, desc="reading to fit", unit=" samples", dynamic_ncols=True) as bar:
        found = samples.read_samples(source, maker, args.fit_samples, seed=args.seed, extras=args.extra,
                                     on_sample=bar.update)
    with tqdm(total=len(found), desc="encoding to fit", unit=" samples", dynamic_ncols=True) as bar:
        latents = read_latents(trained.world, params, found, batch_size=8 * args.batch, on_samples=bar.update)
    flat = lambda values: values.reshape(-1, *values.shape[2:])
    positions = _positions(found, trained.world.robot, args)
    return Frames(flat(latents), {name: flat(values) for name, values in positions.items()}, found.trajectories)


def _write(report, measured, found, trained, model, notes, args):
    """Write report and picture, print the table, and judge how much of the data could be used."""
    frames = found.arrays["video"][measured.example.sample] if "video" in found.arrays else None
    seconds = float(np.median(found.step_seconds))
    figure = rollouts.draw_report(report, measured.example, frames, grid=trained.world.predictor.grid,
                                  context=args.context, step_seconds=seconds, name=_name(args.model))
    paths = [os.path.join(args.output, name) for name in (REPORT, PICTURE)]
    settings = {name: value for name, value in vars(args).items() if name not in ("run", "command")}
    write_json(paths[0], {
        "model": {"sha256": model.sha256 | {"encoder": trained.encoder_sha256}, "provenance": model.provenance,
                  "robot": trained.world.robot.to_json()},
        "settings": settings | {"fps": trained.fps, "step_seconds": seconds, "view": trained.views,
                                "crop": [trained.size, *trained.crop_aspect], "pooled_for_readout": measured.pooled},
        "versions": {"jax": jax.__version__, "backend": jax.default_backend()}, "notes": notes, **report,
        "skips": [dict(zip(("trajectory", "reason", "message"), skip)) for skip in found.skips[:_NAMED]],
    })
    with new_file(paths[1]) as local:
        canvas.save_figure(figure, local)
    lines = [f"{len(found)} samples of {found.trajectories} trajectories, {args.context + args.horizon} frames at {1 / seconds:.3g}/s"]
    lines += list_reasons(found.skips)
    lines += [f"note: {note}" for note in notes]
    lines += ["", *rollout_report.describe(report), "", *(f"wrote {path}" for path in paths)]
    wrong = too_many([message for *_, message in found.skips], len(found.skips) + found.trajectories, args.max_skip_fraction,
                     "trajectories that were looked at")
    write_lines(lines + wrong)
    return 1 if wrong else 0


def _position_part(robot):
    part = robot.part("position")
    if part is None:
        raise ValueError(f"robot {robot.name!r} does not say which of its state's numbers are a position, so --decode has "
                         "nothing to read; leave it out, or give --extra NAME")
    return part.where


def _name(path):
    return os.path.basename(os.path.normpath(path))


def _parser():
    parser = Parser(prog="python -m jepa_jax.evaluate", description="Judge trained models on held-out data.", epilog=_EXAMPLES,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    _add_rollout(commands.add_parser("rollout", help="whether a world model uses actions, and how far it predicts",
                                     description=_ROLLOUT, epilog=_EXAMPLES, formatter_class=parser.formatter_class))
    for name, module, what in _ELSEWHERE:
        module.add_arguments(commands.add_parser(name, help=what, description=module.DESCRIPTION, epilog=module.EXAMPLES,
                                                 formatter_class=parser.formatter_class))
    add = commands.add_parser("compare", help="reports side by side", description=_COMPARE,
                              formatter_class=parser.formatter_class)
    add.set_defaults(run=_compare)
    add.add_argument("reports", nargs="+", type=types.assignment, metavar="NAME=FILE", help="report.json, probe.json or robot.json files; FILE may be a glob, in quotes")
    add = commands.add_parser("controls", help="encoders that have learnt nothing, to compare with", description=_CONTROLS,
                              formatter_class=parser.formatter_class)
    add.set_defaults(run=_controls)
    add.add_argument("--model", required=True, metavar="PATH", help="run or weights with the encoder to compare with")
    add.add_argument("--output", required=True, metavar="DIR", help="folder for the weights, DIR/random and DIR/patches")
    add.add_argument("--seed", type=types.count, default=0, help="of the random encoder (default %(default)s)")
    return parser


def _compare(args):
    """Print reports side by side; returns the exit status."""
    groups = {}
    for name, pattern in args.reports:
        paths = sorted(glob.glob(pattern, recursive=True))
        if not paths:
            raise ValueError(f"{name}={pattern}: there is no such file")
        groups.setdefault(name, []).extend(paths)
    write_lines(comparison.compare(comparison.read_reports(groups)))
    return 0


def _controls(args):
    """Write encoders to compare with; returns the exit status."""
    bundle = store.read(args.model)
    paths = [os.path.join(args.output, kind) for kind in controls.KINDS]
    for path in paths:
        store.check_destination(path, "jax")
    for kind, path in zip(controls.KINDS, paths):
        store.write(controls.make_control(bundle, kind, args.seed), path, "jax")
    write_lines(f"wrote {path}" for path in paths)
    return 0


def _add_rollout(parser):
    parser.set_defaults(run=_rollout)
    add = parser.add_argument
    add("shards", nargs="+", metavar="SHARDS", help="trajectory shards with frames or features: folders, globs or files")
    add("--model", required=True, metavar="PATH", help="run of configs/world_model.py, or weights with an action predictor")
    add("--output", required=True, metavar="DIR", help="folder for the report, or a URL")
    add("--encoder", metavar="PATH", help="weights of the frozen encoder, where PATH of --model lacks them")
    add("--robot", choices=PRESETS, help="for weights that name no robot (default: droid, if the dimensions are its)")
    add("--fps", type=types.positive_float, help="frames per second (default: as trained)")
    add("--view", type=types.names(), metavar="NAME[,NAME]", help="cameras (default: as trained)")
    add("--horizon", type=types.positive, help=f"steps that are predicted (default {_HORIZON}, or fewer: with the context no more frames than "
        "training clips have)")
    add("--context", type=types.positive, default=1, help="true frames before them (default %(default)s)")
    add("--samples", type=types.positive, default=200, help="samples, of as many trajectories as there are (default %(default)s)")
    add("--seed", type=types.count, default=0, help="of samples, shuffling and intervals (default %(default)s)")
    add("--batch", type=types.positive, default=8, help="samples computed together (default %(default)s)")
    add("--decode", action="store_true", help="also read the robot's position off latents, in cm")
    add("--extra", action="append", default=[], metavar="NAME",
        help="also read this extra of the records off latents, in m there, such as box_position of jepa_jax.sim; may be repeated")
    add("--fit", nargs="+", metavar="SHARDS", help="fit what reads positions on these, such as the training data (default: on half of the trajectories)")
    add("--fit-samples", type=types.positive, default=6000, help="pairs of frames of --fit that are used (default %(default)s)")
    add("--max-skip-fraction", type=types.fraction, default=0.1,
        help="exit with status 1 when more of the trajectories cannot be used (default %(default)s)")


if __name__ == "__main__":
    sys.exit(main())
