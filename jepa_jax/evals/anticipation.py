"""How well probes anticipate actions: class-mean recall of verbs, nouns and actions among the first answers."""

import functools
from typing import NamedTuple

import jax
import numpy as np

from jepa_jax.data.actions import OUTPUTS
from jepa_jax.data.anticipation import read_before
from jepa_jax.evals.classification import ranks, recall_of_hits
from jepa_jax.data.reading import Skipped, read_batches, check_found, spread
from jepa_jax.models import anticipate, normalize_pixels
from jepa_jax.tasks.anticipate import TOP, check_networks
from jepa_jax.tasks.probe import score_outputs


class Foreseen(NamedTuple):
    """What was found on n segments.

    Attributes:
      ranks, valid_ranks: dict from output to int64 `[P, n]`, how many classes every probe thinks more likely than the right
        one: of all, and of those that occur in the list.
      labels: dict from output to int64 `[n]`.
      classes: dict from output to how many classes there are.
      skipped: list of `Skipped`.
    """

    ranks: dict[str, np.ndarray]
    valid_ranks: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    classes: dict[str, int]
    skipped: list[Skipped]


def only_valid(scores, valid):
    """Take all classes but the valid ones out of the race: float `[..., C]` with -inf in their places."""
    kept = np.full(scores.shape[-1], -np.inf, scores.dtype)
    kept[valid] = 0
    return scores + kept


def make_scorer(bundle, seeing, seconds):
    """Build what scores clips with every probe of a bundle; compiled once per shape.

    Args:
      bundle: `weights.bundle.Bundle` of one encoder, its predictor if `seeing` uses it, and probes of one shape.
      seeing: `weights.anticipation.Anticipation`.
      seconds: from the end of a clip to the moment that is anticipated.

    Returns:
      Function from clips, uint8 `[B, T, H, W, 3]`, to a dict from output to numpy float32 `[P, B, classes]`.

    Raises:
      ValueError: if the networks cannot look that far ahead.
    """
    names = bundle.probes()
    networks = {"predictor" if name == "predictor" else "encoder": network for name, network in bundle.networks.items() if name not in names}
    modules = {role: network.module for role, network in networks.items()}
    grid, pre = check_networks(modules, seeing, seconds), bundle.preprocessing
    run = jax.jit(functools.partial(_score, modules, bundle.networks[names[0]].module, seeing, grid, np.float32(pre.mean), np.float32(pre.std)))
    params = jax.device_put(({role: network.params for role, network in networks.items()}, {name: bundle.networks[name].params for name in names}))
    return lambda video: jax.device_get(run(*params, video, np.full(len(video), seconds, np.float32)))


def foresee(scorer, seeing, source, classes, *, anchor, seconds=1.0, batch_size=4, limit=None, on_segments=lambda count: None):
    """Anticipate the actions of a list with every probe.

    Args:
      scorer: of `make_scorer`, for the same `seeing` and `seconds`.
      seeing: `weights.anticipation.Anticipation`.
      source: `data.actions.ActionSource`, each segment of which counts once.
      classes: of the source, dict from output to sequence.
      anchor, seconds: see `data.anticipation.frames_before`; clips end that long before the anchor itself.
      batch_size: segments computed together.
      limit: segments at most, spread evenly; all if None.
      on_segments: called with the number of segments of every batch, the unreadable ones included.

    Returns:
      `Foreseen`.

    Raises:
      DataError: if no segment could be read.

    Source: evals/action_anticipation_frozen/eval.py.
    """
    numbers = spread(len(source), limit)
    # Which classes compete as valid ones is known beforehand, so that scores need not be kept.
    valid = {output: np.unique([source[int(number)].labels[place] for number in numbers]) for place, output in enumerate(OUTPUTS)}
    read = lambda number, segment: (segment.labels, read_before(segment, seeing, seconds=seconds, anchor=anchor))
    found, skipped = [], []
    for good, bad in read_batches(source, read, numbers, batch_size):
        skipped += bad
        if good:
            # The last batch is filled up, so that all have one shape.
            video = np.stack([good[min(at, len(good) - 1)][1] for at in range(batch_size)])
            scores = {output: values[:, : len(good)] for output, values in scorer(video).items()}
            found.append(_rank(scores, np.array([row[0] for row in good], np.int64), valid))
        on_segments(len(good) + len(bad))
    check_found(found, numbers, skipped)
    join = lambda place: {output: np.concatenate([part[place][output] for part in found], -1) for output in OUTPUTS}
    return Foreseen(*(join(place) for place in range(3)), {output: len(classes[output]) for output in OUTPUTS}, skipped)


def _score(modules, probe, seeing, grid, mean, std, frozen, params, video, seconds):
    """Turn clips uint8 `[B, T, H, W, 3]` into scores, dict from output to `[P, B, C]`."""
    video = normalize_pixels(video, mean, std)
    tokens = anticipate(modules["encoder"], modules.get("predictor"), frozen, video, seconds, seeing, grid)
    return score_outputs(probe, params, tokens, at_once=False)


def _rank(scores, labels, valid):
    """Rank the right classes `[n, 3]` of a batch; returns what `Foreseen` begins with."""
    own = {output: labels[:, place] for place, output in enumerate(OUTPUTS)}
    rank = lambda output, values: np.stack([ranks(one, own[output]) for one in values])
    return ({output: rank(output, scores[output]) for output in OUTPUTS},
            {output: rank(output, only_valid(scores[output], valid[output])) for output in OUTPUTS}, own)


def summarize(foreseen, settings):
    """Compute what a report says.

    Args:
      foreseen: `Foreseen`.
      settings: dict of every probe: how it was trained.

    Returns:
      JSON-able dict: n, skipped; for every output its classes, those that occur, and the number of the best probe, chosen
      for each output by itself as officially; and `probes`, for each its settings and by output in percent: recall5, the mean
      over classes that occur of how often they are among the first five answers; the same where only classes that occur
      compete (recall5_valid); the parts of all segments whose class is first (top1) or among the first five (top5); and of
      how many segments the answer was not a number, which counts as wrong.
    """
    rows = []
    for number, setting in enumerate(settings):
        broken = {output: int((foreseen.ranks[output][number] >= foreseen.classes[output]).sum()) for output in OUTPUTS}
        row = {"setting": setting, "not_finite": max(broken.values())}
        for output in OUTPUTS:
            labels, classes = foreseen.labels[output], foreseen.classes[output]
            place, among_valid = foreseen.ranks[output][number], foreseen.valid_ranks[output][number]
            recall = lambda found: _percent(np.nanmean(recall_of_hits(found < TOP, labels, classes)))
            row[output] = {f"recall{TOP}": recall(place), f"recall{TOP}_valid": recall(among_valid),
                           "top1": _percent((place < 1).mean()), f"top{TOP}": _percent((place < TOP).mean())}
        rows.append(row)
    best = {output: int(np.argmax([row[output][f"recall{TOP}"] for row in rows])) for output in OUTPUTS}
    return {"n": len(foreseen.labels[OUTPUTS[0]]), "skipped": len(foreseen.skipped), "classes": foreseen.classes,
            "occurring": {output: len(np.unique(foreseen.labels[output])) for output in OUTPUTS}, "best": best, "probes": rows}


def _percent(value):
    return round(100 * float(value), 2)
