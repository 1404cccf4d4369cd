"""Every kind of source behind URLs: lists, tars, robot data. The records are those of the same files in a folder."""

import functools
import http.server
import json
import pathlib
import tarfile
import threading

import buckets
import media
import numpy as np
import pytest
import robots

from jepa_jax import data, prepare
from jepa_jax.data import copies, remote
from jepa_jax.data.copies import FileCache, local_copy
from jepa_jax.data.errors import DataError
from jepa_jax.data.listing import Item, ListError, Scene, read_csv
from jepa_jax.data.manifest import is_manifest, read_manifest
from jepa_jax.data.records import encode_record


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    """A cache in the test's own folder; tests run without pauses."""
    monkeypatch.setattr(remote, "_FIRST_PAUSE_S", 0.0)
    found = FileCache(str(tmp_path / "cache"))
    monkeypatch.setattr(copies, "DEFAULT_CACHE", found)
    monkeypatch.setattr("jepa_jax.data.sources.examples.DEFAULT_CACHE", found)
    return found


def _run(kind, source, output, *more):
    return prepare.main([kind, str(source), "--output", str(output), "--workers", "0", "--size", "48", *more])


def _records(folder):
    source = data.ShardSource([str(folder)], "any")
    return [source[index] for index in range(len(source))]


def _assert_same(far, near, root, folder):
    """Compare records but for where they come from."""
    assert len(far) == len(near) > 0
    for one, other in zip(far, near, strict=True):
        assert one.source_id.startswith("memory://")
        assert one.source_id.replace(root, str(folder)) == other.source_id
        assert encode_record(one._replace(source_id="")) == encode_record(other._replace(source_id=""))


def _write(kind, folder):
    """Write a source of a kind; returns the arguments it needs."""
    if kind == "droid":
        for number in range(2):
            robots.write_droid(folder / f"ü {number}", 12, views=("left", "wrist"), seed=number)
        return ["--views", "left,wrist"]
    if kind.startswith("lerobot"):
        version = kind.partition(" ")[2]
        robots.write_lerobot(folder / "mine", version=version)
        return []
    if kind == "tfds":
        features = {
            "image": {"pythonClassName": "features.image_feature.Image"},
            "label": {"pythonClassName": "features.class_label_feature.ClassLabel"},
        }
        (folder / "features.json").write_text(json.dumps({"featuresDict": {"features": features}}))
        picture = pathlib.Path(media.write_image(folder / "a.png")).read_bytes()
        examples = [robots.example_bytes({"image": [picture], "label": np.array([number])}) for number in range(3)]
        robots.write_tfrecord(folder / "x-train.tfrecord-00000-of-00002", examples)
        media.write_shard(folder / "x-train.array_record-00001-of-00002", examples)
        return []
    if kind == "rlds":
        examples = [robots.example_bytes(robots.rlds_episode(10, seed=seed)[0]) for seed in range(2)]
        robots.write_tfrecord(folder / "e.tfrecord-00000-of-00001", examples)
        return ["--preset", "droid", "--views", "exterior_1,wrist"]
    media.write_image(folder / "1.png")
    with tarfile.open(folder / "more.tar", "w") as tar:
        for name in ("a.png", "b/c.png"):
            tar.add(folder / "1.png", name)
    media.write_image(folder / "sub.jpg", height=200, width=150)
    return []


