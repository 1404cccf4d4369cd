"""Trajectory records, their samples, and pose arithmetic against SciPy."""

import functools
import pickle

import jax.numpy as jnp
import media
import msgpack
import numpy as np
import pytest
from compiling import fast_jit
from scipy.spatial.transform import Rotation

from jepa_jax import data
from jepa_jax.data import poses, records, trajectories
from jepa_jax.data.errors import DataError, RecordError
from jepa_jax.data.latents import DTYPE, Latents
from jepa_jax.data.trajectories import TrajectoryRecord, View
from jepa_jax.data.trajectory_clips import sample_trajectory, trajectory_indices
from jepa_jax.robots.conditions import ConditionMaker
from jepa_jax.robots.presets import from_record

_LENGTH = 40


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """A trajectory of two views, whose video header states four times the true rate."""
    path = media.write_video(tmp_path_factory.mktemp("video") / "a.mp4", frames=_LENGTH, fps=15, g=12)
    with open(path, "rb") as file:
        video = file.read()
    rng = np.random.default_rng(0)
    states = np.cumsum(rng.normal(0, 0.02, (_LENGTH, 7)), axis=0).astype(np.float32)
    extrinsics = np.tile(np.float32([0.3, 0.2, 0.5, 1, -0.4, 2]), (_LENGTH, 1))
    views = (View("left", video, 64, 96, extrinsics), View("wrist", video, 64, 96))
    names, units = tuple("xyzabcg"), ("m",) * 3 + ("rad",) * 3 + ("",)
    return TrajectoryRecord(
        views, states, None, 15.0, 60.0, "true", names, units, (), (), "robot base", "xyz euler", (0.0, 1.0), "ü", "a", {}
    )


def test_record_survives_its_bytes(record):
    stored = records.decode_record(records.encode_record(record))
    assert stored._replace(views=(), states=None) == record._replace(views=(), states=None)
    np.testing.assert_array_equal(stored.states, record.states)
    assert stored.states.dtype == np.float32 and stored.actions is None
    assert [view.name for view in stored.views] == ["left", "wrist"] and stored.views[1].extrinsics is None
    np.testing.assert_array_equal(stored.views[0].extrinsics, record.views[0].extrinsics)
    assert stored.views[0].data == record.views[0].data
    assert (stored.seconds, stored.sampling_fps) == (_LENGTH / 15, 15.0)
    assert stored.notes == ("video header says 60 frames/s, recorded at 15 Hz",)
    actions = record._replace(actions=np.ones((_LENGTH, 2), np.float32), action_names=("u", "v"), action_units=("", ""))
    np.testing.assert_array_equal(records.decode_record(records.encode_record(actions)).actions, actions.actions)
    extras = record._replace(extras={"cup_position": np.ones((_LENGTH, 3), np.float32)})
    np.testing.assert_array_equal(records.decode_record(records.encode_record(extras)).extras["cup_position"], 1)


_WRONG = {
    "states must be": {"states": np.zeros((0, 7), np.float32)},
    r"extrinsics of 'left' is \[40, 6\], expected \[39, 6\]": {"states": np.zeros((39, 7), np.float32)},
    "not finite": {"states": np.full((_LENGTH, 7), np.nan, np.float32)},
    r"actions is \[40, 3\], expected \[40, 0\]": {"actions": np.zeros((_LENGTH, 3), np.float32)},
    r"extra 'held' is \[40\], expected \[40, 1\]": {"extras": {"held": np.zeros(_LENGTH, np.float32)}},
    "views are": {"views": ()},
    "control_rate is 0": {"control_rate": 0.0},
    "rate is 'both'; allowed: header, true": {"rate": "both"},
    "rotation is 'quaternion'; allowed": {"rotation": "quaternion"},
    "7 dimensions .* have 1 units": {"state_units": ("m",)},
}


