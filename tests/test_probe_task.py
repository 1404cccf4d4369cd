"""Probes on a frozen encoder, from a list of videos to a confusion matrix."""

import dataclasses
import functools
import json
from types import SimpleNamespace

import cv2
import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

import jepa_jax
from compiling import fast_jit
from configs import pretrain
from configs.probe import get_config
from jepa_jax import evaluate, train
from jepa_jax.data import DataError, labelled
from jepa_jax.data.listing import ListError
from jepa_jax.data.segments import make_row, read_augmented, read_views
from jepa_jax.evals import classification
from jepa_jax.models import AttentiveProbe, make_encoder
from jepa_jax.models.sincos import sincos_axis
from jepa_jax.tasks import probe as task
from jepa_jax.tasks import probe_tokens
from jepa_jax.training import loop, sharding
from jepa_jax.data.skips import SkipCounter
from jepa_jax.weights import store
from jepa_jax.weights.bundle import Bundle, Preprocessing, WeightsError, network_sha256
from media import read_number, write_video
from test_classify import ENCODER
from weight_bundles import random_network

CLASSES = 3


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """Path of a tiny random encoder."""
    path = tmp_path_factory.mktemp("encoder") / "weights"
    store.write(Bundle({"encoder": random_network(ENCODER, 0)}, Preprocessing(crop_size=32, short_side=36, frames=4)), path)
    return str(path)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """A list of six readable videos of three classes, and one that is no video."""
    folder = tmp_path_factory.mktemp("videos")
    lines = [f"{write_video(folder / f'{i}.mp4', frames=12, height=32 + 8 * i, width=48)} {i % CLASSES}" for i in range(6)]
    (folder / "broken.mp4").write_bytes(b"no video")
    (folder / "good.csv").write_text("\n".join(lines) + "\n")
    (folder / "list.csv").write_text("\n".join([*lines, f"{folder / 'broken.mp4'} 1"]) + "\n")
    return folder


def make_config(encoder, path, **optim):
    config = get_config("demo")
    config.encoder = encoder
    config.protocol.update({"frames": 4, "num_segments": 2, "layers": (0, 2)})
    config.model.update({"depth": 2, "num_heads": 2})
    config.data.update({"paths": (str(path),), "size": 32, "batch_size": 8, "workers": 0, "threads": 0, "max_bad_fraction": 0.5})
    config.data.augment.update({"erase": 1.0})
    config.optim.update({"total_steps": 3, "lr": (0.1, 0.01), "weight_decay": (0.0, 0.4)} | optim)
    config.checkpoint.every_steps = 2
    return config.lock()


@pytest.fixture(scope="module")
def run(encoder, videos, tmp_path_factory):
    """Workdir of a finished run."""
    workdir = tmp_path_factory.mktemp("run")
    config = make_config(encoder, videos / "list.csv")
    mesh = sharding.make_mesh(1)
    made = task.make_task(config, mesh)
    loop.train(made, SkipCounter(0.5), mesh, workdir, config=config, total_steps=3)
    return workdir


def test_from_a_list_to_a_confusion_matrix(run, videos, tmp_path, capsys):
    status = evaluate.main(["probe", str(videos / "list.csv"), "--model", str(run), "--output", str(tmp_path), "--batch", "4",
                            "--max-skip-fraction", "0.5"])
    assert status == 0, capsys.readouterr().err
    report = json.loads((tmp_path / "probe.json").read_text())
    assert (report["n"], report["skipped"], report["classes"], len(report["probes"])) == (6, 1, CLASSES, 4)
    assert report["probes"][1]["setting"] == {"lr": 0.1, "weight_decay": 0.4}
    assert report["protocol"]["num_segments"] == 2 and report["protocol"]["layers"] == [0, 2]
    assert "broken.mp4" in report["left_out"][0]["message"]
    assert (tmp_path / "confusion.png").stat().st_size > 10_000 and (tmp_path / "worst.png").exists()
    assert (tmp_path / "attention.png").stat().st_size > 10_000
    assert report["versions"] == {"jepa_jax": jepa_jax.__version__, "jax": jax.__version__, "flax": flax.__version__, "numpy": np.__version__,
                                  "backend": "cpu", "compute_dtype": "float32"} and report["probes"][0]["not_finite"] == 0
    assert {"depth": 2, "num_heads": 2, "norm_eps": 1e-5}.items() <= report["architecture"].items()
    assert report["training_seed"] == get_config("demo").seed and report["encoder_sha256"] == network_sha256(random_network(ENCODER, 0).params)
    assert "1 videos could not be read" in capsys.readouterr().out


