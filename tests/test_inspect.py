"""`python -m jepa_jax.inspect`: what it counts, what it finds damaged, and what its pictures show."""

import json
import os
import warnings

import cv2
import media
import numpy as np
import pytest
import tqdm

from jepa_jax import inspect, prepare
from jepa_jax.data import motion, survey
from jepa_jax.data.latents import DTYPE, Latents
from jepa_jax.data.records import ClipRecord, encode_record
from jepa_jax.data.trajectories import TrajectoryRecord, View
from jepa_jax.data.video import probe
from jepa_jax.viz import canvas, trajectories

NAMES, UNITS = ("x", "y", "z", "r1", "r2", "r3", "gripper"), ("m", "m", "m", "rad", "rad", "rad", "closed")
RATE = 10.0


def _video(folder, name, label=None, frames=20, fps=10, **changes):
    path = media.write_video(folder / name, frames=frames, fps=fps)
    with open(path, "rb") as file:
        data = file.read()
    info = probe(data)
    return ClipRecord("video", data, info.fps, info.num_frames, info.height, info.width, path, label)._replace(
        **changes
    )


def _image(folder, name):
    with open(media.write_image(folder / name), "rb") as file:
        return ClipRecord("image", file.read(), 0.0, 1, 64, 96, str(folder / name), 7)


def _states(length=40):
    """A gripper that moves 1 cm a step along x and looks down: its roll is near pi."""
    states = np.zeros((length, 7), np.float32)
    states[:, 0] = 0.3 + 0.01 * np.arange(length)
    states[:, 3] = 3.1
    return states


def _trajectory(folder, name, states, header_fps=RATE, extrinsics=None, actions=None, extras=None):
    with open(media.write_video(folder / f"{name}.mp4", frames=len(states), fps=10), "rb") as file:
        view = View("left", file.read(), 64, 96, extrinsics)
    return TrajectoryRecord(
        (view,), states, actions, RATE, header_fps, "header", NAMES, UNITS, NAMES, UNITS, "robot base", "xyz euler",
        (0.0, 1.0), None, f"/robots/{name}", extras or {},
    )  # fmt: skip


def _run(folder, *arguments):
    status = inspect.main([str(folder), "--workers", "0", "--output", str(folder / "out"), *arguments])
    return status, json.loads((folder / "out" / inspect.REPORT).read_text())


def test_clips_are_counted(tmp_path, capsys):
    records = [_video(tmp_path, "a.mp4", 3), _video(tmp_path, "b.mp4", 3, frames=50, fps=25), _image(tmp_path, "c.png")]
    media.write_shard(tmp_path / "clips-00000-of-00002.array_record", records[:2])
    media.write_shard(tmp_path / "clips-00001-of-00002.array_record", records[2:])
    status, report = _run(tmp_path)
    assert status == 0 and report["damage"] == []
    assert (report["shards"], report["records"], report["frames"]) == (2, 3, 71)
    assert report["kinds"] == {"video": 2, "image": 1}
    assert report["fps_histogram"] == {"10": 1, "25": 1}
    assert report["hours"] == pytest.approx(4.0 / 3600)
    assert report["sizes"] == {"64x96": 3} and report["labels"] == {"3": 2, "7": 1}
    assert report["mean_bytes_per_record"] == pytest.approx(np.mean([len(record.data) for record in records]))
    assert report["bytes_per_record"]["max"] == max(len(record.data) for record in records)
    assert report["sources"]["distinct"] == 3 and report["sources"]["folder"] == str(tmp_path)
    text = capsys.readouterr().out
    assert "video (2), image (1)" in text and "every record that was looked at decodes" in text
    sheet = cv2.imread(str(tmp_path / "out" / inspect.SHEET))
    # The frames are there, not only their names.
    assert (sheet.std(axis=-1) < 3).mean() > 0.9 and (sheet.mean(axis=-1) < 150).mean() > 0.1


