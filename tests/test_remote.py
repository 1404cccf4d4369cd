"""Files behind URLs: listing, the cache of copies, and what happens when a transfer fails."""

import os
import pathlib
import threading
import time

import buckets  # noqa: F401 - workers, which import this module too, then know folder://
import fsspec
import media
import numpy as np
import pytest

from jepa_jax import data
from jepa_jax.data import DataError, copies, remote
from jepa_jax.data.conversion import convert
from jepa_jax.data.copies import FileCache
from jepa_jax.data.listing import VIDEO_SUFFIXES, ListError, list_items
from jepa_jax.data.remote import glob, is_file, is_folder, is_remote, join
from jepa_jax.data.transcode import VideoSpec, transcode_video


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    monkeypatch.setattr(remote, "_FIRST_PAUSE_S", 0.0)


def _copies(folder):
    return sorted(name for name in os.listdir(folder) if not name.endswith(".lock"))


def _read(cache, path):
    with cache.open_path(path) as copy, open(copy, "rb") as file:
        return file.read()


def test_paths_and_urls():
    assert is_remote("gs://bucket/a") and is_remote("memory://a") and is_remote("s3://b/*.x")
    assert not is_remote("/a/b") and not is_remote("a/b") and not is_remote("file:///a")
    assert join("gs://bucket/root/", "k710") == "gs://bucket/root/k710"
    assert join("shards", "k710") == "shards/k710"
    assert join("", "k710") == "k710"
    assert join("shards", "/k710") == "/k710"
    assert join("shards", "s3://b/k710") == "s3://b/k710"


def test_listing(memory, tmp_path):
    memory.pipe({"/set/b.x": b"1", "/set/a.x": b"2", "/set/c.y": b"3"})
    found = glob("memory://set/*.x")
    assert [os.path.basename(name) for name in found] == ["a.x", "b.x"] and all(map(is_remote, found))
    assert is_folder("memory://set") and not is_folder("memory://set/a.x") and not is_folder("memory://gone")
    assert is_file(found[0]) and not is_file("memory://set")
    (tmp_path / "a.x").write_text("")
    assert glob(f"{tmp_path}/*.x") == [f"{tmp_path}/a.x"]
    assert is_folder(str(tmp_path)) and is_file(f"{tmp_path}/a.x")


def test_copy_is_made_once_and_again_when_the_file_changes(memory, tmp_path, monkeypatch):
    cache, fetched = FileCache(str(tmp_path)), []
    download = copies._download
    monkeypatch.setattr(copies, "_download", lambda *args: (fetched.append(args[1]), download(*args)))
    memory.pipe("/a.x", b"first")
    assert _read(cache, "memory://a.x") == b"first" == _read(cache, "memory://a.x")
    assert len(fetched) == 1
    # Same length; only the time tells them apart.
    memory.pipe("/a.x", b"other")
    assert _read(cache, "memory://a.x") == b"other"
    assert len(fetched) == 2 and len(_copies(tmp_path)) == 1
    assert _read(cache, __file__).startswith(b'"""Files behind URLs')


def test_least_recently_used_copies_make_room(memory, tmp_path):
    cache = FileCache(str(tmp_path), max_bytes=250)
    for name in "abc":
        memory.pipe(f"/{name}.x", name.encode() * 100)
    for number, name in enumerate("ab"):
        _read(cache, f"memory://{name}.x")
        with cache.open_path(f"memory://{name}.x") as copy:
            os.utime(copy, (number, number))
    with cache.open_path("memory://a.x") as copy:
        os.utime(copy, (0, 0))
    _read(cache, "memory://c.x")
    assert {name[-3:] for name in _copies(tmp_path)} == {"b.x", "c.x"}
    memory.pipe("/large.x", bytes(251))
    with pytest.raises(ValueError, match="251 bytes, more than the 250 of the cache"):
        _read(cache, "memory://large.x")


