"""The benchmark of stored features: the fields of its JSON, and its refusals."""

import json

from jepa_jax.bench import __main__ as bench

_CONFIG = '''
from configs import world_model

def get_config(argument=""):
    config = world_model.get_config("demo")
    config.model.predictor.update({"width": 16, "depth": 1, "num_heads": 2})
    config.data.update({"size": 32, "frames": 3, "batch_size": 2, "workers": 0, "threads": 0})
    config.rollout.auto_steps = 2
    config.log.monitor_tokens = 64
    return config
'''


def test_record_of_stored_features(tmp_path, capsys):
    (tmp_path / "tiny.py").write_text(_CONFIG)
    output = tmp_path / "record.json"
    assert bench.main(["world_model", "--config", str(tmp_path / "tiny.py"), "--trajectories", "1", "--steps", "2",
                       "--encode-batch", "16", "--scratch", str(tmp_path), "--output", str(output)]) == 0
    record = json.loads(output.read_text())
    # A row in four of 240, at 15 Hz and 4 frames a second.
    assert record["features"]["frames"] == 60
    assert record["features"]["bytes_per_clip"] == 8 * 2 * 2 * 192 * 2
    for side in ("stored", "on_the_fly"):
        assert record[side]["step_ms"]["num"] == record[side]["step_with_data_ms"]["num"] == 2
        assert record[side]["compile_s"] > 0 and record[side]["bytes_per_trajectory"] > 0
        assert record[side]["memory"]["argument_bytes"] > 0
    # The encoder is part of one step only.
    assert record["on_the_fly"]["memory"]["argument_bytes"] > record["stored"]["memory"]["argument_bytes"] + 4e6
    assert record["on_the_fly"]["model_tflop_per_s"] > 0 and record["stored_over_on_the_fly"]["step_time"] > 0
    assert "with stored features a step takes" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"tiny.py", "record.json"}


def test_shards_that_are_not_there(tmp_path, capsys):
    assert bench.main(["world_model", "--shards", str(tmp_path), "--scratch", str(tmp_path)]) == 2
    assert "no shards found" in capsys.readouterr().err