def test_a_sweep_on_several_devices_is_that_on_one(encoder, videos):
    # Wide enough that tensors are split; with an epsilon at which rounding does not decide how Adam moves what has hardly a gradient.
    config = make_config(encoder, videos / "good.csv", weight_decay=(0.4,), eps=1e-3)
    config.protocol.layers, config.model.mlp_ratio = (), 32.0
    losses, params = [], []
    for mesh in (sharding.make_mesh(1, jax.devices()[:1]), sharding.make_mesh(2, jax.devices()[:4])):
        made = task.make_task(config, mesh)
        shardings = sharding.state_sharding(jax.eval_shape(made.init_state, jax.random.key(0)), mesh)
        assert any(own.spec for own in jax.tree.leaves(shardings)) == (mesh.size > 1)
        with sharding.use_mesh(mesh):
            state = fast_jit(made.init_state, out_shardings=shardings)(jax.random.key(0))
            frozen = jax.device_put(made.frozen, sharding.state_sharding(made.frozen, mesh))
            step = fast_jit(made.train_step, out_shardings=(shardings, sharding.replicated(mesh), None))
            for number in range(2):
                batch = sharding.put_batch(made.open_data.args[0].batch_at(number)[0], mesh)
                state, metrics, _ = step(state, batch, frozen)
                losses.append([float(metrics[f"train/loss/probe_{probe}"]) for probe in range(2)])
        params.append(jax.device_get(state.params))
    np.testing.assert_allclose(losses[2:], losses[:2], rtol=1e-4)
    # The second losses are of probes that have been trained, each at its own rate.
    assert np.ptp(losses[1]) > 1e-3
    jax.tree.map(lambda several, one: np.testing.assert_allclose(several, one, atol=2e-4), params[1], params[0])


