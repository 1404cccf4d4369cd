"""Files behind URLs: listing, the cache of copies, and what happens when a transfer fails."""

import os
import threading

import fsspec
import pytest
from jepa_jax.data import DataError, remote
from jepa_jax.data.remote import FileCache, glob, is_file, is_folder, is_remote, join


@pytest.fixture
def memory():
    """The empty in-memory file system."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


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
    download = remote._download
    monkeypatch.setattr(remote, "_download", lambda *args: (fetched.append(args[1]), download(*args)))
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
        held = open(copy, "rb")
        os.utime(copy, (0, 0))
    _read(cache, "memory://c.x")
    assert {name[-3:] for name in _copies(tmp_path)} == {"b.x", "c.x"}
    # What was open stays readable.
    assert held.read() == b"a" * 100
    held.close()
    memory.pipe("/large.x", bytes(251))
    with pytest.raises(ValueError, match="251 bytes, more than the 250 of the cache"):
        _read(cache, "memory://large.x")


def test_processes_that_want_one_file_fetch_it_once(memory, tmp_path, monkeypatch):
    fetched, download = [], remote._download
    monkeypatch.setattr(remote, "_download", lambda *args: (fetched.append(args[1]), download(*args)))
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
    with pytest.raises(ValueError, match=r"gs:// needs a package .* pip install 'jepa_jax\[gcs\]'"):
        glob("gs://bucket/*")
    with pytest.raises(ValueError, match="needs more than 0"):
        remote.make_cache("", 0.0)


def test_tail_of_a_file(memory, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "_TAIL_BYTES", 4)
    memory.pipe("/a.x", b"0123456789")
    with FileCache(str(tmp_path)).open_tail("memory://a.x") as copy:
        assert open(copy, "rb").read() == bytes(6) + b"6789"
    assert not _copies(tmp_path)
