"""Probes that anticipate actions: from a list of segments to recall by both protocols."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import jepa_jax
from compiling import fast_jit
from configs import anticipate as configs
from jepa_jax import convert, evaluate
from jepa_jax.data import anticipation as clips
from jepa_jax.data.actions import OUTPUTS, ActionSource, Annotation, check_videos, make_classes, read_annotations
from jepa_jax.data.errors import DataError
from jepa_jax.data.listing import ListError
from jepa_jax.data.skips import SkipCounter
from jepa_jax.evals import anticipation as evals
from jepa_jax.models import AttentiveProbe, MaskedPredictor, anticipate, furthest_grid, normalize_pixels
from jepa_jax.tasks import anticipate as task
from jepa_jax.tasks import sweep
from jepa_jax.tasks.losses import focal_loss
from jepa_jax.training import loop, sharding
from jepa_jax.weights import store
from jepa_jax.weights.anticipation import Anticipation, from_json
from jepa_jax.weights.bundle import Bundle, Preprocessing, WeightsError, network_sha256
from media import read_number, write_video
from test_classify import ENCODER
from weight_bundles import random_network, write_official_probes

PREDICTOR = MaskedPredictor(24, 18, 1, 1, num_mask_tokens=2, table_grid=(2, 4, 4))
PREPROCESSING = Preprocessing(crop_size=32, short_side=36, frames=4)
HEADER = "narration_id,participant_id,video_id,narration_timestamp,start_frame,stop_frame,narration,verb_class,noun_class,all_nouns\n"
FPS, FRAMES = 30, 100
# Verb, noun, start, stop.
ROWS = [(2, 7, 60, 90), (0, 7, 40, 64), (2, 3, 70, 99), (5, 3, 50, 80), (0, 7, 55, 75), (2, 7, 45, 95)]


def write_list(path, rows, video="P01_01"):
    """Write a list with a narration that holds a comma, as the real ones do."""
    lines = [f'{video}_{i},P01,{video},00:01,{start},{stop},"open, close",{verb},{noun},"[\'a\', \'b\']"' for i, (verb, noun, start, stop) in enumerate(rows)]
    path.write_text(HEADER + "\n".join(lines) + "\n")
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folder with a video, lists of its segments and weights of a tiny encoder and predictor."""
    folder = tmp_path_factory.mktemp("kitchen")
    (folder / "P01" / "videos").mkdir(parents=True)
    write_video(folder / "P01" / "videos" / "P01_01.MP4", frames=FRAMES, fps=FPS, height=32, width=48)
    write_list(folder / "train.csv", ROWS)
    # One action that training does not have, one video that is not there.
    write_list(folder / "val.csv", ROWS[:4] + [(5, 7, 60, 70)])
    lost = write_list(folder / "lost.csv", ROWS[:1], video="P02_09")
    with open(folder / "val.csv", "a") as file:
        file.write(open(lost).read().splitlines()[1] + "\n")
    networks = {"encoder": random_network(ENCODER, 0), "predictor": random_network(PREDICTOR, 1)}
    store.write(Bundle(networks, PREPROCESSING), folder / "weights")
    store.write(Bundle({"encoder": networks["encoder"]}, PREPROCESSING), folder / "encoder")
    return folder


def make_config(folder, weights="weights", **data):
    config = configs.get_config("demo")
    config.encoder = str(folder / weights)
    config.protocol.update({"frames": 4, "fps": 10.0})
    config.model.update({"num_heads": 2})
    config.data.update({"annotations": str(folder / "train.csv"), "videos": str(folder), "size": 32, "batch_size": 8, "workers": 0, "threads": 0} | data)
    config.data.augment.update({"erase": 1.0})
    config.optim.update({"total_steps": 2, "lr": (0.01, 0.001), "weight_decay": (0.1,)})
    return config.lock()


@pytest.fixture(scope="module")
def run(folder):
    """Workdir of a finished run."""
    workdir, config, mesh = folder / "run", make_config(folder), sharding.make_mesh(1)
    loop.train(task.make_task(config, mesh), SkipCounter(0.5), mesh, workdir, config=config, total_steps=2)
    return workdir