def test_a_picture_that_fails_costs_no_report(run, videos, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate.evaluate_probe, "_draw", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        evaluate.main(["probe", str(videos / "good.csv"), "--model", str(run), "--output", str(tmp_path), "--batch", "4", "--dtype", "bfloat16"])
    assert json.loads((tmp_path / "probe.json").read_text())["versions"]["compute_dtype"] == "bfloat16"


def test_folders_are_classes_by_their_names(run, tmp_path):
    for name in ("a", "b", "c", ".ipynb_checkpoints"):
        (tmp_path / "train" / name).mkdir(parents=True)
        (tmp_path / "train" / name / "1.mp4").touch()
    for name in ("a", "c"):
        (tmp_path / "test" / name).mkdir(parents=True)
        (tmp_path / "test" / name / "2.mp4").touch()
    train, test = labelled.open_labelled(str(tmp_path / "train")), labelled.open_labelled(str(tmp_path / "test"))
    assert labelled.align_classes([train, test]) == ("a", "b", "c")
    assert train.labels().tolist() == [0, 1, 2] and test.labels().tolist() == [0, 2]
    with pytest.raises(ListError, match="none of the 2 known classes: a; known are b, c"):
        test.number_as(["b", "c"])
    with pytest.raises(ListError, match=r"no example of 1 of 3 classes \(1\)"):
        labelled.check_examples([test], 3, what="test")
    labelled.check_examples([test, train], 3, what="both")
    # The same files elsewhere are the same list, other classes are not.
    (tmp_path / "test").rename(tmp_path / "moved")
    moved = labelled.open_labelled(str(tmp_path / "moved"))
    assert moved.checksum() != test.checksum()
    moved.number_as(["a", "b", "c"])
    assert moved.checksum() == test.checksum()


def test_a_set_is_encoded_once_and_then_read(encoder, videos, tmp_path, monkeypatch):
    config = make_config(encoder, videos / "list.csv").copy_and_resolve_references()
    with config.unlocked():
        config.data.update({"tokens": str(tmp_path / "tokens"), "token_draws": 2})
    mesh = sharding.make_mesh(1)

    made = task.make_task(config, mesh)
    loop.train(made, SkipCounter(0.5), mesh, tmp_path / "run", config=config, total_steps=2)
    source = made.open_data.args[0]._mixture.sources[0]
    assert source._store.done.tolist() == [True] * 6 + [False]
    # What is stored is what the encoder makes of the video as training sees it.
    crop, augment = task._make_transforms(config.data)
    protocol, number = task.make_protocol(config), 4
    (listed,), _, _ = task.open_data(config, "", config.data, None)
    network = store.read(encoder).networks["encoder"]
    for draw in range(2):
        seen = read_augmented(listed[number], protocol, crop, augment, np.random.default_rng((config.seed, number, draw)))
        batch = {name: jnp.asarray(value)[None] for name, value in make_row(seen, protocol, augment).items()}
        pre = Preprocessing(crop_size=32, short_side=36, frames=4)
        tokens = task.encode_batch(network.module, network.params, batch, layers=(0, 2), mean=pre.mean, std=pre.std, frames=4)
        np.testing.assert_allclose(np.float32(source[number].tokens[draw]), tokens[0], rtol=1e-2, atol=1e-2)
    assert source[number].label == number % CLASSES
    # The next run opens only what could not be read, and what a stopped one has not stored is stored by the next.
    stored, first = np.array(source._store._arrays[0]), made.open_data.args[0].batch_at(0)[0]

    def read_again(record, *_):
        assert record.path.endswith("broken.mp4")
        raise DataError("not a video", record.path)

    monkeypatch.setattr(probe_tokens, "read_augmented", read_again)
    again = task.make_task(config, mesh).open_data.args[0].batch_at(0)[0]
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.float32, again), jax.tree.map(np.float32, first))
    # So does a list of the same files that asks something else of them.
    relabelled = tmp_path / "relabelled.csv"
    lines = [line.rsplit(" ", 1)[0] for line in (videos / "list.csv").read_text().splitlines()]
    relabelled.write_text("".join(f"{path} {number % 2}\n" for number, path in enumerate(lines)))
    asked = config.copy_and_resolve_references()
    with asked.unlocked():
        asked.data.paths = (str(relabelled),)
    other = task.make_task(asked, mesh).open_data.args[0]._mixture.sources[0]
    assert [other[number].label for number in range(6)] == [0, 1, 0, 1, 0, 1]
    assert [source[number].label for number in range(6)] == [number % CLASSES for number in range(6)]
    np.testing.assert_array_equal(np.float32(other[5].tokens), np.float32(source[5].tokens))
    monkeypatch.undo()
    source._store._arrays[2][[1, 3]], source._store._arrays[0][[1, 3]] = 0, 0
    source._store.flush()
    task.make_task(config, mesh)
    np.testing.assert_array_equal(source._store._arrays[0], stored)
    for section, change, message in (("data", {"size": 40}, "crop: .* there"), ("data", {"token_draws": 0}, "at least 1"),
                                     ("data", {"tokens": "gs://bucket/tokens"}, "a folder of this machine")):
        changed = config.copy_and_resolve_references()
        with changed.unlocked():
            changed[section].update(change)
        with pytest.raises(ValueError, match=message):
            task.make_task(changed, mesh)
    other = tmp_path / "other"
    store.write(Bundle({"encoder": random_network(ENCODER, 1)}, Preprocessing(crop_size=32, short_side=36, frames=4)), other)
    with config.unlocked():
        config.encoder = str(other)
    with pytest.raises(ValueError, match="encoder_sha256: '.*' there, '.*' now"):
        task.make_task(config, mesh)


