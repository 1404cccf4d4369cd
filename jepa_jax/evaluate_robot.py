"""`python -m jepa_jax.evaluate robot`: policies act in a simulator, and successes are counted."""

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from jepa_jax.commandline import types
from jepa_jax.commandline.stdout import write_lines
from jepa_jax.data import ShardSource
from jepa_jax.data.movies import write_mp4
from jepa_jax.data.publish import check_folder, new_file, write_json
from jepa_jax.data.trajectories import KIND
from jepa_jax.evals import samples
from jepa_jax.evals.closed_loop import cloning, report, response, sight, trials
from jepa_jax.evals.closed_loop.episodes import Runner
from jepa_jax.evals.closed_loop.panda import Panda
from jepa_jax.evals.closed_loop.planners import MODEL, POSES
from jepa_jax.evals.closed_loop.tabletop import Tabletop
from jepa_jax.planning.command import LEARNED, add_energy_arguments, add_setting_argument, energy_of
from jepa_jax.planning.energy import Energy
from jepa_jax.planning.observations import write_picture
from jepa_jax.planning.presets import PRESETS
from jepa_jax.robots.conditions import ConditionMaker
from jepa_jax.robots.world import bind_model
from jepa_jax.sim.cameras import CAMERAS
from jepa_jax.sim.collect import read_nuisance
from jepa_jax.sim.episodes import PANDA, TABLETOP
from jepa_jax.sim.nuisance import Nuisance
from jepa_jax.sim.panda.installed import check_installed
from jepa_jax.sim.tasks import TASKS
from jepa_jax.training.sharding import fitting_devices, make_mesh
from jepa_jax.viz import canvas
from jepa_jax.viz import episodes as pictures
from jepa_jax.weights.load import load_with_encoder

EXAMPLES = """examples:
  python -m jepa_jax.evaluate robot --model runs/ac --output reports/reach
  python -m jepa_jax.evaluate robot --model runs/encoder --policy oracle --sight trained,untrained,patches --output reports/eyes
  python -m jepa_jax.evaluate robot --model runs/encoder --policy oracle --layers 1,3,-1 --output reports/layers
  python -m jepa_jax.evaluate robot --model runs/ac --distance learned --distance-head distance.safetensors --output reports/learned
  python -m jepa_jax.evaluate robot --model runs/ac --task grasp-box,place-cup --policy model,cloning,random --cloning-data shards/tabletop \\
    --planner hybrid --set horizon=2 --output reports/objects
  python -m jepa_jax.evaluate robot --world panda --model runs/panda_ac --task reach,grasp-cup --output reports/panda"""
DESCRIPTION = f"""Count how often policies reach goals that are given as pictures, in a simulated world. Starts and scenes are those of
the split 'test'; goals were reached by a scripted expert in the same scene; starts that have the task done already are
left out. DIR gets robot.json, for every row of the table a film (mp4) and a picture of some episodes, and for every task where its first
episode begins and leads (TASK-start.png, TASK-goal.png, and states of the robot as .npy), as `plan` and `viz energy` take it.
Policies: model (plans with the model), oracle (plans with the simulator itself, sees like the model), poses (plans with what the
robot reports, sees nothing: the limit of such a planner), cloning (imitates recorded actions), expert, random, zero.
On the table-top, a line below the table says how much of what each number of an action does to the energy the model foresees: a number that
it does not know is chosen at random.
Tasks: {', '.join(TASKS)}."""
REPORT = "robot.json"
_FILM_PIXELS = 256
# Policies that do not look at pictures.
_EYELESS = (*trials.BLIND, POSES)
_WORLDS = {TABLETOP: Tabletop, PANDA: Panda}
# Part by which an action of model and simulator may differ in length: rates are rounded.
_SAME = 0.01
_AT_ONCE = 16
_HINDSIGHT_FRAMES = cloning.MAX_AHEAD + 1


