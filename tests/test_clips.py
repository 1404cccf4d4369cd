"""Clips, windows, streams and movies: every frame where it belongs, whatever the file."""

import av
import cv2
import media
import numpy as np
import pytest

from jepa_jax.data import DataError, clips, movies, stream, transforms, video
from jepa_jax.features import sources
from jepa_jax.features.windows import most_central, plan_windows


def _numbers(frames):
    return [media.read_number(frame) for frame in frames]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    media.write_video(folder / "a.mp4", frames=100, fps=25)
    media.write_video(folder / "short.mp4", frames=5, fps=25)
    return folder


def _turned(path, plain):
    """Copy an mp4 and mark it as turned by 90 degrees, as phones do."""
    with av.open(str(plain)) as source, av.open(str(path), "w") as target:
        added = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = added
                target.mux(packet)
    content = path.read_bytes()
    # The track header's matrix (16.16 and 2.30 fixed point).
    identity = b"".join(n.to_bytes(4, "big") for n in (65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30))
    quarter = b"".join(n.to_bytes(4, "big") for n in (0, 65536, 0, 2**32 - 65536, 0, 0, 0, 0, 1 << 30))
    at = content.index(identity, content.index(b"tkhd"))
    path.write_bytes(content[:at] + quarter + content[at + len(identity) :])


@pytest.mark.parametrize("name, options", [
    ("a.mp4", {"g": 7, "bf": 3}), ("b.mkv", {"g": 250}), ("c.avi", {"bf": 3}), ("d.webm", {"codec": "libvpx"}),
    ("e.ts", {"g": 10, "bf": 2}), ("f.mp4", {"g": 12, "bf": 3, "x264-params": "open-gop=1"}),
])
def test_stream_finds_every_frame(name, options, tmp_path):
    path = media.write_video(tmp_path / name, frames=60, fps=25, **options)
    timeline = stream.read_timeline(path)
    assert timeline.num_frames == 60 and timeline.fps == pytest.approx(25)
    np.testing.assert_allclose(timeline.times, np.arange(60) / 25, atol=2e-3)
    for wanted in ([0], [59], [3, 4, 30, 58], list(range(60)), list(range(1, 60, 9))):
        assert _numbers(stream.stream_frames(timeline, wanted)) == wanted


def test_stream_skips_what_it_does_not_need(folder, monkeypatch, tmp_path):
    path = media.write_video(tmp_path / "a.mp4", frames=100, g=10)
    timeline = stream.read_timeline(path)
    fed = []
    shape = stream._fed_frames
    monkeypatch.setattr(stream, "_fed_frames", lambda *args: (fed.append(frame) or frame for frame in shape(*args)))
    assert _numbers(stream.stream_frames(timeline, [3, 95])) == [3, 95]
    # At most the groups of the two, and what the decoder was ahead.
    assert len(fed) < 40


def test_stream_does_not_read_what_lies_before(monkeypatch, tmp_path):
    path = media.write_video(tmp_path / "a.mp4", frames=100, g=10)
    timeline = stream.read_timeline(path)
    read, filled = [], stream._filled
    monkeypatch.setattr(stream, "_filled", lambda *args: (read.append(packet.pts) or packet for packet in filled(*args)))
    assert _numbers(stream.stream_frames(timeline, [93, 95])) == [93, 95]
    assert len(read) <= 10
    # Where a file does not come to the asked place, it is read from its start.
    monkeypatch.setattr(stream, "_index_of", lambda stamps, stamp: None if len(read) == 1 else int(np.searchsorted(stamps, stamp)))
    read.clear()
    assert _numbers(stream.stream_frames(timeline, [93, 95])) == [93, 95]
    assert len(read) > 90


@pytest.mark.parametrize("indices, error", [([], ValueError), ([3, 3], ValueError), ([5, 2], ValueError), ([100], IndexError)])
def test_stream_refuses_bad_indices(folder, indices, error):
    timeline = stream.read_timeline(folder / "a.mp4")
    with pytest.raises(error):
        next(stream.stream_frames(timeline, indices))


def test_variable_rate_has_its_own_times(tmp_path):
    stamps = [number * 20 if number < 20 else 400 + (number - 20) * 60 for number in range(40)]
    timeline = stream.read_timeline(media.write_video(tmp_path / "a.mkv", frames=40, stamps=stamps))
    np.testing.assert_allclose(timeline.times, np.array(stamps) / 1000, atol=1e-3)
    assert timeline.fps == pytest.approx(39 / (stamps[-1] / 1000), rel=0.01)


def test_cut_files_are_refused(folder, tmp_path):
    media.write_video(tmp_path / "cut.mkv", frames=200, g=5)
    media.write_video(tmp_path / "tail.mp4", frames=200, g=5)
    # The index of this one is at its beginning.
    movies.write_mp4(tmp_path / "head.mp4", (media.numbered_frame(number) for number in range(200)), 25)
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
        with pytest.raises(DataError) as caught:
            clips.read_clip(path, 4, 32)
        assert caught.value.reason == "truncated" and path.name in str(caught.value)


