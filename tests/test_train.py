"""The train loop end to end, on real encoded video: start, stop, resume, refuse."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import jax
import media
import numpy as np
import pytest
from absl import logging
from configs import cooldown, pretrain
from jepa_jax.bench import lowerable
from jepa_jax.data import DataError, SkipCounter
from jepa_jax.data.records import resolve_shards
from jepa_jax.tasks import pretrain as pretrain_task
from jepa_jax.tasks.pretrain import make_task
from jepa_jax.training import checkpoint, loop, sharding
from jepa_jax.weights import store

ROOT = pathlib.Path(__file__).resolve().parents[1]
STEPS = 6
SMALL = {
    "data.size": 64, "data.workers": 0, "data.threads": 0, "data.groups.video.frames": 4,
    "data.groups.video.batch_size": 4, "masks.round_to": 1, "model.predictor.width": 48,
    "model.predictor.depth": 1, "optim.total_steps": STEPS, "optim.warmup_steps": 2,
    "checkpoint.every_steps": 2, "log.every_steps": 1, "log.monitor_tokens": 64,
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Shards of three short real videos."""
    source, output = tmp_path_factory.mktemp("videos"), tmp_path_factory.mktemp("shards")
    for i in range(3):
        media.write_video(source / f"{i}.mp4", frames=30 + 4 * i, height=64, width=80 + 16 * i)
    subprocess.run(
        [sys.executable, "-m", "jepa_jax.prepare", "videos", str(source), "--output", str(output), "--size", "64"],
        check=True, cwd=ROOT, capture_output=True,
    )
    return output


@pytest.fixture(scope="module")
def config(shards):
    """The demo config, shrunk."""
    config = pretrain.get_config("demo")
    config.update_from_flattened_dict(SMALL)
    config.data.groups.video.paths = (str(shards),)
    return config.lock()


def run(config, workdir, total_steps=STEPS, fsdp=1, devices=1, sequence=1):
    """Train in this process; returns the final state on the host."""
    mesh = sharding.make_mesh(fsdp, jax.devices()[:devices], sequence)
    with sharding.use_mesh(mesh):
        task = make_task(config, mesh)
    state = loop.train(task, SkipCounter(0.1), mesh, workdir, config=config, total_steps=total_steps)
    return jax.device_get(state)


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def changed(config, **fields):
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
    return config


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    """An uninterrupted run: (workdir, final state)."""
    workdir = tmp_path_factory.mktemp("run")
    return workdir, run(config, workdir)


def metrics_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_resumed_run_equals_uninterrupted_bit_for_bit(config, finished, tmp_path):
    run(config, tmp_path, total_steps=3)
    state = run(config, tmp_path)
    assert_same(state, finished[1])
    keys = ("step", "train/loss", "optim/lr", "optim/grad_norm_encoder", "collapse/target_rank")
    rows = [[row[key] for key in keys] for row in metrics_of(tmp_path)]
    assert rows == [[row[key] for key in keys] for row in metrics_of(finished[0])]
    assert [row[0] for row in rows] == list(range(1, STEPS + 1))


