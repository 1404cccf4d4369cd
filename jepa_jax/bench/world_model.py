"""Time action-conditioned training on stored features beside encoding in every step, and what storing them takes."""

import dataclasses
import gc
import json
import os
import time
from fractions import Fraction
from typing import ClassVar, NamedTuple

import jax
import numpy as np

from jepa_jax import prepare
from jepa_jax.bench import report
from jepa_jax.bench.encode import random_params
from jepa_jax.data import ShardSource, shards
from jepa_jax.data.encoding import Encoding, encode_video, rgb_frame
from jepa_jax.data.publish import read_json
from jepa_jax.data.sources.robots import POSE_NAMES, POSE_UNITS
from jepa_jax.data.trajectories import KIND, TrajectoryRecord, View
from jepa_jax.data.workers import usable_cores
from jepa_jax.models import make_encoder
from jepa_jax.tasks import world_model
from jepa_jax.training import sharding
from jepa_jax.weights import native
from jepa_jax.weights.bundle import Bundle, Network, Preprocessing

# As DROID's: 15 rows a second, 16 seconds long, frames of 16:9.
_RATE, _ROWS, _ASPECT = 15, 240, 16 / 9
_WARM_UP_STEPS = 2
_PER_SHARD = 4


class _Number(NamedTuple):
    """Name a synthetic trajectory."""

    number: int

    @property
    def name(self):
        """Name it in reports."""
        return f"synthetic {self.number}"


@dataclasses.dataclass(frozen=True)
class _SyntheticSpec(Encoding):
    """Make trajectories with a noisy texture that moves, which costs about what a camera's video does."""

    kind: ClassVar[str] = KIND

    def convert(self, item):
        """Make one."""
        rng = np.random.default_rng(item.number)
        height, width = self.size, round(self.size * _ASPECT / 2) * 2
        texture = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8).repeat(8, 0).repeat(8, 1)
        frames = (rgb_frame(np.roll(texture, 2 * row, axis=1)[:height, :width]) for row in range(_ROWS))
        video = encode_video(frames, Fraction(_RATE), self, item.name)
        angles = np.linspace(0, 2, _ROWS)[:, None] + rng.uniform(0, 6, len(POSE_NAMES))
        view = View("left", video.data, video.height, video.width)
        return TrajectoryRecord(
            views=(view,), states=(0.5 + 0.3 * np.sin(angles)).astype(np.float32), actions=None, control_rate=float(_RATE),
            header_fps=float(_RATE), rate="true", state_names=POSE_NAMES, state_units=POSE_UNITS, action_names=(),
            action_units=(), frame="robot base", rotation="xyz euler", gripper_range=(0.0, 1.0), instruction=None,
            source_id=item.name, extras={},
        )


def make_trajectories(folder, count, size):
    """Write shards of synthetic trajectories for the robot preset droid.

    Args:
      folder: where to.
      count: how many.
      size: short side of the frames, pixels.
    """
    plan = shards.ShardPlan(folder, "synthetic", _PER_SHARD, _SyntheticSpec(size=size))
    shards.write_shards([_Number(number) for number in range(count)], plan, workers=usable_cores())


def write_encoder(folder, size, crop_size):
    """Write random weights of a named encoder size, in our own format."""
    encoder = make_encoder(size, positions="rope")
    native.write(Bundle({"target_encoder": Network(encoder, random_params(encoder, 0))},
                        Preprocessing(crop_size=crop_size, short_side=crop_size)), folder)


def measure_world_model(config, folder, *, steps, encode_batch):
    """Store features of a config's trajectories, then time training with and without them, on one device.

    Args:
      config: unlocked ConfigDict as in `configs/world_model.py`; `encoder` and `data.paths` are set.
      folder: empty; gets the features.
      steps: timed steps of each kind.
      encode_batch: frames encoded at once while features are stored.

    Returns:
      JSON-able dict.

    Raises:
      ValueError: if a setting is impossible, or features cannot be made.
    """
    stored = _store(config, folder, encode_batch)
    sides = {}
    # The smaller one first: peaks of device memory are since the process began.
    for name, paths in (("stored", (folder,)), ("on_the_fly", tuple(config.data.paths))):
        side = config.copy_and_resolve_references()
        side.data.paths, side.data.weights = paths, (1.0,) * len(paths)
        report.reset_peak_rss()
        sides[name] = _measure_side(side.lock(), steps) | {"bytes_per_trajectory": _record_bytes(paths)}
        gc.collect()
    device = jax.devices()[0]
    fast, slow = sides["stored"], sides["on_the_fly"]
    return {
        "benchmark": "world_model",
        "config": json.loads(config.to_json_best_effort()),
        "device": {"kind": device.device_kind, "platform": device.platform, "num": 1},
        "machine": report.machine(),
        "features": stored,
        **sides,
        "stored_over_on_the_fly": {
            "step_time": fast["step_ms"]["median"] / slow["step_ms"]["median"],
            "step_cpu_time": fast["step_cpu_ms"]["median"] / slow["step_cpu_ms"]["median"],
            "step_with_data_time": fast["step_with_data_ms"]["median"] / slow["step_with_data_ms"]["median"],
            "bytes_per_trajectory": fast["bytes_per_trajectory"] / slow["bytes_per_trajectory"],
        },
    }


