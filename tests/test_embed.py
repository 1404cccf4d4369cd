"""`python -m jepa_jax.embed`: what it stores, what it skips, and that stopping it loses nothing."""

import json
import os
import signal
import subprocess
import sys
import time

import cv2
import jax
import media
import numpy as np
import pytest

from jepa_jax import embed
from jepa_jax.data import clips, video
from jepa_jax.data.listing import ListError
from jepa_jax.data.movies import write_mp4
from jepa_jax.features import naming, output, pca
from jepa_jax.features.files import read_features
from jepa_jax.features.sources import Sampling, open_source
from jepa_jax.models import VideoEncoder
from jepa_jax.viz import embedding, features
from jepa_jax.weights import model as model_module
from jepa_jax.weights import native
from jepa_jax.weights.bundle import Bundle, Network, Preprocessing
from jepa_jax.weights.load import load

FRAMES, SIZE, STEP = 4, 32, 5


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    """Random weights of a small encoder, converted."""
    path = tmp_path_factory.mktemp("model") / "tiny"
    encoder = VideoEncoder(width=24, depth=2, num_heads=2, patch_size=8)
    params = encoder.init(jax.random.key(0), np.zeros((1, FRAMES, SIZE, SIZE, 3), np.float32))["params"]
    bundle = Bundle({"encoder": Network(encoder, jax.device_get(params))}, Preprocessing(SIZE, 36, FRAMES))
    native.write(bundle, str(path))
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two videos and an image; sampled by 5 the videos have 11 and 3 frames."""
    folder = tmp_path_factory.mktemp("sources")
    (folder / "below").mkdir()
    media.write_video(folder / "a.mp4", frames=52, fps=25)
    media.write_video(folder / "below" / "a.mp4", frames=13, fps=25)
    media.write_image(folder / "c.jpg")
    return folder


@pytest.fixture
def run(model_path, tmp_path):
    def run(*arguments, output="out"):
        arguments = [str(argument) for argument in arguments]
        return embed.main([*arguments, "--model", model_path, "--output", str(tmp_path / output), "--step", str(STEP)])

    return run


def _tree(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def _direct(model_path, path, windows, layers=()):
    """Encode the windows of a file by themselves."""
    model, params = load(model_path)
    frames = video.decode_frames(path, sorted({i for w in windows for i in w}))
    index = {number: place for place, number in enumerate(sorted({i for w in windows for i in w}))}
    frames = clips.preprocess(frames, SIZE, 36)
    return [np.asarray(model.encode(params, frames[[index[i] for i in w]], layers).tokens, np.float32) for w in windows]


def test_features_are_those_of_the_windows(run, folder, model_path, tmp_path):
    assert run(folder) == 0
    assert _tree(tmp_path / "out") == ["a.npz", "below/a.npz", "c.npz", "embed-report.json", "embed.json"]
    stored = np.load(tmp_path / "out" / "a.npz")
    # 11 sampled frames: the last window is moved back and ends with the video.
    windows = [[0, 5, 10, 15], [20, 25, 30, 35], [35, 40, 45, 50]]
    assert stored["frame_indices"].tolist() == windows
    np.testing.assert_allclose(stored["times_s"], np.array(windows) / 25)
    assert stored["grid"].tolist() == [2, 4, 4] and stored["fps"] == 5.0 and stored["label"] == -1
    assert str(stored["source"]) == str(folder / "a.mp4")
    assert str(stored["model_sha256"]) == load(model_path)[0].sha256["encoder"]
    assert json.loads(str(stored["settings"]))["step"] == STEP
    expected = np.concatenate(_direct(model_path, folder / "a.mp4", windows))
    assert stored["tokens"].shape == (3, 32, 24) and stored["tokens"].dtype == np.float32
    np.testing.assert_allclose(stored["tokens"], expected, atol=1e-5)
    # Too short for a window: the last sampled frame is repeated.
    assert np.load(tmp_path / "out" / "below" / "a.npz")["frame_indices"].tolist() == [[0, 5, 10, 10]]
    image = np.load(tmp_path / "out" / "c.npz")
    assert image["tokens"].shape == (1, 16, 24) and image["grid"].tolist() == [1, 4, 4] and image["fps"] == 0
    card = json.loads((tmp_path / "out" / "embed.json").read_text())
    assert card["settings"]["preprocessing"]["crop_size"] == SIZE and card["versions"]["jax"] == jax.__version__


def test_pooling_layers_and_dtype(run, folder, model_path, tmp_path):
    windows = [[0, 5, 10, 15], [10, 15, 20, 25], [20, 25, 30, 35], [30, 35, 40, 45], [35, 40, 45, 50]]
    both = np.stack([layers[:, 0] for layers in _direct(model_path, folder / "a.mp4", windows, (0, 1))])
    more = ("--stride", "2", "--layers", "0", "-1")
    assert run(folder / "a.mp4", *more, output="tokens") == 0
    assert run(folder / "a.mp4", *more, "--pool", "mean", "--dtype", "float16", output="mean") == 0
    assert run(folder / "a.mp4", *more, "--pool", "frames", output="frames") == 0
    assert run(folder / "a.mp4", "--stride", "2", "--layers", "0", output="one") == 0
    tokens, mean, frames, one = (np.load(tmp_path / name / "a.npz")["tokens"] for name in ("tokens", "mean", "frames", "one"))
    np.testing.assert_allclose(tokens, both, atol=1e-5)
    assert mean.dtype == np.float16 and mean.shape == (5, 2, 24)
    np.testing.assert_allclose(mean, both.mean(axis=2), atol=2e-3)
    np.testing.assert_allclose(frames, both.reshape(5, 2, 2, 16, 24).mean(axis=3), atol=1e-5)
    np.testing.assert_allclose(one, both[:, 0], atol=1e-5)


def test_one_compilation_per_shape_and_batches_across_files(run, folder, tmp_path):
    media.write_video(tmp_path / "b.mp4", frames=43, fps=25)
    sources = (folder, tmp_path / "b.mp4")
    assert run(*sources) == 0
    model_module._encode.clear_cache()
    assert run(*sources, "--batch", "3", output="batched") == 0
    # Four videos' and one image's windows: 3 + 1 + 1 + 3, in batches of 3.
    assert model_module._encode._cache_size() == 2
    for name in ("a", "below/a", "b", "c"):
        one, many = (np.load(tmp_path / output / f"{name}.npz")["tokens"] for output in ("out", "batched"))
        np.testing.assert_allclose(many, one, atol=1e-5)


def test_whole_frames_keep_their_aspect(run, folder, tmp_path):
    assert run(folder / "a.mp4", "--whole", "--size", "40") == 0
    assert np.load(tmp_path / "out" / "a.npz")["grid"].tolist() == [2, 5, 7]


def test_bad_files_are_named_counted_and_bounded(run, folder, tmp_path, capsys):
    (tmp_path / "bad.mp4").write_bytes(b"text" * 99)
    (tmp_path / "empty.png").write_bytes(b"")
    # Its beginning can be decoded, so windows of it are encoded before it fails.
    write_mp4(tmp_path / "torn.mp4", (media.numbered_frame(number) for number in range(60)), 25)
    content = (tmp_path / "torn.mp4").read_bytes()
    kept = len(content) * 3 // 4
    (tmp_path / "torn.mp4").write_bytes(content[:kept] + b"\xff" * (len(content) - kept))
    sources = (folder, tmp_path / "bad.mp4", tmp_path / "torn.mp4", tmp_path / "empty.png")
    assert run(*sources, "--pca") == 1
    text = capsys.readouterr().out
    assert "3 of 6 files" in text and "not a video: 1" in text and "50.0% of the files were skipped" in text
    report = json.loads((tmp_path / "out" / "embed-report.json").read_text())
    assert report["written"] == 3 and report["skipped"] == 3
    assert {skip["path"]: skip["reason"] for skip in report["skips"]} == {
        str(tmp_path / "bad.mp4"): "not a video", str(tmp_path / "torn.mp4"): "damaged",
        str(tmp_path / "empty.png"): "empty file",
    }
    assert not [name for name in _tree(tmp_path / "out") if "torn" in name or "bad" in name or ".scratch" in name]
    assert run(*sources, "--pca", "--max-skip-fraction", "0.5") == 0
    assert "(3 done before)" in capsys.readouterr().out
    assert run(tmp_path / "bad.mp4", output="none") == 1
    assert "nothing was written" in capsys.readouterr().out


@pytest.mark.parametrize("arguments, message", [
    (["--frames", "3"], "multiple of tubelet_size"), (["--size", "30"], "multiple of patch_size"),
    (["--size", "4", "--whole"], "less than one patch"), (["--stride", "5"], "would be lost"),
    (["--layers", "2"], "layers 0 to 1"), (["--encoder", "target_encoder"], "target_encoder"),
])
def test_impossible_settings(run, folder, tmp_path, capsys, arguments, message):
    assert run(folder, *arguments) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_unusable_arguments(run, folder, model_path, tmp_path, capsys):
    (tmp_path / "hollow").mkdir()
    assert run(tmp_path / "hollow") == 2
    assert "holds no file" in capsys.readouterr().err
    assert embed.main([str(folder), "--model", str(tmp_path / "hollow"), "--output", str(tmp_path / "out")]) == 2
    assert "holds no weights" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert run(folder, output="file") == 2
    assert "is a file" in capsys.readouterr().err
    for arguments, message in ((["--modle", "x"], "did you mean --model"), (["--fps", "0"], "is not above 0"), ([], "SRC")):
        with pytest.raises(SystemExit) as stop:
            embed.main([*arguments, "--output", "x"])
        assert stop.value.code == 2 and message in capsys.readouterr().err


def test_folder_in_use(run, folder, tmp_path, capsys):
    with output.lock_folder(str(tmp_path / "out")):
        assert run(folder) == 2
    assert "another process" in capsys.readouterr().err
    assert run(folder / "c.jpg") == 0


def test_too_little_memory(run, folder, capsys, monkeypatch):
    def full(*args):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nmore")

    monkeypatch.setattr(model_module.Model, "encode", full)
    assert run(folder) == 2
    assert "lower --batch" in capsys.readouterr().err


def test_values_that_the_stored_type_cannot_hold(run, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(embed.pooling, "pool_tokens", lambda tokens, grid, pool: tokens * 1e6)
    assert run(folder, "--dtype", "float16") == 1
    assert "not finite: 3" in capsys.readouterr().out and not (tmp_path / "out" / "a.npz").exists()
    assert run(folder, output="wide") == 0


def test_full_disk_is_explained(run, folder, capsys, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(output.WindowFile, "append", full)
    assert run(folder) == 2
    assert "No space left" in capsys.readouterr().err


def _stop_after(monkeypatch, count, output_class):
    """Make Ctrl-C arrive when `count` files are stored."""
    add = output_class.add

    def stopping(self, *args):
        if self.added == count:
            raise KeyboardInterrupt
        add(self, *args)
        self.added += 1

    monkeypatch.setattr(output_class, "added", 0, raising=False)
    monkeypatch.setattr(output_class, "add", stopping)


def test_stopped_run_is_finished_by_the_next(run, folder, tmp_path, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        _stop_after(patch, 1, output.NpzOutput)
        assert run(folder, "--pca") == 130
    assert "run the same command again" in capsys.readouterr().err
    left = [name for name in _tree(tmp_path / "out") if name.endswith(".npz")]
    assert left == ["a.npz"] and not (tmp_path / "out" / ".scratch").exists()
    written = os.stat(tmp_path / "out" / "a.npz").st_mtime_ns
    assert run(folder, "--pca") == 0
    assert os.stat(tmp_path / "out" / "a.npz").st_mtime_ns == written
    assert len([name for name in _tree(tmp_path / "out") if name.endswith(".npz")]) == 3
    # Cut, as by a power failure; and a picture was deleted.
    (tmp_path / "out" / "c.npz").write_bytes((tmp_path / "out" / "c.npz").read_bytes()[:500])
    (tmp_path / "out" / "a.pca.mp4").unlink()
    assert run(folder, "--pca") == 0
    assert "(1 done before)" in capsys.readouterr().out
    assert len(list(read_features(tmp_path / "out"))) == 3 and (tmp_path / "out" / "a.pca.mp4").exists()


def test_killed_process_leaves_whole_files(folder, model_path, tmp_path):
    (tmp_path / "src").mkdir()
    for number in range(12):
        media.write_video(tmp_path / "src" / f"{number:02d}.mp4", frames=40 + number)
    command = [sys.executable, "-m", "jepa_jax.embed", str(tmp_path / "src"), "--model", model_path,
               "--output", str(tmp_path / "out"), "--step", "2", "--pca"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    limit = time.monotonic() + 60
    while not (tmp_path / "out" / "01.npz").exists() and time.monotonic() < limit:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = sorted((tmp_path / "out").glob("*.npz"))
    assert 2 <= len(done) < 12
    written = {path: path.stat().st_mtime_ns for path in done}
    for path in done:
        assert np.load(path)["tokens"].shape[1:] == (32, 24)
    assert embed.main(command[3:]) == 0
    assert {path: path.stat().st_mtime_ns for path in done} == written
    assert len(list((tmp_path / "out").glob("*.npz"))) == 12 and not (tmp_path / "out" / ".scratch").exists()


def test_other_settings_in_the_same_folder_are_refused(run, folder, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    np.savez(tmp_path / "out" / "mine.npz", x=np.zeros(3))
    assert run(folder / "a.mp4", "--pca") == 0
    assert run(folder / "a.mp4", "--pool", "mean") == 2
    assert "settings.pool 'tokens' -> 'mean'" in capsys.readouterr().err
    # Another file of the same name would be taken for finished.
    assert run(folder / "below" / "a.mp4") == 2
    assert "holds the features of" in capsys.readouterr().err
    assert run(folder / "c.jpg", "--pool", "mean", "--overwrite") == 0
    assert [name for name in _tree(tmp_path / "out") if not name.startswith("embed")] == ["c.npz", "mine.npz"]


def test_shards_hold_the_same(run, folder, tmp_path, capsys, monkeypatch):
    (tmp_path / "bad.mp4").write_bytes(b"text" * 99)
    table = tmp_path / "list.csv"
    table.write_text(f"{folder}/a.mp4 7\n{tmp_path}/bad.mp4 1\n{folder}/below/a.mp4 3\n{folder}/c.jpg 0\n")
    more = (table, "--max-skip-fraction", "0.5")
    assert run(*more, output="npz") == 0
    shards = (*more, "--format", "array_record", "--per-shard", "2")
    with monkeypatch.context() as patch:
        _stop_after(patch, 2, output.RecordOutput)
        assert run(*shards) == 130
    assert [name for name in _tree(tmp_path / "out") if name.startswith("features")] == ["features-00000-of-00002.array_record"]
    written = os.stat(tmp_path / "out" / "features-00000-of-00002.array_record").st_mtime_ns
    capsys.readouterr()
    assert run(*shards) == 0
    # The skipped file lies in the shard of the earlier run.
    assert "3 of 4 files (2 done before)" in capsys.readouterr().out
    assert os.stat(tmp_path / "out" / "features-00000-of-00002.array_record").st_mtime_ns == written
    one, many = (
        {item.source: item for item in read_features(tmp_path / name)} for name in ("npz", "out")
    )
    assert sorted(one) == sorted(many) and [item.label for item in many.values()] == [7, 3, 0]
    for source, item in one.items():
        other = many[source]
        for name in ("tokens", "frame_indices", "times_s"):
            np.testing.assert_array_equal(getattr(item, name), getattr(other, name))
        assert item[4:] == other[4:] and item.grid == other.grid
    assert run(folder, "--format", "array_record", "--per-shard", "2") == 2
    assert "sources_sha256" in capsys.readouterr().err


def test_names_are_distinct_and_stable(tmp_path):
    for name in ("x/a.mp4", "y/a.mp4", "x/b.mp4", "x/b.jpg", "x/deep/a.mp4", "x/b.pca.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")

    def names(*sources):
        return {os.path.relpath(e.path, tmp_path): e.name for e in naming.list_entries([str(tmp_path / s) for s in sources])}

    assert names("x", "y") == {
        "x/a.mp4": "x/a", "y/a.mp4": "y/a", "x/b.mp4": "b.mp4", "x/b.jpg": "b.jpg", "x/deep/a.mp4": "deep/a",
    }
    assert names("x/*.mp4") == {"x/a.mp4": "a", "x/b.mp4": "b"}
    assert names("*/a.mp4") == {"x/a.mp4": "x/a", "y/a.mp4": "y/a"}
    assert names("x/deep/a.mp4", "x/a.mp4") == {"x/deep/a.mp4": "deep/a", "x/a.mp4": "a"}
    (tmp_path / "list.csv").write_text(f"{tmp_path}/x/a.mp4 1\n")
    (tmp_path / "other.csv").write_text(f"{tmp_path}/x/a.mp4 2\n")
    assert naming.list_entries([str(tmp_path / "list.csv"), str(tmp_path / "x")])[0] == (str(tmp_path / "x/a.mp4"), 1, "a")
    with pytest.raises(ListError, match="labels 1 and 2"):
        naming.list_entries([str(tmp_path / "list.csv"), str(tmp_path / "other.csv")])
    with pytest.raises(ListError, match="only pictures"):
        naming.list_entries([str(tmp_path / "x/b.pca.png")])


def test_colors_do_not_depend_on_how_tokens_are_cut():
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(60, 8)) * np.arange(1, 9) + 1000 * rng.normal(size=8)
    whole, parts = pca.fit_colors([tokens]), pca.fit_colors([tokens[:10].reshape(2, 5, 8), tokens[10:13], tokens[13:]])
    centered = tokens - tokens.mean(axis=0)
    _, _, axes = np.linalg.svd(centered, full_matrices=False)
    np.testing.assert_allclose(np.abs(np.sum(whole.axes * axes[:3].T, axis=0)), 1, atol=1e-9)
    variances = np.var(centered @ axes.T, axis=0)
    assert whole.share == pytest.approx(variances[:3].sum() / variances.sum())
    np.testing.assert_allclose(parts.apply(tokens), whole.apply(tokens), atol=1e-9)
    # Nine tokens in ten stay inside tanh(1) of the range, which is where the colours are told apart.
    inside = np.abs(whole.apply(tokens) - 0.5) <= 0.5 * np.tanh(1) + 1e-12
    np.testing.assert_allclose(inside.mean(axis=0), 0.9, atol=0.02)
    with pytest.raises(ValueError, match="3 channels"):
        pca.fit_colors([np.ones((4, 2))])


def test_medians_of_many_tokens_are_taken_over_some(monkeypatch):
    monkeypatch.setattr(pca, "_MAX_SCORES", 10)
    tokens = np.random.default_rng(0).normal(size=(95, 4))
    mapping = pca.fit_colors(np.split(tokens, [7, 30, 31]))
    scores = (tokens[::10] - mapping.mean) @ mapping.axes
    np.testing.assert_allclose(mapping.center, np.median(scores, axis=0))


def test_pictures_of_a_video_and_an_image(run, folder, tmp_path):
    assert run(folder, "--pca", "--stride", "1", "--pool", "mean") == 0
    names = [name for name in _tree(tmp_path / "out") if "pca" in name]
    assert names == ["a.pca.mp4", "a.pca.png", "below/a.pca.mp4", "below/a.pca.png", "c.pca.png"]
    movie = tmp_path / "out" / "a.pca.mp4"
    info = video.probe(movie)
    # Every sampled frame once, at the sampled rate, though windows overlap.
    assert (info.num_frames, info.fps, info.height, info.width) == (11, 5.0, 256, 2 * 256 + 8)
    whole = clips.read_clip(folder / "a.mp4", 11, SIZE, step=STEP, start=0.0)
    for frame, source in zip(video.decode_frame_list(movie, range(11)), features.canvas.enlarge(whole)):
        assert np.abs(frame[:, :256].astype(int) - source).mean() < 6
        assert frame[:, 264:].std() > 10
    image = cv2.imread(str(tmp_path / "out" / "c.pca.png"))
    assert min(image.shape[:2]) > 400 and image.std() > 20


def test_movie_colors_follow_the_tokens_in_time(folder, tmp_path):
    sampling = Sampling(4, 4, None, STEP, SIZE, 36, 8)
    source = open_source(str(folder / "a.mp4"), sampling)
    # In every window the tokens of the first time step are alike, and unlike those of the second.
    rng = np.random.default_rng(0)
    steps = rng.normal(size=(2, 24))
    tokens = np.repeat(steps[None, :, None], 16, axis=2).repeat(3, axis=0).reshape(3, 32, 24) + rng.normal(0, 1e-3, (3, 32, 24))
    embedding.draw_source(source, sampling, tokens, (2, 4, 4), "test", str(tmp_path / "p.png"), str(tmp_path / "p.mp4"))
    frames = video.decode_frame_list(tmp_path / "p.mp4", range(11))
    red = np.array([frame[:, 264:, 0].mean() for frame in frames]) > 127
    # Windows hold frames 0-3, 4-7 and 7-10; frame 7 is as near to the middles of the last two.
    assert red.tolist() == [red[0], red[0], not red[0], not red[0]] * 2 + [red[0], not red[0], not red[0]]