@pytest.mark.parametrize("anchor, point, seconds, last", [
    ("released", 0.0, 1.0, 900 - 59 - 7), ("standard", 0.0, 1.0, 600 - 59 - 7), ("released", 0.25, 1.0, 825 - 59 - 7),
    ("standard", 0.25, 1.0, 675 - 59 - 7), ("released", 1.0, 0.25, 600 - 14 - 7), ("standard", 0.0, 0.0, 600 - 7),
])
def test_clips_end_before_the_moment(anchor, point, seconds, last):
    """Numbers by hand from the released formula, at the 59.94 frames/s of most kitchens: a step of 7, a second of 59 frames."""
    indices = clips.frames_before(600, 900, 59.94, frames=32, fps=8.0, seconds=seconds, point=point, anchor=anchor)
    assert indices[-1] == last and set(np.diff(indices)) == {7} and len(indices) == 32


def test_the_first_frame_stands_in_for_those_before_the_video():
    indices = clips.frames_before(30, 90, 30.0, frames=6, fps=10.0, seconds=0.5, anchor="standard")
    assert indices.tolist() == [0, 0, 3, 6, 9, 12]
    assert clips.frames_before(0, 9, 30.0, frames=3, fps=10.0, seconds=1.0, anchor="standard").tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match="too slow"):
        clips.frames_before(0, 9, 5.0, frames=3, fps=10.0, seconds=1.0)


def test_classes_are_those_of_training(folder):
    rows = read_annotations(str(folder / "train.csv"))
    classes = make_classes(rows)
    assert classes == {"verb": (0, 2, 5), "noun": (3, 7), "action": ((0, 7), (2, 3), (2, 7), (5, 3))}
    in_set = make_classes(rows, "set")
    assert in_set["action"] == tuple({(row.verb, row.noun) for row in rows}) and sorted(in_set["action"]) == list(classes["action"])
    source = ActionSource("val.csv", read_annotations(str(folder / "val.csv")), classes, "/videos", "{participant}/{video}.mp4")
    assert (len(source), source.foreign) == (5, 1)
    assert source[1] == ("/videos/P01/P01_01.mp4", 40, 64, (0, 1, 0), "file", 0.0)
    assert source.locate(4) == "val.csv#5" and source[4].path.endswith("P02/P02_09.mp4")
    # A list is the same wherever its videos lie; other segments or classes make it another.
    elsewhere, fewer, otherwise = (
        ActionSource("val.csv", read_annotations(str(folder / "val.csv"))[:rows], numbered, where, "{video}.mp4")
        for rows, numbered, where in ((None, classes, "/mnt"), (3, classes, "/mnt"), (None, {**classes, "verb": (5, 2, 0)}, "/mnt"))
    )
    assert source.checksum() == elsewhere.checksum() and len({found.checksum() for found in (source, fewer, otherwise)}) == 3


@pytest.mark.parametrize("text, message", [
    ("a b 3\n", "no column video_id, start_frame"),
    (HEADER, "holds no segment"),
    (HEADER + "a,P01,P01_01,0,7,x,n,1,2,[]\n", "line 2: .*'stop_frame': 'x'.* are not all whole numbers"),
    (HEADER + "a,P01,P01_01,0,7,3,n,1,2,[]\n", "frames 7 to 3"),
    (HEADER + "a,P01,P01_01,0,7,9,n,-1,2,[]\n", "verb -1"),
    (HEADER + "a,P01,P01_01\n", "are not all whole numbers"),
])
def test_lists_that_cannot_be_used(tmp_path, text, message):
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(ListError, match=message):
        read_annotations(str(tmp_path / "list.csv"))


