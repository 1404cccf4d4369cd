"""Long videos are stored in parts, which together have every frame once."""

import json
import os

import media
import pytest

from jepa_jax import data, prepare
from jepa_jax.data import pieces, video
from jepa_jax.data.listing import Item, Scene


def _run(source, output, *more, kind="videos"):
    return prepare.main([kind, str(source), "--output", str(output), "--workers", "0", "--size", "48", *more])


def _records(folder):
    source = data.ShardSource([str(folder)])
    return [source[index] for index in range(len(source))]


def _numbers(record):
    return [media.read_number(frame) for frame in video.decode_frames(record.data, range(record.num_frames))]


def _report(folder):
    return json.loads((folder / "clips-report.json").read_text())


@pytest.mark.parametrize("codec", ["whole keys", "b frames", "vfr", "mkv"])
def test_parts_have_every_frame_once(codec, tmp_path, capsys):
    stamps = [number * 40 + 200 * (number > 100) for number in range(250)] if codec == "vfr" else None
    options = {"bf": 2, "g": 60} if codec == "b frames" else {}
    path = media.write_video(
        tmp_path / ("a.mkv" if codec in ("mkv", "vfr") else "a.mp4"), frames=250, fps=25, stamps=stamps, **options
    )
    media.write_video(tmp_path / "short.mp4", frames=20, fps=25)
    assert _run(tmp_path, tmp_path / "out", "--max-seconds", "3") == 0
    *parts, short = _records(tmp_path / "out")
    assert [number for part in parts for number in _numbers(part)] == list(range(250)) and len(parts) == 4
    assert short.source_id == f"{tmp_path}/short.mp4" and short.num_frames == 20
    assert all(part.source_id.startswith(f"{path}#t=") and part.seconds <= 4 for part in parts)
    times = [tuple(map(float, part.source_id.partition("#t=")[2].split(","))) for part in parts]
    assert times[0][0] == 0 and all(one[1] == other[0] for one, other in zip(times, times[1:], strict=False))
    if codec != "vfr":
        assert {part.fps for part in parts} == {25.0} and times[-1][1] == pytest.approx(10)
    report = _report(tmp_path / "out")
    assert (report["items"], report["split"], report["parts"], report["written"]) == (2, 1, 4, 5)
    text = capsys.readouterr().out
    assert "5 of 5 records of 2 videos in " in text and "stored in parts: 1 videos in 4 parts" in text


def test_by_default_a_minute_and_never_where_asked(tmp_path):
    media.write_video(tmp_path / "a.mp4", frames=130, fps=2)
    for seconds, count in ((None, 2), ("0", 1), ("64.5", 1)):
        out = tmp_path / f"out{seconds}"
        assert _run(tmp_path / "a.mp4", out, *(["--max-seconds", seconds] if seconds else [])) == 0
        assert len(_records(out)) == count


def test_shards_are_the_same_with_any_number_of_workers_and_after_a_stop(tmp_path):
    for name, length in (("a", 60), ("b", 200), ("c", 20), ("d", 130)):
        media.write_video(tmp_path / f"{name}.mp4", frames=length, fps=10)
    for name, workers in (("serial", "0"), ("parallel", "2")):
        arguments = ["--per-shard", "2", "--max-seconds", "4", "--workers", workers]
        assert _run(tmp_path / "*.mp4", tmp_path / name, *arguments) == 0
    shards = sorted(path.name for path in (tmp_path / "serial").glob("*.array_record"))
    assert len(shards) == 2
    os.remove(tmp_path / "parallel" / shards[0])
    assert _run(tmp_path / "*.mp4", tmp_path / "parallel", *arguments) == 0
    for name in shards:
        assert (tmp_path / "serial" / name).read_bytes() == (tmp_path / "parallel" / name).read_bytes()
    assert _report(tmp_path / "serial") == _report(tmp_path / "parallel")


def test_long_scenes_are_divided_and_keep_their_label(tmp_path):
    path = media.write_video(tmp_path / "a.mp4", frames=200, fps=10)
    rows = [{"path": path, "start": 2.0, "end": 11.95, "label": 3}, {"path": path, "start": 15.0, "end": float("inf")}]
    (tmp_path / "scenes.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert _run(tmp_path / "scenes.jsonl", tmp_path / "out", "--max-seconds", "5") == 0
    *parts, last = _records(tmp_path / "out")
    assert [number for part in parts for number in _numbers(part)] == list(range(20, 120))
    assert [part.label for part in parts] == [3, 3]
    assert _numbers(last) == list(range(150, 200)) and last.source_id == f"{path}#t=15,20"
    # What is wrong with a scene is said as it is without division.
    (tmp_path / "late.jsonl").write_text(json.dumps({"path": path, "start": 15.0, "end": 90.0}))
    assert _run(tmp_path / "late.jsonl", tmp_path / "none", "--max-seconds", "5") == 1
    assert _report(tmp_path / "none")["skips_by_reason"] == {"scene beyond the end": 1}
    assert Scene("a.mp4", 3.0, float("inf")).name == "a.mp4#t=3"


def test_video_without_time_stamps_stays_whole_and_is_noted(tmp_path):
    media.write_video(tmp_path / "a.avi", frames=100, fps=10)
    assert _run(tmp_path / "a.avi", tmp_path / "out", "--max-seconds", "2") == 0
    (record,) = _records(tmp_path / "out")
    assert record.num_frames == 100
    assert list(_report(tmp_path / "out")["notes"]) == [
        "longer than --max-seconds, but stored whole, as its frames have no time stamps"
    ]


def test_damage_costs_the_part_it_is_in(tmp_path):
    path = media.write_video(tmp_path / "a.mp4", frames=250, fps=25, height=240, width=320, g=25)
    content = bytearray(open(path, "rb").read())
    middle = content.index(b"mdat") + (len(content) - content.index(b"mdat")) // 2
    content[middle : middle + 400] = bytes(400)
    open(path, "wb").write(content)
    assert _run(path, tmp_path / "out", "--max-seconds", "2", "--max-skip-fraction", "0.5") == 0
    report = _report(tmp_path / "out")
    assert report["parts"] == 5 and 1 <= report["skipped"] <= 2 and report["written"] == 5 - report["skipped"]
    assert all(skip["reason"] == "damaged" and "#t=" in skip["path"] for skip in report["skips"])


def test_pieces_are_not_divided_again(tmp_path):
    # One frame in ten seconds: parts cannot be as short as wished.
    path = media.write_video(tmp_path / "a.mkv", frames=12, stamps=[10_000 * number for number in range(12)])
    found = pieces.divide(Item(path), 2.0).pieces
    assert len(found) == 12
    assert all(pieces.divide(piece, 2.0) == pieces.Division() for piece in found)
