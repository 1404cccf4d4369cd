"""Shards, features and reports written behind URLs: the same as in a folder, whole, and finished by a second run."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

import buckets
import media
import pytest

from jepa_jax import inspect, prepare
from jepa_jax.data import publish, remote
from jepa_jax.data.shards import ShardPlan, write_shards
from jepa_jax.data.transcode import VideoSpec


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """An empty folder for temporary files; tests run without pauses."""
    monkeypatch.setattr(remote, "_FIRST_PAUSE_S", 0.0)
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for number in range(5):
        media.write_video(folder / f"{number} ü.mp4", frames=20 + number)
    (folder / "bad.mp4").write_bytes(b"no video")
    return folder


def _arguments(videos, output, *more):
    arguments = ["videos", str(videos), "--output", str(output), "--per-shard", "2", "--workers", "0", "--size", "48"]
    return [*arguments, "--max-skip-fraction", "0.5", *more]


def _files(folder):
    paths = [path for path in pathlib.Path(folder).rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_a_bucket_gets_what_a_folder_gets(videos, memory, temporary, tmp_path, monkeypatch, capsys):
    assert prepare.main(_arguments(videos, tmp_path / "here")) == 0
    sent = []
    put = type(memory).put_file

    def watched(self, local, name, **options):
        # One shard at a time is on this host.
        assert len(list(temporary.rglob("*.array_record"))) <= 1
        sent.append(name)
        return put(self, local, name, **options)

    monkeypatch.setattr(type(memory), "put_file", watched)
    assert prepare.main(_arguments(videos, "memory://bucket/shards/")) == 0
    assert not list(temporary.iterdir())
    stored, expected = buckets.contents(memory, "/bucket/shards"), _files(tmp_path / "here")
    assert stored == expected and len(expected) == 3 + 3 + 3
    # A shard is sent after its report: where the shard is, the report is.
    shards = [name for name in sent if name.endswith(".array_record")]
    for index, name in enumerate(shards):
        assert sent[sent.index(name) - 1].endswith(f".clips-reports/{index:05d}.json")
    capsys.readouterr()
    # Nothing is left to do, and a lost shard is made again.
    sent.clear()
    assert prepare.main(_arguments(videos, "memory://bucket/shards")) == 0
    assert not [name for name in sent if name.endswith(".array_record")]
    assert "5 of 6 videos in memory://bucket/shards" in capsys.readouterr().out
    memory.rm_file(shards[1])
    assert prepare.main(_arguments(videos, "memory://bucket/shards")) == 0
    assert buckets.contents(memory, "/bucket/shards") == expected


def test_other_lists_are_refused_unless_overwritten(videos, memory, capsys):
    assert prepare.main(_arguments(videos, "memory://bucket/shards")) == 0
    assert prepare.main(_arguments(videos, "memory://bucket/shards", "--crf", "30")) == 2
    assert "already holds 'clips' shards" in capsys.readouterr().err
    first = buckets.contents(memory, "/bucket/shards")
    changed = ["--crf", "30", "--per-shard", "3", "--overwrite"]
    assert prepare.main(_arguments(videos, "memory://bucket/shards", *changed)) == 0
    second = buckets.contents(memory, "/bucket/shards")
    names = [name for name in second if name.endswith(".array_record")]
    assert names == [f"clips-{index:05d}-of-00002.array_record" for index in range(2)]
    assert not set(first.values()) & {second[name] for name in names}


def test_a_killed_run_is_finished_by_the_same_command(videos, tmp_path):
    there = tmp_path / "there"
    arguments = _arguments(videos, f"folder://{there}", "--per-shard", "1", "--workers", "2")
    command = [sys.executable, buckets.__file__, *arguments]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    limit = time.monotonic() + 60
    while not list(there.glob("*.array_record")) and time.monotonic() < limit:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    written = {path: path.stat().st_mtime_ns for path in there.glob("*.array_record")}
    assert 1 <= len(written) < 6
    # What a run killed while it sends a shard leaves behind.
    (there / f"clips-00003-of-00006.array_record.0badcafe{publish.PARTIAL}").write_bytes(b"half")
    subprocess.run(command, check=True, capture_output=True)
    assert prepare.main(_arguments(videos, tmp_path / "here", "--per-shard", "1")) == 0
    assert _files(there) == _files(tmp_path / "here")
    assert {path: path.stat().st_mtime_ns for path in written} == written


def test_a_broken_transfer_is_tried_again_and_then_said(videos, memory, monkeypatch, capsys):
    put, failures = type(memory).put_file, ["clips-00001", "clips-00001"]

    def breaking(self, local, name, **options):
        if failures and failures[-1] in name:
            failures.pop()
            raise ConnectionResetError("reset by the\nother side")
        return put(self, local, name, **options)

    monkeypatch.setattr(type(memory), "put_file", breaking)
    assert prepare.main(_arguments(videos, "memory://bucket/a")) == 0
    assert not failures
    failures = ["clips-00001"] * remote._ATTEMPTS
    assert prepare.main(_arguments(videos, "memory://bucket/b")) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("error: cannot write memory://bucket/b/clips-00001-of-00003.array_record: ")
    assert "reset by the other side" in message and "run the same command again" in message
    assert prepare.main(_arguments(videos, "memory://bucket/b")) == 0
    assert buckets.contents(memory, "/bucket/a") == buckets.contents(memory, "/bucket/b")


def test_where_nothing_can_be_written_no_work_is_done(videos, memory, monkeypatch, capsys):
    def errors(output, error=None):
        def refuse(*args, **options):
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(prepare.command.shards, "write_shards", lambda *a, **k: pytest.fail("work began"))
            if error is not None:
                patch.setattr(type(memory), "pipe_file", refuse)
            assert prepare.main(_arguments(videos, output)) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        return lines[0]

    assert "memory://b/x: no such bucket" in errors("memory://b/x", FileNotFoundError("it does not exist"))
    assert "write access was refused: 403" in errors("memory://b/x", PermissionError("403"))
    assert "failed in 5 attempts: no route" in errors("memory://b/x", OSError("no route"))
    assert "can only be read" in errors("https://example.org/shards")
    assert "no file system for it is known" in errors("nosuch://b/x")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    assert "bash launch/setup.sh s3" in errors("s3://b/x")


def test_a_whole_file_or_none(memory, tmp_path):
    for path in ("memory://b/x.json", str(tmp_path / "x.json"), f"folder://{tmp_path}/below/x.json"):
        publish.write_json(path, {"a": 1})
        with pytest.raises(RuntimeError), publish.new_file(path) as partial:
            pathlib.Path(partial).write_text("half")
            raise RuntimeError
        assert publish.read_json(path) == {"a": 1} and remote.size(path) == len('{\n "a": 1\n}')
        publish.copy(__file__, path)
        assert remote.read_text(path).startswith('"""Shards, features')
        publish.remove(path)
        publish.remove(path)
        assert publish.read_json(path) is None and remote.size(path) is None
    assert not list((tmp_path / "below").iterdir()) and not list(tmp_path.glob("x.json*"))


