"""Whether an encoder learns while it is trained: classes of held-out clips, by the nearest labelled ones and by a linear head."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from jepa_jax.data.errors import DataError
from jepa_jax.data.labelled import ListSource, align_classes, check_labels, open_labelled
from jepa_jax.data.mixing import process_rows
from jepa_jax.data.reading import check_found, read_batches, spread
from jepa_jax.data.segments import read_views
from jepa_jax.models import normalize_pixels
from jepa_jax.training import sharding
from jepa_jax.weights.bundle import Protocol

NEAREST, LINEAR = "probe/knn", "probe/linear"
# Where the window of a clip lies in its video: in the middle.
_MIDDLE = np.full(1, 0.5)
# How fast a neighbour's vote falls with its distance, in cosines.
_TEMPERATURE = 0.07
# Of the linear head, in units of a normalised channel's variance; a few hundred clips do not fix as many weights.
_RIDGE = 0.1
_READ_TOGETHER = 16


def make_observer(config, encoder, frames, mesh):
    """Read labelled clips and build what classifies them with the encoder as it is.

    Args:
      config: ConfigDict with the sections probe, data, log and optim, as in `configs/pretrain.py`.
      encoder: `VideoEncoder`.
      frames: of a clip.
      mesh: device mesh.

    Returns:
      (`Task.observe`, lines for the log); (None, []) where `probe.every_steps` is 0.

    Raises:
      ValueError: if a setting is impossible.
      ListError, FileNotFoundError, DataError: if a list cannot be used, or too many of its clips cannot be read.
    """
    section = config.probe
    if not section.every_steps:
        return None, []
    _check(config, mesh)
    protocol = Protocol("probe", frames, section.frame_step, 1, 1, config.data.size)
    sources = [open_labelled(section[name]) for name in ("train", "test")]
    align_classes(sources)
    sets = [_read(source, section[name], protocol, section.samples, config.data.max_bad_fraction)
            for source, name in zip(sources, ("train", "test"))]
    (train, train_labels), (test, test_labels) = sets
    if section.neighbours > len(train):
        raise ValueError(f"probe.neighbours is {section.neighbours}; {section.train} gave {len(train)} clips")
    encode = jax.jit(functools.partial(_encode, encoder), out_shardings=sharding.replicated(mesh))

    def observe(step, state):
        if step % section.every_steps and step != config.optim.total_steps:
            return {}
        features = [_features(encode, state.target_params, clips, section.batch_size, mesh) for clips in (train, test)]
        known, asked = _normalize(*features)
        guesses = {NEAREST: vote(known, train_labels, asked, section.neighbours), LINEAR: separate(known, train_labels, asked)}
        return {name: float((found == test_labels).mean()) for name, found in guesses.items()}

    chance = np.mean(test_labels == np.bincount(train_labels).argmax())
    return observe, [f"every {section.every_steps} steps, {len(test)} clips of {section.test} are classified by their {section.neighbours} nearest of "
                     f"{len(train)} of {section.train} and by a linear head fitted to these; always naming their most frequent class would be right in {chance:.1%}; {(train.nbytes + test.nbytes) / 2**30:.2f} GiB"]


def _check(config, mesh):
    section = config.probe
    if section.every_steps < 0 or section.every_steps % config.log.every_steps:
        raise ValueError(f"probe.every_steps is {section.every_steps}; it must be 0 (off) or a multiple of log.every_steps, {config.log.every_steps}")
    if min(section.samples, section.neighbours, section.frame_step) < 1:
        raise ValueError(f"probe.samples {section.samples}, probe.neighbours {section.neighbours} and probe.frame_step {section.frame_step} must be at least 1")
    if not section.train or not section.test:
        raise ValueError("probe.train and probe.test must both be given: lists 'path label', folders of class folders, or labelled shards")
    sharding.check_batch_size("probe", section.batch_size, mesh)


def _read(source, path, protocol, samples, max_bad_fraction):
    """Read clips, uint8 `[n, T, H, W, 3]`, and their labels, int64 `[n]`; every process reads all, so that they agree."""
    if isinstance(source, ListSource):
        check_labels(source, int(source.labels().max()) + 1, what=path)
    numbers = spread(len(source), samples)
    found, skipped = [], []
    for good, bad in read_batches(source, functools.partial(_read_clip, protocol), numbers, _READ_TOGETHER):
        found += good
        skipped += bad
    check_found(found, numbers, skipped)
    for skip in skipped:
        logging.warning("a clip of the online probe cannot be used (%s) and is left out: %s", skip.reason, skip.location)
    if len(skipped) > max_bad_fraction * len(numbers):
        raise DataError("too many skipped", f"{len(skipped)} of {len(numbers)} clips of {path} cannot be read, more than data.max_bad_fraction "
                        f"{max_bad_fraction:g}; first: {skipped[0].message}")
    clips, labels = zip(*found)
    return np.stack(clips), np.array(labels, np.int64)


def _read_clip(protocol, number, record):
    if record.label is None or record.label < 0:
        raise DataError("no label", f"{record.source_id}: entry {number} has no label; prepare it from a list 'path label'")
    return read_views(record, protocol, _MIDDLE)[0][0, 0], record.label


def _encode(encoder, params, clips):
    """Average the tokens of clips uint8 `[B, T, H, W, 3]`: float32 `[B, D]`."""
    return encoder.apply({"params": params}, normalize_pixels(clips)).astype(jnp.float32).mean(1)


def _features(encode, params, clips, batch_size, mesh):
    """Encode all clips in batches of one shape; float32 `[n, D]` numpy."""
    mine, found = process_rows(batch_size, jax.process_index(), jax.process_count()), []
    for first in range(0, len(clips), batch_size):
        # The last batch is filled up with its last clip.
        rows = np.minimum(first + mine, len(clips) - 1)
        found.append(np.asarray(encode(params, sharding.put_batch(clips[rows], mesh))))
    return np.concatenate(found)[: len(clips)]


def _normalize(known, asked):
    """Normalise every channel as it is among the known features: what all clips share would make all of them neighbours."""
    mean, std = known.mean(0), np.maximum(known.std(0), 1e-6)
    return (known - mean) / std, (asked - mean) / std


def vote(known, labels, asked, neighbours):
    """Classify features by their nearest known ones.

    Args:
      known: float `[n, D]`.
      labels: int64 `[n]`, at least 0.
      asked: float `[m, D]`.
      neighbours: how many vote, nearer ones with more weight.

    Returns:
      int64 `[m]`.
    """
    known, asked = (values / np.maximum(np.linalg.norm(values, axis=-1, keepdims=True), 1e-6) for values in (known, asked))
    cosines = asked @ known.T
    nearest = np.argsort(-cosines, axis=-1, kind="stable")[:, :neighbours]
    weights = np.exp((np.take_along_axis(cosines, nearest, -1) - 1) / _TEMPERATURE)
    votes = np.zeros((len(asked), labels.max() + 1))
    np.add.at(votes, (np.arange(len(asked))[:, None], labels[nearest]), weights)
    return votes.argmax(-1)


def separate(known, labels, asked):
    """Classify features by a linear head, fitted to the known ones in closed form (ridge regression on the classes).

    Args:
      known: float `[n, D]`, normalised.
      labels: int64 `[n]`, at least 0.
      asked: float `[m, D]`, normalised alike.

    Returns:
      int64 `[m]`.
    """
    targets = np.eye(labels.max() + 1)[labels]
    known = np.float64(known)
    penalty = _RIDGE * len(known) * np.eye(known.shape[1])
    kernel = np.linalg.solve(known.T @ known + penalty, known.T @ (targets - targets.mean(0)))
    return (asked @ kernel + targets.mean(0)).argmax(-1)