def test_every_kind_of_damage_is_counted_and_named(tmp_path, capsys):
    good = _video(tmp_path, "good.mp4")
    cut = good._replace(data=good.data[: len(good.data) // 2], source_id="cut")
    rotten = bytearray(good.data)
    rotten[good.data.index(b"mdat") + 600 : good.data.index(b"mdat") + 700] = bytes(100)
    records = [
        good, good._replace(num_frames=21, source_id="longer"), good._replace(height=66, source_id="taller"),
        good._replace(fps=30.0, source_id="faster"), cut, good._replace(data=bytes(rotten), source_id="rotten"),
        encode_record(good)[:-40], _image(tmp_path, "c.png")._replace(width=95),
    ]  # fmt: skip
    media.write_shard(tmp_path / "clips-00000-of-00002.array_record", records)
    (tmp_path / "clips-00001-of-00002.array_record").write_bytes(b"no shard" * 100)
    status, report = _run(tmp_path)
    assert status == 1
    found = {entry["location"].rpartition("#")[2]: entry["reason"] for entry in report["damage"]}
    assert {key: found[key] for key in "123467"} == {
        "1": "frame count", "2": "size", "3": "frame rate", "4": "truncated", "6": "corrupt record", "7": "size",
    }  # fmt: skip
    assert found["5"] in ("damaged", "frame count") and "0" not in found
    assert report["damage_by_reason"]["unreadable shard"] == 1 and len(report["damage"]) == 8
    # What can be read is counted; a record that is no record has no kind.
    assert report["kinds"] == {"video": 6, "image": 1} and report["records"] == 8
    text = capsys.readouterr().out
    assert "damaged, frame count: " in text and "longer" in text and "decoded 20, the record says 21" in text


def test_a_flipped_byte_in_a_shard_costs_one_record(tmp_path):
    path = media.write_shard(tmp_path / "a.array_record", [_video(tmp_path, f"{n}.mp4") for n in range(3)])
    with open(path, "rb") as file:
        media.flip_byte(path, file.read().index(b"1.mp4"))
    status, report = _run(tmp_path)
    assert status == 1 and report["damage_by_reason"] == {"corrupt record": 1}
    assert report["damage"][0]["location"] == f"{path}#1" and report["kinds"] == {"video": 2}


def test_sources_that_repeat_are_named(tmp_path):
    record = _video(tmp_path, "a.mp4")
    media.write_shard(tmp_path / "a.array_record", [record, _video(tmp_path, "b.mp4"), record])
    _, report = _run(tmp_path)
    assert report["sources"]["duplicates"] == [
        {"source_id": record.source_id, "location": str(tmp_path / "a.array_record#2")}
    ]


def test_a_sample_is_part_of_the_records_and_the_same_each_time(tmp_path):
    media.write_shard(tmp_path / "a.array_record", [_image(tmp_path, f"{n}.png") for n in range(30)])
    first, _ = inspect.survey([str(tmp_path)], sample=6, pictures=4)
    again, facts = inspect.survey([str(tmp_path)], sample=6, pictures=4)
    assert first.records == 6 and first.total == 30 and first.examples == again.examples
    assert len(facts) == 4


def test_processes_find_the_same(tmp_path):
    records = [_video(tmp_path, f"{n}.mp4", frames=10 + n) for n in range(10)]
    media.write_shard(tmp_path / "a.array_record", records)
    alone, _ = inspect.survey([str(tmp_path)])
    together, facts = inspect.survey([str(tmp_path)], workers=2, pictures=3)
    assert together.summary() == alone.summary()
    assert [media.read_number(fact.picture) for fact in facts] == [(10 + n) // 2 for n in (0, 4, 9)]


class _Poison(survey.Span):
    """A span that ends the process which unpickles it."""

    def __reduce__(self):
        return _leave, (tuple(self), os.getpid())


def _leave(fields, parent):
    if os.getpid() != parent:
        os._exit(9)
    return survey.Span(*fields)


def test_records_of_a_span_that_crashed_its_process_are_looked_at_one_by_one(tmp_path):
    path = media.write_shard(tmp_path / "a.array_record", [_image(tmp_path, f"{n}.png") for n in range(5)])
    spans = [_Poison(path, (0, 1, 2)), survey.Span(path, (3, 4))]
    with tqdm.tqdm(disable=True) as bar:
        facts = list(inspect._facts(spans, 1, bar))
    assert [fact.location for fact in facts] == [f"{path}#{n}" for n in (3, 4, 0, 1, 2)]
    assert not any(fact.damage for fact in facts)
    lost = survey.Span(str(tmp_path / "gone.array_record"), (0, 1))
    with tqdm.tqdm(disable=True) as bar:
        facts = list(inspect._facts([lost], 0, bar))
    assert [fact.location for fact in facts] == [f"{lost.path}#0", f"{lost.path}#1"] and all(f.damage for f in facts)


def test_trajectories_are_measured(tmp_path, capsys):
    jump = _states()
    jump[20:, 1] += 0.3
    wrap = _states()
    wrap[10::2, 3] = -3.1
    still = _states()
    still[20:] = still[20]
    records = [
        _trajectory(tmp_path, "jump", jump, header_fps=60.0), _trajectory(tmp_path, "wrap", wrap),
        _trajectory(tmp_path, "still", still, actions=still * 0 + 2, extrinsics=np.zeros((40, 6), np.float32)),
    ]  # fmt: skip
    media.write_shard(tmp_path / "droid.array_record", records)
    status, report = _run(tmp_path)
    assert status == 0
    (part,) = report["trajectories"]
    assert part["gaps"] == {"steps": 1, "trajectories": 1, "measured_by": "positions, m"}
    assert part["angle_wraps"] == {"steps": 30, "trajectories": 1}
    assert part["idle_share"] == pytest.approx(19 / 39 / 3)
    assert part["control_rate_hz"] == {"10": 3} and part["header_fps"] == {"60": 1, "10": 2}
    # 3.1 to -3.1 is a turn by 2 pi - 6.2, ten times a second.
    assert part["fastest_turn_rad_per_s"]["max"] == pytest.approx((2 * np.pi - 6.2) * RATE, rel=1e-3)
    x = part["states"][0]
    assert (x["name"], x["unit"], x["min"]) == ("x", "m", pytest.approx(0.3)) and x["max"] == pytest.approx(0.69)
    assert sum(x["histogram"]["counts"]) == 3 * motion.ROWS_KEPT
    assert part["actions"][0]["mean"] == 2 and part["views_with_extrinsics"] == {"left": 1}
    text = capsys.readouterr().out
    assert "video header says 60 frames/s, recorded at 10 Hz" in text and "angle wraps: 30 steps in 1 " in text
    for name in (inspect.DIMENSIONS, inspect.PATHS, inspect.SHEET):
        assert cv2.imread(str(tmp_path / "out" / name)).std() > 10


def _without_units(record):
    return record._replace(rotation="none", state_units=("",) * 7)


def test_gaps_of_joints_without_units_are_found_and_wraps_are_not_measured(tmp_path, capsys):
    angles = np.sin(np.linspace(0, 3, 40))[:, None] * np.linspace(0.2, 1, 7)
    jump, grip, still = angles.astype(np.float32), angles.astype(np.float32), np.ones((40, 7), np.float32)
    jump[20:] += 2.0
    # A gripper that closes at once is no gap.
    grip[:, 6] = np.arange(40) > 20
    records = [_trajectory(tmp_path, name, states) for name, states in (("a", jump), ("b", grip), ("c", still))]
    media.write_shard(tmp_path / "a.array_record", map(_without_units, records))
    _, report = _run(tmp_path)
    (part,) = report["trajectories"]
    assert (part["gaps"]["steps"], part["gaps"]["trajectories"]) == (1, 1) and part["angle_wraps"] is None
    text = capsys.readouterr().out
    assert "gaps: 1 steps in 1 trajectories (by most dimensions, each against its own range)" in text
    assert "angle wraps: not measured" in text and "state x: " in text


def test_extremes_are_those_of_all_rows(tmp_path):
    actions, objects = np.zeros((200, 7), np.float32), np.zeros((200, 2), np.float32)
    actions[101, 2], objects[33, 1] = 99.0, -5.0
    record = _trajectory(tmp_path, "a", _states(200), actions=actions, extras={"cup": objects, "held": objects[:, :1]})
    media.write_shard(tmp_path / "a.array_record", [record])
    _, report = _run(tmp_path)
    (part,) = report["trajectories"]
    assert [one["max"] for one in part["actions"]] == [0, 0, 99, 0, 0, 0, 0]
    assert [(one["name"], one["min"]) for one in part["extras"]] == [("cup[0]", 0), ("cup[1]", -5), ("held", 0)]


def test_the_idle_share_is_one_of_steps(tmp_path):
    # One step of one, and no step of 99.
    records = [_trajectory(tmp_path, "short", np.zeros((2, 7), np.float32)), _trajectory(tmp_path, "long", _states(100))]
    media.write_shard(tmp_path / "a.array_record", records)
    assert _run(tmp_path)[1]["trajectories"][0]["idle_share"] == pytest.approx(0.01)


def _features_only(record, frames=(0, 3, 6, 9, 12)):
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(len(frames), 4 * 6, 8)).astype(DTYPE)
    latents = Latents(tokens.tobytes(), frames, (4, 6), 8, "ab" * 32, (64, 1.0, 1.5))
    return record._replace(views=(record.views[0]._replace(data=b"", latents=latents),))


def test_trajectories_of_features_are_counted_and_drawn(tmp_path, capsys):
    media.write_shard(tmp_path / "a.array_record", [_features_only(_trajectory(tmp_path, "a", _states()))])
    status, report = _run(tmp_path)
    assert status == 0 and report["features"][0]["frames"] == 5
    assert cv2.imread(str(tmp_path / "out" / inspect.PATHS)).std() > 10
    assert not os.path.exists(tmp_path / "out" / inspect.SHEET)
    text = capsys.readouterr().out
    assert "features instead of frames: 4x6 tokens of 8" in text
    assert "no contact sheet: none of the 1 records chosen for it could be shown as a frame" in text


def test_of_several_views_the_first_with_frames_is_shown(tmp_path):
    record = _trajectory(tmp_path, "a", _states())
    views = (*_features_only(record).views, record.views[0]._replace(name="wrist"))
    assert survey.check_record(record._replace(views=views), pictured=True) is not None
    figure = trajectories.draw_trajectories([record._replace(views=views)], "robots")
    assert figure.axes[0].get_title().startswith("wrist")


def test_a_path_is_one_line_however_long_it_is(tmp_path):
    pose = np.tile(np.float32([0.5, 1.0, 0.0, -np.pi / 2, 0.0, np.pi]), (300, 1))
    figure = trajectories.draw_trajectories([_trajectory(tmp_path, "a", _states(300), extrinsics=pose)], "robots")
    frame, above = figure.axes[0], figure.axes[4]
    assert [len(panel.lines) for panel in (frame, above)] == [2, 2]
    (path,) = above.collections
    assert len(path.get_segments()) == 299
    # From x = 0.3 to 3.29: all of it is in the plot.
    assert above.get_xlim()[0] <= 0.3 and above.get_xlim()[1] >= 3.28


def test_the_advice_to_repair_shards_works(tmp_path, capsys):
    (tmp_path / "videos").mkdir()
    for number in range(4):
        media.write_video(tmp_path / "videos" / f"{number}.mp4")
    shards = tmp_path / "shards"
    command = ["videos", str(tmp_path / "videos"), "--output", str(shards), "--workers", "0", "--per-shard", "2"]
    assert prepare.main(command) == 0
    path = sorted(shards.glob("*.array_record"))[1]
    media.flip_byte(path, path.read_bytes().index(b"3.mp4"))
    assert _run(shards)[0] == 1
    assert f"repair: delete {path}; then run the `prepare` command" in capsys.readouterr().out
    os.remove(path)
    # Of another process, as it is at a terminal.
    survey._open_shard.cache_clear()
    assert prepare.main(command) == 0 and _run(shards)[0] == 0


def test_names_that_no_font_can_write_are_escaped_without_warnings(tmp_path):
    media.write_shard(tmp_path / "a.array_record", [_video(tmp_path, "\u732b \u00e9$.mp4")])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _run(tmp_path)[0] == 0
    fonts = canvas._fonts()
    assert "sans-serif" in fonts[0]
    if ord("\u732b") not in fonts[1]:
        assert canvas.legible("\u732b \u00e9") == "\\u732b \u00e9"
    assert canvas.legible("\ue000") == "\\ue000"


def test_as_many_processes_as_this_one_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3}, raising=False)
    assert inspect._parser().parse_args(["shards"]).workers == 1


