"""The benchmark commands: the fields of their JSON, and their refusals."""

import importlib.util
import json
import os

import media
import numpy as np
import peers
import pytest

from jepa_jax.bench import __main__ as bench
from jepa_jax.bench import report
from jepa_jax.bench.processes import Remote

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


def test_data_record(tmp_path):
    (tmp_path / "videos").mkdir()
    media.write_video(tmp_path / "videos" / "a.mp4")
    record = _run(
        tmp_path, "data", "--videos", str(tmp_path / "videos"), "--frames", "4", "--fps", "8", "--resolution", "128",
        "--clips", "4", "--batch", "2", "--workers", "0",
    )
    assert record["bytes_per_clip"] == 4 * 128 * 128 * 3
    for name in ("raw_decode", "decode", "pipeline"):
        assert record[f"{name}_clips_per_s_per_core"] > 0
    assert record["decode_over_raw"] > 0 and record["iterator"]["clips_per_s"] > 0


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