def _store(config, folder, encode_batch):
    """Run `prepare features` for a config; returns its JSON report."""
    data = config.data
    argv = ["features", *(os.path.join(data.root, path) for path in data.paths), "--model", config.encoder, "--output",
            folder, "--size", str(data.size), "--fps", str(data.fps), "--batch", str(encode_batch), "--crop-aspect",
            *map(str, data.crop_aspect)]
    if data.views:
        argv += ["--views", ",".join(data.views)]
    if prepare.main(argv):
        raise ValueError("`prepare features` failed, see above")
    return read_json(os.path.join(folder, "features-report.json"))


def _record_bytes(paths):
    source = ShardSource(paths, KIND)
    return sum(map(os.path.getsize, source.files)) / len(source)


def _measure_side(config, steps):
    """Compile and time the step of one config: on a batch that is there, and with the data as they come."""
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    with sharding.use_mesh(mesh):
        task = world_model.make_task(config, mesh)
        state, frozen = jax.jit(task.init_state)(jax.random.key(0)), jax.device_put(task.frozen)
        with task.open_data(0, 1) as batches:
            batch = sharding.put_batch(next(batches)[0], mesh)
        began = time.perf_counter()
        step = jax.jit(task.train_step, donate_argnums=0).lower(state, batch, frozen).compile()
        compile_s = time.perf_counter() - began
        times = report.Times([], [])
        for number in range(_WARM_UP_STEPS + steps):
            if number == _WARM_UP_STEPS:
                times = report.Times([], [])
            state = _timed_step(step, state, batch, frozen, times)
        whole = _with_data(task, step, state, frozen, mesh, steps)
    analysis, stats = step.memory_analysis(), jax.local_devices()[0].memory_stats() or {}
    median = report.spread(times.wall_ms)["median"]
    return {
        "compile_s": compile_s,
        "step_ms": report.spread(times.wall_ms),
        "step_cpu_ms": report.spread(times.cpu_ms),
        "steps_per_s": 1e3 / median,
        "step_with_data_ms": report.spread(whole),
        "steps_with_data_per_s": 1e3 * len(whole) / sum(whole),
        # What a step takes longer when its successor's batch is fetched meanwhile.
        "data_wait_share": max(0.0, 1 - median * len(whole) / sum(whole)),
        "model_tflop_per_s": task.flops_per_step / 1e9 / median,
        "memory": {
            "temp_bytes": analysis.temp_size_in_bytes if analysis else None,
            "argument_bytes": analysis.argument_size_in_bytes if analysis else None,
            "device_peak_bytes": stats.get("peak_bytes_in_use"),
            "process_peak_rss_bytes": report.peak_rss_bytes(),
        },
    }


def _timed_step(step, state, batch, frozen, times):
    """Make one step and append how long it took; returns the new state."""
    made = []

    def call():
        made.append(jax.block_until_ready(step(state, batch, frozen)))

    times.measure(call)
    return made[0][0]


def _with_data(task, step, state, frozen, mesh, steps):
    """Train as the loop does, the next batch being fetched while a step runs; returns milliseconds of each step."""
    whole = []
    with task.open_data(0, _WARM_UP_STEPS + steps + 1) as batches:
        batch = sharding.put_batch(next(batches)[0], mesh)
        for _ in range(_WARM_UP_STEPS + steps):
            began = time.perf_counter()
            state, *_ = step(state, batch, frozen)
            batch = sharding.put_batch(next(batches)[0], mesh)
            jax.block_until_ready((state, batch))
            whole.append(1e3 * (time.perf_counter() - began))
    return whole[_WARM_UP_STEPS:]