def test_frames_of_the_right_time_are_read(folder):
    (segment, *_) = ActionSource("x", read_annotations(str(folder / "train.csv"))[:1], {"verb": (2,), "noun": (7,), "action": ((2, 7),)}, str(folder))
    seeing = Anticipation(frames=4, fps=10.0, crop_size=32)
    # The central square of a frame of 32x48 shows four of eight bars, those of bits 2 to 5.
    middle = lambda clip: [sum((int(frame[8, 4 + 8 * bit].mean()) > 127) << bit for bit in range(4)) for frame in clip]
    for anchor, last in (("standard", 60 - 15 - 3), ("released", 90 - 15 - 3)):
        clip = clips.read_before(segment, seeing, seconds=0.5, anchor=anchor)
        assert clip.shape == (4, 32, 32, 3) and clip.dtype == np.uint8
        assert middle(clip) == [(number >> 2) & 15 for number in range(last - 9, last + 1, 3)]
    with pytest.raises(DataError, match="ends at frame 1..0?, the video has 100"):
        clips.read_before(segment._replace(stop=170), seeing, seconds=0.0, anchor="released")
    with pytest.raises(DataError, match="fewer than the 40"):
        clips.read_before(segment, dataclasses.replace(seeing, fps=40.0), seconds=0.0, anchor="released")


def test_a_batch_says_how_far_ahead_it_looks(folder):
    config = make_config(folder, crop_scale=(1.0, 1.0), crop_aspect=(1.5, 1.5), flip=0.0, anchor="standard", points=(0.0, 0.0), seconds=(0.2, 1.2))
    source, classes = task.open_data(config)
    pipeline = task.make_pipeline(config, source, task.make_protocol(config), clips.TimingSpec(config.data.seconds, config.data.points, config.data.anchor))
    batch, notes = pipeline.batch_at(3)
    assert batch["video"].shape == (8, 4, 32, 32, 3) and batch["erase_boxes"].shape == (8, 4) and not notes.skips
    starts = {(verb, noun): {start for v, n, start, _ in ROWS if (v, n) == (verb, noun)} for verb, noun, *_ in ROWS}
    for row in range(8):
        pair = classes["action"][batch["action"][row]]
        assert pair == (classes["verb"][batch["verb"][row]], classes["noun"][batch["noun"][row]])
        shown = [read_number(frame) for frame in batch["video"][row]]
        ends = {max(0, start - int(batch["seconds"][row] * FPS) - 3) for start in starts[pair]}
        assert shown[-1] in ends and 0.2 <= batch["seconds"][row] <= 1.2
    assert len(set(batch["seconds"].tolist())) == 8
    again = pipeline.batch_at(3)[0]
    assert all((again[name] == values).all() for name, values in batch.items())


def test_the_loss_is_that_of_every_probe_and_output_by_itself():
    seeing = Anticipation(frames=4, fps=8.0, crop_size=32)
    networks = {"encoder": ENCODER, "predictor": PREDICTOR}
    frozen = {role: random_network(module, seed).params for seed, (role, module) in enumerate(networks.items())}
    grid = furthest_grid(ENCODER, seeing, 1.0)
    probe = AttentiveProbe(24, 1, 2, num_queries=3, outputs=(("verb", 6), ("noun", 7), ("action", 9)))
    params = {f"probe_{number}": random_network(probe, number).params for number in range(2)}
    rng = np.random.default_rng(0)
    batch = {"video": rng.integers(0, 256, (2, 4, 32, 32, 3), dtype=np.uint8), "seconds": np.float32([0.25, 1.0]),
             "verb": np.int32([5, 0]), "noun": np.int32([1, 6]), "action": np.int32([8, 3])}
    mean, std = PREPROCESSING.mean, PREPROCESSING.std
    loss_fn = task.make_loss(probe, networks, seeing, grid, mean=mean, std=std, alpha=0.25, gamma=2.0, monitor_tokens=8)

    @fast_jit
    def everything(params, frozen, batch):
        (loss, aux), reached = jax.value_and_grad(loss_fn, argnums=1, has_aux=True)(params, frozen, batch)
        video = normalize_pixels(batch["video"], np.float32(mean), np.float32(std))
        tokens = anticipate(ENCODER, PREDICTOR, frozen, video, batch["seconds"], seeing, grid)
        logits = {name: probe.apply({"params": one}, tokens) for name, one in params.items()}
        return loss, aux["losses"], reached, tokens, logits

    loss, losses, reached, tokens, logits = everything(params, frozen, batch)
    assert tokens.shape == (2, 2 * 16 + 16, 24)
    alone = {name: sum(focal_loss(one[output], batch[output]).sum() for output in one) for name, one in logits.items()}
    for name, value in alone.items():
        np.testing.assert_allclose(losses[f"train/loss/{name}"], value, rtol=1e-4)
    np.testing.assert_allclose(loss, sum(alone.values()), rtol=1e-4)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(reached))
    # It looks further ahead only where the batch says so.
    later = everything(params, frozen, batch | {"seconds": np.float32([0.25, 0.25])})[3]
    assert np.allclose(later[0], tokens[0], atol=1e-5) and not np.allclose(later[1, 32:], tokens[1, 32:], atol=1e-3)


