"""`prepare lerobot` on small data sets of every layout."""

import json

import media
import numpy as np
import pytest
import robots

from jepa_jax import data, prepare
from jepa_jax.data import video

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
        assert record.state_units == ("m", "m", "m", "rad", "rad", "rad", "") and record.instruction == f"task {number}"
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
