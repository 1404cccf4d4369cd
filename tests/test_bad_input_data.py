"""Bad files, shards, lists and settings: each gives a message that says what and what to do, or a counted skip."""

import json
import os
import pickle
import subprocess
import sys

import av
import media
import msgpack
import numpy as np
import pytest

from jepa_jax import data, prepare
from jepa_jax.data import listing, shards, video
from jepa_jax.data.records import RecordError
from jepa_jax.data.transcode import ImageSpec, VideoSpec, store_image, transcode_video

CROP = data.CropSpec(32, (0.3, 1.0), (0.75, 1.35), 0.5)


def _good(folder, name="good.mp4", **options):
    return media.write_video(folder / name, **{"frames": 40, **options})


def _record(folder, name="good.mp4", **options):
    return transcode_video(_good(folder, name, **options), VideoSpec())


def _pipeline(folder, kind="video", batch=2, fps=4.0, weight=1.0, **changes):
    group = data.GroupSpec("clips", kind, 8, fps, batch, (data.SourceSpec((str(folder),), weight),))
    return data.ClipPipeline((group,), CROP, {"clips": media.mask_sampler(8, 32)}, **{"seed": 0, **changes})


# Files given to prepare


def _damage(path):
    """Overwrite a slice in the middle of the coded pictures."""
    content = bytearray(open(path, "rb").read())
    start = content.index(b"mdat")
    middle = start + (len(content) - start) // 3
    content[middle : middle + 200] = bytes(200)
    open(path, "wb").write(content)


def _rename_codec(path):
    """Make the file say that its codec is one that nobody knows."""
    content = open(path, "rb").read()
    entry = content.index(b"avc1", content.index(b"stsd"))
    open(path, "wb").write(content[:entry] + b"zzzz" + content[entry + 4 :])


def test_every_bad_video_is_skipped_with_its_reason(tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(3):
        _good(folder, f"good{number}.mp4")
    whole = open(folder / "good0.mp4", "rb").read()
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "text.mp4").write_text("these are not pictures\n" * 50)
    media.write_sound(folder / "sound.mp4")
    media.write_video(folder / "two.mp4", frames=2)
    _damage(media.write_video(folder / "damaged.mp4", frames=40, height=240, width=320, g=250))
    _rename_codec(media.write_video(folder / "codec.mp4", frames=40))
    streamed = media.write_video(folder / "streamed.mp4", frames=60, movflags="faststart")
    _cut_with_index_in_front(streamed)
    status = prepare.main(["videos", str(folder), "--output", str(tmp_path / "out"), "--workers", "0"])
    report = json.loads((tmp_path / "out" / "clips-report.json").read_text())
    reasons = {os.path.basename(skip["path"]): skip["reason"] for skip in report["skips"]}
    assert reasons == {
        "empty.mp4": "empty file",
        "cut.mp4": "truncated",
        "streamed.mp4": "truncated",
        "text.mp4": "not a video",
        "sound.mp4": "no video stream",
        "two.mp4": "too short",
        "damaged.mp4": "damaged",
        "codec.mp4": "unknown codec",
    }
    assert report["written"] == 3 and len(data.ShardSource([str(tmp_path / "out")])) == 3
    # 8 of 11 is more than the default allows.
    assert status == 1
    out = capsys.readouterr().out
    assert "skipped, truncated: 2 (" in out and "--max-skip-fraction" in out


