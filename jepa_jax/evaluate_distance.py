"""The command `evaluate distance`: learn how many steps frames are apart, for planners to lower."""

import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jepa_jax.commandline import types
from jepa_jax.commandline.skipped import list_reasons
from jepa_jax.commandline.stdout import write_lines
from jepa_jax.data import ShardSource
from jepa_jax.data.trajectories import KIND
from jepa_jax.evals import samples, temporal
from jepa_jax.evals.closed_loop import sight
from jepa_jax.planning import Energy, TemporalEnergy, save_temporal
from jepa_jax.robots.conditions import ConditionMaker
from jepa_jax.robots.presets import PRESETS, make_spec
from jepa_jax.robots.world import bind_model
from jepa_jax.weights import tensors
from jepa_jax.weights.load import load, load_with_encoder

DESCRIPTION = """Learn from recorded trajectories how many steps any two frames are apart, as a planner's energy that falls all the way
to the goal: --distance temporal --distance-head FILE of `plan`, `viz energy` and `evaluate robot`. It is fitted on frames of
the same clip in both directions of time, and holds for the encoder of --model only.
At the end it is compared with the L1 energy on trajectories that were held out: how well each orders the frames of a clip by
the steps, and by the way of the robot, that are left to a goal (rank correlation), and how often it changes in the right
direction when the robot comes nearer or goes away. All clips are held in memory; take fewer where they do not fit."""
EXAMPLES = """examples:
  python -m jepa_jax.evaluate distance shards/tabletop --model runs/ac --output steps.safetensors
  python -m jepa_jax.evaluate robot --model runs/ac --distance temporal --distance-head steps.safetensors --output reports/steps"""
# Frames per second where no world model says it.
_FPS = 4.0
# Distances between which moves are judged, m.
_EDGES = (0.0, 0.1, 0.2, 0.3, float("inf"))
_CENTIMETRES = 100.0


def add_arguments(parser):
    """Add the options to the parser of the command."""
    parser.set_defaults(run=run)
    add = parser.add_argument
    add("shards", nargs="+", metavar="SHARDS", help="trajectory shards with frames or features: folders, globs or files")
    add("--model", required=True, metavar="PATH", help="run or weights of a world model, or of an encoder alone")
    add("--encoder", metavar="PATH", help="weights of the frozen encoder, where PATH of --model lacks them")
    add("--output", required=True, metavar="FILE", help="file to write, FILE.safetensors; must not exist")
    add("--robot", choices=PRESETS, help="for weights that name no robot, to compare with its way (default: none for an encoder alone)")
    add("--fps", type=types.positive_float, help=f"frames per second: what a step is (default: as trained; {_FPS:g} for an encoder alone)")
    add("--view", type=types.names(), metavar="NAME[,NAME]", help="cameras (default: as trained)")
    add("--samples", type=types.positive, default=1500, help="clips, of as many trajectories as there are (default %(default)s)")
    add("--frames", type=types.positive, default=21, help="of a clip; no goals are farther away (default %(default)s)")
    add("--held-out", type=types.fraction, default=0.1, metavar="X", help="share of the trajectories to test on (default %(default)s)")
    add("--steps", type=types.positive, default=1500, help="of training (default %(default)s)")
    add("--noise", type=types.non_negative_float, default=0.1, metavar="X",
        help="added to latents at most, in deviations, as a planner looks at predicted ones (default %(default)s)")
    add("--seed", type=types.count, default=0, help="of clips, split and training (default %(default)s)")


def run(args):
    """Fit a temporal distance, test and write it; returns the exit status."""
    tensors.refuse_existing(args.output)
    # Whatever networks there are: a world model says how it sees, an encoder alone does not.
    model, params = load_with_encoder(args.model, args.encoder, ("encoder", "action_predictor")) if args.encoder else load(args.model)
    source = ShardSource(args.shards, KIND)
    record = samples.first_record(source)
    robot = make_spec({"preset": args.robot}, record) if args.robot else None
    trained = bind_model(model, robot, args.fps) if "action_predictor" in model.networks else None
    robot = trained.world.robot if trained else robot
    found, origin = _read(args, source, record, model, trained, robot)
    latents, grid, sha256 = _latents(found, origin, model, params)
    held = temporal.hold_out(found.trajectory, args.held_out, args.seed)
    with tqdm(total=args.steps, desc="fitting (compiles first)", unit=" steps", dynamic_ncols=True) as bar:
        points = temporal.fit_points(latents[~held], steps=args.steps, noise=args.noise, seed=args.seed, on_steps=bar.update)
    fps = trained.fps if trained else args.fps or _FPS
    energy = TemporalEnergy(points, grid, sha256, fps, args.frames, {"clips": int((~held).sum()), "noise": args.noise, "seed": args.seed,
                                                                    "steps": args.steps})
    lines = [f"{len(found)} clips of {found.trajectories} trajectories, {args.frames} frames at {fps:g}/s; {int(held.sum())} clips are held out"]
    lines += list_reasons(found.skips)
    lines += _judge({"temporal": energy, "l1": Energy()}, latents[held], grid, _positions(found, robot, held))
    save_temporal(energy, args.output)
    write_lines([*lines, "", f"wrote {args.output}"])
    return 0


