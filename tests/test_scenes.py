"""Manifests of scenes: which frames a scene holds, and what happens to lines and scenes that cannot be used."""

import json
import re

import av
import media
import pytest

from jepa_jax import data, prepare
from jepa_jax.data import video


def _run(source, output, *more):
    return prepare.main(["videos", str(source), "--output", str(output), "--workers", "0", "--min-frames", "2", *more])


def _records(folder):
    source = data.ShardSource([str(folder)])
    return [source[index] for index in range(len(source))]


def _report(folder):
    return json.loads((folder / "clips-report.json").read_text())


def _write(path, scenes):
    path.write_text("".join(json.dumps(scene) + "\n" for scene in scenes), encoding="utf-8")
    return path


def _numbers(record):
    return [media.read_number(frame) for frame in video.decode_frames(record.data, range(record.num_frames))]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a ü.mp4", {"g": 12}),
        ("a.mkv", {"g": 30, "bf": 3}),
        ("a.mp4", {"g": 10, "bf": 2, "x264-params": "open-gop=1:scenecut=0"}),
        ("a.mp4", {"g": 250}),
        ("a.webm", {"codec": "libvpx", "g": 20}),
        ("a.mov", {"codec": "mpeg4", "g": 15}),
    ],
)  # fmt: skip
def test_scene_holds_the_frames_shown_in_its_time(name, options, tmp_path):
    path = media.write_video(tmp_path / name, frames=100, fps=25, **options)
    spans = [(0, 1), (1.0, 2.0), (1.98, 2.41), (0.5, 0.9), (3.2, 4.0), (3.2, 4.3), (0, 4)]
    scenes = [{"path": path, "start": start, "end": end, "label": n} for n, (start, end) in enumerate(spans)]
    assert _run(_write(tmp_path / "scenes.jsonl", scenes), tmp_path / "out") == 0
    records = _records(tmp_path / "out")
    assert [record.label for record in records] == list(range(len(spans)))
    for record, (start, end) in zip(records, spans, strict=True):
        assert record.source_id == f"{path}#t={start:g},{end:g}"
        assert _numbers(record) == [n for n in range(100) if start <= n / 25 + 1e-9 and n / 25 < end - 1e-9]
        assert record.fps == pytest.approx(25, rel=0.01)


def test_scene_is_read_and_decoded_alone(tmp_path):
    path = media.write_video(tmp_path / "a.mp4", frames=250, fps=25, g=25, **{"x264-params": "scenecut=0"})
    with av.open(path) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        outside = [packets[number].pos + packets[number].size // 2 for number in (30, 200)]
    for offset in outside:
        for byte in range(30):
            media.flip_byte(path, offset + byte)
    assert _run(path, tmp_path / "whole") == 1
    assert _report(tmp_path / "whole")["skips_by_reason"] == {"damaged": 1}
    scene = _write(tmp_path / "s.jsonl", [{"path": path, "start": 4.2, "end": 5}])
    assert _run(scene, tmp_path / "out") == 0
    (record,) = _records(tmp_path / "out")
    assert _numbers(record) == list(range(105, 125))


def test_rate_is_that_of_the_scene(tmp_path):
    stamps = [number * 20 if number < 50 else 1000 + (number - 50) * 60 for number in range(100)]
    path = media.write_video(tmp_path / "a.mkv", frames=100, stamps=stamps)
    scenes = [{"path": path, "start": 0, "end": 1}, {"path": path, "start": 1, "end": 4}]
    assert _run(_write(tmp_path / "s.jsonl", scenes), tmp_path / "out") == 0
    fast, slow = _records(tmp_path / "out")
    assert fast.fps == pytest.approx(50, rel=0.01) and slow.fps == pytest.approx(1000 / 60, rel=0.01)
    assert (fast.num_frames, slow.num_frames) == (50, 50)


def test_csv_with_a_header_is_a_manifest_and_without_one_the_official_list(tmp_path):
    path = media.write_video(tmp_path / "a, b.mp4", frames=50, fps=25, g=12)
    (tmp_path / "m.csv").write_text(
        f'﻿label,start,end,path,score\n3,0,1,"{path}",0.5\n,1,2,"{path}",\n', encoding="utf-8"
    )
    assert _run(tmp_path / "m.csv", tmp_path / "out") == 0
    records = _records(tmp_path / "out")
    assert [(record.label, _numbers(record)[0]) for record in records] == [(3, 0), (None, 25)]
    (tmp_path / "list.csv").write_text(f"{path} 7\n")
    # A manifest and a plain list in one run: whole files follow the scenes.
    assert prepare.main(["videos", str(tmp_path / "list.csv"), str(tmp_path / "m.csv"), "--output",
                         str(tmp_path / "both"), "--workers", "0"]) == 0  # fmt: skip
    assert [record.num_frames for record in _records(tmp_path / "both")] == [25, 25, 50]


def test_scenes_that_cannot_be_cut_are_counted_by_reason(tmp_path):
    path = media.write_video(tmp_path / "a.mp4", frames=50, fps=25)
    (tmp_path / "cut.mp4").write_bytes((tmp_path / "a.mp4").read_bytes()[:1000])
    spans = {
        (path, 0.0, 1.0): None,
        (path, 1.0, 1.0): "empty scene",
        (path, 1.5, 1.0): "empty scene",
        (path, -1.0, 1.0): "empty scene",
        (path, 1.0, 9.0): "scene beyond the end",
        (path, 5.0, 6.0): "scene beyond the end",
        (path, 0.5, 0.52): "too short",
        (str(tmp_path / "gone.mp4"), 0.0, 1.0): "missing file",
        (str(tmp_path / "cut.mp4"), 0.0, 1.0): "truncated",
        (path, float("nan"), 1.0): "empty scene",
    }
    scenes = [{"path": name, "start": start, "end": end} for name, start, end in spans]
    manifest = _write(tmp_path / "s.jsonl", [*scenes, scenes[0]])
    assert _run(manifest, tmp_path / "out", "--max-skip-fraction", "0.95") == 0
    assert len(_records(tmp_path / "out")) == 1
    skips = {skip["path"]: skip["reason"] for skip in _report(tmp_path / "out")["skips"]}
    expected = {f"{name}#t={start:.10g},{end:.10g}": reason for (name, start, end), reason in spans.items() if reason}
    assert skips == {**expected, f"{path}#t=0,1": "duplicate id"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"path": "a.mp4", "start": 0}', "line 2: lacks end"),
        ('{"path": "a.mp4", "start": "soon", "end": 1}', "line 2: start 'soon' and end 1 must be seconds"),
        ('{"path": "a.mp4", "start": 0, "end": 1, "label": "cat"}', "label 'cat' an integer"),
        ("[1, 2]", "line 2: .* is no JSON object"),
        ("path,start", "line 2: not JSON"),
    ],
)
def test_lines_that_cannot_be_read_stop_the_run(line, message, tmp_path, capsys):
    (tmp_path / "s.jsonl").write_text('{"path": "a.mp4", "start": 0, "end": 1}\n' + line + "\n")
    assert _run(tmp_path / "s.jsonl", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
