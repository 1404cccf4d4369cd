"""Reports side by side."""

import json
import re

import pytest

from jepa_jax import evaluate

REACHED = {"one_step_to_copy_last": 0.7, "open_loop_to_copy_last": 0.72, "shuffled_to_true_one_step": 1.5}


def report(folder, name, *, copying=1.0, far=(5.0, 6.0), true=(5.0, 7.0), positions=("hand",)):
    errors = {"open_loop": {"value": list(far)}, "true_latents": {"value": list(true)}}
    found = {
        "ratios": {key: {"value": copying * value} for key, value in REACHED.items()},
        "errors": {"one_step": {"model": {"value": [0.1] * len(far)}}},
        "positions": {position: {"errors": errors} for position in positions},
    }
    (folder / name).write_text(json.dumps(found))
    return folder / name


def run(capsys, *arguments):
    status = evaluate.main(["compare", *map(str, arguments)])
    said = capsys.readouterr()
    return status, said.out.splitlines(), said.err


def test_lowest_and_highest_of_several_seeds(tmp_path, capsys):
    report(tmp_path, "seed0-trained.json")
    report(tmp_path, "seed1-trained.json", copying=1.1, far=(5.0, 8.0))
    random = report(tmp_path, "random.json", copying=1.4, far=(9.0, 14.0), true=(7.0, 9.0))
    status, lines, _ = run(capsys, f"trained={tmp_path}/seed*-trained.json", f"random={random}")
    assert status == 0
    heading, _, trained, other, _, gain = lines
    assert "open loop at 2 / copying" in heading and "hand at 2, cm" in heading
    assert trained == "| trained | 2 | 0.70-0.77 | 0.72-0.79 | 1.50-1.65 | 6.0-8.0 | 6.0 |"
    assert other == "| random | 1 | 0.98 | 1.01 | 2.10 | 14.0 | 8.0 |"
    # 7 cm on average against 14, and 6 against 8.
    assert gain == "* errors of trained are below those of random by 50% hand at 2, 25% hand in true latents"


def test_reports_without_positions(tmp_path, capsys):
    paths = [report(tmp_path, name, positions=()) for name in ("a", "b")]
    status, lines, _ = run(capsys, f"a={paths[0]}", f"b={paths[1]}")
    assert status == 0 and lines[2] == "| a | 1 | 0.70 | 0.72 | 1.50 |" and len(lines) == 5


def probe_report(folder, name, *top1, n=100, frames=8):
    protocol = {"name": "demo", "frames": frames, "frame_step": 2, "num_segments": 1, "num_views": 1, "crop_size": 64, "layers": []}
    rows = [{"top1": value, "top5": 90.0, "class_mean": value + 1} for value in top1]
    found = {"protocol": protocol, "n": n, "skipped": 100 - n, "classes": 8, "best": top1.index(max(top1)), "probes": rows}
    (folder / name).write_text(json.dumps(found))
    return folder / name


def test_probes_of_several_seeds(tmp_path, capsys):
    probe_report(tmp_path, "seed0.json", 40.0, 60.0)
    probe_report(tmp_path, "seed1.json", 70.0, 10.0, n=98)
    random = probe_report(tmp_path, "random.json", 20.04, 20.0)
    status, lines, _ = run(capsys, f"trained={tmp_path}/seed*.json", f"random={random}")
    assert status == 0 and lines == [
        "| | reports | top-1, % | top-5, % | mean over classes, % |", "|---|---|---|---|---|",
        "| trained | 2 | 60.0-70.0 | 90.0 | 61.0-71.0 |", "| random | 1 | 20.0 | 90.0 | 21.0 |", "",
        "* points of trained above random: 45.0 top-1, 0.0 top-5, 45.0 mean over classes",
    ]
    other = probe_report(tmp_path, "other.json", 50.0, frames=16)
    status, _, said = run(capsys, f"a={random}", f"b={other}")
    assert status == 2 and "other.json is about 100 videos of 8 classes seen as demo: 1 segment of 16 frames every 2" in said
    assert "cannot be compared" in run(capsys, f"a={random}", f"b={report(tmp_path, 'rollout.json')}")[2]


def robot_report(folder, name, *rows, **settings):
    made = [{"task": task, "policy": policy, "encoder": "trained" if policy == "model" else "", "episodes": episodes,
             "end": {"value": end / episodes}, "ever": {"value": ever / episodes}} for task, policy, episodes, end, ever in rows]
    (folder / name).write_text(json.dumps({"settings": {"seeds": [20], **settings}, "rows": made}))
    return folder / name


def test_episodes_of_several_reports_are_counted_together(tmp_path, capsys):
    robot_report(tmp_path, "seed0.json", ("grasp-box", "model", 50, 16, 40), ("reach", "model", 50, 42, 45), ("reach", "random", 50, 0, 1))
    robot_report(tmp_path, "seed1.json", ("reach", "model", 50, 44, 47), world="tabletop")
    status, lines, _ = run(capsys, f"ours={tmp_path}/seed*.json")
    assert status == 0 and lines == [
        "| at the end, % [95 %] (ever) | reach | grasp-box |", "|---|---|---|",
        "| ours: model, encoder trained | 86 [78, 91] (92) of 100, each 84, 88 | 32 [21, 46] (80) of 50 |",
        "| ours: random | 0 [0, 7] (2) of 50 |  |",
    ]
    other = robot_report(tmp_path, "other.json", ("reach", "model", 50, 44, 47), world="panda")
    status, _, said = run(capsys, f"a={tmp_path}/seed0.json", f"b={other}")
    assert status == 2 and "other.json is about world panda, range None" in said and "they cannot be compared" in said


@pytest.mark.parametrize("fields, message", [
    ({"far": (1.0, 2.0, 3.0)}, "is about 3 steps and hand, .* about 2 steps and hand: they cannot be compared"),
    ({"positions": ()}, "is about 2 steps, .* about 2 steps and hand"),
])
def test_reports_that_cannot_be_compared(fields, message, tmp_path, capsys):
    first, other = report(tmp_path, "first"), report(tmp_path, "other", **fields)
    status, _, said = run(capsys, f"a={first}", f"b={other}")
    assert status == 2 and re.search(message, said)


def test_files_that_are_no_reports(tmp_path, capsys):
    for text in ("[]", "not JSON"):
        (tmp_path / "other.json").write_text(text)
        assert "other.json is no report of `evaluate rollout` or `evaluate probe` or `evaluate robot`" in run(capsys, f"a={tmp_path}/other.json")[2]
    assert "nothing*: there is no such file" in run(capsys, f"a={tmp_path}/nothing*")[2]