def add_arguments(parser):
    """Add the arguments of the subcommand.

    Args:
      parser: argparse parser.
    """
    parser.set_defaults(run=run, stopped=f"stopped; {REPORT} has the rows that were finished, if any")
    add = parser.add_argument
    add("--output", required=True, metavar="DIR", help="folder for report, films and pictures")
    add("--world", choices=_WORLDS, default=TABLETOP, help="tabletop, or panda: a Franka arm in MuJoCo, extra 'sim' (default %(default)s)")
    add("--model", metavar="PATH", help="run or weights; policy 'model' needs an action predictor, the others an encoder at most")
    add("--encoder", metavar="PATH", help="weights of the frozen encoder, where PATH of --model lacks them")
    add("--policy", type=types.names(trials.POLICIES), default=(MODEL, "random", "expert"), metavar="NAME[,NAME]",
        help=f"of {', '.join(trials.POLICIES)} (default model,random,expert)")
    add("--sight", type=types.names(sight.KINDS), default=(sight.TRAINED,), metavar="NAME[,NAME]",
        help="encoders of oracle and cloning: trained, untrained (new weights), patches (raw pixels) (default trained)")
    add("--layers", type=_layers, default=(), metavar="N[,N]",
        help="blocks of the encoder that oracle and cloning see together, such as 1,3,-1; -1 is the last (default: its output)")
    add("--episodes", type=types.positive, default=50, metavar="N", help="of each seed (default %(default)s)")
    add("--seeds", type=_numbers, default=(0,), metavar="N[,N]", help="of episodes and policies (default 0)")
    add("--task", type=types.names(TASKS), default=("reach",), metavar="NAME[,NAME]", help="default reach")
    add("--range", type=types.pair, metavar="LOW,HIGH", help="distance at the start, m (default: the task's)")
    add("--waypoints", type=types.positive, metavar="N",
        help="goals along the way, for reaching; with 2, an open hand around the object before it is grasped (default 1)")
    add("--steps", type=types.positive, metavar="N", help="of an episode (default: the task's)")
    add("--lift", type=types.non_negative_float, metavar="M", help="how far to lift what is grasped, m (default 0)")
    add("--camera", choices=CAMERAS, help="default: the model's, or front")
    add("--nuisance", type=read_nuisance, default=Nuisance.all(1.0), metavar="X", help="as for jepa_jax.sim.collect (default 1)")
    add("--planner", choices=PRESETS, default="icem", help="preset (default %(default)s)")
    add_setting_argument(parser)
    add_energy_arguments(parser)
    add("--goal-steps", type=_numbers, metavar="N,N,...", help="steps for each goal (default: the task's, or no limit beside --switch-energy)")
    add("--switch-energy", type=types.positive_float, metavar="X", help="go on to the next goal below this energy")
    add("--cloning-data", nargs="+", metavar="SHARDS", help="trajectory shards with frames, to clone")
    add("--cloning-samples", type=types.positive, default=400, metavar="N", help="clips of them (default %(default)s)")
    add("--cloning-steps", type=types.positive, default=1500, metavar="N", help="of training (default %(default)s)")
    add("--at-once", type=types.positive, metavar="N", help=f"episodes side by side (default: at most {_AT_ONCE}, a divisor of --episodes if one is near)")
    add("--devices", type=types.positive, metavar="N", help="that share these episodes evenly (default: the most that can)")
    add("--films", type=types.count, default=6, metavar="N", help="episodes of every row to film (default %(default)s)")


def run(args):
    """Run all policies on all tasks and write what came out; returns the exit status."""
    check_folder(args.output)
    if args.world == PANDA:
        check_installed()
    if trials.CLONING in args.policy and not args.cloning_data:
        raise ValueError("policy cloning needs --cloning-data, trajectory shards with frames")
    model, params, trained, notes = _load(args)
    todo = _list_rows(args, model, params, trained)
    notes = [*notes, *_camera_notes(trained, todo[0].environment.camera)]
    settings = {name: value for name, value in vars(args).items() if name not in ("run", "command", "stopped")}
    head = {
        "model": {"sha256": model.sha256, "provenance": model.provenance} if model else None, "settings": settings,
        "versions": {"jax": jax.__version__, "device": jax.devices()[0].device_kind, "devices": _devices(args)}, "notes": notes,
    }
    rows, written, path = [], [], os.path.join(args.output, REPORT)
    for row in todo:
        found, paths = _run_row(args, row)
        rows.append({"task": row.task, **found})
        written += paths
        # Now, as the others may take hours.
        write_json(path, {**head, "rows": rows})
    lines = [f"note: {note}" for note in notes]
    for name in args.task:
        found = [row for row in rows if row["task"] == name]
        lines += ["", f"{name}: {report.describe_starts(found[0])}", *report.describe(found)]
        lines += [response.describe_response(row["response"]) for row in found if "response" in row]
    write_lines([*lines, "", *(f"wrote {file}" for file in dict.fromkeys([path, *written]))])
    return 0