def _cut_with_index_in_front(path):
    """Move an mp4's index to the front, as on the web, then lose the second half."""
    moved = path + ".moved.mp4"
    with av.open(path) as source, av.open(moved, "w", options={"movflags": "faststart"}) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    content = open(moved, "rb").read()
    assert content.index(b"moov") < content.index(b"mdat")
    os.remove(moved)
    open(path, "wb").write(content[: content.index(b"mdat") + (len(content) - content.index(b"mdat")) // 2])


def test_nothing_usable_is_an_error(tmp_path, capsys):
    (tmp_path / "a.mp4").write_bytes(b"")
    assert prepare.main(["videos", str(tmp_path), "--output", str(tmp_path / "out"), "--workers", "0"]) == 1
    assert "nothing was written" in capsys.readouterr().out


def test_every_bad_image_is_skipped_with_its_reason(tmp_path):
    for name in ("a.jpg", "b.png"):
        whole = open(media.write_image(tmp_path / name, 200, 300), "rb").read()
        (tmp_path / f"cut_{name}").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.png").write_text("no picture")
    assert prepare.main(["images", str(tmp_path), "--output", str(tmp_path / "out"), "--workers", "0"]) == 1
    report = json.loads((tmp_path / "out" / "images-report.json").read_text())
    reasons = {os.path.basename(skip["path"]): skip["reason"] for skip in report["skips"]}
    assert reasons == {
        "cut_a.jpg": "truncated",
        "cut_b.png": "truncated",
        "empty.jpg": "empty file",
        "text.png": "not an image",
    }


@pytest.mark.parametrize("line", ["/videos/a.mp4", "path label", "/videos/my film.mp4", "/videos/a.mp4,3", "3"])
def test_unreadable_csv_line_names_file_line_and_form(tmp_path, line, capsys):
    table = tmp_path / "list.csv"
    table.write_text(f"/videos/ok.mp4 1\n{line}\n")
    with pytest.raises(listing.ListError, match=r"list\.csv, line 2: .* path, one space and an integer label"):
        listing.read_csv(str(table))
    assert prepare.main(["videos", str(table), "--output", str(tmp_path / "out")]) == 2
    assert "line 2" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_source_that_is_not_there_or_empty(tmp_path, capsys):
    assert prepare.main(["videos", str(tmp_path / "gone"), "--output", str(tmp_path / "out")]) == 2
    assert "check the path" in capsys.readouterr().err
    assert prepare.main(["videos", str(tmp_path), "--output", str(tmp_path / "out")]) == 2
    assert "holds no file ending in .mp4" in capsys.readouterr().err


def test_full_disk_keeps_finished_shards_and_says_what_to_do(tmp_path):
    (tmp_path / "in").mkdir()
    _good(tmp_path / "in", "a.mp4")
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (400, 400, 3), np.uint8)
    (tmp_path / "list.csv").write_text(f"{tmp_path}/in/a.mp4 0\n{tmp_path}/in/large.mp4 0\n")
    _write_noise(tmp_path / "in" / "large.mp4", noise)
    arguments = ["videos", str(tmp_path / "list.csv"), "--output", str(tmp_path / "out"), "--per-shard", "1"]
    # The system refuses to let any file grow past this, as a full disk would.
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000)); "
    run = f"import sys; from jepa_jax import prepare; sys.exit(prepare.main({[*arguments, '--workers', '0']!r}))"
    result = subprocess.run([sys.executable, "-c", limit + run], capture_output=True, text=True)
    assert result.returncode == 2, result.stderr
    assert "cannot write" in result.stderr and "free some space" in result.stderr
    assert "run the same command again" in result.stderr
    assert [name.name for name in (tmp_path / "out").glob("*.array_record")] == ["clips-00000-of-00002.array_record"]
    assert prepare.main([*arguments, "--workers", "0"]) == 0
    assert len(data.ShardSource([str(tmp_path / "out")])) == 2


