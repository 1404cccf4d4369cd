"""`prepare droid` on what recordings really are like: clocks that jitter, lost frames, gaps, no poses of cameras."""

import json

import media
import numpy as np
import pytest
import robots

from jepa_jax import data, prepare
from jepa_jax.data import video
from jepa_jax.data.trajectory_clips import sample_trajectory, trajectory_step


def _run(source, output, *more, status=0):
    assert (
        prepare.main(["droid", str(source), "--output", str(output), "--workers", "0", "--size", "48", *more]) == status
    )


def _records(folder):
    source = data.ShardSource([str(folder)], kind="trajectory")
    return [source[index] for index in range(len(source))]


def _report(folder):
    return json.loads((folder / "droid-report.json").read_text())


def _clock(steps):
    """Make time stamps of rows, nanoseconds, from the steps between them, seconds."""
    stamps = np.concatenate([[0], np.cumsum(steps)]) * 1e9
    return {
        "robot_timestamp_seconds": (stamps // 1e9).astype(np.int64),
        "robot_timestamp_nanos": (stamps % 1e9).astype(np.int64),
    }


def test_clocks_that_jitter_give_one_rate(tmp_path):
    for number, rate in enumerate((14.97, 15.02, 14.9, 15.2, 15)):
        robots.write_droid(tmp_path / "in" / str(number), 40, views=("left",), header_fps=60, rate=rate, seed=number)
    robots.write_droid(tmp_path / "in" / "slow", 40, views=("left",), header_fps=60, rate=7.4)
    _run(tmp_path / "in", tmp_path / "out", "--rate", "true")
    *same, slow = _records(tmp_path / "out")
    assert _report(tmp_path / "out")["fps_histogram"] == {"7.4": 1, "15": 5}
    assert {trajectory_step(record.sampling_fps, fps) for record in same for fps in (5,)} == {3}
    assert {record.control_rate for record in same} == {15.0} and slow.control_rate == pytest.approx(7.4, rel=1e-4)
    assert {video.probe(record.views[0].data).fps for record in same} == {15.0}


def test_last_frames_that_are_missing_are_cut_and_counted(tmp_path, capsys):
    states = [
        robots.write_droid(tmp_path / "in" / str(number), 40, views=("left", "wrist"), frames=frames, seed=number)
        for number, frames in enumerate((40, 39, 38, 41, 37, 42))
    ]
    flags = ["--views", "left,wrist", "--max-skip-fraction", "1"]
    _run(tmp_path / "in", tmp_path / "out", *flags)
    records = _records(tmp_path / "out")
    assert [record.num_frames for record in records] == [40, 39, 38, 40]
    for record, expected in zip(records, states, strict=False):
        np.testing.assert_array_equal(record.states, expected[: record.num_frames].astype(np.float32))
        for view in record.views:
            assert len(view.extrinsics) == record.num_frames
            frames = video.decode_frames(view.data, range(record.num_frames))
            assert [media.read_number(frame) for frame in frames] == list(range(record.num_frames))
    report = _report(tmp_path / "out")
    assert report["skips_by_reason"] == {"rows do not match frames": 2}
    assert report["notes"] == {
        "1 row more than frames, cut at the end": 1, "2 rows more than frames, cut at the end": 1,
        "1 frame more than rows, cut at the end": 1,
    }  # fmt: skip
    assert "note: 2 rows more than frames, cut at the end: 1 trajectories" in capsys.readouterr().out
    _run(tmp_path / "in", tmp_path / "strict", "--row-tolerance", "0", *flags)
    assert _report(tmp_path / "strict")["skips_by_reason"] == {"rows do not match frames": 5}


def test_gaps_in_time_are_noted_and_long_ones_refused(tmp_path):
    for name, seconds in (("none", 1 / 15), ("short", 0.3), ("long", 3.0)):
        steps = np.full(39, 1 / 15)
        steps[20] = seconds
        robots.write_droid(tmp_path / "in" / name, 40, views=("left",), **_clock(steps))
    _run(tmp_path / "in", tmp_path / "out", "--max-skip-fraction", "0.5")
    report = _report(tmp_path / "out")
    assert report["notes"] == {"time stamps have gaps of more than 2 steps": 1}
    (skip,) = report["skips"]
    assert skip["reason"] == "time gap" and "3 s lie between rows 20 and 21" in skip["message"]
    _run(tmp_path / "in", tmp_path / "all", "--max-gap", "5")
    assert _report(tmp_path / "all")["notes"] == {"time stamps have gaps of more than 2 steps": 2}


def test_rate_of_a_header_that_is_taken_for_the_robots_is_noted(tmp_path):
    robots.write_droid(tmp_path / "in", 20, views=("left",), header_fps=60, robot_timestamp_seconds=None)
    _run(tmp_path / "in", tmp_path / "true", "--rate", "true", status=1)
    assert _report(tmp_path / "true")["skips_by_reason"] == {"no time stamps": 1}
    _run(tmp_path / "in", tmp_path / "header")
    assert _records(tmp_path / "header")[0].control_rate == 60.0
    note = "no time stamps, the rate of the video header taken for the robot's"
    assert _report(tmp_path / "header")["notes"][note] == 1
    _run(tmp_path / "in", tmp_path / "given", "--rate", "15")
    assert "no time stamps, --rate taken for the robot's" in _report(tmp_path / "given")["notes"]


def test_views_whose_headers_differ_need_a_decision(tmp_path):
    robots.write_droid(tmp_path / "in", 40)
    wrist = tmp_path / "in" / "recordings" / "MP4" / f"{robots.CAMERAS['wrist']}.mp4"
    media.write_video(wrist, frames=40, fps=60)
    _run(tmp_path / "in", tmp_path / "out", "--views", "left,wrist", status=1)
    (skip,) = _report(tmp_path / "out")["skips"]
    assert skip["reason"] == "views differ in rate" and "left 15, wrist 60 frames/s" in skip["message"]
    _run(tmp_path / "in", tmp_path / "true", "--views", "left,wrist", "--rate", "true")
    _run(tmp_path / "in", tmp_path / "one", "--views", "wrist")
    assert _records(tmp_path / "one")[0].sampling_fps == 60.0


def test_poses_of_cameras_that_are_missing_or_not_finite(tmp_path):
    bad = np.full((40, 6), np.nan)
    robots.write_droid(tmp_path / "nan", 40, views=("left", "wrist"), **{"12345678_left": bad})
    _run(tmp_path / "nan", tmp_path / "out", "--views", "left,wrist")
    left, wrist = _records(tmp_path / "out")[0].views
    assert left.extrinsics is None and wrist.extrinsics.shape == (40, 6)
    assert _report(tmp_path / "out")["notes"] == {"extrinsics of a view are not finite, so left out": 1}
    robots.write_droid(tmp_path / "blind", 40, views=("left",), **{"12345678_left": None})
    _run(tmp_path / "blind", tmp_path / "no")
    assert _records(tmp_path / "no")[0].views[0].extrinsics is None
    assert _report(tmp_path / "no")["notes"] == {"no extrinsics": 1}


def test_what_is_too_short_to_be_sampled_is_counted(tmp_path):
    robots.write_droid(tmp_path / "in", 60, views=("left",), header_fps=60)
    for rate, short in (("header", True), ("true", False)):
        _run(tmp_path / "in", tmp_path / rate, "--rate", rate)
        (record,) = _records(tmp_path / rate)
        assert ("too short for samples of 8 frames at 4/s" in _report(tmp_path / rate)["notes"]) == short
        if short:
            with pytest.raises(data.DataError, match="need more than 120"):
                sample_trajectory(record, frames=8, fps=4, uniforms=(0, 0))
        else:
            assert len(sample_trajectory(record, frames=8, fps=4, uniforms=(0, 0)).states) == 8


def test_angles_in_reverse_order_are_suspected(tmp_path):
    states = robots.smooth_states(40)
    for name, order in (("right", [3, 4, 5]), ("wrong", [5, 4, 3])):
        pose = np.concatenate([states[:, :3], states[:, order]], 1)
        robots.write_droid(tmp_path / name, 40, views=("left",), cartesian_position=pose)
        _run(tmp_path / name, tmp_path / f"out_{name}")
    assert _report(tmp_path / "out_right")["notes"] == {}
    (note,) = _report(tmp_path / "out_wrong")["notes"]
    assert "yaw, pitch, roll?" in note


@pytest.mark.parametrize("seconds", [np.zeros(39), np.zeros((40, 2))])
def test_time_stamps_that_do_not_fit_cost_one_trajectory(seconds, tmp_path):
    robots.write_droid(tmp_path / "in" / "bad", 40, views=("left",), robot_timestamp_seconds=seconds)
    robots.write_droid(tmp_path / "in" / "good", 40, views=("left",))
    _run(tmp_path / "in", tmp_path / "out", "--max-skip-fraction", "0.5")
    assert _report(tmp_path / "out")["skips_by_reason"] == {"h5 lacks data": 1}


def test_what_the_exporter_writes_is_read(tmp_path):
    """MPEG-4 Part 2, as the release has it."""
    robots.write_droid(tmp_path / "in", 40, views=("left",))
    path = tmp_path / "in" / "recordings" / "MP4" / f"{robots.CAMERAS['left']}.mp4"
    media.write_video(path, frames=40, fps=15, codec="mpeg4", b=2_000_000)
    _run(tmp_path / "in", tmp_path / "out")
    (view,) = _records(tmp_path / "out")[0].views
    frames = video.decode_frames(view.data, range(40))
    assert [media.read_number(frame) for frame in frames] == list(range(40))


def test_folders_that_were_found_are_kept_as_an_index(tmp_path, capsys):
    for name in ("a b", "c"):
        robots.write_droid(tmp_path / "in" / name, 12, views=("left",))
    _run(tmp_path / "in", tmp_path / "out")
    index = tmp_path / "out" / "droid-index.txt"
    assert index.read_text() == f"{tmp_path}/in/a b\n{tmp_path}/in/c\n"
    # The same run by its index goes on with the same shards.
    written = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.array_record")}
    _run(index, tmp_path / "out")
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.array_record")} == written
    # One that is refused leaves the index of the shards that are there.
    robots.write_droid(tmp_path / "in" / "d", 12, views=("left",))
    _run(tmp_path / "in", tmp_path / "out", status=2)
    assert "1 item more" in capsys.readouterr().err and index.read_text().count("\n") == 2
