"""Masks: fixed lengths, every option, and the same draw whatever else is drawn."""

import dataclasses

import chex
import numpy as np
import pytest

from jepa_jax.data import masks
from jepa_jax.data.masks import MaskSampler, MaskSpec, apply_blocks, block_size, cut, draw_blocks, mask_lengths

GRID = (4, 8, 8)
SHORT = MaskSpec(spatial_scale=(0.15, 0.15), num_blocks=8)
LONG = MaskSpec(spatial_scale=(0.7, 0.7), num_blocks=2)
OPTIONS = {
    "temporal": dict(temporal_scale=(0.5, 1.0)),
    "temporal_keep": dict(max_temporal_keep=0.5, num_blocks=2),
    "max_keep": dict(max_keep=20),
    "full_complement": dict(full_complement=True),
    "pred_full_complement": dict(pred_full_complement=True),
    "both_complements": dict(full_complement=True, pred_full_complement=True),
    "inverse": dict(inv_block=True),
    "fixed": dict(num_context=24, num_target=48),
}


def _sampler(specs=(SHORT, LONG), grid=GRID, **kwargs):
    return MaskSampler(specs, grid, **({"seed": 0, "round_to": 4} | kwargs))


@pytest.mark.parametrize("scale, side", [(0.15, 6), (0.7, 13)])
def test_square_blocks(scale, side):
    spec = MaskSpec(spatial_scale=(scale, scale), aspect_ratio=(1.0, 1.0))
    assert block_size(spec, (8, 16, 16), (0.3, 0.6, 0.9)) == (8, side, side)


def test_block_size_follows_its_uniforms():
    spec = MaskSpec(spatial_scale=(0.1, 0.5), temporal_scale=(0.25, 1.0), aspect_ratio=(0.5, 2.0))
    assert block_size(spec, (8, 16, 16), (0.0, 0.0, 1 / 3))[0] == 2
    assert block_size(spec, (8, 16, 16), (1.0, 1.0, 1 / 3)) == (8, 11, 11)
    tall = block_size(spec, (8, 16, 16), (1.0, 1.0, 1.0))
    assert tall == (8, 16, 8)
    # Never below one time step, never larger than the frame.
    assert block_size(MaskSpec(temporal_scale=(0.0, 0.0)), (8, 16, 16), (0.5,) * 3)[0] == 1
    assert block_size(MaskSpec(spatial_scale=(1.0, 1.0)), (8, 16, 16), (0.5, 0.5, 1.0))[1:] == (16, 13)


def test_blocks_lie_in_the_grid_and_reach_its_borders():
    blocks = draw_blocks(dataclasses.replace(SHORT, num_blocks=4000), GRID, (2, 3, 5), np.random.default_rng(0))
    starts, sizes = blocks[:, :3], blocks[:, 3:]
    assert (sizes == (2, 3, 5)).all()
    assert (starts.min(axis=0) == 0).all()
    assert ((starts + sizes).max(axis=0) == GRID).all()


def test_blocks_are_hidden_and_the_rest_is_visible():
    spec = dataclasses.replace(SHORT, num_blocks=1)
    context, target = apply_blocks(spec, (2, 3, 3), [(1, 0, 1, 1, 2, 2)])
    assert target.tolist() == [10, 11, 13, 14]
    assert sorted([*context, *target]) == list(range(18))
    chex.assert_type([context, target], np.int32)


def test_tubes_are_alike_in_every_frame():
    size = block_size(SHORT, GRID, (0.5, 0.5, 0.5))
    context, _ = apply_blocks(SHORT, GRID, draw_blocks(SHORT, GRID, size, np.random.default_rng(0)))
    frames = context.reshape(GRID[0], -1)
    np.testing.assert_array_equal(frames, frames[0] + 64 * np.arange(4)[:, None])


@pytest.mark.parametrize("option", OPTIONS)
def test_lists_of_every_option(option):
    spec = dataclasses.replace(SHORT, **OPTIONS[option])
    sampler = _sampler((spec,))
    total = np.prod(GRID)
    for step in range(5):
        (context,), (target,) = sampler.sample(step, range(6))
        assert (context.shape[1], target.shape[1]) == sampler.lengths[0]
        for ids, other in zip(context, target):
            assert (np.diff(ids) > 0).all() and (np.diff(other) > 0).all()
            assert not set(ids) & set(other)
            assert 0 <= min(ids[0], other[0]) and max(ids[-1], other[-1]) < total


