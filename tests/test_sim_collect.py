"""Trajectory shards of the simulated table-top."""

import json

import numpy as np
import pytest

from jepa_jax import data
from jepa_jax.data.trajectory_clips import sample_trajectory
from jepa_jax.data.video import decode_frames
from jepa_jax.sim import PHASES, cameras, collect, episodes

_ARGUMENTS = ("--episodes", "5", "--frames", "12", "--size", "32", "--per-shard", "2", "--workers", "0")


def _collect(folder, *more):
    assert collect.main(["--output", str(folder), *_ARGUMENTS, *more]) == 0
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.array_record"))}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tabletop")
    _collect(folder, "--camera", "front,wrist")
    return folder


def _records(folder):
    source = data.ShardSource([str(folder)], kind="trajectory")
    return [source[index] for index in range(len(source))]


def test_shards_hold_what_was_simulated(folder):
    records = _records(folder)
    assert len(records) == 5 and len({record.source_id for record in records}) == 5
    for record in records:
        assert [view.name for view in record.views] == ["front", "wrist"] and record.control_rate == 4.0
        assert record.states.shape == record.actions.shape == (12, 7)
        assert {name: array.shape[1] for name, array in record.extras.items()} == {
            "box_position": 3, "cup_position": 3, "plate_position": 3, "held": 1, "phase": 1,
        }  # fmt: skip
        front, wrist = (view.extrinsics for view in record.views)
        assert np.ptp(front, axis=0).max() == 0 and np.ptp(wrist, axis=0).max() > 0
        assert 0 < np.abs(front[0] - cameras.extrinsics("front", None, 0)).max() <= 0.0301
        held = record.extras["held"][:, 0] >= 0
        positions = np.stack([record.extras[f"{name}_position"] for name in ("box", "cup")])
        near = np.linalg.norm(positions - record.states[:, :3], axis=-1).min(0)
        assert (near[held] < 0.08).all()
        assert decode_frames(record.views[0].data, range(12)).shape == (12, 32, 32, 3)
    clip = sample_trajectory(records[0], frames=8, fps=4, uniforms=(0.0, 0.5))
    np.testing.assert_array_equal(clip.states, records[0].states[clip.indices])
    assert clip.frames[0].shape == (32, 32, 3) and clip.indices[1] - clip.indices[0] == 1
    report = json.loads((folder / "tabletop-report.json").read_text())
    assert report["episodes"] == 5 and report["frames"] == 60
    assert set(report["steps_by_phase"]) == set(PHASES) and sum(report["steps_by_phase"].values()) == pytest.approx(1)


def test_stored_frames_look_like_the_drawn_ones(monkeypatch):
    drawn, encode = [], episodes.encode_video

    def keep(frames, *more):
        drawn.extend(frames := list(frames))
        return encode(frames, *more)

    monkeypatch.setattr(episodes, "encode_video", keep)
    # The settings of the other tests: nothing new is compiled.
    spec = episodes.TabletopSpec(min_frames=1, frames=12, size=32, cameras=("front", "wrist"))
    record = spec.convert(episodes.Draw("train", 0, 0)).record
    stored = np.concatenate([decode_frames(view.data, range(12)).astype(int) for view in record.views])
    errors = np.abs(stored - np.stack([frame.to_ndarray(format="rgb24") for frame in drawn]))
    # Few pixels are far off; where colors are stored at half the resolution, it is 40.
    assert errors.mean() < 4 and np.quantile(errors, 0.99) < 24, (errors.mean(), np.quantile(errors, 0.99))


def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(folder, tmp_path, capsys):
    whole = {path.name: path.read_bytes() for path in sorted(folder.glob("*.array_record"))}
    for path in folder.glob("*"):
        if path.is_file() and "-00001-" not in path.name and "-report" not in path.name:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / ".tabletop-reports").mkdir()
    for path in (folder / ".tabletop-reports").glob("*"):
        (tmp_path / ".tabletop-reports" / path.name).write_bytes(path.read_bytes())
    assert len(list(tmp_path.glob("*.array_record"))) == 2
    assert _collect(tmp_path, "--camera", "front,wrist") == whole
    assert "5 episodes in" in capsys.readouterr().out
    # Another strength is another data set.
    assert collect.main(["--output", str(tmp_path), *_ARGUMENTS, "--nuisance", "light=0.5"]) == 2
    assert "made from another list or with other settings" in capsys.readouterr().err


def test_splits_and_seeds_differ(folder, tmp_path):
    first = _records(folder)[0].states
    for number, more in enumerate((("--split", "test"), ("--seed", "1"))):
        _collect(tmp_path / str(number), "--camera", "front,wrist", *more)
        assert np.abs(_records(tmp_path / str(number))[0].states[0] - first[0]).max() > 1e-3


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (("--size", "33"), "33 is odd"),
        (("--camera", "back"), "give distinct names of front, left, right, top, wrist"),
        (("--nuisance", "2"), "'2' is no strength from 0 to 1"),
        (("--nuisance", "fog=1"), "there is no nuisance fog; kinds: table, light, distractors, camera"),
        (("--nuisance", "light="), "'light=' is not NAME=VALUE"),
        (("--nuisance", "light=1,light=0.5"), "gives a kind of nuisance twice"),
    ],
)
def test_wrong_arguments_are_named(wrong, message, tmp_path, capsys):
    with pytest.raises(SystemExit):
        collect.main(["--output", str(tmp_path), *wrong])
    assert message in capsys.readouterr().err


def test_missing_episodes_are_said(tmp_path, monkeypatch, capsys):
    convert = episodes.TabletopSpec.convert

    def fail_once(spec, draw):
        if draw.number == 1:
            raise RuntimeError("no way to draw")
        return convert(spec, draw)

    monkeypatch.setattr(episodes.TabletopSpec, "convert", fail_once)
    assert collect.main(["--output", str(tmp_path), *_ARGUMENTS]) == 1
    said = capsys.readouterr().out
    assert "4 episodes in" in said and "skipped, unexpected error: 1 (tabletop/train/0/000001)" in said
    assert "error: 1 of 5 episodes are missing; first: " in said and "no way to draw" in said
    assert json.loads((tmp_path / "tabletop-report.json").read_text())["skipped"] == 1