@pytest.mark.parametrize("message", _WRONG)
def test_parts_that_do_not_fit_are_refused(record, message):
    with pytest.raises(RecordError, match=message):
        records.encode_record(record._replace(**_WRONG[message]))


def test_bytes_that_are_no_trajectory_are_refused(record):
    fields = msgpack.unpackb(records.encode_record(record))
    for change, message in (
        ({"version": 9}, "schema version 9"),
        ({"states": {"shape": [3, 3], "data": b"abcd"}}, "states is no float32 array"),
        ({"views": [{"name": "left"}]}, "view has fields"),
        ({"views": 3}, "wrong type"),
        ({"surprise": 1}, "surprise"),
    ):
        with pytest.raises(RecordError, match=message):
            records.decode_record(msgpack.packb({**fields, **change}))


def test_source_reads_either_kind_and_refuses_clips_as_trajectories(record, tmp_path):
    media.write_shard(tmp_path / "robots.array_record", [record, record])
    video = record.views[0].data
    clip = data.ClipRecord("video", video, 15.0, _LENGTH, 64, 96, "clip")
    media.write_shard(tmp_path / "clips.array_record", [clip])
    robots, clips = str(tmp_path / "robots.array_record"), str(tmp_path / "clips.array_record")
    source = pickle.loads(pickle.dumps(data.ShardSource([robots], kind="trajectory")))
    assert source[1].kind == "trajectory" and len(source) == 2
    # A trajectory is a video of its first view wherever clips are wanted.
    assert data.ShardSource([robots])[0] == data.ClipRecord("video", video, 15.0, _LENGTH, 64, 96, "a")
    assert [item.kind for item in data.ShardSource([clips, robots], kind="any")] == [
        "video",
        "trajectory",
        "trajectory",
    ]
    with pytest.raises(DataError, match=r"clips\.array_record#0 is a clip of kind 'video', but robot trajectories"):
        data.ShardSource([clips], kind="trajectory")[0]
    with pytest.raises(ValueError, match="allowed: clip, trajectory, any"):
        data.ShardSource([clips], kind="clips")


def test_indices_follow_the_official_rule():
    # 60 frames/s at 4 per second: 15 apart; ends 120 .. 129 are possible, and none is used itself.
    starts = [trajectory_indices(130, 60.0, frames=8, fps=4, uniform=u) for u in (0.0, 0.55, 0.999)]
    assert [window.tolist() for window in starts[:1]] == [[0, 15, 30, 45, 60, 75, 90, 105]]
    assert [int(window[0]) for window in starts] == [0, 5, 9]
    # The ratio is rounded up: 14.9 / 4 is 4, and 16.1 / 4 is 5.
    assert np.diff(trajectory_indices(50, 14.9, frames=8, fps=4, uniform=0)).tolist() == [4] * 7
    assert np.diff(trajectory_indices(50, 16.1, frames=8, fps=4, uniform=0)).tolist() == [5] * 7
    with pytest.raises(DataError, match="32 frames at 15/s; 8 frames at 4/s are 4 apart and need more than 32"):
        trajectory_indices(32, 15.0, frames=8, fps=4, uniform=0.5)


def test_sample_holds_what_belongs_together(record):
    clip = sample_trajectory(record, frames=5, fps=4, uniforms=(0.2, 0.5))
    assert (clip.view, clip.indices.tolist()) == (0, [10, 14, 18, 22, 26])
    assert [media.read_number(frame) for frame in clip.frames] == clip.indices.tolist()
    states, actions = ConditionMaker(from_record(record))(record, clip)
    np.testing.assert_array_equal(states, record.states[clip.indices])
    before, after = Rotation.from_euler("xyz", states[:-1, 3:6]), Rotation.from_euler("xyz", states[1:, 3:6])
    np.testing.assert_allclose(actions[:, :3], np.diff(states[:, :3], axis=0), atol=1e-6)
    np.testing.assert_allclose(actions[:, 3:6], (after * before.inv()).as_euler("xyz"), atol=1e-5)
    assert sample_trajectory(record, frames=5, fps=4, uniforms=(0.7, 0)).view == 1
    assert sample_trajectory(record, frames=5, fps=4, uniforms=(0.7, 0), views=["left"]).view == 0
    # The header's 60 frames/s make the same sample four times as long: too long for this trajectory.
    with pytest.raises(DataError, match="15 apart"):
        sample_trajectory(record._replace(rate="header"), frames=5, fps=4, uniforms=(0, 0))
    with pytest.raises(DataError, match="no view 'top'"):
        sample_trajectory(record, frames=5, fps=4, uniforms=(0, 0), views=["top"])


