"""A user's own robot in LeRobot's layout: prepare, store features, train, report, plan; nothing but commands and config fields."""

import json

import cv2
import numpy as np
import pytest
import robots
from test_world_model import SMALL, train, write_encoder

from configs import world_model as configs
from jepa_jax import evaluate, plan, prepare
from jepa_jax.viz import __main__ as viz


@pytest.mark.parametrize("source", ["states", "recorded"])
def test_own_robot_from_recordings_to_plan(source, tmp_path, capsys):
    encoder = write_encoder(tmp_path / "encoder")
    for name, seed in (("mine", 0), ("mine_test", 9)):
        robots.write_lerobot(tmp_path / name, (14, 16, 15), version="v3.0" if seed else "v2.1", seed=seed)
        command = ["lerobot", str(tmp_path / name), "--output", str(tmp_path / "shards" / name), "--workers", "0"]
        assert prepare.main(command) == 0
    command = ["features", str(tmp_path / "shards/mine"), "--model", encoder, "--size", "32", "--fps", "4"]
    assert prepare.main([*command, "--output", str(tmp_path / "features"), "--workers", "0", "--batch", "8"]) == 0

    config = configs.get_config("demo,robot=generic")
    fields = {"encoder": encoder, "data.paths": (str(tmp_path / "features"),), "robot.source": source, "data.fps": 4.0}
    config.update_from_flattened_dict(SMALL | fields)
    train(config.lock(), tmp_path / "run", total_steps=2)

    command = ["rollout", str(tmp_path / "shards/mine_test"), "--model", str(tmp_path / "run")]
    assert evaluate.main([*command, "--samples", "3", "--batch", "3", "--output", str(tmp_path / "report")]) == 0
    report = json.loads((tmp_path / "report/report.json").read_text())
    assert (tmp_path / "report/report.png").stat().st_size > 10_000
    names = [row["name"] for row in report["sensitivity"]]
    assert names == (list("xyzabcg") if source == "states" else ["u", "v"])
    # Every third row of 10 a second, and no more steps than the training clips of 4 frames have.
    assert report["settings"]["step_seconds"] == pytest.approx(0.3) and report["settings"]["horizon"] == 3

    for name in ("now", "goal"):
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8))
    seen = ["--model", str(tmp_path / "run"), "--observation", str(tmp_path / "now.png"), "--goal", str(tmp_path / "goal.png"),
            "--state", "-0.1,0,0.3,3.1,0,0,0.2", "--output", str(tmp_path / "plan")]
    assert plan.main([*seen, "--samples", "8", "--iterations", "1", "--devices", "1"]) == 0, capsys.readouterr().err
    assert "each action lasts 0.3 s\n" in capsys.readouterr().out
    found = json.loads((tmp_path / "plan/plan.json").read_text())
    assert found["names"] == names and found["step_seconds"] == pytest.approx(0.3)
    assert viz.main(["energy", *seen, "--samples", "5"]) == 0, capsys.readouterr().err
