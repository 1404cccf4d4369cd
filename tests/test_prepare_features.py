"""Features of trajectories stored once: the numbers that encoding in every step gives, resumable, keyed, refused."""

import functools
import json
import os
import re
import signal
import subprocess
import sys
import time

import jax
import ml_dtypes
import numpy as np
import pytest
import robots
from array_record.python import array_record_module
from compiling import fast_jit
from weight_bundles import random_network

import jepa_jax
from configs import world_model as configs
from jepa_jax import inspect, prepare
from jepa_jax.data import DataError, ShardSource
from jepa_jax.data.records import WRITER_OPTIONS, encode_record
from jepa_jax.features.spread import SpreadModel
from jepa_jax.models import VideoEncoder
from jepa_jax.models.spec import init_params
from jepa_jax.robots.world import WorldModel
from jepa_jax.tasks import robot_data, world_model
from jepa_jax.training import sharding
from jepa_jax.weights import native
from jepa_jax.weights.bundle import Bundle, Preprocessing

SMALL = {
    "data.size": 32, "data.frames": 4, "rollout.auto_steps": 2, "data.fps": 5.0, "data.batch_size": 4, "data.workers": 0, "data.threads": 0,
    "model.predictor.width": 32, "model.predictor.depth": 1, "model.predictor.num_heads": 2, "optim.total_steps": 1,
    "optim.warmup_steps": 0, "optim.anneal_steps": 1, "log.monitor_tokens": 64,
}
COUNT, LENGTH, STEP = 5, 30, 3
VIEWS = ("left", "wrist")
TOKEN_SHAPE = (16, 24)


