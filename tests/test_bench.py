"""The benchmark commands: the fields of their JSON, and their refusals."""

import importlib.util
import json
import os
import subprocess
import sys
import time

import media
import numpy as np
import peers
import pytest

from jepa_jax.bench import __main__ as bench
from jepa_jax.bench import data, originals, report
from jepa_jax.bench.overlap import measure_overlap
from jepa_jax.bench.processes import Remote
from jepa_jax.bench.video_peer import DecordLoader
from jepa_jax.data import pipeline, video
from jepa_jax.data.errors import DataError
from jepa_jax.data.records import ClipRecord
from jepa_jax.models.pixels import PIXEL_MEAN, PIXEL_STD

_STEP_FIELDS = {
    "config", "device", "machine", "compile_s", "step_ms", "step_cpu_ms", "clips_per_s", "model_tflop_per_s",
    "peak_tflop_per_s", "peak_source", "utilisation", "memory", "groups",
}
_CONFIG = '''
import ml_collections
from configs import pretrain

def get_config(argument=""):
    config = pretrain.get_config("demo")
    config.model.size = "vit_micro"
    config.model.predictor.update({"width": 24, "depth": 1, "num_heads": 2})
    config.data.size = 48
    return config
'''


@pytest.fixture(name="config")
def _config(tmp_path):
    path = tmp_path / "config.py"
    path.write_text(_CONFIG)
    return str(path)


def _run(tmp_path, *argv):
    output = tmp_path / "record.json"
    assert bench.main([*argv, "--output", str(output)]) == 0
    return json.loads(output.read_text())


def test_step_record(tmp_path, config):
    argv = ["step", "--config", config, "--frames", "4", "--steps", "2"]
    against_torch = importlib.util.find_spec("torch") is not None
    record = _run(tmp_path, *argv, *(["--against", "torch"] if against_torch else ["--batch", "8"]))
    assert _STEP_FIELDS <= record.keys()
    assert record["step_ms"]["num"] == 2 and record["step_ms"]["min"] > 0
    assert 0 < record["utilisation"]
    assert record["memory"]["process_peak_rss_bytes"] > 0
    assert record["machine"]["versions"]["jax"]
    peers.need("torch")
    assert record["torch"]["checked_steps"] >= 2
    assert record["torch"]["max_relative_loss_difference"] < 1e-4
    assert record["time_over_torch"] > 0


_ENCODE = ("encode", "--model", "vit_micro", "--size", "32", "--repeats", "2")


def _check_side(side):
    memory = side["memory"]
    assert memory["peak_rss_bytes"] == max(memory[f"{phase}_rss_bytes"] for phase in ("load", "compile", "encode"))
    assert 2**26 < memory["peak_rss_bytes"] < 2**31
    assert side["encode_ms"]["num"] == 2 and side["encode_ms"]["min"] > 0
    assert side["clips_per_s"] == pytest.approx(1e3 * 2 / side["encode_ms"]["median"])


def test_encode_record(tmp_path):
    record = _run(tmp_path, *_ENCODE, "--frames", "4", "--batch", "2")
    (run,) = record["runs"]
    assert (run["frames"], run["grid"], run["batch"]) == (4, [2, 2, 2], 2)
    assert record["parameters"] == 2964672 and run["ours"]["compile_s"] > 0
    _check_side(run["ours"])


def test_encode_against_transformers(tmp_path):
    peers.need("torch", "transformers")
    record = _run(tmp_path, *_ENCODE, "--frames", "2", "--batch", "2", "--against", "transformers")
    (run,) = record["runs"]
    for side in ("ours", "transformers"):
        _check_side(run[side])
    assert run["max_token_difference"] < 1e-4 and run["token_std"] > 0.5
    assert run["time_over_peer"] > 0


class _Leaver:
    def leave(self, code):
        os._exit(code)