def test_rows_that_do_not_match_frames_are_damage(tmp_path):
    record = _trajectory(tmp_path, "a", _states())
    media.write_shard(tmp_path / "a.array_record", [record._replace(states=record.states[:-1])])
    status, report = _run(tmp_path)
    assert status == 1 and report["damage_by_reason"] == {"frame count": 1}
    assert "decoded 40, the record says 39" in report["damage"][0]["message"]


def test_paths_lie_where_the_camera_sees_them():
    # A camera at (0, 1, 0.5) that looks along -y: its right is -x, its down is -z.
    pose = np.array([0.0, 1.0, 0.5, -np.pi / 2, 0.0, np.pi])
    points = np.array([[0.0, 0.0, 0.5], [-0.5, 0.0, 0.5], [0.0, 0.0, 0.25], [0.0, 2.0, 0.5]])
    pixels = trajectories.project(points, pose, (100, 200), 90.0)
    # At 90 degrees across, a point as far to the right as it is away lies on the border.
    np.testing.assert_allclose(pixels[:3], [[99.5, 49.5], [149.5, 49.5], [99.5, 74.5]], atol=1e-9)
    assert np.isnan(pixels[3]).all()


def test_a_path_that_no_frame_shows_is_said_to_be_out_of_view(tmp_path):
    # Along x at y = z = 0; the cameras are 1 m away and look at it, and away from it.
    poses = [[0.5, 1.0, 0.0, angle, 0.0, np.pi] for angle in (-np.pi / 2, np.pi / 2)]
    records = [
        _trajectory(tmp_path, str(number), _states(), extrinsics=np.tile(np.float32(pose), (40, 1)))
        for number, pose in enumerate(poses)
    ]
    figure = trajectories.draw_trajectories(records, "robots")
    notes = [panel.get_xlabel() for panel in figure.axes]
    assert notes[:4] == [""] * 4 and notes[6:10] == ["the path is out of view"] * 4


def test_paths_without_a_place_or_a_camera_are_drawn(tmp_path):
    joints = _trajectory(tmp_path, "joints", _states())._replace(rotation="none", state_units=("rad",) * 7)
    few = _trajectory(tmp_path, "few", _states(2))
    assert trajectories.position_columns(joints) is None and trajectories.position_columns(few) == [0, 1, 2]
    figure = trajectories.draw_trajectories([joints, few], "robots")
    assert [panel.get_legend() is not None for panel in figure.axes[:6]] == [False] * 4 + [True] * 2


@pytest.mark.parametrize("make", [lambda folder: None, lambda folder: (folder / "a.array_record.txt").write_text("")])
def test_nothing_to_inspect(make, tmp_path, capsys):
    make(tmp_path)
    assert inspect.main([str(tmp_path)]) == 2
    assert "no shards found" in capsys.readouterr().err
