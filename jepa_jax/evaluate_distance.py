"""The command `evaluate distance`: learn how far frames are apart, for planners to lower."""

import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jepa_jax.commandline import types
from jepa_jax.commandline.skipped import list_reasons
from jepa_jax.commandline.stdout import write_lines
from jepa_jax.data import ShardSource
from jepa_jax.data.trajectories import KIND
from jepa_jax.evals import learned_distance, samples
from jepa_jax.evals.closed_loop import sight
from jepa_jax.planning import Energy, LearnedEnergy, save_learned
from jepa_jax.planning.memory import free_host_bytes
from jepa_jax.robots.conditions import ConditionMaker
from jepa_jax.robots.presets import PRESETS, make_spec
from jepa_jax.robots.world import bind_model
from jepa_jax.weights import tensors
from jepa_jax.weights.learned_energy import DISTANCES, GRIPPER, MEASURES
from jepa_jax.weights.load import load, load_with_encoder

DESCRIPTION = """Learn from recorded trajectories how far any two frames of a clip are apart, as a planner's energy that falls all the way
to the goal: --distance learned --distance-head FILE of `plan`, `viz energy` and `evaluate robot`. Distances that can be learned: the
steps between them (steps); how much position and gripper of the robot differ, or all of its state where it has no position, in units
of what they usually change in one step (states); how many steps its tool has to go (position). Their sum is the energy. gripper reads
from the goal how far the gripper is to be closed, and compares it with what the robot reports: where that takes longer, it is the
energy. Position and gripper go together best for robots that have both. It holds for the encoder of --model only.
At the end it is compared with the L1 energy on trajectories that were held out: how well each orders the frames of a clip by
the steps, and by the way of the robot, that are left to a goal (rank correlation), how often it changes in the right
direction when the robot comes nearer or goes away, and how well it tells a gripper that is open from one that is closed at the same
place (1 is perfect, 0.5 chance). All clips are held in memory."""
EXAMPLES = """examples:
  python -m jepa_jax.evaluate distance shards/tabletop --model runs/ac --output distance.safetensors
  python -m jepa_jax.evaluate robot --model runs/ac --distance learned --distance-head distance.safetensors --output reports/learned"""
# Fingers are small: reading them takes so many times as many steps of training.
_MORE = 3
# Clips that are read unless told otherwise, as fingers are learned from many scenes; fewer where their latents take a larger part
# of free memory, which holds them twice while some are put aside; and how many where nobody knows how much is free.
_MOST_CLIPS, _PART, _FEW_CLIPS = 12_000, 0.25, 1500
# Frames per second where no world model says it.
_FPS = 4.0
# Distances between which moves are judged, m.
_EDGES = (0.0, 0.1, 0.2, 0.3, float("inf"))
# Grippers at the same place, m, are open or closed alike, or differ: in shares of the way between.
_SAME_PLACE, _ALIKE, _DIFFER = 0.03, 0.1, 0.4
_CENTIMETRES = 100.0


def add_arguments(parser):
    """Add the options to the parser of the command."""
    parser.set_defaults(run=run)
    add = parser.add_argument
    add("shards", nargs="+", metavar="SHARDS", help="trajectory shards with frames or features: folders, globs or files")
    add("--model", required=True, metavar="PATH", help="run or weights of a world model, or of an encoder alone")
    add("--encoder", metavar="PATH", help="weights of the frozen encoder, where PATH of --model lacks them")
    add("--output", required=True, metavar="FILE", help="file to write, FILE.safetensors; must not exist")
    add("--of", type=types.names(MEASURES), metavar="NAME[,NAME]", help=f"what is measured: {', '.join(MEASURES)} (default: position,gripper "
        "for robots with both, else steps,states; steps for an encoder alone and no --robot)")
    add("--robot", choices=PRESETS, help="for weights that name no robot, to know its states (default: none for an encoder alone)")
    add("--fps", type=types.positive_float, help=f"frames per second: what a step is (default: as trained; {_FPS:g} for an encoder alone)")
    add("--view", type=types.names(), metavar="NAME[,NAME]", help="cameras (default: as trained)")
    add("--samples", type=types.positive, help="clips, of as many trajectories as there are, all held in memory "
        f"(default: {_MOST_CLIPS}, or as many as a quarter of free memory holds)")
    add("--frames", type=types.positive, default=21, help="of a clip; no goals are farther away (default %(default)s)")
    add("--held-out", type=types.fraction, default=0.1, metavar="X", help="share of the trajectories to test on (default %(default)s)")
    add("--steps", type=types.positive, default=3000, help=f"of training, of the gripper {_MORE} times as many (default %(default)s)")
    add("--noise", type=types.non_negative_float, default=0.1, metavar="X",
        help="added to latents at most, in deviations, as a planner looks at predicted ones; not for the gripper, which is read "
        "from true ones (default %(default)s)")
    add("--seed", type=types.count, default=0, help="of clips, split and training (default %(default)s)")


