"""Evaluation of converted probes, as released ones are evaluated, to the end; and what it refuses."""

import argparse
import dataclasses
import json

import numpy as np
import pytest

import jepa_jax
from jepa_jax import convert, evaluate, evaluate_probe
from jepa_jax.data.labelled import LabelledFile
from jepa_jax.data.segments import read_views
from jepa_jax.models import AttentiveProbe, VideoEncoder
from jepa_jax.weights import store
from jepa_jax.weights.bundle import Bundle, Preprocessing, combine, network_sha256
from jepa_jax.weights.released import PROTOCOLS
from media import write_video
from test_classify import ENCODER, PROTOCOL, write_classifier
from weight_bundles import random_network, write_official_probes

CLASSES = 5


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Paths of three videos, and of one that is damaged."""
    folder = tmp_path_factory.mktemp("videos")
    found = [write_video(folder / f"{i}.mp4", frames=90, height=64, width=80 + 16 * i) for i in range(3)]
    (folder / "broken.mp4").write_bytes(b"no video")
    return [*found, str(folder / "broken.mp4")]


def write_list(path, videos, labels):
    path.write_text("".join(f"{video} {label}\n" for video, label in zip(videos, labels)))
    return str(path)


def run(data, model, output, *extra):
    return evaluate.main(["probe", str(data), "--model", str(model), "--output", str(output), "--batch", "2", *extra])


def test_converted_probes_are_evaluated_by_a_published_protocol(videos, tmp_path, monkeypatch, capsys):
    # Coarse tokens of a deep and narrow encoder: the released protocol in seconds.
    encoder = random_network(VideoEncoder(16, 24, 2, patch_size=64, tubelet_size=16, table_grid=(2, 4, 4)), 0)
    probes = [random_network(AttentiveProbe(16, 2, 2, outputs=(("label", CLASSES),)), seed) for seed in (1, 2)]
    store.write(Bundle({"target_encoder": encoder}, Preprocessing(crop_size=256, short_side=292, frames=32)), tmp_path / "encoder")
    source = write_official_probes(tmp_path / "probe.pt", monkeypatch, *probes)
    assert convert.main([source, str(tmp_path / "model"), "--join", str(tmp_path / "encoder"), "--heads", "probe=2"]) == 0
    protocol = PROTOCOLS["diving48-vitl"]
    answers = []
    for number in range(3):
        views, _ = read_views(LabelledFile(videos[number], None), protocol, np.random.default_rng((0, number)).random(protocol.num_segments))
        for probe in range(2):
            model, params = jepa_jax.load(tmp_path / "model", probe=probe)
            model = dataclasses.replace(model, protocol=protocol)
            answers.append(int(np.argmax(model.classify(params, views))))
    # By their own answers, the second probe is right about all three and the first where it agrees.
    data = write_list(tmp_path / "val.csv", videos, [*answers[1::2], 0])
    capsys.readouterr()
    assert run(data, tmp_path / "model", tmp_path / "out", "--protocol", "diving48-vitl", "--max-skip-fraction", "0.5") == 0
    report, out = json.loads((tmp_path / "out" / "probe.json").read_text()), capsys.readouterr().out
    assert report["protocol"] == protocol.to_json() and (report["n"], report["skipped"]) == (3, 1)
    agreeing = sum(a == b for a, b in zip(answers[::2], answers[1::2]))
    assert [row["top1"] for row in report["probes"]] == [round(100 * agreeing / 3, 2), 100.0]
    assert all(row["setting"] == {} for row in report["probes"])
    assert report["sha256"]["probe_1"] == network_sha256(probes[1].params) and report["encoder_sha256"] == network_sha256(encoder.params)
    assert report["training_seed"] is None and report["architecture"]["norm_eps"] == 1e-5
    assert not any("that of another model" in note for note in report["notes"]) and "layers 17, 19, 21, 23" in out
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"confusion.png", "attention.png"}


def test_a_published_protocol_of_another_model_is_refused_or_pointed_out(videos, tmp_path, capsys):
    data = write_list(tmp_path / "val.csv", videos[:2], [0, 1])
    short, other = write_classifier(tmp_path / "short", protocol=None), write_classifier(
        tmp_path / "other", protocol=dataclasses.replace(PROTOCOL, layers=(0, 1)))
    assert run(data, short, tmp_path / "out", "--protocol", "diving48-vitl") == 2
    assert "it takes blocks (17, 19, 21, 23); this encoder has 3" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert run(data, other, tmp_path / "out") == 0
    note = "protocol test takes blocks 0, 1 and not the encoder's last, 2: is it that of another model?"
    assert note in json.loads((tmp_path / "out" / "probe.json").read_text())["notes"] and f"note: {note}" in capsys.readouterr().out


def test_what_cannot_be_evaluated_is_refused_before_a_video_is_read(videos, tmp_path, monkeypatch, capsys):
    def write(name, labels):
        return write_list(tmp_path / name, videos, labels)

    monkeypatch.setattr(evaluate_probe.classification, "judge", lambda *args, **options: pytest.fail("videos are read"))
    silent, speaking = write_classifier(tmp_path / "silent", protocol=None), write_classifier(tmp_path / "speaking")
    names = tmp_path / "names.txt"
    names.write_text("one\ntwo\n")
    for data, model, extra, message in (
        (write("good.csv", [0, 1, 2]), silent, [], "does not say how its probes see a video; say it with --protocol"),
        (write("good.csv", [0, 1, 2]), speaking, ["--protocol", "ssv2-vitl"],
         "--protocol is ssv2-vitl: 2 segments of 16 frames every 4, 3 views of 256, but the probes were trained as test: 2 segments of 4"),
        (write("high.csv", [0, 6, 2]), speaking, [], "1 of 3 labels outside of 0 to 5"),
        (write("good.csv", [0, 1, 2]), speaking, ["--labels", str(names)], "there are 2 names of classes, but the probes have 6 (--labels)"),
    ):
        assert run(data, model, tmp_path / "out", *extra) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_training_of_probes_is_not_taken_for_that_of_their_encoder():
    network, probe = random_network(ENCODER, 0), random_network(AttentiveProbe(24, 1, 2, outputs=(("label", 3),)), 1)
    config = {"task": "probe", "seed": 7, "optim": {"lr": [0.1], "weight_decay": [0.4]}}
    pretraining = {"task": "pretrain", "seed": 239, "optim": {"lr": 0.1, "weight_decay": 0.4}}
    backbone = Bundle({"encoder": network}, provenance={"config": pretraining})
    joined = combine(Bundle({"probe_0": probe}, provenance={"config": config}), backbone)
    alone = dataclasses.replace(joined, provenance={"config": pretraining})
    args = argparse.Namespace(model="x")
    for bundle, seed, setting in ((joined, 7, {"lr": 0.1, "weight_decay": 0.4}), (alone, None, {})):
        assert evaluate_probe.describe_run(bundle, args)["training_seed"] == seed and evaluate_probe.probe_settings(bundle) == [setting]


def test_weights_without_a_classifier_are_refused(videos, tmp_path, capsys):
    data = write_list(tmp_path / "val.csv", videos[:2], [0, 1])
    anticipating = write_classifier(tmp_path / "anticipating", outputs=(("verb", 2), ("noun", 3)))
    assert run(data, anticipating, tmp_path / "out") == 2
    assert "anticipate actions; they do not classify clips" in capsys.readouterr().err
    store.write(Bundle({"encoder": random_network(ENCODER, 0)}, Preprocessing(crop_size=32, short_side=36, frames=4)), tmp_path / "encoder")
    assert run(data, tmp_path / "encoder", tmp_path / "out") == 2
    assert "has no probe; it holds encoder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
