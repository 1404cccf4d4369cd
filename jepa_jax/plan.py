"""Plan the actions that lead from one picture to another: `python -m jepa_jax.plan --model RUN --observation A.png ...`."""

import argparse
import dataclasses
import functools
import os
import sys
import time

import jax
import numpy as np

from jepa_jax.commandline import types
from jepa_jax.commandline.parsing import Parser
from jepa_jax.commandline.stdout import write_lines
from jepa_jax.data import DataError
from jepa_jax.data.publish import check_folder, new_file, write_json
from jepa_jax.planning import bind, full_actions, make_spec
from jepa_jax.planning.calibration import calibrate, watch
from jepa_jax.planning.command import STATE_UNITS, add_model_arguments, add_setting_argument, bounds_of, energy_of, load_planned
from jepa_jax.planning.latent import still_actions
from jepa_jax.planning.memory import fit_memory
from jepa_jax.planning.observations import read_moves, read_picture, read_state, see
from jepa_jax.planning.presets import PRESETS
from jepa_jax.planning.rollouts import make_score
from jepa_jax.planning.spec import LAST
from jepa_jax.training import sharding
from jepa_jax.training.checkpoint import CheckpointError
from jepa_jax.viz import canvas, plans
from jepa_jax.weights.bundle import WeightsError

_EXAMPLES = """examples:
  python -m jepa_jax.plan --model runs/ac --observation now.png --goal goal.png --state 0.5,0,0.3,3.1,0,0,0.2
  python -m jepa_jax.plan --model runs/ac --observation now.png --goal goal.png --state state.npy --planner hybrid --horizon 3 --output plans/1
  python -m jepa_jax.plan --model vjepa2-ac-vitg.pt --observation now.png --goal goal.png --state state.npy --planner paper --chunk 100

The state is that of the robot in the observation, in the units of its description (too few numbers are answered with their
names) and of the shards, where a gripper is 0 open and 1 closed; from text or a .npy file. Pictures are shrunk and cropped as
in training. Bounds of actions are those of the robot's description, or what the training found in its data."""
REPORT, PICTURE = "plan.json", "plan.png"
# Plans that are timed: so many, or fewer where they take longer than this in all.
_REPEATS, _REPEAT_S = 5, 2.0


def main(argv=None):
    """Run the command line.

    Args:
      argv: arguments without the program's name; those of the process if None.

    Returns:
      Exit status: 0; 2 if something cannot be read or planned.
    """
    args = _parser().parse_args(argv)
    try:
        return _run(args)
    except (CheckpointError, DataError, WeightsError, OSError, ValueError) as error:
        # Foreseen: the message says what to do, and a stack trace would bury it.
        sys.stderr.write(f"error: {error}\n")
        return 2


def _run(args):
    """Plan once and write what came out; returns the exit status."""
    if args.output:
        check_folder(args.output)
    now, goal = read_picture(args.observation), read_picture(args.goal)
    trained, params, notes = load_planned(args)
    robot = trained.world.robot
    state = read_state(args.state, robot)
    spec = make_spec(robot, args.planner, **_changes(args, robot))
    mesh = _make_mesh(args.devices, spec)
    spec = fit_memory(trained.world, spec, devices=mesh.size)
    energy = energy_of(args, trained.encoder_sha256)
    planner, calibration = bind(trained.world, spec, energy), None
    began = time.perf_counter()
    scene = see(trained, params, now, goal, state, args.extrinsics)
    encode_s = time.perf_counter() - began
    if args.calibrate:
        moves = read_moves(args.calibrate, robot)
        # A preset's own where nothing else is known.
        bounds = bounds_of(args) if robot.action_low else {"low": spec.low, "high": spec.high}
        calibration = watch(trained, params, *moves, energy=energy, extrinsics=args.extrinsics, seed=args.seed, **bounds)
        planner = calibrate(planner, calibration)
        notes.append(_describe_calibration(calibration, robot))
    output, compile_s, times = _solve(planner, params, scene.root, args.seed, mesh)
    if not np.isfinite(output.cost):
        raise ValueError("the predicted energy is not finite for any candidate: the training of the action predictor has diverged")
    before, still, predicted = energies(planner, params, scene.root, output.actions)
    actions = np.asarray(full_actions(robot, scene.state, output.actions))
    record = {
        "planner": args.planner, "seed": args.seed, "actions": actions.tolist(), "names": robot.action_names,
        "units": robot.action_units, "step_seconds": trained.step_seconds, "energy": {"now": before, "still": still, "planned": predicted},
        "evaluations": spec.evaluations, "chunk": spec.chunk, "plan_ms": float(np.median(times)), "compile_s": compile_s, "devices": mesh.size,
        "calibration": calibration and {"matrix": calibration.matrix.tolist(), "unexplained": calibration.unexplained},
        "encode_with_compilation_s": encode_s, "device": jax.devices()[0].device_kind, "jax": jax.__version__, "notes": notes,
    }
    lines = list(_describe(record, robot, output))
    if args.output:
        paths = [os.path.join(args.output, name) for name in (REPORT, PICTURE)]
        write_json(paths[0], record)
        title = f"{os.path.basename(os.path.normpath(args.model))}, {args.planner}"
        figure = plans.draw_plan(scene, output, spec, robot, energies=record["energy"], name=title)
        with new_file(paths[1]) as local:
            canvas.save_figure(figure, local)
        lines += ["", *(f"wrote {path}" for path in paths)]
    write_lines(lines)
    return 0