def run(args):
    """Fit a learned distance, test and write it; returns the exit status."""
    tensors.refuse_existing(args.output)
    if args.frames < 2:
        raise ValueError(f"--frames is {args.frames}; frames of a clip are compared with each other, so there must be at least 2")
    # Whatever networks there are: a world model says how it sees, an encoder alone does not.
    model, params = load_with_encoder(args.model, args.encoder, ("encoder", "action_predictor")) if args.encoder else load(args.model)
    source = ShardSource(args.shards, KIND)
    record = samples.first_record(source)
    stored = samples.stored_latents(record, args.view)
    size = args.frames * _frame_bytes(stored, model)
    robot = make_spec({"preset": args.robot}, record) if args.robot else None
    trained = bind_model(model, robot, args.fps) if "action_predictor" in model.networks else None
    robot = trained.world.robot if trained else robot
    measures = _measures(args.of, robot)
    found, origin = _read(args, args.samples or _count_clips(size), source, stored, model, trained, robot)
    latents, grid, sha256 = _latents(found, origin, model, params)
    held = learned_distance.hold_out(found.trajectory, args.held_out, args.seed)
    points, gripper = _fit(measures, args, latents[~held], found.arrays["states"][~held], robot)
    fps = 1 / float(np.median(found.step_seconds))
    energy = LearnedEnergy(points, grid, sha256, fps, args.frames, {"clips": int((~held).sum()), "noise": args.noise, "seed": args.seed,
                                                                    "steps": args.steps}, gripper)
    lines = [f"{len(found)} clips of {found.trajectories} trajectories, {args.frames} frames at {fps:.3g}/s; {int(held.sum())} clips are held out"]
    lines += list_reasons(found.skips)
    lines += _judge({"learned": energy, "l1": Energy()}, latents[held], grid, robot, found.arrays["states"][held])
    save_learned(energy, args.output)
    write_lines([*lines, "", f"wrote {args.output}"])
    return 0


def _measures(asked, robot):
    """Return what is to be measured; ValueError where a robot does not have it."""
    position, gripper = (robot and robot.part(kind) for kind in ("position", "gripper"))
    # Which way fingers close is known with their range only.
    gripper = gripper and robot.gripper_range and robot.integrable
    measures = asked or ((DISTANCES[0],) if robot is None else ("position", GRIPPER) if position and gripper else ("steps", "states"))
    if missing := [name for name in measures if name != "steps" and robot is None]:
        raise ValueError(f"--of {missing[0]}: these weights name no robot; say with --robot what its states mean")
    if "position" in measures and not position:
        raise ValueError(f"--of position: robot {robot.name!r} has none")
    if GRIPPER in measures and not gripper:
        raise ValueError(f"--of {GRIPPER}: robot {robot.name!r} has none of a known range, or its states do not follow from its actions")
    if not set(measures) & set(DISTANCES):
        raise ValueError(f"--of {GRIPPER} alone leads no arm anywhere; add one of {', '.join(DISTANCES)}")
    return measures


def _count_clips(size):
    """Return how many clips to read, of so many bytes each."""
    free = free_host_bytes()
    return _FEW_CLIPS if free is None else min(_MOST_CLIPS, max(2, int(_PART * free / size)))


