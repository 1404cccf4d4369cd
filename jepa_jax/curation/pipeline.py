"""The stages of a curation, each of which goes on where it was stopped."""

import collections
import csv
import dataclasses
import glob
import hashlib
import json
import os
import shutil

import jax
import numpy as np
from jax.experimental import multihost_utils

from jepa_jax.curation import kmeans, retrieval
from jepa_jax.curation.chunks import Chunks, Vectors
from jepa_jax.curation.cuts import CutSpec
from jepa_jax.curation.embeddings import embed_chunks
from jepa_jax.curation.frames import FrameSpec
from jepa_jax.data.conversion import convert_all
from jepa_jax.data.errors import DataError
from jepa_jax.data.listing import Scene
from jepa_jax.data.publish import read_json, write_json
from jepa_jax.features.spread import SpreadModel
from jepa_jax.training.sharding import make_mesh
from jepa_jax.weights.load import load

CARD, REPORT, MANIFEST, CENTROIDS = "curation.json", "curate-report.json", "scenes.csv", "centroids.npz"
_COLUMNS = ("path", "start", "end", "cluster", "weight")
_SCENES, _EMBEDDINGS = "scenes", "embeddings"
_SKIPS_KEPT = 10_000


class CurationError(Exception):
    """Say why a folder cannot be used, or a stage cannot run, and what to do."""


@dataclasses.dataclass(frozen=True)
class Curation:
    """What is asked for.

    Attributes:
      folder: for all results.
      pool: videos to choose from: `Item`, `Scene` or `Rejected`.
      targets: by name, the videos (or images) of each target set.
      weights: by name, share of each target set.
      model: path of the encoder's weights.
      cuts: how videos are cut.
      frames, fps, size: of what is embedded of a scene; size None for that of the model.
      clustering: `KMeansSpec`.
      scenes: how many to draw; None for all that are in clusters with target samples.
      per_chunk: videos per file of results.
      batch: scenes encoded together.
      workers: processes that decode.
      part, parts: cut and embed only this share of the chunks; the other stages need all.
    """

    folder: str
    pool: list
    targets: dict
    weights: dict
    model: str
    cuts: CutSpec
    frames: int
    fps: float
    size: int | None
    clustering: kmeans.KMeansSpec
    scenes: int | None
    per_chunk: int
    batch: int
    workers: int
    part: int = 0
    parts: int = 1


