"""What commands that plan share: arguments that say which model plans and what it compares, and loading it."""

import argparse
import ast
import dataclasses

import numpy as np

from jepa_jax.commandline import types
from jepa_jax.planning.energy import DISTANCES, Energy
from jepa_jax.robots import presets
from jepa_jax.robots.world import bind_model
from jepa_jax.weights.learned_energy import load_learned
from jepa_jax.weights.load import load_with_encoder

LEARNED = "learned"
# What --state of a command is in.
STATE_UNITS = "in the units of the shards, where a gripper is 0 open and 1 closed (unless it is stored as recorded)"


def add_model_arguments(parser):
    """Add the arguments that say which model plans, and how far its features are from the goal's."""
    add = parser.add_argument
    add("--model", required=True, metavar="PATH", help="run of configs/world_model.py, or weights with an action predictor")
    add("--encoder", metavar="PATH", help="weights of the frozen encoder, where PATH of --model lacks them")
    add("--robot", choices=[name for name in presets.PRESETS if name != "generic"],
        help="for weights that name no robot (default: droid, if the dimensions are its)")
    add_energy_arguments(parser)
    add("--extrinsics", type=camera_pose, metavar="X,Y,Z,A,B,C", help="pose of the camera, for models that use it: m, rad")
    add("--planned", type=types.names(), metavar="NAME,...", help="numbers of an action to search, others stay 0 (default: the robot's); rotations are "
                                                          "numbers like others")
    add("--bounds", type=types.ranges, metavar="LOW:HIGH,...",
        help="of each planned number of an action; the same twice for one that shall not be planned (default: the robot's)")


def add_energy_arguments(parser):
    """Add the arguments that say how far features are from the goal's; `energy_of` reads them."""
    add = parser.add_argument
    add("--distance", choices=(*DISTANCES, LEARNED), default="l1",
        help="between features of prediction and goal; learned: by `evaluate distance` from recorded trajectories (default %(default)s)")
    add("--distance-head", metavar="FILE", help="what `evaluate distance` wrote, for --distance learned")
    add("--pool", type=types.positive, default=1, metavar="N", help="average squares of N x N tokens first (default %(default)s)")
    add("--smooth", type=types.count, default=0, metavar="N", help="average tokens with their neighbours N times first (default 0)")


def add_setting_argument(parser):
    """Add `--set`, which collects pairs (field of `PlanSpec`, value)."""
    parser.add_argument("--set", type=_setting, action="append", default=[], metavar="NAME=VALUE",
        help="any field of planning.PlanSpec, such as horizon=2, cost='sum', choice=mean, std=(0.02,0.02,0.02,0.3); may be repeated")


def bounds_of(args):
    """Return the bounds that a command line states, as keyword arguments of `presets.make_spec`: `low` and `high`, or none."""
    if args.bounds is None:
        return {}
    return {"low": [low for low, _ in args.bounds], "high": [high for _, high in args.bounds]}


def energy_of(args, encoder_sha256, who="the planner"):
    """Return the energy that a command line asks for, as `latent.bind` takes it.

    Args:
      args: as `add_energy_arguments` defines them.
      encoder_sha256: identity of the encoder that makes the latents, "" for none; a learned distance holds for one only.
      who: sees with it, for messages.

    Raises:
      ValueError: the arguments contradict each other, or the distance was learnt on another encoder.
      WeightsError: the file of a learned distance cannot be read.
    """
    if args.distance != LEARNED:
        if args.distance_head:
            raise ValueError(f"--distance-head is for --distance {LEARNED}, not {args.distance}")
        return Energy(args.distance, args.pool, args.smooth)
    if not args.distance_head:
        raise ValueError(f"--distance {LEARNED} needs --distance-head FILE, which `python -m jepa_jax.evaluate distance` writes")
    if args.pool > 1 or args.smooth:
        raise ValueError(f"--distance {LEARNED} reads tokens as they are: --pool is {args.pool} and --smooth {args.smooth}; leave them out")
    energy = load_learned(args.distance_head)
    energy.check_encoder(encoder_sha256, who)
    return energy


def load_planned(args):
    """Load the world model that a command line names: (`Trained`, params, notes).

    Args:
      args: with `model`, `encoder`, `robot` and `planned`, as `add_model_arguments` defines them.

    Raises:
      WeightsError, CheckpointError, ValueError: as `load` and `bind_model` do; `ValueError` without actions.
    """
    model, params = load_with_encoder(args.model, args.encoder)
    trained = bind_model(model, presets.make_spec({"preset": args.robot}) if args.robot else None)
    if args.planned:
        trained = _plan_others(trained, args.planned, args.bounds)
    return trained, params, [*model.notes, *trained.notes]


def _plan_others(trained, names, bounds):
    """Return a `Trained` whose planner searches the numbers of an action that have these names, within bounds or its robot's."""
    robot, given = trained.world.robot, f"--planned {','.join(names)}"
    if unknown := [name for name in names if name not in robot.action_names]:
        raise ValueError(f"{given}: robot {robot.name!r} has no {', '.join(unknown)}; its actions are {', '.join(robot.action_names)}")
    places = sorted(map(robot.action_names.index, names))
    limits = dict(enumerate(zip(robot.action_low, robot.action_high)))
    limits |= {at: pair for at, pair in zip(places, bounds or ()) if limits and pair[0] < pair[1]}
    # Such as the rotations of 'droid', which the official planner leaves alone.
    if still := [at for at in places if limits and limits[at][0] >= limits[at][1]]:
        raise ValueError(f"{given}: robot {robot.name!r} has no range for {', '.join(robot.action_names[at] for at in still)}; give --bounds, "
                         f"LOW:HIGH for each of {', '.join(robot.action_names[at] for at in places)}")
    low, high = zip(*limits.values()) if limits else ((), ())
    return trained._replace(world=dataclasses.replace(
        trained.world, robot=dataclasses.replace(robot, planned=names, action_low=low, action_high=high)))


def _setting(text):
    name, value = types.assignment(text)
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def camera_pose(text):
    """Read 6 numbers with commas between them."""
    try:
        numbers = np.array([float(part) for part in text.split(",")], np.float32)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not numbers with commas between them") from error
    if len(numbers) != 6 or not np.isfinite(numbers).all():
        raise argparse.ArgumentTypeError(f"{text!r}: the pose of a camera has 6 finite numbers, not {len(numbers)}")
    return numbers
