"""Compile the real train step or planner for a pod that is not there: does it fit, what does it send, how long may it take?"""

import json
import math
import re
import time
from typing import NamedTuple

import jax
import numpy as np

from jepa_jax.bench import hlo, lowerable, report, roofline, topology
from jepa_jax.bench.host_input import host_input
from jepa_jax.models.flops import recomputed_flops, total_flops
from jepa_jax.training import sharding

_OVERFLOW = re.compile(r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm|\(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class Overflow(NamedTuple):
    """Bytes of HBM that a program would need, and those that there are."""

    used: float
    available: float
    message: str


def measure_compile(config, where, *, encoder, assumptions, largest_batch, horizon, results):
    """Compile the train step or the planner of a config for a topology.

    Args:
      config: unlocked ConfigDict; its data and weights are not read.
      where: `Topology`.
      encoder: named size of the frozen encoder, for tasks that have one.
      assumptions: `roofline.Assumptions`.
      largest_batch: compile once more, for half the batch, and tell the largest one that fits.
      horizon: compile a plan so many steps ahead; None for the train step.
      results: folder with the records of `bench data`.

    Returns:
      JSON-able dict.

    Raises:
      ValueError: if a setting is impossible, the task cannot be compiled so, or there is no such topology.
    """
    devices = topology.devices(where)
    mesh = sharding.make_mesh(config.mesh.fsdp, devices, config.mesh.sequence)
    lowerable.for_tpu(config.model)
    limit = where.chip.hbm_bytes / where.chip.devices
    if horizon:
        program = lowerable.planner(config, mesh, encoder, horizon, limit)
    else:
        program = lowerable.train_step(config, mesh, encoder)
    compiled, times = _compile(program, mesh)
    memory = _memory(program, compiled, limit)
    network, unknown = (None, "nothing was compiled") if isinstance(compiled, Overflow) else _network(compiled, mesh)
    record = {
        "benchmark": "compile",
        "what": program.what,
        "config": json.loads(config.to_json_best_effort()),
        "encoder": encoder if config.task == "world_model" else None,
        "planner": program.settings,
        "topology": {"name": where.name, "slices": where.slices, "chips": where.num_chips, "devices": len(devices),
                     "device_kind": devices[0].device_kind, "mesh": dict(mesh.shape)},
        "chip": where.chip._asdict(),
        "machine": report.machine(),
        "items": program.items,
        "not_split": program.not_split,
        **times,
        "memory": memory,
        "network": network,
        "network_unknown": unknown,
    } | _predictions(program, mesh, memory, network, where, assumptions)
    record["host_input"] = program.clip and host_input(
        where, program.items, record["roofline"]["step_s"], frames=program.clip[0], size=program.clip[1], results=results
    )
    if largest_batch and not horizon:
        record["largest_batch"] = _largest_batch(config, mesh, encoder, program.items, memory)
    return record


def _compile(program, mesh):
    """Lower and compile; returns (`jax.stages.Compiled` or `Overflow`, seconds)."""
    with sharding.use_mesh(mesh):
        began = time.perf_counter()
        lowered = program.lower()
        trace_s = time.perf_counter() - began
        began, began_cpu = time.perf_counter(), time.process_time()
        try:
            result = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            result = _overflow(error)
    # That of all threads is steadier than the clock where others use the machine too.
    return result, {"trace_s": trace_s, "compile_s": time.perf_counter() - began,
                    "compile_cpu_s": time.process_time() - began_cpu}


def _overflow(error):
    """Read how much memory a program that does not fit would need; any other error is raised again."""
    match = _OVERFLOW.search(str(error))
    if not match:
        raise error
    used, used_unit, available, available_unit = (group for group in match.groups() if group is not None)
    return Overflow(float(used) * _UNITS[used_unit], float(available) * _UNITS[available_unit], match[0])


def _shard_bytes(tree):
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * np.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree))


