"""K-means over more vectors than fit in memory, with centroids split over devices."""

import dataclasses
import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jepa_jax.curation import seeding
from jepa_jax.training.sharding import BATCH_AXES, replicated

# Neighbours in a file are alike, but reading single vectors is slow: batches are made of runs of this length.
_RUN = 64
# Scores of one step on one device, 4 bytes each.
_MAX_SCORES = 2**28
# What centroids, sums and new centroids may take of a device's memory.
_CENTROID_BYTES = 2**31
# Vectors this near to their centroid, squared and as part of their own length squared, are copies of it but for rounding.
_COPY = 1e-5
# Batches on their way to the devices and back.
_AHEAD = 2


@dataclasses.dataclass(frozen=True)
class KMeansSpec:
    """How vectors are clustered.

    Attributes:
      clusters: K.
      online_passes: over all vectors, centroids moving after every batch.
      passes: at most, over all vectors, centroids moving after the pass.
      batch: vectors per step; times the parts of the mesh's data axis where centroids stand still.
      init: "k-means++" on a part of the vectors, "random" vectors, or "auto": the first for few clusters.
      spherical: centroids have length one, for vectors that have it too.
      tolerance: passes end when the mean squared distance sinks by a smaller part.
      seed: of everything random.
    """

    clusters: int
    online_passes: int = 1
    passes: int = 20
    batch: int = 16384
    init: str = "auto"
    spherical: bool = True
    tolerance: float = 1e-4
    seed: int = 0


@dataclasses.dataclass
class Clusters:
    """What was found.

    Attributes:
      centroids: float32 `[K, D]`.
      labels: int32 `[N]`, the nearest centroid of every vector.
      distances: float32 `[N]`, squared, to it.
      history: mean squared distance before every pass, the last one that of `labels`.
      reseeded: clusters without vectors that were begun again elsewhere, over all passes.
    """

    centroids: np.ndarray
    labels: np.ndarray
    distances: np.ndarray
    history: list[float]
    reseeded: int


def cluster(vectors, spec, mesh, *, checkpoint=None, on_pass=lambda done, distance: None):
    """Cluster vectors.

    The same vectors, spec and mesh give the same result. Centroids are split over the mesh's fsdp
    axis, batches over its data axis.

    Args:
      vectors: `chunks.Vectors`, or anything with a length, `width` and `take(rows)`.
      spec: `KMeansSpec`.
      mesh: of `training.sharding.make_mesh`.
      checkpoint: file to keep the centroids in after every pass, and to go on from.
      on_pass: called with passes done and the mean squared distance.

    Returns:
      `Clusters`.

    Raises:
      ValueError: if there are fewer vectors than clusters, or the init is unknown.
    """
    if not 1 <= spec.clusters <= len(vectors):
        raise ValueError(f"{spec.clusters} clusters of {len(vectors)} vectors; give 1 to {len(vectors)}")
    steps = _Steps(vectors, spec, mesh)
    done, history, reseeded, fresh, centroids = _restore(checkpoint, spec, vectors)
    centroids = steps.put_centroids(seeding.first_centroids(vectors, spec, mesh) if centroids is None else centroids)
    for number in range(done, spec.online_passes):
        centroids = steps.pass_online(centroids, number)
        _save(checkpoint, spec, vectors, number + 1, history, reseeded, fresh, centroids)
    last = spec.online_passes + spec.passes
    # A stopped run may have been asked for more passes; its centroids then get their labels.
    for number in range(min(max(done, spec.online_passes), last), last + 1):
        labels, distances, sums, counts = steps.pass_exact(centroids)
        history.append(float(distances.mean(dtype=np.float64)))
        on_pass(number, history[-1])
        moved, empty = steps.update(centroids, sums, counts), _empty(counts, spec.clusters)
        seeds = _farthest(vectors, distances, len(empty))
        # Clusters that begin again should change something, or they would do so for ever.
        if number == last or (_settled(history, spec.tolerance) and (fresh or not len(seeds))):
            break
        if len(seeds):
            moved = steps.reseed(moved, empty[: len(seeds)], seeds)
        centroids, fresh = moved, len(seeds)
        reseeded += fresh
        _save(checkpoint, spec, vectors, number + 1, history, reseeded, fresh, centroids)
    return Clusters(_gather(centroids)[: spec.clusters], labels, distances, history, reseeded)


def choose_split(clusters, width, devices):
    """Choose over how many devices centroids are split: over few, so that a device reads a part of the vectors only.

    Args:
      clusters: K.
      width: D.
      devices: their number.

    Returns:
      The least divisor of `devices` with which centroids and two more tensors of their size, the sums
      of a pass and the centroids after it, take less than `_CENTROID_BYTES` of each; or all of them.
    """
    whole = 3 * 4 * clusters * width
    fitting = (split for split in range(1, devices + 1) if devices % split == 0 and whole <= split * _CENTROID_BYTES)
    return next(fitting, devices)