def test_sample_in_the_frame_of_the_camera(record):
    clip = sample_trajectory(record, frames=5, fps=4, uniforms=(0.2, 0.5))
    seen, _ = ConditionMaker(from_record(record, frame="camera"), ("left",))(record, clip)
    camera = Rotation.from_euler("xyz", clip.extrinsics[:, 3:6])
    states = clip.states
    np.testing.assert_allclose(seen[:, :3], camera.inv().apply(states[:, :3] - clip.extrinsics[:, :3]), atol=1e-6)
    turned = camera.inv() * Rotation.from_euler("xyz", states[:, 3:6])
    np.testing.assert_allclose(Rotation.from_euler("xyz", seen[:, 3:6]).as_matrix(), turned.as_matrix(), atol=1e-6)
    np.testing.assert_array_equal(seen[:, 6], states[:, 6])
    with pytest.raises(DataError, match="extrinsics of view 'wrist': found none"):
        ConditionMaker(from_record(record, frame="camera"))(record, clip)


def test_recorded_actions_come_with_the_rows_between_samples(record):
    length = record.num_frames
    recorded = record._replace(
        actions=np.arange(2 * length, dtype=np.float32).reshape(length, 2), action_names=("u", "v"), action_units=("", "")
    )
    clip = sample_trajectory(recorded, frames=3, fps=4, uniforms=(0.2, 0))
    assert clip.indices.tolist() == [0, 4, 8]
    np.testing.assert_array_equal(clip.recorded, recorded.actions[:8])
    spec = from_record(recorded, source="recorded", mode="delta")
    _, actions = ConditionMaker(spec)(recorded, clip)
    np.testing.assert_array_equal(actions, [recorded.actions[:4].sum(0), recorded.actions[4:8].sum(0)])


def test_states_that_are_no_poses_have_plain_differences(record):
    joints = record._replace(rotation="none")
    clip = sample_trajectory(joints, frames=5, fps=4, uniforms=(0, 0))
    states, actions = ConditionMaker(from_record(joints))(joints, clip)
    np.testing.assert_allclose(actions, np.diff(states, axis=0), atol=1e-6)


def _latents(frames, width=3):
    values = np.arange(len(frames) * 4 * width).reshape(len(frames), 4, width).astype(DTYPE)
    return Latents(values.tobytes(), tuple(frames), (2, 2), width, "ab" * 32, (64, 0.75, 1.35)), values


