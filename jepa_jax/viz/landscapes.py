"""Picture of the energy over the box of actions, and the command that makes it: `python -m jepa_jax.viz energy`."""

import os

import numpy as np

from jepa_jax.commandline import types
from jepa_jax.data.publish import write_json
from jepa_jax.planning import bind, make_spec
from jepa_jax.planning.command import STATE_UNITS, add_model_arguments, bounds_of, energy_of, load_planned
from jepa_jax.planning.landscape import measure, measure_notebook
from jepa_jax.planning.latent import still_actions
from jepa_jax.planning.observations import read_moves, read_picture, read_state, see
from jepa_jax.robots.algebra import derive_actions
from jepa_jax.viz import canvas

_WIDTH, _HEIGHT = 12.5, 5.2
_LEAST = {"linestyle": "none", "markeredgewidth": 1.6, "markersize": 11}


def draw_landscape(landscape, scene, robot, *, now, name):
    """Draw a landscape beside what is seen and the goal.

    Args:
      landscape: `planning.landscape.Landscape`.
      scene: `planning.observations.Scene`.
      robot: `RobotSpec`.
      now: energy of what is seen now.
      name: of the model, for the title.

    Returns:
      matplotlib `Figure`.
    """
    names = [robot.action_names[at] for at in robot.planned_dims]
    units = [robot.action_units[at] for at in robot.planned_dims]
    lowest = ", ".join(f"{name} {value:+.3g}" for name, value in zip(names, landscape.lowest))
    lines = [f"{landscape.others}; energy now {now:.4f}; lowest of all that were evaluated: {lowest}"]
    if landscape.true is not None:
        lines.append(f"true action: energy {landscape.true_energy:.4f}, rank {landscape.rank} among {landscape.samples} random actions of "
                     "the whole box and itself")
    figure = canvas.make_figure(_WIDTH, _HEIGHT, f"Energy landscape of {name}", "\n".join(lines))
    panels = figure.subplots(1, 3, width_ratios=[1, 1, 2.1])
    for panel, frame, title in zip(panels, (scene.now, scene.goal), ("now", "goal")):
        canvas.show_image(panel, canvas.enlarge(frame[None])[0])
        panel.set_title(title, loc="left", fontsize=10.5)
    _draw_map(panels[2], figure, landscape, [f"{names[dim]}, {units[dim]}".rstrip(", ") for dim in landscape.dims])
    return figure


def _draw_map(panel, figure, landscape, labels):
    across, up = landscape.axes
    image = panel.pcolormesh(across, up, landscape.energies, cmap="viridis", shading="nearest")
    figure.colorbar(image, ax=panel, label="predicted distance to the goal", fraction=0.05)
    row, column = np.unravel_index(np.argmin(landscape.energies), landscape.energies.shape)
    panel.plot(across[column], up[row], "o", markerfacecolor="none", markeredgecolor="white", label="lowest here", **_LEAST)
    if landscape.true is not None:
        place = landscape.true[list(landscape.dims)]
        panel.plot(*place, "x", color="#e53e3e", label="true action", **_LEAST)
        # An action may lie outside of the bounds that the planner has.
        panel.set_xlim(min(across[0], 1.1 * place[0]) - _half(across), max(across[-1], 1.1 * place[0]) + _half(across))
        panel.set_ylim(min(up[0], 1.1 * place[1]) - _half(up), max(up[-1], 1.1 * place[1]) + _half(up))
    if landscape.still is not None:
        panel.plot(*landscape.still[list(landscape.dims)], "+", color="white", label="nothing moves", **_LEAST)
    panel.set_xlabel(labels[0])
    panel.set_ylabel(labels[1])
    panel.tick_params(labelsize=8.5)
    # Below the map, of which it would hide a part.
    panel.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=3, facecolor="#a0aec0", edgecolor="none")


def _half(axis):
    return (axis[1] - axis[0]) / 2