def test_an_online_probe_looks_on_and_changes_nothing(config, finished, tmp_path, monkeypatch):
    lines = [f"{media.write_video(tmp_path / f'{i}.mp4', frames=20, height=64, width=64 + 32 * (i % 2))} {i % 2}" for i in range(4)]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    probe = {"every_steps": 2, "train": str(tmp_path / "list.csv"), "test": str(tmp_path / "list.csv"), "neighbours": 1, "batch_size": 3}
    seen = changed(config, **{f"probe__{name}": value for name, value in probe.items()})
    logged = []
    monkeypatch.setattr(logging, "info", lambda text, *values, **_: logged.append(str(text) % values if values else str(text)))
    assert_same(run(seen, tmp_path / "run"), finished[1])
    rows = metrics_of(tmp_path / "run")
    # Every clip is its own nearest neighbour.
    assert [row.get("probe/knn") for row in rows] == [None, 1.0] * (STEPS // 2)
    # Features of 24 channels separate four clips of two classes.
    assert [row.get("probe/linear") for row in rows] == [None, 1.0] * (STEPS // 2)
    assert sum("compiled the train step" in line for line in logged) == 1
    assert sum("nearest neighbours 100.0%, linear head 100.0%" in line for line in logged) == STEPS // 2
    assert not any("probe/knn" in row for row in metrics_of(finished[0]))
    for name, value, message in (
        ("every_steps", -1, "must be 0"), ("neighbours", 5, "gave 4 clips"), ("samples", 0, "must be at least 1"), ("test", "", "must both be given"),
    ):
        with pytest.raises(ValueError, match=message):
            make_task(changed(seen, **{f"probe__{name}": value}), sharding.make_mesh(1, jax.devices()[:1]))
    (tmp_path / "3.mp4").write_bytes(b"no video")
    with pytest.raises(DataError, match="1 of 4 clips of .* cannot be read, more than data.max_bad_fraction"):
        make_task(seen, sharding.make_mesh(1, jax.devices()[:1]))


def test_finished_run_is_left_alone(config, finished):
    assert_same(run(config, finished[0]), finished[1])


def test_parameters_move_and_targets_follow(config, finished):
    state = finished[1]
    rows = metrics_of(finished[0])
    assert rows[-1]["train/loss"] < rows[0]["train/loss"]
    gap = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), state.params["encoder"], state.target_params)
    assert 0 < max(jax.tree.leaves(gap)) < 0.1


def test_keep_last_and_keep_every(config, tmp_path):
    run(changed(config, checkpoint__every_steps=1, checkpoint__keep_last=2, checkpoint__keep_every=3), tmp_path)
    assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()) == [3, 5, 6]


