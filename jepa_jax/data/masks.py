"""Multi-block masks with lengths that are fixed before the run starts.

The official sampler cuts every list of a batch to the shortest of that batch, so its
lengths change from step to step. Compiled programs want fixed shapes, so here:

  The context length of a strategy is the mean, over simulated official batches of
  `group_size` samples, of the batch-minimum context length, rounded to a multiple of
  `round_to`; likewise the target length. A sample whose lists are shorter is drawn again
  with the same block size, which happens to 6 to 9 % of the samples.

So the mean lengths are the official ones, a sample keeps its first ids as there, there is
no padding, and one compiled step serves the whole run.
"""

import dataclasses
import functools

import numpy as np

_SIMULATED_BATCHES = 400
# Sizes that were checked before the run leave no chance to use so many up; a run of a million masks did meet
# a thousand draws in vain.
_MAX_DRAWS = 100_000
# On coarse grids a block size can be unable to fill the lengths; after this many draws a
# sample takes a block size of its own.
_DRAWS_PER_SIZE = 100
# Below this share of usable draws the lengths no longer describe the strategy.
_MIN_ACCEPTANCE = 0.25


@dataclasses.dataclass(frozen=True)
class MaskSpec:
    """One mask strategy.

    Attributes:
      spatial_scale, temporal_scale: (low, high) share of the frame area and of the
        clip length that one block covers.
      aspect_ratio: (low, high) height over width of a block.
      num_blocks: blocks per sample; their union is hidden from the context.
      max_temporal_keep: share of the time steps that the context may use.
      max_keep: upper bound of the context length, or None.
      full_complement: predict every token that is not in the cut context.
      pred_full_complement: use every token that is not in the cut target as context
        (ignored with `full_complement`).
      inv_block: swap context and target at the end.
      num_context, num_target: lengths to cut to, or None to derive them by the rule
        above.

    Source: src/masks/multiseq_multiblock3d.py.
    """

    spatial_scale: tuple[float, float] = (0.15, 0.15)
    temporal_scale: tuple[float, float] = (1.0, 1.0)
    aspect_ratio: tuple[float, float] = (0.75, 1.5)
    num_blocks: int = 8
    max_temporal_keep: float = 1.0
    max_keep: int | None = None
    full_complement: bool = False
    pred_full_complement: bool = False
    inv_block: bool = False
    num_context: int | None = None
    num_target: int | None = None


def block_size(spec, grid, uniforms):
    """Turn three uniforms into the (t, h, w) size of a block, in tokens."""
    (t, h, w), (u_time, u_area, u_aspect) = grid, uniforms

    def scale(bounds, u):
        return bounds[0] + u * (bounds[1] - bounds[0])

    time = max(1, int(t * scale(spec.temporal_scale, u_time)))
    area = int(h * w * scale(spec.spatial_scale, u_area))
    aspect = scale(spec.aspect_ratio, u_aspect)
    return time, min(h, round(np.sqrt(area * aspect))), min(w, round(np.sqrt(area / aspect)))


def draw_blocks(spec, grid, size, rng):
    """Place the blocks of one sample uniformly: int `[num_blocks, 6]` as (start, top, left, t, h, w)."""
    top, left, start = (
        rng.integers(0, grid[axis] - size[axis] + 1, size=spec.num_blocks) for axis in (1, 2, 0)
    )
    return np.column_stack([start, top, left, np.tile(size, (spec.num_blocks, 1))])


def apply_blocks(spec, grid, blocks):
    """Split the token grid by blocks, before any cut.

    Args:
      blocks: int `[n, 6]` as (start, top, left, t, h, w).

    Returns:
      (context_ids, target_ids): ascending int32 vectors that together hold every id.
    """
    visible = np.ones(grid, bool)
    for start, top, left, t, h, w in blocks:
        visible[start : start + t, top : top + h, left : left + w] = False
    visible[max(1, int(grid[0] * spec.max_temporal_keep)) :] = False
    visible = visible.reshape(-1)
    return np.flatnonzero(visible).astype(np.int32), np.flatnonzero(~visible).astype(np.int32)


def cut(spec, grid, context_ids, target_ids, num_context, num_target):
    """Cut one sample's lists to fixed lengths and apply the options.

    Returns:
      (context_ids, target_ids), ascending int32.
    """
    # Parity: the first ids stay, which are those of the earliest frames.
    context_ids, target_ids = context_ids[:num_context], target_ids[:num_target]
    everything = np.arange(np.prod(grid), dtype=np.int32)
    if spec.full_complement:
        target_ids = np.setdiff1d(everything, context_ids, assume_unique=True)
    elif spec.pred_full_complement:
        context_ids = np.setdiff1d(everything, target_ids, assume_unique=True)
    return (target_ids, context_ids) if spec.inv_block else (context_ids, target_ids)