def add_arguments(parser):
    """Add the arguments of the command."""
    add = parser.add_argument
    add_model_arguments(parser)
    add("--observation", metavar="FILE", help="what the camera sees: PNG, JPEG, or .npy [H, W, 3]")
    add("--goal", metavar="FILE", help="what it shall see, at the same size")
    add("--state", metavar="X,Y,...", help=f"numbers of the robot's state, {STATE_UNITS}; or a .npy file")
    add("--goal-state", metavar="X,Y,...", help="its state at the goal, if known: gives the true action")
    add("--trajectory", metavar="NPZ", help="instead of these: observations [1, T, H, W, 3] and states [1, T, ...], first to last frame, "
                                            "as in the official example")
    add("--reverse", action="store_true", help="from the goal to the observation")
    add("--dims", default="", metavar="A,B", help="names of the two numbers to draw, across and up (default: the first two that have a range)")
    add("--grid", choices=("box", "notebook"), default="box", help="box: 25 x 25 over the bounds; notebook: the official 5 x 5 x 5 "
                                                                 "positions, averaged over the third axis (default %(default)s)")
    add("--samples", type=types.positive, default=1000, help="random actions to rank the true one among (default %(default)s)")


def make_picture(args, output):
    """Load, measure and draw what a command line asks for; yields the paths of picture and record.

    Raises:
      ValueError: if something cannot be read or does not fit.
    """
    trained, params, _ = load_planned(args)
    robot = trained.world.robot
    (now, goal), states = _read(args, robot)
    energy = energy_of(args, trained.encoder_sha256)
    planner = bind(trained.world, make_spec(robot, "cem", **bounds_of(args)), energy)
    scene = see(trained, params, now, goal, states[0], args.extrinsics)
    true = None
    if args.goal_state and robot.source != "states":
        raise ValueError(f"robot {robot.name!r}: its actions do not follow from states, so --goal-state says nothing about them")
    if states[1] is not None and robot.source == "states":
        cameras = None if args.extrinsics is None else np.tile(args.extrinsics, (2, 1))
        true = derive_actions(robot, np.stack(states), extrinsics=cameras)[0, list(robot.planned_dims)]
    run = measure if args.grid == "box" else measure_notebook
    still = still_actions(robot, scene.root.state.pose)
    still = None if still is None else np.asarray(still)[list(robot.planned_dims)]
    landscape = run(planner, params, scene.root, _dims(args, robot, planner.spec), still=still, true=true, samples=args.samples)
    here = scene.root.state.latents[None]
    before = float(energy(here, scene.root.goal, tuple(trained.world.predictor.grid), scene.root.state.pose[None])[0])
    name = os.path.basename(os.path.normpath(args.model))
    path = os.path.join(output, "energy.png")
    canvas.save_figure(draw_landscape(landscape, scene, robot, now=before, name=name), path)
    yield path
    path = os.path.join(output, "energy.json")
    write_json(path, _record(landscape, robot, before))
    yield path


def _record(landscape, robot, now):
    """Return a landscape as plain data; actions are planned numbers in the robot's units."""
    fields = {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in landscape._asdict().items()}
    names = [robot.action_names[at] for at in robot.planned_dims]
    return fields | {
        "names": names, "units": [robot.action_units[at] for at in robot.planned_dims], "dims": [names[dim] for dim in landscape.dims],
        "axes": [axis.tolist() for axis in landscape.axes], "now": now,
    }


def _read(args, robot):
    """Return two pictures and two states, the last of which may be None."""
    if args.trajectory:
        pictures, states = read_moves(args.trajectory, robot)
        pictures, found = [pictures[0], pictures[-1]], [states[0], states[-1]]
    else:
        if not (args.observation and args.goal and args.state):
            raise ValueError("give --observation, --goal and --state, or --trajectory")
        pictures = [read_picture(args.observation), read_picture(args.goal)]
        found = [read_state(args.state, robot), read_state(args.goal_state, robot) if args.goal_state else None]
    if args.reverse:
        if found[1] is None:
            raise ValueError("--reverse starts from the goal, so it needs --goal-state")
        pictures, found = pictures[::-1], found[::-1]
    return pictures, found


def _dims(args, robot, spec):
    names = [robot.action_names[at] for at in robot.planned_dims]
    wanted = args.dims.split(",") if args.dims else [name for name, low, high in zip(names, spec.low, spec.high) if low < high][:2]
    if len(wanted) != 2 or len(set(wanted)) != 2 or not set(wanted) <= set(names):
        raise ValueError(f"--dims {args.dims or ','.join(wanted)}: give two different names of {', '.join(names)}, with a comma between them")
    return tuple(names.index(name) for name in wanted)
