"""`prepare rlds` on TFRecords written here byte by byte."""

import json

import media
import numpy as np
import pytest
import robots

from jepa_jax import data, prepare
from jepa_jax.data import video
from jepa_jax.data.sources import examples


def _run(source, output, *more):
    return prepare.main(["rlds", str(source), "--output", str(output), "--workers", "0", "--size", "48", *more])


def _droid(source, output, *more):
    return _run(source, output, "--preset", "droid", "--views", "exterior_1,wrist", *more)


def _records(folder):
    source = data.ShardSource([str(folder)], kind="trajectory")
    return [source[index] for index in range(len(source))]


def _report(folder):
    return json.loads((folder / "rlds-report.json").read_text())


def _write(path, episodes):
    robots.write_tfrecord(path, [robots.example_bytes(features) for features in episodes])
    return str(path)


def test_examples_are_read_as_they_were_written(tmp_path):
    features = {"a/b": [b"", b"x" * 300], "f": np.float32([1.5, -2e-9]), "i": np.arange(5), "ü": np.float32([])}
    path = _write(tmp_path / "x.tfrecord", [features, {}])
    first, second = examples.list_examples([path])
    assert examples.read_example(second) == {}
    read = examples.read_example(first)
    assert read["a/b"] == features["a/b"]
    for name, dtype in (("f", np.float32), ("i", np.int64), ("ü", np.float32)):
        np.testing.assert_array_equal(read[name], features[name])
        assert read[name].dtype == dtype
    # The class that TensorFlow would use writes the same bytes for the same content.
    example = examples.example_class()()
    example.features.feature["f"].float_list.value.extend([1.5, -2e-9])
    assert example.SerializeToString() == robots.example_bytes({"f": features["f"]})


def test_episodes_of_droid(tmp_path):
    folder = tmp_path / "droid ü" / "1.0.0"
    folder.mkdir(parents=True)
    (folder / "features.json").write_text("{}")
    first, states = robots.rlds_episode(20)
    second, _ = robots.rlds_episode(12, seed=1)
    _write(folder / "droid-train.tfrecord-00000-of-00002", [first, second])
    _write(folder / "droid-train.tfrecord-00001-of-00002", [second])
    assert _droid(tmp_path, tmp_path / "out") == 0
    records = _records(tmp_path / "out")
    names = [record.source_id for record in records]
    assert names == [f"{folder}/droid-train.tfrecord-0000{s}-of-00002#{n}" for s, n in ((0, 0), (0, 1), (1, 0))]
    record = records[0]
    np.testing.assert_array_equal(record.states, states)
    assert (record.actions, record.control_rate, record.rotation) == (None, 15.0, "xyz euler")
    assert record.instruction == "öffne die Schublade" and record.state_names[-1] == "gripper"
    assert [view.name for view in record.views] == ["exterior_1", "wrist"]
    for view in record.views:
        assert video.probe(view.data) == (20, 15.0, 48, 72)
        assert [media.read_number(frame) for frame in video.decode_frames(view.data, range(20))] == list(range(20))
    assert _report(tmp_path / "out")["fps_histogram"] == {"15": 3}


def test_features_are_named_by_flags(tmp_path, capsys):
    features, states = robots.rlds_episode(12)
    _write(tmp_path / "a.tfrecord", [features])
    flags = ["--view", "eye=observation/wrist_image_left", "--state", "observation/gripper_position",
             "--action", "observation/cartesian_position", "--rate", "5", "--instruction", "is_last"]  # fmt: skip
    assert _run(tmp_path / "a.tfrecord", tmp_path / "out", *flags) == 0
    (record,) = _records(tmp_path / "out")
    assert (record.views[0].name, record.control_rate, record.rotation, record.frame) == ("eye", 5.0, "none", "unknown")
    np.testing.assert_array_equal(record.states, states[:, 6:])
    np.testing.assert_array_equal(record.actions, states[:, :6])
    assert record.state_names == ("gripper_position.0",) and record.instruction is None
    assert _run(tmp_path / "a.tfrecord", tmp_path / "other") == 2
    assert "give --view, --state, --rate, or a --preset of bridge, droid" in capsys.readouterr().err
    assert _droid(tmp_path / "a.tfrecord", tmp_path / "other", "--views", "left") == 2
    assert "the preset has exterior_1, exterior_2, wrist" in capsys.readouterr().err
    assert _run(tmp_path / "a.tfrecord", tmp_path / "other", "--preset", "bridge") == 1
    (skip,) = _report(tmp_path / "other")["skips"]
    assert skip["reason"] == "example lacks data"
    assert "'observation/image_0' holds no encoded pictures; those that do: " in skip["message"]
    assert "observation/wrist_image_left" in skip["message"]
    assert _droid(tmp_path / "none", tmp_path / "third") == 2
    assert "holds no file with '.tfrecord' or '.array_record' in its name" in capsys.readouterr().err


