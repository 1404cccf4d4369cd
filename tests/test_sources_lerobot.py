"""`prepare lerobot` on small data sets of every layout."""

import json
import shutil

import media
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import robots

from jepa_jax import data, prepare
from jepa_jax.data import video
from jepa_jax.data.sources.lerobot import LeRobotSpec
from jepa_jax.data.trajectory_clips import trajectory_step

_LENGTHS = (12, 20, 9)


def _run(source, output, *more):
    return prepare.main(["lerobot", str(source), "--output", str(output), "--workers", "0", "--size", "48", *more])


def _records(folder):
    source = data.ShardSource([str(folder)], kind="trajectory")
    return [source[index] for index in range(len(source))]


def _skips(folder):
    return json.loads((folder / "lerobot-report.json").read_text())["skips_by_reason"]


@pytest.mark.parametrize("pictures", [False, True], ids=["videos", "pictures"])
@pytest.mark.parametrize("version", ["v2.0", "v2.1", "v3.0"])
def test_every_layout_gives_the_same_trajectories(version, pictures, tmp_path):
    root = tmp_path / "ä set"
    states = robots.write_lerobot(root, _LENGTHS, version=version, pictures=pictures)
    assert _run(tmp_path, tmp_path / "out", "--rotation", "xyz-euler", "--gripper-range", "0,1") == 0
    records = _records(tmp_path / "out")
    assert [record.source_id for record in records] == [f"{root}#{number}" for number in range(3)]
    for number, record in enumerate(records):
        np.testing.assert_array_equal(record.states, states[number])
        np.testing.assert_array_equal(record.actions, [[number, row] for row in range(_LENGTHS[number])])
        assert (record.state_names, record.action_names) == (tuple("xyzabcg"), ("u", "v"))
        assert (record.control_rate, record.header_fps, record.rate) == (10.0, 10.0, "true")
        assert (record.rotation, record.gripper_range) == ("xyz euler", (0.0, 1.0))
        assert record.state_units == ("m", "m", "m", "rad", "rad", "rad", "closedness")
        assert record.instruction == f"task {number}"
        (view,) = record.views
        assert (view.name, view.height, view.width) == ("top", 48, 72)
        frames = video.decode_frames(view.data, range(record.num_frames))
        assert [media.read_number(frame) for frame in frames] == list(range(_LENGTHS[number]))


def test_columns_and_views_are_chosen(tmp_path, capsys):
    robots.write_lerobot(tmp_path / "set")
    assert (
        _run(
            tmp_path / "set", tmp_path / "out", "--state", "action,observation.state", "--action", "", "--views", "top"
        )
        == 0
    )
    record = _records(tmp_path / "out")[0]
    assert record.state_names == ("u", "v", *"xyzabcg") and record.actions is None and record.rotation == "none"
    assert _run(tmp_path / "set", tmp_path / "other", "--views", "wrist") == 2
    assert "views wrist asked for, but its cameras are observation.images.top" in capsys.readouterr().err
    assert _run(tmp_path / "set", tmp_path / "other", "--state", "observation.pose") == 1
    assert _skips(tmp_path / "other") == {"parquet lacks data": 3}


def test_damage_is_counted_by_reason(tmp_path):
    root = tmp_path / "set"
    robots.write_lerobot(root, (12,) * 5)
    folder, videos = root / "data/chunk-000", root / "videos/chunk-000/observation.images.top"
    (folder / "episode_000000.parquet").unlink()
    (folder / "episode_000001.parquet").write_bytes(b"PAR1 no table PAR1")
    media.write_video(videos / "episode_000002.mp4", frames=11, fps=10)
    (videos / "episode_000003.mp4").unlink()
    with open(root / "meta/episodes.jsonl", "a", encoding="utf-8") as file:
        file.write('\n{"episode_index": 4, "length": 12, "tasks": []}\n')
    assert _run(root, tmp_path / "out", "--max-skip-fraction", "0.9") == 0
    assert len(_records(tmp_path / "out")) == 1
    assert _skips(tmp_path / "out") == dict.fromkeys(
        ("missing parquet", "unreadable parquet", "rows do not match frames", "missing file", "duplicate id"), 1
    )


