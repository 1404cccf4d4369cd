"""Bad weights and bad destinations: an error that says what is wrong, and nothing written."""

import dataclasses
import json
import pickle
import re
import zipfile

import numpy as np
import pytest
from weight_bundles import (
    ACTION_PREDICTOR,
    BUNDLES,
    ENCODER,
    PREDICTOR,
    PRETRAINED,
    PROBE,
    edit_json,
    edit_tensors,
    make_bundle,
    needs_torch,
    path_for,
    put,
    refused,
)

import jepa_jax
from jepa_jax import convert
from jepa_jax.weights import inference, store, tensors
from jepa_jax.weights.bundle import WeightsError
from jepa_jax.weights.released import PROTOCOLS


def test_formats_refuse_what_they_would_compute_differently(tmp_path):
    corrected = make_bundle(encoder=ENCODER.clone(rope_layout="interleaved"), predictor=PREDICTOR)
    cases = [
        (corrected, "huggingface", "rope_layout 'interleaved'"),
        (
            make_bundle(PROBE, encoder=ENCODER, predictor=PREDICTOR),
            "huggingface",
            "probe: num_heads 3, transformers gives it 2\n.*probe: norm_eps 1e-05",
        ),
        (make_bundle(encoder=ENCODER), "huggingface", "needs a predictor"),
        (
            dataclasses.replace(BUNDLES["classifier"], protocol=dataclasses.replace(PROTOCOLS["ssv2-vitl"], use_pos_embed=True)),
            "huggingface",
            r"it takes times of frames \(use_pos_embed\), transformers gives it none",
        ),
    ]
    try:
        import torch  # noqa: F401
    except ImportError:
        pass
    else:
        cases += [
            (corrected, "official", "rope_layout='interleaved'"),
            (BUNDLES["classifier"], "official", "norm_eps 1e-06"),
            (make_bundle(**PRETRAINED, action_predictor=ACTION_PREDICTOR), "official", "one predictor per file"),
        ]
    for i, (bundle, kind, message) in enumerate(cases):
        path = path_for(kind, tmp_path, f"refused{i}")
        with pytest.raises(WeightsError, match=message):
            store.write(bundle, path, kind)
        assert not list(tmp_path.iterdir()), "something was left behind"


