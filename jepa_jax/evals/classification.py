"""How well probes classify labelled videos: probabilities of every probe, accuracies, confusions."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jepa_jax.data.labelled import class_of
from jepa_jax.data.segments import read_views
from jepa_jax.evals.intervals import wilson
from jepa_jax.data.reading import Skipped, read_batches, check_found, spread
from jepa_jax.models import normalize_pixels, token_grid
from jepa_jax.tasks.probe import encode_segments, score

_TOP = 5


class Judged(NamedTuple):
    """What was found on n videos.

    Attributes:
      probabilities: float32 `[P, n, C]`, of every probe.
      labels: int64 `[n]`.
      numbers: int64 `[n]`, their places in the source.
      skipped: list of `Skipped`.
    """

    probabilities: np.ndarray
    labels: np.ndarray
    numbers: np.ndarray
    skipped: list[Skipped]


def judge(bundle, source, *, batch_size=4, seed=0, limit=None, on_videos=lambda count: None):
    """Classify videos with every probe of a bundle.

    Args:
      bundle: `weights.bundle.Bundle` of one encoder and probes of one shape, with a protocol.
      source: labelled data, as from `data.labelled.open_labelled`.
      batch_size: videos computed together; compiled once.
      seed: of the windows in time. Parity: official evaluations draw them at random too.
      limit: videos at most, spread evenly over the source; all if None.
      on_videos: called with the number of videos of every batch, the unreadable ones included.

    Returns:
      `Judged`; the softmax is averaged over views, tokens of all segments are seen at once.

    Source: evals/video_classification_frozen/eval.py.
    """
    protocol, names = bundle.protocol, bundle.probes()
    (encoder,) = (network for name, network in bundle.networks.items() if name not in names)
    probe, pre = bundle.networks[names[0]].module, bundle.preprocessing
    classes = probe.outputs[0][1]
    run = jax.jit(functools.partial(_probabilities, encoder.module, probe, protocol, np.float32(pre.mean), np.float32(pre.std)))
    params = jax.device_put(({"encoder": encoder.params}, {name: bundle.networks[name].params for name in names}))
    numbers = spread(len(source), limit)
    read = functools.partial(_read, protocol, classes, seed)
    found, skipped = [], []
    for good, bad in read_batches(source, read, numbers, batch_size):
        skipped += bad
        if good:
            # The last batch is filled up, so that all have one shape.
            views, indices = (np.stack([good[min(at, len(good) - 1)][place] for at in range(batch_size)]) for place in (2, 3))
            probabilities = np.asarray(run(*params, views, indices))[:, : len(good)]
            found.append((probabilities, [row[1] for row in good], [row[0] for row in good]))
        on_videos(len(good) + len(bad))
    check_found(found, numbers, skipped)
    probabilities, labels, used = zip(*found)
    return Judged(np.concatenate(probabilities, 1), np.concatenate(labels).astype(np.int64), np.concatenate(used).astype(np.int64), skipped)


def _read(protocol, classes, seed, number, record):
    """Read one video: (number, label, views, indices of its frames)."""
    label = class_of(record, classes)
    uniforms = np.random.default_rng((seed, number)).random(protocol.num_segments)
    return number, label, *read_views(record, protocol, uniforms)


def _probabilities(encoder, probe, protocol, mean, std, frozen, params, views, indices):
    """Turn views uint8 `[B, S, V, T, H, W, 3]` of the frames `[B, S, T]` into `[P, B, C]`."""
    times = indices if protocol.use_pos_embed else None

    def one(view):
        tokens = encode_segments(encoder, frozen["encoder"], normalize_pixels(view, mean, std), protocol.layers, times)
        return jax.nn.softmax(score(probe, params, tokens, at_once=False))

    return jax.lax.map(one, jnp.moveaxis(views, 2, 0)).mean(0)


def locate(bundle, name, clips, indices):
    """Say where a probe looks.

    Args:
      bundle: as `judge` takes.
      name: of the probe.
      clips: list of uint8 `[S, T, H, W, 3]`, one view of the segments of each video; they are computed one by one.
      indices: list of int32 `[S, T]`, which frames of its video each shows.

    Returns:
      list of float32 `[S, t, h, w]`: the part of its attention that the query gives to every token, summed over layers where
      the protocol has several; 1 in all for every video.
    """
    (encoder,) = (network for other, network in bundle.networks.items() if other not in bundle.probes())
    probe, pre, protocol = bundle.networks[name], bundle.preprocessing, bundle.protocol

    @jax.jit
    def run(params, probe_params, clip, shown):
        video = normalize_pixels(clip[None], np.float32(pre.mean), np.float32(pre.std))
        tokens = encode_segments(encoder.module, params, video, protocol.layers, shown[None] if protocol.use_pos_embed else None)
        weights = probe.module.apply({"params": probe_params}, tokens, method="weigh")
        grid = token_grid(*clip.shape[1:4], encoder.module.patch_size, encoder.module.tubelet_size)
        return weights[0, 0].reshape(len(clip), max(1, len(protocol.layers)), *grid).sum(1)

    params = jax.device_put((encoder.params, probe.params))
    return [np.asarray(run(*params, clip, shown)) for clip, shown in zip(clips, indices, strict=True)]


def summarize(judged, settings):
    """Compute what a report says.

    Args:
      judged: `Judged`.
      settings: dict of every probe: how it was trained.

    Returns:
      JSON-able dict: n, classes, best (number of the probe with the highest top-1), and `probes`, for each its settings,
      top1, top5 and class_mean in percent, the first with its 95 % interval, and of how many videos the answer was not a
      number, which counts as wrong. The class mean is over classes that occur.
    """
    rows = []
    for probabilities, setting in zip(judged.probabilities, settings, strict=True):
        hits = ranks(probabilities, judged.labels)
        interval = wilson(int((hits < 1).sum()), len(hits))
        recall = class_recall(probabilities, judged.labels)
        rows.append({"setting": setting, "top1": _percent(interval.value), "top1_interval": [_percent(interval.low), _percent(interval.high)],
                     "top5": _percent((hits < _TOP).mean()), "class_mean": _percent(np.nanmean(recall)),
                     "not_finite": int((~np.isfinite(probabilities)).any(1).sum())})
    best = int(np.argmax([row["top1"] for row in rows]))
    return {"n": len(judged.labels), "classes": judged.probabilities.shape[-1], "skipped": len(judged.skipped), "best": best, "probes": rows}


def ranks(probabilities, labels):
    """Count how many classes are more probable than the true one: int64 `[n]`, 0 where it is right, C where it has no number."""
    own = np.take_along_axis(probabilities, labels[:, None], 1)
    # Of equally probable classes the first is named first.
    ties = (probabilities == own) & (np.arange(probabilities.shape[1]) < labels[:, None])
    # Asked this way round, what is not a number is no right answer.
    return (~(probabilities <= own)).sum(1) + ties.sum(1)


def class_recall(probabilities, labels, k=1):
    """Return the part of every class that is among the first k answers: float64 `[C]`, nan where it does not occur.

    Source: evals/action_anticipation_frozen/metrics.py (ClassMeanRecall).
    """
    return recall_of_hits(ranks(probabilities, labels) < k, labels, probabilities.shape[1])


def recall_of_hits(hits, labels, classes):
    """Return the part of every class that was hit: float64 `[C]`, nan where it does not occur.

    Args:
      hits: bool `[n]`.
      labels: int64 `[n]`.
      classes: how many there are.
    """
    total = np.bincount(labels, minlength=classes)
    return np.where(total > 0, np.bincount(labels[hits], minlength=classes) / np.maximum(total, 1), np.nan)


def confusion(probabilities, labels):
    """Count how often a class (row) is taken for another (column): int64 `[C, C]`."""
    matrix = np.zeros((probabilities.shape[1],) * 2, np.int64)
    np.add.at(matrix, (labels, probabilities.argmax(1)), 1)
    return matrix


def worst(probabilities, labels, count):
    """Choose the wrong answers given with most confidence: positions, int64 `[<= count]`."""
    wrong = np.flatnonzero(probabilities.argmax(1) != labels)
    return wrong[np.argsort(-probabilities[wrong].max(1), kind="stable")][:count]


def _percent(value):
    return round(100 * float(value), 2)
