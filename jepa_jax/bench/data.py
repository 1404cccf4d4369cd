"""Time the data path: raw decode limit, our clips and batches, workers, an official-style loader, overlap."""

import contextlib
import copy
import functools
import math
import multiprocessing
import os
import statistics
import time

import numpy as np

from jepa_jax.bench import originals, report
from jepa_jax.bench.overlap import measure_overlap
from jepa_jax.bench.video_peer import DecordLoader
from jepa_jax.data import pipeline, sampling, shards, video
from jepa_jax.data.copies import DEFAULT_CACHE
from jepa_jax.data.iterate import make_iterator
from jepa_jax.data.listing import VIDEO_SUFFIXES, list_items
from jepa_jax.data.masks import MaskSampler, MaskSpec
from jepa_jax.data.mixing import Mixture, open_sources
from jepa_jax.data.skips import MAX_BAD_FRACTION
from jepa_jax.data.transcode import VideoSpec
from jepa_jax.data.workers import one_thread_per_image, reuse_memory, silence_resource_tracker, usable_cores
from jepa_jax.models.encoder import token_grid

_SHORT_SIDE, _GOP, _CRF, _MIN_FRAMES = 256, 12, 18, 8
_GROUP = "video"
_TUBELET, _PATCH = 2, 16
_PREFETCH = 2
# The fake step takes this many times as long as the workers need for its batch.
_SPARE = 1.5
_DEVICE_STEP = "a sleep, which leaves all cores to the workers"
_OVERLAP_STEPS = 30
_DESCRIBED = 20


def make_shards(sources, folder):
    """Turn videos into shards with the defaults of `jepa_jax.prepare`.

    Args:
      sources: folders, globs, files or CSVs.
      folder: where to write.
    """
    # Writing starts the tracker, which the iterator needs silent later.
    silence_resource_tracker()
    spec = VideoSpec(_SHORT_SIDE, _GOP, _CRF, _MIN_FRAMES)
    plan = shards.ShardPlan(folder, "clips", 64, spec)
    shards.write_shards(list_items(sources, VIDEO_SUFFIXES), plan, workers=usable_cores(), overwrite=False,
                        on_item=lambda count, skips: None)


def measure_data(folder, *, frames, fps, size, clips, batch, workers, against=None, seed=0):
    """Time every stage on the same shards.

    Args:
      folder: shards of videos.
      frames, fps: of the clips; frames per second.
      size: side of the crops, pixels.
      clips: clips timed per stage, at least 1.
      batch: clips per batch.
      workers: worker processes of the iterator; 0 times it in this process.
      against: "decord" to time an official-style loader on the original files too; they have to
        be where they were when the shards were made.

    Returns:
      JSON-able dict. Times of stages are processor time, so those of one core, and of all clips
      alike; the iterator and the overlap are by the clock.

    Raises:
      ValueError: if a size is impossible.
      FileNotFoundError: if there are no shards, or an original is gone.
      MissingPeer: if `against` needs something that is not installed.
    """
    one_thread_per_image()
    # As workers do.
    reuse_memory()
    load_average = os.getloadavg()[0]
    group = pipeline.GroupSpec(_GROUP, "video", frames, fps, batch, (pipeline.SourceSpec((folder,), 1.0),))
    crop = pipeline.CropSpec(size, (0.3, 1.0), (0.75, 1.35), 0.5)
    masks = (MaskSpec(), MaskSpec(spatial_scale=(0.7, 0.7), num_blocks=2))
    sampler = MaskSampler(masks, token_grid(frames, size, size, _PATCH, _TUBELET), seed=seed)
    made = pipeline.ClipPipeline([group], crop, {_GROUP: sampler}, seed=seed)
    draws = _open_draws(group, seed)
    windows = [row.value for step in range(math.ceil(clips / batch)) for row in draws.rows(step, range(batch))][:clips]
    peer = DecordLoader(group, crop) if against else None
    if peer:
        _check_originals(windows)
    times = _stage_times(windows, draws, group, crop, made, sampler, peer)
    steps = max(1, math.ceil(clips / batch))
    with contextlib.closing(_open(made, 2 * steps, workers)) as batches:
        iterated = _iterate(batches, steps, batch, workers)
    summary = _summary(times, batch)
    if iterated["clips_per_cpu_s"]:
        iterated["over_raw_decode"] = iterated["clips_per_cpu_s"] / summary["raw_decode_clips_per_s_per_core"]
    need = _SPARE * batch / iterated["clips_per_s"]
    timed = max(steps, _OVERLAP_STEPS)
    with contextlib.closing(_open(made, 2 * timed, workers)) as batches:
        overlap = measure_overlap(batches, timed, need) | {
            "capacity_over_need": _SPARE, "workers": workers, "device_step": _DEVICE_STEP}
    return {
        "benchmark": "data",
        "machine": report.machine() | {"load_average_1min_before": load_average},
        "clip": {"frames": frames, "fps": fps, "size": size},
        "source": _describe_source(draws.sources[0], windows, peer is not None),
        "bytes_per_clip": frames * size * size * 3,
        **summary,
        "by_video": _by_video(windows, times),
        "iterator": iterated,
        "overlap": overlap,
    }


