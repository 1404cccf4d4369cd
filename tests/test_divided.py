"""Features in records of their own per frame: a clip reads its frames alone, and damage costs no more than it must."""

import dataclasses
import functools
import pickle

import numpy as np
import pytest

from jepa_jax.data import DataError, ShardSource
from jepa_jax.data.claims import ShardError, ShardPlan
from jepa_jax.data.divided import SUFFIX
from jepa_jax.data.latents import DTYPE, Latents
from jepa_jax.data.listing import Item
from jepa_jax.data.shards import write_shards
from jepa_jax.data.trajectories import TrajectoryRecord, View
from jepa_jax.data.trajectory_clips import sample_trajectory

LENGTH, STEP, FRAMES = 200, 4, 5
GRID, WIDTH = (2, 2), 64
FRAME_BYTES = 4 * WIDTH * 2


def values_of(number, view):
    shape = (LENGTH // STEP, 4, WIDTH)
    return np.random.default_rng((number, view)).normal(size=shape).astype(DTYPE)


@dataclasses.dataclass(frozen=True)
class _Spec:
    """Make trajectories with features in two views."""

    kind = "trajectory"

    def convert(self, item):
        views = tuple(
            View(name, b"", 64, 64, None, Latents(
                values_of(int(item.path), view).tobytes(), tuple(range(0, LENGTH, STEP)), GRID, WIDTH, "ab" * 32, (64, 1.0, 1.0)
            ))
            for view, name in enumerate(("left", "wrist"))
        )  # fmt: skip
        return TrajectoryRecord(
            views, np.zeros((LENGTH, 2), np.float32), None, 16.0, 16.0, "true", ("a", "b"), ("", ""), (), (), "unknown",
            "none", None, None, item.path, {},
        )  # fmt: skip


ITEMS = [Item(str(number)) for number in range(3)]


@pytest.fixture
def plan(tmp_path):
    plan = ShardPlan(str(tmp_path), "features", 2, _Spec(), divided=True)
    assert write_shards(ITEMS, plan, workers=0).features == 3 * 2 * LENGTH // STEP
    return plan


def clip_of(source, number, uniform=0.5):
    return sample_trajectory(source[number], frames=FRAMES, fps=4, uniforms=(0.9, uniform))


def test_a_clip_reads_its_own_frames(plan, monkeypatch):
    source = pickle.loads(pickle.dumps(ShardSource([plan.folder], "trajectory")))
    assert len(source) == 3 and all(file.endswith(SUFFIX) for file in source.files)
    read, lengths = ShardSource._read, []

    def count(*args):
        found = read(*args)
        lengths.append([len(payload) for payload in found])
        return found

    monkeypatch.setattr(ShardSource, "_read", count)
    for number in range(3):
        lengths.clear()
        clip = clip_of(source, number, uniform=number / 3)
        np.testing.assert_array_equal(clip.latents, values_of(number, 1)[clip.indices // STEP])
        (trajectory,), frames = lengths
        assert frames == [FRAME_BYTES] * FRAMES
        # Of 100 frames that are stored of it, none comes along with the states.
        assert trajectory < LENGTH * 2 * 4 + 2000


def test_damage_to_a_frame_costs_the_clips_that_show_it(plan):
    clip = clip_of(ShardSource([plan.folder], "trajectory"), 0)
    damage(plan.shard(0, 2), clip.latents[2].tobytes())
    source = ShardSource([plan.folder], "trajectory")
    with pytest.raises(DataError, match="#0 cannot be read") as error:
        clip_of(source, 0)
    assert error.value.reason == "corrupt record"
    for number, uniform in ((0, 0.0), (1, 0.5), (2, 0.5)):
        clip_of(source, number, uniform)


def test_a_damaged_index_is_named(plan):
    # The numbers of two trajectories, each after the frames of its two views.
    damage(plan.shard(0, 2), bytes([0x92, 100, 0xCC, 201]))
    with pytest.raises(DataError, match="00000-of-00002.frames.* last record, which lists its trajectories, is damaged"):
        ShardSource([plan.folder], "trajectory")


def damage(path, found):
    with open(path, "rb") as file:
        content = file.read()
    assert content.count(found) == 1
    with open(path, "wb") as file:
        file.write(content.replace(found, found[:1] + bytes([found[1] ^ 255]) + found[2:]))


def test_a_set_of_the_other_kind_is_not_mixed_in(plan):
    """As where shards were made before frames were records of their own."""
    with pytest.raises(ShardError, match="divided True -> None"):
        write_shards(ITEMS, dataclasses.replace(plan, divided=False), workers=0)
    write_shards(ITEMS, dataclasses.replace(plan, divided=False), workers=0, overwrite=True)
    source = ShardSource([plan.folder], "trajectory")
    assert len(source) == 3 and not any(file.endswith(SUFFIX) for file in source.files)
    read = functools.partial(clip_of, source)
    np.testing.assert_array_equal(read(1).latents, values_of(1, 1)[read(1).indices // STEP])