@pytest.mark.parametrize("kind", ["images", "droid", "lerobot v2.1", "lerobot v3.0", "rlds", "tfds"])
def test_records_are_those_of_a_folder(kind, memory, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    arguments, word = _write(kind, folder), kind.partition(" ")[0]
    buckets.upload(memory, folder, "/bucket/in")
    assert _run(word, folder, tmp_path / "near", *arguments) == 0
    assert _run(word, "memory://bucket/in", tmp_path / "far", *arguments) == 0
    _assert_same(_records(tmp_path / "far"), _records(tmp_path / "near"), "memory:///bucket/in", folder)


def test_index_of_droid_behind_a_url(memory, tmp_path):
    robots.write_droid(tmp_path / "in" / "one", 12, views=("left",))
    buckets.upload(memory, tmp_path / "in", "/bucket/in")
    memory.pipe("/bucket/in/index.csv", b"one 0\nmemory://bucket/in/one 0\nlost 1\n")
    assert _run("droid", "memory://bucket/in/index.csv", tmp_path / "out", "--max-skip-fraction", "1") == 0
    report = json.loads((tmp_path / "out" / "droid-report.json").read_text())
    assert (report["written"], report["skips_by_reason"]) == (1, {"duplicate id": 1, "missing json": 1})


def test_lists_name_what_lies_beside_them(memory, tmp_path):
    media.write_video(tmp_path / "a b.mp4", frames=30, fps=10)
    content = (tmp_path / "a b.mp4").read_bytes()
    memory.pipe("/bucket/lists/near.mp4", content)
    memory.pipe("/other/far.mp4", content)
    lines = ["near.mp4 1", "memory://other/far.mp4 2", f"{tmp_path}/a b.mp4 3", "lost.mp4 4", "nosuch://x/y.mp4 5"]
    memory.pipe("/bucket/lists/all.csv", "\n".join(lines).encode())
    items = read_csv("memory://bucket/lists/all.csv")
    assert items[0] == Item("memory://bucket/lists/near.mp4", 1)
    assert [item.path for item in items[1:3]] == ["memory://other/far.mp4", f"{tmp_path}/a b.mp4"]
    out = tmp_path / "out"
    assert _run("videos", "memory://bucket/lists/all.csv", out, "--max-skip-fraction", "1") == 0
    assert [(record.label, record.num_frames) for record in _records(out)] == [(1, 30), (2, 30), (3, 30)]
    skips = json.loads((out / "clips-report.json").read_text())["skips"]
    assert [(skip["path"], skip["reason"]) for skip in skips] == [
        ("memory://bucket/lists/lost.mp4", "missing file"), ("nosuch://x/y.mp4", "unusable URL"),
    ]  # fmt: skip
    # A list of this host may name URLs too; relative paths in it are of this host.
    (tmp_path / "here.csv").write_text("memory://other/far.mp4 7\n")
    assert _run("videos", tmp_path / "here.csv", tmp_path / "second") == 0
    assert _records(tmp_path / "second")[0].label == 7


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_scenes_of_one_remote_video_fetch_it_once(form, memory, tmp_path, monkeypatch):
    memory.pipe("/bucket/long.mp4", pathlib.Path(media.write_video(tmp_path / "x.mp4", frames=60, fps=10)).read_bytes())
    rows = [{"path": "long.mp4", "start": start, "end": start + 1.0} for start in range(4)]
    text = "\n".join(map(json.dumps, rows))
    if form == "csv":
        text = "\n".join(["start,path,end", *(f"{row['start']},{row['path']},{row['end']}" for row in rows)])
    url = f"memory://bucket/scenes.{form}"
    memory.pipe(f"/bucket/scenes.{form}", text.encode())
    assert is_manifest(url) and not is_manifest("memory://bucket/long.mp4") and not is_manifest("memory://bucket/no.csv")
    assert read_manifest(url)[1] == Scene("memory://bucket/long.mp4", 1.0, 2.0)
    fetched, get = [], type(memory).get_file

    def watched(self, name, *args, **options):
        fetched.append(name)
        return get(self, name, *args, **options)

    monkeypatch.setattr(type(memory), "get_file", watched)
    assert _run("videos", url, tmp_path / "out") == 0
    assert len(_records(tmp_path / "out")) == 4 and fetched == ["/bucket/long.mp4"]


def test_a_copy_that_is_held_makes_no_room(memory, tmp_path):
    small = FileCache(str(tmp_path / "small"), max_bytes=100)
    for name in "abc":
        memory.pipe(f"/{name}", name.encode() * 60)
    with small.hold("memory://a") as held:
        for name in "bc":
            with small.hold(f"memory://{name}") as copy:
                assert pathlib.Path(copy).read_bytes() == name.encode() * 60
        assert pathlib.Path(held).read_bytes() == b"a" * 60
    with small.hold("memory://b"):
        assert [path.name[-2:] for path in (tmp_path / "small").iterdir() if path.suffix != ".lock"] == ["-b"]


def test_damage_in_a_copy_is_told_of_the_url(memory):
    memory.pipe("/x/a.mp4", b"no video")
    for reused in (False, True):
        with pytest.raises(DataError, match="^memory://x/a.mp4: broken") as caught:
            with local_copy("memory://x/a.mp4", reused) as copy:
                assert pathlib.Path(copy).read_bytes() == b"no video"
                raise DataError("damaged", f"{copy}: broken")
        assert caught.value.reason == "damaged"
    with pytest.raises(DataError, match="memory://x/b.mp4: no such file"), local_copy("memory://x/b.mp4"):
        pass


def test_list_that_is_not_there_or_not_text(memory, tmp_path, capsys):
    memory.pipe("/x/list.csv", b"\xff\xfe\x00")
    with pytest.raises(ListError, match="memory://x/list.csv is not UTF-8 text"):
        read_csv("memory://x/list.csv")
    for source, message in (("memory://x/no.csv", "matches anything"), ("nosuch://x", "no file system for it")):
        assert _run("videos", source, tmp_path / "out") == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


class _Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        """Say nothing."""


def test_files_of_a_web_server(tmp_path):
    (tmp_path / "in").mkdir()
    media.write_video(tmp_path / "in" / "a.mp4", frames=30, fps=10)
    (tmp_path / "in" / "list.csv").write_text("a.mp4 1\nlost.mp4 2\n")
    handler = functools.partial(_Handler, directory=str(tmp_path / "in"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        # Real worker processes: all of them reach the server.
        assert _run("videos", f"{url}/list.csv", tmp_path / "out", "--workers", "2", "--max-skip-fraction", "1") == 0
        server.shutdown()
    assert [(record.source_id, record.label) for record in _records(tmp_path / "out")] == [(f"{url}/a.mp4", 1)]
    skips = json.loads((tmp_path / "out" / "clips-report.json").read_text())["skips"]
    assert [(skip["path"], skip["reason"]) for skip in skips] == [(f"{url}/lost.mp4", "missing file")]