def _load(args):
    """Load what the policies need: (model or None, params, `Trained` or None, notes)."""
    looks = {kind for kind in args.policy if kind not in _EYELESS}
    if args.layers and MODEL in looks:
        given = ",".join(map(str, args.layers))
        raise ValueError(f"--layers {given}: the world model predicts the encoder's output alone, that of its last layer, so policy "
                         f"{MODEL} cannot look at others; leave out one of the two")
    if not args.model:
        if MODEL in looks or (looks and args.sight != (sight.PATCHES,)):
            raise ValueError(f"policies {', '.join(sorted(looks))} need --model; without it there are {', '.join(trials.BLIND)}, {POSES}, "
                             f"and with --sight {sight.PATCHES} those that need no action predictor")
        return None, {}, None, []
    networks = ("encoder", "action_predictor") if MODEL in looks else ("encoder",)
    model, params = load_with_encoder(args.model, args.encoder, networks)
    trained = bind_model(model) if MODEL in looks else None
    return model, params, trained, [*model.notes, *(trained.notes if trained else ())]


def _environment(args, name, model, trained):
    """Make the world of a task as the arguments want it, seen as the model was trained to see."""
    given = {"distance": args.range, "waypoints": args.waypoints, "steps": args.steps, "lift": args.lift}
    task = dataclasses.replace(TASKS[name], **{field: value for field, value in given.items() if value is not None})
    views = [view for view in (trained.views or ()) if view in CAMERAS] if trained else []
    camera = args.camera or (views or ["front"])[0]
    size = model.preprocessing.crop_size if model else sight.patch_sight().size
    environment = _WORLDS[args.world](task, camera, size, args.nuisance)
    if trained and abs(trained.step_seconds * environment.control_rate - 1) > _SAME:
        raise ValueError(f"an action of the model lasts {trained.step_seconds:.3g} s, as in training; one of the simulator "
                         f"{1 / environment.control_rate:.3g} s")
    return environment


def _sights(args, kind, model, params):
    """Return the ways to see that a policy is tried with."""
    if kind in _EYELESS:
        return [sight.make_sight(sight.PATCHES, model, params) if model else sight.patch_sight()]
    kinds = (sight.TRAINED,) if kind == MODEL else args.sight
    make = functools.partial(sight.make_sight, model=model, params=params, seed=args.seeds[0], layers=args.layers)
    return [make(name) if model else sight.patch_sight() for name in kinds]


def _energy(args, kind, eyes):
    """Return the energy that a policy sees with."""
    if kind in _EYELESS and args.distance == LEARNED and not args.switch_energy:
        # A learned distance knows one encoder, and these have none; they do not need it either.
        return Energy()
    return energy_of(args, eyes.encoder_sha256, f"policy {kind}, sight {eyes.name},")


class _Row(NamedTuple):
    """What a row of the report is about; `make` returns its policy, and a dict of what is to be known about it.

    `respond` measures what the policy's model knows of actions (`response.measure_response`); None where it has none to compare.
    """

    task: str
    environment: Any
    kind: str
    eyes: sight.Sight
    make: Callable
    respond: Callable | None = None


def _list_rows(args, model, params, trained):
    """Make everything that can be refused, before the first row takes its time; list of `_Row`."""
    rows = []
    for name in args.task:
        environment = _environment(args, name, model, trained)
        for kind in args.policy:
            for eyes in _sights(args, kind, model, params):
                make, respond = _maker(args, environment, kind, eyes, trained, params), None
                if kind == MODEL and trials.can_respond(environment, trained):
                    respond = functools.partial(trials.response_of, environment, eyes, _energy(args, kind, eyes), trained, params, args.seeds[0])
                rows.append(_Row(name, environment, kind, eyes, make, respond))
    return rows


