"""Records, decoding, sampling and the pipeline, on real encoded files."""

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time

import cv2
import media
import numpy as np
import pytest

from jepa_jax import data
from jepa_jax.data import sampling, transforms, video
from jepa_jax.data.transcode import ImageSpec, VideoSpec, store_image, transcode_video

FRAMES, SIZE = 8, 32
CROP = data.CropSpec(SIZE, (0.3, 1.0), (0.75, 1.35), 0.5)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Two folders of shards: six and two videos, and one of four images."""
    folder = tmp_path_factory.mktemp("shards")
    for name, numbers in (("big", range(6)), ("small", range(6, 8)), ("pictures", range(4))):
        (folder / name).mkdir()
        records = []
        for number in numbers:
            if name == "pictures":
                file = media.write_image(folder / f"{number}.png", number=number)
                records.append(store_image(file, ImageSpec(), number))
            else:
                file = media.write_video(folder / f"{number}.mp4", frames=70 + number)
                records.append(transcode_video(file, VideoSpec(size=48), number))
        half = len(records) // 2
        for part, chunk in enumerate((records[:half], records[half:])):
            media.write_shard(folder / name / f"clips-{part:05d}-of-00002.array_record", chunk)
    return folder


def _video_group(shards, batch=4, weights=(0.75, 0.25)):
    sources = tuple(
        data.SourceSpec((str(shards / name),), weight)
        for name, weight in zip(("big", "small"), weights, strict=True)
    )
    return data.GroupSpec("clips", "video", FRAMES, 4.0, batch, sources)


def _pipeline(shards, batch=4, seed=0, process=(0, 1), **changes):
    pictures = data.GroupSpec("stills", "image", FRAMES, 4.0, 2, (data.SourceSpec((str(shards / "pictures"),), 1.0),))
    groups = changes.pop("groups", (_video_group(shards, batch), pictures))
    samplers = {group.name: media.mask_sampler(FRAMES, SIZE) for group in groups}
    return data.ClipPipeline(
        groups, CROP, samplers, seed=seed, process_index=process[0], process_count=process[1], **changes
    )


def _flat(batch):
    return [
        array
        for name in sorted(batch)
        for array in (batch[name]["video"], *batch[name]["context_ids"], *batch[name]["target_ids"])
    ]


def _assert_same(one, other):
    for a, b in zip(_flat(one), _flat(other), strict=True):
        np.testing.assert_array_equal(a, b)


# Records


def test_record_round_trip():
    record = data.ClipRecord("video", b"\x00bytes", 29.97, 48, 64, 96, "a/ü b.mp4", 3)
    assert data.decode_record(data.encode_record(record)) == record
    assert data.decode_record(data.encode_record(record._replace(label=None))).label is None


def test_source_reads_all_records_in_order_and_survives_pickling(shards):
    source = data.ShardSource([str(shards / "big")])
    assert len(source) == 6
    for copy in (source, pickle.loads(pickle.dumps(source))):
        assert [copy[index].label for index in range(6)] == list(range(6))
    assert source.locate(4).endswith("clips-00001-of-00002.array_record#1")
    with pytest.raises(IndexError):
        source[6]


def test_shards_are_found_by_folder_glob_and_file(shards):
    folder = str(shards / "big")
    files = data.resolve_shards([folder])
    assert [os.path.basename(file) for file in files] == [f"clips-{i:05d}-of-00002.array_record" for i in range(2)]
    assert data.resolve_shards([f"{folder}/*.array_record"]) == files
    assert data.resolve_shards([files[1], files[1]]) == files[1:]


# Video


@pytest.mark.parametrize(
    "options",
    [
        {"g": 12, "bf": 0},
        {"g": 250, "bf": 0},
        {"g": 12, "bf": 3},
        {"bf": 3, "x264-params": "open-gop=1:keyint=20:min-keyint=20:scenecut=0:b-adapt=0"},
        {"stamps": [number * number + 7 * number for number in range(48)], "bf": 2, "g": 12},
    ],
    ids=["close keys", "one key", "B frames", "open groups", "variable rate"],
)
def test_decoding_chosen_frames_equals_decoding_all(tmp_path, options):
    path = media.write_video(tmp_path / "a.mp4", frames=48, **options)
    everything = video.decode_frames(path, range(48))
    assert [media.read_number(frame) for frame in everything] == list(range(48))
    alone = [[number] for number in range(48)]
    for chosen in ([30, 5, 30], [1, 13, 14, 26, 40, 47, 47], [3, 19, 33], list(range(0, 48, 7)), *alone):
        np.testing.assert_array_equal(video.decode_frames(path, chosen), everything[chosen])
    with open(path, "rb") as file:
        np.testing.assert_array_equal(video.decode_frames(file.read(), [9, 33]), everything[[9, 33]])


def test_only_needed_packets_are_decoded(tmp_path):
    path = media.write_video(tmp_path / "a.mp4", frames=120, g=12, keyint_min=12, sc_threshold=0, bf=0)
    container, stream = video.open_video(path)
    with container:
        packets = video._demux(container, stream)
        fed = []

        class Counting:
            """Pass everything to the real decoder, and note what was fed."""

            def decode(self, packet):
                fed.append(packet)
                return stream.codec_context.decode(packet)

            def flush_buffers(self):
                stream.codec_context.flush_buffers()

        images = {}
        lost = video._decode_wanted(
            Counting(), packets, video.shown_packets(packets), [2, 61, 110],
            lambda frame, index: images.update({index: frame.to_ndarray(format="rgb24")}),
        )
        assert not lost
    assert {index: media.read_number(image) for index, image in images.items()} == {2: 2, 61: 61, 110: 110}
    # 0..2, 60..61 and 108..110.
    assert len(fed) == 3 + 2 + 3


def test_probe(tmp_path):
    path = media.write_video(tmp_path / "a.mp4", frames=33, fps=25, height=48, width=80)
    assert video.probe(path) == (33, 25.0, 48, 80)


def test_image_is_rgb_and_upright(tmp_path):
    red = np.zeros((20, 40, 3), np.uint8)
    red[:, :20, 2] = 255
    jpeg = cv2.imencode(".jpg", red, [cv2.IMWRITE_JPEG_QUALITY, 100])[1].tobytes()
    # An EXIF block that says: turn by 90 degrees.
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    turned = jpeg[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + jpeg[2:]
    assert video.decode_image(jpeg).shape == (20, 40, 3)
    image = video.decode_image(turned)
    assert image.shape == (40, 20, 3)
    assert image[5, 10, 0] > 200 and image[5, 10, 2] < 50


# Sampling and crops


def test_frame_indices_of_the_spec():
    long = sampling.sample_frame_indices(400, 30, frames=16, fps=4, random=False)
    assert long[0].tolist() == [0, 7, 14, 22, 29, 37, 44, 52, 59, 67, 74, 82, 89, 97, 104, 111]
    short = sampling.sample_frame_indices(40, 30, frames=16, fps=4, random=False)
    assert short[0].tolist() == [0, 10, 20, 30] + [39] * 12
    overlapping = sampling.sample_frame_indices(
        46, 30, frames=16, num_clips=2, step=4, allow_overlap=True, random=False
    )
    expected = [0, 4, 9, 13, 18, 22, 27, 31, 36, 40] + [44] * 6
    assert overlapping.tolist() == [expected, expected]
    one = sampling.sample_frame_indices(1, 30, frames=16, num_clips=2, step=4, allow_overlap=True, random=False)
    assert not one.any()
    with pytest.raises(ValueError, match="num_frames"):
        sampling.sample_frame_indices(0, 30, frames=16, fps=4, random=False)


def test_frame_indices_stay_inside_any_video():
    rng = np.random.default_rng(0)
    for _ in range(300):
        length, frames, clips = int(rng.integers(1, 400)), int(rng.integers(1, 33)), int(rng.integers(1, 4))
        indices = sampling.sample_frame_indices(
            length,
            float(rng.uniform(4, 60)),
            frames=frames,
            num_clips=clips,
            fps=4,
            allow_overlap=bool(rng.integers(2)),
            uniforms=rng.random(clips),
        )
        assert indices.shape == (clips, frames) and indices.dtype == np.int32
        assert indices.min() >= 0 and indices.max() < length
        assert (np.diff(indices, axis=1) >= 0).all()


def test_crop_fallback_of_the_spec():
    never = np.ones((transforms.CROP_ATTEMPTS, 4)) * 0.999
    assert transforms.random_crop_box(720, 1280, (3.0, 3.0), (0.75, 1.35), never) == (0, 154, 720, 972)


def test_rounded_crop_is_the_float_crop_to_the_nearest_level():
    frames = np.random.default_rng(0).integers(0, 256, (3, 90, 120, 3), np.uint8)
    for box in ((3, 5, 41, 60), (0, 0, 90, 120), (10, 20, 12, 9)):
        expected = np.rint(transforms.crop_resize(frames, box, 48)).astype(np.uint8)
        np.testing.assert_array_equal(transforms.crop_resize_uint8(frames, box, 48), expected)


# Pipeline


def test_batch_has_the_promised_form(shards):
    batch, notes = _pipeline(shards).batch_at(0)
    assert notes.clips == {"clips/big": 3, "clips/small": 1, "stills/pictures": 2} and not notes.skips
    assert batch["clips"]["video"].shape == (4, FRAMES, SIZE, SIZE, 3)
    assert batch["stills"]["video"].shape == (2, 1, SIZE, SIZE, 3)
    for group, rows in (("clips", 4), ("stills", 2)):
        assert batch[group]["video"].dtype == np.uint8
        for ids in (*batch[group]["context_ids"], *batch[group]["target_ids"]):
            assert ids.dtype == np.int32 and ids.shape[0] == rows


def test_clip_shows_the_sampled_frames_in_order(shards):
    source = data.ShardSource([str(shards / "big")])
    whole = data.CropSpec(SIZE, (1.0, 1.0), (1.5, 1.5), 0.0)
    rng = np.random.default_rng(3)
    clip = data.pipeline.load_clip(source[0], _video_group(shards), whole, rng)
    window = np.random.default_rng(3).random(1)
    expected = sampling.sample_frame_indices(70, 30.0, frames=FRAMES, fps=4, uniforms=window)[0]
    assert [media.read_number(frame) for frame in clip] == expected.tolist()


def test_image_in_a_video_group_is_repeated(shards):
    source = data.ShardSource([str(shards / "pictures")])
    clip = data.pipeline.load_clip(source[2], _video_group(shards), CROP, np.random.default_rng(0))
    assert clip.shape == (FRAMES, SIZE, SIZE, 3)
    assert (clip == clip[:1]).all()


def test_batches_depend_on_seed_and_step_only(shards):
    pipeline = _pipeline(shards)
    later = pipeline.batch_at(7)[0]
    pipeline.batch_at(2)
    _assert_same(later, pipeline.batch_at(7)[0])
    _assert_same(later, _pipeline(shards).batch_at(7)[0])
    assert (later["clips"]["video"] != pipeline.batch_at(8)[0]["clips"]["video"]).any()
    assert (later["clips"]["video"] != _pipeline(shards, seed=1).batch_at(7)[0]["clips"]["video"]).any()


def test_processes_share_one_global_batch(shards):
    whole = _flat(_pipeline(shards).batch_at(3)[0])
    parts = [_flat(_pipeline(shards, process=(index, 2)).batch_at(3)[0]) for index in range(2)]
    for array, *halves in zip(whole, *parts, strict=True):
        np.testing.assert_array_equal(array, np.concatenate(halves))


def test_epoch_covers_every_record_once_and_weights_hold(shards, tmp_path):
    more = [store_image(media.write_image(tmp_path / f"{n}.png", number=n), ImageSpec()) for n in (100, 101)]
    media.write_shard(tmp_path / "more.array_record", more)
    sources = (data.SourceSpec((str(shards / "pictures"),), 3.0), data.SourceSpec((str(tmp_path),), 1.0))
    group = data.GroupSpec("stills", "image", 1, 4.0, 16, sources)
    whole = data.CropSpec(96, (1.0, 1.0), (1.5, 1.5), 0.0)

    def shown(seed):
        pipeline = data.ClipPipeline((group,), whole, {"stills": media.mask_sampler()}, seed=seed)
        batches = [pipeline.batch_at(step)[0]["stills"]["video"] for step in range(4)]
        return [tuple(media.read_number(clip[0]) for clip in batch) for batch in batches]

    batches = shown(0)
    assert batches != shown(1) and len(set(batches)) == 4
    # Three epochs of the first source in a batch, two of the second.
    assert all(sorted(batch) == [*sorted([0, 1, 2, 3] * 3), 100, 100, 101, 101] for batch in batches)


def test_order_is_the_same_for_any_number_of_workers_and_after_resume(shards):
    pipeline = _pipeline(shards)
    expected = [pipeline.batch_at(step)[0] for step in range(2, 7)]
    for workers, threads in ((0, 0), (0, 2), (1, 0), (2, 2)):
        with data.make_iterator(pipeline, 2, 5, workers=workers, threads=threads, prefetch=2) as batches:
            got = [batch for batch, _ in batches]
        assert len(got) == 5
        for one, other in zip(got, expected, strict=True):
            _assert_same(one, other)


def test_killed_worker_is_an_error_within_seconds(shards):
    with data.make_iterator(_pipeline(shards), 0, 10**6, workers=2, threads=0, prefetch=1) as batches:
        next(batches)
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
        began = time.monotonic()
        with pytest.raises(data.WorkerDied, match="one of the 2 data worker processes ended"):
            while time.monotonic() - began < 30:
                next(batches)
        assert time.monotonic() - began < 15


def test_workers_end_with_a_killed_parent(shards, tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import multiprocessing, pathlib, sys, time
            sys.path[:0] = {sys.path!r}
            import test_data
            from jepa_jax import data
            if __name__ == "__main__":
                pipeline = test_data._pipeline(pathlib.Path({str(shards)!r}))
                batches = data.make_iterator(pipeline, 0, 10**6, workers=1, threads=0, prefetch=1)
                next(batches)
                sys.stdout.write(f"{{multiprocessing.active_children()[0].pid}}\\n")
                sys.stdout.flush()
                time.sleep(600)
            """
        )
    )
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    worker = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    for _ in range(100):
        try:
            with open(f"/proc/{worker}/stat") as file:
                state = file.read().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return
        if state == "Z":
            return
        time.sleep(0.1)
    os.kill(worker, signal.SIGKILL)
    pytest.fail("the worker outlived its parent by ten seconds")


def test_describe_names_sources_sizes_and_weights(shards):
    text = "\n".join(_pipeline(shards).describe())
    assert "group clips: 4 x 8 frames at 4/s" in text
    assert "6 records in 2 shards, about 0.004" in text and "weight 0.750" in text
