"""Draw pictures of a run: `python -m jepa_jax.viz all --workdir runs/demo`."""

import argparse
import functools
import os
import sys

from absl import logging

from jepa_jax.commandline import interrupt, types
from jepa_jax.commandline.parsing import Parser
from jepa_jax.commandline.stdout import write_lines
from jepa_jax.data import DataError
from jepa_jax.tasks.loading import load_run
from jepa_jax.training.checkpoint import CheckpointError
from jepa_jax.viz import canvas, curves, features, landscapes, masks, plans, summary, tabletop

_EXAMPLES = """examples:
  python -m jepa_jax.viz all --workdir runs/demo
  python -m jepa_jax.viz curves --workdir runs/vitl16
  python -m jepa_jax.viz masks --workdir runs/demo --step 7
  python -m jepa_jax.viz features --workdir runs/demo --video holiday.mp4 --detail 3
  python -m jepa_jax.viz tabletop --output pictures
  python -m jepa_jax.viz energy --model runs/ac --observation now.png --goal goal.png --state state.npy --dims x,z
  python -m jepa_jax.viz energy --model vjepa2-ac-vitg.pt --trajectory franka_example_traj.npz --grid notebook --dims x,z"""


def _curves(args, load, output):
    del load
    figure = curves.draw_curves(curves.read_metrics(args.workdir), _name(args))
    yield _save(figure, output, "curves.png")


def _masks(args, load, output):
    clips = masks.read_masked_clips(load().config, args.step)
    yield _save(masks.draw_masks(clips, _name(args), args.step), output, "masks.png")


def _features(args, load, output):
    run = load()
    clip = features.read_clip(run.config, args.video, args.detail)
    rows = {
        f"trained, step {run.step}": features.encode_clip(run.encoder, run.target_params, clip.frames),
        "untrained, step 0": features.encode_clip(run.encoder, run.initial_params()["encoder"], clip.frames),
    }
    yield _save(features.draw_features(clip, rows, _name(args)), output, "features.png")


def _summary(args, load, output):
    del output
    numbers = summary.summarize(load(), curves.read_metrics(args.workdir))
    yield summary.write_summary(numbers, args.output or args.workdir)


def _tabletop(args, load, output):
    del load
    yield _save(tabletop.draw_tabletop(args.seed), output, "tabletop.png")


def _energy(args, load, output):
    del load
    yield from landscapes.make_picture(args, output)


def _planners(args, load, output):
    del load
    yield _save(plans.draw_planners(plans.read_record(args.record)), output, "planners.png")


def _all(args, load, output):
    yield from _curves(args, load, output)
    if curves.is_world_model(curves.read_metrics(args.workdir)):
        # What such a run has learnt shows on held-out trajectories: `python -m jepa_jax.evaluate rollout`.
        return
    for draw in (_masks, _features, _summary):
        yield from draw(args, load, output)


_KINDS = {
    "curves": (_curves, "loss, ranks, spread, schedules, gradients and speed over the steps"),
    "masks": (_masks, "masks over the frames of a training clip"),
    "features": (_features, "principal components of the latents of a clip, trained and untrained"),
    "summary": (_summary, "the main numbers as JSON, in the workdir"),
    "all": (_all, "everything above; of a world model, the curves"),
    "tabletop": (_tabletop, "the simulated table-top: cameras, gripper, nuisance and an episode; needs no run"),
    "energy": (_energy, "how far predictions for all actions are from a goal picture, and how the true action fares"),
    "planners": (_planners, "energy over calls of the model, from a record of `python -m jepa_jax.bench plan --model`"),
}


def main(argv=None):
    """Run the command line.

    Args:
      argv: arguments without the program's name; those of the process if None.

    Returns:
      Exit status: 0; 1 when something cannot be read, drawn or written; 130 when stopped.
    """
    args = _parser().parse_args(argv)
    # Orbax warns that a folder opened for reading is read-only.
    logging.set_verbosity(logging.ERROR)
    output = args.output or os.path.join(args.workdir or "", "pictures")
    load = functools.cache(functools.partial(load_run, args.workdir))
    try:
        for path in _KINDS[args.kind][0](args, load, output):
            write_lines([f"wrote {path}"])
    except (canvas.PictureError, CheckpointError, DataError, OSError, ValueError) as error:
        # Foreseen: the message says what to do, and a stack trace would bury it.
        sys.stderr.write(f"error: {error}\n")
        return 1
    except KeyboardInterrupt:
        return interrupt.stop("stopped")
    return 0


def _name(args):
    return os.path.basename(os.path.abspath(args.workdir))


def _save(figure, output, name):
    path = os.path.join(output, name)
    canvas.save_figure(figure, path)
    return path


def _parser():
    parser = Parser(
        prog="python -m jepa_jax.viz", description="Draw pictures of a run.", epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = parser.add_subparsers(dest="kind", required=True)
    for kind, (_, text) in _KINDS.items():
        sub = kinds.add_parser(kind, help=text, epilog=_EXAMPLES, formatter_class=parser.formatter_class)
        if kind == "tabletop":
            sub.add_argument("--seed", default=0, type=types.count, help="of its scenes (default 0)")
            sub.set_defaults(workdir=None)
        elif kind == "planners":
            sub.add_argument("--record", required=True, metavar="FILE", help="JSON that the benchmark wrote")
            sub.set_defaults(workdir=None)
        elif kind == "energy":
            landscapes.add_arguments(sub)
            sub.set_defaults(workdir=None)
        else:
            sub.add_argument("--workdir", required=True, metavar="RUN", help="folder of the run")
        sub.add_argument("--output", metavar="DIR", help="folder for what is made (default RUN/pictures; "
                                                         "RUN for the summary)")
        if kind in ("masks", "all"):
            sub.add_argument("--step", default=0, type=types.count, help="batch whose first clip is drawn (default 0)")
        if kind in ("features", "all"):
            sub.add_argument("--video", metavar="FILE",
                             help="clip to encode (default: the first video of the run's shards)")
            sub.add_argument("--detail", default=features.DETAIL, type=float, metavar="X",
                             help="short side of that clip, in sides of a training crop (default %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