def test_frames_are_spread_over_the_whole_video(folder):
    assert _numbers(clips.read_clip(folder / "a.mp4", 5, 64, crop=False)) == [0, 25, 50, 74, 99]
    assert _numbers(clips.read_clip(folder / "short.mp4", 8, 64, crop=False)) == [0, 1, 2, 3, 4, 4, 4, 4]


@pytest.mark.parametrize("arguments, expected", [
    ({"step": 10}, [34, 44, 54, 64]),
    ({"step": 10, "start": 0.0}, [0, 10, 20, 30]),
    ({"step": 2, "start": 1.0}, [25, 27, 29, 31]),
    # 25 // 4 native frames.
    ({"fps": 4, "start": 0.0}, [0, 6, 12, 18]),
    # Slower than asked: every frame.
    ({"fps": 60, "start": 0.0}, [0, 1, 2, 3]),
    # The last sampled frame is repeated, not the last of the video.
    ({"step": 4, "start": 3.6}, [90, 94, 98, 98]),
    ({"step": 90}, [0, 90, 90, 90]),
])
def test_rate_and_start(folder, arguments, expected):
    assert _numbers(clips.read_clip(folder / "a.mp4", 4, 64, crop=False, **arguments)) == expected


@pytest.mark.parametrize("arguments, message", [
    ({"frames": 0}, "at least 1"), ({"size": 0}, "at least 1"), ({"fps": 4, "step": 2}, "give one"), ({"fps": 0}, "above 0"),
    ({"step": 0}, "at least 1"), ({"start": 1.0}, "needs fps or step"), ({"start": -1.0, "step": 2}, "at least 0"),
    ({"start": 4.0, "step": 2}, "ends with a frame at 3.960 s"), ({"size": 8, "crop": False}, "less than one patch"),
])
def test_impossible_arguments(folder, arguments, message):
    with pytest.raises(ValueError, match=message):
        clips.read_clip(folder / "a.mp4", **{"frames": 4, "size": 32, **arguments})


def test_geometry_is_that_of_evaluations(folder):
    clip = clips.read_clip(folder / "a.mp4", 2, 48, step=1, start=0.0)
    frames = video.decode_frames(folder / "a.mp4", [0, 1])
    expected = [cv2.resize(frame, (81, 54), interpolation=cv2.INTER_LINEAR)[3:51, 16:64] for frame in frames]
    np.testing.assert_array_equal(clip, np.stack(expected))
    assert clips.resized_side(256) == 292 and clips.resized_side(384) == 438
    assert clip.dtype == np.uint8 and clip.shape == (2, 48, 48, 3)
    whole = clips.read_clip(folder / "a.mp4", 2, 100, step=1, start=0.0, crop=False)
    resized = transforms.eval_resize(frames, 100)
    assert whole.shape == (2, 96, 144, 3)
    np.testing.assert_array_equal(whole, resized[:, 2:98, 3:147])


def test_turned_video_is_upright(folder, tmp_path):
    _turned(tmp_path / "turned.mp4", folder / "a.mp4")
    clip = clips.read_clip(tmp_path / "turned.mp4", 1, 64, step=1, start=0.2, crop=False)
    assert clip.shape == (1, 96, 64, 3)
    assert np.abs(clip[0].astype(int) - np.rot90(media.numbered_frame(5), -1)).mean() < 12


def test_image_is_one_frame(tmp_path):
    path = media.write_image(tmp_path / "a.PNG", 64, 96, number=77)
    clip = clips.read_clip(path, 64, 64, crop=False, fps=4)
    assert clip.shape == (1, 64, 96, 3) and _numbers(clip) == [77]
    assert clips.read_clip(path, size=32).shape == (1, 32, 32, 3)


@pytest.mark.parametrize("name, content, reason", [
    ("no.mp4", None, "missing file"), ("no.png", None, "missing file"), ("e.mp4", b"", "empty file"),
    ("e.png", b"", "empty file"), ("t.mp4", b"text" * 99, "not a video"), ("t.png", b"text" * 99, "not an image"),
])
def test_unreadable_files(tmp_path, name, content, reason):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        clips.read_clip(tmp_path / name)
    assert caught.value.reason == reason and name in str(caught.value)


def test_line_of_pixels_is_refused(tmp_path):
    with pytest.raises(DataError) as caught:
        clips.read_clip(media.write_image(tmp_path / "a.png", 2, 900))
    assert caught.value.reason == "too elongated"