def test_from_a_list_to_recall_by_both_protocols(run, folder, tmp_path, capsys):
    command = ["anticipate", str(folder / "val.csv"), "--videos", str(folder), "--model", str(run), "--output", str(tmp_path), "--batch", "3"]
    assert evaluate.main([*command, "--max-skip-fraction", "0.5"]) == 0, capsys.readouterr().err
    report, out = json.loads((tmp_path / "anticipation.json").read_text()), capsys.readouterr().out
    assert set(report["protocols"]) == {"released", "standard"} and report["metric"] == "class-mean recall@5"
    for anchor, found in report["protocols"].items():
        assert (found["n"], found["skipped"], len(found["probes"])) == (4, 1, 2)
        assert found["classes"] == {"verb": 3, "noun": 2, "action": 4} and found["occurring"]["action"] == 4
        # Fewer classes than answers.
        assert all(row[output]["recall5"] == 100 for row in found["probes"] for output in ("verb", "noun", "action"))
        assert found["probes"][1]["setting"] == {"lr": 0.001, "weight_decay": 0.1}
        assert "P02_09" in report["left_out"][anchor][0]["message"]
    assert report["segments"] == {"of_training_actions": 5, "of_other_actions": 1} and set(report["sha256"]) == {"encoder", "predictor", "probe_0", "probe_1"}
    assert report["encoder_sha256"] == report["sha256"]["encoder"] and report["training_seed"] == configs.get_config("demo").seed
    assert report["architecture"]["num_heads"] == 2 and report["versions"]["jepa_jax"] == jepa_jax.__version__
    assert "1 segments are of actions that training does not have" in out and "1 segments could not be read" in out
    assert evaluate.main([*command, "--protocol", "standard"]) == 1


def test_a_run_keeps_its_classes_and_networks(run, folder, tmp_path):
    bundle = store.read(str(run))
    seeing, classes = from_json(bundle.anticipation, "run")
    assert seeing == Anticipation("demo", 4, 10.0, 32, mask_index=0) and classes["action"] == ((0, 7), (2, 3), (2, 7), (5, 3))
    assert set(bundle.networks) == {"encoder", "predictor", "probe_0", "probe_1"}
    store.write(bundle, tmp_path / "copy")
    assert store.read(str(tmp_path / "copy")).anticipation == bundle.anticipation
    with pytest.raises(WeightsError, match="does not say what its probes anticipate"):
        from_json(bundle.anticipation | {"tempo": 3}, "run")
    config = make_config(folder, anchor="standard")
    mesh = sharding.make_mesh(1)
    with pytest.raises(WeightsError, match="was trained otherwise .*timing: 'released"):
        loop.train(task.make_task(config, mesh), SkipCounter(0.5), mesh, run, config=config, total_steps=3)


def test_recall_is_of_classes_and_the_best_probe_of_each_output():
    ranks = {"verb": np.array([[0, 9, 9], [0, 0, 9]]), "noun": np.array([[4, 4, 4], [5, 5, 5]]), "action": np.array([[7, 7, 0], [7, 0, 7]])}
    labels = {"verb": np.array([1, 1, 2]), "noun": np.array([0, 1, 2]), "action": np.array([3, 3, 6])}
    better = {output: np.maximum(values - 4, 0) for output, values in ranks.items()}
    report = evals.summarize(evals.Foreseen(ranks, better, labels, {"verb": 5, "noun": 6, "action": 9}, []), [{}, {}])
    assert [row["verb"]["recall5"] for row in report["probes"]] == [25.0, 50.0]
    assert [row["action"]["recall5"] for row in report["probes"]] == [50.0, 25.0] and report["probes"][0]["action"]["top5"] == 33.33
    assert report["best"] == {"verb": 1, "noun": 0, "action": 0} and report["probes"][1]["noun"]["recall5_valid"] == 100.0


