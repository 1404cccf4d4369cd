"""Compile the real train step for a pod that is not there: does it fit, what does it send, how long may a step take?"""

import json
import math
import re
import time
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging

from jepa_jax.bench import hlo, report, roofline, topology
from jepa_jax.bench.host_input import host_input
from jepa_jax.models import make_encoder
from jepa_jax.models.attention import choose_backend
from jepa_jax.models.flops import recomputed_flops, total_flops
from jepa_jax.tasks import pretrain, world_model
from jepa_jax.training import loop, sharding

_OVERFLOW = re.compile(r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm|\(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class Lowerable(NamedTuple):
    """All that is needed to lower the step of a task.

    Attributes:
      program: of `tasks.pretrain` or `tasks.world_model`.
      batch, frozen: `jax.ShapeDtypeStruct`s without shardings.
      clips: of a step.
      clip: (frames, side in pixels); the longest where there are several.
    """

    program: Any
    batch: Any
    frozen: Any
    clips: int
    clip: tuple[int, int]


class Overflow(NamedTuple):
    """Bytes of HBM that a program would need, and those that there are."""

    used: float
    available: float
    message: str


def measure_compile(config, where, *, encoder, assumptions, largest_batch, results):
    """Compile the train step of a config for a topology.

    Args:
      config: unlocked ConfigDict; its data and weights are not read.
      where: `Topology`.
      encoder: named size of the frozen encoder, for tasks that have one.
      assumptions: `roofline.Assumptions`.
      largest_batch: compile once more, for half the batch, and tell the largest one that fits.
      results: folder with the records of `bench data`.

    Returns:
      JSON-able dict.

    Raises:
      ValueError: if a setting is impossible, the task cannot be compiled so, or there is no such topology.
    """
    devices = topology.devices(where)
    mesh = sharding.make_mesh(config.mesh.fsdp, devices)
    # "auto" goes by the machine at hand, which is not the one that is compiled for.
    config.model.attention = choose_backend(config.model.attention, config.model.dtype, platform="tpu")
    step = _lowerable(config, mesh, encoder)
    compiled, times = _compile(step, mesh)
    memory = _memory(step, mesh, compiled, where)
    network = None if isinstance(compiled, Overflow) else _network(compiled, mesh)
    record = {
        "benchmark": "compile",
        "config": json.loads(config.to_json_best_effort()),
        "encoder": encoder if config.task == "world_model" else None,
        "topology": {"name": where.name, "slices": where.slices, "chips": where.num_chips, "devices": len(devices),
                     "device_kind": devices[0].device_kind, "mesh": dict(mesh.shape)},
        "chip": where.chip._asdict(),
        "machine": report.machine(),
        "clips_per_step": step.clips,
        "not_split": _not_split(step, mesh),
        **times,
        "memory": memory,
        "network": network,
    } | _predictions(step, mesh, memory, network, where, assumptions)
    record["host_input"] = host_input(where, step.clips, record["roofline"]["step_s"], frames=step.clip[0], size=step.clip[1],
                                      results=results)
    if largest_batch:
        record["largest_batch"] = _largest_batch(config, mesh, encoder, step.clips, memory)
    return record


def _lowerable(config, mesh, encoder):
    if config.task == "pretrain":
        groups = pretrain.make_groups(config)
        clip = max((group.spec.frames for group in groups)), config.data.size
        return Lowerable(pretrain.make_program(config, groups, mesh), pretrain.abstract_batch(config, groups), {},
                         sum(group.spec.batch_size for group in groups), clip)
    if config.task == "world_model":
        robot, features, module, frozen = world_model.describe_run(config, make_encoder(encoder, positions="rope"))
        program = world_model.make_program(config, robot, features, module, {}, mesh)
        return Lowerable(program, world_model.abstract_batch(config, robot, features), frozen, config.data.batch_size,
                         (config.data.frames, config.data.size))
    raise ValueError(f"task {config.task!r} cannot be compiled without its data; those that can: pretrain, world_model")


def _compile(step, mesh):
    """Lower and compile; returns (`jax.stages.Compiled` or `Overflow`, seconds)."""
    with sharding.use_mesh(mesh):
        began, began_cpu = time.perf_counter(), time.process_time()
        lowered = loop.lower_step(step.program, *_abstract(step, mesh), mesh)
        times = {"trace_s": time.perf_counter() - began}
        began, began_cpu = time.perf_counter(), time.process_time()
        try:
            result = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            result = _overflow(error)
    # Of all threads: steadier than the clock where others use the machine too.
    return result, times | {"compile_s": time.perf_counter() - began, "compile_cpu_s": time.process_time() - began_cpu}


def _abstract(step, mesh):
    """Return (state, batch, frozen weights) as `jax.ShapeDtypeStruct`s with the shardings that training gives them."""
    state = loop.abstract_train_state(step.program, mesh)
    batch = sharding.place_abstract(step.batch, sharding.batch_sharding(mesh))
    return state, batch, sharding.place_abstract(step.frozen, sharding.state_sharding(step.frozen, mesh))


def _overflow(error):
    """Read how much memory a program that does not fit would need; any other error is raised again."""
    match = _OVERFLOW.search(str(error))
    if not match:
        raise error
    used, used_unit, available, available_unit = (group for group in match.groups() if group is not None)
    return Overflow(float(used) * _UNITS[used_unit], float(available) * _UNITS[available_unit], match[0])


def _not_split(step, mesh):
    """Name the parameters that had to be replicated although the config asks to split them."""
    params = _abstract(step, mesh)[0].params
    return [f"{name} {list(shape)}" for name, shape in sharding.unsplit({"params": params, "frozen": step.frozen}, mesh)]


def _shard_bytes(tree):
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * np.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree))


