"""`python -m jepa_jax.prepare`: what it writes, and that stopping it at any moment loses nothing."""

import json
import os
import signal
import subprocess
import sys
import time

import av
import media
import numpy as np
import pytest

from jepa_jax import data, prepare
from jepa_jax.data import listing, video


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """A folder of five small videos, one of them in a folder below, and a stranger."""
    folder = tmp_path_factory.mktemp("videos")
    (folder / "below").mkdir()
    for number, name in enumerate(("a.mp4", "b.mkv", "c d.mp4", "below/e.mp4", "ü.avi")):
        media.write_video(folder / name, frames=20 + number, fps=25, height=60, width=100)
    (folder / "notes.md").write_text("not a video")
    return folder


def _files(folder):
    return {name: (folder / name).read_bytes() for name in sorted(os.listdir(folder)) if name.endswith("array_record")}


def _records(folder):
    source = data.ShardSource([str(folder)])
    return [source[index] for index in range(len(source))]


def _report(folder, name="clips"):
    return json.loads((folder / f"{name}-report.json").read_text())


def test_videos_of_a_folder(videos, tmp_path, capsys):
    assert prepare.main(["videos", str(videos), "--output", str(tmp_path), "--size", "48", "--workers", "0"]) == 0
    records = _records(tmp_path)
    names = [os.path.relpath(record.source_id, videos) for record in records]
    assert names == sorted(names) and len(names) == 5
    for record in records:
        number = ["a.mp4", "b.mkv", "c d.mp4", "below/e.mp4", "ü.avi"].index(os.path.relpath(record.source_id, videos))
        assert (record.kind, record.num_frames, record.fps, record.label) == ("video", 20 + number, 25.0, None)
        assert (record.height, record.width) == (48, 80)
        assert video.probe(record.data) == (record.num_frames, 25.0, 48, 80)
        frames = video.decode_frames(record.data, range(record.num_frames))
        assert [media.read_number(frame) for frame in frames] == list(range(record.num_frames))
    report = _report(tmp_path)
    assert report["written"] == 5 and report["skipped"] == 0
    assert report["hours"] == pytest.approx((20 + 21 + 22 + 23 + 24) / 25 / 3600)
    assert "5 of 5 videos" in capsys.readouterr().out


def test_stored_video_has_close_key_frames_and_is_never_enlarged(tmp_path):
    file = media.write_video(tmp_path / "a.mp4", frames=40, height=34, width=70, g=7)
    assert prepare.main(["videos", file, "--output", str(tmp_path / "out"), "--workers", "0"]) == 0
    (record,) = _records(tmp_path / "out")
    assert (record.height, record.width) == (34, 70)
    container, stream = video.open_video(record.data)
    with container:
        packets = [packet for packet in container.demux(stream) if packet.size]
    assert [number for number, packet in enumerate(packets) if packet.is_keyframe] == [0, 12, 24, 36]


def test_variable_rate_keeps_all_frames_at_the_average_rate(tmp_path):
    stamps = [number * 20 if number < 20 else 400 + (number - 20) * 60 for number in range(40)]
    for name in ("a.mp4", "b.mkv"):
        media.write_video(tmp_path / name, frames=40, stamps=stamps)
    assert prepare.main(["videos", str(tmp_path), "--output", str(tmp_path / "out"), "--workers", "0"]) == 0
    for record in _records(tmp_path / "out"):
        assert record.num_frames == 40
        assert record.fps == pytest.approx(25, rel=0.1)
        assert media.read_number(video.decode_frames(record.data, [33])[0]) == 33


