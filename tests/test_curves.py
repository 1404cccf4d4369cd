"""Loss curves of runs on several numbers of processes, compared."""

import json

import pytest
from configs import pretrain
from jepa_jax.bench import curves


@pytest.fixture
def runs(tmp_path):
    """A function that writes a run with these losses and returns its folder."""

    def write(name, losses, **mesh):
        folder = tmp_path / name
        folder.mkdir()
        config = pretrain.get_config("demo")
        config.mesh.update({"distributed": name != "1"} | mesh)
        (folder / "config.json").write_text(config.to_json_best_effort())
        rows = [json.dumps({"step": step, "train/loss": loss}) + "\n" for step, loss in losses]
        (folder / "metrics.jsonl").write_text("".join(rows))
        return f"{name}={folder}"

    return write


def test_largest_difference_is_recorded_and_judged(runs, tmp_path, capsys):
    one = runs("1", [(1, 0.5), (2, 0.25)])
    two = runs("2", [(1, 0.5), (2, 0.25 * (1 + 4e-7))])
    four = runs("4", [(1, 0.5 * (1 + 3e-6)), (2, 0.25)])
    output = tmp_path / "record.json"
    assert curves.main([one, two, "--output", str(output)]) == 0
    record = json.loads(output.read_text())
    assert record["largest_difference"] == {"1": 0.0, "2": pytest.approx(4e-7, rel=1e-3)} and record["steps"] == 2
    assert str(tmp_path) not in json.dumps(record)
    assert curves.main([one, two, four, "--output", str(output)]) == 1
    assert "4 processes: largest relative difference of the loss 3e-06" in capsys.readouterr().out


def test_runs_that_cannot_be_compared(runs, tmp_path, capsys):
    one = runs("1", [(1, 0.5), (2, 0.25)])
    assert curves.main([one, runs("2", [(2, 0.25)])]) == 2
    assert "does not hold the steps 1 to 2" in capsys.readouterr().err
    assert curves.main([one, runs("4", [(1, 0.5), (2, 0.25)], fsdp=2)]) == 2
    assert "different configs" in capsys.readouterr().err
    assert curves.main([one, f"8={tmp_path}/none"]) == 2