def _memory(step, mesh, compiled, where):
    """Say what is in the memory of one device, in bytes."""
    state, batch, frozen = _abstract(step, mesh)
    limit = where.chip.hbm_bytes / where.chip.devices
    # Exact, from the shardings; XLA pads some arrays to whole tiles.
    kinds = {"parameters": _shard_bytes(state.params), "ema": _shard_bytes(state.target_params),
             "optimizer": _shard_bytes(state.opt_state), "batch": _shard_bytes(batch), "frozen": _shard_bytes(frozen)}
    if isinstance(compiled, Overflow):
        return {"fits": False, "by_kind": kinds, "peak": compiled.used, "limit": compiled.available,
                "free": 1 - compiled.used / compiled.available, "compiler_says": compiled.message}
    analysis = compiled.memory_analysis()
    sizes = {name: getattr(analysis, f"{name}_size_in_bytes") for name in ("argument", "output", "alias", "temp", "generated_code")}
    # Outputs that take the place of the state they replace are aliases, and in memory once.
    peak = sizes["argument"] + sizes["output"] - sizes["alias"] + sizes["temp"] + sizes["generated_code"]
    return {
        "fits": True, "by_kind": kinds, "temporaries": sizes["temp"], "generated_code": sizes["generated_code"],
        "arguments_padded": sizes["argument"], "outputs_not_aliased": sizes["output"] - sizes["alias"], "peak": peak,
        "limit": limit, "free": 1 - peak / limit, "compiler_says": None,
    }


def _network(compiled, mesh):
    # Programs number devices in the order of the mesh.
    slices = [sharding.slice_of(device) for device in mesh.devices.flat]
    # The program of several slices is that of one; what goes to others is sent through the hosts.
    found = hlo.collectives(compiled.as_text(), lambda number: slices[number])
    by_kind = hlo.summarize(found)
    return {
        "by_kind": by_kind,
        "ici_bytes": sum(kind["ici_bytes"] for kind in by_kind.values()),
        "dcn_bytes": sum(kind["dcn_bytes"] for kind in by_kind.values()),
        "what": "bytes that one device sends in a step by ring algorithms; XLA may write a gather as an all-reduce",
    }


def _predictions(step, mesh, memory, network, where, assumptions):
    passes = step.program.passes
    state, _, frozen = _abstract(step, mesh)
    weights = {name: _count(tree) for name, tree in ({**frozen, **state.params}).items()}
    if state.target_params:
        weights["target_encoder"] = _count(state.target_params)
    kinds = memory["by_kind"]
    moved = roofline.moved_bytes(passes, weights, kinds["parameters"] + kinds["ema"] + kinds["optimizer"], mesh.size,
                                 gathered=mesh.shape["fsdp"] > 1)
    model_flops = total_flops(passes)
    sent = None if network is None else (network["ici_bytes"], network["dcn_bytes"])
    return {
        "parameters": weights,
        "model_tflop_per_step": model_flops / 1e12,
        "recomputed_tflop_per_step": recomputed_flops(passes) / 1e12,
        "roofline": roofline.predict(passes, model_flops, step.clips, moved, sent, where, assumptions),
    }


def _count(tree):
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def _largest_batch(config, mesh, encoder, clips, memory):
    """Tell the largest batch by a straight line through the peaks at the whole batch and at half of it."""
    unit = mesh.size * config.optim.accumulate
    small = config.copy_and_resolve_references()
    for section in _batches(small):
        if section.batch_size and section.batch_size < 2 * unit:
            return {"clips": None, "why": f"half of batch {section.batch_size} is not a multiple of {unit}"}
        section.batch_size = section.batch_size // (2 * unit) * unit
    step = _lowerable(small, mesh, encoder)
    compiled, _ = _compile(step, mesh)
    logging.info("compiled for %d clips too", step.clips)
    peak = _peak(compiled)
    slope = (memory["peak"] - peak) / (clips - step.clips)
    most = clips + (memory["limit"] - memory["peak"]) / slope if slope > 0 else math.inf
    # Of several groups, all grow together.
    quantum = clips // math.gcd(*(section.batch_size // unit for section in _batches(config)))
    return {
        "clips": int(most // quantum * quantum) if most < math.inf else None,
        "method": f"linear through the peaks at {step.clips} and {clips} clips; not compiled itself",
        "bytes_per_clip_and_device": slope,
        "peak_at_fewer": peak,
        "clips_at_fewer": step.clips,
    }


def _batches(config):
    """Return the sections of a config that hold a batch size above 0."""
    sections = list(config.data.groups.values()) if config.task == "pretrain" else [config.data]
    return [section for section in sections if section.batch_size]


def _peak(compiled):
    if isinstance(compiled, Overflow):
        return compiled.used
    analysis = compiled.memory_analysis()
    return (analysis.argument_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
            + analysis.temp_size_in_bytes + analysis.generated_code_size_in_bytes)