def test_stored_latents_replace_the_video(record):
    latents, values = _latents(range(0, record.num_frames, 4))
    view = record.views[0]._replace(data=b"", latents=latents)
    stored = records.decode_record(records.encode_record(record._replace(views=(view,))))
    assert stored.views[0].latents == latents
    clip = sample_trajectory(stored, frames=3, fps=4, uniforms=(0, 0.99))
    assert clip.frames is None and (np.diff(clip.indices) == 4).all() and (clip.indices % 4 == 0).all()
    np.testing.assert_array_equal(clip.latents, values[clip.indices // 4])
    with pytest.raises(DataError, match="no 3 frames that are 2 apart have stored latents"):
        sample_trajectory(stored, frames=3, fps=8, uniforms=(0, 0))
    for change, message in (
        ({"frames": (0,) * 10}, "they ascend"), ({"tokens": b"1"}, "hold 1 bytes"), ({"grid": (1,)}, "wrong type"),
    ):
        with pytest.raises(RecordError, match=message):
            broken = stored._replace(views=(view._replace(latents=latents._replace(**change)),))
            records.decode_record(records.encode_record(broken))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_euler_angles_against_scipy(dtype):
    rng = np.random.default_rng(1)
    angles = rng.uniform(-np.pi, np.pi, (500, 3))
    lock = np.float64([0, 1e-7, -1e-5, 1e-3])
    for sign in (-1, 1):
        near = rng.uniform(-np.pi, np.pi, (len(lock), 3))
        near[:, 1] = sign * (np.pi / 2 - lock)
        angles = np.concatenate([angles, near])
    corners = np.array(np.meshgrid(*[[-np.pi, 0, np.pi]] * 3)).reshape(3, -1).T
    angles = np.concatenate([angles, corners]).astype(dtype)
    matrices = poses.euler_to_matrix(angles)
    assert matrices.dtype == dtype
    tolerance = 1e-6 if dtype == np.float32 else 1e-12
    np.testing.assert_allclose(matrices, Rotation.from_euler("xyz", angles).as_matrix(), atol=tolerance)
    again = poses.matrix_to_euler(matrices)
    assert np.abs(again[:, 1]).max() <= np.pi / 2 + 1e-6
    np.testing.assert_allclose(poses.euler_to_matrix(again), matrices, atol=tolerance)
    plain = np.abs(np.cos(angles[:, 1])) > 0.1
    expected = Rotation.from_matrix(matrices[plain].astype(np.float64)).as_euler("xyz")
    difference = (again[plain] - expected + np.pi) % (2 * np.pi) - np.pi
    np.testing.assert_allclose(difference, 0, atol=1e-5 if dtype == np.float32 else 1e-10)


def test_actions_lead_from_pose_to_pose():
    rng = np.random.default_rng(2)
    states = rng.uniform(-1, 1, (3, 20, 7)) * [1, 1, 1, np.pi, np.pi, np.pi, 0.5] + [0, 0, 0, 0, 0, 0, 0.5]
    moved = poses.apply_action(states[:, :-1], poses.pose_deltas(states))
    np.testing.assert_allclose(moved[..., [0, 1, 2, 6]], states[:, 1:, [0, 1, 2, 6]], atol=1e-12)
    np.testing.assert_allclose(
        poses.euler_to_matrix(moved[..., 3:6]), poses.euler_to_matrix(states[:, 1:, 3:6]), atol=1e-12
    )
    assert poses.apply_action(np.zeros(7), np.float64([0, 0, 0, 0, 0, 0, 5]))[6] == 1


def test_rotation_steps_measure_the_single_rotation():
    turns = Rotation.from_euler("xyz", [[0, 0, 0], [0.3, 0, 0], [0.3 + np.pi, 0, 0], [np.pi, 1.2, -3]])
    steps = poses.rotation_steps(turns.as_euler("xyz"))
    np.testing.assert_allclose(steps, (turns[1:] * turns[:-1].inv()).magnitude(), atol=1e-7)


def test_kinds_have_their_own_schema_versions():
    assert records.schema_version("video") == records.SCHEMA_VERSION
    assert records.schema_version("trajectory") == trajectories.SCHEMA_VERSION


def test_one_formula_serves_devices_too():
    rng = np.random.default_rng(3)
    states, actions = rng.uniform(-1.5, 1.5, (2, 6, 7)).astype(np.float32)
    for function, arguments in (
        (poses.pose_deltas, (states,)),
        (poses.apply_action, (states, actions)),
        (poses.to_camera_frame, (states, actions[:, :6])),
        (poses.rotation_steps, (states[:, 3:6],)),
    ):
        compiled = fast_jit(functools.partial(function, xp=jnp))
        np.testing.assert_allclose(compiled(*arguments), function(*arguments), atol=2e-6)