def test_shards_behind_urls_are_inspected(videos, memory, tmp_path, capsys):
    plan = ShardPlan("memory://bucket/shards", "clips", 3, VideoSpec(size=48))
    items = prepare.arguments.manifest.list_videos([str(videos)])
    report = write_shards(items, plan, workers=0)
    assert inspect.main(["memory://bucket/shards", "--output", "memory://bucket/look", "--workers", "0"]) == 0
    assert f"2 shards, {report.bytes / 1e6:.1f} MB, 5 records" in capsys.readouterr().out
    found = buckets.contents(memory, "/bucket/look")
    assert sorted(found) == [inspect.SHEET, inspect.REPORT]
    assert json.loads(found[inspect.REPORT])["shard_bytes"] == report.bytes > 0
    assert found[inspect.SHEET].startswith(b"\x89PNG")


def test_reader_that_stops_reading_loses_no_picture(videos, tmp_path):
    assert prepare.main(_arguments(videos, tmp_path / "shards")) == 0
    command = [sys.executable, "-m", "jepa_jax.inspect", str(tmp_path / "shards"), "--output", str(tmp_path / "look")]
    read, write = os.pipe()
    # Nobody reads from the first word on.
    os.close(read)
    done = subprocess.run([*command, "--workers", "0"], stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert done.returncode == 0 and "rror" not in done.stderr and "Broken" not in done.stderr
    assert sorted(os.listdir(tmp_path / "look")) == [inspect.SHEET, inspect.REPORT]