def _draw_window(group, record, rng):
    """Return a record, the ascending frames that training takes of it, and the generator before they were drawn."""
    before = copy.deepcopy(rng)
    # The first draw of `load_clip` from the same generator, so that all stages see one window.
    indices = sampling.sample_frame_indices(
        record.num_frames, record.fps, frames=group.frames, fps=group.fps, uniforms=rng.random(1)
    )[0]
    return record, np.unique(indices), before


def _open_draws(group, seed):
    """Open the draws of a `ClipPipeline` of this group and seed: the same records and windows, but no clips."""
    (sources,) = open_sources([group], "clip", DEFAULT_CACHE).values()
    draw = functools.partial(_draw_window, group)
    return Mixture(group, sources, draw, seed=seed, max_bad_fraction=MAX_BAD_FRACTION)


def _check_originals(windows):
    for record, _, _ in windows:
        if not os.path.isfile(record.source_id):
            raise FileNotFoundError(f"{record.source_id}: the shards were made from this file, and a comparison with a "
                                    "loader of original files needs it; give --videos, or leave --against out")


def _stage_times(windows, draws, group, crop, made, sampler, peer):
    """Time all stages in turn, window by window; processor milliseconds per call by name of the stage."""
    calls = {
        # The frames that are needed, decoded and thrown away: no reader of these files does less.
        "raw_decode": lambda record, needed, rng: video.visit_frames(record.data, needed, lambda *_: None),
        "sequential_decode": lambda record, needed, rng: _decode_in_order(record.data, needed),
        "decode": lambda record, needed, rng: video.decode_frame_list(record.data, needed),
        "clip": lambda record, needed, rng: pipeline.load_clip(record, group, crop, copy.deepcopy(rng)),
    }
    if peer:
        calls["official_decode"] = lambda record, needed, rng: peer.decode(record.source_id, copy.deepcopy(rng))
        calls["official"] = lambda record, needed, rng: peer.load(record.source_id, copy.deepcopy(rng))
    for call in calls.values():
        # The first call of a library may cost more than all others.
        call(*windows[0])
    times = {name: [] for name in [*calls, "read", "batch", "batch_masks"]}
    for number, window in enumerate(windows):
        for name, call in calls.items():
            times[name].append(_cpu_ms(call, *window))
        step, row = divmod(number, group.batch_size)
        times["read"].append(_cpu_ms(draws.rows, step, [row]))
        if row == 0:
            times["batch"].append(_cpu_ms(made.batch_at, step))
            times["batch_masks"].append(_cpu_ms(sampler.sample, step, np.arange(group.batch_size)))
    return times


def _cpu_ms(call, *args):
    # Of all threads of this process, as decord decodes in one of its own; others do not disturb it.
    start = time.process_time()
    call(*args)
    return 1e3 * (time.process_time() - start)


def _decode_in_order(data, needed):
    """Decode from the key frame before a window to its end with nothing else done, as plain readers do.

    Skipping to later key frames inside the window, as `video.visit_frames` does, is less work where key frames are
    close.
    """
    container, stream = video.open_video(data)
    with container:
        time_base, rate = stream.time_base, stream.average_rate
        first = stream.start_time or 0
        container.seek(first + int(int(needed[0]) / rate / time_base), stream=stream)
        last = first + (int(needed[-1]) - 0.5) / rate / time_base
        for frame in container.decode(stream):
            if frame.pts is not None and frame.pts >= last:
                return


