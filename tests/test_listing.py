"""Lists of files: links that lead in circles, files of several names, labels that differ, names that are not UTF-8."""

import json
import os

import media
import pytest

from jepa_jax import data, prepare
from jepa_jax.data import folders, listing
from jepa_jax.data.sources import droid, examples, lerobot


def _prepare(*arguments, kind="videos", status=0):
    assert prepare.main([kind, *map(str, arguments), "--workers", "0"]) == status


def _names(folder):
    source = data.ShardSource([str(folder)])
    return [source[index].source_id for index in range(len(source))]


def test_links_in_circles_give_each_file_once(tmp_path):
    root = tmp_path / "loop"
    (root / "below").mkdir(parents=True)
    media.write_video(root / "a.mp4", frames=10)
    media.write_video(root / "below" / "b.mp4", frames=10)
    for name in ("one", "two", "below/up"):
        os.symlink(root, root / name)
    os.symlink(root / "a.mp4", root / "again.mp4")
    _prepare(root, "--output", tmp_path / "out")
    assert _names(tmp_path / "out") == [f"{root}/a.mp4", f"{root}/below/b.mp4"]


def test_a_folder_that_is_linked_to_is_looked_into(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.mp4").write_bytes(b"x")
    (tmp_path / "in").mkdir()
    os.symlink(tmp_path / "real", tmp_path / "in" / "link")
    assert listing.list_items([str(tmp_path / "in")], [".mp4"]) == [listing.Item(f"{tmp_path}/in/link/a.mp4")]


@pytest.mark.parametrize("kind", ["droid", "lerobot", "rlds"])
def test_robot_data_are_found_once_among_links(kind, tmp_path):
    file = {"droid": "trajectory.h5", "lerobot": "meta/info.json", "rlds": "x-train.tfrecord"}[kind]
    (tmp_path / "set" / file).parent.mkdir(parents=True)
    (tmp_path / "set" / file).write_bytes(b"")
    for name in ("one", "two"):
        os.symlink(tmp_path, tmp_path / name)
    if kind == "droid":
        assert droid.list_droid([str(tmp_path)]) == [droid.Trajectory(f"{tmp_path}/set")]
    elif kind == "lerobot":
        assert lerobot._roots(str(tmp_path)) == [f"{tmp_path}/set"]
    else:
        assert examples._files(str(tmp_path), "all") == [f"{tmp_path}/set/x-train.tfrecord"]


def test_folders_that_a_walk_leaves_out_are_not_seen_as_seen(tmp_path):
    (tmp_path / "a" / "deep").mkdir(parents=True)
    os.symlink(tmp_path / "a" / "deep", tmp_path / "b")
    found = []
    for root, below, _ in folders.walk(str(tmp_path)):
        found.append(os.path.relpath(root, tmp_path))
        if root.endswith("/a"):
            below.clear()
    assert found == [".", "a", "b"]


def test_one_file_by_several_spellings_is_stored_once(tmp_path, monkeypatch):
    (tmp_path / "movies").mkdir()
    media.write_video(tmp_path / "movies" / "a.mp4", frames=10)
    monkeypatch.chdir(tmp_path)
    _prepare("movies", "./movies", tmp_path / "movies", "movies/../movies/*.mp4", "--output", "out")
    assert _names("out") == ["movies/a.mp4"]


def test_labels_that_differ_are_left_out_and_noted(tmp_path, capsys):
    file = media.write_video(tmp_path / "a.mp4", frames=10)
    other = media.write_video(tmp_path / "b.mp4", frames=10)
    for number in (400, 600):
        (tmp_path / f"k{number}.csv").write_text(f"{file} {number}\n{other} 7\n")
    lists = [str(tmp_path / name) for name in ("k400.csv", "k600.csv", "k400.csv")]
    first, second = listing.list_items([str(tmp_path / "b.mp4"), *lists], [".mp4"])
    assert (first, second) == (listing.Item(other, 7), listing.Item(file, None))
    _prepare(*lists, "--output", tmp_path / "out")
    assert "listed with different labels, so stored without one: 1 videos" in capsys.readouterr().out
    source = data.ShardSource([str(tmp_path / "out")])
    assert [source[index].label for index in (0, 1)] == [None, 7]


def test_names_that_are_not_utf8_are_escaped(tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    media.write_video(folder / "a.mp4", frames=10)
    os.rename(folder / "a.mp4", os.fsencode(folder) + b"/caf\xe9.mp4")
    (folder / "bad.mp4").write_bytes(b"nothing")
    os.rename(folder / "bad.mp4", os.fsencode(folder) + b"/b\xe4d.mp4")
    _prepare(folder, "--output", tmp_path / "out", "--max-skip-fraction", "1")
    assert _names(tmp_path / "out") == [f"{folder}/caf\\xe9.mp4"]
    (skip,) = json.loads((tmp_path / "out" / "clips-report.json").read_text())["skips"]
    assert skip["path"] == f"{folder}/b\\xe4d.mp4" and "b\\xe4d.mp4" in capsys.readouterr().out
