"""A user's own robot in LeRobot's layout: prepare, store features, train, report; nothing but commands and config fields."""

import json

import pytest
import robots
from test_world_model import SMALL, train, write_encoder

from configs import world_model as configs
from jepa_jax import evaluate, prepare


@pytest.mark.parametrize("source", ["states", "recorded"])
def test_own_robot_from_recordings_to_report(source, tmp_path):
    encoder = write_encoder(tmp_path / "encoder")
    for name, seed in (("mine", 0), ("mine_test", 9)):
        robots.write_lerobot(tmp_path / name, (14, 16, 15), version="v3.0" if seed else "v2.1", seed=seed)
        command = ["lerobot", str(tmp_path / name), "--output", str(tmp_path / "shards" / name), "--workers", "0"]
        assert prepare.main(command) == 0
    command = ["features", str(tmp_path / "shards/mine"), "--model", encoder, "--size", "32", "--fps", "5"]
    assert prepare.main([*command, "--output", str(tmp_path / "features"), "--workers", "0", "--batch", "8"]) == 0

    config = configs.get_config("demo,robot=generic")
    fields = {"encoder": encoder, "data.paths": (str(tmp_path / "features"),), "robot.source": source}
    config.update_from_flattened_dict(SMALL | fields)
    train(config.lock(), tmp_path / "run", total_steps=2)

    command = ["rollout", str(tmp_path / "shards/mine_test"), "--model", str(tmp_path / "run"), "--horizon", "3"]
    assert evaluate.main([*command, "--samples", "3", "--batch", "3", "--output", str(tmp_path / "report")]) == 0
    report = json.loads((tmp_path / "report/report.json").read_text())
    assert (tmp_path / "report/report.png").stat().st_size > 10_000
    names = [row["name"] for row in report["sensitivity"]]
    assert names == (list("xyzabcg") if source == "states" else ["u", "v"])