def test_times_of_frames_are_added_in_training_and_in_evaluation(encoder, tmp_path):
    long = write_video(tmp_path / "long.mp4", frames=60, height=32, width=48)
    (tmp_path / "list.csv").write_text(f"{long} 0\n{long} 1\n{long} 2\n")
    config = make_config(encoder, tmp_path / "list.csv").copy_and_resolve_references()
    with config.unlocked():
        config.protocol.update({"layers": (), "use_pos_embed": True})
        config.data.update({"tokens": str(tmp_path / "tokens"), "crop_scale": (1.0, 1.0), "crop_aspect": (1.5, 1.5), "augment": {"rand_augment": "", "erase": 0.0}})
    made, protocol = task.make_task(config, sharding.make_mesh(1)), task.make_protocol(config)
    assert protocol.to_json()["use_pos_embed"] and "times of the frames" in protocol.describe() and made.model_card["protocol"]["use_pos_embed"]
    assert "use_pos_embed" not in dataclasses.replace(protocol, use_pos_embed=False).to_json()
    with pytest.raises(WeightsError, match=r"use_pos_embed is on and protocol.layers is \(0, 2\)"):
        dataclasses.replace(protocol, layers=(0, 2))
    (listed,), _, _ = task.open_data(config, "", config.data, None)
    crop, augment = task._make_transforms(config.data)
    network, pre = store.read(encoder).networks["encoder"], Preprocessing(crop_size=32, short_side=36, frames=4)
    row = make_row(read_augmented(listed[1], protocol, crop, augment, np.random.default_rng((config.seed, 1, 0))), protocol, augment)
    np.testing.assert_array_equal([[read_number(frame) for frame in segment] for segment in row["video"]], row["frame_indices"])
    encode = functools.partial(task.encode_batch, network.module, network.params, layers=(), mean=pre.mean, std=pre.std, frames=4)
    batch = {name: value[None] for name, value in row.items()}
    plain, timed = encode({"video": batch["video"]}), encode(batch)
    # Two tubelets of two frames in every segment; every one of the 16 tokens of a tubelet gets the row of its first frame.
    table = np.repeat(sincos_axis(24, row["frame_indices"][:, ::2].reshape(-1)), 16, axis=0)
    np.testing.assert_allclose(timed[0], plain[0] + table, atol=1e-4)
    stored = np.float32(made.open_data.args[0]._mixture.sources[0][1].tokens[0])
    np.testing.assert_allclose(stored, timed[0], rtol=2e-2, atol=2e-2)
    # Evaluated, and classified by the loaded model, it is the same.
    probe = random_network(AttentiveProbe(24, 1, 2, outputs=(("label", CLASSES),)), 3)
    store.write(Bundle({"encoder": network, "probe_0": probe}, pre, protocol=protocol), tmp_path / "weights")
    bundle, (model, params) = store.read(str(tmp_path / "weights")), jepa_jax.load(tmp_path / "weights")
    judged = classification.judge(bundle, listed, batch_size=2, limit=1)
    views, indices = read_views(listed[0], protocol, np.random.default_rng((0, 0)).random(2))
    np.testing.assert_allclose(judged.probabilities[0, 0], model.classify(params, views, indices), atol=1e-5)
    assert np.abs(model.classify(params, views, indices + 20) - judged.probabilities[0, 0]).max() > 1e-3
    with pytest.raises(ValueError, match="frame_indices are needed"):
        model.classify(params, views)