@pytest.mark.parametrize("change, error, message", [
    ({"encoder": ""}, ValueError, "encoder is not set"),
    ({"encoder": "encoder"}, WeightsError, "no predictor"),
    ({"protocol.mask_index": 2}, ValueError, "mask_index is 2; this predictor has mask tokens 0 to 1"),
    ({"protocol.output_frames": 3}, ValueError, "output_frames is 3; it must be a multiple"),
    ({"protocol.output_frames": 8}, ValueError, "of at most 4 frames"),
    ({"protocol.frames": 5}, ValueError, "protocol.frames does not suit this encoder: frames of a clip is 5"),
    ({"data.size": 36}, ValueError, "data.size does not suit this encoder: height of a clip is 36"),
    ({"model.num_heads": 5}, ValueError, "model.num_heads is 5, which does not divide the encoder's width, 24"),
    ({"protocol.fps": 0.0}, WeightsError, "impossible protocol"),
    ({"protocol.use_encoder": False, "protocol.use_predictor": False}, WeightsError, "are both off"),
    ({"data.anchor": "middle"}, ValueError, "anchor 'middle' is unknown; choose one of released, standard"),
    ({"data.seconds": (2.0, 1.0)}, ValueError, "anticipation times"),
    ({"data.points": (0.0, 1.5)}, ValueError, "parts of a segment between 0 and 1"),
    ({"data.class_order": "random"}, ValueError, "choose one of sorted, set"),
    ({"data.videos": "nowhere"}, ListError, "data.videos is 'nowhere', and there is no such folder"),
    ({"data.layout": "{video}.mp4"}, ListError, r"none of the 1 videos of .*train.csv lies there; tried were .*/P01_01.mp4\. Is it the right folder"),
    ({"data.layout": "{kitchen}/{video}"}, ValueError, "cannot be filled in"),
    ({"data.layout": "{participant}.mp4"}, ValueError, r"does not hold \{video\}"),
    ({"data.annotations": "missing.csv"}, ListError, "missing.csv cannot be read"),
    ({"data.batch_size": 0}, ValueError, "batch size 0"),
    ({"optim.lr": ()}, ValueError, "must be lists of numbers"),
])
def test_mistakes_are_named_before_anything_is_computed(folder, change, error, message):
    config = make_config(folder)
    for name, value in change.items():
        *parts, last = name.split(".")
        section = config[parts[0]] if parts else config
        section[last] = str(folder / value) if name == "encoder" and value else value
    with pytest.raises(error, match=message):
        task.make_task(config, sharding.make_mesh(1))