def write_encoder(folder, seed):
    encoder = VideoEncoder(width=24, depth=1, num_heads=2, patch_size=8)
    native.write(Bundle({"target_encoder": random_network(encoder, seed)}, Preprocessing(32, 36, 4)), folder)
    return str(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("features")


@pytest.fixture(scope="module")
def encoder(folder):
    return write_encoder(folder / "encoder", 0)


@pytest.fixture(scope="module")
def other_encoder(folder):
    return write_encoder(folder / "other encoder", 1)


@pytest.fixture(scope="module")
def videos(folder):
    """Shards of trajectories with frames."""
    for number in range(COUNT):
        robots.write_droid(folder / "raw" / str(number), LENGTH + number, seed=number, views=VIEWS)
    assert prepare.main(["droid", str(folder / "raw"), "--output", str(folder / "videos"), "--views", ",".join(VIEWS),
                         "--per-shard", "2", "--workers", "0"]) == 0
    return str(folder / "videos")


def arguments(videos, encoder, output, *more):
    return ["features", videos, "--model", encoder, "--output", str(output), "--size", "32", "--fps", "5",
            "--batch", "16", "--per-shard", "1", "--workers", "0", *more]


@pytest.fixture(scope="module")
def stored(videos, encoder, folder):
    """Shards of features of every row."""
    assert prepare.main(arguments(videos, encoder, folder / "stored", "--all-frames")) == 0
    return str(folder / "stored")


def make_config(paths, encoder="", **fields):
    config = configs.get_config("demo")
    config.update_from_flattened_dict(SMALL | {"encoder": encoder, "data.paths": tuple(paths)})
    config.data.weights = (1.0,) * len(paths)
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
    return config.lock()


def open_pipeline(config):
    sources = robot_data.open_trajectories(config)
    robot, record = robot_data.make_robot(config, sources)
    return world_model.make_pipeline(config, robot, world_model.find_features(config, sources, record))


def rewrite(source, folder, change):
    """Write the records of shards again, each changed by a function of (number, record)."""
    source = ShardSource([source], "trajectory")
    folder.mkdir()
    writer = array_record_module.ArrayRecordWriter(str(folder / "part-00000-of-00001.array_record"), WRITER_OPTIONS)
    for number in range(len(source)):
        writer.write(encode_record(change(number, source[number])))
    writer.close()
    return str(folder)


def report_of(folder):
    return json.loads((folder / "features-report.json").read_text())


def test_training_reads_what_it_would_compute(videos, stored, encoder):
    # Every row is stored, so both draw the same windows.
    config = make_config([videos], encoder)
    (frames, _), (features, _) = (open_pipeline(c).batch_at(0) for c in (config, make_config([stored], encoder)))
    assert set(frames) ^ set(features) == {"video", "latents"}
    for name in ("states", "actions"):
        np.testing.assert_array_equal(features[name], frames[name])
    model, params = jepa_jax.load(encoder)
    tokens = model.encode(params, frames["video"].reshape(-1, 1, 32, 32, 3)).tokens
    assert features["latents"].dtype == ml_dtypes.bfloat16 and features["latents"].std() > 0.1
    found = features["latents"].astype(np.float32).reshape(-1, *TOKEN_SHAPE)
    expected = np.asarray(tokens).astype(ml_dtypes.bfloat16).astype(np.float32)
    # Programs for other batches add in another order: a value at the border of two may be rounded to either.
    np.testing.assert_allclose(found, expected, rtol=2**-7, atol=1e-6)
    assert (found != expected).mean() < 2e-3


def test_losses_agree(videos, stored, encoder):
    losses = []
    for paths in (videos, stored):
        config = make_config([paths], encoder)
        sources = robot_data.open_trajectories(config)
        robot, record = robot_data.make_robot(config, sources)
        features = world_model.find_features(config, sources, record)
        predictor = world_model.make_predictor(config.model, features, robot)
        module = features.bundle.networks["target_encoder"].module if paths == videos else None
        frozen = {"encoder": features.bundle.networks["target_encoder"].params} if module else {}
        loss_fn = world_model.make_loss(WorldModel(predictor, robot, module), config.rollout, frames_at_once=4,
                                        loss_exponent=1.0, monitor_tokens=64)
        params = {"action_predictor": fast_jit(functools.partial(init_params, predictor))(jax.random.key(0))}
        batch, _ = world_model.make_pipeline(config, robot, features).batch_at(0)
        losses.append(float(fast_jit(loss_fn)(params, frozen, batch)[0]))
    assert losses[1] == pytest.approx(losses[0], rel=2e-3)


def test_a_task_needs_no_encoder(stored, encoder, tmp_path):
    mesh = sharding.make_mesh(1, jax.devices()[:1])
    with sharding.use_mesh(mesh):
        task = world_model.make_task(make_config([stored]), mesh)
    assert task.frozen == {} and any("latents stored in the shards" in line for line in task.summary)
    task.write_frozen(tmp_path)
    assert not list(tmp_path.iterdir())
    assert task.model_card["world_model"]["encoder_sha256"] == jepa_jax.load(encoder)[0].sha256["encoder"]


@pytest.mark.parametrize("more, offsets", [((), [0]), (("--phases", "2"), [0, 1]), (("--phases", "9"), [0, 1, 2])])
def test_rows_and_numbers(videos, encoder, tmp_path, more, offsets):
    assert prepare.main(arguments(videos, encoder, tmp_path, "--views", "wrist", *more)) == 0
    source, original = ShardSource([str(tmp_path)], "trajectory"), ShardSource([videos], "trajectory")
    assert len(source) == len(original) == COUNT
    for number in range(COUNT):
        record, before = source[number], original[number]
        (view,) = record.views
        assert view.name == "wrist" and view.data == b"" and (view.height, view.width) == (64, 96)
        assert view.latents.frames == tuple(n for n in range(before.num_frames) if n % STEP in offsets)
        assert view.latents.num_bytes == len(view.latents.frames) * np.prod(TOKEN_SHAPE) * 2
        np.testing.assert_array_equal(record.states, before.states)
        np.testing.assert_array_equal(view.extrinsics, before.views[1].extrinsics)
        assert record._replace(views=(), states=None) == before._replace(views=(), states=None)
    batch, notes = open_pipeline(make_config([str(tmp_path)])).batch_at(0)
    assert batch["latents"].shape == (4, 4, *TOKEN_SHAPE) and not notes.skips


def test_report_and_dry_run(videos, encoder, tmp_path, capsys):
    assert prepare.main(arguments(videos, encoder, tmp_path / "out", "--dry-run")) == 0
    assert not (tmp_path / "out").exists()
    frames = 2 * sum(-(-(LENGTH + number) // STEP) for number in range(COUNT))
    size = frames * np.prod(TOKEN_SHAPE) * 2
    said = capsys.readouterr().out
    assert f"{COUNT} trajectories: {frames} frames, {size / 1e3:.3g} kB of 4x4 tokens of 24" in said and "free in" in said
    assert prepare.main(arguments(videos, encoder, tmp_path / "out")) == 0
    report = report_of(tmp_path / "out")
    assert (report["written"], report["frames"], report["feature_bytes"]) == (COUNT, frames, size)
    assert report["bytes_per_clip"] == 8 * np.prod(TOKEN_SHAPE) * 2 and report["hours"] > 0
    assert report["this_run"]["frames"] == frames and report["this_run"]["frames_per_s"] > 0
    assert 0 < report["this_run"]["wait_share"] < 1
    assert f"{frames} frames at" in capsys.readouterr().out


def test_workers_and_batch_change_nothing(videos, encoder, stored, tmp_path):
    argv = arguments(videos, encoder, tmp_path, "--all-frames")
    argv[argv.index("--workers") + 1], argv[argv.index("--batch") + 1] = "2", "24"
    assert prepare.main(argv) == 0
    for one, other in zip(*(ShardSource([folder], "trajectory") for folder in (str(tmp_path), stored)), strict=True):
        for view, same in zip(one.views, other.views, strict=True):
            rows, expected = (v.latents.rows(v.latents.frames).astype(np.float32) for v in (view, same))
            # Another batch may round the last bit of float32 otherwise, and a bit of bfloat16 with it.
            np.testing.assert_allclose(rows, expected, rtol=2**-7)


def test_a_killed_run_is_finished_by_the_same_command(videos, encoder, stored, tmp_path):
    argv = arguments(videos, encoder, tmp_path, "--all-frames")
    process = subprocess.Popen([sys.executable, "-m", "jepa_jax.prepare", *argv], stderr=subprocess.PIPE)
    first = tmp_path / f"features-00000-of-{COUNT:05d}.frames.array_record"
    while not first.exists() and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()
    left = sorted(tmp_path.glob("*.array_record"))
    assert 1 <= len(left) < COUNT
    (tmp_path / f"features-00004-of-{COUNT:05d}.array_record.12345678.tmp").write_bytes(b"half")
    times = {path: os.stat(path).st_mtime_ns for path in left}
    assert prepare.main(argv) == 0
    assert {path: os.stat(path).st_mtime_ns for path in left} == times
    assert not list(tmp_path.glob("*.tmp"))
    done, whole = (ShardSource([str(path)], "trajectory") for path in (tmp_path, stored))
    assert [record.source_id for record in done] == [record.source_id for record in whole]
    assert report_of(tmp_path)["frames"] == 2 * sum(LENGTH + number for number in range(COUNT))


@pytest.mark.parametrize("change, message", [
    ({"model": True}, "spec.encoder_sha256 '[0-9a-f]{64}' -> '[0-9a-f]{64}'"),
    ({"--fps": "4"}, "spec.fps 5.0 -> 4.0"),
    ({"--size": "24"}, "spec.size 32 -> 24"),
    ({"--crop-aspect": "1"}, r"spec.aspect \[0.75, 1.35\] -> \[1.0, 1.35\]"),
    ({"--phases": "2"}, "spec.phases 0 -> 2"),
    ({"--views": "left"}, r"spec.views \[\] -> \['left'\]"),
])
def test_other_settings_in_the_same_folder_are_refused(videos, encoder, other_encoder, stored, capsys, change, message):
    argv = arguments(videos, other_encoder if change.pop("model", False) else encoder, stored)
    if "--phases" not in change:
        argv.append("--all-frames")
    for name, value in change.items():
        argv += [name, value, "1.35"] if name == "--crop-aspect" else [name, value]
    before = sorted(os.listdir(stored))
    assert prepare.main(argv) == 2
    assert sorted(os.listdir(stored)) == before
    error = capsys.readouterr().err
    assert re.search(message, error), error


def test_unusable_input_is_refused_before_work(videos, encoder, stored, tmp_path, capsys):
    for source, more, message in (
        (stored, (), "holds features (4x4 tokens of 24"),
        (videos, ("--views", "top"), "no view top; there are left, wrist"),
        (videos, ("--size", "30"), "height of a clip is 30; it must be a multiple of patch_size, 8"),
        (videos, ("--crop-aspect", "2", "1"), "--crop-aspect 2 1: the first number must not be above the second"),
        (str(tmp_path), (), "no shards found"),
    ):
        assert prepare.main([*arguments(source, encoder, tmp_path / "out"), *more]) == 2
        assert message in capsys.readouterr().err
    assert prepare.main(arguments(videos, str(tmp_path / "nothing"), tmp_path / "out")) == 2
    assert "nothing does not exist" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_bad_trajectories_are_counted_and_bounded(videos, encoder, tmp_path, capsys):
    def damage(number, record):
        view = record.views[1]
        changed = {1: view._replace(data=view.data[: len(view.data) // 2]), 3: view._replace(name="top")}
        return record._replace(views=(record.views[0], changed.get(number, view)))

    source = rewrite(videos, tmp_path / "damaged", damage)
    argv = arguments(source, encoder, tmp_path / "out", "--views", "left,wrist")
    assert prepare.main(argv) == 1
    report = report_of(tmp_path / "out")
    assert report["written"] == COUNT - 2 and report["skips_by_reason"]["missing view"] == 1
    assert {skip["path"].rpartition("#")[2] for skip in report["skips"]} == {"1", "3"}
    assert any("raw/1, view 'wrist'" in skip["message"] for skip in report["skips"])
    assert "more than --max-skip-fraction 0.1" in capsys.readouterr().out
    assert prepare.main([*argv, "--max-skip-fraction", "0.5"]) == 0


def test_too_little_memory_is_explained(videos, encoder, tmp_path, capsys, monkeypatch):
    def full(*args):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setattr(SpreadModel, "encode", full)
    assert prepare.main(arguments(videos, encoder, tmp_path / "out")) == 2
    assert "too little memory for this; lower --batch" in capsys.readouterr().err


def test_a_full_disk_is_explained(videos, encoder, tmp_path, capsys, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jepa_jax.data.shards.encode_record", full)
    assert prepare.main(arguments(videos, encoder, tmp_path / "out")) == 2
    assert "No space left on device" in capsys.readouterr().err


@pytest.mark.parametrize("fields, message", [
    ({"data__size": 40}, r"crops .* \(32, 0.75, 1.35\), the config says \(40, 0.75, 1.35\)"),
    ({"data__crop_aspect": (1.0, 1.0)}, r"the config says \(32, 1.0, 1.0\) \(data.size, data.crop_aspect\)"),
    ({"data__crop_scale": (0.3, 1.0)}, "random crops, but the shards hold latents of the centered one"),
    ({"data__views": ("top",)}, "no view 'top'"),
])
@pytest.mark.parametrize("with_encoder", [False, True])
def test_configs_that_do_not_fit_the_features(stored, encoder, fields, message, with_encoder):
    with pytest.raises((ValueError, DataError), match=message):
        open_pipeline(make_config([stored], encoder if with_encoder else "", **fields))


def test_shards_that_do_not_fit(videos, encoder, other_encoder, stored, tmp_path):
    with pytest.raises(ValueError, match="latents of the encoder with sha256 .* but config.encoder .*other encoder is"):
        open_pipeline(make_config([stored], other_encoder))
    assert prepare.main(arguments(videos, encoder, tmp_path / "slow")) == 0
    with pytest.raises(ValueError, match="rows 0, 3, 6, .* make them with `prepare features --fps 15`"):
        open_pipeline(make_config([str(tmp_path / "slow")], encoder, data__fps=15.0))
    assert prepare.main(arguments(videos, other_encoder, tmp_path / "foreign")) == 0
    for paths, message in (
        ([stored, videos], "stored holds features .4x4 tokens of 24, .*videos frames: all data.paths must be of one"),
        ([videos, stored], "videos holds frames, .*stored features .4x4"),
        ([stored, str(tmp_path / "foreign")], "foreign features .*: all data.paths must be of one kind"),
    ):
        with pytest.raises(ValueError, match=message):
            open_pipeline(make_config(paths, encoder))
    next((tmp_path / "slow").glob("features-00001*")).unlink()
    with pytest.raises(FileNotFoundError, match="1 of 5 shards of 'features' are missing"):
        open_pipeline(make_config([str(tmp_path / "slow")], encoder))


def test_odd_records_among_features_are_replaced(videos, other_encoder, encoder, stored, tmp_path):
    assert prepare.main(arguments(videos, other_encoder, tmp_path / "foreign", "--all-frames")) == 0
    originals, foreign = (ShardSource([path], "trajectory") for path in (videos, str(tmp_path / "foreign")))
    others = {1: originals[1], 2: foreign[2]}
    mixed = rewrite(stored, tmp_path / "mixed", lambda number, record: others.get(number, record))
    pipeline = open_pipeline(make_config([mixed], encoder))
    skips = [skip for step in range(6) for skip in pipeline.batch_at(step)[1].skips]
    assert {(skip.source_id[-1], skip.reason) for skip in skips} == {("1", "no features"), ("2", "other features")}


def test_features_are_no_video(stored):
    with pytest.raises(DataError, match="holds features instead of frames") as caught:
        ShardSource([stored])[0]
    assert caught.value.reason == "no frames"


def test_inspect_shows_features(stored, tmp_path, capsys):
    assert inspect.main([stored, "--workers", "0", "--output", str(tmp_path / "pictures")]) == 0
    said = capsys.readouterr().out
    assert "features instead of frames: 4x4 tokens of 24, encoder sha256" in said
    frames = 2 * sum(LENGTH + number for number in range(COUNT))
    assert f"{frames} frames of {COUNT} trajectories" in said and "integrity: every record" in said
    assert not (tmp_path / "pictures" / "contact_sheet.png").exists()
    (found,) = json.loads((tmp_path / "pictures" / "inspect.json").read_text())["features"]
    assert found["frames"] == frames and found["grid"] == [4, 4]


def test_inspect_finds_numbers_that_are_not_finite(stored, tmp_path, capsys):
    def damage(number, record):
        view = record.views[0]
        tokens = view.latents.rows(view.latents.frames).reshape(-1).copy()
        tokens[-1] = np.nan if number else tokens[-1]
        view = view._replace(latents=view.latents._replace(tokens=tokens.tobytes()))
        return record._replace(views=(view, *record.views[1:]))

    assert inspect.main([rewrite(stored, tmp_path / "damaged", damage), "--workers", "0"]) == 1
    assert f"damaged, not finite: {COUNT - 1}" in capsys.readouterr().out
