"""Runs of several real processes that are broken on purpose, started by launch/local.sh."""

import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import media
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jepa_jax.data.transcode import VideoSpec, transcode_video
from jepa_jax.training import checkpoint

ROOT = pathlib.Path(__file__).resolve().parents[1]
STEPS = 8
FIELDS = {
    "data.size": 64, "data.workers": 0, "data.threads": 0, "data.groups.video.frames": 4, "data.groups.video.batch_size": 4,
    "masks.round_to": 1, "model.predictor.width": 48, "model.predictor.depth": 1, "optim.total_steps": STEPS,
    "optim.warmup_steps": 2, "checkpoint.every_steps": 2, "log.every_steps": 1, "log.monitor_tokens": 64,
}
# In every run here: a NaN in one process is refused by all, and one that is late is waited for.
ALWAYS = [["nan", 1, 3, None], ["slow", 1, 2, 2.0]]
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Three short videos."""
    root = tmp_path_factory.mktemp("shards")
    films = [transcode_video(media.write_video(root / f"{n}.mp4", frames=40 + n), VideoSpec(size=64)) for n in range(3)]
    media.write_shard(root / "clips-00000-of-00001.array_record", films)
    return root


@pytest.fixture(scope="module")
def faulty_python(tmp_path_factory):
    """An interpreter for launch/local.sh that builds the faults of FAULTS into what it runs."""
    path = tmp_path_factory.mktemp("bin") / "python"
    path.write_text(f'#!/bin/sh\n[ "$1" = -m ] || exec {sys.executable} "$@"\nexec {sys.executable} tests/faults.py "$@"\n')
    path.chmod(0o755)
    return path


class Fleet:
    """A run of two processes, and what became of it.

    Args:
      python, shards, workdir: see the fixtures.
      faults: as in `faults.py`, beside those of `ALWAYS`.
      fields: of the config.
    """

    def __init__(self, python, shards, workdir, *faults, always=ALWAYS, processes=2, **fields):
        values = FIELDS | {"data.groups.video.paths": f"('{shards}',)"}
        values |= {name.replace("__", "."): value for name, value in fields.items()}
        command = ["bash", "launch/local.sh", str(processes), "--config=configs/pretrain.py:demo", f"--workdir={workdir}"]
        self.process = subprocess.Popen(
            [*command, *[f"--config.{name}={value}" for name, value in values.items()]], cwd=ROOT, text=True,
            start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHON": str(python), "XLA_FLAGS": QUICK, "FAULTS": json.dumps([*always, *faults])},
        )

    def _listed(self):
        """Whatever lives of all that was started: (number, command) each. The dead whom nobody has asked for do not count."""
        session = ["ps", "-ww", "-s", str(self.process.pid), "-o", "pid=,stat=,args="]
        rows = [line.split(None, 2) for line in subprocess.run(session, capture_output=True, text=True).stdout.splitlines()]
        return [(int(pid), command) for pid, state, command in rows if not state.startswith("Z")]

    def pids(self):
        """Numbers of the training processes that live."""
        return [pid for pid, command in self._listed() if "jepa_jax.train" in command and "local.sh" not in command]

    def end(self):
        """Wait for the end; returns (exit status, output). Nothing that it started may live on."""
        try:
            output = self.process.communicate(timeout=400)[0]
            assert not self._listed()
        finally:
            self.kill()
        return self.process.returncode, output

    def kill(self):
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def _rows(workdir):
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def _final_state(workdir):
    store, step = checkpoint.open_checkpoint(workdir)
    metadata, here = store._manager.item_metadata(step), jax.sharding.SingleDeviceSharding(jax.devices()[0])
    items = {}
    for name in ("params", "target_params", "opt_state", "progress"):
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), metadata[name].tree)
        items[name] = ocp.args.StandardRestore(like)
    found = store._manager.restore(step, args=ocp.args.Composite(**items))
    store.close()
    return step, jax.device_get(dict(found.items()))


def _assert_equal_runs(a, b):
    (step_a, state_a), (step_b, state_b) = _final_state(a), _final_state(b)
    assert step_a == step_b == STEPS
    jax.tree.map(np.testing.assert_array_equal, state_a, state_b)
    keys = ("step", "train/loss", "guard/skipped")
    rows = [[[row[key] for key in keys] for row in _rows(workdir)] for workdir in (a, b)]
    # Every step once, on the same batches.
    assert rows[0] == rows[1] and [row[0] for row in rows[0]] == list(range(1, STEPS + 1))
    assert [row[2] for row in rows[0]] == [0, 0] + [1] * (STEPS - 2)


def _flip_a_bit(step):
    path = max((path for path in (step / "params").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    media.flip_byte(path, path.stat().st_size // 2)


@pytest.fixture(scope="module")
def whole(shards, faulty_python, tmp_path_factory):
    """A run that nothing interrupts; how many seconds it took is in the file `seconds`."""
    workdir, began = tmp_path_factory.mktemp("whole"), time.monotonic()
    code, output = Fleet(faulty_python, shards, workdir).end()
    (workdir / "seconds").write_text(str(time.monotonic() - began))
    assert code == 0, output[-3000:]
    # Both say which update they refuse, though one of them only had the NaN.
    assert all(re.search(rf"\[{process}\] .*step 3: update skipped", output) for process in (0, 1)), output
    return workdir


@pytest.mark.slow
def test_killed_stopped_and_damaged_run_ends_like_one_that_nothing_interrupts(shards, faulty_python, whole, tmp_path):
    code, output = Fleet(faulty_python, shards, tmp_path, ["kill", 1, 4, "save"]).end()
    assert code not in (0, 124), output
    assert re.search(r"\[0\] .*process 0 ends, as .* cannot go on:\n\[0\] +process 1 of 2 \(host .*\) is lost", output), output
    code, output = Fleet(faulty_python, shards, tmp_path, ["terminate", 0, None, "compile"]).end()
    saved = [int(step) for step in re.findall(r"SIGTERM: saved step (\d+)", output)]
    assert code == 0 and len(saved) == 2 and len(set(saved)) == 1, output
    _flip_a_bit(tmp_path / "checkpoints" / str(saved[0]))
    code, output = Fleet(faulty_python, shards, tmp_path).end()
    assert code == 0, output[-3000:]
    assert len(re.findall(r"arrays changed on disk", output)) == 2 and f"going back to step {2 * ((saved[0] - 1) // 2)}" in output
    _assert_equal_runs(whole, tmp_path)


def test_second_run_in_a_workdir_is_refused(shards, faulty_python, tmp_path):
    hold = "import sys, time; from jepa_jax.training.workdir import Claim\n" \
           "with Claim(sys.argv[1]): print('held', flush=True); time.sleep(1000)"
    owner = subprocess.Popen([sys.executable, "-c", hold, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert owner.stdout.readline() == "held\n"
        code, output = Fleet(faulty_python, shards, tmp_path).end()
    finally:
        owner.kill()
        owner.communicate()
    assert code == 1 and f"another run is writing to {tmp_path}: host" in output and f"pid {owner.pid}" in output, output
    # The other process says so too, or at least that process 0 is gone.
    assert re.search(r"\[1\] .*(another run is writing|process 0 of 2|leader task)", output), output
    assert not (tmp_path / "config.json").exists() and "Traceback" not in output


@pytest.mark.slow
@pytest.mark.parametrize("where, process", [("step", 0), ("step", 1), ("save", 0), ("save", 1), ("compile", 1)])
def test_sigterm_to_one_process_stops_all_at_one_step(where, process, shards, faulty_python, whole, tmp_path):
    code, output = Fleet(faulty_python, shards, tmp_path, ["terminate", process, None if where == "compile" else 4, where]).end()
    saved = re.findall(r"SIGTERM: saved step (\d+)", output)
    assert code == 0 and len(saved) == 2 and len(set(saved)) == 1, output[-3000:]
    code, output = Fleet(faulty_python, shards, tmp_path).end()
    assert code == 0 and f"resumed from step {saved[0]}" in output, output[-3000:]
    _assert_equal_runs(whole, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("process", [0, 1])
def test_disk_that_fills_in_one_process_ends_all(process, shards, faulty_python, whole, tmp_path):
    began = time.monotonic()
    code, output = Fleet(faulty_python, shards, tmp_path, ["full", process, 4, 100_000]).end()
    assert code == 1 and f"[{process}] " in output and "could not write a checkpoint" in output, output[-3000:]
    assert re.search(r"Last complete checkpoint: step \d", output), output[-3000:]
    # The other one ends in good order too, and knows why.
    assert re.search(rf"\[{1 - process}\] +process {process} of 2 .* ended: CheckpointError: could not write", output), output[-3000:]
    assert "Traceback" not in output and "Fatal" not in output
    print(f"ended after {time.monotonic() - began:.0f} s")
    code, output = Fleet(faulty_python, shards, tmp_path).end()
    assert code == 0, output[-3000:]
    _assert_equal_runs(whole, tmp_path)


@pytest.mark.slow
def test_ctrl_c_and_sigterm_of_the_launcher_save_and_end_all(shards, faulty_python, tmp_path):
    for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 0)):
        fleet = Fleet(faulty_python, shards, tmp_path, optim__total_steps=5000)
        done, deadline = len(_rows(tmp_path)), time.monotonic() + 300
        while len(_rows(tmp_path)) <= done + 1:
            assert time.monotonic() < deadline and fleet.process.poll() is None
            time.sleep(0.2)
        os.kill(fleet.process.pid, number)
        code, output = fleet.end()
        assert code == status and len(re.findall(r"SIGTERM: saved step", output)) == 2, output[-3000:]


@pytest.mark.slow
def test_twenty_rounds_of_kill_at_random_moments(shards, faulty_python, whole, tmp_path):
    dice, kept, rounds = random.Random(int(os.environ.get("ROUNDS_SEED", 0))), 0, int(os.environ.get("ROUNDS", 20))
    longest = float((whole / "seconds").read_text())
    while kept < rounds:
        workdir = tmp_path / str(kept)
        began = time.monotonic()
        fleet = Fleet(faulty_python, shards, workdir)
        victim, delay = dice.randrange(2), dice.uniform(0, longest)
        while time.monotonic() - began < delay and fleet.process.poll() is None:
            time.sleep(0.05)
        pids = fleet.pids()
        if len(pids) == 2:
            os.kill(pids[victim], signal.SIGKILL)
            struck = time.monotonic()
            code, output = fleet.end()
            assert code != 0 and time.monotonic() - struck < 75, output[-3000:]
            kept += 1
        else:
            fleet.end()
        code, output = Fleet(faulty_python, shards, workdir).end()
        assert code == 0, output[-3000:]
        _assert_equal_runs(whole, workdir)
        shutil.rmtree(workdir)
