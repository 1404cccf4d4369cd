"""Measure encoding: time and memory of every clip length in a process of its own, beside transformers if asked."""

import contextlib
import math
import os
import statistics
import tempfile
import time

import jax
import numpy as np

from jepa_jax.bench import report
from jepa_jax.bench.processes import Remote
from jepa_jax.bench.torch_setup import choose_device, import_peer
from jepa_jax.models import MaskedPredictor, make_encoder, token_grid
from jepa_jax.models.attention import choose_backend
from jepa_jax.models.flops import encoder_flops
from jepa_jax.models.spec import abstract_params
from jepa_jax.training.state import tensor_names
from jepa_jax.weights import store
from jepa_jax.weights.bundle import Bundle, Network, Preprocessing, count_params
from jepa_jax.weights.load import load

_PAUSE_S = 0.05
_SPREAD_OF_VECTORS = 0.1
# Largest difference of a token's channel, of about unit spread; rounding adds up over the layers.
_TOLERANCE, _HALF_TOLERANCE = {"float32": 1e-2}, 1.0


def random_params(module, seed):
    """Draw weights that keep activations near unit variance.

    At the usual initialisation attention is nearly uniform and hides what is wrong with queries
    and keys; here it is not.

    Args:
      module: a network of `jepa_jax.models`.
      seed: of the generator.

    Returns:
      Nested dict of float32 numpy arrays.
    """
    rng = np.random.default_rng(seed)
    abstract = abstract_params(module)
    leaves = []
    for name, leaf in zip(tensor_names(abstract), jax.tree.leaves(abstract), strict=True):
        value = rng.standard_normal(leaf.shape, np.float32)
        value *= leaf.shape[-2] ** -0.5 if name.endswith("kernel") else _SPREAD_OF_VECTORS
        value += name.endswith("scale")
        leaves.append(value)
    return jax.tree.unflatten(jax.tree.structure(abstract), leaves)


def write_random_weights(folder, size, crop_size):
    """Write random weights of a named size as a Hugging Face folder, which both sides read.

    Args:
      folder: to make.
      size: named size of the encoder.
      crop_size: side of the clips, pixels.
    """
    encoder = make_encoder(size, positions="rope")
    modules = {"encoder": encoder, "predictor": MaskedPredictor(output_dim=encoder.width)}
    networks = {name: Network(module, random_params(module, seed))
                for seed, (name, module) in enumerate(modules.items())}
    store.write(Bundle(networks, Preprocessing(crop_size=crop_size)), folder, "huggingface")


class OurEncoder:
    """Our encoder with weights from a folder, compiled for the clips it is given.

    Args:
      folder: weights in any format.
      dtype: compute dtype.
    """

    def __init__(self, folder, dtype):
        self._model, self._params = load(folder, networks=("encoder",), dtype=dtype)
        # The copies to the device would otherwise go on during what is measured next.
        jax.block_until_ready(self._params)
        self._compiled = self._clip = self._tokens = None
        self.times = report.Times([], [])

    def prepare(self, path):
        """Read clips (uint8 `[B, T, H, W, 3]`, .npy) and compile; returns the seconds of tracing and compiling."""
        self._clip = jax.device_put(np.load(path))
        start = time.perf_counter()
        encode = jax.jit(lambda params, clip: self._model.encode(params, clip).tokens)
        self._compiled = encode.lower(self._params, self._clip).compile()
        return time.perf_counter() - start

    def _encode(self):
        self._tokens = jax.block_until_ready(self._compiled(self._params, self._clip))

    def encode(self):
        """Encode the clips, and append to `times`."""
        self.times.measure(self._encode)

    def save(self, path):
        """Write the last tokens as float32 .npy; returns the peak of device memory in bytes, or None on CPU."""
        np.save(path, np.asarray(self._tokens, np.float32))
        return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")

    def describe(self):
        """Return what ran (dict), and the `report.Times` of all calls."""
        encoder = self._model.encoder
        return {"attention_backend": choose_backend(encoder.attention, encoder.dtype)}, self.times


