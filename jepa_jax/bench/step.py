"""Time the pretraining step: the functions of the task, on synthetic video and real masks."""

import json
import time

import jax
import numpy as np
from absl import logging

from jepa_jax.bench import peaks, report
from jepa_jax.bench.peer import Comparison
from jepa_jax.models.attention import choose_backend
from jepa_jax.models.flops import total_flops
from jepa_jax.tasks import pretrain
from jepa_jax.tasks.step import make_schedules
from jepa_jax.training import sharding

_NUM_BATCHES = 2
_WARM_UP_STEPS = 2
_PAUSE_S = 0.05


def make_batch(groups, size, step, seed=0):
    """Make the batch of one step: noise as video, masks as in training.

    Args:
      groups: `pretrain.Group`s.
      size: height and width of the clips, pixels.
      step: training step; masks and noise depend on it.

    Returns:
      Host arrays as `ClipPipeline.batch_at` makes them.
    """
    batch = {}
    for index, group in enumerate(groups):
        spec = group.spec
        frames = 1 if spec.kind == "image" else spec.frames
        context_ids, target_ids = group.sampler.sample(step, np.arange(spec.batch_size))
        noise = np.random.default_rng((seed, step, index))
        video = noise.integers(0, 256, (spec.batch_size, frames, size, size, 3), np.uint8)
        batch[spec.name] = {"video": video, "context_ids": context_ids, "target_ids": target_ids}
    return batch


def measure_step(config, *, steps, against=None, torch_compile=False):
    """Compile and time the pretraining step of a config on all devices.

    Args:
      config: ConfigDict as in `configs/pretrain.py`; its data paths are not read.
      steps: timed steps, at least 1.
      against: "torch" to time the same step in PyTorch as well, in turn with ours.
      torch_compile: let PyTorch compile its networks.

    Returns:
      JSON-able dict.

    Raises:
      ValueError: if a setting is impossible, or the two losses disagree.
    """
    # The peer runs on one device, and then so do we.
    mesh = sharding.make_mesh(config.mesh.fsdp, jax.devices()[:1] if against else None, config.mesh.sequence)
    groups = pretrain.make_groups(config)
    program = pretrain.make_program(config, groups, mesh)
    encoder, predictor = program.networks["encoder"], program.networks["predictor"]
    batches = [make_batch(groups, config.data.size, number) for number in range(_NUM_BATCHES)]
    with sharding.use_mesh(mesh):
        run = _Ours(program.init_state, program.train_step, batches, mesh)
        comparison = None
        if against == "torch":
            comparison = Comparison(
                config, groups, encoder, predictor, run.state.params, batches,
                make_schedules(config.optim),
                num_steps=_WARM_UP_STEPS + steps, compiled=torch_compile,
            )
        warm_losses = [run() for _ in range(_WARM_UP_STEPS)]
        memory = _memory(run)
        if comparison:
            comparison.check_losses(warm_losses)
        times, peer_times = _time(run, comparison, steps)
    flops = total_flops(program.passes)
    return _record(config, groups, encoder, mesh, run, memory, times, flops) | (
        comparison.record(times, peer_times) if comparison else {}
    )


class _Ours:
    """Own the compiled step and its state; calling it makes one step and returns the loss."""

    def __init__(self, init, step, batches, mesh):
        rng = jax.random.key(0)
        placement = sharding.state_sharding(jax.eval_shape(init, rng), mesh)
        self.state = jax.jit(init, out_shardings=placement)(rng)
        self._batches = [sharding.put_batch(batch, mesh) for batch in batches]
        start = time.perf_counter()
        jitted = jax.jit(step, donate_argnums=0, out_shardings=(placement, None, None))
        lowered = jitted.lower(self.state, self._batches[0])
        self.trace_s = time.perf_counter() - start
        start = time.perf_counter()
        self.compiled = lowered.compile()
        self.compile_s = time.perf_counter() - start
        self._count = 0

    def __call__(self):
        batch = self._batches[self._count % len(self._batches)]
        self.state, metrics, samples = self.compiled(self.state, batch)
        jax.block_until_ready((self.state, metrics, samples))
        self._count += 1
        return float(metrics["train/loss"])


def _time(run, comparison, steps):
    """Time `steps` steps of each side, one of ours and one of the peer's in turn."""
    ours, theirs = report.Times([], []), report.Times([], [])
    for number in range(steps):
        for call, times in ((run, ours), (comparison, theirs)):
            if call is None:
                continue
            # Idle threads of the other framework spin for a moment before they sleep.
            time.sleep(_PAUSE_S)
            times.measure(call)
        logging.info("step %d of %d: %.1f ms", number + 1, steps, ours.wall_ms[-1])
    return ours, theirs


def _memory(run):
    """Say how much memory the step takes, in bytes, by each way of asking that works here."""
    analysis = run.compiled.memory_analysis()
    stats = jax.local_devices()[0].memory_stats() or {}
    names = ("argument_size_in_bytes", "output_size_in_bytes", "alias_size_in_bytes", "temp_size_in_bytes")
    compiled = {name.removesuffix("_in_bytes") + "_bytes": getattr(analysis, name) for name in names} if analysis else None
    return {
        # Per device: what the compiled program reserves, and what the allocator has seen.
        "compiled": compiled,
        "device_peak_bytes": stats.get("peak_bytes_in_use"),
        # Of the process, libraries and host arrays included; before any other framework is timed.
        "process_peak_rss_bytes": report.peak_rss_bytes(),
    }


def _record(config, groups, encoder, mesh, run, memory, times, flops):
    device = jax.devices()[0]
    milliseconds = report.spread(times.wall_ms)
    seconds = milliseconds["median"] / 1e3
    peak = peaks.device_peak(device, config.model.dtype)
    return {
        "benchmark": "step",
        "config": json.loads(config.to_json_best_effort()),
        "groups": [
            {"name": group.spec.name, "batch_size": group.spec.batch_size, "frames": group.spec.frames,
             "grid": list(group.grid), "masks": [list(lengths) for lengths in group.sampler.lengths]}
            for group in groups
        ],
        "attention_backend": choose_backend(encoder.attention, encoder.dtype),
        "device": {"kind": device.device_kind, "platform": device.platform, "num": mesh.size},
        "machine": report.machine(),
        "trace_s": run.trace_s,
        "compile_s": run.compile_s,
        "step_ms": milliseconds,
        "step_cpu_ms": report.spread(times.cpu_ms),
        "clips_per_s": sum(group.spec.batch_size for group in groups) / seconds,
        "model_tflop_per_step": flops / 1e12,
        "model_tflop_per_s": flops / 1e12 / seconds,
        "peak_tflop_per_s": peak.tflop_per_s * mesh.size,
        "peak_source": peak.source,
        "utilisation": flops / 1e12 / seconds / (peak.tflop_per_s * mesh.size),
        "memory": memory,
    }