def run(job, progress, overwrite=False):
    """Run all stages.

    Args:
      job: `Curation`.
      progress: called with (stage, total) and gives a function of (items, failed) done since; see
        `prepare.curate`.
      overwrite: remove what is in the folder and begin again.

    Returns:
      The report, JSON-able; None where other parts still have to cut or embed their share.

    Raises:
      CurationError: if the folder holds another curation, or too little is left to cluster.
      WeightsError: if the encoder cannot be read.
    """
    model = SpreadModel(*load(job.model, networks=("encoder",)))
    size = job.size or model.crop_size
    count = -(-len(job.pool) // job.per_chunk)
    cut = Chunks(os.path.join(job.folder, _SCENES), "scenes", count)
    pool = Chunks(os.path.join(job.folder, _EMBEDDINGS), "pool", count)
    targets = {
        name: Chunks(os.path.join(job.folder, _EMBEDDINGS), f"target-{name}", -(-len(items) // job.per_chunk))
        for name, items in job.targets.items()
    }
    frames = FrameSpec(job.frames, job.fps, size)
    _claim(job, model, frames, overwrite)
    # The targets first: they are few, and nothing can be chosen without them.
    for name, chunks in targets.items():
        todo = [
            (index, lambda index=index, name=name: _chunk(job.targets[name], job.per_chunk, index))
            for index in chunks.missing(".npy", job.part, job.parts)
        ]
        _embed(job, model, frames, todo, chunks, progress(f"embed {name}", sum(len(items()) for _, items in todo)))
    _wait_for_others("targets")
    for name, chunks in targets.items():
        _check_target(name, chunks)
    _cut(job, cut, progress)
    todo = [(index, lambda index=index: read_scenes(cut, index)) for index in pool.missing(".npy", job.part, job.parts)]
    _embed(job, model, frames, todo, pool, progress("embed scenes", sum(len(items()) for _, items in todo)))
    _wait_for_others("pool")
    if any(chunks.missing(".npy") for chunks in (pool, *targets.values())):
        return None
    return _retrieve(job, model, cut, pool, targets, progress)


def _wait_for_others(stage):
    """Wait until all processes have embedded their shares."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"embedded {stage}")


def _check_target(name, chunks):
    """Raise CurationError if nothing of a target set could be embedded; parts that others have not done yet may hold some."""
    if chunks.missing(".npy") or len(Vectors(chunks)):
        return
    skips = [skip for content in chunks.contents() for skip in content["skips"]]
    reasons = collections.Counter(reason for _, reason, _ in skips).most_common()
    listed = ", ".join(f"{reason} ({count})" for reason, count in reasons)
    raise CurationError(
        f"target set {name!r} has no sample that could be embedded, of {len(skips)}: {listed}; the first: {skips[0][2]}. "
        "Repair them or give others, and give --overwrite: what failed is not tried again"
    )


def _chunk(items, per_chunk, index):
    return items[index * per_chunk : (index + 1) * per_chunk]


def read_scenes(cut, index):
    """Return the scenes of a chunk as a list of `Scene`."""
    return [Scene(path, start, end) for path, scenes in cut.read(index)["videos"] for start, end in scenes]


def _claim(job, model, frames, overwrite):
    """Note what the folder holds, or check that it is the same."""

    def digest(items):
        return hashlib.sha256(json.dumps([list(item) for item in items]).encode()).hexdigest()

    card = {
        "pool_sha256": digest(job.pool),
        "targets_sha256": {name: digest(items) for name, items in job.targets.items()},
        "model_sha256": model.sha256,
        "cuts": dataclasses.asdict(job.cuts),
        "frames": dataclasses.asdict(frames),
        "per_chunk": job.per_chunk,
    }
    if overwrite:
        _clear(job)
    os.makedirs(job.folder, exist_ok=True)
    # One per part: machines that start at the same time must not write the same file.
    name = CARD if job.parts == 1 else CARD.replace(".", f"-{job.part}-of-{job.parts}.")
    cards = [read_json(path) for path in glob.glob(os.path.join(glob.escape(job.folder), CARD.replace(".", "*.")))]
    others = [before for before in cards if before is not None and before != card]
    if others:
        changed = ", ".join(key for key in card if others[0].get(key) != card[key])
        raise CurationError(
            f"{job.folder} holds a curation that differs in {changed}. Give another --output, or --overwrite to "
            "begin again"
        )
    write_json(os.path.join(job.folder, name), card)


def _clear(job):
    """Remove what was made here, and nothing else that lies in the folder."""
    if job.parts > 1:
        raise CurationError(
            "--overwrite would remove what other parts have done; use it without --part, or another --output"
        )
    for name in (_SCENES, _EMBEDDINGS):
        shutil.rmtree(os.path.join(job.folder, name), ignore_errors=True)
    for name in (CARD.replace(".", "*."), CENTROIDS, MANIFEST, REPORT):
        for path in glob.glob(os.path.join(glob.escape(job.folder), name)):
            os.remove(path)


def _cut(job, cut, progress):
    """Find the scenes of all videos."""
    todo = cut.missing(".json", job.part, job.parts)
    parts = [_chunk(job.pool, job.per_chunk, index) for index in todo]
    on_item = progress("cut", sum(map(len, parts)))
    results = convert_all([item for part in parts for item in part], job.cuts, job.workers)
    for index, part in zip(todo, parts):
        content = {"videos": [], "skips": [], "seconds": 0.0, "short": 0, "short_seconds": 0.0}
        for item in part:
            _, found = next(results)
            if isinstance(found, DataError):
                content["skips"].append([item.name, found.reason, str(found)])
            else:
                content["videos"].append([found.path, found.scenes])
                for key in ("seconds", "short", "short_seconds"):
                    content[key] += getattr(found, key)
            on_item(1, isinstance(found, DataError))
        cut.write(index, content)


def _embed(job, model, frames, todo, chunks, on_item):
    embed_chunks(
        model, todo, chunks, frames, batch=job.batch, workers=job.workers, on_item=lambda failed: on_item(1, failed)
    )


def _retrieve(job, model, cut, pool, targets, progress):
    """Cluster the pool, weigh the clusters by the targets, and write the manifest and the report."""
    vectors = Vectors(pool)
    clusters = min(job.clustering.clusters, len(vectors))
    if not len(vectors):
        raise CurationError("no scene of the pool could be embedded; the reports in its folder say why")
    spec = dataclasses.replace(job.clustering, clusters=clusters)
    mesh = make_mesh(kmeans.choose_split(clusters, model.width, jax.device_count()))
    on_pass = progress("cluster", spec.online_passes + spec.passes + 1)
    found = kmeans.cluster(
        vectors,
        spec,
        mesh,
        checkpoint=os.path.join(job.folder, CENTROIDS),
        on_pass=lambda number, distance: on_pass(1, False),
    )
    labels = np.full(vectors.ends[-1], -1, np.int32)
    labels[vectors.good] = found.labels
    hits = {
        name: np.bincount(kmeans.assign(Vectors(chunks), found.centroids, spec, mesh), minlength=clusters)
        for name, chunks in targets.items()
    }
    try:
        weights = retrieval.cluster_weights(hits, job.weights)
    except ValueError as error:
        raise CurationError(str(error)) from error
    sizes = np.bincount(found.labels, minlength=clusters)
    counts = retrieval.share_out(sizes, weights, len(labels) if job.scenes is None else job.scenes)
    drawn = retrieval.draw_scenes(labels, counts, spec.seed)
    asked, realized = sum(job.weights[name] for name in targets), retrieval.realized_shares(hits, job.weights, counts)
    hours = _write_manifest(os.path.join(job.folder, MANIFEST), cut, vectors.ends, labels, drawn, weights)
    report = _report(job, model, cut, [pool, *targets.values()]) | {
        "vectors": len(vectors),
        "clusters": clusters,
        "empty_clusters": int((sizes == 0).sum()),
        "reseeded_clusters": found.reseeded,
        "mean_squared_distance": found.history,
        "kept_clusters": int(((weights > 0) & (sizes > 0)).sum()),
        "scenes_in_kept_clusters": int(sizes[weights > 0].sum()),
        "targets": {
            name: {
                "samples": int(hits[name].sum()),
                "weight": job.weights[name],
                "share_asked": job.weights[name] / asked,
                "share_written": realized[name],
                "clusters": int((hits[name] > 0).sum()),
                "scenes": int(sizes[hits[name] > 0].sum()),
            }
            for name in targets
        },
        "written": len(drawn),
        "hours": hours,
    }
    if not jax.process_index():
        write_json(os.path.join(job.folder, REPORT), report)
    return report


def _write_manifest(path, cut, ends, labels, drawn, weights):
    """Write the drawn scenes as a manifest for `prepare videos`; returns their hours."""
    counts = np.bincount(labels[drawn], minlength=len(weights))
    present = weights * (counts > 0)
    share = present / max(present.sum(), 1e-300) / np.maximum(counts, 1)
    seconds, first = 0.0, not jax.process_index()
    with open(f"{path}.partial" if first else os.devnull, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(_COLUMNS)
        for index in range(cut.count):
            low, high = np.searchsorted(drawn, [ends[index], ends[index + 1]])
            scenes = read_scenes(cut, index) if high > low else []
            for row in drawn[low:high]:
                scene, label = scenes[row - ends[index]], labels[row]
                writer.writerow([scene.path, repr(scene.start), repr(scene.end), label, f"{share[label]:.6g}"])
                seconds += scene.end - scene.start
    if first:
        os.replace(f"{path}.partial", path)
    return seconds / 3600


def _report(job, model, cut, embedded):
    totals = collections.Counter()
    skips, reasons = [], collections.Counter()
    for content in cut.contents():
        totals["videos"] += len(content["videos"])
        totals["scenes"] += sum(len(scenes) for _, scenes in content["videos"])
        for key in ("seconds", "short", "short_seconds"):
            totals[key] += content[key]
        skips += content["skips"]
        reasons.update(reason for _, reason, _ in content["skips"])
    for chunks in embedded:
        for content in chunks.contents():
            skips += content["skips"]
            reasons.update(reason for _, reason, _ in content["skips"])
    return {
        "pool": {
            "listed": len(job.pool),
            "videos": totals["videos"],
            "hours": totals["seconds"] / 3600,
            "scenes": totals["scenes"],
            "short_scenes_dropped": totals["short"],
            "short_hours_dropped": totals["short_seconds"] / 3600,
        },
        "model": {"path": os.fspath(job.model), "sha256": model.sha256},
        "seed": job.clustering.seed,
        "skips_by_reason": dict(reasons.most_common()),
        "skips": [{"path": name, "reason": reason, "message": text} for name, reason, text in skips[:_SKIPS_KEPT]],
    }
