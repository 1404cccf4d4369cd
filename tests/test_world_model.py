"""Action-conditioned training end to end: raw robot data through prepare, train, resume and load."""

import dataclasses
import json

import jax
import media
import numpy as np
import pytest
import robots
from compiling import fast_jit
from weight_bundles import random_network

import jepa_jax
from configs import world_model as configs
from jepa_jax import prepare
from jepa_jax.data import ClipRecord, DataError, ShardSource, SkipCounter
from jepa_jax.models import VideoEncoder
from jepa_jax.models.flops import total_flops
from jepa_jax.robots.spec import RobotSpec
from jepa_jax.tasks import continuing, recordings, robot_data, world_model
from jepa_jax.training import loop, sharding
from jepa_jax.viz import __main__ as viz
from jepa_jax.viz import curves
from jepa_jax.weights import native, store
from jepa_jax.weights.bundle import Bundle, Preprocessing, WeightsError

STEPS = 4
SMALL = {
    "data.size": 32, "data.frames": 4, "rollout.auto_steps": 2, "data.fps": 5.0, "data.batch_size": 4, "data.workers": 0, "data.threads": 0,
    "model.predictor.width": 32, "model.predictor.depth": 2, "model.predictor.num_heads": 2, "optim.total_steps": STEPS,
    "optim.warmup_steps": 1, "optim.anneal_steps": 1, "checkpoint.every_steps": 2, "log.every_steps": 1,
    "log.monitor_tokens": 64, "data.crop_aspect": (0.75, 1.35),
}
ENCODER = VideoEncoder(width=24, depth=1, num_heads=2, patch_size=8)


def write_encoder(folder, seed=0, module=ENCODER):
    """Write a random encoder in our format; returns the path."""
    bundle = Bundle({"target_encoder": random_network(module, seed)}, Preprocessing(32, 36, 4))
    native.write(bundle, folder)
    return str(folder)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return write_encoder(tmp_path_factory.mktemp("weights") / "encoder")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Shards of three trajectories in DROID's raw layout."""
    folder = tmp_path_factory.mktemp("droid")
    for number in range(3):
        robots.write_droid(folder / "raw" / str(number), 30 + number, seed=number, views=("left", "wrist"))
    assert prepare.main(["droid", str(folder / "raw"), "--output", str(folder / "shards"), "--workers", "0"]) == 0
    return str(folder / "shards")


@pytest.fixture(scope="module")
def config(encoder, shards):
    config = configs.get_config("demo")
    # Tokens, as in released weights, so that there are weights for extrinsics that nobody uses.
    tokens = {"model.predictor.conditioning": "tokens"}
    config.update_from_flattened_dict(SMALL | tokens | {"encoder": encoder, "data.paths": (shards,)})
    return config.lock()


def changed(config, **fields):
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
    return config


def make_task(config, devices=1):
    mesh = sharding.make_mesh(1, jax.devices()[:devices])
    with sharding.use_mesh(mesh):
        return world_model.make_task(config, mesh), mesh


def train(config, workdir, total_steps=STEPS, devices=1):
    """Train in this process; returns the final state on the host."""
    task, mesh = make_task(config, devices)
    skips = SkipCounter(0.1)
    return jax.device_get(loop.train(task, skips, mesh, workdir, config=config, total_steps=total_steps))


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    return workdir, train(config, workdir)


def metrics_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_resumed_run_equals_uninterrupted_bit_for_bit(config, finished, tmp_path):
    train(config, tmp_path, total_steps=2)
    jax.tree.map(np.testing.assert_array_equal, train(config, tmp_path), finished[1])
    keys = ("step", "train/loss", "train/loss/teacher_forcing", "train/loss/rollout", "train/copy_last", "optim/lr")
    rows, expected = ([[row[key] for key in keys] for row in metrics_of(folder)] for folder in (tmp_path, finished[0]))
    assert rows == expected and [row[0] for row in rows] == list(range(1, STEPS + 1))
    assert all(row[1] == pytest.approx(row[2] + row[3], rel=1e-6) for row in rows)


def test_only_the_predictor_is_trained_and_saved(config, finished):
    workdir, state = finished
    assert set(state.params) == {"action_predictor"} and not state.target_params
    task, _ = make_task(config)
    before = jax.device_get(jax.jit(task.init_state)(jax.random.key(config.seed))).params["action_predictor"]
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), before, state.params["action_predictor"])
    # The token for extrinsics is not used: its weights are left as they are, decay included.
    assert not any(jax.tree.leaves(moved.pop("extrinsics"))) and all(jax.tree.leaves(moved))
    saved = sum(leaf.size for leaf in jax.tree.leaves((state.params, state.opt_state)))
    assert saved < 3.1 * sum(leaf.size for leaf in jax.tree.leaves(state.params))


