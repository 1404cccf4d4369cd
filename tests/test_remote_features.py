"""Features and curation with sources and results behind URLs: the same as on this host."""

import json

import buckets
import jax
import media
import numpy as np
import pytest

from jepa_jax import embed, prepare
from jepa_jax.data import copies, remote
from jepa_jax.data.copies import FileCache
from jepa_jax.data.manifest import read_manifest
from jepa_jax.features.files import read_features
from jepa_jax.features.naming import list_entries
from jepa_jax.models import VideoEncoder
from jepa_jax.weights import native
from jepa_jax.weights.bundle import Bundle, Network, Preprocessing


@pytest.fixture(autouse=True)
def _quick(tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "_FIRST_PAUSE_S", 0.0)
    monkeypatch.setattr(copies, "DEFAULT_CACHE", FileCache(str(tmp_path / "cache")))


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("model") / "tiny")
    encoder = VideoEncoder(width=24, depth=1, num_heads=2, patch_size=8)
    params = encoder.init(jax.random.key(0), np.zeros((1, 4, 32, 32, 3), np.float32))["params"]
    native.write(Bundle({"encoder": Network(encoder, jax.device_get(params))}, Preprocessing(32, 36, 4)), path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    (folder / "below").mkdir()
    media.write_video(folder / "a.mp4", frames=52, fps=25)
    media.write_video(folder / "below" / "a.mp4", frames=13, fps=25)
    media.write_image(folder / "c.jpg")
    return folder


@pytest.fixture
def run(model_path):
    def run(source, output, *more):
        arguments = [str(source), "--output", str(output), "--model", model_path, "--step", "5", *more]
        return embed.main(arguments)

    return run



@pytest.mark.parametrize("form", ["npz", "array_record"])
def test_features_are_those_of_a_folder(form, run, folder, memory, tmp_path, capsys):
    buckets.upload(memory, folder, "/bucket/in")
    more = ["--format", form, "--per-shard", "2", "--pca"]
    assert run(folder, tmp_path / "out", *more) == 0
    assert run("memory://bucket/in", "memory://bucket/out", *more) == 0
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    here = sorted(path.relative_to(tmp_path / "out").as_posix() for path in files)
    assert sorted(buckets.contents(memory, "/bucket/out")) == here and "a.pca.mp4" in here
    near, far = (list(read_features(path)) for path in (str(tmp_path / "out"), "memory://bucket/out"))
    assert len(near) == len(far) == 3
    for one, other in zip(near, far, strict=True):
        assert other.source == one.source.replace(str(folder), "memory:///bucket/in")
        np.testing.assert_array_equal(one.tokens, other.tokens)
    # Only what is lost is done again, and other settings are refused.
    capsys.readouterr()
    lost = next(name for name in memory.find("/bucket/out") if name.endswith(f".{form}"))
    content = memory.cat_file(lost)
    memory.rm_file(lost)
    assert run("memory://bucket/in", "memory://bucket/out", *more) == 0
    done = 2 if form == "npz" else 1
    assert f"3 of 3 files ({done} done before) in memory://bucket/out" in capsys.readouterr().out
    assert len(memory.cat_file(lost)) == len(content)
    assert run("memory://bucket/in", "memory://bucket/out", "--format", form, "--pool", "mean") == 2
    assert "already holds features" in capsys.readouterr().err
    assert run("memory://bucket/in/a.mp4", "memory://bucket/out", "--pool", "mean", "--overwrite") == 0
    assert sorted(buckets.contents(memory, "/bucket/out")) == ["a.npz", "embed-report.json", "embed.json"]


def test_a_result_that_cannot_be_stored_ends_the_run(run, folder, memory, monkeypatch, capsys):
    put = type(memory).put_file

    def refuse(self, local, name, **options):
        if name.endswith(".npz"):
            raise PermissionError("403")
        return put(self, local, name, **options)

    monkeypatch.setattr(type(memory), "put_file", refuse)
    assert run(folder, "memory://bucket/out") == 2
    assert "write access was refused: 403. What is finished is kept" in capsys.readouterr().err


def test_names_below_remote_folders(memory):
    for name in ("/v/a.mp4", "/v/sub/a.mp4", "/w/b.mp4"):
        memory.pipe(name, b"x")
    memory.pipe("/v/list.csv", b"sub/a.mp4 3\n")

    def names(*sources):
        return {entry.path.removeprefix("memory://"): entry.name for entry in list_entries(sources)}

    assert names("memory://v") == {"/v/a.mp4": "a", "/v/sub/a.mp4": "sub/a"}
    assert names("memory://v/sub/a.mp4", "memory://w/*.mp4") == {"/v/sub/a.mp4": "a", "/w/b.mp4": "b"}
    assert names("memory://v/list.csv") == {"/v/sub/a.mp4": "a"}


def test_curation_of_a_bucket(model_path, memory, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    for number in range(3):
        media.write_video(tmp_path / "in" / f"{number}.mp4", frames=50, fps=10)
    buckets.upload(memory, tmp_path / "in", "/bucket/in")
    memory.pipe("/bucket/excluded.txt", b"somewhere/2.mp4 0\n")

    def run(source, output, *more):
        return prepare.main(
            ["curate", f"{source}/in", "--target", f"mine:1={source}/in/1.mp4", "--model", model_path,
             "--output", output, "--exclude", f"{source}/excluded.txt", "--clusters", "1",
             "--workers", "0", "--threshold", "99", *more]
        )  # fmt: skip

    (tmp_path / "excluded.txt").write_text("2.mp4\n")
    assert run(str(tmp_path), str(tmp_path / "out")) == 0
    assert run("memory://bucket", "memory://bucket/out") == 2
    assert "give --work, a folder of this host" in capsys.readouterr().err
    assert run("memory://bucket", "memory://bucket/out", "--work", str(tmp_path / "work")) == 0
    assert "memory://bucket/out/scenes.csv" in capsys.readouterr().out
    assert sorted(buckets.contents(memory, "/bucket/out")) == ["curate-report.json", "scenes.csv"]
    near, far = (read_manifest(f"{place}/out/scenes.csv") for place in (tmp_path, "memory://bucket"))
    assert len(near) == 2
    assert [scene.path.replace("memory:///bucket", str(tmp_path)) for scene in far] == [scene.path for scene in near]
    assert json.loads(memory.cat_file("/bucket/out/curate-report.json"))["written"] == 2
    # What the manifest names is prepared from where it is.
    arguments = ["--output", "memory://bucket/shards", "--workers", "0", "--size", "32"]
    assert prepare.main(["videos", "memory://bucket/out/scenes.csv", *arguments]) == 0
