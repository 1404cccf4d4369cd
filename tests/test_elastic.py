"""Runs on two processes: killed and resumed on one, they see the same batches; and they stop together."""

import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import time

import media
import pytest
from jepa_jax.data.transcode import ImageSpec, VideoSpec, store_image, transcode_video

ROOT = pathlib.Path(__file__).resolve().parents[1]
STEPS = 5
FIELDS = {
    "data.size": 64, "data.workers": 0, "data.threads": 0, "data.max_bad_fraction": 0.9, "data.augment.erase": 0.5,
    "data.augment.motion_shift": True, "data.groups.video.frames": 4, "data.groups.image.frames": 4,
    "data.groups.video.paths": "('k710','ssv2')", "data.groups.video.weights": "(0.7,0.3)", "masks.round_to": 1,
    "model.predictor.width": 48, "model.predictor.depth": 1, "optim.total_steps": STEPS, "optim.warmup_steps": 2,
    "checkpoint.every_steps": 2, "log.every_steps": 1, "log.monitor_tokens": 64,
}
@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Shards of videos, none to all of them corrupt, and of images."""
    root = tmp_path_factory.mktemp("root")
    films = [transcode_video(media.write_video(root / f"{n}.mp4", frames=40 + n), VideoSpec(size=64)) for n in range(3)]
    pictures = [store_image(media.write_image(root / f"{n}.png", number=n), ImageSpec()) for n in range(3)]
    corrupt = films[1]._replace(data=films[1].data[:300])
    everything = {
        "k710": films, "ssv2": [films[0], corrupt, films[2]], "imagenet": pictures, "worse": [films[0], *[corrupt] * 3],
        "bad": [corrupt] * 3,
    }
    for name, records in everything.items():
        (root / name).mkdir()
        media.write_shard(root / name / "clips-00000-of-00001.array_record", records)
    return root


def _start(root, workdir, processes, **changes):
    """Start the same run on some processes with two devices in all; `changes` of FIELDS have __ for a dot."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flags = f"--xla_force_host_platform_device_count={2 // processes} --xla_backend_optimization_level=0 " \
            "--xla_llvm_disable_expensive_passes=true"
    values = FIELDS | {name.replace("__", "."): value for name, value in changes.items()}
    fields = [f"--config.{name}={value}" for name, value in values.items()]
    command = ["--config=configs/pretrain.py:demo,mix=vm22m", f"--workdir={workdir}", f"--config.data.root={root}", *fields]
    return [
        subprocess.Popen(
            [sys.executable, "-m", "jepa_jax.train", *command, f"--config.mesh.distributed={processes > 1}"], cwd=ROOT,
            env=os.environ | {
                "XLA_FLAGS": flags, "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
                "JAX_NUM_PROCESSES": str(processes), "JAX_PROCESS_ID": str(index),
            },
            stderr=subprocess.PIPE, text=True,
        )
        for index in range(processes)
    ]


def _finish(started):
    for process in started:
        errors = process.communicate(timeout=300)[1]
        assert process.returncode == 0, errors[-3000:]


def _rows(workdir):
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    # The last line may be half written.
    return [json.loads(line) for line in lines if line.endswith("}")]


def _kill_at(started, workdir, step):
    deadline = time.monotonic() + 300
    try:
        while not any(row["step"] >= step for row in _rows(workdir)):
            alive = [process.poll() is None for process in started]
            assert all(alive) and time.monotonic() < deadline, started[alive.index(False)].communicate()[1][-3000:]
            time.sleep(0.1)
    finally:
        for process in started:
            process.kill()
            process.communicate()


def test_run_killed_on_two_processes_goes_on_with_one(root, tmp_path):
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    _finish(_start(root, whole, 1))
    _kill_at(_start(root, moved, 2), moved, 3)
    first = _rows(moved)
    _finish(_start(root, moved, 1))
    expected = {row["step"]: row for row in _rows(whole)}
    assert [row["step"] for row in _rows(moved)] == list(range(1, STEPS + 1)) == sorted(expected)
    for row in [*first, *_rows(moved)]:
        losses = {name: value for name, value in row.items() if name.startswith("train/loss")}
        # Other clips, crops, masks or noise would change the third digit.
        assert losses == pytest.approx({name: expected[row["step"]][name] for name in losses}, rel=1e-5)
    # What both processes were fed is added up, replaced records as well.
    for row in first:
        mixture = {name: value for name, value in row.items() if name.startswith(("data/share", "data/skipped"))}
        assert mixture == {name: expected[row["step"]][name] for name in mixture} and len(mixture) == 7
    assert expected[STEPS]["data/skipped/video/ssv2"] > 0


def _ended(started):
    """Wait for all processes; returns their exit codes, logs and the seconds between the first end and the last."""
    ends = {}
    deadline = time.monotonic() + 300
    try:
        while len(ends) < len(started):
            assert time.monotonic() < deadline, f"{len(started) - len(ends)} processes hang"
            for number, process in enumerate(started):
                if number not in ends and process.poll() is not None:
                    ends[number] = time.monotonic()
            time.sleep(0.1)
    finally:
        for process in started:
            process.kill()
    logs = [process.communicate()[1] for process in started]
    return [process.returncode for process in started], logs, max(ends.values()) - min(ends.values())


@pytest.mark.slow
def test_too_many_skips_stop_all_processes_at_one_step_and_save_it(root, tmp_path):
    started = _start(root, tmp_path, 2, data__max_bad_fraction=0.2, data__groups__video__paths="('k710','worse')",
                     data__groups__video__weights="(0.1,0.9)", checkpoint__every_steps=100)
    codes, logs, gap = _ended(started)
    assert codes == [1, 1] and gap < 30, logs[0][-3000:]
    errors = [log[log.index("saved step") : log.index("then goes on")] for log in logs]
    assert errors[0] == errors[1] and "all sources: " in errors[0]
    step = int(errors[0].split()[2])
    assert (tmp_path / "checkpoints" / str(step)).is_dir() and _rows(tmp_path)[-1]["step"] == step
    # The details of each process are in its own log, once.
    assert all(log.count("draws beside") == 1 for log in logs)


@pytest.mark.slow
def test_process_that_fails_alone_ends_the_others(root, tmp_path):
    """One row in some steps is of a source without a good record: only the process that makes it fails."""
    started = _start(root, tmp_path, 2, data__max_bad_fraction=0.05, data__groups__video__paths="('k710','bad')",
                     data__groups__video__weights="(0.95,0.05)")
    codes, logs, gap = _ended(started)
    failed = [" E 12 records in a row" in log for log in logs]
    assert sorted(failed) == [False, True] and codes[failed.index(True)] == 1 and 0 not in codes, logs[0][-3000:]
    # The other one says who ended, and why; process 0 can be lost without a word of JAX to tell from its end.
    other = logs[failed.index(False)]
    assert re.search(r"process \d of 2 \(host .*\) ended: DataError: 12 records", other) or "leader task" in other, other[-3000:]
    assert gap < 75