def test_a_run_is_a_model(config, encoder, finished):
    model, params = jepa_jax.load(str(finished[0]))
    assert set(params) == {"encoder", "action_predictor"}
    assert model.sha256["encoder"] == jepa_jax.load(encoder)[0].sha256["encoder"]
    jax.tree.map(np.testing.assert_array_equal, params["action_predictor"], finished[1].params["action_predictor"])
    world = model.world_model
    assert world["robot"]["name"] == "droid" and (world["frames"], world["fps"]) == (4, 5.0)
    assert world["encoder_sha256"] == model.sha256["encoder"]
    # The videos are 96 x 64 pixels; bounds are those of the preset.
    assert world["short_side"] == 64 and world["robot"]["action_high"][0] == 0.075


def test_curves_of_a_world_model(finished, tmp_path, capsys):
    assert viz.main(["all", "--workdir", str(finished[0]), "--output", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"wrote {tmp_path}/curves.png\n"
    titles = [panel.get_title(loc="left") for panel in curves.draw_curves(curves.read_metrics(finished[0]), "x").axes]
    assert "Error against copying the last frame" in titles and "EMA of the target encoder" not in titles


def test_another_encoder_in_the_same_workdir_is_refused(config, finished, tmp_path):
    other = write_encoder(tmp_path / "other", seed=5)
    with pytest.raises(WeightsError, match="started with other frozen weights than these .*target_encoder differ"):
        train(changed(config, encoder=other, optim__total_steps=9), finished[0], 9)


@pytest.mark.parametrize("fps, seconds", [(5.0, 3 / 15), (4.0, 4 / 15), (6.0, 3 / 15)])
def test_the_card_says_how_long_an_action_lasts(config, fps, seconds):
    task, _ = make_task(changed(config, data__fps=fps))
    world = task.model_card["world_model"]
    assert world["fps"] == fps and world["step_seconds"] == pytest.approx(seconds, rel=1e-3)


def test_steps_of_sources_that_last_differently(config, shards, tmp_path, monkeypatch):
    for record in ShardSource([shards], "trajectory"):
        media.write_shard(tmp_path / "slow.array_record", [record._replace(control_rate=10.0)])
    said = []
    monkeypatch.setattr(recordings.logging, "warning", lambda text, *args: said.append(text % args))
    make_task(config)
    assert not said
    make_task(changed(config, data__paths=(shards, str(tmp_path)), data__weights=(1.0, 1.0)))
    assert len(said) == 1 and f"{shards}: 0.2, {tmp_path}: 0.3" in said[0]


def test_bounds_come_from_the_data_where_none_are_stated(config, shards, finished):
    task, _ = make_task(changed(config, robot__preset="generic"))
    (line,) = (line for line in task.summary if line.startswith("bounds for planning"))
    robot = RobotSpec.from_json(task.model_card["world_model"]["robot"])
    actions = np.concatenate([record.states[3:, [0, 1, 2, 6]] - record.states[:-3, [0, 1, 2, 6]] for record in ShardSource([shards], "trajectory")])
    low, high = np.quantile(actions[:, :3], (0.01, 0.99), axis=0)
    np.testing.assert_allclose(robot.action_low[:3], np.minimum(low, 0), rtol=1e-3)
    np.testing.assert_allclose(robot.action_high[:3], np.maximum(high, 0), rtol=1e-3)
    # Nothing that a gripper does is an exception.
    assert robot.action_high[6] == pytest.approx(max(actions[:, 3].max(), 0), rel=1e-3) and f"x {robot.action_low[0]:g} to" in line
    stated = {"robot__action_low": (-0.2,) * 7, "robot__action_high": (0.2,) * 7}
    other, _ = make_task(changed(config, robot__preset="generic", **stated))
    assert other.model_card["world_model"]["robot"]["action_low"] == [-0.2] * 7
    # They may be stated, and what is planned, in the middle of a run.
    task.check_card(finished[0], other.model_card, True)
    with pytest.raises(WeightsError, match="describe different robots"):
        make_task(config)[0].check_card(finished[0], other.model_card, True)


@pytest.mark.parametrize("fields, message", [
    ({"robot__frame": "tool"}, "checkpoints/4 and this config describe different robots; frame: 'base', 'tool'; go on with"),
    ({"data__crop_aspect": (1.0, 1.0)}, r"data.crop_aspect: \[0.75, 1.35\] in the checkpoint, \[1.0, 1.0\] in this config"),
    ({"model__predictor__num_heads": 4}, "action_predictor.num_heads: 2 in the weights, 4 in this config"),
])
def test_a_run_goes_on_as_the_model_that_it_was(config, finished, fields, message):
    """Tensors of these have the shapes of those that were saved."""
    with pytest.raises(WeightsError, match=message):
        train(changed(config, **fields), finished[0], total_steps=9)


def test_weights_of_another_robot_and_of_another_network(config, finished, tmp_path, monkeypatch):
    fields = {"start__mode": "weights", "start__checkpoint": str(finished[0]), "optim__total_steps": 1}
    with pytest.raises(WeightsError, match="action_predictor.rope_layout: 'tiled' in the weights, 'interleaved' in this"):
        train(changed(config, model__rope_layout="interleaved", **fields), tmp_path / "layout", total_steps=1)
    # To go over to another robot is what such weights are for.
    task, _ = make_task(changed(config, robot__absolute=("gripper",), **fields))
    said = []
    monkeypatch.setattr(continuing.logging, "warning", lambda text, *args: said.append(text % args))
    task.check_card(finished[0], make_task(config)[0].model_card, False)
    task.read_weights(str(finished[0]))
    assert sum("absolute: (), ('gripper',): the predictor has to learn these numbers anew" in line for line in said) == 2


def test_what_else_differs_from_the_weights_is_said(config, encoder, finished, tmp_path, monkeypatch):
    said = []
    # Orbax warns too, of how checkpoints are read.
    monkeypatch.setattr(continuing.logging, "warning",
                        lambda text, *args: ("trained" in text or "learn" in text) and said.append(text % args))
    other = write_encoder(tmp_path / "other", seed=5)
    fields = {"start__mode": "weights", "start__checkpoint": str(finished[0])}
    task, _ = make_task(changed(config, encoder=other, data__fps=3.0, **fields))
    then = make_task(config)[0].model_card
    task.check_card(finished[0], then, False)
    task.read_weights(str(finished[0]))
    assert len(said) == 2
    for line in said:
        assert "data.fps: 5.0 in the checkpoint, 3.0 in this config; the encoder's weights: " in line and "crop" not in line
    # Weights that say nothing are taken for the released ones, which were trained at 4 frames per second.
    said.clear()
    bundle = dataclasses.replace(store.read(str(finished[0])), world_model=None)
    native.write(bundle, tmp_path / "silent")
    make_task(config)[0].read_weights(str(tmp_path / "silent"))
    assert "does not say what it was trained on: taken for the released recipe, robot droid at 4 frames per second" in said[0]
    assert "action_scale: " in said[1] and "data.fps: 4.0 in the checkpoint, 5.0 in this config" in said[2] and "encoder" not in said[2]
    task.read_weights(str(tmp_path / "silent"))
    assert "the encoder's weights: " in said[-1]


def one_step(config, devices=1):
    """Return the metrics of the first step."""
    task, mesh = make_task(config, devices)
    with sharding.use_mesh(mesh), task.open_data(0, 1) as batches:
        state = fast_jit(task.init_state)(jax.random.key(config.seed))
        batch = sharding.put_batch(next(batches)[0], mesh)
        _, metrics, _ = fast_jit(task.train_step)(jax.device_put(state, sharding.replicated(mesh)), batch, task.frozen)
    return jax.device_get(metrics)


@pytest.mark.parametrize("fields, devices", [({}, 2), ({"optim__accumulate": 2}, 1)], ids=["devices", "parts"])
def test_devices_and_accumulation_change_nothing(config, finished, fields, devices):
    metrics = one_step(changed(config, **fields), devices)
    assert metrics["train/loss"] == pytest.approx(metrics_of(finished[0])[0]["train/loss"], rel=2e-5)


def test_continue_from_other_weights(config, finished, tmp_path):
    start = changed(config, start__mode="weights", start__checkpoint=str(finished[0]))
    task, _ = make_task(start)
    params, target = task.read_weights(str(finished[0]))
    jax.tree.map(np.testing.assert_array_equal, params, finished[1].params)
    assert target == {}
    with pytest.raises(WeightsError, match=r"action_predictor\.depth: 2 in the weights, 3 in this config"):
        make_task(changed(start, model__predictor__depth=3))[0].read_weights(str(finished[0]))


def test_clip_among_trajectories_is_skipped(config, shards, tmp_path):
    """At the start it is an error only where nothing else is found."""
    clip = ClipRecord("video", open(media.write_video(tmp_path / "a.mp4"), "rb").read(), 30.0, 48, 64, 96, "a.mp4")
    media.write_shard(tmp_path / "clip.array_record", [clip])
    for record in ShardSource([shards], "trajectory"):
        media.write_shard(tmp_path / f"{record.num_frames}.array_record", [record])
    task, _ = make_task(changed(config, data__paths=(str(tmp_path),)))
    with task.open_data(0, 4) as batches:
        skips = [skip for _, notes in batches for skip in notes.skips]
    assert {(skip.reason, skip.location) for skip in skips} == {("not a trajectory", f"{tmp_path}/clip.array_record#0")}
    with pytest.raises(DataError, match="is a clip of kind 'video', but robot trajectories are wanted"):
        make_task(changed(config, data__paths=(f"{tmp_path}/clip.array_record",)))


@pytest.mark.parametrize("fields, message", [
    ({"encoder": ""}, "encoder is not set: give --config.encoder=WEIGHTS"),
    ({"encoder": "nowhere"}, "nowhere does not exist"),
    ({"rollout__auto_steps": 4}, "rollout.auto_steps 4 must be from 1 to 3, as data.frames is 4"),
    ({"rollout__reduce": "max"}, "rollout.reduce 'max' is unknown"),
    ({"data__batch_size": 3, "optim__accumulate": 2}, "batch size 3 of group 'trajectory' is not a multiple of 2"),
    ({"data__views": ("top",)}, "view.*'top'"),
    ({"robot__preset": "se2", "robot__action_scale": (), "robot__state_scale": ()}, "found 7 numbers .* robot 'se2' needs 3 numbers"),
    ({"robot__preset": "panda"}, "robot preset is 'panda'; it must be one of droid, se2, generic"),
    ({"robot__action_low": (0.0,)}, "action_low is .* it must be .* 7 long"),
    ({"data__size": 30}, "30"),
    ({"data__frames": 1}, "auto_steps"),
    ({"data__frames": 20}, r"raw/0: 30 frames at 15/s; 20 frames at 5/s .* need more than 60 \(data.frames, data.fps\)"),
    ({"data__fps": 20.0}, r"raw/0: 15 frames per second were recorded, 20 are wanted.*\(data.frames, data.fps\)"),
    ({"model__predictor__conditioning": "film"}, "conditioning 'film' is unknown"),
    ({"model__predictor__merge": 3}, "merge is 3; it must be at least 1, and divide both sides of the grid of 4 x 4 tokens"),
    ({"energy__weight": -1.0}, "energy.weight is -1; it must be at least 0"),
    ({"energy__distance_head": "nowhere.safetensors"}, "nowhere.safetensors does not exist"),
])
def test_bad_settings_are_refused_before_anything_is_compiled(config, fields, message):
    with pytest.raises((ValueError, DataError), match=message):
        make_task(changed(config, **fields))


def rewrite(shards, path, change):
    """Write the trajectories of shards into one shard, each changed by a function; returns its path."""
    return media.write_shard(path, [change(record) for record in ShardSource([shards], "trajectory")])


def test_recorded_actions_are_looked_at_in_every_source(config, shards, tmp_path):
    def record_actions(act, names):
        return lambda record: record._replace(
            actions=np.float32(act(record.states)), action_names=names, action_units=("",) * len(names))

    changes, targets = lambda states: np.diff(states, axis=0, append=states[-1:]), lambda states: np.concatenate([states[1:], states[-1:]])
    names = tuple(f"action.{place}" for place in range(7))
    good = rewrite(shards, tmp_path / "good.array_record", record_actions(changes, names))
    bad = rewrite(shards, tmp_path / "bad.array_record", record_actions(targets, names))
    recorded = changed(config, robot__preset="generic", robot__source="recorded", data__paths=(good, bad), data__weights=(0.5, 0.5))
    with pytest.raises(DataError, match=r"bad.array_record: recorded actions .* follow the state itself.* Set --config.robot.mode=absolute"):
        make_task(recorded)
    robot, _, _ = open_robot(changed(recorded, data__paths=(good, good)))
    assert robot.integrable and open_robot(changed(recorded, robot__mode="absolute", data__paths=(bad, bad)))
    # Steps of joints beside a pose: told in other names, they change no state.
    other = rewrite(shards, tmp_path / "other.array_record", record_actions(changes, tuple(f"joint_{n}" for n in "abcdefg")))
    other = changed(recorded, data__paths=(other,), data__weights=(1.0,))
    lines = make_task(other)[0].summary
    assert any("states ahead cannot be computed from actions" in line and "--config.robot.action_layout=states" in line for line in lines)
    with pytest.raises(ValueError, match="rollout.integrate_states is set, but actions of robot 'generic' are not laid out"):
        make_task(changed(other, rollout__integrate_states=True))


def test_several_views_are_said_and_warned_of(config, shards, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(robot_data.logging, "warning", lambda text, *args: said.append(text % args))
    both = rewrite(shards, tmp_path / "both.array_record", lambda record: record._replace(
        views=(record.views[0], record.views[0]._replace(name="wrist"))))
    mixed = changed(config, data__paths=(shards, both), data__weights=(0.5, 0.5))
    lines = make_task(changed(mixed, data__paths=(both, shards)))[0].summary
    assert "views: one of left, wrist for every clip" in lines
    assert "states ahead are computed from actions, in open loop and in plans" in lines
    (warning,) = said
    assert warning.startswith(f"{both}: every clip is of any of the cameras left, wrist")
    assert "--config.data.views=\"('left',)\"" in warning and "--views left" in warning
    for fields in ({"data__views": ("left",)}, {"data__paths": (shards, shards)}, {"model__predictor__use_extrinsics": True}):
        few = changed(mixed, **fields)
        robot_data.warn_of_mixed_views(few, robot_data.open_trajectories(few))
    assert len(said) == 1 and "views: left" in make_task(config)[0].summary


@pytest.mark.parametrize("place", [0, 1])
def test_sources_without_records_are_refused(config, shards, tmp_path, place):
    paths = [shards, media.write_shard(tmp_path / "empty.array_record", [])]
    with pytest.raises(DataError, match="the shards at .*empty.array_record hold no records") as error:
        make_task(changed(config, data__paths=tuple(paths[::-1] if place == 0 else paths), data__weights=(0.5, 0.5)))
    assert error.value.reason == "empty source"


@pytest.mark.parametrize("fields", [
    {"robot__preset": "generic"},
    {"robot__frame": "camera", "data__views": ("left",), "model__predictor__use_extrinsics": True},
    {"model__predictor__conditioning": "adaln", "rollout__auto_steps": 3, "rollout__detach": True},
    {"rollout__integrate_states": True, "rollout__auto_steps": 3, "rollout__reduce": "sum"},
    {"rollout__auto_steps": 1, "robot__action_scale": (0.1,) * 7},
], ids=["generic", "camera", "adaln", "integrated", "one step"])
def test_options_train(config, fields):
    metrics = one_step(changed(config, **fields))
    assert np.isfinite(metrics["train/loss"]) and metrics["guard/applied"]


def test_bad_trajectories_are_named_and_replaced(config, tmp_path):
    for number in range(2):
        robots.write_droid(tmp_path / "raw" / str(number), 30, seed=number, views=("left",))
    short = robots.write_droid(tmp_path / "raw" / "short", 9, views=("left",))
    degrees = robots.smooth_states(30)[:, :6] * [1, 1, 1, 57, 57, 57]
    robots.write_droid(tmp_path / "raw" / "degrees", 30, views=("left",), cartesian_position=degrees)
    assert len(short) == 9
    prepare.main(["droid", str(tmp_path / "raw"), "--output", str(tmp_path / "shards"), "--workers", "0",
                  "--max-skip-fraction", "1"])
    config = changed(config, data__paths=(str(tmp_path / "shards"),))
    pipeline = world_model.make_pipeline(config, *_robot_and_features(config))
    skips = [skip for step in range(4) for skip in pipeline.batch_at(step)[1].skips]
    assert "too short" in {skip.reason for skip in skips} and all(skip.source_id for skip in skips)


def test_abstract_batch_is_that_of_the_data(config):
    robot, features = _robot_and_features(config)
    batch, _ = world_model.make_pipeline(config, robot, features).batch_at(0)
    describe = lambda x: (x.shape, np.dtype(x.dtype))
    assert jax.tree.map(describe, world_model.abstract_batch(config, robot, features)) == jax.tree.map(describe, batch)


def test_a_program_without_data_and_weights_is_that_of_the_task(config):
    """Same parameters, same shapes, same operations: only the values are missing."""
    task, mesh = make_task(config)
    robot, features, encoder, frozen = world_model.describe_run(config, ENCODER)
    program = world_model.make_program(config, robot, features, encoder, {}, mesh)
    assert total_flops(program.passes) == task.flops_per_step
    assert [f"parameter {name}" for name in program.tensor_names] == task.tensor_names[: len(program.tensor_names)]
    describe = lambda x: (x.shape, np.dtype(x.dtype))
    assert jax.tree.map(describe, frozen) == jax.tree.map(describe, task.frozen)


def _robot_and_features(config):
    robot, record, sources = open_robot(config)
    return robot, world_model.find_features(config, sources, record)


def open_robot(config):
    sources = robot_data.open_trajectories(config)
    return *robot_data.make_robot(config, sources), sources