def test_turned_phone_video_is_stored_upright(tmp_path):
    plain = media.write_video(tmp_path / "plain.mp4", frames=10, height=64, width=96)
    turned = tmp_path / "turned.mp4"
    with av.open(plain) as source, av.open(str(turned), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    # The track header's matrix says: turn by 90 degrees (16.16 and 2.30 fixed point).
    content = turned.read_bytes()
    identity = b"".join(n.to_bytes(4, "big") for n in (65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30))
    quarter = b"".join(n.to_bytes(4, "big") for n in (0, 65536, 0, 2**32 - 65536, 0, 0, 0, 0, 1 << 30))
    at = content.index(identity, content.index(b"tkhd"))
    turned.write_bytes(content[:at] + quarter + content[at + len(identity) :])
    assert prepare.main(["videos", str(turned), "--output", str(tmp_path / "out"), "--workers", "0"]) == 0
    (record,) = _records(tmp_path / "out")
    assert (record.height, record.width) == (96, 64)
    upright = video.decode_frames(record.data, [3])[0].astype(int)
    expected = np.rot90(media.numbered_frame(3), -1)
    assert np.abs(upright - expected).mean() < 12


def test_images_are_shrunk_or_kept(tmp_path):
    small = media.write_image(tmp_path / "small.png", 40, 60)
    media.write_image(tmp_path / "large.jpg", 300, 450, number=77)
    arguments = ["images", str(tmp_path), "--output", str(tmp_path / "out"), "--size", "128", "--workers", "0"]
    assert prepare.main(arguments) == 0
    large_record, small_record = _records(tmp_path / "out")
    assert (large_record.kind, large_record.height, large_record.width) == ("image", 128, 192)
    assert media.read_number(video.decode_image(large_record.data)) == 77
    with open(small, "rb") as file:
        assert small_record.data == file.read()


def test_csv_in_the_official_format(videos, tmp_path):
    table = tmp_path / "list.csv"
    table.write_text(f"{videos}/a.mp4 7\n{videos}/c d.mp4 3\n\n{videos}/b.mkv::5\n{videos}/gone.mp4 1\n")
    assert listing.read_csv(str(table))[1] == (f"{videos}/c d.mp4", 3)
    status = prepare.main(
        ["videos", str(table), "--output", str(tmp_path), "--workers", "0", "--max-skip-fraction", "0.5"]
    )
    assert status == 0
    assert [record.label for record in _records(tmp_path)] == [7, 3, 5]
    report = _report(tmp_path)
    assert report["skips_by_reason"] == {"missing file": 1}
    assert report["skips"][0]["path"] == f"{videos}/gone.mp4"


def test_two_runs_and_any_number_of_workers_give_the_same_bytes(videos, tmp_path):
    for name, workers in (("serial", "0"), ("again", "0"), ("parallel", "2")):
        arguments = ["videos", str(videos), "--output", str(tmp_path / name), "--per-shard", "2", "--workers", workers]
        assert prepare.main(arguments) == 0
    first = _files(tmp_path / "serial")
    assert list(first) == [f"clips-{index:05d}-of-00003.array_record" for index in range(3)]
    assert first == _files(tmp_path / "again") == _files(tmp_path / "parallel")


def test_killed_run_leaves_whole_shards_and_is_finished_by_the_next(videos, tmp_path):
    def arguments(name):
        return ["videos", str(videos), "--output", str(tmp_path / name), "--per-shard", "1", "--workers", "1"]

    process = subprocess.Popen([sys.executable, "-m", "jepa_jax.prepare", *arguments("killed")], stderr=subprocess.PIPE)
    first = tmp_path / "killed" / "clips-00000-of-00005.array_record"
    limit = time.monotonic() + 60
    while not first.exists() and time.monotonic() < limit:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()
    left = _files(tmp_path / "killed")
    # What a run killed in the middle of a shard leaves behind.
    for index in (0, 4):
        (tmp_path / "killed" / f"clips-{index:05d}-of-00005.array_record.tmp").write_bytes(b"half")
    written = {name: os.stat(tmp_path / "killed" / name).st_mtime_ns for name in left}
    assert first.name in left
    assert prepare.main(arguments("killed")) == 0
    assert prepare.main(arguments("whole")) == 0
    finished = _files(tmp_path / "killed")
    assert finished == _files(tmp_path / "whole")
    assert {name: os.stat(tmp_path / "killed" / name).st_mtime_ns for name in left} == written
    assert not list((tmp_path / "killed").glob("*.tmp"))
    for key in ("written", "hours", "bytes"):
        assert _report(tmp_path / "killed")[key] == _report(tmp_path / "whole")[key]


def test_another_list_in_the_same_folder_is_refused_unless_overwritten(videos, tmp_path, capsys):
    def run(*more):
        return prepare.main(["videos", *more, "--output", str(tmp_path), "--workers", "0"])

    assert run(str(videos / "a.mp4")) == 0
    before = _files(tmp_path)
    assert run(str(videos / "b.mkv")) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert run(str(videos / "a.mp4"), "--crf", "30") == 2
    assert "spec" in capsys.readouterr().err
    assert _files(tmp_path) == before
    assert run(str(videos / "b.mkv"), "--overwrite") == 0
    assert [record.source_id for record in _records(tmp_path)] == [str(videos / "b.mkv")]
    assert run(str(videos / "a.mp4"), "--name", "other") == 0
    assert len(_records(tmp_path)) == 2