def test_stored_tokens_are_of_one_set_of_shards():
    def shards(*records):
        return [SimpleNamespace(source_id=name, label=label, data=data) for name, label, data in records]

    first = shards(("a", 0, b"x"), ("b", 1, b"y"))
    identify = lambda source: probe_tokens._identify(source, 2)["videos"]
    checksums = {identify(source) for source in (
        first, shards(("a", 1, b"x"), ("b", 1, b"y")), shards(("a", 0, b"x"), ("b", 1, b"z")), shards(("a", 0, b"x"), ("c", 1, b"y")), first[:1])}
    assert len(checksums) == 5 and identify(list(first)) in checksums


def test_stills_are_repeated_where_they_are_encoded(encoder, videos, tmp_path):
    picture = tmp_path / "a.png"
    cv2.imwrite(str(picture), np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8))
    config = make_config(encoder, "")
    protocol, (crop, augment) = task.make_protocol(config), task._make_transforms(config.data)
    read = lambda path, still: read_augmented(labelled.LabelledFile(str(path), 0), protocol, crop, augment, np.random.default_rng(0), still)
    still, whole = read(picture, True).video, read(picture, False).video
    assert still.shape == (2, 1, 32, 32, 3)
    np.testing.assert_array_equal(np.repeat(still, 4, axis=1), whole)
    network = store.read(encoder).networks["encoder"]
    encode = functools.partial(task.encode_batch, network.module, network.params, layers=(), mean=0.5, std=0.5, frames=4)
    np.testing.assert_allclose(encode({"video": still[None]}), encode({"video": whole[None]}), atol=1e-6)
    with pytest.raises(DataError, match="12 frames, but data.still says"):
        read(videos / "0.mp4", True)


def test_too_many_unreadable_videos_are_a_failure(run, videos, tmp_path):
    assert evaluate.main(["probe", str(videos / "list.csv"), "--model", str(run), "--output", str(tmp_path), "--batch", "4"]) == 1


def test_a_run_is_a_classifier(run):
    bundle = store.read(str(run))
    assert bundle.probes() == ["probe_0", "probe_1", "probe_2", "probe_3"] and "encoder" in bundle.networks
    assert bundle.protocol.describe() == "demo: 2 segments of 4 frames every 2, 1 view of 32, layers 0, 2"


@pytest.mark.parametrize("change, error, message", [
    ({"num_classes": 2}, ListError, "2 of 6 labels outside of 0 to 1"),
    ({"num_classes": 5}, ListError, r"no example of 2 of 5 classes \(3, 4\)"),
    ({"batch_size": 0}, ValueError, "batch"),
    ({"paths": ("missing.csv",)}, (ListError, FileNotFoundError, OSError), "missing.csv"),
])
def test_bad_data_is_refused_before_anything_is_computed(encoder, videos, change, error, message):
    config = make_config(encoder, videos / "good.csv")
    config.data.update(change)
    with pytest.raises(error, match=message):
        task.make_task(config, sharding.make_mesh(1))


@pytest.mark.parametrize("change, message", [
    ({"model.num_heads": 5}, "model.num_heads is 5, which does not divide the encoder's width, 24; set --config.model.num_heads"),
    ({"model.num_heads": 0}, "model.num_heads is 0"),
    ({"protocol.frames": 5}, "protocol.frames does not suit this encoder: frames of a clip is 5; it must be a multiple of tubelet_size, 2"),
    ({"data.size": 36}, "data.size does not suit this encoder: height of a clip is 36; it must be a multiple of patch_size, 8"),
    ({"protocol.layers": (0, 3)}, r"protocol.layers does not suit this encoder: it takes blocks \(0, 3\); this encoder has 3"),
    ({"protocol.layers": (-1,)}, r"protocol.layers does not suit this encoder: it takes blocks \(-1,\)"),
])
def test_what_does_not_suit_the_encoder_is_refused_before_anything_is_written(encoder, videos, tmp_path, change, message):
    config = make_config(encoder, videos / "good.csv")
    config.data.tokens = str(tmp_path / "tokens")
    for name, value in change.items():
        section, field = name.split(".")
        config[section][field] = value
    with pytest.raises(ValueError, match=message):
        train._train(task.make_task, config, epath.Path(tmp_path / "run"), None)
    assert not list(tmp_path.iterdir())


