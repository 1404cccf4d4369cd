"""Time the data path: raw decode limit, our decode, crop and masks, workers."""

import contextlib
import os
import time

import numpy as np

from jepa_jax.bench import report
from jepa_jax.data import pipeline, sampling, shards, video
from jepa_jax.data.iterate import make_iterator
from jepa_jax.data.listing import VIDEO_SUFFIXES, list_items
from jepa_jax.data.masks import MaskSampler, MaskSpec
from jepa_jax.data.records import ShardSource
from jepa_jax.data.transcode import VideoSpec
from jepa_jax.data.workers import one_thread_per_image
from jepa_jax.models.encoder import token_grid

_SHORT_SIDE, _GOP, _CRF, _MIN_FRAMES = 256, 12, 18, 8
_GROUP = "video"
_TUBELET, _PATCH = 2, 16


def make_shards(sources, folder):
    """Turn videos into shards with the defaults of `jepa_jax.prepare`.

    Args:
      sources: folders, globs, files or CSVs.
      folder: where to write.
    """
    spec = VideoSpec(_SHORT_SIDE, _GOP, _CRF, _MIN_FRAMES)
    plan = shards.ShardPlan(folder, "clips", 64, spec)
    shards.write_shards(list_items(sources, VIDEO_SUFFIXES), plan, workers=report.usable_cores(), overwrite=False,
                        on_item=lambda count, skips: None)


def measure_data(folder, *, frames, fps, size, clips, batch, workers, seed=0):
    """Time every stage on the same shards.

    Args:
      folder: shards of videos.
      frames, fps: of the clips; frames per second.
      size: side of the crops, pixels.
      clips: clips timed per stage, at least 1.
      batch: clips per batch of the iterator.
      workers: worker processes of the iterator; 0 times it in this process.

    Returns:
      JSON-able dict. Stages before the iterator use one core.

    Raises:
      ValueError: if a size is impossible.
      FileNotFoundError: if there are no shards.
    """
    one_thread_per_image()
    source = ShardSource((folder,))
    group = pipeline.GroupSpec(_GROUP, "video", frames, fps, batch, (pipeline.SourceSpec((folder,), 1.0),))
    crop = pipeline.CropSpec(size, (0.3, 1.0), (0.75, 1.35), 0.5)
    masks = (MaskSpec(), MaskSpec(spatial_scale=(0.7, 0.7), num_blocks=2))
    sampler = MaskSampler(masks, token_grid(frames, size, size, _PATCH, _TUBELET), seed=seed)
    windows = _draw_windows(source, group, clips, seed)
    raw, ours, crops = _decode_times(windows, group, crop, seed)
    masks_ms = _mask_times(sampler, clips)
    steps = max(1, clips // batch)
    iterated = _iterate(group, crop, sampler, steps, workers, seed)
    # Rates are of all clips together: the videos differ, so a median clip would be one of few.
    raw_rate, our_rate = (1e3 * len(times) / sum(times) for times in (raw, ours))
    per_core = 1e3 * clips / (sum(crops) + sum(masks_ms))
    busy = max(1, min(workers, report.usable_cores()))
    return {
        "benchmark": "data",
        "machine": report.machine(),
        "clip": {"frames": frames, "fps": fps, "size": size},
        "source": {
            "records": len(source), "bytes": sum(os.path.getsize(path) for path in source.files),
            "bytes_per_record": float(np.mean([len(record.data) for record, _ in windows])),
        },
        "bytes_per_clip": frames * size * size * 3,
        "raw_decode_ms": report.spread(raw),
        "decode_ms": report.spread(ours),
        "clip_ms": report.spread(crops),
        "masks_ms": report.spread(masks_ms),
        "raw_decode_clips_per_s_per_core": raw_rate,
        "decode_clips_per_s_per_core": our_rate,
        "pipeline_clips_per_s_per_core": per_core,
        "decode_over_raw": our_rate / raw_rate,
        "pipeline_over_raw": per_core / raw_rate,
        "iterator": iterated | {"clips_per_s_per_core": iterated["clips_per_s"] / busy},
    }


def _draw_windows(source, group, clips, seed):
    """Choose records and windows as training does: a list of (record, ascending frame indices)."""
    windows = []
    for number in range(clips):
        record = source[number % len(source)]
        indices = sampling.sample_frame_indices(
            record.num_frames, record.fps, frames=group.frames, fps=group.fps,
            # The first draw of `load_clip` from the same generator, so that all stages see one window.
            uniforms=np.random.default_rng((seed, number)).random(1),
        )[0]
        windows.append((record, np.unique(indices)))
    return windows


def _decode_times(windows, group, crop, seed):
    """Time raw decoding, our decoding, and our whole clip, in turn per window; milliseconds of one core."""
    calls = (
        lambda record, needed, rng: _decode_raw(record.data, needed),
        lambda record, needed, rng: video.decode_frame_list(record.data, needed),
        lambda record, needed, rng: pipeline.load_clip(record, group, crop, rng),
    )
    times = ([], [], [])
    for number, (record, needed) in enumerate(windows):
        for call, measured in zip(calls, times, strict=True):
            measured.append(_cpu_ms(call, record, needed, np.random.default_rng((seed, number))))
    return times


def _cpu_ms(call, *args):
    # All of this runs on the calling thread, and its own time is not disturbed by other processes.
    start = time.process_time()
    call(*args)
    return 1e3 * (time.process_time() - start)


def _decode_raw(data, needed):
    """Decode from the key frame before a window to its end, in order, with nothing else done.

    This is what a plain reader must do. Skipping to later key frames inside the window does less,
    so our rate can be above this one where key frames are close.
    """
    container, stream = video.open_video(data)
    with container:
        time_base, rate = stream.time_base, stream.average_rate
        start = stream.start_time or 0
        container.seek(start + int(int(needed[0]) / rate / time_base), stream=stream)
        last = start + (int(needed[-1]) - 0.5) / rate / time_base
        for frame in container.decode(stream):
            if frame.pts is not None and frame.pts >= last:
                return


def _mask_times(sampler, clips):
    return [_cpu_ms(sampler.sample, step, [0]) for step in range(clips)]


def _iterate(group, crop, sampler, steps, workers, seed):
    """Time batches from the iterator that training uses, after the first one; wall clock."""
    made = pipeline.ClipPipeline([group], crop, {_GROUP: sampler}, seed=seed)
    iterator = make_iterator(made, 0, steps + 1, workers=workers, threads=1, prefetch=1)
    with contextlib.closing(iterator):
        next(iterator)
        start = time.perf_counter()
        for _ in range(steps):
            next(iterator)
        seconds = time.perf_counter() - start
    return {"workers": workers, "batch": group.batch_size, "steps": steps,
            "clips_per_s": steps * group.batch_size / seconds}