def energies(planner, params, root, actions):
    """Return energies: of what is seen now, and of what the model predicts if nothing moves and after actions; floats.

    The middle one is None where it is not known what moves nothing.
    """
    here = jax.tree.map(lambda leaf: np.asarray(leaf)[None], root.state)
    before = float(planner.cost_fn(params, here, root.goal, None)[0])
    # Zero would be a move where actions are absolute.
    still = still_actions(planner.robot, root.state.pose)
    plans = [actions] if still is None else [np.broadcast_to(still[np.array(planner.robot.planned_dims)], actions.shape), actions]
    # Of the last state alone, whatever the search has added to it.
    spec = dataclasses.replace(planner.spec, cost=LAST, action_penalty=0.0, chunk=None)
    score = make_score(params, root, planner.dynamics_fn, planner.cost_fn, spec)
    found = [float(cost) for cost in jax.jit(score)(np.stack(plans))]
    return before, None if still is None else found[0], found[-1]


def _make_mesh(wanted, spec):
    """Arrange the devices that candidates are spread over: so many, or the most of this process that they divide over."""
    found, counts = jax.local_devices(), [spec.samples if spec.iterations else spec.restarts, *([spec.chunk] if spec.chunk else [])]
    fitting = sharding.fitting_devices(*counts)
    wanted = fitting[-1] if wanted is None else wanted
    if wanted not in fitting:
        raise ValueError(f"--devices is {wanted}; there are {len(found)} devices, over which {' and chunks of '.join(map(str, counts))} candidates "
                         f"must divide: {', '.join(map(str, fitting))}")
    return sharding.make_mesh(devices=found[:wanted])


def _solve(planner, params, root, seed, mesh):
    """Compile the search and time it: (`PlanOutput` of host arrays, seconds of compilation, milliseconds of every plan)."""
    params, root, rng = jax.device_put((params, root, jax.random.key(seed)), sharding.replicated(mesh))
    with sharding.use_mesh(mesh):
        began = time.perf_counter()
        solve = jax.jit(functools.partial(planner.plan, mesh=mesh)).lower(params, rng, root).compile()
        compile_s, times = time.perf_counter() - began, []
        while not times or (len(times) < _REPEATS and sum(times) < 1e3 * _REPEAT_S):
            began = time.perf_counter()
            output = jax.block_until_ready(solve(params, rng, root))
            times.append(1e3 * (time.perf_counter() - began))
    return jax.device_get(output), compile_s, times


def _changes(args, robot):
    """Return what the command line changes of a preset."""
    names = ("horizon", "samples", "iterations", "elites", "gradient_steps", "polish_steps", "cost", "action_penalty", "chunk")
    changes = {name: value for name in names if (value := getattr(args, name)) is not None}
    changes |= bounds_of(args)
    planned = [robot.action_names[at] for at in robot.planned_dims]
    for name, _ in args.fix:
        if name not in planned:
            raise ValueError(f"--fix {name}: robot {robot.name!r} plans {', '.join(planned)}")
    if args.fix:
        changes["fixed"] = [(planned.index(name), value) for name, value in args.fix]
    if twice := sorted(set(changes) & {name for name, _ in args.set}):
        raise ValueError(f"--set {', '.join(twice)}: there is an option for it that is given too; leave one out")
    return changes | dict(args.set)


