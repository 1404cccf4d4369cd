"""Folders of shards: two runs at once, a list that grew, beginning again, and outputs that cannot be written to."""

import json
import os
import resource
import subprocess
import sys

import media
import pytest

from jepa_jax import data, prepare
from jepa_jax.data import claims, conversion, listing, shards
from jepa_jax.data.transcode import VideoSpec


@pytest.fixture
def videos(tmp_path):
    """A folder of three videos."""
    (tmp_path / "in").mkdir()
    for name in "abc":
        media.write_video(tmp_path / "in" / f"{name}.mp4", frames=10)
    return tmp_path / "in"


def _run(source, output, *more):
    return prepare.main(["videos", str(source), "--output", str(output), "--per-shard", "1", "--workers", "0", *more])


def _stamps(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.array_record")}


def test_second_run_on_a_folder_waits_its_turn(videos, tmp_path, capsys):
    plan = claims.ShardPlan(str(tmp_path / "out"), "clips", 1, VideoSpec())
    with claims.claimed(plan):
        partial = tmp_path / "out" / "clips-00000-of-00003.array_record.12345678.tmp"
        partial.write_bytes(b"half")
        assert _run(videos, tmp_path / "out") == 2
        assert "another run is writing 'clips' shards" in capsys.readouterr().err
        assert partial.exists()
        # Shards of another name do not mind.
        assert _run(videos, tmp_path / "out", "--name", "other") == 0
    assert _run(videos, tmp_path / "out") == 0
    assert not partial.exists()


def test_item_that_is_new_is_named(videos, tmp_path, capsys):
    assert _run(videos, tmp_path / "out") == 0
    media.write_video(videos / "new.mp4", frames=10)
    assert _run(videos, tmp_path / "out") == 2
    message = capsys.readouterr().err
    assert f"1 item more, first {videos}/new.mp4" in message and "sha256" not in message and "--name" in message
    os.remove(videos / "a.mp4")
    os.remove(videos / "b.mp4")
    assert _run(videos, tmp_path / "out", "--crf", "30") == 2
    message = capsys.readouterr().err
    assert f"2 items fewer, first {videos}/a.mp4; spec.crf 18 -> 30" in message
    # Without the list of an older version it is still said what kind of thing changed.
    os.remove(tmp_path / "out" / ".clips-reports" / "names.gz")
    assert _run(videos, tmp_path / "out") == 2
    assert "another list" in capsys.readouterr().err


def test_beginning_again_goes_on_after_a_stop(videos, tmp_path, monkeypatch):
    out = tmp_path / "out"
    assert _run(videos, out) == 0
    first = _stamps(out)

    def stop(*arguments):
        raise KeyboardInterrupt

    def stopped_after(number):
        """Run with --overwrite, and stop before that shard."""
        write = shards._write_shard
        with monkeypatch.context() as patch:
            patch.setattr(shards, "_write_shard", lambda *a: stop() if a[1] == number else write(*a))
            assert _run(videos, out, "--crf", "20", "--overwrite") == 130

    stopped_after(1)
    begun = _stamps(out)
    assert list(begun) == ["clips-00000-of-00003.array_record"] and begun[next(iter(begun))] != first[next(iter(begun))]
    # The report of what was replaced is gone too.
    assert not (out / "clips-report.json").exists()
    stopped_after(2)
    assert len(_stamps(out)) == 2
    assert _run(videos, out, "--crf", "20", "--overwrite") == 0
    assert _stamps(out).items() >= begun.items() and len(_stamps(out)) == 3
    # Finished, it means to begin again.
    assert _run(videos, out, "--crf", "20", "--overwrite") == 0
    assert not set(_stamps(out).values()) & set(begun.values())
    assert _run(videos, out, "--crf", "20") == 0


def test_stop_while_old_shards_are_removed(videos, tmp_path, monkeypatch):
    out = tmp_path / "out"
    assert _run(videos, out) == 0

    def stop(path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(claims, "remove", stop)
        assert _run(videos, out, "--crf", "40", "--overwrite") == 130
    # All old shards are still there, and none of them is taken for a new one.
    assert len(_stamps(out)) == 3
    assert _run(videos, out, "--crf", "40") == 0
    assert _run(videos, tmp_path / "new", "--crf", "40") == 0
    for path in out.glob("*.array_record"):
        assert path.read_bytes() == (tmp_path / "new" / path.name).read_bytes()


def test_errors_of_a_source_are_not_those_of_the_disk(videos, tmp_path, capsys, monkeypatch):
    def broken(self, item):
        raise OSError(5, "no kernel matches")

    monkeypatch.setattr(VideoSpec, "convert", broken)
    assert _run(videos, tmp_path / "out") == 1
    out, err = capsys.readouterr()
    assert "skipped, unexpected error: 3" in out and "free some space" not in out + err
    # Errors that nothing counts are passed on as they are.
    monkeypatch.setattr(shards, "convert_all", lambda *a: iter(broken(None, None)))
    plan = claims.ShardPlan(str(tmp_path / "other"), "clips", 1, VideoSpec())
    with pytest.raises(OSError, match="no kernel matches"):
        shards.write_shards([listing.Item("a.mp4")], plan, workers=0)


def test_output_that_is_no_folder_is_said_so(videos, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    for output in (tmp_path / "file", tmp_path / "file" / "below", "/proc/nothing"):
        assert _run(videos, output) == 2
        message = capsys.readouterr().err
        assert f"error: cannot write {output}: " in message and "free some space" not in message
        assert "another --output" in message


def test_full_disk_at_any_moment(videos, tmp_path):
    """The system refuses to let any file grow past a limit, as a full disk would: already the manifest."""
    code = f"import sys; from jepa_jax import prepare; sys.exit(prepare.main({_arguments(videos, tmp_path)!r}))"
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100, {resource.RLIM_INFINITY})); " + code
    result = subprocess.run([sys.executable, "-c", limited], capture_output=True, text=True, check=False)
    assert result.returncode == 2 and "free some space" in result.stderr and "Traceback" not in result.stderr
    assert not list((tmp_path / "out").rglob("*.tmp"))


def _arguments(videos, tmp_path):
    return ["videos", str(videos), "--output", str(tmp_path / "out"), "--workers", "0"]


def test_list_of_nothing_is_an_error(tmp_path, capsys):
    (tmp_path / "empty.csv").write_text("path,start,end\n")
    assert _run(tmp_path / "empty.csv", tmp_path / "out") == 2
    assert "empty.csv: lists no videos" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_notes_and_skips_of_a_shard_are_remembered(videos, tmp_path, monkeypatch):
    (videos / "bad.mp4").write_bytes(b"nothing")
    convert = VideoSpec.convert
    monkeypatch.setattr(VideoSpec, "convert", lambda self, item: conversion.Noted(convert(self, item), ("odd",)))
    for _ in range(2):
        assert _run(videos, tmp_path / "out", "--max-skip-fraction", "1") == 0
        report = json.loads((tmp_path / "out" / "clips-report.json").read_text())
        assert report["notes"] == {"odd": 3} and (report["items"], report["written"], report["skipped"]) == (4, 3, 1)
    assert len(data.ShardSource([str(tmp_path / "out")])) == 3
