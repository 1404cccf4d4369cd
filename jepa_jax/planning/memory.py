"""How much memory planning takes, told before anything is compiled."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jepa_jax.models.attention import choose_backend

# The part of free memory that a plan may take: the estimate is rough, and allocators leave gaps.
_USABLE = 0.85
# What a candidate takes, over the estimate. Compiled for a TPU v5e, heaps of plans of 1, 2 and 4 steps are, without the weights, 1.34 to
# 1.42 times as large: 200 or 100 candidates are padded to whole tiles of 128.
_PADDED = 1.4
_MEMORY_FILE = "/proc/meminfo"
# Noise, candidates, those that are sorted and those that are joined: all of an iteration, however few are evaluated at once.
_COPIES = 4


def candidate_bytes(world, spec, *, slopes=False):
    """Estimate the bytes that one candidate takes while it is evaluated.

    Args:
      world: `WorldModel`.
      spec: `PlanSpec`.
      slopes: with its gradient.

    Returns:
      Bytes: activations of one block, keys and values of all frames but the last, latents; with its gradient,
      those of all blocks.
    """
    model = world.predictor
    patches = model.grid[0] * model.grid[1]
    tokens = model.tokens_per_frame(patches)
    item, wide = jnp.dtype(model.dtype).itemsize, jnp.dtype(model.residual_dtype).itemsize
    hidden = int(model.width * model.mlp_ratio)
    residual = tokens * 2 * model.width * wide
    # Queries before and after they are turned, keys, what attention returns; keys and values of all frames side by side.
    attention = tokens * (4 + 2 * spec.horizon) * model.width * item
    if choose_backend(model.attention, model.dtype) == "xla":
        attention += 2 * 4 * model.num_heads * tokens**2 * spec.horizon
    # The hidden layer before and after the activation.
    mlp = tokens * hidden * (item + 4)
    frame = 2 * model.depth * tokens * model.width * item
    kept = frame * (spec.horizon - 1)
    # Input, output, normalised output and differences.
    latents = 4 * patches * model.output_dim * 4
    forward = max(residual + max(attention, mlp), latents) + kept
    if not slopes:
        return forward
    per_block = residual + attention + mlp if model.remat == "none" else residual
    return max(forward, spec.horizon * (model.depth * per_block + latents) + residual + attention + mlp + kept)


def free_bytes(device=None):
    """Return the bytes that are free on a device, the first one if None; None if nothing says it."""
    device = jax.local_devices()[0] if device is None else device
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats["bytes_in_use"]
    return free_host_bytes() if device.platform == "cpu" else None


def free_host_bytes():
    """Return the bytes of memory that are free on this machine; None if nothing says it."""
    try:
        with open(_MEMORY_FILE) as file:
            lines = dict(line.split(":", 1) for line in file)
        return 1024 * int(lines["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        return None


def fit_memory(world, spec, free=None, robots=1, devices=1):
    """Choose how many candidates are evaluated at once, so that they fit; a chunk that is set is only checked.

    Args:
      world: `WorldModel`.
      spec: `PlanSpec`.
      free: bytes that are free on each device; `free_bytes()` if None.
      robots: plans made together by `jax.vmap`.
      devices: over which the candidates are spread.

    Returns:
      `PlanSpec`, with `chunk` set if not all fit.

    Raises:
      ValueError: if the chunk that is set does not fit, with the largest one that does; or not even one; or the actions of
        all samples do not, with the most that do.
    """
    free = free_bytes() if free is None else free
    if free is None:
        return spec
    _check_samples(spec, free, robots)
    # Candidates, and starts of the descent, which are fewer and take more each.
    groups = [(spec.samples * bool(spec.iterations), False), (max(spec.restarts * bool(spec.gradient_steps), bool(spec.polish_steps)), True)]
    fits = []
    for count, slopes in groups:
        each = robots * candidate_bytes(world, spec, slopes=slopes)
        fits.append((int(_USABLE * free / (_PADDED * each)) * devices, count, each))
    tight = [(most, each) for most, count, each in fits if min(count, spec.chunk or count) > most]
    if not tight:
        return spec
    most, each = min(tight)
    wanted = min(max(count for count, _ in groups), spec.chunk or max(count for count, _ in groups))
    said = (f"planner: a candidate of {spec.horizon} steps takes about {_text(each)}"
            f"{f' for {robots} robots' if robots > 1 else ''}, and {_text(free)} are free")
    if not most:
        raise ValueError(f"{said}: not even one fits; take a smaller horizon or model"
                         + (", or plan for fewer robots at once" if robots > 1 else ""))
    if spec.chunk is not None:
        raise ValueError(f"{said}: chunk is {spec.chunk}; the largest that fits is {most}")
    # Even chunks, so that few candidates are computed for nothing.
    chunk = -(-wanted // -(-wanted // most))
    return dataclasses.replace(spec, chunk=min(most, -(-chunk // devices) * devices))


def _check_samples(spec, free, robots):
    """Raise ValueError unless the actions and costs of all candidates fit, which are kept whole."""
    if not spec.iterations:
        return
    each = 4 * robots * (_COPIES * spec.horizon * spec.dims + spec.iterations)
    most = int(_USABLE * free / each)
    if spec.samples > most:
        raise ValueError(f"planner: samples is {spec.samples}, whose actions alone take about {_text(each * spec.samples)}, and {_text(free)} "
                         f"are free; the largest that fits is {most}")


def _text(count):
    return f"{count / 2**30:.3g} GiB" if count >= 2**29 else f"{count / 2**20:.3g} MiB"
