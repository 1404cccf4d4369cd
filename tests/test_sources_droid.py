"""`prepare droid` on small raw trees: what is stored, the official sampling rule, and every kind of damage."""

import json
import os
import shutil
import sys

import media
import numpy as np
import pytest
import robots
from scipy.spatial.transform import Rotation

from jepa_jax import data, prepare
from jepa_jax.data import sampling, video
from jepa_jax.data.trajectory_clips import sample_trajectory


def _run(source, output, *more):
    return prepare.main(["droid", str(source), "--output", str(output), "--workers", "0", "--size", "48", *more])


def _records(folder):
    source = data.ShardSource([str(folder)], kind="trajectory")
    return [source[index] for index in range(len(source))]


def _report(folder):
    return json.loads((folder / "droid-report.json").read_text())


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Two trajectories, one below a folder with a space and another letter."""
    folder = tmp_path_factory.mktemp("droid")
    states = [
        robots.write_droid(folder / "lab" / "success" / "one", 40),
        robots.write_droid(folder / "lab ü" / "two", 30, header_fps=60, seed=1),
    ]
    return folder, states


def test_trajectories_are_stored_with_all_that_belongs_to_them(tree, tmp_path, capsys):
    folder, states = tree
    assert _run(folder, tmp_path, "--views", "left,right") == 0
    first, second = sorted(_records(tmp_path), key=lambda record: -record.num_frames)
    assert (first.source_id, second.source_id) == (str(folder / "lab/success/one"), str(folder / "lab ü/two"))
    for record, expected in ((first, states[0]), (second, states[1])):
        np.testing.assert_array_equal(record.states, expected.astype(np.float32))
        assert [view.name for view in record.views] == ["left", "right"]
        assert [view.extrinsics[0, 0] for view in record.views] == pytest.approx([0.1, 1.1])
        for view in record.views:
            assert video.probe(view.data) == (record.num_frames, 15.0, 48, 72)
            frames = video.decode_frames(view.data, range(record.num_frames))
            assert [media.read_number(frame) for frame in frames] == list(range(record.num_frames))
        assert record.instruction == "close the drawer" and record.gripper_range == (0.0, 1.0)
        assert record.control_rate == pytest.approx(15, rel=1e-3) and record.rate == "header"
    assert (first.sampling_fps, second.sampling_fps) == (15.0, 60.0)
    report = _report(tmp_path)
    assert report["fps_histogram"] == {"15": 2} and report["hours"] == pytest.approx(70 / 15 / 3600, rel=1e-3)
    # 40 rows at 15/s are enough for 8 frames at 4/s, 30 at what the header says are not.
    assert report["notes"] == {
        "video header says 60 frames/s, recorded at 15 Hz": 1, "too short for samples of 8 frames at 4/s": 1,
    }  # fmt: skip
    assert "video header says 60 frames/s, recorded at 15 Hz: 1 trajectories" in capsys.readouterr().out
    # A trajectory among clips is a plain video.
    assert data.ShardSource([str(tmp_path)])[0].kind == "video"


def test_rate_decides_how_far_apart_frames_are(tree, tmp_path):
    folder, _ = tree
    for rate, step in (("header", 15), ("true", 4), ("30", 8)):
        assert _run(folder / "lab ü", tmp_path / rate, "--rate", rate) == 0
        (record,) = _records(tmp_path / rate)
        clip = sample_trajectory(record, frames=1 if rate == "header" else 2, fps=4, uniforms=(0, 0.999))
        assert clip.indices.tolist() == [29 - len(clip.frames) * step + step * k for k in range(len(clip.frames))]
        assert [media.read_number(frame) for frame in clip.frames] == clip.indices.tolist()


def test_samples_equal_the_official_rules_on_the_raw_files(tree, tmp_path):
    folder, (states, _) = tree
    assert _run(folder / "lab", tmp_path, "--views", "right") == 0
    (record,) = _records(tmp_path)
    raw = folder / "lab/success/one/recordings/MP4" / f"{robots.CAMERAS['right']}.mp4"
    info = video.probe(str(raw))
    rng = np.random.default_rng(0)
    for _ in range(20):
        uniform = rng.random()
        clip = sample_trajectory(record, frames=8, fps=4, uniforms=(0, uniform))
        # Written out from the rule: step = ceil(rate / fps), end in [n, L - 1], every step-th frame before it.
        window = 8 * int(np.ceil(info.fps / 4))
        end = window + int(uniform * (info.num_frames - window))
        assert clip.indices.tolist() == list(range(end - window, end, window // 8))
        np.testing.assert_array_equal(clip.states, states[clip.indices].astype(np.float32))
    # Pretraining counts otherwise: 15 // 4 is 3 there.
    assert sampling.frame_step(info.fps, frames=8, fps=4) == 3


def _remove_views(folder):
    (folder / "metadata_lab.json").write_text(json.dumps({"right_mp4_path": "recordings/MP4/x.mp4"}))


def _cut(path, keep):
    path.write_bytes(path.read_bytes()[:keep])


def _spoil(values, row, value):
    values = np.array(values)
    values[row] = value
    return values


_STATES = robots.smooth_states(20)
_DAMAGE = {
    "missing h5": lambda folder: (folder / "trajectory.h5").unlink(),
    "unreadable h5": lambda folder: _cut(folder / "trajectory.h5", 900),
    "missing json": lambda folder: [path.unlink() for path in folder.glob("*.json")],
    "unreadable json": lambda folder: [path.write_text("{") for path in folder.glob("*.json")],
    "json lacks a view": _remove_views,
    "missing mp4": lambda folder: shutil.rmtree(folder / "recordings"),
    "empty file": lambda folder: _cut(folder / "recordings/MP4/12345678.mp4", 0),
    "truncated": lambda folder: _cut(folder / "recordings/MP4/12345678.mp4", 1200),
}
_CONTENT = {
    "rows do not match frames": {"frames": 17},
    "states not finite": {"cartesian_position": _spoil(_STATES[:, :6], 7, np.nan)},
    "time gap": {"robot_timestamp_seconds": _spoil(np.zeros(20), slice(9, None), 3)},
    "angles not in radians": {"cartesian_position": _STATES[:, :6] * [1, 1, 1, 57.3, 57.3, 57.3]},
    "implausible rotation": {"cartesian_position": _spoil(_STATES[:, :6], 7, [0, 0, 0, 0, 1.4, 2])},
    "h5 lacks data": {"gripper_position": None},
    "too short": {"length": 5},
}


@pytest.mark.parametrize("reason", [*_DAMAGE, *_CONTENT])
def test_damage_is_counted_by_reason_and_costs_one_trajectory(reason, tmp_path):
    robots.write_droid(tmp_path / "in" / "good", 20, views=("left",))
    bad = tmp_path / "in" / "bad"
    robots.write_droid(bad, **{"length": 20, "views": ("left",), **_CONTENT.get(reason, {})})
    _DAMAGE.get(reason, lambda folder: None)(bad)
    # A folder without trajectory.h5 is not found by searching, so an index names both.
    (tmp_path / "index.csv").write_text(f"{tmp_path}/in/bad\n{tmp_path}/in/good 0\n")
    assert _run(tmp_path / "index.csv", tmp_path / "out", "--max-skip-fraction", "0.5") == 0
    assert [record.source_id for record in _records(tmp_path / "out")] == [str(tmp_path / "in/good")]
    (skip,) = _report(tmp_path / "out")["skips"]
    assert (skip["path"], skip["reason"]) == (str(bad), reason)
    assert str(bad) in skip["message"]


def test_numbers_that_are_no_euler_angles_are_suspected_by_name(tmp_path):
    axis = np.float64([0.6, 0.64, 0.48])
    turns = Rotation.from_rotvec(np.linspace(2.8, 3.5, 40)[:, None] * axis)
    pose = np.zeros((40, 6))
    wrong = {"rotation vectors": turns.as_rotvec()}
    # Through the vertical, and then stored as pitch, roll, yaw.
    turns = Rotation.from_euler("xyz", [[0.3, pitch, 0.1] for pitch in np.linspace(1.2, 1.9, 40)])
    wrong["angles about x, y, z in columns 1, 0, 2"] = turns.as_euler("xyz")[:, [1, 0, 2]]
    for number, (reading, angles) in enumerate(wrong.items()):
        pose[:, 3:] = angles
        robots.write_droid(tmp_path / f"in{number}", 40, views=("left",), cartesian_position=pose)
        assert _run(tmp_path / f"in{number}", tmp_path / f"out{number}") == 1
        (skip,) = _report(tmp_path / f"out{number}")["skips"]
        assert skip["reason"] == "implausible rotation" and f"read as {reading} they turn" in skip["message"]
    pose[:, 3:] = turns.as_euler("xyz")
    robots.write_droid(tmp_path / "good", 40, views=("left",), cartesian_position=pose)
    assert _run(tmp_path / "good", tmp_path / "fine") == 0


def test_folder_that_is_found_twice_is_stored_once(tree, tmp_path, capsys):
    folder, _ = tree
    os.symlink(folder / "lab", tmp_path / "link")
    index = tmp_path / "index.txt"
    index.write_text(f"{folder}/lab/success/one\n{folder}/lab ü/two\n{tmp_path}/link/success/one\n")
    assert _run(index, tmp_path / "out", "--max-skip-fraction", "0.5") == 0
    assert len(_records(tmp_path / "out")) == 2
    assert _report(tmp_path / "out")["skips_by_reason"] == {"duplicate id": 1}
    assert _run(tmp_path / "gone", tmp_path / "other") == 2
    assert "no folder and no list" in capsys.readouterr().err
    assert _run(tmp_path / "out", tmp_path / "other") == 2
    assert "holds no trajectory.h5" in capsys.readouterr().err


def test_library_that_is_missing_is_named(tree, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert _run(tree[0], tmp_path) == 2
    assert "needs h5py, which is not installed; `bash launch/setup.sh sources` installs it" in capsys.readouterr().err


def test_workers_give_the_same_bytes(tree, tmp_path):
    folder, _ = tree
    for name, workers in (("serial", "0"), ("parallel", "2")):
        assert _run(folder, tmp_path / name, "--per-shard", "1", "--workers", workers) == 0
    files = sorted(os.listdir(tmp_path / "serial"))
    for file in files:
        if file.endswith("array_record"):
            assert (tmp_path / "serial" / file).read_bytes() == (tmp_path / "parallel" / file).read_bytes()
    assert _run(folder, tmp_path / "serial", "--rate", "15") == 2


@pytest.mark.parametrize(
    "arguments", [["--rate", "fast"], ["--rate", "0"], ["--views", "left,top"], ["--views", "left,left"]]
)
def test_arguments_are_checked(arguments, tmp_path):
    with pytest.raises(SystemExit):
        _run(tmp_path, tmp_path / "out", *arguments)


def test_videos_images_and_trajectories_make_one_mixture(tree, tmp_path):
    folder, _ = tree
    (tmp_path / "in").mkdir()
    media.write_video(tmp_path / "in" / "a.mp4", frames=40, fps=15)
    assert _run(folder, tmp_path / "droid") == 0
    arguments = [str(tmp_path / "in"), "--output", str(tmp_path / "clips"), "--workers", "0"]
    assert prepare.main(["videos", *arguments]) == 0
    sources = tuple(data.SourceSpec((str(tmp_path / name),), 1.0) for name in ("droid", "clips"))
    group = data.GroupSpec("mix", "video", 4, 4.0, 8, sources)
    crop = data.CropSpec(32, (0.3, 1.0), (0.75, 1.35), 0.5)
    batch, notes = data.ClipPipeline([group], crop, {"mix": media.mask_sampler(frames=4)}, seed=0).batch_at(0)
    assert batch["mix"]["video"].shape == (8, 4, 32, 32, 3) and not notes.skips