def _memory(program, compiled, limit):
    """Say what is in the memory of one device, in bytes."""
    # Exact, from the shardings; XLA pads some arrays to whole tiles.
    kinds = {kind: _shard_bytes(tree) for kind, tree in program.held.items()}
    if isinstance(compiled, Overflow):
        return {"fits": False, "by_kind": kinds, "peak": compiled.used, "limit": compiled.available,
                "free": 1 - compiled.used / compiled.available, "compiler_says": compiled.message}
    analysis = compiled.memory_analysis()
    sizes = {name: getattr(analysis, f"{name}_size_in_bytes") for name in ("argument", "output", "alias", "temp", "generated_code")}
    peak = _peak(analysis)
    return {
        "fits": peak <= limit, "by_kind": kinds, "temporaries": sizes["temp"], "generated_code": sizes["generated_code"],
        "arguments_padded": sizes["argument"], "outputs_not_aliased": sizes["output"] - sizes["alias"], "peak": peak,
        "limit": limit, "free": 1 - peak / limit,
        # By the compiler's own plan of its heap, in which temporaries take each other's place; it is up to a half less.
        "heap_peak": analysis.peak_memory_in_bytes,
        # Seen with libtpu 0.0.42: what is far too large is refused within seconds, anything else is not.
        "compiler_says": None if peak <= limit else "the compiler lets it pass, but state, temporaries and code together are more than there is",
    }


def _network(compiled, mesh):
    """Return (what a device sends, None), or (None, why it is not known)."""
    # Programs number devices in the order of the mesh.
    slices = [sharding.slice_of(device) for device in mesh.devices.flat]
    # The program of several slices is that of one; what goes to others is sent through the hosts.
    try:
        found = hlo.collectives(compiled.as_text(), lambda number: slices[number])
    except ValueError as error:
        # All else that was compiled for is worth having.
        return None, str(error)
    by_kind = hlo.summarize(found)
    return {
        "by_kind": by_kind,
        "ici_bytes": sum(kind["ici_bytes"] for kind in by_kind.values()),
        "dcn_bytes": sum(kind["dcn_bytes"] for kind in by_kind.values()),
        "what": "bytes that one device sends in a step by ring algorithms; XLA may write a gather as an all-reduce",
    }, None


def _predictions(program, mesh, memory, network, where, assumptions):
    state = sum(memory["by_kind"].get(kind, 0) for kind in ("parameters", "ema", "optimizer"))
    moved = roofline.moved_bytes(program.passes, program.weights, state, mesh.size, gathered=mesh.shape["fsdp"] > 1)
    model_flops = total_flops(program.passes)
    sent = None if network is None else (network["ici_bytes"], network["dcn_bytes"])
    return {
        "parameters": program.weights,
        "model_tflop_per_step": model_flops / 1e12,
        "recomputed_tflop_per_step": recomputed_flops(program.passes) / 1e12,
        "roofline": roofline.predict(program.passes, model_flops, program.items, moved, sent, where, assumptions),
    }


def _largest_batch(config, mesh, encoder, clips, memory):
    """Tell the largest batch by a straight line through the peaks at the whole batch and at half of it."""
    unit = sharding.batch_parts(mesh) * config.optim.accumulate
    small = config.copy_and_resolve_references()
    for section in _batches(small):
        if section.batch_size and section.batch_size < 2 * unit:
            return {"clips": None, "why": f"half of batch {section.batch_size} is not a multiple of {unit}"}
        section.batch_size = section.batch_size // (2 * unit) * unit
    program = lowerable.train_step(small, mesh, encoder)
    compiled, _ = _compile(program, mesh)
    peak = compiled.used if isinstance(compiled, Overflow) else _peak(compiled.memory_analysis())
    slope = (memory["peak"] - peak) / (clips - program.items)
    most = clips + (memory["limit"] - memory["peak"]) / slope if slope > 0 else math.inf
    # Of several groups, all grow together.
    quantum = clips // math.gcd(*(section.batch_size // unit for section in _batches(config)))
    return {
        "clips": int(most // quantum * quantum) if most < math.inf else None,
        "method": f"linear through the peaks at {program.items} and {clips} clips; not compiled itself",
        "bytes_per_clip_and_device": slope,
        "peak_at_fewer": peak,
        "clips_at_fewer": program.items,
    }


def _batches(config):
    """Return the sections of a config that hold a batch size above 0."""
    sections = list(config.data.groups.values()) if config.task == "pretrain" else [config.data]
    return [section for section in sections if section.batch_size]


def _peak(analysis):
    # Outputs that take the place of the state they replace are aliases, and in memory once.
    return (analysis.argument_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
            + analysis.temp_size_in_bytes + analysis.generated_code_size_in_bytes)