def _write_noise(path, noise):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.height, stream.width, stream.pix_fmt = *noise.shape[:2], "yuv420p"
        stream.codec_context.options = {"crf": "5", "preset": "ultrafast"}
        for number in range(10):
            frame = av.VideoFrame.from_ndarray(np.roll(noise, number * 37, axis=0), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def test_file_that_crashes_its_worker_is_skipped(tmp_path):
    good = [listing.Item(_good(tmp_path, f"{number}.mp4")) for number in range(3)]
    items = [good[0], _Poison(str(tmp_path / "x.mp4")), *good[1:]]
    results = {item.path: result for item, result in shards.convert_all(items, VideoSpec(), 1)}
    assert results[str(tmp_path / "x.mp4")].reason == "crashed the decoder"
    assert all(results[item.path].num_frames == 40 for item in good)


class _Poison(listing.Item):
    """An item that ends the process which unpickles it."""

    def __reduce__(self):
        return _leave, (str(self.path), os.getpid())


def _leave(path, parent):
    if os.getpid() != parent:
        os._exit(9)
    return listing.Item(path)


# Shards


def test_no_shards_names_the_command_that_makes_them(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no shards found at .*`python -m jepa_jax\.prepare videos"):
        data.ShardSource([str(tmp_path)])
    with pytest.raises(TypeError, match="sequence of strings"):
        data.resolve_shards(str(tmp_path))


def test_missing_shard_is_named(tmp_path):
    record = _record(tmp_path)
    for index in (0, 2):
        media.write_shard(tmp_path / f"clips-{index:05d}-of-00003.array_record", [record])
    with pytest.raises(FileNotFoundError, match=r"1 of 3 shards of 'clips' are missing.*clips-00001-of-00003"):
        data.ShardSource([str(tmp_path)])
    with pytest.raises(FileNotFoundError, match="clips-00001-of-00003"):
        data.ShardSource([str(tmp_path / "clips-00000-of-00003.array_record")])


def test_cut_shard_is_an_error_at_start(tmp_path):
    file = media.write_shard(tmp_path / "a.array_record", [_record(tmp_path)] * 3)
    os.truncate(file, os.path.getsize(file) // 2)
    with pytest.raises(data.DataError, match="not a readable ArrayRecord file") as caught:
        data.ShardSource([file])
    assert caught.value.reason == "unreadable shard"


def test_flipped_byte_costs_one_record_and_is_noted(tmp_path):
    records = [
        _record(tmp_path, f"{number}.mp4", frames=40 + number, height=120, width=160)._replace(label=number)
        for number in range(4)
    ]
    file = media.write_shard(tmp_path / "a.array_record", records)
    content = open(file, "rb").read()
    media.flip_byte(file, content.index(records[2].data) + 1000)
    source = data.ShardSource([file])
    with pytest.raises(data.DataError, match=r"a\.array_record#2 cannot be read") as caught:
        source[2]
    assert caught.value.reason == "corrupt record"
    assert [source[index].label for index in (0, 1, 3)] == [0, 1, 3]
    pipeline = _pipeline(tmp_path)
    batches = [pipeline.batch_at(step) for step in range(4)]
    skips = [skip for _, notes in batches for skip in notes.skips]
    assert len(skips) >= 2
    assert {(skip.source, skip.location, skip.reason) for skip in skips} == {
        (f"clips/{tmp_path.name}", f"{file}#2", "corrupt record")
    }
    for step, (batch, notes) in enumerate(batches):
        again, same_notes = pipeline.batch_at(step)
        np.testing.assert_array_equal(batch["clips"]["video"], again["clips"]["video"])
        assert notes == same_notes


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"\xc1 not msgpack", "not msgpack"),
        (msgpack.packb([1, 2]), "holds a list"),
        (msgpack.packb({"version": 99}), "schema version 99; this code reads version 1"),
        (msgpack.packb({"version": 1, "kind": "video"}), "has fields"),
    ],
)
def test_foreign_record_says_what_it_is(tmp_path, payload, message):
    with pytest.raises(RecordError, match=message):
        data.decode_record(payload)
    source = data.ShardSource([media.write_shard(tmp_path / "a.array_record", [payload])])
    with pytest.raises(data.DataError, match=message):
        source[0]


@pytest.mark.parametrize(("field", "value"), [
    ("data", "/etc/hostname"), ("data", None), ("fps", "25"), ("fps", float("nan")), ("fps", -1.0), ("num_frames", 2.5),
    ("num_frames", -4), ("source_id", None), ("label", "x"), ("kind", 3)])
def test_field_of_another_type_costs_the_record(tmp_path, field, value):
    """A path in place of the video would even be opened."""
    good = data.ClipRecord("video", open(_good(tmp_path), "rb").read(), 30.0, 40, 64, 96, "a")
    payload = msgpack.packb({"version": 1, **good._replace(**{field: value})._asdict()})
    with pytest.raises(RecordError, match=field):
        data.decode_record(payload)
    assert _noted_reasons(tmp_path, [good, payload]) == {"corrupt record"}


def test_unknown_kind_is_refused():
    record = data.ClipRecord("audio", b"", 1.0, 1, 1, 1, "x")
    with pytest.raises(RecordError, match="'audio'; allowed: video, image"):
        data.encode_record(record)


# Records in training


def _noted_reasons(folder, records, steps=4, **pipeline):
    media.write_shard(folder / "a.array_record", records)
    made = _pipeline(folder, **pipeline)
    return {skip.reason for step in range(steps) for skip in made.batch_at(step)[1].skips}


def test_unusable_records_are_replaced_and_noted(tmp_path):
    good = _record(tmp_path)
    slow = _record(tmp_path, "slow.mp4", fps=2)
    cut = good._replace(data=good.data[: len(good.data) // 2])
    lying = good._replace(num_frames=5000)
    reasons = _noted_reasons(tmp_path, [good, slow, cut, lying, good], steps=6)
    assert reasons == {"fps below 4", "truncated", "fewer frames than stated"}


def test_video_in_an_image_group_is_noted(tmp_path):
    picture = store_image(media.write_image(tmp_path / "a.png"), ImageSpec())
    assert _noted_reasons(tmp_path, [picture, _record(tmp_path), picture], kind="image") == {"not an image"}


def test_damaged_record_is_not_painted_over(tmp_path):
    good = _record(tmp_path, height=240, width=320)
    middle = len(good.data) // 3
    broken = good.data[:middle] + bytes(300) + good.data[middle + 300 :]
    with pytest.raises(data.DataError) as caught:
        video.decode_frames(broken, range(40))
    assert caught.value.reason == "damaged"


def test_source_of_bad_records_only_stops_with_their_names(tmp_path):
    bad = _record(tmp_path)._replace(data=b"nothing")
    media.write_shard(tmp_path / "a.array_record", [bad, bad])
    with pytest.raises(data.DataError, match=r"12 records in a row of .*\n.*a\.array_record#[01] .*not a video"):
        _pipeline(tmp_path).batch_at(0)


def test_error_of_a_worker_keeps_its_words(tmp_path):
    media.write_shard(tmp_path / "a.array_record", [_record(tmp_path)._replace(data=b"nothing")])
    with data.make_iterator(_pipeline(tmp_path), 0, 5, workers=1, threads=0, prefetch=1) as batches:
        with pytest.raises(data.DataError, match="12 records in a row"):
            next(batches)


def test_report_names_what_was_skipped():
    skip = data.Skip("clips/k710", "a.array_record#3", "x.mp4", "damaged")
    counter = data.SkipCounter(0.5)
    counter.update({"clips/k710": 1000}, [skip, skip, skip._replace(reason="truncated")])
    assert counter.report().count("\n") == 2 and "1000 good clips" in counter.report()
    assert "clips/k710, damaged: 2 draws of 1 records: a.array_record#3 (x.mp4)" in counter.report()
    assert data.SkipCounter(0.0).report() == "no clip skipped in 0"


def test_data_error_survives_pickling():
    error = pickle.loads(pickle.dumps(data.DataError("truncated", "a.mp4 is cut")))
    assert (error.reason, str(error)) == ("truncated", "a.mp4 is cut")


# Settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "audio"}, "kind 'audio'; allowed: 'video', 'image'"),
        ({"batch": 3, "process_count": 2}, "batch_size 3 is not a positive multiple of the 2 processes"),
        ({"process_index": 2, "process_count": 2}, r"process_index 2 is not in 0\.\.1"),
        ({"weight": 0.0}, "must be above 0"),
        ({"fps": 0.0}, "fps 0.0 must be above 0"),
        ({"fps": float("nan")}, "fps nan must be above 0 and finite"),
        ({"weight": float("inf")}, "must be above 0 and finite"),
        ({"weight": float("nan")}, "must be above 0 and finite"),
        ({"max_bad_fraction": 2.0}, "max_bad_fraction is 2.0"),
    ],
)
def test_impossible_settings_are_refused(tmp_path, changes, message):
    media.write_shard(tmp_path / "a.array_record", [_record(tmp_path)])
    with pytest.raises(ValueError, match=message):
        _pipeline(tmp_path, **changes)


def test_empty_shards_are_refused(tmp_path):
    media.write_shard(tmp_path / "a.array_record", [])
    with pytest.raises(data.DataError, match="hold no records"):
        _pipeline(tmp_path)


@pytest.mark.parametrize("wrong", [{"workers": -1}, {"threads": -1}, {"prefetch": 0}])
def test_impossible_iterator_numbers_are_refused(tmp_path, wrong):
    media.write_shard(tmp_path / "a.array_record", [_record(tmp_path)])
    with pytest.raises(ValueError, match="at least"):
        data.make_iterator(_pipeline(tmp_path), 0, 1, **{"workers": 0, "threads": 0, "prefetch": 1, **wrong})
