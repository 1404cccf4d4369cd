"""Mixtures: their shares, what is reported of them, any number of processes, and one compiled program."""

import dataclasses
import json
import shutil

import av
import jax
import media
import numpy as np
import pytest
from configs import common, cooldown, mixtures, pretrain
from jepa_jax import data
from jepa_jax.data.specs import NO_AUGMENT
from jepa_jax.data.transcode import ImageSpec, VideoSpec, store_image, transcode_video
from jepa_jax.tasks.pretrain import make_groups, make_pipeline, make_task
from jepa_jax.training import loop, sharding

FRAMES, SIZE = 4, 32
CROP = data.CropSpec(SIZE, (0.3, 1.0), (0.75, 1.35), 0.5)
BATCH = {"video": 12, "long": 6, "still": 6}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A root with shards `k710` (one record in five is corrupt), `ssv2` and `imagenet`."""
    root = tmp_path_factory.mktemp("root")
    for name, count in (("k710", 5), ("ssv2", 3), ("imagenet", 3)):
        (root / name).mkdir()
        records = []
        for number in range(count):
            if name == "imagenet":
                picture = media.write_image(root / f"{number}.png", number=number)
                records.append(store_image(picture, ImageSpec(), number))
            else:
                film = media.write_video(root / f"{name}{number}.mp4", frames=40 + number)
                records.append(transcode_video(film, VideoSpec(size=48), number))
        if name == "k710":
            records[2] = records[2]._replace(data=records[2].data[:300])
        media.write_shard(root / name / "clips-00000-of-00001.array_record", records)
    return root


def _pipeline(root, process=(0, 1), augment=NO_AUGMENT):
    def group(name, kind, frames, **weights):
        sources = tuple(data.SourceSpec((f"{root}/{source}",), weight) for source, weight in weights.items())
        return data.GroupSpec(name, kind, frames, 4.0, BATCH[name], sources)

    groups = (
        group("video", "video", FRAMES, k710=0.7, ssv2=0.3), group("long", "video", 2 * FRAMES, ssv2=1.0),
        group("still", "image", FRAMES, imagenet=1.0),
    )
    samplers = {made.name: media.mask_sampler(made.frames, SIZE) for made in groups}
    return data.ClipPipeline(
        groups, CROP, samplers, seed=5, augment=augment, process_index=process[0], process_count=process[1]
    )


def _assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def _joined(parts):
    """Put the batches and notes of all processes of one step together."""
    batch = jax.tree.map(lambda *rows: np.concatenate(rows), *[part for part, _ in parts])
    skips = sorted(skip for _, notes in parts for skip in notes.skips)
    return batch, skips


# Elastic resume


@pytest.mark.parametrize("augment", [
    NO_AUGMENT, data.AugmentSpec(True, data.randaugment.RandAugmentSpec(), 0.5)], ids=["plain", "augmented"])
def test_any_number_of_processes_makes_the_same_global_batches(root, augment):
    """Skips of corrupt records included."""
    skips_seen = 0
    for step in range(4):
        expected, notes = _pipeline(root, augment=augment).batch_at(step)
        skips_seen += len(notes.skips)
        for count in (2, 3):
            batch, skips = _joined([_pipeline(root, (index, count), augment).batch_at(step) for index in range(count)])
            _assert_same(batch, expected)
            assert skips == sorted(notes.skips)
    assert skips_seen > 2


def test_run_cut_at_any_step_goes_on_with_other_processes_and_workers(root):
    expected = [_pipeline(root).batch_at(step) for step in range(7)]
    got = []
    # (processes, worker processes of each, threads, first step, steps): one, then two, then three hosts.
    for count, workers, threads, first, steps in ((1, 2, 0, 0, 2), (2, 0, 2, 2, 3), (3, 0, 0, 5, 2)):
        hosts = [
            data.make_iterator(_pipeline(root, (index, count)), first, steps + 1, workers=workers, threads=threads,
                               prefetch=2)
            for index in range(count)
        ]
        # Each is stopped with a batch still ahead, as a killed run is.
        got += [_joined([next(host) for host in hosts]) for _ in range(steps)]
        for host in hosts:
            host.close()
    assert len(got) == len(expected)
    for (batch, skips), (whole, notes) in zip(got, expected, strict=True):
        _assert_same(batch, whole)
        assert skips == sorted(notes.skips)


# The realised mixture


def test_realised_mixture_is_counted_by_source_with_what_was_replaced(root):
    counter = data.SkipCounter(0.5)
    for step in range(10):
        counter.update(*_pipeline(root).batch_at(step)[1])
    assert dict(counter.clips) == {"video/k710": 84, "video/ssv2": 36, "long/ssv2": 60, "still/imagenet": 60}
    assert {key for key in counter.counts} == {("video/k710", "truncated")}
    replaced = counter.counts.total()
    assert 84 / 5 - 6 < replaced < 84 / 4 + 10
    metrics = counter.totals().metrics()
    assert metrics["data/share/video/k710"] == 84 / 240 and metrics["data/share/still/imagenet"] == 0.25
    assert metrics["data/skipped/video/k710"] == metrics["data/skipped"] == replaced
    assert metrics["data/skipped/video/ssv2"] == 0
    assert f"video/k710 84 (35.0%, {replaced} replaced), video/ssv2 36 (15.0%)" in counter.totals().mixture()
    assert f"video/k710, truncated: {replaced} draws of 1 records" in counter.report()


def test_sources_of_one_name_are_told_apart():
    sources = tuple(data.SourceSpec((path,), 1.0) for path in ("/a/k710", "/b/k710/", "gs://b/ssv 2/*.x", "/"))
    group = data.GroupSpec("video", "video", 4, 4.0, 1, sources)
    assert group.labels() == ("video/a/k710", "video/b/k710", "video/ssv_2", "video/3")


@pytest.mark.parametrize("paths, names", [
    (("k710/train", "ssv2/train", "yt1b"), ("k710/train", "ssv2/train", "yt1b")),
    (("/a/b.2", "/x/b", "/y/b"), ("b.2", "x/b", "y/b")),
    (("train", "a/train"), ("train", "a/train")),
    # One folder twice: nothing tells the sources apart but their number.
    (("s.1", "s/a-*.array_record", "s/b-*.array_record", "s"), ("s.1", "s", "s.2", "s.3")),
])
def test_labels_never_repeat_and_say_where_a_source_lies(paths, names):
    sources = tuple(data.SourceSpec((path,), 1.0) for path in paths)
    labels = data.GroupSpec("video", "video", 4, 4.0, 1, sources).labels()
    assert labels == tuple(f"video/{name}" for name in names)


def test_every_part_of_a_batch_holds_all_sources(root):
    """Whole shares would otherwise give every process, or part of a batch, one source for ever."""
    sources = tuple(data.SourceSpec((f"{root}/imagenet",), 1.0) for _ in range(2))
    group = data.GroupSpec("still", "image", 1, 4.0, 8, sources)
    pipelines = [
        data.ClipPipeline([group], CROP, {"still": media.mask_sampler()}, seed=5, process_index=index, process_count=8)
        for index in range(8)
    ]
    first, second = group.labels()
    counts = np.zeros((8, 2), int)
    for step in range(40):
        made = [[pipeline.batch_at(step)[1].clips[label] for label in (first, second)] for pipeline in pipelines]
        # Of all processes together, the shares are exact in every step.
        assert np.sum(made, axis=0).tolist() == [4, 4]
        counts += made
    assert counts.min() >= 10


def test_frames_smaller_than_the_crop_are_a_warning(root):
    assert not _pipeline(root).warnings()
    group = data.GroupSpec("video", "video", 4, 4.0, 2, (data.SourceSpec((f"{root}/ssv2",), 1.0),))
    large = data.ClipPipeline(
        [group], dataclasses.replace(CROP, size=64), {"video": media.mask_sampler(4, 64)}, seed=5
    )
    (line,) = large.warnings()
    assert "video/ssv2: data.size is 64, but frames are stored with a short side of 48 pixels" in line
    assert "(median of 3 records)" in line and "--size 64" in line


def test_contents_are_the_same_wherever_the_shards_lie(root, tmp_path, memory):
    here = _pipeline(root).contents()
    assert set(here) == {"video", "video/k710", "video/ssv2", "long", "long/ssv2", "still", "still/imagenet"}
    assert here["video"] == "12 x 4 frames at 4/s per step" and "5 records in 1 shards" in here["video/k710"]
    for folder in ("k710", "ssv2", "imagenet"):
        memory.put(str(root / folder), f"/bucket/{folder}", recursive=True)
    assert _pipeline("memory://bucket").contents() == here
    moved = tmp_path / "root"
    shutil.copytree(root, moved)
    (moved / "ssv2/clips-00000-of-00001.array_record").rename(moved / "ssv2/other.array_record")
    changed = {name for name, text in _pipeline(moved).contents().items() if text != here[name]}
    assert changed == {"video/ssv2", "long/ssv2"}


# Ready mixtures


def test_released_mixture_is_the_papers_without_two_sources():
    config = pretrain.get_config("vitl16,mix=released")
    video = config.data.groups.video
    assert dict(zip(video.paths, video.weights, strict=True)) == {"k710": 0.335, "ssv2": 0.100, "howto100m": 0.565}
    assert (video.batch_size, config.data.groups.image.batch_size) == (3072, 0)
    paper = pretrain.get_config("vitl16,mix=vm22m").data.groups
    shares = dict(zip(paper.video.paths, paper.video.weights, strict=True))
    for name, weight in zip(video.paths, video.weights, strict=True):
        assert shares[name] / 0.562 == pytest.approx(weight, abs=1e-3)


def test_paper_mixture_gives_every_source_its_share_of_the_clips():
    groups = pretrain.get_config("vitg16,mix=vm22m").data.groups
    assert (groups.video.batch_size, groups.image.batch_size) == (2304, 768)
    shares = {
        path: weight / sum(group.weights) * group.batch_size / 3072
        for group in (groups.video, groups.image) for path, weight in zip(group.paths, group.weights, strict=True)
    }
    expected = {"ssv2": 0.056, "k710": 0.188, "howto100m": 0.318, "yt1b": 0.188, "imagenet": 0.25}
    assert shares == {name: pytest.approx(share) for name, share in expected.items()}


def test_cooldown_takes_the_same_mixture_at_its_own_length():
    groups = cooldown.get_config("vitg16,res=384,mix=vm22m").data.groups
    assert (groups.video.frames, groups.image.frames, groups.video_long.batch_size) == (64, 16, 0)
    assert groups.video.batch_size + groups.image.batch_size == 3072 and "yt1b" in groups.video.paths


def test_unknown_mixture_is_named():
    with pytest.raises(ValueError, match="mixture 'vm2m' is unknown; choose one of own, released, vm22m"):
        pretrain.get_config("vitl16,mix=vm2m")
    assert mixtures.NAMES[0] == "own"


def test_sources_lie_under_the_root(root):
    config = pretrain.get_config("demo,mix=vm22m")
    config.data.root = str(root)
    config.data.groups.video.paths = ("k710", "/elsewhere/ssv2", "gs://bucket/x", "yt1b")
    video, image = make_groups(config.lock())
    assert [source.paths[0] for source in video.spec.sources] == [
        f"{root}/k710", "/elsewhere/ssv2", "gs://bucket/x", f"{root}/yt1b"]
    assert image.spec.sources[0].paths == (f"{root}/imagenet",)
    assert (video.spec.batch_size, image.spec.batch_size) == (6, 2)


def test_missing_sources_are_named_together_with_their_commands(tmp_path):
    config = pretrain.get_config("demo,mix=vm22m")
    config.data.root = str(tmp_path)
    config.lock()
    with pytest.raises(FileNotFoundError) as caught:
        make_pipeline(config, make_groups(config))
    text = str(caught.value)
    assert "5 of 5 sources are missing" in text and f"data.root, which is '{tmp_path}'" in text
    for name, command in (("ssv2", "videos"), ("yt1b", "videos"), ("imagenet", "images")):
        assert f"'{tmp_path}/{name}' (looked for *.array_record); make them with `python -m jepa_jax.prepare {command} " in text


def test_every_clip_counts_the_same_unless_the_config_says_otherwise():
    config = pretrain.get_config("demo")
    config.data.groups.image.batch_size = 4
    video, image = make_groups(config)
    assert video.loss_weight / image.loss_weight == 8 / 4
    config.data.groups.image.loss_weight = 24.0
    video, image = make_groups(config)
    assert video.loss_weight / image.loss_weight == 8 / 24
    for weight in (0.0, -1.0, float("nan"), float("inf")):
        config.data.groups.image.loss_weight = weight
        with pytest.raises(ValueError, match=r"data\.groups\.image\.loss_weight is .* above 0 and finite"):
            make_groups(config)


def test_tuple_flag_given_twice_is_explained():
    config = pretrain.get_config("demo")
    config.data.groups.video.paths = ("a", "b", "c")
    with pytest.raises(ValueError, match=r"3 paths, \('a', 'b', 'c'\), and 1 weights(?s:.*)A flag given twice"):
        make_groups(config)


# One program


@pytest.fixture(scope="module")
def mixed(root):
    """The demo config, shrunk, with clips of two lengths, images, and every augmentation."""
    config = pretrain.get_config("demo")
    config.update_from_flattened_dict({
        "data.size": 64, "data.workers": 0, "data.threads": 0, "data.root": str(root), "data.max_bad_fraction": 0.5,
        "masks.round_to": 1, "model.predictor.width": 48, "model.predictor.depth": 1, "optim.total_steps": 4,
        "optim.warmup_steps": 2, "checkpoint.every_steps": 4, "log.every_steps": 1, "log.monitor_tokens": 16,
        "data.augment.rand_augment": "rand-m7-n4-mstd0.5-inc1", "data.augment.erase": 0.25,
    })
    # One strategy of each group tells as much as two, and compiles in half the time.
    del config.masks.strategies.short_range
    groups = config.data.groups
    groups.video.update({"frames": 4, "batch_size": 2, "paths": ("k710", "ssv2"), "weights": (0.5, 0.5)})
    groups.video_long.update({"frames": 8, "batch_size": 2, "paths": ("ssv2",)})
    groups.image.update({"frames": 4, "batch_size": 2, "paths": ("imagenet",)})
    return config.lock()


def test_two_lengths_and_images_run_in_one_compiled_program(mixed, tmp_path, monkeypatch):
    av.logging.set_level(av.logging.PANIC)
    compiled, steps = [], []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, _, **__: compiled.append(name) if name == "/jax/core/compile/backend_compile_duration" else None
    )
    real, lowered = loop._Window.add, []
    compile_step = loop._compile
    monkeypatch.setattr(loop, "_compile", lambda *args: lowered.append(True) or compile_step(*args))
    monkeypatch.setattr(loop._Window, "add", lambda *args: (steps.append(len(compiled)), real(*args))[1])
    mesh = sharding.make_mesh(1, jax.devices()[:1])
    with sharding.use_mesh(mesh):
        task = make_task(mixed, mesh)
    counter = data.SkipCounter(0.5)
    loop.train(task, counter, mesh, tmp_path, config=mixed, total_steps=4)
    assert len(lowered) == 1
    # After the second step, whose logging compiled the monitors of the first, nothing is compiled any more.
    assert len(steps) == 4 and steps[1] == steps[3] and steps[0] > 0
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = {name for name in rows[-1] if name.startswith("train/loss/")}
    assert len(losses) == 3 and all(np.isfinite([row[name] for name in losses]).all() for row in rows)
    shares = {name.removeprefix("data/share/"): row for name, row in rows[-1].items() if name.startswith("data/share/")}
    expected = {"video/k710": 1 / 6, "video/ssv2": 1 / 6, "video_long/ssv2": 1 / 3, "image/imagenet": 1 / 3}
    assert shares == {name: pytest.approx(share) for name, share in expected.items()}
    assert counter.clips.total() == 24


def test_batch_that_would_starve_a_device_is_refused(mixed):
    config = mixed.copy_and_resolve_references()
    config.data.groups.image.batch_size = 3
    mesh = sharding.make_mesh(1, jax.devices()[:2])
    with pytest.raises(ValueError, match="image"), sharding.use_mesh(mesh):
        make_task(config, mesh)


def test_group_section_of_a_config_is_off_without_a_batch():
    assert common.data_section().groups.video_long.batch_size == 0