def test_evaluation_without_videos_is_refused_before_it_compiles(run, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evals, "make_scorer", lambda *args: pytest.fail("it compiles"))
    command = ["anticipate", str(folder / "val.csv"), "--model", str(run), "--output", str(tmp_path / "out"), "--videos"]
    for videos, extra, message in ((tmp_path / "nowhere", [], "nowhere', and there is no such folder"),
                                   (folder, ["--layout", "{video}.mp4"], f"none of the 2 videos of {folder}/val.csv lies there; tried were {folder}/P01_01.mp4 and so on")):
        assert evaluate.main([*command, str(videos), *extra]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_videos_behind_urls_are_looked_for(memory):
    rows = [Annotation("P01_01", 1, 2, 0, 0), Annotation("P01_02", 1, 2, 0, 0)]
    source = ActionSource("list.csv", rows, make_classes(rows), "memory://kitchen", "{video}.mp4")
    with pytest.raises(ListError, match="none of the 2 videos of list.csv lies there; tried were memory://kitchen/P01_01.mp4"):
        check_videos(source, "memory://kitchen", what="--videos")
    memory.pipe_file("/kitchen/P01_02.mp4", b"a video")
    check_videos(source, "memory://kitchen", what="--videos")


def test_what_evaluation_needs_is_asked_for(folder, tmp_path, capsys):
    outputs = (("verb", 3), ("noun", 2), ("action", 4))
    networks = {"encoder": random_network(ENCODER, 0), "predictor": random_network(PREDICTOR, 1)}
    probe = random_network(AttentiveProbe(24, 1, 2, num_queries=3, outputs=outputs), 2)
    store.write(Bundle(networks | {"probe_0": probe}, PREPROCESSING), tmp_path / "converted")
    small = random_network(AttentiveProbe(24, 1, 2, num_queries=3, outputs=(*outputs[:2], ("action", 9))), 2)
    store.write(Bundle(networks | {"probe_0": small}, PREPROCESSING), tmp_path / "other")
    classifier = random_network(AttentiveProbe(24, 1, 2, outputs=(("label", 3),)), 2)
    store.write(Bundle(networks | {"probe_0": classifier}, PREPROCESSING), tmp_path / "classifier")
    train = ["--train", str(folder / "train.csv"), "--class-order", "set"]
    for model, extra, message in (
        (folder / "weights", train, "has no probe"), (tmp_path / "classifier", train, "say label; needed are verb, noun, action"),
        (tmp_path / "converted", [], "give --train"), (tmp_path / "other", train, "4 actions in training, 9 in the probes"),
    ):
        assert evaluate.main(["anticipate", str(folder / "val.csv"), "--videos", str(folder), "--model", str(model), "--output", str(tmp_path / "out"), *extra]) == 2
        assert message in capsys.readouterr().err


def test_converted_probes_are_evaluated_with_the_classes_of_a_training_list(folder, tmp_path, monkeypatch):
    outputs = (("verb", 3), ("noun", 2), ("action", 4))
    probe = random_network(AttentiveProbe(24, 2, 2, num_queries=3, outputs=outputs), 5)
    source = write_official_probes(tmp_path / "ek100-vitl-256.pt", monkeypatch, probe)
    assert convert.main([source, str(tmp_path / "model"), "--join", str(folder / "weights"), "--heads", "probe=2"]) == 0
    command = ["anticipate", str(folder / "val.csv"), "--videos", str(folder), "--model", str(tmp_path / "model"), "--output", str(tmp_path / "out"),
               "--train", str(folder / "train.csv"), "--class-order", "set", "--batch", "2", "--max-skip-fraction", "0.5"]
    assert evaluate.main(command) == 0
    report = json.loads((tmp_path / "out" / "anticipation.json").read_text())
    # As released: 32 frames at 8 frames/s and the second mask token, in pictures of the encoder's size.
    seeing = Anticipation(crop_size=32)
    assert report["seeing"] == dataclasses.asdict(seeing) and report["sha256"]["probe_0"] == network_sha256(probe.params)
    classes = make_classes(read_annotations(str(folder / "train.csv")), "set")
    segments = ActionSource("val.csv", read_annotations(str(folder / "val.csv")), classes, str(folder))
    scorer = evals.make_scorer(store.read(str(tmp_path / "model")), seeing, 1.0)
    for anchor, found in report["protocols"].items():
        assert (found["n"], found["skipped"], found["probes"][0]["setting"]) == (4, 1, {})
        scores = scorer(np.stack([clips.read_before(segments[number], seeing, seconds=1.0, anchor=anchor) for number in range(4)]))
        for place, output in enumerate(OUTPUTS):
            right = scores[output][0].argmax(-1) == [segments[number].labels[place] for number in range(4)]
            assert found["probes"][0][output]["top1"] == 100 * right.mean()


def test_presets_are_as_released():
    config = configs.get_config("ek100,model=vitg384")
    assert task.make_protocol(config) == Anticipation("ek100-vitg384", crop_size=384)
    assert (config.data.batch_size, config.optim.epochs, config.data.flip, len(sweep.make_sweep(config.optim))) == (128, 20, 0.5, 20)
    assert (config.data.seconds, config.data.points, config.data.anchor) == ((0.25, 1.75), (0.0, 0.25), "released")
    for model in ("vith", "vitg"):
        assert task.make_protocol(configs.get_config(f"ek100,model={model}")) == Anticipation(f"ek100-{model}", crop_size=256)
    with pytest.raises(ValueError, match="choose one of vitl, vith, vitg, vitg384"):
        configs.get_config("ek100,model=vitx")
