"""Time the planner beside the official one in PyTorch, at fixed samples, iterations, horizon, tokens and dtype."""

import functools
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jepa_jax.bench import report
from jepa_jax.bench.encode import random_params
from jepa_jax.bench.torch_setup import choose_device, make_fast
from jepa_jax.models import ActionPredictor, make_encoder
from jepa_jax.models.flops import action_predictor_flops
from jepa_jax.planning import bind, make_root, make_spec
from jepa_jax.planning.memory import fit_memory
from jepa_jax.robots.presets import DROID
from jepa_jax.robots.world import WorldModel

_WARM_UP = 1
_FRAME = "one frame, held for a tubelet"


class Size(NamedTuple):
    """Name the sizes of a world model, and the budget that is usual for it: encoder, its crop, predictor, candidates."""

    encoder: str
    crop: int
    predictor: dict
    samples: int
    iterations: int


SIZES = {
    "tiny": Size("vit_micro", 64, {"width": 128, "depth": 4, "num_heads": 4}, 64, 4),
    # The released model; the budget is that of the paper.
    "full": Size("vit_giant", 256, {"width": 1024, "depth": 24, "num_heads": 16}, 800, 10),
}


def measure_planning(size, *, samples, iterations, horizons, dtype, repeats, chunk, against):
    """Time plans of one world model with random weights, and encoding a frame, on one device.

    Args:
      size: key of `SIZES`.
      samples, iterations: budget; None for that of the size.
      horizons: each measured by itself.
      dtype: compute dtype of predictor and encoder.
      repeats: timed plans.
      chunk: candidates at once; None for as many as fit.
      against: "torch" to time the official planner too, in turn with ours; or None.

    Returns:
      JSON-able dict.

    Raises:
      ValueError: if a setting is impossible or does not fit into memory.
    """
    sizes, device = SIZES[size], jax.devices()[0]
    world, params = _random_world(sizes, dtype)
    budget = {"samples": samples or sizes.samples, "iterations": iterations or sizes.iterations, "chunk": chunk}
    runs = [_measure_horizon(world, params, horizon, budget, dtype, repeats, against) for horizon in horizons]
    for kind in ("time", "cpu_time"):
        name = "plan_ms" if kind == "time" else "plan_cpu_ms"
        for run in runs:
            run[f"{kind}_over_first_horizon"] = run[name]["median"] / runs[0][name]["median"]
    return {
        "benchmark": "plan", "size": size, "dtype": dtype, "budget": budget,
        "device": {"kind": device.device_kind, "platform": device.platform, "num": 1}, "machine": report.machine(),
        "encode": _measure_encode(world, sizes, repeats), "runs": runs,
    }


def _random_world(sizes, dtype):
    """Return a world model with random weights: (`WorldModel`, params)."""
    encoder = make_encoder(sizes.encoder, positions="rope", dtype=jnp.dtype(dtype))
    grid = (sizes.crop // encoder.patch_size,) * 2
    predictor = ActionPredictor(encoder.width, grid=grid, dtype=jnp.dtype(dtype), **sizes.predictor)
    params = {"action_predictor": jax.device_put(random_params(predictor, 0))}
    return WorldModel(predictor, DROID, encoder), params


def _measure_encode(world, sizes, repeats):
    """Time encoding one frame."""
    params = {"encoder": jax.device_put(random_params(world.encoder, 1))}
    frame = jnp.zeros((1, 1, sizes.crop, sizes.crop, 3), jnp.uint8)
    encode = jax.jit(world.encode).lower(params, frame).compile()
    return {"what": _FRAME, "encode_ms": report.spread(_time(lambda: jax.block_until_ready(encode(params, frame)), repeats))}


def _measure_horizon(world, params, horizon, budget, dtype, repeats, against):
    """Time plans of one horizon, ours and the official ones in turn."""
    # The momenta of the official planner at its usual settings; the budget is what counts here.
    spec = fit_memory(world, make_spec(DROID, "paper", horizon=horizon, **budget))
    root, noise = _inputs(world, spec)
    planner = bind(world, spec)
    began = time.perf_counter()
    solve = jax.jit(planner.plan).lower(params, jax.random.key(0), root).compile()
    compile_s = time.perf_counter() - began
    calls = {"ours": lambda: jax.block_until_ready(solve(params, jax.random.key(0), root))}
    if against:
        from jepa_jax.bench.torch_planner import TorchPlanner

        place = choose_device(jax.default_backend())
        make_fast(place)
        peer = TorchPlanner(world.predictor, params["action_predictor"], spec, half=dtype == "bfloat16", device=place)
        official = functools.partial(peer.plan, *(np.asarray(value) for value in (root.state.latents, root.state.pose, root.goal)))
        calls["torch"] = official
    times = {name: report.Times([], []) for name in calls}
    for number in range(_WARM_UP + repeats):
        for name, call in calls.items():
            if number == _WARM_UP:
                times[name] = report.Times([], [])
            times[name].measure(call)
    median = report.spread(times["ours"].wall_ms)["median"]
    flops = spec.samples * spec.iterations * action_predictor_flops(world.predictor, int(np.prod(world.predictor.grid)), horizon)
    run = {"horizon": horizon, "chunk": spec.chunk, "evaluations": spec.evaluations, "compile_s": compile_s,
           "plan_ms": report.spread(times["ours"].wall_ms), "plan_cpu_ms": report.spread(times["ours"].cpu_ms),
           "model_tflop_per_s": flops / 1e9 / median}
    if against:
        ours = np.asarray(jax.jit(planner.plan)(params, jax.random.key(0), root, noise=noise).actions)
        run |= {"torch": {"plan_ms": report.spread(times["torch"].wall_ms), "plan_cpu_ms": report.spread(times["torch"].cpu_ms)},
                "speedup_over_torch": report.spread(times["torch"].wall_ms)["median"] / median,
                "cpu_speedup_over_torch": report.spread(times["torch"].cpu_ms)["median"] / report.spread(times["ours"].cpu_ms)["median"],
                "max_action_difference": float(np.abs(ours - official(noise=np.asarray(noise))).max())}
    return run


def _inputs(world, spec):
    """Draw a root and noise."""
    shape = (2, int(np.prod(world.predictor.grid)), world.predictor.output_dim)
    latents = jax.nn.standardize(jax.random.normal(jax.random.key(1), shape))
    pose = np.array([0.5, 0.0, 0.3, 3.1, 0.0, 0.0, 0.3], np.float32)
    noise = jax.random.normal(jax.random.key(2), (spec.iterations, spec.horizon, spec.samples, spec.dims))
    return make_root(world, latents[0], pose, latents[1]), noise


def _time(call, repeats):
    """Return milliseconds of every call after a first one."""
    call()
    times = report.Times([], [])
    for _ in range(repeats):
        times.measure(call)
    return times.wall_ms