def test_processes_that_want_one_file_fetch_it_once(memory, tmp_path, monkeypatch):
    fetched, download = [], copies._download

    def slow(*args):
        fetched.append(args[1])
        time.sleep(0.1)
        download(*args)

    monkeypatch.setattr(copies, "_download", slow)
    memory.pipe("/a.x", bytes(1000))
    # Every call opens the lock file anew, so threads exclude each other as processes do.
    threads = [threading.Thread(target=_read, args=(FileCache(str(tmp_path)), "memory://a.x")) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(fetched) == 1 and len(_copies(tmp_path)) == 1


def test_broken_transfer_is_tried_again_and_leaves_nothing(memory, tmp_path, monkeypatch):
    memory.pipe("/a.x", b"whole file")
    failures = [ConnectionResetError("reset"), "short"]
    real = type(memory).get_file

    def get_file(self, name, target, **options):
        if not failures:
            return real(self, name, target, **options)
        failure = failures.pop()
        if failure != "short":
            raise failure
        with open(target, "wb") as file:
            file.write(b"whole")

    monkeypatch.setattr(type(memory), "get_file", get_file)
    assert _read(FileCache(str(tmp_path / "good")), "memory://a.x") == b"whole file"
    failures = ["short"] * remote._ATTEMPTS
    with pytest.raises(DataError, match="5 of 10 bytes arrived") as caught:
        _read(FileCache(str(tmp_path / "bad")), "memory://a.x")
    assert caught.value.reason == "remote read failed"
    assert not _copies(tmp_path / "bad")


def test_what_cannot_be_read_is_named(memory, tmp_path, monkeypatch):
    cache = FileCache(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="memory://gone.x does not exist"):
        _read(cache, "memory://gone.x")
    with pytest.raises(ValueError, match="nosuch://a: no file system for it is known"):
        glob("nosuch://a")

    def refuse(path):
        raise ImportError("Please install gcsfs")

    monkeypatch.setattr(fsspec.core, "url_to_fs", refuse)
    with pytest.raises(ValueError, match=r"gs:// needs a package .*bash launch/setup.sh gcs"):
        glob("gs://bucket/*")
    with pytest.raises(ValueError, match="needs more than 0"):
        copies.make_cache("", 0.0)


def test_tail_of_a_file(memory, tmp_path, monkeypatch):
    monkeypatch.setattr(copies, "_TAIL_BYTES", 4)
    memory.pipe("/a.x", b"0123456789")
    with FileCache(str(tmp_path)).open_tail("memory://a.x") as copy:
        with open(copy, "rb") as file:
            assert file.read() == bytes(6) + b"6789"
    assert not _copies(tmp_path)


# Shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """A folder of three shards with two videos each; one record is damaged."""
    folder = tmp_path_factory.mktemp("shards")
    records = [
        transcode_video(media.write_video(folder / f"{n}.mp4", frames=40 + n), VideoSpec(size=48), n) for n in range(6)
    ]
    for part in range(3):
        media.write_shard(folder / f"clips-{part:05d}-of-00003.array_record", records[2 * part : 2 * part + 2])
    with open(folder / "clips-00001-of-00003.array_record", "rb") as file:
        middle = file.read().index(records[3].data) + 1000
    media.flip_byte(folder / "clips-00001-of-00003.array_record", middle)
    return folder


def _pipeline(path, cache):
    group = data.GroupSpec("clips", "video", 4, 4.0, 4, (data.SourceSpec((path,), 1.0),))
    crop = data.CropSpec(32, (0.3, 1.0), (0.75, 1.35), 0.5)
    return data.ClipPipeline((group,), crop, {"clips": media.mask_sampler(4, 32)}, seed=0, cache=cache)


def _upload(memory, shards):
    for file in shards.glob("*.array_record"):
        memory.pipe(f"/bucket/k710/{file.name}", file.read_bytes())


def _assert_same_batches(one, other, steps=4):
    skipped = 0
    for step in range(steps):
        (batch, notes), (expected, local) = one.batch_at(step), other.batch_at(step)
        np.testing.assert_array_equal(batch["clips"]["video"], expected["clips"]["video"])
        assert [skip.reason for skip in notes.skips] == [skip.reason for skip in local.skips]
        skipped += len(notes.skips)
    assert skipped


@pytest.mark.parametrize("room", [10**9, 0], ids=["room for all", "room for one"])
def test_batches_from_a_bucket_are_those_of_a_folder(memory, shards, tmp_path, room):
    _upload(memory, shards)
    largest = max(os.path.getsize(file) for file in shards.glob("*.array_record"))
    cache = FileCache(str(tmp_path / "cache"), room or largest)
    for path in ("memory://bucket/k710", "memory://bucket/k710/clips-*-of-00003.array_record"):
        _assert_same_batches(_pipeline(path, cache), _pipeline(str(shards), cache))
    copies = _copies(tmp_path / "cache")
    assert len(copies) == 3 if room else sum(os.path.getsize(tmp_path / "cache" / name) for name in copies) <= largest


def test_starting_fetches_the_ends_of_shards_only(memory, shards, tmp_path):
    _upload(memory, shards)
    pipeline = _pipeline("memory://bucket/k710", FileCache(str(tmp_path)))
    assert "6 records in 3 shards" in "\n".join(pipeline.describe())
    assert not _copies(tmp_path)


class _CacheOfThisModule(FileCache):
    """Workers import this module, and so know the file system, when they unpickle one of these."""


def test_workers_share_the_cache(shards, tmp_path):
    pipeline = _pipeline(f"folder://{shards}", _CacheOfThisModule(str(tmp_path / "cache")))
    assert not (tmp_path / "cache").exists() or not _copies(tmp_path / "cache")
    here = _pipeline(str(shards), copies.DEFAULT_CACHE)
    with data.make_iterator(pipeline, 0, 3, workers=2, threads=0, prefetch=1) as batches:
        for step, (batch, _) in enumerate(batches):
            np.testing.assert_array_equal(batch["clips"]["video"], here.batch_at(step)[0]["clips"]["video"])
    assert 1 <= len(_copies(tmp_path / "cache")) <= 3


def test_lost_and_missing_shards(memory, shards, tmp_path):
    _upload(memory, shards)
    cache = FileCache(str(tmp_path))
    source = data.ShardSource(["memory://bucket/k710"], cache=cache)
    assert source.locate(5) == "memory:///bucket/k710/clips-00002-of-00003.array_record#1"
    memory.rm("/bucket/k710/clips-00002-of-00003.array_record")
    with pytest.raises(DataError, match="clips-00002-of-00003.array_record#1: .* does not exist") as caught:
        source[5]
    assert caught.value.reason == "lost shard" and source[0].label == 0
    with pytest.raises(FileNotFoundError, match="1 of 3 shards of 'clips' are missing"):
        data.ShardSource(["memory://bucket/k710"], cache=cache)
    with pytest.raises(FileNotFoundError, match="no shards found at 'memory://bucket/other'"):
        data.ShardSource(["memory://bucket/other"], cache=cache)


def test_shard_with_a_longer_index_than_the_tail_is_fetched(memory, shards, tmp_path, monkeypatch):
    monkeypatch.setattr(copies, "_TAIL_BYTES", 100)
    _upload(memory, shards)
    source = data.ShardSource(["memory://bucket/k710"], cache=FileCache(str(tmp_path)))
    assert len(source) == 6 and len(_copies(tmp_path)) == 3


# Files to prepare


def test_files_behind_urls_are_prepared(memory, tmp_path):
    content = pathlib.Path(media.write_video(tmp_path / "any.mp4", frames=30)).read_bytes()
    for name in ("a.mp4", "sub/b.mp4", "c.txt", "sub/cut.mp4"):
        memory.pipe(f"/films/{name}", content[:300] if "cut" in name else content)
    items = list_items(["memory://films"], VIDEO_SUFFIXES)
    assert [item.path for item in items] == [f"memory:///films/{name}" for name in ("a.mp4", "sub/b.mp4", "sub/cut.mp4")]
    assert [item.path for item in list_items(["memory://films/*.mp4"], VIDEO_SUFFIXES)] == ["memory:///films/a.mp4"]
    with pytest.raises(ListError, match="no folder, file or glob"):
        list_items(["memory://other"], VIDEO_SUFFIXES)
    one, other, cut = (convert(item, VideoSpec(size=48)) for item in items)
    assert (one.source_id, other.source_id) == ("memory:///films/a.mp4", "memory:///films/sub/b.mp4")
    assert one.data == other.data and one.num_frames == 30
    assert isinstance(cut, DataError) and cut.reason in ("truncated", "not a video")
    gone = convert(items[0]._replace(path="memory:///films/gone.mp4"), VideoSpec())
    assert gone.reason == "missing file"