def test_resume_on_another_mesh(config, finished, tmp_path):
    """From four devices to two; the run to compare with had one."""
    run(config, tmp_path, total_steps=4, fsdp=2, devices=4)
    resumed = run(config, tmp_path, fsdp=2, devices=2)
    # Sums run in another order on another mesh, and Adam turns the rounding of gradients
    # near zero into steps of the size of the learning rate.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3), finished[1].params, resumed.params)
    losses = [[row["train/loss"] for row in metrics_of(path)] for path in (finished[0], tmp_path)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


def test_tokens_of_a_clip_are_shared(config, finished, tmp_path):
    """Four devices, two clips on each two of them."""
    run(config, tmp_path, total_steps=2, fsdp=2, devices=4, sequence=2)
    losses = [[row["train/loss"] for row in metrics_of(path)[:2]] for path in (tmp_path, finished[0])]
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_cooldown_keeps_moments_and_restarts_steps(config, finished, tmp_path):
    cool = cooldown.get_config("demo")
    cool.update_from_flattened_dict(SMALL | {"data.groups.video.frames": 8, "data.size": 96,
                                             "optim.warmup_steps": 0, "optim.total_steps": 2})
    cool.data.groups.video.paths = config.data.groups.video.paths
    cool.start.checkpoint = str(finished[0])
    state = run(cool, tmp_path, total_steps=1)
    assert int(state.step) == 1
    assert int(state.opt_state.count) == STEPS + 1
    assert metrics_of(tmp_path)[0]["optim/lr"] == pytest.approx(1e-3 + (1e-6 - 1e-3) / 2, rel=1e-5)


def test_weights_only_start(config, finished, tmp_path):
    fresh = changed(config, start__mode="weights", start__checkpoint=str(finished[0] / "checkpoints" / str(STEPS)))
    state = run(fresh, tmp_path, total_steps=1)
    assert int(state.opt_state.count) == 1
    # One step away from the weights it took; a start from scratch (same seed) is further.
    scratch = run(config, tmp_path / "scratch", total_steps=1)

    def distance(params):
        gaps = jax.tree.map(lambda a, b: np.abs(a - b).max(), params, finished[1].params)
        return float(max(jax.tree.leaves(gaps)))

    assert distance(state.params) < 1e-3 < distance(scratch.params)


def test_converted_weights_are_a_start(config, finished, tmp_path):
    """A run written as a folder of weights starts another exactly as the run itself does."""
    bundle = store.read(finished[0])
    assert bundle.provenance["step"] == STEPS and bundle.preprocessing.crop_size == 64
    assert_same({name: bundle.networks[name].params for name in ("encoder", "predictor")}, finished[1].params)
    assert_same(bundle.networks["target_encoder"].params, finished[1].target_params)
    store.write(bundle, tmp_path / "weights")
    states = [run(changed(config, start__mode="weights", start__checkpoint=str(source)), tmp_path / str(i), total_steps=1)
              for i, source in enumerate((finished[0], tmp_path / "weights"))]
    assert_same(*states)


def test_weights_of_another_network_are_no_start(config, finished, tmp_path):
    """What no tensor shows, such as the layout of rotary positions, is compared too."""
    store.write(store.read(finished[0]), tmp_path / "weights")
    other = changed(config, start__mode="weights", start__checkpoint=str(tmp_path / "weights"),
                    model__rope_layout="interleaved", model__predictor__num_mask_tokens=10)
    with pytest.raises(ValueError, match="encoder.rope_layout: 'tiled' in the weights, 'interleaved' in this config\n"
                                         ".*predictor.num_mask_tokens: 2 in the weights, 10 in this config"):
        run(other, tmp_path / "run")


def test_checkpoint_of_another_model_is_refused(config, finished):
    other = changed(config, model__predictor__width=60)
    with pytest.raises(checkpoint.CheckpointError, match=r"another model.*\n.*predictor/.*48\).*60\)"):
        run(other, finished[0])


@pytest.mark.parametrize("mode, source, message", [
    ("cooldown", "", "need one"), ("scratch", "x", "takes no checkpoint"), ("weights", "nowhere", "nowhere does not exist"),
    ("cooldown", "nowhere", "no checkpoint in"),
    ("resume", "x", "unknown"),
])
def test_impossible_starts(config, tmp_path, mode, source, message):
    with pytest.raises((ValueError, checkpoint.CheckpointError), match=message):
        run(changed(config, start__mode=mode, start__checkpoint=source), tmp_path)


def test_guard_stops_and_names_step_and_tensor(config, tmp_path):
    wild = changed(config, optim__lr=1e30, optim__warmup_steps=0, guard__max_skips_in_a_row=3)
    with pytest.raises(loop.TrainingStopped, match=r"3 updates in a row .* step \d+: '[\w/ ]+' is not finite"):
        run(wild, tmp_path, total_steps=6)


@pytest.mark.parametrize("fields", [{}, {"data__augment__erase": 0.5}])
def test_abstract_batch_is_that_of_the_data(config, fields):
    config = changed(config, **fields)
    groups = pretrain_task.make_groups(config)
    batch, _ = pretrain_task.make_pipeline(config, groups).batch_at(0)
    abstract = pretrain_task.abstract_batch(config, groups)
    describe = lambda x: (x.shape, np.dtype(x.dtype))
    assert jax.tree.map(describe, abstract) == jax.tree.map(describe, batch)


def test_what_is_compiled_without_data_is_what_is_trained(config):
    mesh = sharding.make_mesh(2, jax.devices()[:4])
    with sharding.use_mesh(mesh):
        task = make_task(config, mesh)
        with task.open_data(0, 1) as batches:
            batch = sharding.put_batch(next(batches)[0], mesh)
        trained = loop.lower_step(task, loop.abstract_train_state(task, mesh), batch, task.frozen, mesh)
    program = lowerable.train_step(changed(config, data__root="nowhere"), mesh, None)
    assert program.passes and program.items == task.clips_per_step
    with sharding.use_mesh(mesh):
        assert program.lower().as_text() == trained.as_text()


def test_batch_must_divide_over_the_mesh(config):
    with pytest.raises(ValueError, match="batch size 4 of group 'video' is not a multiple of 8 "):
        make_task(config, sharding.make_mesh(2))
    with pytest.raises(ValueError, match="mesh.fsdp 3 does not divide the number of devices, 8"):
        sharding.make_mesh(3)


def test_bad_records_stop_the_run_past_the_limit(config, shards, tmp_path):
    broken = tmp_path / "shards"
    broken.mkdir()
    for path in resolve_shards([str(shards)]):
        data = bytearray(pathlib.Path(path).read_bytes())
        data[data.index(b"mdat") + 100] ^= 1  # one bit inside the first video
        (broken / pathlib.Path(path).name).write_bytes(data)
    bad = changed(config, data__groups__video__paths=(str(broken),), optim__total_steps=100)
    with pytest.raises(loop.TrainingStopped, match=r"saved step (\d+) to [\s\S]*allowed fraction 0\.1[\s\S]* video/shards: "):
        run(bad, tmp_path / "run", total_steps=100)
    store, step = checkpoint.open_checkpoint(tmp_path / "run")
    used, replaced, *judged = store.read_run(step)["drawn"]["video/shards"]
    store.close()
    assert used == 4 * step and used + replaced >= 100 and judged == [used, replaced]
    # What is repaired goes on, and what was counted stays: in the log, not in the judgement.
    run(changed(bad, data__groups__video__paths=(str(shards),)), tmp_path / "run", total_steps=step + 1)
    row = metrics_of(tmp_path / "run")[-1]
    assert row["step"] == step + 1 and row["data/skipped/video/shards"] == replaced


# --- as a user runs it ---------------------------------------------------------------------


def command(config, workdir, *extra):
    fields = SMALL | {"data.groups.video.paths": config.data.groups.video.paths}
    flags = [f"--config.{name}={value}" for name, value in fields.items()] + list(extra)
    # A tuple given twice would be joined, so the last flag of a name is passed alone.
    flags = {flag.partition("=")[0]: flag for flag in flags}
    return [sys.executable, "-m", "jepa_jax.train", "--config=configs/pretrain.py:demo", f"--workdir={workdir}",
            *flags.values()]


def environment():
    # One device, as on a user's machine; the in-process runs above use the first of eight.
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")
    return os.environ | {"XLA_FLAGS": flags, "PYTHONUNBUFFERED": "1"}


def execute(args, **kwargs):
    return subprocess.run(args, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300, **kwargs)


def start_and_wait_for(args, pattern):
    """Start a run and return (process, output so far) once a line matches."""
    process = subprocess.Popen(args, cwd=ROOT, env=environment(), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    lines = []
    for line in process.stderr:
        lines.append(line)
        if re.search(pattern, line):
            return process, lines
    raise AssertionError(f"no line matched {pattern}:\n{''.join(lines)}")


def final_params(workdir):
    store, step = checkpoint.open_checkpoint(workdir)
    found = store._manager.restore(step)
    store.close()
    return step, jax.device_get({name: found[name] for name in ("params", "target_params")})


def test_killed_and_preempted_runs_end_like_an_uninterrupted_one(config, tmp_path):
    workers = ("--config.data.workers=1", "--config.optim.total_steps=40", "--config.checkpoint.every_steps=5")
    whole = execute(command(config, tmp_path / "whole", *workers))
    assert whole.returncode == 0, whole.stderr
    assert "no clip skipped" in whole.stderr and "ETA" in whole.stderr

    broken = command(config, tmp_path / "broken", *workers)
    process, _ = start_and_wait_for(broken, r"step 8/")
    process.kill()
    process.wait()
    process, lines = start_and_wait_for(broken, r"step 1\d/")
    assert any("resumed from step 5" in line for line in lines), lines
    process.send_signal(signal.SIGTERM)
    rest = process.stderr.read()
    assert process.wait(timeout=60) == 0, rest
    saved = int(re.search(r"SIGTERM: saved step (\d+)", rest)[1])
    last = execute(broken)
    assert f"resumed from step {saved}" in last.stderr and last.returncode == 0, last.stderr
    (step_a, a), (step_b, b) = final_params(tmp_path / "whole"), final_params(tmp_path / "broken")
    assert step_a == step_b == 40
    assert_same(a, b)


@pytest.mark.slow
def test_full_disk_keeps_what_is_written(config, tmp_path):
    args = command(config, tmp_path, "--config.optim.total_steps=4")
    assert execute(args).returncode == 0
    # A limit on file size is a write that fails for real, without needing a disk to fill.
    script = ("import resource, runpy, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
              "resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000)); sys.argv = sys.argv[1:]; "
              "runpy.run_module('jepa_jax.train', run_name='__main__')")
    more = [arg.replace("total_steps=4", "total_steps=8") for arg in args]
    full = execute([sys.executable, "-c", script, *more[2:]])
    assert full.returncode == 1, full.stderr
    assert "could not write a checkpoint" in full.stderr and "Last complete checkpoint: step 4" in full.stderr
    assert full.stderr.endswith("run the same command again: it continues from there\n")
    assert "Event loop is closed" not in full.stderr
    again = execute(more)
    assert again.returncode == 0 and "resumed from step 4" in again.stderr


def test_killed_data_worker_is_a_clear_error(config, tmp_path):
    args = command(config, tmp_path, "--config.data.workers=1", "--config.optim.total_steps=2000")
    process, _ = start_and_wait_for(args, r"step 2/")
    children = subprocess.run(["ps", "-ww", "-o", "pid=,args=", "--ppid", str(process.pid)], capture_output=True, text=True).stdout
    worker = next(int(line.split()[0]) for line in children.splitlines() if "spawn_main" in line)
    os.kill(worker, signal.SIGKILL)
    began, rest = time.monotonic(), process.stderr.read()
    assert process.wait() == 1 and time.monotonic() - began < 60
    assert "data worker process" in rest and "Traceback" not in rest.split("data worker process")[0]


@pytest.mark.parametrize("flag, code, message", [
    ("--config.model.widht=3", 2, "config.model has no field 'widht'"),
    ("--config.model.predictor.wdth=3", 2, "did you mean 'width'"),
    ("--config.optim.lr=fast", 2, "could not convert string to float"),
    ("--config.model.size=vit_gross", 1, "choose one of vit_tiny"),
    ("--config.data.size=100", 1, "must be a multiple of patch_size, 16"),
    ("--config.data.groups.video.frames=5", 1, "must be a multiple of tubelet_size, 2"),
    ("--config.model.predictor.num_heads=5", 1, "width 48 is not divisible by num_heads 5"),
    ("--config.data.groups.video.paths=('nowhere',)", 1, "python -m jepa_jax.prepare"),
    ("--config.data.groups.video.batch_size=0", 1, "every group"),
    ("--config.data.groups.video.loss_weight=0.0", 1, "loss_weight is 0.0; it must be above 0"),
    ("--config.data.groups.video.fps=nan", 1, "fps nan must be above 0 and finite"),
    ("--config.seed=-1", 1, "seed is -1; it must be at least 0"),
    ("--config.optim.schedule=steep", 1, "choose one of"),
    ("--config.masks.strategies.short_range.num_context=30", 1, "Lower num_context"),
])
def test_mistakes_are_named_before_anything_compiles(config, tmp_path, flag, code, message):
    result = execute(command(config, tmp_path, flag))
    assert result.returncode == code, result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr and "compiled" not in result.stderr