def test_video_of_many_episodes_that_ends_early_costs_the_last(tmp_path):
    root = tmp_path / "set"
    robots.write_lerobot(root, (12, 20, 12), version="v3.0")
    robots.concatenate_videos(root / "videos/observation.images.top/chunk-000/file-000.mp4", (12, 20, 3))
    assert _run(root, tmp_path / "out", "--max-skip-fraction", "0.5") == 0
    assert [record.num_frames for record in _records(tmp_path / "out")] == [12, 20]
    assert _skips(tmp_path / "out") == {"scene beyond the end": 1}


def test_other_versions_and_folders_are_refused(tmp_path, capsys):
    assert _run(tmp_path, tmp_path / "out") == 2
    assert "holds no meta/info.json" in capsys.readouterr().err
    robots.write_lerobot(tmp_path / "set")
    info = json.loads((tmp_path / "set/meta/info.json").read_text())
    (tmp_path / "set/meta/info.json").write_text(json.dumps({**info, "codebase_version": "v1.6"}))
    assert _run(tmp_path / "set", tmp_path / "out") == 2
    assert "is of version v1.6; versions 2.0, 2.1 and 3.x are read" in capsys.readouterr().err
    (tmp_path / "set/meta/info.json").write_text("{")
    assert _run(tmp_path / "set", tmp_path / "out") == 2
    assert "no readable description" in capsys.readouterr().err


def _change_table(path, change):
    table = pyarrow.parquet.read_table(path)
    pyarrow.parquet.write_table(change(table), path)


def _with_stamps(seconds):
    return lambda table: table.append_column("timestamp", pa.array(seconds(len(table)), pa.float32()))


def test_depth_is_no_view_unless_it_is_asked_for(tmp_path):
    for number, said in enumerate(({"info": {"is_depth_map": True}}, {"video_info": {"video.is_depth_map": True}})):
        root = tmp_path / str(number) / "set"
        robots.write_lerobot(root, (12,))
        info = json.loads((root / "meta/info.json").read_text())
        top = info["features"]["observation.images.top"]
        depth = {**top, **said}
        info["features"] = {"observation.images.depth": depth, **info["features"]}
        (root / "meta/info.json").write_text(json.dumps(info))
        videos = root / "videos/chunk-000"
        shutil.copytree(videos / "observation.images.top", videos / "observation.images.depth")
        for views, expected in (((), ["top"]), (("--views", "depth,top"), ["depth", "top"])):
            out = tmp_path / str(number) / f"out{len(views)}"
            assert _run(root, out, *views) == 0
            assert [view.name for view in _records(out)[0].views] == expected
            noted = json.loads((out / "lerobot-report.json").read_text())["notes"]
            assert ("depth cameras left out (--views keeps them)" in noted) == (not views)


def test_time_stamps_are_compared_with_the_rate(tmp_path):
    root = tmp_path / "set"
    robots.write_lerobot(root, (40,) * 4)

    def hole(length, seconds):
        stamps = np.arange(length) / 10
        stamps[20:] += seconds
        return stamps

    for number, seconds in enumerate((0.0, 0.03, 0.5, 3.0)):
        path = root / f"data/chunk-000/episode_{number:06d}.parquet"
        _change_table(path, _with_stamps(lambda length, seconds=seconds: hole(length, seconds)))
    assert _run(root, tmp_path / "out", "--max-skip-fraction", "0.5") == 0
    report = json.loads((tmp_path / "out" / "lerobot-report.json").read_text())
    assert {note: count for note, count in report["notes"].items() if "time" in note} == {
        "time stamps are not one frame apart": 1, "time stamps have gaps of more than 2 steps": 1,
    }  # fmt: skip
    assert report["skips_by_reason"] == {"time gap": 1}