def measure_encode(size, *, frames, crop_size, batch, dtype, repeats, against=None):
    """Time encoding with random weights.

    Args:
      size: named size of the encoder.
      frames: clip lengths; each is measured in fresh processes.
      crop_size: side of the clips, pixels.
      batch: clips at once.
      dtype: compute dtype.
      repeats: timed calls, after one that is not.
      against: "transformers" to do the same in Hugging Face's code, in turn with ours.

    Returns:
      JSON-able dict; `runs` has one entry per clip length.

    Raises:
      ValueError: if a size is impossible, or the two sides disagree about the tokens.
      MissingTorch: if PyTorch or transformers is missing.
    """
    encoder = make_encoder(size, positions="rope")
    grids = [token_grid(count, crop_size, crop_size, encoder.patch_size, encoder.tubelet_size) for count in frames]
    sides = {"ours": (OurEncoder, dtype)}
    if against:
        device = choose_device(jax.default_backend())
        import_peer("transformers")
        from jepa_jax.bench.hf_peer import HfEncoder

        sides[against] = (HfEncoder, dtype, device)
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="jepa_jax_bench_") as scratch:
        folder = os.path.join(scratch, "weights")
        with Remote(write_random_weights, folder, size, crop_size) as writer:
            writer.wait_ready()
        runs = []
        for count, grid in zip(frames, grids, strict=True):
            clip = os.path.join(scratch, "clip.npy")
            shape = (batch, count, crop_size, crop_size, 3)
            np.save(clip, np.random.default_rng(count).integers(0, 256, shape, np.uint8))
            run, times, tokens = _measure_run(sides, folder, clip, scratch, repeats)
            for side in sides:
                run[side]["clips_per_s"] = 1e3 * batch / run[side]["encode_ms"]["median"]
            flops = encoder_flops(encoder, math.prod(grid))
            shape = {"frames": count, "size": crop_size, "batch": batch, "grid": list(grid)}
            runs.append(shape | {"model_tflop_per_s": flops / 1e12 * run["ours"]["clips_per_s"]} | run
                        | (_compare(times, tokens, dtype) if against else {}))
    device = jax.devices()[0]
    return {
        "benchmark": "encode",
        "model": size,
        "parameters": count_params(abstract_params(encoder)),
        "dtype": dtype,
        "device": {"kind": device.device_kind, "platform": device.platform},
        "machine": report.machine() | {"load_average_1min_before": load_before},
        "memory_includes": "everything in the process: libraries, weights, what loading them takes, compilation, "
                           "activations; not the making of random weights",
        "runs": runs,
    }


def _measure_run(sides, folder, clip, scratch, repeats):
    """Measure one clip length: every side in its own process, timed in turn."""
    run, tokens, times = {name: {} for name in sides}, {}, {}
    with contextlib.ExitStack() as stack:
        remotes = {}
        for name, (factory, *options) in sides.items():
            remote = remotes[name] = stack.enter_context(Remote(factory, folder, *options))
            memory = run[name]["memory"] = {"load_rss_bytes": remote.wait_ready()}
            run[name]["compile_s"], memory["compile_rss_bytes"] = remote.call("prepare", clip)
            memory["encode_rss_bytes"] = remote.call("encode")[1]
        for _ in range(repeats):
            for name, remote in remotes.items():
                # Idle threads of the other framework spin for a moment before they sleep.
                time.sleep(_PAUSE_S)
                memory = run[name]["memory"]
                memory["encode_rss_bytes"] = max(memory["encode_rss_bytes"], remote.call("encode")[1])
        for name, remote in remotes.items():
            memory = run[name]["memory"]
            # The largest peak of the three phases is the peak of the process.
            memory["peak_rss_bytes"] = max(memory.values())
            facts, (wall, cpu) = remote.call("describe")[0]
            times[name] = report.Times(wall[1:], cpu[1:])
            run[name] |= facts | {
                "first_ms": wall[0], "encode_ms": report.spread(wall[1:]), "encode_cpu_ms": report.spread(cpu[1:]),
            }
            path = os.path.join(scratch, f"{name}.npy")
            memory["device_peak_bytes"] = remote.call("save", path)[0]
            tokens[name] = np.load(path)
    return run, times, tokens


def _compare(times, tokens, dtype):
    """Compare the second side with ours."""
    (_, ours), (against, theirs) = tokens.items()
    difference = float(np.max(np.abs(ours - theirs)))
    if not difference <= _TOLERANCE.get(dtype, _HALF_TOLERANCE):
        raise ValueError(f"the tokens of the two sides differ by up to {difference:.2g}, more than rounding explains")
    ours, theirs = times["ours"], times[against]
    return {
        "max_token_difference": difference,
        "token_std": float(np.std(tokens[against])),
        "time_over_peer": statistics.median(ours.wall_ms) / statistics.median(theirs.wall_ms),
        "time_over_peer_pairs": report.spread([a / b for a, b in zip(ours.wall_ms, theirs.wall_ms, strict=True)]),
        "cpu_time_over_peer": statistics.median(ours.cpu_ms) / statistics.median(theirs.cpu_ms),
    }