def assign(vectors, centroids, spec, mesh):
    """Find the nearest centroid of every vector.

    Args:
      vectors: as in `cluster`.
      centroids: float32 `[K, D]`.
      spec, mesh: as in `cluster`.

    Returns:
      int32 `[N]`.
    """
    steps = _Steps(vectors, spec, mesh)
    return steps.pass_exact(steps.put_centroids(centroids))[0]


def _empty(counts, clusters):
    return np.flatnonzero(_gather(counts)[:clusters] == 0)


def _settled(history, tolerance):
    return len(history) > 1 and history[-2] - history[-1] <= tolerance * history[-2]


def _farthest(vectors, distances, count):
    """Return up to `count` different vectors, those farthest from their centroids first."""
    if not count:
        return np.empty((0, vectors.width), np.float32)
    # Copies of one vector far away must not become several centroids.
    rows = np.argsort(-distances, kind="stable")[: 4 * count]
    found = vectors.take(rows)
    found = found[distances[rows] > _COPY * np.square(found).sum(axis=1)]
    _, firsts = np.unique(found, axis=0, return_index=True)
    return found[np.sort(firsts)][:count]


class _Steps:
    """The passes, compiled for one mesh and one number of clusters."""

    def __init__(self, vectors, spec, mesh):
        self._vectors, self._spec, self._mesh = vectors, spec, mesh
        data, split = (mesh.shape[axis] for axis in BATCH_AXES)
        self._padded = -(-spec.clusters // split) * split
        # What a device holds of the scores is bounded.
        most = min(len(vectors), max(1, _MAX_SCORES // (self._padded // split)) * data)
        # Both divide over the devices. Where centroids stand still, every part of the mesh gets a whole batch.
        self._online_batch, self._exact_batch = (
            -(-min(size, most) // data) * data for size in (spec.batch, spec.batch * data)
        )
        self._rows, self._whole = (NamedSharding(mesh, PartitionSpec(axis)) for axis in BATCH_AXES)
        step = functools.partial(_step, clusters=spec.clusters, on_gpu=mesh.devices.flat[0].platform == "gpu")
        specs = {
            "in_specs": (PartitionSpec("fsdp"), PartitionSpec("data"), PartitionSpec("data")),
            "out_specs": (PartitionSpec("data"), PartitionSpec("data"), PartitionSpec("fsdp"), PartitionSpec("fsdp")),
        }
        step = jax.shard_map(step, mesh=mesh, check_vma=False, **specs)

        def add(centroids, sums, counts, batch, weights):
            labels, distances, new_sums, new_counts = step(centroids, batch, weights)
            return labels, distances, sums + new_sums, counts + new_counts

        def online(centroids, total, batch, weights):
            _, _, sums, counts = step(centroids, batch, weights)
            total = total + counts
            # The mean of all vectors that a centroid has got so far, moved by the new ones.
            moved = centroids + (sums - counts[:, None] * centroids) / jnp.maximum(total, 1)[:, None]
            return self._scale(moved), total

        self._add, self._online = jax.jit(add, donate_argnums=(1, 2)), jax.jit(online, donate_argnums=1)
        self.update = jax.jit(
            lambda centroids, sums, counts: self._scale(
                jnp.where(counts[:, None] > 0, sums / jnp.maximum(counts, 1)[:, None], centroids)
            )
        )
        self._place = jax.jit(
            lambda centroids, ids, rows: self._scale(centroids.at[ids].set(rows)), out_shardings=self._whole
        )

    def _scale(self, centroids):
        if not self._spec.spherical:
            return centroids
        # Vectors that cancel each other have no direction; their centroid stays at zero.
        return centroids / jnp.maximum(jnp.linalg.norm(centroids, axis=1, keepdims=True), 1e-12)

    def put_centroids(self, centroids):
        """Split centroids over the devices, with rows of padding at the end."""
        padded = np.zeros((self._padded, centroids.shape[1]), np.float32)
        padded[: len(centroids)] = centroids
        return jax.make_array_from_callback(padded.shape, self._whole, lambda index: padded[index])

    def reseed(self, centroids, ids, rows):
        """Put vectors in the places of centroids."""
        both = jax.device_put((ids, rows), replicated(self._mesh))
        return self._place(centroids, *both)

    def _zeros(self, *shape):
        return jnp.zeros((self._padded, *shape), jnp.float32, device=self._whole)

    def _batches(self, order, size):
        """Yield (rows, vectors on the devices, weights): 0 for padding."""
        shape = (size, self._vectors.width)
        for first in range(0, len(order), size):
            rows = order[first : first + size]
            weights = (np.arange(size) < len(rows)).astype(np.float32)
            # A process reads what its own devices need, and once where several need the same.
            read = functools.cache(functools.partial(self._read, rows, size))
            yield (
                rows,
                jax.make_array_from_callback(
                    shape, self._rows, lambda index, read=read: read(*index[0].indices(size)[:2])
                ),
                jax.make_array_from_callback((size,), self._rows, lambda index, weights=weights: weights[index]),
            )

    def _read(self, rows, size, start, stop):
        found = np.zeros((min(stop, size) - start, self._vectors.width), np.float32)
        part = rows[start:stop]
        found[: len(part)] = self._vectors.take(part)
        return found

    def pass_online(self, centroids, number):
        """Move the centroids after every batch; batches are drawn anew for each pass."""
        rng = np.random.default_rng([self._spec.seed, number])
        runs = rng.permutation(-(-len(self._vectors) // _RUN))
        order = (runs[:, None] * _RUN + np.arange(_RUN)).reshape(-1)
        total = self._zeros()
        for _, batch, weights in self._batches(order[order < len(self._vectors)], self._online_batch):
            centroids, total = self._online(centroids, total, batch, weights)
        return centroids

    def pass_exact(self, centroids):
        """Find the nearest centroid of all vectors, and the sum and number of those of each."""
        count = len(self._vectors)
        labels, distances = np.empty(count, np.int32), np.empty(count, np.float32)
        sums, counts, running = self._zeros(self._vectors.width), self._zeros(), []

        def collect(keep):
            while len(running) > keep:
                rows, found, far = running.pop(0)
                labels[rows], distances[rows] = _gather(found)[: len(rows)], _gather(far)[: len(rows)]

        for rows, batch, weights in self._batches(np.arange(count), self._exact_batch):
            found, far, sums, counts = self._add(centroids, sums, counts, batch, weights)
            running.append((rows, found, far))
            # The devices work on a batch while the next one is read.
            collect(_AHEAD)
        collect(0)
        return labels, distances, sums, counts


def _gather(array):
    """Return the whole of an array of which this process may hold a part."""
    if array.is_fully_addressable:
        return np.asarray(array)
    sharding = NamedSharding(array.sharding.mesh, PartitionSpec())
    return np.asarray(jax.jit(lambda x: x, out_shardings=sharding)(array))


def _step(centroids, batch, weights, *, clusters, on_gpu):
    """Assign a part of a batch to all centroids, of which this device holds a part.

    Args:
      centroids: float32 `[k, D]`, this device's.
      batch: float32 `[b, D]`, this device's.
      weights: float32 `[b]`, 0 for padding.
      clusters: K; centroids beyond are padding.
      on_gpu: add up by a product, since a scatter's order changes there.

    Returns:
      labels int32 `[b]`, squared distances float32 `[b]`, sums float32 `[k, D]`, counts float32 `[k]`.
    """
    size = len(centroids)
    first = jax.lax.axis_index("fsdp") * size
    high = jax.lax.Precision.HIGH
    scores = jnp.dot(batch, centroids.T, precision=high) - 0.5 * jnp.sum(centroids**2, axis=1)
    scores = jnp.where(first + jnp.arange(size) < clusters, scores, -jnp.inf)
    best = jnp.argmax(scores, axis=1)
    # The best of every device's best; the first of equals, so that the split does not matter.
    tops = jax.lax.all_gather(jnp.max(scores, axis=1), "fsdp")
    winner = jnp.argmax(tops, axis=0)
    labels = jnp.take_along_axis(jax.lax.all_gather(first + best, "fsdp"), winner[None], axis=0)[0]
    distances = jnp.maximum(jnp.sum(batch**2, axis=1) - 2 * jnp.max(tops, axis=0), 0)
    mine = (winner == jax.lax.axis_index("fsdp")) & (weights > 0)
    places = jnp.where(mine, best, size)
    if on_gpu:
        hits = jax.nn.one_hot(places, size, dtype=jnp.float32)
        sums, counts = jnp.dot(hits.T, batch, precision=high), hits.sum(axis=0)
    else:
        # Places beyond the end are dropped.
        sums = jax.ops.segment_sum(batch, places, size)
        counts = jax.ops.segment_sum(weights, places, size)
    return labels.astype(jnp.int32), distances, jax.lax.psum(sums, "data"), jax.lax.psum(counts, "data")


def _identity(spec, vectors):
    fields = dataclasses.asdict(spec)
    # More passes may be asked of what is there.
    del fields["passes"], fields["tolerance"]
    return f"{sorted(fields.items())} {len(vectors)} x {vectors.width}"


def _save(path, spec, vectors, done, history, reseeded, fresh, centroids):
    if path is None:
        return
    centroids = _gather(centroids)[: spec.clusters]
    if jax.process_index() == 0:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        with open(f"{path}.partial", "wb") as file:
            np.savez(
                file,
                done=done,
                history=history,
                reseeded=reseeded,
                fresh=fresh,
                centroids=centroids,
                identity=_identity(spec, vectors),
            )
        os.replace(f"{path}.partial", path)


def _restore(path, spec, vectors):
    """Return (passes done, history, reseeded, of those in the last pass, centroids) of a stopped run, or of no run."""
    if path is not None and os.path.exists(path):
        with np.load(path, allow_pickle=False) as stored:
            if str(stored["identity"]) == _identity(spec, vectors):
                done, reseeded, fresh = (int(stored[key]) for key in ("done", "reseeded", "fresh"))
                return done, stored["history"].tolist(), reseeded, fresh, stored["centroids"]
    return 0, [], 0, 0, None