def test_gripper_becomes_a_closedness(tmp_path, capsys):
    states = robots.write_lerobot(tmp_path / "set", (40,))
    flags = ("--rotation", "xyz-euler", "--gripper-range", "2,-2")
    assert _run(tmp_path / "set", tmp_path / "out", *flags) == 0
    (record,) = _records(tmp_path / "out")
    np.testing.assert_allclose(record.states[:, 6], (2 - states[0][:, 6]) / 4, rtol=1e-6)
    np.testing.assert_array_equal(record.states[:, :6], states[0][:, :6])
    np.testing.assert_array_equal(record.actions[:, 1], np.arange(40))
    assert (record.gripper_range, record.state_units[6]) == ((0.0, 1.0), "closedness")
    # Which of the joints is the gripper cannot be known.
    assert _run(tmp_path / "set", tmp_path / "joints", "--gripper-range", "0,1") == 1
    assert _skips(tmp_path / "joints") == {"unknown gripper": 1}
    assert _run(tmp_path / "set", tmp_path / "unknown") == 0
    (record,) = _records(tmp_path / "unknown")
    assert record.gripper_range is None and record.state_units[6] == ""


def test_columns_of_another_type_cost_their_episodes(tmp_path, capsys):
    root = tmp_path / "set"
    robots.write_lerobot(root, (12,) * 3)
    path = root / "data/chunk-000/episode_000001.parquet"
    _change_table(path, lambda table: table.set_column(3, "episode_index", pa.array([["x"]] * len(table))))
    assert _run(root, tmp_path / "out", "--max-skip-fraction", "0.5") == 0
    assert len(_records(tmp_path / "out")) == 2 and sum(_skips(tmp_path / "out").values()) == 1
    assert "free some space" not in capsys.readouterr().err


def test_table_of_many_episodes_is_read_once(tmp_path, monkeypatch):
    robots.write_lerobot(tmp_path / "set", (12,) * 6, version="v3.0")
    read, tables = pyarrow.parquet.read_table, []
    monkeypatch.setattr(pyarrow.parquet, "read_table", lambda file, **more: tables.append(file) or read(file, **more))
    assert _run(tmp_path / "set", tmp_path / "out") == 0
    assert len(_records(tmp_path / "out")) == 6 and len([file for file in tables if "/data/" in file]) == 1


def test_slow_robots_are_kept_and_training_is_told_their_rate(tmp_path):
    robots.write_lerobot(tmp_path / "set", (20, 8), fps=3)
    assert _run(tmp_path / "set", tmp_path / "out") == 0
    noted = json.loads((tmp_path / "out" / "lerobot-report.json").read_text())["notes"]
    assert noted["below 4 frames/s: set --config.data.fps=3 in training and `prepare features --fps 3`"] == 2
    assert noted["too short for samples of 8 frames at 3/s"] == 1
    # A rate that is not whole is rounded up: just below it, every second row would be taken.
    for rate, said in ((10 / 3, "3.34"), (2.97, "2.97"), (0.5, "0.5"), (3.7, None)):
        notes = LeRobotSpec().checked(_records(tmp_path / "out")[0]._replace(control_rate=rate)).notes
        found = [note for note in notes if note.startswith("below 4")]
        assert len(found) == bool(said) and (not said or f"data.fps={said} in" in found[0] and trajectory_step(rate, float(said)) == 1)


@pytest.mark.parametrize("turn", [2 * np.pi, 360])
def test_joints_that_wrap_are_noted(tmp_path, turn):
    robots.write_lerobot(tmp_path / "set", (40,))
    assert _run(tmp_path / "set", tmp_path / "out", "--rotation", "xyz-euler") == 0
    (record,) = _records(tmp_path / "out")
    around = np.linspace(0.3, 1.2, 40) * turn % turn
    for place, numbers, rotation, expected in (
        (2, around - turn / 2, "none", True), (2, around, "none", True), (2, around - turn / 2, "xyz euler", True),
        # The angles of a pose are known to wrap; a gripper that knows two values is no angle, nor what goes farther than a turn.
        (5, np.arctan2(np.sin(around), np.cos(around)), "xyz euler", False), (6, turn * (np.arange(40) % 9 > 4), "none", False),
        (2, np.where(np.arange(40) < 20, -turn, turn) + np.linspace(0, 1, 40), "none", False),
    ):  # fmt: skip
        states = np.full_like(record.states, 0.1)
        states[:, place] = numbers
        notes = LeRobotSpec(max_turn=1e9).checked(record._replace(states=states, rotation=rotation)).notes
        wraps = [note for note in notes if "jump by a whole turn" in note]
        assert len(wraps) == expected and all(note.startswith(f"{record.state_names[place]} jump") for note in wraps)