def test_a_preset_of_another_model_is_pointed_out(encoder, videos):
    note = "protocol demo takes blocks 0, 1 and not the encoder's last, 2: is it that of another model?"
    for layers, found in (((0, 1), True), ((0, 2), False), ((), False)):
        config = make_config(encoder, videos / "good.csv")
        config.protocol.layers = layers
        assert (note in task.make_task(config, sharding.make_mesh(1)).summary) == found


@pytest.mark.parametrize("name", ["own", "demo"])
def test_the_encoder_of_the_demo_can_be_probed_as_documented(name, videos, tmp_path):
    demo = pretrain.get_config("demo")
    pre = Preprocessing(crop_size=demo.data.size, short_side=demo.data.size, frames=demo.data.groups.video.frames)
    module = make_encoder(demo.model.size, patch_size=demo.model.patch_size, tubelet_size=demo.model.tubelet_size)
    store.write(Bundle({"encoder": random_network(module, 0)}, pre), tmp_path / "weights")
    config = get_config(name)
    config.encoder, config.data.paths, config.optim.total_steps = str(tmp_path / "weights"), (str(videos / "good.csv"),), 2
    if name == "demo":
        config.data.size = demo.data.size
    made = task.make_task(config.lock(), sharding.make_mesh(1))
    assert made.model_card["networks"]["probe_0"]["outputs"] == [["label", CLASSES]] and f"{CLASSES} classes" in made.summary[0]


def test_what_a_probe_needs_is_asked_for(videos, encoder, tmp_path):
    with pytest.raises(ValueError, match="encoder is not set"):
        task.make_task(make_config("", videos / "good.csv"), sharding.make_mesh(1))
    with pytest.raises(ValueError, match="must be lists of numbers"):
        task.make_task(make_config(encoder, videos / "good.csv", lr=()), sharding.make_mesh(1))
    assert evaluate.main(["probe", str(videos / "good.csv"), "--model", encoder, "--output", str(tmp_path)]) == 2


def test_a_probe_of_another_width_is_refused(videos, tmp_path):
    networks = {"encoder": random_network(ENCODER, 0), "probe_0": random_network(AttentiveProbe(36, 1, 3, outputs=(("label", 3),)), 1)}
    store.write(Bundle(networks, Preprocessing(crop_size=32, short_side=36, frames=4), protocol=task.make_protocol(make_config("", ""))), tmp_path / "w")
    with pytest.raises(WeightsError, match="takes tokens of width 36, the encoder gives 24"):
        evaluate.evaluate_probe.run(evaluate._parser().parse_args(["probe", str(videos / "good.csv"), "--model", str(tmp_path / "w"), "--output", str(tmp_path)]))


def test_attention_lies_where_its_segment_and_tubelet_are(run):
    bundle = store.read(str(run))
    clip = np.random.default_rng(0).integers(0, 256, (2, 4, 32, 32, 3), np.uint8)
    (found,), (swapped,) = (classification.locate(bundle, "probe_1", [clips], [np.zeros((2, 4), np.int32)]) for clips in (clip, clip[::-1]))
    tubelet, patch = ENCODER.tubelet_size, ENCODER.patch_size
    assert found.shape == (2, 4 // tubelet, 32 // patch, 32 // patch) and found.sum() == pytest.approx(1, rel=1e-5)
    # Probes know no positions, so segments that change places take their attention with them.
    np.testing.assert_allclose(swapped, found[::-1], rtol=1e-4)
    assert np.abs(found[0] - found[1]).max() > 1e-6