def test_lengths_of_options():
    total = int(np.prod(GRID))
    base_context, base_target = _sampler((SHORT,)).lengths[0]
    lengths = {name: _sampler((dataclasses.replace(SHORT, **fields),)).lengths[0] for name, fields in OPTIONS.items()}
    assert lengths["full_complement"] == lengths["both_complements"] == (base_context, total - base_context)
    assert lengths["pred_full_complement"] == (total - base_target, base_target)
    assert lengths["inverse"] == (base_target, base_context)
    assert lengths["max_keep"] == (20, base_target)
    assert lengths["fixed"] == (24, 48)


def test_context_stays_in_the_first_time_steps():
    spec = dataclasses.replace(SHORT, max_temporal_keep=0.5, num_blocks=2)
    (context,), _ = _sampler((spec,)).sample(0, range(8))
    assert context.max() < 2 * 64


def test_inverse_swaps_the_same_draw():
    context, target = _sampler((SHORT,)).sample(3, range(4))
    swapped = _sampler((dataclasses.replace(SHORT, inv_block=True),)).sample(3, range(4))
    chex.assert_trees_all_equal((target, context), swapped)


def test_cut_keeps_the_first_ids():
    context, target = np.arange(0, 20, dtype=np.int32), np.arange(20, 64, dtype=np.int32)
    kept = cut(SHORT, (1, 8, 8), context, target, 5, 7)
    np.testing.assert_array_equal(kept[0], context[:5])
    np.testing.assert_array_equal(kept[1], target[:7])


def test_lengths_are_the_same_for_every_step_and_row():
    sampler = _sampler()
    shapes = {
        tuple(ids.shape[1] for side in sampler.sample(step, rows) for ids in side)
        for step in range(40) for rows in ([0], [7, 3], range(5))
    }
    assert shapes == {tuple(zip(*sampler.lengths))[0] + tuple(zip(*sampler.lengths))[1]}


def test_a_row_depends_on_seed_step_and_row_alone():
    sampler = _sampler()
    together = sampler.sample(9, range(8))
    for row in (0, 5):
        alone = _sampler().sample(9, [row])
        chex.assert_trees_all_equal(alone, tuple(tuple(ids[[row]] for ids in side) for side in together))

    def differs(other):
        return not np.array_equal(together[0][0], other[0][0])

    assert differs(sampler.sample(10, range(8)))
    assert differs(sampler.sample(9, range(8, 16)))
    assert differs(_sampler(seed=1).sample(9, range(8)))
    assert differs(_sampler(stream=1).sample(9, range(8)))


def test_strategies_differ_and_do_not_disturb_each_other():
    both, first = _sampler().sample(2, range(4)), _sampler((SHORT,)).sample(2, range(4))
    np.testing.assert_array_equal(both[0][0], first[0][0])
    assert both[0][0].shape != both[0][1].shape


def test_block_size_is_shared_in_a_step(monkeypatch):
    """All rows and groups of a step draw blocks of one size, other steps other sizes."""
    seen = []
    monkeypatch.setattr(masks, "draw_blocks", lambda *args: seen.append(args[2]) or draw_blocks(*args))
    sampler = _sampler((SHORT,), (4, 16, 16))
    sizes = []
    for step in range(8):
        seen.clear()
        sampler.sample(step, range(5))
        assert len(set(seen)) == 1
        sizes.append(seen[0])
    assert len(set(sizes)) > 1


def test_larger_groups_have_shorter_lists():
    """The minimum over more samples is smaller; the released cooldown uses 12 or 6, not 24."""
    lengths = [mask_lengths(SHORT, (8, 16, 16), group_size, round_to=1) for group_size in (24, 12, 6)]
    # Spatial cells per frame: 61.8, 67.3, 74.1 visible and 121.3, 128.2, 134.5 hidden.
    np.testing.assert_allclose([c / 8 for c, _ in lengths], [61.8, 67.3, 74.1], rtol=0.025)
    np.testing.assert_allclose([t / 8 for _, t in lengths], [121.3, 128.2, 134.5], rtol=0.015)


def test_impossible_lengths_are_named():
    spec = dataclasses.replace(SHORT, num_context=200)
    with pytest.raises(ValueError, match="only 0% of the masks of .* have 200 context and .*Lower num_context"):
        _sampler((spec,))
    with pytest.raises(ValueError, match="250 target"):
        _sampler((dataclasses.replace(SHORT, num_target=250),))


def test_context_that_is_always_empty_is_named():
    """A block as large as the frame leaves nothing to see; that must be said, not searched for."""
    spec = MaskSpec(spatial_scale=(1.0, 1.0), aspect_ratio=(1.0, 1.0), num_blocks=1)
    with pytest.raises(ValueError, match="hid all of grid .* use fewer or smaller blocks"):
        _sampler((spec,))