def _frame_bytes(stored, model):
    """Return what the latents of a frame take; ValueError where none are stored, and nothing makes them."""
    if stored:
        return stored.frame_bytes
    if "encoder" not in model.networks:
        raise ValueError("the shards hold frames, but these weights have no encoder; give the encoder too")
    return (model.preprocessing.crop_size // model.encoder.patch_size) ** 2 * model.encoder.width * np.dtype(jnp.bfloat16).itemsize


def _read(args, count, source, stored, model, trained, robot):
    """Read clips: (`Samples`, `Origin` of the features or None)."""
    origin = None
    if trained:
        trained = trained._replace(views=args.view or trained.views)
        maker = samples.make_maker(trained, args.shards, args.frames, latents=stored is not None)
        origin = trained.origin if stored else None
    else:
        if stored:
            origin = stored.origin
        # Without a robot the numbers of a record mean nothing, and nobody asks for them.
        conditions = ConditionMaker(robot, args.view) if robot else lambda record, clip: (clip.states, np.diff(clip.states, axis=0))
        maker = samples.frame_maker(args.shards, args.frames, conditions, fps=args.fps or _FPS, size=model.preprocessing.crop_size,
                                    views=args.view, origin=origin)
    if origin and "encoder" in model.sha256 and origin.encoder_sha256 != model.sha256["encoder"]:
        raise ValueError(f"the shards hold features of the encoder with sha256 {origin.encoder_sha256[:12]}..., the one of --model has "
                         f"{model.sha256['encoder'][:12]}...; give the encoder that made them")
    with tqdm(total=count, desc="reading", unit=" clips", dynamic_ncols=True) as bar:
        return samples.read_samples(source, maker, count, seed=args.seed, on_sample=bar.update), origin


def _latents(found, origin, model, params):
    """Return latents bfloat16 `[M, F, N, D]` of clips, their grid, and the identity of their encoder."""
    if origin:
        return found.arrays["latents"], tuple(origin.grid), origin.encoder_sha256
    eyes, video = sight.make_sight(sight.TRAINED, model, params), found.arrays["video"]
    count, frames = video.shape[:2]
    with tqdm(total=count * frames, desc="encoding (compiles first)", unit=" frames", dynamic_ncols=True) as bar:
        parts = sight.see_all(eyes, video.reshape(-1, *video.shape[2:]), lambda latents: latents.astype(jnp.bfloat16), bar.update)
        latents = np.concatenate([np.asarray(part) for part in parts])
    return latents.reshape(count, frames, *latents.shape[1:]), eyes.grid, eyes.encoder_sha256


def _fit(measures, args, latents, states, robot):
    """Fit one network for each measure; returns their parameters by its name, and the gripper as `LearnedEnergy` has it."""
    apart = {"steps": lambda: learned_distance.steps_apart(*latents.shape[:2]), "states": lambda: learned_distance.states_apart(robot, states),
             "position": lambda: learned_distance.positions_apart(robot, states)}
    points, gripper = {}, None
    for measure in measures:
        steps = args.steps * (_MORE if measure == GRIPPER else 1)
        with tqdm(total=steps, desc=f"fitting {measure} (compiles first)", unit=" steps", dynamic_ncols=True) as bar:
            how = {"steps": steps, "seed": args.seed, "on_steps": bar.update}
            if measure == GRIPPER:
                closed, unit = learned_distance.gripper_steps(robot, states)
                points[measure], gripper = learned_distance.fit_reading(latents, closed, **how), (robot.gripper, unit)
            else:
                points[measure] = learned_distance.fit_points(latents, apart[measure](), detours=measure == "steps", noise=args.noise, **how)
    return points, gripper


def _judge(energies, latents, grid, robot, states):
    """Return lines: what energies are worth on clips that were not fitted on."""
    steps = learned_distance.steps_apart(*latents.shape[:2])
    place, gripper = (robot.part(kind) if robot else None for kind in ("position", "gripper"))
    apart = lambda part: np.linalg.norm(states[:, :, None, part.where] - states[:, None, :, part.where], axis=-1)
    titles = ["on clips that were held out", "rank correlation with steps to go"]
    if place:
        metres = apart(place)
        spans = [f"{_CENTIMETRES * low:g} to {_CENTIMETRES * high:g}" for low, high in zip(_EDGES, _EDGES[1:-1])]
        spans.append(f"over {_CENTIMETRES * _EDGES[-2]:g}")
        titles += ["rank correlation with the way of the robot", *(f"moves judged rightly, goals {span} cm away" for span in spans)]
    told_apart = place and gripper and robot.gripper_range
    if told_apart:
        low, high = robot.gripper_range
        opening = apart(gripper) / (high - low)
        pairs = (metres < _SAME_PLACE) & ~np.eye(metres.shape[-1], dtype=bool)
        titles.append("open and closed grippers told apart")
    columns = [titles]
    for name, energy in energies.items():
        found = learned_distance.clip_energies(energy, latents, grid, states)
        columns.append([name, f"{learned_distance.rank_correlation(found, steps):.3f}"])
        if place:
            shares = learned_distance.right_way(found, metres, _EDGES)
            columns[-1] += [f"{learned_distance.rank_correlation(found, metres):.3f}", *("-" if np.isnan(share) else f"{share:.0%}" for share in shares)]
        if told_apart:
            share = learned_distance.told_apart(found, pairs & (opening < _ALIKE), pairs & (opening > _DIFFER))
            columns[-1].append("-" if np.isnan(share) else f"{share:.2f}")
    width = max(map(len, titles))
    return ["", *(f"{title:{width}}" + "".join(f"{cell:>10}" for cell in cells) for title, *cells in zip(*columns))]