def test_process_that_ends(tmp_path):
    with Remote(_Leaver) as remote:
        remote.wait_ready()
        with pytest.raises(ChildProcessError, match="_Leaver ended with exit status 3"):
            remote.call("leave", 3)


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="this system cannot reset the peak")
def test_peak_memory_can_be_reset():
    block = np.ones(2**26, np.uint8)
    before = report.peak_rss_bytes()
    del block
    report.reset_peak_rss()
    assert report.peak_rss_bytes() < before


_DATA = ("data", "--frames", "4", "--fps", "8", "--resolution", "128", "--clips", "4", "--batch", "2")


def _videos(tmp_path):
    (tmp_path / "videos").mkdir()
    media.write_video(tmp_path / "videos" / "a.mp4", width=128)
    return str(tmp_path / "videos")


def test_data_record(tmp_path):
    record = _run(tmp_path, *_DATA, "--videos", _videos(tmp_path), "--workers", "0")
    assert record["bytes_per_clip"] == 4 * 128 * 128 * 3
    for name in ("raw_decode", "sequential_decode", "decode", "clip", "pipeline"):
        assert record[f"{name}_clips_per_s_per_core"] > 0
    # Our own decoder without RGB is the limit, so nothing but noise can be above it.
    assert all(record[f"{name}_over_raw_decode"] > 0 for name in ("decode", "clip", "pipeline"))
    assert record["by_video"]["a.mp4"]["clips"] == 4 and record["iterator"]["clips_per_s"] > 0
    assert record["iterator"]["over_raw_decode"] > 0 and "sleep" in record["overlap"]["device_step"]
    assert record["pipeline_over_raw_decode"] == pytest.approx(
        record["pipeline_clips_per_s_per_core"] / record["raw_decode_clips_per_s_per_core"])
    assert sum(record["pipeline_parts_ms"].values()) == pytest.approx(1e3 / record["pipeline_clips_per_s_per_core"])
    assert record["source"]["made_from"] == [str(tmp_path / "videos")]
    assert 0 <= record["overlap"]["wait_share"] < 1
    assert "official_ms" not in record


def test_data_against_decord(tmp_path):
    peers.need("decord", "torch")
    record = _run(tmp_path, *_DATA, "--videos", _videos(tmp_path), "--workers", "0", "--against", "decord")
    assert record["official_ms"]["num"] == 4
    assert record["official_clips_per_s_per_core"] > 0 and record["official_decode_clips_per_s_per_core"] > 0
    (original,) = record["source"]["original"]["files"]
    assert (original["frames"], original["height"], original["width"]) == (48, 64, 128)


def test_official_style_loader_reads_the_same_clip(tmp_path):
    peers.need("decord", "torch")
    path = media.write_video(tmp_path / "a.mp4", width=128, crf=1)
    with open(path, "rb") as file:
        stored = ClipRecord("video", file.read(), 30.0, 48, 64, 128, path)
    group = pipeline.GroupSpec("video", "video", 4, 8.0, 2, ())
    crop = pipeline.CropSpec(48, (0.3, 1.0), (0.75, 1.35), 0.5)
    peer = DecordLoader(group, crop)
    for seed in range(4):
        ours = pipeline.load_clip(stored, group, crop, np.random.default_rng(seed))
        theirs = peer.load(path, np.random.default_rng(seed)).numpy().transpose(1, 2, 3, 0)
        np.testing.assert_allclose(theirs * 255 * PIXEL_STD + 255 * PIXEL_MEAN, ours, atol=3.0)


def test_video_that_decord_cannot_read(tmp_path):
    peers.need("decord", "torch")
    peer = DecordLoader(pipeline.GroupSpec("video", "video", 4, 8.0, 2, ()), None)
    (tmp_path / "a.mp4").write_bytes(b"no video")
    with pytest.raises(DataError, match="a.mp4: decord cannot"):
        peer.decode(str(tmp_path / "a.mp4"), np.random.default_rng(0))