@functools.lru_cache(maxsize=None)
def _simulate(spec, grid, group_size):
    """Context lengths before cutting, `[batches, group_size]`, of a fixed simulation."""
    t, h, w = grid
    # Tubes look the same in every frame, so one frame tells their lengths.
    tubes = spec.temporal_scale == (1.0, 1.0) and spec.max_temporal_keep >= 1.0
    frame_grid, factor = ((1, h, w), t) if tubes else (grid, 1)
    rng = np.random.default_rng(0)
    lengths = np.zeros((_SIMULATED_BATCHES, group_size), int)
    for i in range(_SIMULATED_BATCHES):
        size = block_size(spec, frame_grid, rng.uniform(size=3))
        for j in range(group_size):
            lengths[i, j] = factor * _simulate_sample(spec, frame_grid, size, rng)
    return lengths


def _simulate_sample(spec, grid, size, rng):
    """Draw until the context is not empty, and return its length."""
    for _ in range(_MAX_DRAWS):
        if length := apply_blocks(spec, grid, draw_blocks(spec, grid, size, rng))[0].size:
            return length
    raise ValueError(f"{_MAX_DRAWS} draws in a row hid all of grid {grid} with blocks of {size} tokens; use fewer or "
                     f"smaller blocks than {spec}")


def mask_lengths(spec, grid, group_size=24, round_to=16):
    """Fix the lengths to which a strategy's lists are cut.

    Args:
      spec: the strategy.
      grid: (t, h, w) tokens.
      group_size: samples whose shortest list sets the official length. The official
        batch per process is 24 in the primary phase and 12 or 6 in cooldown.
      round_to: lengths become multiples of this.

    Returns:
      (num_context, num_target) for `cut`.

    Raises:
      ValueError: if fewer than a quarter of the draws could fill these lengths.
    """
    total = int(np.prod(grid))
    context = _simulate(spec, grid, group_size)

    def derived(lengths):
        return max(1, round(lengths.min(axis=1).mean() / round_to) * round_to or int(lengths.min(axis=1).mean()))

    num_context = derived(context) if spec.num_context is None else spec.num_context
    num_target = derived(total - context) if spec.num_target is None else spec.num_target
    if spec.max_keep is not None:
        num_context = min(num_context, spec.max_keep)
    if num_context < 1 or num_target < 1:
        raise ValueError(f"num_context {num_context} and num_target {num_target} of {spec} must be at least 1")
    usable = np.mean((context >= num_context) & (total - context >= num_target))
    if usable < _MIN_ACCEPTANCE:
        raise ValueError(
            f"only {usable:.0%} of the masks of {spec} on grid {grid} have {num_context} context and {num_target} "
            f"target tokens; the context has {context.mean():.0f} of {total} tokens on average. "
            "Lower num_context or num_target, or use a smaller round_to"
        )
    return num_context, num_target


class MaskSampler:
    """Masks of every strategy for the rows of a batch, as a pure function of (seed, step, row).

    Args:
      specs: strategies, a tuple of `MaskSpec`.
      grid: (t, h, w) tokens of the clips.
      seed: base seed; `stream` separates groups of clips that share it.
      group_size, round_to: see `mask_lengths`.

    Attributes:
      lengths: tuple of (context, target) list lengths per strategy, after options.
    """

    def __init__(self, specs, grid, *, seed, stream=0, group_size=24, round_to=16):
        self.specs, self.grid = tuple(specs), tuple(grid)
        self._seed, self._stream = seed, stream
        self._cuts = tuple(mask_lengths(spec, self.grid, group_size, round_to) for spec in self.specs)
        sample = self.sample(0, [0])
        self.lengths = tuple(zip(*([ids.shape[1] for ids in side] for side in sample)))

    def _sample_one(self, strategy, size, rng):
        spec, (num_context, num_target) = self.specs[strategy], self._cuts[strategy]
        for draw in range(1, _MAX_DRAWS + 1):
            context_ids, target_ids = apply_blocks(spec, self.grid, draw_blocks(spec, self.grid, size, rng))
            if context_ids.size >= num_context and target_ids.size >= num_target:
                return cut(spec, self.grid, context_ids, target_ids, num_context, num_target)
            if draw % _DRAWS_PER_SIZE == 0:
                size = block_size(spec, self.grid, rng.uniform(size=3))
        raise RuntimeError(
            f"no mask with {num_context} context and {num_target} target tokens in {_MAX_DRAWS} draws of {spec}; "
            "lower num_context or num_target"
        )

    def sample(self, step, rows):
        """Draw masks.

        Args:
          step: training step; the block size is shared by all rows of a step and, as
            in the official code, its uniforms are shared by the strategies.
          rows: indices in the global batch.

        Returns:
          (context_ids, target_ids): per strategy one int32 `[len(rows), Kc]` and
          `[len(rows), Kt]`.
        """
        uniforms = np.random.default_rng((self._seed, step)).uniform(size=3)
        context, target = [], []
        for index, spec in enumerate(self.specs):
            size = block_size(spec, self.grid, uniforms)
            pairs = [
                self._sample_one(index, size, np.random.default_rng((self._seed, step, self._stream, index, row)))
                for row in rows
            ]
            context.append(np.stack([pair[0] for pair in pairs]))
            target.append(np.stack([pair[1] for pair in pairs]))
        return tuple(context), tuple(target)