def test_windows_cover_every_sampled_frame():
    rng = np.random.default_rng(0)
    for _ in range(400):
        num_frames, step, frames = rng.integers(1, (200, 9, 40)).tolist()
        stride = int(rng.integers(1, frames + 1))
        windows = plan_windows(num_frames, step, frames, stride)
        indices, positions = windows.frame_indices(), windows.positions()
        assert indices.shape == (len(windows.starts), frames)
        assert set(indices.ravel().tolist()) == set(range(0, num_frames, step))
        # Evenly spaced, but for the end of a short video; the last window ends with the video.
        assert indices[-1, -1] == windows.sampled[-1]
        assert (np.diff(indices) == step).all() or len(windows.sampled) < frames
        assert ((np.diff(windows.starts) <= stride) & (np.diff(windows.starts) > 0)).all()
        assert (np.diff(windows.starts)[:-1] == stride).all()
        window, place = most_central(windows)
        np.testing.assert_array_equal(positions[window, place], np.arange(len(windows.sampled)))
        middle = windows.starts + (frames - 1) / 2
        distances = np.abs(np.arange(len(windows.sampled))[:, None] - middle)
        np.testing.assert_array_equal(distances[np.arange(len(window)), window], distances.min(axis=1))


@pytest.mark.parametrize("arguments", [(0, 1, 4, 4), (9, 0, 4, 4), (9, 1, 0, 1), (9, 1, 4, 0), (9, 1, 4, 5)])
def test_windows_without_sense(arguments):
    with pytest.raises(ValueError):
        plan_windows(*arguments)


@pytest.mark.parametrize("stride", [2, 3, 8])
def test_overlapping_windows_decode_each_frame_once(folder, stride, monkeypatch):
    sampling = sources.Sampling(8, stride, None, 3, None, 64, 16)
    source = sources.open_source(str(folder / "a.mp4"), sampling)
    decoded = []
    shape = sources.stream_frames
    monkeypatch.setattr(sources, "stream_frames", lambda *args: (decoded.append(0) or frame for frame in shape(*args)))
    numbers = [_numbers(window) for window in sources.read_windows(source, sources.read_frames(source, sampling))]
    assert numbers == source.windows.frame_indices().tolist()
    assert len(decoded) == len(source.windows.sampled) == 34
    np.testing.assert_allclose(source.times, source.windows.frame_indices() / 25, atol=1e-9)
    assert source.fps == pytest.approx(25 / 3)


def test_read_ahead_keeps_order_and_reports_bad_files(folder, tmp_path):
    (tmp_path / "bad.mp4").write_bytes(b"text" * 99)
    paths = [str(folder / "a.mp4"), str(tmp_path / "bad.mp4"), str(folder / "short.mp4"), media.write_image(tmp_path / "i.png")]
    sampling = sources.Sampling(8, 8, None, 5, 32, 36, 16)
    events = list(sources.read_ahead(paths * 3, sampling))
    shape = [type(event).__name__ for event in events]
    assert shape == (["Source"] + ["Window"] * 3 + ["End", "End", "Source", "Window", "End", "Source", "Window", "End"]) * 3
    assert [event.error and event.error.reason for event in events if isinstance(event, sources.End)] == [
        None, "not a video", None, None] * 3


def test_failure_of_a_reader_is_raised(folder, monkeypatch):
    def broken(path, sampling):
        raise ZeroDivisionError(path)

    monkeypatch.setattr(sources, "open_source", broken)
    with pytest.raises(ZeroDivisionError):
        list(sources.read_ahead([str(folder / "a.mp4")], None))


@pytest.mark.parametrize("height, width", [(64, 96), (63, 97)])
def test_movie_gives_back_its_frames(tmp_path, height, width):
    colors = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 30, 90), (255, 255, 255), (0, 0, 0)]
    path = tmp_path / "below" / "m.mp4"
    frames = (np.full((height, width, 3), color, np.uint8) for color in colors)
    assert movies.write_mp4(path, frames, 25 / 3) == 6
    info = video.probe(path)
    assert info == (6, pytest.approx(25 / 3), 64, width + width % 2)
    for frame, color in zip(video.decode_frame_list(path, range(6)), colors):
        assert np.abs(frame.astype(int) - color).max() <= 3
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
    # The index comes before the frames.
    content = path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")


def test_movie_that_fails_leaves_the_old_one(tmp_path):
    path = tmp_path / "m.mp4"
    movies.write_mp4(path, [np.zeros((32, 32, 3), np.uint8)], 4)
    before = path.read_bytes()

    def broken():
        yield np.zeros((32, 32, 3), np.uint8)
        raise DataError("damaged")

    with pytest.raises(DataError):
        movies.write_mp4(path, broken(), 4)
    with pytest.raises(ValueError, match="frame 1 is uint8"):
        movies.write_mp4(path, [np.zeros((32, side, 3), np.uint8) for side in (32, 48)], 4)
    with pytest.raises(ValueError, match="no frames"):
        movies.write_mp4(path, [], 4)
    with pytest.raises(ValueError, match="fps is 0"):
        movies.write_mp4(path, [np.zeros((32, 32, 3), np.uint8)], 0)
    assert [file.name for file in tmp_path.iterdir()] == ["m.mp4"] and path.read_bytes() == before
