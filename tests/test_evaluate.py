"""`python -m jepa_jax.evaluate rollout` on shards: what it writes and says, and what it refuses."""

import dataclasses
import json
import re

import cv2
import numpy as np
import pytest
import robots
from compiling import fast_jit
from media import write_shard
from weight_bundles import random_network

from jepa_jax import evaluate, prepare
from jepa_jax.data import ShardSource
from jepa_jax.data.latents import DTYPE, Latents
from jepa_jax.data.transforms import crop_resize_uint8, random_crop_box
from jepa_jax.data.video import decode_frames
from jepa_jax.models import ActionPredictor, VideoEncoder, normalize_pixels
from jepa_jax.robots.presets import DROID
from jepa_jax.weights import native, store
from jepa_jax.weights.bundle import Bundle, Preprocessing, network_sha256

ENCODER = VideoEncoder(width=24, depth=1, num_heads=2, patch_size=8)
PREDICTOR = ActionPredictor(24, 32, 1, 2, grid=(4, 4))
NETWORKS = {"target_encoder": random_network(ENCODER, 0), "action_predictor": random_network(PREDICTOR, 1)}
SHA256 = network_sha256(NETWORKS["target_encoder"].params)
ASPECT = (0.75, 1.35)
WORLD = {"robot": DROID.to_json(), "frames": 4, "fps": 5.0, "crop_aspect": list(ASPECT), "views": ["left"], "encoder_sha256": SHA256}
TRAJECTORIES, SHORT = 6, 1