def test_missing_decord(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "decord", None)
    assert bench.main([*_DATA, "--videos", _videos(tmp_path), "--workers", "0", "--against", "decord"]) == 2
    assert "jepa_jax[peers]" in capsys.readouterr().err


def test_original_that_is_gone(tmp_path, capsys):
    peers.need("decord", "torch")
    path = media.write_video(tmp_path / "a.mp4")
    data.make_shards([path], str(tmp_path / "shards"))
    os.remove(path)
    assert bench.main([*_DATA, "--shards", str(tmp_path / "shards"), "--workers", "0", "--against", "decord"]) == 2
    assert path in capsys.readouterr().err


def test_play_again(tmp_path):
    # x264 reorders frames, so the first decoding stamp lies before the first shown frame.
    path = media.write_video(tmp_path / "a.mp4", frames=20)
    originals.play_again(path, str(tmp_path / "b.mp4"), 3)
    found = originals.describe(tmp_path / "b.mp4")
    assert (found.frames, found.fps, found.key_frames) == (60, 30.0, 3)
    frames = video.decode_frames(tmp_path / "b.mp4", range(60))
    assert [media.read_number(frame) for frame in frames] == [*range(20)] * 3


class _Batches:
    """Give batches after a delay."""

    def __init__(self, seconds):
        self._seconds = seconds

    def __next__(self):
        time.sleep(self._seconds)
        return {"video": {"video": np.zeros((8, 4, 4, 3), np.uint8)}}, None


def test_overlap():
    assert measure_overlap(_Batches(0.01), 5, 0.1)["wait_share"] < 0.1
    starved = measure_overlap(_Batches(0.1), 5, 0.05)
    assert starved["wait_share"] == pytest.approx(0.5, abs=0.15)
    assert starved["step_with_data_ms"] > 95 and starved["fetch_ms"]["num"] == 5


def test_workers_leave_no_warning(tmp_path):
    # A process of its own: the one that deletes shared memory warns when its parent ends.
    code = "import sys; from jepa_jax.bench.__main__ import main; sys.exit(main(sys.argv[1:]))"
    ended = subprocess.run([sys.executable, "-c", code, *_DATA, "--videos", _videos(tmp_path), "--workers", "1",
                            "--output", str(tmp_path / "record.json")], capture_output=True, text=True, timeout=120,
                           check=False)
    assert ended.returncode == 0, ended.stderr
    assert "resource_tracker" not in ended.stderr
    assert json.loads((tmp_path / "record.json").read_text())["iterator"]["clips_per_cpu_s"] > 0


@pytest.mark.parametrize("argv", [["step", "--dtype", "float8"], ["step", "--against", "mxnet"], ["train"],
                                  ["encode", "--frames", "0"],
                                  ["data", "--clips", "0"]])
def test_wrong_option(argv):
    with pytest.raises(SystemExit) as stop:
        bench.main(argv)
    assert stop.value.code == 2


@pytest.mark.parametrize("argv, words", [
    (["step", "--config", "nowhere.py"], "nowhere.py"),
    (["encode", "--model", "vit_enormous"], "vit_enormous"),
    (["encode", "--frames", "3", "--size", "32"], "tubelet"),
    (["encode", "--size", "40"], "patch_size"),
    (["data", "--shards", "a", "--videos", "b"], "not both"),
    (["data", "--videos", "nowhere"], "nowhere"),
])
def test_wrong_value(argv, words, capsys):
    assert bench.main(argv) == 2
    assert words in capsys.readouterr().err


def test_wrong_model_size(config, capsys):
    assert bench.main(["step", "--config", config, "--batch", "8", "--size", "vit_enormous"]) == 2
    assert "vit_enormous" in capsys.readouterr().err


def test_spread():
    values = [3.0, 1.0, 2.0, 10.0]
    spread = report.spread(values)
    assert spread["median"] == 2.5 and spread["num"] == 4
    assert spread["mad"] == np.median(np.abs(np.array(values) - 2.5))