def _read(args, source, record, model, trained, robot):
    """Read clips: (`Samples`, `Origin` of the features or None)."""
    stored = samples.holds_latents(record, args.view)
    origin = None
    if trained:
        trained = trained._replace(views=args.view or trained.views)
        maker = samples.make_maker(trained, args.shards, args.frames, latents=stored)
        origin = trained.origin if stored else None
    else:
        if stored:
            origin = next(view.latents.origin for view in record.views if view.latents and (not args.view or view.name in args.view))
        # Without a robot the numbers of a record mean nothing, and nobody asks for them.
        conditions = ConditionMaker(robot, args.view) if robot else lambda record, clip: (clip.states, np.diff(clip.states, axis=0))
        maker = samples.frame_maker(args.shards, args.frames, conditions, fps=args.fps or _FPS, size=model.preprocessing.crop_size,
                                    views=args.view, origin=origin)
    if origin and "encoder" in model.sha256 and origin.encoder_sha256 != model.sha256["encoder"]:
        raise ValueError(f"the shards hold features of the encoder with sha256 {origin.encoder_sha256[:12]}..., the one of --model has "
                         f"{model.sha256['encoder'][:12]}...; give the encoder that made them")
    with tqdm(total=args.samples, desc="reading", unit=" clips", dynamic_ncols=True) as bar:
        return samples.read_samples(source, maker, args.samples, seed=args.seed, on_sample=bar.update), origin


def _latents(found, origin, model, params):
    """Return latents bfloat16 `[M, F, N, D]` of clips, their grid, and the identity of their encoder."""
    if origin:
        return found.arrays["latents"], tuple(origin.grid), origin.encoder_sha256
    if "encoder" not in model.networks:
        raise ValueError("the shards hold frames, but these weights have no encoder; give the encoder too")
    eyes, video = sight.make_sight(sight.TRAINED, model, params), found.arrays["video"]
    count, frames = video.shape[:2]
    with tqdm(total=count * frames, desc="encoding (compiles first)", unit=" frames", dynamic_ncols=True) as bar:
        parts = sight.see_all(eyes, video.reshape(-1, *video.shape[2:]), lambda latents: latents.astype(jnp.bfloat16), bar.update)
        latents = np.concatenate([np.asarray(part) for part in parts])
    return latents.reshape(count, frames, *latents.shape[1:]), eyes.grid, eyes.encoder_sha256


def _positions(found, robot, held):
    """Return where the robot is in the clips that are held out, float32 `[M, F, 3]`, m; None if nothing says it."""
    part = robot.part("position") if robot else None
    return None if part is None else found.arrays["states"][held][..., part.where]


def _judge(energies, latents, grid, positions):
    """Return lines: what energies are worth on clips that were not fitted on."""
    count, frames = latents.shape[:2]
    steps = np.broadcast_to(np.abs(np.subtract.outer(np.arange(frames), np.arange(frames))), (count, frames, frames))
    titles = ["on clips that were held out", "rank correlation with steps to go"]
    if positions is not None:
        metres = np.linalg.norm(positions[:, :, None] - positions[:, None], axis=-1)
        spans = [f"{_CENTIMETRES * low:g} to {_CENTIMETRES * high:g}" for low, high in zip(_EDGES, _EDGES[1:-1])]
        spans.append(f"over {_CENTIMETRES * _EDGES[-2]:g}")
        titles += ["rank correlation with the way of the robot", *(f"moves judged rightly, goals {span} cm away" for span in spans)]
    columns = [titles]
    for name, energy in energies.items():
        found = temporal.clip_energies(energy, latents, grid)
        columns.append([name, f"{temporal.rank_correlation(found, steps):.3f}"])
        if positions is not None:
            shares = temporal.right_way(found, metres, _EDGES)
            columns[-1] += [f"{temporal.rank_correlation(found, metres):.3f}", *("-" if np.isnan(share) else f"{share:.0%}" for share in shares)]
    width = max(map(len, titles))
    return ["", *(f"{title:{width}}" + "".join(f"{cell:>10}" for cell in cells) for title, *cells in zip(*columns))]