HF_FC1 = "vjepa2.encoder.layer.1.mlp.fc1.weight"
HF_CASES = {
    "truncated": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-100]),
        r"model.safetensors \(\d+ bytes\) is no whole safetensors file",
    ),
    "empty": (lambda f: (f / "model.safetensors").write_bytes(b""), r"\(0 bytes\) is no whole safetensors file"),
    "wrong shape": (
        lambda f: edit_tensors(f / "model.safetensors", put(HF_FC1, np.zeros((7, 36), np.float32))),
        r"shape: encoder.layer.1.mlp.fc1.weight is \(7, 36\), needed \(157, 36\)",
    ),
    "unknown key": (
        lambda f: edit_tensors(f / "model.safetensors", put("vjepa2.encoder.extra", np.zeros(3, np.float32))),
        r"unknown: encoder.extra \(3,\)",
    ),
    "missing key": (
        lambda f: edit_tensors(f / "model.safetensors", lambda found: found.pop(HF_FC1)),
        r"missing: encoder.layer.1.mlp.fc1.weight \(157, 36\)",
    ),
    "not finite": (
        lambda f: edit_tensors(f / "model.safetensors", put("classifier.bias", np.full(5, np.nan, np.float32))),
        "classifier.bias has 5 values that are not finite",
    ),
    "integers": (
        lambda f: edit_tensors(f / "model.safetensors", put("classifier.bias", np.zeros(5, np.int32))),
        "classifier.bias is int32",
    ),
    "config contradicts": (
        lambda f: edit_json(f / "config.json", num_hidden_layers=4, mlp_ratio=2.0),
        r"num_hidden_layers: 4 in the config, 3 in the weights\n  mlp_ratio.*72 in the config, 157",
    ),
    "heads do not divide": (
        lambda f: edit_json(f / "config.json", num_attention_heads=5),
        "impossible VideoEncoder: width 36 is not divisible by num_heads 5",
    ),
    "other model": (lambda f: edit_json(f / "config.json", model_type="vit"), "model_type 'vit'; needed: 'vjepa2'"),
    "other activation": (
        lambda f: edit_json(f / "config.json", hidden_act="relu"),
        r"hidden_act 'relu' \(needed: 'gelu'\)",
    ),
    "broken config": (lambda f: (f / "config.json").write_text('{"model_type": '), "config.json is not JSON"),
    "no weights": (
        lambda f: (f / "model.safetensors").unlink(),
        "holds config.json but no model.safetensors; it has: ",
    ),
    "twice": (
        lambda f: edit_tensors(f / "model.safetensors", put("encoder.layernorm.weight", np.ones(36, np.float32))),
        "holds encoder.layernorm.weight twice",
    ),
    "config is a list": (lambda f: (f / "config.json").write_text("[]"), "holds a JSON list; needed: an object"),
    "number as text": (
        lambda f: edit_json(f / "config.json", hidden_size="36"),
        r"hidden_size '36' \(needed: a number\)",
    ),
    "no heads": (lambda f: edit_json(f / "config.json", num_attention_heads=0), "impossible VideoEncoder"),
    "labels": (lambda f: edit_json(f / "config.json", id2label={"a": "b"}), "id2label whose keys are no numbers"),
    "too few labels": (
        lambda f: edit_json(f / "config.json", id2label={"0": "a"}),
        "number of labels: 1 in the config, 5 in the",
    ),
    "no crop": (
        lambda f: edit_json(f / "video_preprocessor_config.json", do_center_crop=False),
        "do_center_crop False",
    ),
    "no size": (
        lambda f: (
            edit_json(f / "video_preprocessor_config.json", size=None)
            or edit_json(f / "video_preprocessor_config.json", size={"height": 3})
        ),
        "is not understood: it needs",
    ),
    "resampling": (
        lambda f: edit_json(f / "video_preprocessor_config.json", resample=3),
        r"asks for what this code does not do: resample 3 \(needed: 2\)",
    ),
}


@pytest.mark.parametrize("case", HF_CASES)
def test_bad_huggingface_folder(case, tmp_path, capsys):
    folder = tmp_path / "hf"
    store.write(BUNDLES["classifier"], folder, "huggingface")
    damage, message = HF_CASES[case]
    damage(folder)
    refused(folder, message, tmp_path, capsys)


NATIVE_CASES = {
    "truncated": (
        lambda f: (f / "encoder.safetensors").write_bytes((f / "encoder.safetensors").read_bytes()[:500]),
        "encoder.safetensors .* is no whole safetensors file",
    ),
    "missing file": (lambda f: (f / "predictor.safetensors").unlink(), "predictor.safetensors does not exist"),
    "wrong shape": (
        lambda f: edit_tensors(f / "encoder.safetensors", put("norm/bias", np.zeros(35, np.float32))),
        r"shape: norm/bias is \(35,\), needed \(36,\)",
    ),
    "swapped files": (
        lambda f: (f / "predictor.safetensors").replace(f / "encoder.safetensors"),
        "missing: patch_embed/kernel",
    ),
    "newer version": (
        lambda f: edit_json(f / "model.json", version=3),
        "version 3; this code reads 'jepa_jax model', version 2",
    ),
    "foreign names": (
        lambda f: (f / "model.json").write_text((f / "model.json").read_text().replace('"predictor": {', '"../x": {')),
        "names unknown networks",
    ),
    "antialias": (
        lambda f: (f / "model.json").write_text(
            (f / "model.json").read_text().replace('"antialias": false', '"antialias": true')
        ),
        "antialias True; this code resizes as",
    ),
    "no preprocessing": (
        lambda f: (f / "model.json").write_text(
            json.dumps(json.loads((f / "model.json").read_text()) | {"preprocessing": None})
        ),
        "holds an encoder but no preprocessing",
    ),
    "no card": (lambda f: edit_json(f / "model.json", networks=None), "model.json lacks the key 'networks'"),
    "unknown class": (
        lambda f: (f / "model.json").write_text((f / "model.json").read_text().replace("VideoEncoder", "Encoder")),
        "network class 'Encoder' is unknown; known: VideoEncoder",
    ),
    "unknown field": (
        lambda f: (f / "model.json").write_text((f / "model.json").read_text().replace('"depth"', '"deptj"')),
        r"has no field \['deptj'\]",
    ),
}