def _maker(args, environment, kind, eyes, trained, params):
    """Check what a policy is to be, and make it unless that takes long; returns `_Row.make`."""
    timer = args.goal_steps or (None if args.switch_energy else trials.TASK_TIMES)
    settings = trials.Settings(args.planner, tuple(args.set), _energy(args, kind, eyes), timer, args.switch_energy)
    if kind == trials.CLONING:
        return functools.partial(_clone, args, environment, eyes, trials.make_pursuit(environment, eyes, settings))
    if kind in trials.BLIND:
        made = trials.BLIND[kind](environment), {}
    else:
        policy, spec = trials.make_planner(kind, environment, eyes, settings, trained, params, at_once=_at_once(args) // _devices(args))
        made = policy, {"spec": dataclasses.asdict(spec), "evaluations": spec.evaluations}
    return lambda: made


def _at_once(args):
    """Return how many episodes run side by side."""
    if args.at_once:
        return min(args.at_once, args.episodes)
    # The last ones are filled up to as many, which takes as long as if they counted.
    even = [number for number in range(_AT_ONCE // 2, _AT_ONCE + 1) if args.episodes % number == 0]
    return even[-1] if even else min(_AT_ONCE, args.episodes)


def _devices(args):
    """Return how many devices share the episodes: so many, or the most of this process that they divide over."""
    fitting = fitting_devices(_at_once(args))
    if args.devices not in (None, *fitting):
        raise ValueError(f"--devices is {args.devices}; there are {jax.local_device_count()} devices, over which {_at_once(args)} episodes at a time "
                         f"must divide: {', '.join(map(str, fitting))}")
    return args.devices or fitting[-1]


def _camera_notes(trained, camera):
    """Say so if a model looks through a camera that it was not trained on."""
    if not trained or not trained.views or camera in trained.views:
        return []
    return [f"the model was trained on view {' or '.join(trained.views)}; here it looks through camera {camera!r}"]


def _run_row(args, row):
    """Run one policy on one task: (row of the report, files written)."""
    environment, kind, eyes = row.environment, row.kind, row.eyes
    policy, known = row.make()
    known = {"camera": environment.camera, "pixels": environment.size, **known}
    looks = kind not in _EYELESS
    label = " ".join([row.task, kind, eyes.name] if looks else [row.task, kind])
    mesh = make_mesh(devices=jax.local_devices()[: _devices(args)])
    runner = Runner(environment, policy, at_once=_at_once(args), filmed=args.films, mesh=mesh)
    with tqdm(total=args.episodes * len(args.seeds), desc=f"{label} (compiles first)", unit=" episodes", dynamic_ncols=True) as bar:
        found = runner.run(args.seeds, args.episodes, bar.update)
    wait = runner.milliseconds_per_plan() if kind in (MODEL, trials.CLONING) else None
    counted = report.summarize(found, kind, eyes.name if looks else "", wait, known)
    if row.respond:
        with tqdm(total=1, desc=f"{label}, what actions are known to do (compiles first)", dynamic_ncols=True) as bar:
            counted |= {"response": row.respond()}
            bar.update()
    return counted, [*_draw(args, environment, found, counted, label), *_write_start(args, row.task, found.film)] if args.films else []


def _clone(args, environment, eyes, pursuit):
    """Train the policy that imitates: (`Policy`, what is to be known about it)."""
    source = ShardSource(args.cloning_data, KIND)
    maker = samples.frame_maker(
        args.cloning_data, _HINDSIGHT_FRAMES, ConditionMaker(environment.robot, (environment.camera,)), fps=environment.control_rate,
        size=eyes.size, views=(environment.camera,),
    )
    with tqdm(total=args.cloning_samples, desc="reading clips to clone", unit=" clips", dynamic_ncols=True) as bar:
        found = samples.read_samples(source, maker, args.cloning_samples, seed=args.seeds[0], on_sample=bar.update)
    with tqdm(total=args.cloning_steps, desc="cloning (encodes first)", unit=" steps", dynamic_ncols=True) as bar:
        policy, error = cloning.clone(pursuit, found.arrays, steps=args.cloning_steps, seed=args.seeds[0], on_steps=bar.update)
    return policy, {"imitation_error": error}


def _draw(args, environment, found, row, label):
    """Write film and picture of some episodes; returns their paths."""
    film = found.film
    frames, goals = environment.redraw(film, max(environment.size, _FILM_PIXELS))
    base = os.path.join(args.output, label.replace(" ", "-"))
    write_mp4(f"{base}.mp4", pictures.film_frames(found, frames, goals, pixels=_FILM_PIXELS, rate=environment.control_rate),
              environment.control_rate)
    end, ever = (f"{100 * row[name]['value']:.0f} %" for name in ("end", "ever"))
    subtitle = f"{row['episodes']} episodes: the task is done at the end in {end}, at some step in {ever}; the first {len(frames)} are shown"
    figure = pictures.draw_sheet(found, film["frames"], film["goals"], label, subtitle)
    with new_file(f"{base}.png") as local:
        canvas.save_figure(figure, local)
    return [f"{base}.mp4", f"{base}.png"]


def _write_start(args, task, film):
    """Write what the robot sees and reports at the start of the first episode and at its first goal; returns the paths."""
    paths = []
    for name, frame, pose in (("start", film["frames"][0, 0], film["poses"][0, 0]), ("goal", film["goals"][0, 0], film["goal_poses"][0, 0])):
        base = os.path.join(args.output, f"{task}-{name}")
        write_picture(f"{base}.png", frame)
        with new_file(f"{base}.npy") as local, open(local, "wb") as file:
            np.save(file, pose)
        paths += [f"{base}.png", f"{base}.npy"]
    return paths


def _numbers(text):
    return tuple(types.count(part) for part in text.split(","))


def _layers(text):
    return tuple(map(int, text.split(",")))
