"""`prepare tfds` on data sets written here, and on one that TensorFlow Datasets wrote."""

import io
import json

import cv2
import media
import numpy as np
import peers
import robots

from jepa_jax import data, prepare
from jepa_jax.data import video

_CLASS = "tensorflow_datasets.core.features"


def _run(source, output, *more):
    return prepare.main(["tfds", str(source), "--output", str(output), "--workers", "0", "--size", "48", *more])


def _records(folder):
    source = data.ShardSource([str(folder)])
    return [source[index] for index in range(len(source))]


def _report(folder):
    return json.loads((folder / "tfds-report.json").read_text())


def _describe(folder, **kinds):
    folder.mkdir(parents=True, exist_ok=True)
    features = {name: {"pythonClassName": f"{_CLASS}.{kind.lower()}_feature.{kind}"} for name, kind in kinds.items()}
    (folder / "features.json").write_text(json.dumps({"featuresDict": {"features": features}}))


def _png(number):
    return cv2.imencode(".png", media.numbered_frame(number)[..., ::-1])[1].tobytes()


def test_images_with_labels_in_both_containers(tmp_path):
    folder = tmp_path / "mnist ü" / "1.0.0"
    _describe(folder, image="Image", label="ClassLabel", id="Text")
    examples = [robots.example_bytes({"image": [_png(n)], "label": np.array([n % 3])}) for n in range(4)]
    robots.write_tfrecord(folder / "mnist-train.tfrecord-00000-of-00002", examples[:2])
    media.write_shard(folder / "mnist-train.array_record-00001-of-00002", examples[2:])
    robots.write_tfrecord(folder / "mnist-test.tfrecord-00000-of-00001", examples)
    assert _run(folder, tmp_path / "out") == 0
    records = _records(tmp_path / "out")
    assert sorted((media.read_number(video.decode_image(r.data)), r.label, r.height) for r in records) == [
        (n, n % 3, 48) for n in range(4)
    ]
    assert len({record.source_id for record in records}) == 4
    assert _run(folder, tmp_path / "test", "--split", "test", "--label", "") == 0
    assert [record.label for record in _records(tmp_path / "test")] == [None] * 4


def test_videos_need_a_rate(tmp_path, capsys):
    folder = tmp_path / "1.0.0"
    _describe(folder, video="Video", label="ClassLabel", other="ClassLabel")
    clips = [list(map(_png, range(length))) for length in (9, 3)]
    examples = [robots.example_bytes({"video": clip, "label": np.array([7])}) for clip in clips]
    broken = robots.example_bytes({"video": [*clips[0][:4], b"x", *clips[0][5:]], "label": np.array([7])})
    robots.write_tfrecord(folder / "ucf-train.tfrecord", [*examples, broken, robots.example_bytes({})])
    assert _run(folder, tmp_path / "out") == 2
    assert "give its frames per second by --rate" in capsys.readouterr().err
    assert _run(folder, tmp_path / "out", "--rate", "25", "--label", "label", "--max-skip-fraction", "0.8") == 0
    (record,) = _records(tmp_path / "out")
    assert (record.kind, record.fps, record.num_frames, record.label) == ("video", 25.0, 9, 7)
    assert [media.read_number(frame) for frame in video.decode_frames(record.data, range(9))] == list(range(9))
    reasons = _report(tmp_path / "out")["skips_by_reason"]
    assert reasons == {"too short": 1, "not an image": 1, "example lacks data": 1}


def test_descriptions_that_do_not_fit_are_refused(tmp_path, capsys):
    assert _run(tmp_path, tmp_path / "out") == 2
    assert "holds no features.json" in capsys.readouterr().err
    _describe(tmp_path, left="Image", right="Image")
    assert _run(tmp_path, tmp_path / "out") == 2
    assert "2 features of kind Image or Video (left, right); choose by --picture" in capsys.readouterr().err
    assert _run(tmp_path, tmp_path / "out", "--picture", "top") == 2
    assert "has no feature 'top'; it has left, right" in capsys.readouterr().err
    assert _run(tmp_path, tmp_path / "out", "--picture", "left") == 2
    assert "holds no file with '.tfrecord'" in capsys.readouterr().err
    (tmp_path / "features.json").write_text("[]")
    assert _run(tmp_path, tmp_path / "out") == 2
    assert "no readable description" in capsys.readouterr().err


def _tfds():
    peers.need("tensorflow_datasets", "importlib_resources")
    import tensorflow_datasets

    return tensorflow_datasets


def test_data_set_that_tensorflow_datasets_wrote(tmp_path):
    features = _tfds().features
    description = features.FeaturesDict(
        {
            "image": features.Image(shape=(None, None, 3)),
            "label": features.ClassLabel(names=["a", "b"]),
            "id": features.Text(),
        }
    )
    folder = tmp_path / "mine" / "1.0.0"
    folder.mkdir(parents=True)
    description.save_config(str(folder))
    contents = [{"image": io.BytesIO(_png(n)), "label": "ab"[n % 2], "id": str(n)} for n in range(3)]
    examples = [description.serialize_example(description.encode_example(content)) for content in contents]
    media.write_shard(folder / "mine-train.array_record-00000-of-00001", examples)
    assert _run(folder, tmp_path / "out") == 0
    found = [
        (media.read_number(video.decode_image(record.data)), record.label) for record in _records(tmp_path / "out")
    ]
    assert found == [(0, 0), (1, 1), (2, 0)]


def test_episodes_that_tensorflow_datasets_wrote(tmp_path):
    features = _tfds().features
    states = robots.smooth_states(12).astype(np.float32)
    observation = {
        "image_0": features.Image(shape=(64, 96, 3)),
        "state": features.Tensor(shape=(7,), dtype=np.float32),
    }
    steps = {
        "observation": observation, "action": features.Tensor(shape=(7,), dtype=np.float32),
        "is_first": features.Scalar(dtype=np.bool_), "language_instruction": features.Text(),
    }  # fmt: skip
    description = features.FeaturesDict(
        {"steps": features.Dataset(steps), "episode_metadata": {"file_path": features.Text()}}
    )
    content = [
        {
            "observation": {"image_0": io.BytesIO(_png(row)), "state": states[row]}, "action": states[row] * 2,
            "is_first": row == 0, "language_instruction": "stack",
        }
        for row in range(12)
    ]  # fmt: skip
    episode = description.encode_example({"steps": content, "episode_metadata": {"file_path": "x"}})
    robots.write_tfrecord(tmp_path / "bridge-train.tfrecord-00000-of-00001", [description.serialize_example(episode)])
    arguments = ["rlds", str(tmp_path), "--output", str(tmp_path / "out"), "--workers", "0", "--preset", "bridge"]
    assert prepare.main(arguments) == 0
    record = data.ShardSource([str(tmp_path / "out")], kind="trajectory")[0]
    np.testing.assert_array_equal(record.states[:, :6], states[:, :6])
    # Bridge says 1 for open.
    np.testing.assert_allclose(record.states[:, 6], 1 - states[:, 6], rtol=1e-6)
    np.testing.assert_array_equal(record.actions, states * 2)
    assert (record.instruction, record.control_rate, record.gripper_range) == ("stack", 5.0, (0.0, 1.0))
    frames = video.decode_frames(record.views[0].data, range(12))
    assert [media.read_number(frame) for frame in frames] == list(range(12))