def _summary(times, batch):
    """Turn times into rates, ratios and the parts of our clip.

    Rates are of all clips together: videos differ, so a median clip would be one of few.
    """
    mean = {name: statistics.fmean(values) for name, values in times.items()}
    mean["pipeline"], mean["masks"] = mean["batch"] / batch, mean["batch_masks"] / batch
    stages = [name for name in ("raw_decode", "sequential_decode", "decode", "clip", "pipeline", "official_decode",
                                "official") if name in mean]
    rates = {f"{name}_clips_per_s_per_core": 1e3 / mean[name] for name in stages}
    ratios = {f"{name}_over_raw_decode": mean["raw_decode"] / mean[name] for name in stages[1:]}
    ratios |= {f"pipeline_over_{name}": mean[name] / mean["pipeline"] for name in stages if name.startswith("official")}
    parts = {
        "decode": mean["raw_decode"],
        "rgb": mean["decode"] - mean["raw_decode"],
        "crop": mean["clip"] - mean["decode"],
        "masks": mean["masks"],
        "read": mean["read"],
        "stack": mean["pipeline"] - mean["clip"] - mean["masks"] - mean["read"],
    }
    return {f"{name}_ms": report.spread(values) for name, values in times.items()} | rates | ratios | {
        "pipeline_parts_ms": parts}


def _by_video(windows, times):
    """Give the rates of decoding and of clips for every video alone, as they differ in size."""
    found = {}
    for place, (record, _, _) in enumerate(windows):
        none_yet = {"clips": 0, "raw_decode": 0.0, "decode": 0.0, "clip": 0.0}
        sums = found.setdefault(os.path.basename(record.source_id), none_yet)
        sums["clips"] += 1
        for name in ("raw_decode", "decode", "clip"):
            sums[name] += times[name][place]
    return {
        name: {
            "clips": sums["clips"], "raw_decode_clips_per_s_per_core": 1e3 * sums["clips"] / sums["raw_decode"],
            "decode_over_raw_decode": sums["raw_decode"] / sums["decode"],
            "clip_over_raw_decode": sums["raw_decode"] / sums["clip"],
        }
        for name, sums in list(found.items())[:_DESCRIBED]
    }


def _describe_source(source, windows, with_originals):
    stored = {record.source_id: record for record, _, _ in windows}.values()
    seconds = sum(record.num_frames / record.fps for record in stored)
    size = sum(len(record.data) for record in stored)
    described = {
        "records": len(source), "bytes": sum(os.path.getsize(path) for path in source.files),
        "bytes_per_record": size / len(stored), "bytes_per_s_of_video": size / seconds,
    }
    if with_originals:
        found = [originals.describe(record.source_id) for record in stored]
        total = sum(original.bytes for original in found)
        described["original"] = {
            "files": [original._asdict() for original in found[:_DESCRIBED]],
            "bytes_per_record": total / len(stored), "bytes_per_s_of_video": total / seconds,
        }
    return described


def _open(made, steps, workers):
    """Open the iterator that training uses."""
    return make_iterator(made, 0, steps + 1 + 2 * _PREFETCH * max(1, workers), workers=workers, threads=1,
                         prefetch=_PREFETCH)


def _iterate(batches, steps, batch, workers):
    """Time batches after the first ones, which were ready; the workers are kept busy to the end."""
    for _ in range(min(steps, _PREFETCH * max(1, workers)) + 1):
        next(batches)
    start, busy_before = time.perf_counter(), _all_cpu_s()
    for _ in range(steps):
        next(batches)
    seconds, busy = time.perf_counter() - start, _all_cpu_s() - busy_before
    return {"workers": workers, "batch": batch, "steps": steps, "clips_per_s": steps * batch / seconds,
            # What one core would do, whatever others use the machine for.
            "clips_per_cpu_s": steps * batch / busy if busy_before else None}


def _all_cpu_s():
    """Return processor time of this process and its living children, seconds; 0 where the system does not say."""
    if not os.path.exists("/proc/self/stat"):
        return 0.0
    total = time.process_time()
    for child in multiprocessing.active_children():
        with open(f"/proc/{child.pid}/stat", encoding="utf-8") as file:
            # User and system time, in ticks; the name before them may hold spaces.
            fields = file.read().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total