@pytest.mark.parametrize("case", NATIVE_CASES)
def test_bad_folder_of_ours(case, tmp_path, capsys):
    folder = tmp_path / "ours"
    store.write(BUNDLES["one encoder"], folder)
    damage, message = NATIVE_CASES[case]
    damage(folder)
    refused(folder, message, tmp_path, capsys)


def test_changed_weights_are_noticed_when_asked(tmp_path):
    store.write(BUNDLES["one encoder"], tmp_path / "ours")
    edit_tensors(tmp_path / "ours" / "encoder.safetensors", put("norm/bias", np.zeros(36, np.float32)))
    jepa_jax.load(tmp_path / "ours")
    with pytest.raises(WeightsError, match="does not hold the weights that its description names"):
        jepa_jax.load(tmp_path / "ours", verify=True)


class Malicious:
    """Pickles to a call that would write a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def official_content(torch, **changes):
    """Return the content of an official pretraining file, changed."""
    state = inference.to_official(ENCODER, BUNDLES["pretrained"].networks["encoder"].params)
    state = {f"module.backbone.{name}": torch.from_numpy(np.ascontiguousarray(value)) for name, value in state.items()}
    state |= {f"module.backbone.{name}": value for name, value in changes.pop("tensors", {}).items()}
    return {"target_encoder": {name: value for name, value in state.items() if value is not None}, "epoch": 1} | changes


OFFICIAL_CASES = {
    "wrong shape": (
        lambda t: official_content(t, tensors={"blocks.2.norm1.bias": t.zeros(35)}),
        r"shape: blocks.2.norm1.bias is \(35,\), needed \(36,\)",
    ),
    "missing": (
        lambda t: official_content(t, tensors={"blocks.1.norm1.bias": None, "norm.weight": None}),
        r"2 tensors do not fit\):\n  missing: norm.weight \(36,\)\n  missing: blocks.1.norm1.bias",
    ),
    "whole block missing": (
        lambda t: official_content(
            t, tensors={name: None for name in inference.official_shapes(ENCODER) if name.startswith("blocks.1.")}
        ),
        "missing: blocks.1.norm1",
    ),
    "unknown tensor": (
        lambda t: official_content(t, tensors={"cls_token": t.zeros(1, 1, 36)}),
        r"unknown: cls_token \(1, 1, 36\)",
    ),
    "unknown entry": (
        lambda t: official_content(t, decoder={"a": t.zeros(3)}),
        "unknown entries: decoder; known: .*target_encoder",
    ),
    "not a network": (lambda t: official_content(t, predictor={"a": t.zeros(3)}), "is no predictor: it has no"),
    "not a dict": (lambda t: [t.zeros(3)], "holds a list; needed: a dict of networks"),
    "wrong rank": (
        lambda t: official_content(t, tensors={"blocks.0.mlp.fc1.weight": t.zeros(35)}),
        "is no encoder: .*fc1|is no encoder",
    ),
    "no number": (lambda t: official_content(t, epoch="latest"), "one of epoch is no number"),
    "sparse": (
        lambda t: official_content(t, tensors={"norm.weight": t.eye(36).to_sparse()}),
        "norm.weight is no plain tensor",
    ),
    "double": (
        lambda t: official_content(t, tensors={"norm.weight": t.ones(36, dtype=t.float64)}),
        "norm.weight is float64",
    ),
    "table": (
        lambda t: official_content(t, tensors={"pos_embed": t.zeros(1, 100, 36)}),
        "say which it is: --positions sincos or",
    ),
    "nothing": (lambda t: {"epoch": 3}, "holds no network; it has epoch"),
}


@pytest.mark.parametrize("case", OFFICIAL_CASES)
def test_bad_official_file(case, tmp_path, capsys):
    torch = needs_torch()
    make, message = OFFICIAL_CASES[case]
    torch.save(make(torch), tmp_path / "bad.pt")
    refused(tmp_path / "bad.pt", message, tmp_path, capsys, "--heads", "encoder=2", "predictor=2")


def test_files_that_are_no_checkpoint(tmp_path, capsys):
    torch = needs_torch()
    trap = tmp_path / "trap"
    torch.save({"target_encoder": Malicious(trap)}, tmp_path / "evil.pt")
    refused(tmp_path / "evil.pt", "refused: its pickle wants .*open.*could run code", tmp_path, capsys)
    (tmp_path / "plain.pt").write_bytes(pickle.dumps({"encoder": Malicious(trap)}))
    refused(tmp_path / "plain.pt", "refused: .* could run code", tmp_path, capsys)
    assert not trap.exists()
    torch.save(official_content(torch), tmp_path / "cut.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "cut.pt").read_bytes()[:3000])
    refused(tmp_path / "cut.pt", "cut.pt .*(refused|is no whole PyTorch file)", tmp_path, capsys)
    (tmp_path / "text.pt").write_text("not a checkpoint")
    refused(tmp_path / "text.pt", "text.pt .*(refused|is no whole PyTorch file)", tmp_path, capsys)
    with zipfile.ZipFile(tmp_path / "zip.pt", "w") as file:
        file.writestr("a.txt", "b")
    refused(tmp_path / "zip.pt", "is no whole PyTorch file", tmp_path, capsys)


def test_paths_that_are_no_weights(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "empty holds no weights: .*it has nothing", tmp_path, capsys)
    refused(tmp_path / "absent", "absent does not exist", tmp_path, capsys)
    (tmp_path / "notes.txt").write_text("hello")
    refused(tmp_path / "notes.txt", "file of unknown kind; give a .pt", tmp_path, capsys)


def test_destinations_are_never_overwritten(tmp_path, capsys):
    source = tmp_path / "ours"
    store.write(BUNDLES["one encoder"], source)
    kept = (source / "model.json").read_bytes()
    assert convert.main([str(source), str(source)]) == 1
    assert "exists already; nothing is overwritten" in capsys.readouterr().err
    assert (source / "model.json").read_bytes() == kept
    for destination, kind in ((tmp_path / "a.pt", "jax"), (tmp_path / "a", "official")):
        assert convert.main([str(source), str(destination), "--to", kind]) == 1
        assert "is a" in capsys.readouterr().err
    # Whatever a person keeps beside it is left alone.
    (tmp_path / "new.partial").mkdir()
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    assert convert.main([str(source), str(tmp_path / "new")]) == 0
    assert (tmp_path / "new.partial").is_dir() and not [
        path for path in tmp_path.iterdir() if path.name.startswith(".")
    ]


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch, capsys):
    source = tmp_path / "ours"
    store.write(BUNDLES["one encoder"], source)
    before = sorted(tmp_path.rglob("*"))

    def full(tensors_, path, metadata=None):
        with open(path, "wb") as file:
            file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensors.safetensors.numpy, "save_file", full)
    for kind in ("jax", "huggingface"):
        assert convert.main([str(source), str(tmp_path / "new"), "--to", kind]) == 1
        assert "No space left on device" in capsys.readouterr().err
        assert sorted(tmp_path.rglob("*")) == before


def test_flags_are_checked(capsys):
    for flags, message in (
        (["--heads", "encoder"], "is not NETWORK=N"),
        (["--heads", "decoder=3"], "is not NETWORK=N"),
        (["--too", "x"], "unrecognized|ambiguous"),
        (["--protocol", "imagenet"], "invalid choice"),
    ):
        with pytest.raises(SystemExit):
            convert.main(["a", "b", *flags])
        assert re.search(message, capsys.readouterr().err)