def test_damage_is_counted_by_reason(tmp_path):
    shots = robots.rlds_episode(12)[0]["steps/observation/wrist_image_left"]
    bad = {
        "rows do not match frames": {"gripper_position": np.zeros(11, np.float32)},
        "states not finite": {"gripper_position": np.full(12, np.nan, np.float32)},
        "not an image": {"wrist_image_left": [*shots[:5], b"nothing", *shots[6:]]},
        "empty file": {"exterior_image_1_left": [b""] * 12},
    }
    episodes = [robots.example_bytes(robots.rlds_episode(12, **changes)[0]) for changes in bad.values()]
    good = robots.example_bytes(robots.rlds_episode(12)[0])
    robots.write_tfrecord(tmp_path / "a.tfrecord", [*episodes, b"\xff\xff\xff", good, good])
    # One flipped bit in the data of the last record, which then fails its checksum.
    media.flip_byte(tmp_path / "a.tfrecord", -400)
    assert _droid(tmp_path, tmp_path / "out", "--max-skip-fraction", "0.9") == 0
    assert [record.source_id for record in _records(tmp_path / "out")] == [f"{tmp_path}/a.tfrecord#5"]
    reasons = {skip["path"].rpartition("#")[2]: skip["reason"] for skip in _report(tmp_path / "out")["skips"]}
    assert reasons == {**{str(n): reason for n, reason in enumerate(bad)}, "4": "not an example", "6": "corrupt record"}


@pytest.mark.parametrize("damage", ["cut", "header"])
def test_rest_of_a_damaged_file_is_lost_and_said_so(damage, tmp_path):
    path = tmp_path / "a.tfrecord"
    good = robots.example_bytes(robots.rlds_episode(12)[0])
    robots.write_tfrecord(path, [good] * 3)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-50])
    else:
        media.flip_byte(path, 2 * (len(good) + 16) + 1)
    assert _droid(path, tmp_path / "out", "--max-skip-fraction", "0.5") == 0
    assert len(_records(tmp_path / "out")) == 2
    (skip,) = _report(tmp_path / "out")["skips"]
    assert (skip["path"], skip["reason"]) == (f"{path}#2", "unreadable tfrecord")


def test_array_record_files_are_read_too(tmp_path):
    features, states = robots.rlds_episode(12)
    media.write_shard(
        tmp_path / "droid-train.array_record-00000-of-00001", [b"nothing", robots.example_bytes(features)]
    )
    assert _droid(tmp_path, tmp_path / "out", "--max-skip-fraction", "0.5") == 0
    (record,) = _records(tmp_path / "out")
    np.testing.assert_array_equal(record.states, states)
    assert record.source_id.endswith("#1") and _report(tmp_path / "out")["skips_by_reason"] == {"not an example": 1}


def test_killed_and_parallel_runs_give_the_same_bytes(tmp_path):
    _write(tmp_path / "a.tfrecord", [robots.rlds_episode(12, seed)[0] for seed in range(3)])
    for name, workers in (("serial", "0"), ("parallel", "2")):
        assert _droid(tmp_path / "a.tfrecord", tmp_path / name, "--per-shard", "2", "--workers", workers) == 0
    shard = "rlds-00001-of-00002.array_record"
    whole = (tmp_path / "serial" / shard).read_bytes()
    assert (tmp_path / "parallel" / shard).read_bytes() == whole
    (tmp_path / "serial" / shard).unlink()
    assert _droid(tmp_path / "a.tfrecord", tmp_path / "serial", "--per-shard", "2") == 0
    assert (tmp_path / "serial" / shard).read_bytes() == whole


def test_splits_and_versions_are_not_mixed(tmp_path, capsys):
    episodes = iter(range(100))
    for version in ("1.0.0", "1.0.1"):
        folder = tmp_path / "set" / version
        folder.mkdir(parents=True)
        for split in ("train", "val", "test"):
            _write(folder / f"droid-{split}.tfrecord-00000-of-00001", [robots.rlds_episode(12, next(episodes))[0]])
    assert _droid(tmp_path / "set", tmp_path / "out") == 2
    assert "several versions of one data set, 1.0.0, 1.0.1: name the folder of one" in capsys.readouterr().err
    folder = tmp_path / "set" / "1.0.1"
    for split, count in ((None, 1), ("val", 1), ("all", 3)):
        out = tmp_path / f"out_{split}"
        assert _droid(folder, out, *(["--split", split] if split else [])) == 0
        names = [record.source_id for record in _records(out)]
        assert len(names) == count and (count > 1 or f"droid-{split or 'train'}." in names[0])
    assert _droid(folder, tmp_path / "none", "--split", "vall") == 2
    assert "has no split 'vall'; it has test, train, val: choose by --split" in capsys.readouterr().err
    # Names that say nothing of a split, and files that are named themselves, are taken.
    _write(tmp_path / "set" / "1.0.1" / "mine.tfrecord", [robots.rlds_episode(12)[0]])
    assert len(examples.list_examples([str(folder)], "test")) == 2
    assert len(examples.list_examples([str(next(folder.glob("*val*")))], "train")) == 1


def test_grippers_of_presets_agree(tmp_path):
    """1 is open in Bridge and closed in DROID; both are stored as DROID has it."""
    features, states = robots.rlds_episode(12)
    shots = features["steps/observation/wrist_image_left"]
    bridge = {
        "steps/observation/image_0": shots, "steps/observation/state": states.reshape(-1),
        "steps/action": states.reshape(-1),
    }  # fmt: skip
    _write(tmp_path / "b.tfrecord", [bridge])
    _write(tmp_path / "d.tfrecord", [features])
    assert _run(tmp_path / "b.tfrecord", tmp_path / "bridge", "--preset", "bridge") == 0
    assert _droid(tmp_path / "d.tfrecord", tmp_path / "droid") == 0
    (one,), (other,) = _records(tmp_path / "bridge"), _records(tmp_path / "droid")
    np.testing.assert_allclose(one.states[:, 6], 1 - states[:, 6], rtol=1e-6)
    np.testing.assert_array_equal(other.states, states)
    np.testing.assert_array_equal(one.actions, states)
    assert one.gripper_range == other.gripper_range == (0.0, 1.0) and one.state_units == other.state_units
