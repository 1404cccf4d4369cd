"""One run at a time in a workdir: living owners, killed ones, other machines, wrong clocks, buckets."""

import json
import os
import subprocess
import sys
import time

import fsspec
import pytest
from buckets import FolderBehindUrl
from jepa_jax.training.metrics import FILE as METRICS
from jepa_jax.training.metrics import MetricWriter
from jepa_jax.training.workdir import FILE, Claim, WorkdirInUse

_HOLD = "import sys, time; from jepa_jax.training.workdir import Claim\n" \
        "with Claim(sys.argv[1], beat_s=0.1): print('held', flush=True); time.sleep(100)"
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


@pytest.fixture
def owner(tmp_path):
    """Another process that holds the workdir."""
    process = subprocess.Popen([sys.executable, "-c", _HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def _entry(folder):
    return json.loads((folder / FILE).read_text())


def _move_to_another_machine(folder, **fields):
    """Rewrite the claim as if its owner ran on another machine."""
    (folder / FILE).write_text(json.dumps(_entry(folder) | {"machine": "elsewhere"} | fields))


def test_claim_is_taken_and_given_back(tmp_path):
    with Claim(tmp_path, beat_s=0.05) as claim:
        first = _entry(tmp_path)
        assert first["pid"] == os.getpid()
        time.sleep(0.3)
        assert _entry(tmp_path)["beat"] > first["beat"]
        claim.check()
        with pytest.raises(WorkdirInUse, match=rf"another run is writing to .*pid {os.getpid()}"):
            Claim(tmp_path).__enter__()
    assert not list(tmp_path.iterdir())


def test_owner_on_this_machine_is_judged_by_the_process_table(owner, tmp_path):
    with pytest.raises(WorkdirInUse, match=rf"pid {owner.pid}, since .*--workdir"):
        Claim(tmp_path).__enter__()
    owner.kill()
    owner.wait()
    began = time.monotonic()
    with Claim(tmp_path):
        assert _entry(tmp_path)["pid"] == os.getpid()
    # Without waiting for its heart to stop.
    assert time.monotonic() - began < 30


def test_number_of_a_dead_process_that_was_given_again(tmp_path):
    with Claim(tmp_path):
        entry = _entry(tmp_path)
    (tmp_path / FILE).write_text(json.dumps(entry | {"id": "other", "process": entry["process"] - 1}))
    with Claim(tmp_path):
        assert _entry(tmp_path)["id"] != "other"


@pytest.mark.parametrize("skew_s", [-1e6, 1e6])
def test_owner_elsewhere_is_judged_by_its_heart_on_our_clock(tmp_path, skew_s):
    with Claim(tmp_path):
        _move_to_another_machine(tmp_path, id="other", started="in another time")
        entry = _entry(tmp_path)
    path = tmp_path / FILE
    path.write_text(json.dumps(entry))
    os.utime(path, (time.time() + skew_s,) * 2)
    began = time.monotonic()
    with Claim(tmp_path, beat_s=0.2, dead_after_s=1.0):
        assert time.monotonic() - began > 1 and _entry(tmp_path)["id"] != "other"


def test_living_owner_elsewhere_is_left_alone(owner, tmp_path, monkeypatch):
    monkeypatch.setattr("jepa_jax.training.workdir._machine", lambda: "elsewhere")
    with pytest.raises(WorkdirInUse, match=f"pid {owner.pid}"):
        Claim(tmp_path, beat_s=0.2, dead_after_s=20).__enter__()


def test_run_that_stood_still_learns_that_it_lost_the_workdir(tmp_path):
    with Claim(tmp_path, beat_s=0.05) as claim:
        (tmp_path / FILE).write_text(json.dumps(_entry(tmp_path) | {"id": "other", "host": "usurper"}))
        time.sleep(0.5)
        with pytest.raises(WorkdirInUse, match="another run took .*usurper.*saves nothing more"):
            claim.check()
    # What belongs to the other stays.
    assert _entry(tmp_path)["id"] == "other"


def test_file_that_is_not_ours_or_half_written(tmp_path):
    (tmp_path / FILE).write_text('{"id": "a", "ho')
    with Claim(tmp_path, beat_s=0.2, dead_after_s=0.5):
        assert _entry(tmp_path)["pid"] == os.getpid()


class _Bucket(FolderBehindUrl):
    """A folder behind a URL of a kind that epath knows."""

    protocol = "az"

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol("/" + path.removeprefix("az://").lstrip("/"))


@pytest.fixture
def bucket(tmp_path):
    """The URL under which `tmp_path` is a bucket."""
    fsspec.register_implementation("az", _Bucket, clobber=True)
    return f"az:/{tmp_path}"


def test_metrics_in_a_bucket(bucket, tmp_path):
    for start, last in ((0, 3), (2, 4)):
        writer = MetricWriter(f"{bucket}/run", start)
        for step in range(start + 1, last + 1):
            writer.write(step, {"train/loss": 1.0 * step})
            if step == last - 1:
                writer.publish()
                assert json.loads((tmp_path / "run" / METRICS).read_text().splitlines()[-1])["step"] == step
        writer.close()
    rows = [json.loads(line) for line in (tmp_path / "run" / METRICS).read_text().splitlines()]
    assert rows == [{"step": step, "train/loss": 1.0 * step} for step in (1, 2, 3, 4)]
    assert any(path.stat().st_size > 100 for path in (tmp_path / "run" / "tensorboard").iterdir())


def test_claim_in_a_bucket(bucket, tmp_path):
    with Claim(bucket, beat_s=0.1):
        assert _entry(tmp_path)["pid"] == os.getpid()
        with pytest.raises(WorkdirInUse):
            Claim(bucket).__enter__()
    assert not (tmp_path / FILE).exists()