def _describe_calibration(calibration, robot):
    names = " and ".join(robot.action_names[robot.planned_dims[at]] for at in calibration.dims)
    return (f"through this camera {names} look turned by {calibration.angle:+.0f} degrees; {calibration.unexplained:.0%} of the motion that "
            "the model sees is left unexplained")


def _describe(record, robot, output):
    """Yield lines about a plan."""
    yield from (f"note: {note}" for note in record["notes"])
    width = max(map(len, robot.action_names))
    for step, action in enumerate(record["actions"]):
        yield f"action {step + 1}"
        for name, unit, value, at in zip(robot.action_names, robot.action_units, action, range(robot.action_dim)):
            fixed = "" if at in robot.planned_dims else "  (not planned)"
            # Without the minus of a zero.
            yield f"  {name:{width}} {round(value, 4) + 0.0:+9.4f} {unit}{fixed}".rstrip()
    yield f"each action lasts {record['step_seconds']:.3g} s"
    energy = record["energy"]
    still = "" if energy["still"] is None else f", {energy['still']:.4f} predicted if nothing moves"
    yield f"energy {energy['now']:.4f} now, {energy['planned']:.4f} predicted after the plan{still}"
    if still and energy["planned"] >= energy["still"]:
        yield "note: no plan was found that is better than to stay"
    chunk = f", {record['chunk']} at once" if record["chunk"] else ""
    chunk += f", on {record['devices']} devices" if record["devices"] > 1 else ""
    yield (f"planned in {record['plan_ms']:.1f} ms ({record['evaluations']} calls of the model{chunk}), compiled in "
           f"{record['compile_s']:.1f} s, {record['device']}")


def _parser():
    parser = Parser(
        prog="python -m jepa_jax.plan", description="Plan the actions that lead from one picture to another.", epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add_model_arguments(parser)
    add("--observation", required=True, metavar="FILE", help="what the camera sees now: PNG, JPEG, or .npy [H, W, 3]")
    add("--goal", required=True, metavar="FILE", help="what it shall see, at the same size")
    add("--state", required=True, metavar="X,Y,...", help=f"numbers of the robot's state now, {STATE_UNITS}; or a .npy file")
    add("--planner", choices=PRESETS, default="icem", help="preset (default %(default)s); the last four are the official ones")
    add("--horizon", type=types.positive, help="actions to plan")
    add("--samples", type=types.positive, help="candidates of an iteration")
    add("--iterations", type=types.count, help="of sampling")
    add("--elites", type=types.positive, help="candidates that the next iteration is fitted to")
    add("--gradient-steps", type=types.count, help="steps of Adam through the model after sampling")
    add("--polish-steps", type=types.count, help="steps to the bottom that follow, from the best plan alone, also where the energy has kinks")
    add("--cost", choices=("last", "sum"), help="what counts: the last state, or all of them")
    add("--action-penalty", type=types.non_negative_float, metavar="X", help="on large actions")
    add("--fix", type=_fixed, action="append", default=[], metavar="NAME=VALUE", help="do not plan this number; may be repeated")
    add_setting_argument(parser)
    add("--calibrate", metavar="NPZ", help="moves seen through this camera, to find out how it is turned: observations [1, T, H, W, 3] and "
                                           "states [1, T, ...] of T - 1 steps in several directions")
    add("--chunk", type=types.positive, metavar="N", help="candidates at once (default: as many as fit into memory)")
    add("--devices", type=types.positive, metavar="N", help="spread the candidates over so many (default: over all that they divide over)")
    add("--seed", type=types.count, default=0, help="default %(default)s")
    add("--output", metavar="DIR", help=f"folder for {REPORT} and {PICTURE}")
    return parser


def _fixed(text):
    name, value = types.assignment(text)
    try:
        return name, float(value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {value!r} is not a number") from error


if __name__ == "__main__":
    sys.exit(main())