def write_weights(folder, networks=NETWORKS, **world):
    """Write weights in our format; keyword arguments change what they were trained on."""
    native.write(Bundle(networks, Preprocessing(32, 36, 4), world_model=WORLD | world), str(folder))
    return str(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_weights(tmp_path_factory.mktemp("weights") / "ac")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Shards of trajectories in DROID's raw layout, one of them too short for four frames at 5/s."""
    folder = tmp_path_factory.mktemp("droid")
    for number in range(TRAJECTORIES + SHORT):
        length = 12 if number < SHORT else 24 + number
        robots.write_droid(folder / "raw" / str(number), length, seed=number, views=("left", "wrist"))
    assert prepare.main(["droid", str(folder / "raw"), "--output", str(folder / "frames"), "--workers", "0"]) == 0
    return folder


@pytest.fixture(scope="module")
def shards(folder):
    return str(folder / "frames")


@pytest.fixture
def run(shards, model, tmp_path, capsys):
    """Make a report; returns (status, standard output, errors)."""

    def run(*arguments, paths=(shards,), model=model):
        command = ["rollout", *paths, "--model", str(model), "--output", str(tmp_path / "out"), "--horizon", "3"]
        status = evaluate.main([*command, "--samples", "12", "--batch", "4", "--max-skip-fraction", "0.2", *arguments])
        out, error = capsys.readouterr()
        return status, out, error.split("error: ")[-1]

    return run


def read_report(tmp_path):
    return json.loads((tmp_path / "out" / "report.json").read_text())


def test_report_on_frames(run, tmp_path, capsys):
    status, out, _ = run("--decode", "--context", "2", "--horizon", "2")
    assert status == 0
    report = read_report(tmp_path)
    assert (report["samples"], report["trajectories"], report["skipped"]) == (12, TRAJECTORIES, {"too short": SHORT})
    assert report["skips"][0]["trajectory"].endswith("0") and "need more than 12" in report["skips"][0]["message"]
    assert set(report["errors"]) == {"one_step", "open_loop"} and len(report["sensitivity"]) == 7
    for rows in report["errors"].values():
        assert list(rows) == ["model", "shuffled_actions", "mean_action", "copy_last"]
        for found in rows.values():
            assert all(len(found[key]) == 2 for key in ("value", "low", "high"))
            assert np.all(np.array(found["low"]) <= found["value"]) and np.all(np.array(found["value"]) <= found["high"])
    assert report["positions"]["position"]["unit"] == "cm"
    assert report["settings"]["view"] == ["left"] and report["settings"]["fps"] == 5.0
    assert report["model"]["sha256"]["encoder"] == SHA256 and report["model"]["robot"]["name"] == "droid"
    assert "12 samples of 6 trajectories, 4 frames at 5/s" in out and "skipped, too short: 1 (" in out
    value = report["errors"]["open_loop"]["model"]["value"][1]
    (row,) = [line for line in out.split("open loop\n")[1].splitlines() if line.startswith("  model")]
    assert row.split()[-1] == f"{value:.4f}"
    assert evaluate.main(["compare", f"one={tmp_path}/out/report.json", f"same={tmp_path}/out/report.json"]) == 0
    compared = capsys.readouterr().out
    ratio = report["ratios"]["one_step_to_copy_last"]["value"]
    assert f"| one | 1 | {ratio:.2f} |" in compared and "below those of one" not in compared and "of same by 0% position at 2" in compared
    assert all(f"* {verdict}" in out for verdict in report["verdicts"])
    assert cv2.imread(str(tmp_path / "out" / "report.png")).shape[1] > 1500


def test_as_many_steps_as_training_has_seen_and_their_true_length(tmp_path, model, shards):
    """The model has clips of 4 frames, 5 a second; the data are every third row of 10 a second, as headers say 15."""
    (tmp_path / "slow").mkdir()
    source = ShardSource([shards], "trajectory")
    records = [source[number]._replace(control_rate=10.0) for number in range(SHORT, len(source))]
    write_shard(tmp_path / "slow" / "set-00000-of-00001.array_record", [record._replace(rate="header") for record in records])
    command = ["rollout", str(tmp_path / "slow"), "--model", model, "--output", str(tmp_path / "out"), "--samples", "6", "--batch", "3"]
    assert evaluate.main([*command, "--context", "2"]) == 0
    report = read_report(tmp_path)
    assert report["settings"]["horizon"] == 2 == len(report["errors"]["open_loop"]["model"]["value"])
    assert report["settings"]["step_seconds"] == pytest.approx(0.3) and report["settings"]["fps"] == 5.0
    assert report["notes"] == ["a step lasts 0.3 s in these data, 0.2 s in training"]


def test_the_same_seed_gives_the_same_report(run, tmp_path):
    run()
    first = read_report(tmp_path)
    run()
    assert read_report(tmp_path) == first
    run("--seed", "1")
    assert read_report(tmp_path)["errors"] != first["errors"]


def store_latents(folder, shards, sha256=SHA256, crop=(32, *ASPECT)):
    """Turn the frames of shards into stored features; returns the path."""
    records, size, encode = [], crop[0], fast_jit(ENCODER.apply)
    source = ShardSource([shards], "trajectory")
    for record in (source[number] for number in range(len(source))):
        view = record.views[0]
        frames = decode_frames(view.data, range(record.num_frames))
        box = random_crop_box(*frames.shape[1:3], (1.777, 1.777), crop[1:], np.zeros((10, 4)))
        # One shape for all trajectories: one compilation.
        video = np.zeros((32, 1, size, size, 3), np.uint8)
        video[: len(frames), 0] = crop_resize_uint8(frames, box, size)
        tokens = encode({"params": NETWORKS["target_encoder"].params}, normalize_pixels(video))[: len(frames)]
        tokens = np.asarray(tokens).astype(DTYPE)
        grid = (size // 8, size // 8)
        latents = Latents(tokens.tobytes(), tuple(range(record.num_frames)), grid, 24, sha256, crop)
        records.append(record._replace(views=(view._replace(data=b"", latents=latents),)))
    write_shard(folder / "set-00000-of-00001.array_record", records)
    return str(folder)


def test_report_on_stored_features(run, folder, shards, tmp_path):
    run("--view", "left")
    expected = read_report(tmp_path)
    (folder / "features").mkdir()
    stored = store_latents(folder / "features", shards)
    only = write_weights(tmp_path / "only", {"action_predictor": NETWORKS["action_predictor"]})
    status, _, error = run(paths=[stored], model=only)
    assert status == 0, error
    report = read_report(tmp_path)
    for mode, rows in expected["errors"].items():
        for row, found in rows.items():
            np.testing.assert_allclose(report["errors"][mode][row]["value"], found["value"], rtol=2e-2)
    assert (tmp_path / "out" / "report.png").stat().st_size > 10_000


@pytest.mark.parametrize("change, message", [
    ({"sha256": "f" * 64}, "encoder sha256 ffffffffffff.* wanted: .* encoder sha256 " + SHA256[:12]),
    ({"crop": (32, 1.0, 1.0)}, r"aspect 1 to 1; wanted: .* aspect 0\.75 to 1\.35"),
])
def test_features_of_another_origin(run, shards, tmp_path, change, message):
    (tmp_path / "features").mkdir()
    status, _, error = run(paths=[store_latents(tmp_path / "features", shards, **change)])
    assert status == 2
    assert re.search(message, error), error


def test_weights_that_say_nothing(run, tmp_path):
    """As .pt files of the official code: taken for DROID's robot where the dimensions allow, with a note."""
    native.write(Bundle(NETWORKS, Preprocessing(32, 36, 4)), str(tmp_path / "official"))
    status, out, _ = run(model=tmp_path / "official")
    assert status == 0
    assert "note: the weights do not say what they were trained on: taken for robot 'droid' at 4 frames per second, view left" in out
    other = ActionPredictor(24, 32, 1, 2, action_dim=2, state_dim=3, grid=(4, 4))
    networks = NETWORKS | {"action_predictor": random_network(other, 0)}
    native.write(Bundle(networks, Preprocessing(32, 36, 4)), str(tmp_path / "other"))
    status, _, error = run(model=tmp_path / "other")
    assert status == 2 and "do not say which robot they are of: states of 3 numbers, actions of 2; name it" in error
    status, _, error = run("--robot", "droid", model=tmp_path / "other")
    assert status == 2 and "action_dim of the robot 'droid' is 7, that of the action predictor 2" in error


def test_encoder_from_elsewhere(run, model, tmp_path):
    only = write_weights(tmp_path / "only", {"action_predictor": NETWORKS["action_predictor"]})
    status, _, error = run(model=only)
    assert status == 2 and "these weights have no encoder; they hold: action_predictor" in error
    assert run("--encoder", model, model=only)[0] == 0
    wrong = write_weights(tmp_path / "wrong", {"encoder": random_network(ENCODER, 9)})
    status, _, error = run("--encoder", wrong, model=only)
    assert status == 2 and f"trained on the encoder with sha256 {SHA256[:12]}..., the one given is " in error


@pytest.mark.parametrize("arguments, message", [
    (["--robot", "se2"], "the weights and the robot that is given describe different robots; name: 'droid', 'se2'"),
    (["--view", "top"], "no view 'top'|'top'"),
    (["--extra", "box_position"], "no extra box_position; the record has none"),
    (["--horizon", "40"], "41 frames at 5/s are 3 apart and need more than 123"),
    (["--encoder", "nowhere"], "nowhere does not exist"),
])
def test_refusals(run, arguments, message):
    status, _, error = run(*arguments)
    assert status == 2
    assert any(text in error for text in message.split("|")), error


def test_weights_without_an_action_predictor(run, tmp_path):
    path = write_weights(tmp_path / "encoder", {"target_encoder": NETWORKS["target_encoder"]})
    status, _, error = run(model=path)
    assert status == 2 and "these weights have no action_predictor; they hold: target_encoder" in error


def test_fewer_samples_than_asked_and_too_many_skips(run, tmp_path):
    status, out, error = run("--samples", "500", "--max-skip-fraction", "0.1")
    report = read_report(tmp_path)
    assert 2 * TRAJECTORIES < report["samples"] < 500
    assert f"note: {report['samples']} samples instead of 500: the data hold no more different ones" in out
    assert status == 1 and "14.3% of the trajectories that were looked at were skipped" in out


def test_another_robot_is_named(run, tmp_path):
    robot = dataclasses.replace(DROID, state_names=("q1", *DROID.state_names[1:]))
    status, _, error = run(model=write_weights(tmp_path / "joints", robot=robot.to_json()))
    assert status == 2 and "state_names[0]: found 'x'; robot 'droid' needs 'q1'" in error


def test_stopped(run, tmp_path, monkeypatch):
    def stop(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate, "measure", stop)
    status, _, error = run()
    assert status == 130 and error.endswith("stopped; no report was written\n")
    assert not list((tmp_path / "out").glob("report*"))


def test_one_trajectory_is_not_enough(run, shards, tmp_path):
    source = ShardSource([shards], "trajectory")
    (tmp_path / "one").mkdir()
    write_shard(tmp_path / "one" / "set-00000-of-00001.array_record", [source[len(source) - 1]])
    status, _, error = run(paths=[str(tmp_path / "one")])
    assert status == 2 and "trajectories that can be used: 1; a comparison needs at least 2" in error


def test_extras_are_read_off(run, shards, tmp_path):
    source = ShardSource([shards], "trajectory")
    (tmp_path / "extras").mkdir()
    records = [source[number] for number in range(SHORT, len(source))]
    records = [record._replace(extras={"box_position": record.states[:, :3]}) for record in records]
    write_shard(tmp_path / "extras" / "set-00000-of-00001.array_record", records)
    status, out, error = run("--decode", "--extra", "box_position", paths=[str(tmp_path / "extras")])
    assert status == 0, error
    positions = read_report(tmp_path)["positions"]
    # The same numbers under two names, found by one readout.
    assert list(positions) == ["position", "box_position"] and positions["position"]["fitted_frames"] > 12
    gripper, box = (found["errors"] for found in positions.values())
    assert gripper["mean_position"] == box["mean_position"] and gripper["true_latents"] != gripper["mean_position"]
    np.testing.assert_allclose(gripper["true_latents"]["value"], box["true_latents"]["value"], rtol=0.1)
    assert "box_position, median error (cm), step" in out


def test_the_readout_can_be_fitted_on_other_trajectories(run, shards, tmp_path):
    status, _, error = run("--decode", "--fit", shards, "--fit-samples", "6")
    assert status == 0, error
    found = read_report(tmp_path)["positions"]["position"]
    assert found["fitted_frames"] == 12 and found["fitted_trajectories"] == 6
    assert found["tested_trajectories"] == read_report(tmp_path)["trajectories"]
    status, _, error = run("--decode", "--fit", str(tmp_path / "nothing"))
    assert status == 2 and "nothing" in error


def test_controls_are_written_and_nothing_is_overwritten(model, tmp_path, capsys):
    command = ["controls", "--model", str(model), "--output", str(tmp_path / "controls")]
    assert evaluate.main(command) == 0
    for kind in ("random", "patches"):
        (encoder,) = store.read(tmp_path / "controls" / kind, verify=True).networks
        assert encoder == "encoder"
    assert evaluate.main(command) == 2
    assert "exists already" in capsys.readouterr().err
