"""Weights survive every conversion bit for bit, and nothing wrong is ever loaded."""

import dataclasses
import json
import pickle
import re
import zipfile

import jax
import numpy as np
import pytest

import jepa_jax
from jepa_jax import convert
from jepa_jax.models import ActionPredictor, AttentiveProbe, MaskedPredictor, VideoEncoder, make_encoder
from jepa_jax.models.spec import abstract_params
from jepa_jax.weights import huggingface, huggingface_config, hub, inference, native, released, store, tensors
from jepa_jax.weights.bundle import Bundle, Network, Preprocessing, WeightsError, network_sha256
from jepa_jax.weights.hints import Hints

ENCODER = VideoEncoder(36, 3, 2, 48 / 11, 8, 2, table_grid=(4, 5, 5))
PREDICTOR = MaskedPredictor(36, 24, 2, 2, num_mask_tokens=3, table_grid=(4, 5, 5))
ACTION_PREDICTOR = ActionPredictor(36, 32, 2, 2, grid=(5, 5))
# What transformers can compute, and what the official code can.
HF_PROBE = AttentiveProbe(36, 3, 2, outputs=(("label", 5),), norm_eps=1e-6)
PROBE = AttentiveProbe(36, 2, 3, outputs=(("label", 5),))
ANTICIPATION = AttentiveProbe(36, 1, 3, num_queries=3, outputs=(("verb", 4), ("noun", 6), ("action", 9)))
HINTS = Hints(heads={"encoder": 2, "predictor": 2, "action_predictor": 2, "probe": 3}, crop_size=40, frames=8)
LABELS = tuple(f"doing {i}" for i in range(5))


def random_network(module, seed):
    """Fill a network with random weights, norms included."""
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.2, leaf.shape).astype(np.float32), abstract_params(module))
    return Network(module, params)


def make_bundle(*extra, **networks):
    """Make a bundle with random weights; `extra` are probes."""
    modules = networks | {f"probe_{i}": module for i, module in enumerate(extra)}
    found = {name: random_network(module, seed) for seed, (name, module) in enumerate(modules.items())}
    has_encoder = any("encoder" in name for name in found)
    pre = Preprocessing(crop_size=40, short_side=45, frames=8) if has_encoder else None
    return Bundle(found, pre, LABELS if extra and len(extra[0].outputs) == 1 else None)


PRETRAINED = {"target_encoder": ENCODER, "encoder": ENCODER, "predictor": PREDICTOR}
BUNDLES = {
    "pretrained": make_bundle(**PRETRAINED),
    "one encoder": make_bundle(encoder=ENCODER, predictor=PREDICTOR),
    "action-conditioned": make_bundle(target_encoder=ENCODER, encoder=ENCODER, action_predictor=ACTION_PREDICTOR),
    "probes": make_bundle(PROBE, PROBE),
    "anticipation": make_bundle(ANTICIPATION),
    "classifier": make_bundle(HF_PROBE, encoder=ENCODER, predictor=PREDICTOR),
}
PAIRS = [(name, kind) for name in BUNDLES for kind in ("jax", "official") if (name, kind) != ("classifier", "official")]
PAIRS += [("one encoder", "huggingface"), ("classifier", "huggingface")]


def needs_torch():
    """Import PyTorch, or skip with the reason."""
    return pytest.importorskip("torch", reason="reading .pt files needs PyTorch: bash launch/test.sh --torch")


def path_for(kind, folder, name="weights"):
    """Name a destination; official ones need PyTorch."""
    if kind == "official":
        needs_torch()
    return folder / (f"{name}.pt" if kind == "official" else name)


def assert_same(found, wanted):
    """Compare networks: the same modules, the same bits."""
    assert set(found.networks) == set(wanted.networks)
    for name, network in wanted.networks.items():
        assert found.networks[name].module == network.module, name
        assert network_sha256(found.networks[name].params) == network_sha256(network.params), name


@pytest.mark.parametrize("name, kind", PAIRS)
def test_round_trip_is_exact(name, kind, tmp_path):
    bundle = BUNDLES[name]
    path = path_for(kind, tmp_path)
    store.write(bundle, path, kind)
    found = store.read(path)
    assert_same(found, bundle)
    assert found.preprocessing == bundle.preprocessing
    if name == "classifier":
        assert found.labels == LABELS
    # And through a second format, back to the first.
    other = path_for("official" if kind == "jax" and name != "classifier" else "jax", tmp_path, "other")
    store.write(found, other)
    assert_same(store.read(other), bundle)


@pytest.mark.parametrize("prefix", ["", "module.", "module.backbone.", "backbone.", "_orig_mod.module.backbone."])
def test_official_prefixes_and_missing_card(prefix, tmp_path):
    """A file of the official code describes nothing; heads are hints, prefixes do not matter."""
    torch = needs_torch()
    bundle = BUNDLES["pretrained"]
    store.write(bundle, tmp_path / "ours.pt")
    content = torch.load(tmp_path / "ours.pt", weights_only=True)
    del content["jepa_jax"]
    bare = {
        entry: {prefix + key.removeprefix("module.backbone."): value for key, value in state.items()}
        for entry, state in content.items()
    }
    bare |= {"epoch": 3, "opt": {"state": {0: torch.zeros(3)}}, "scaler": None, "loss": float("nan")}
    torch.save(bare, tmp_path / "official.pt")
    found = store.read(tmp_path / "official.pt", HINTS)
    assert {name: network_sha256(net.params) for name, net in found.networks.items()} == {
        name: network_sha256(net.params) for name, net in bundle.networks.items()
    }
    assert found.networks["encoder"].module == ENCODER
    assert found.provenance["epoch"] == 3 and found.provenance["source_sha256"]
    assert any("opt" in note for note in found.notes)
    with pytest.raises(WeightsError, match=r"--heads encoder=N, N one of \[1, 2, 3, 4, 6\]"):
        store.read(tmp_path / "official.pt")


def official_state(module):
    """Make the tensors of a network under official names, without memory."""
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in inference.official_shapes(module).items()}


@pytest.mark.parametrize(
    "size, heads",
    [
        ("vit_tiny", 3),
        ("vit_small", 6),
        ("vit_base", 12),
        ("vit_large", 16),
        ("vit_huge", 16),
        ("vit_giant_xformers", 22),
        ("vit_gigantic_xformers", 26),
        ("vit_micro", 3),
    ],
)
def test_named_sizes_are_recognised(size, heads):
    notes = []
    wanted = make_encoder(size, table_grid=(32, 16, 16))
    found = inference.infer("encoder", official_state(wanted), Hints(), notes, "file")
    assert found == wanted and found.num_heads == heads
    # Where shapes leave a choice, it is said.
    assert bool(notes) == ("gi" in size)


def test_released_heads():
    """ViT-g has 22 heads, its probe 16, its predictors 12 and 16: no weight shows it."""
    cases = (
        ("predictor", MaskedPredictor(1408), 12),
        ("action_predictor", ActionPredictor(1408), 16),
        ("probe", AttentiveProbe(1408), 16),
    )
    for kind, module, heads in cases:
        found = inference.infer(kind, official_state(module), Hints(), [], "file")
        assert found.num_heads == heads
        assert found.clone(table_grid=module.table_grid) == module if kind == "predictor" else found == module
    giant = official_state(make_encoder("vit_giant_xformers"))
    assert inference.infer("encoder", giant, Hints(size="vit_giant"), [], "file").num_heads == 16
    assert inference.infer("encoder", giant, Hints(heads={"encoder": 16}), [], "file").num_heads == 16
    with pytest.raises(WeightsError, match="11 heads for the encoder contradict its size: vit_giant has 16"):
        inference.infer("encoder", giant, Hints(heads={"encoder": 11}), [], "file")
    with pytest.raises(WeightsError, match=r"not vit_large \(width 1024, depth 24, MLP 4096\).*which is vit_giant or"):
        inference.infer("encoder", giant, Hints(size="vit_large"), [], "file")


@pytest.mark.parametrize("uniform", [True, False])
def test_position_tables_are_recognised_and_written(uniform, tmp_path):
    needs_torch()
    encoder = ENCODER.clone(width=48, positions="sincos", uniform_power=uniform)
    predictor = PREDICTOR.clone(output_dim=48, positions="sincos", uniform_power=uniform)
    state = inference.to_official(encoder, random_network(encoder, 0).params)
    hints = dataclasses.replace(HINTS, positions="sincos")
    assert inference.infer("encoder", state, hints, [], "file") == encoder
    with pytest.raises(WeightsError, match="position table .* give the size of the clips"):
        inference.infer("encoder", state, dataclasses.replace(hints, frames=16), [], "file")
    bundle = make_bundle(encoder=encoder, predictor=predictor)
    store.write(bundle, tmp_path / "sincos.pt")
    assert_same(store.read(tmp_path / "sincos.pt"), bundle)
    with pytest.raises(WeightsError, match="encoder: positions 'sincos', transformers has 'rope'"):
        store.write(bundle, tmp_path / "hf", "huggingface")


@pytest.mark.parametrize("activation", ["swiglu", "swiglu_wide"])
def test_gated_networks_are_recognised(activation):
    encoder = ENCODER.clone(activation=activation, mlp_ratio=4.0)
    found = inference.infer("encoder", official_state(encoder), HINTS, [], "file")
    assert inference.official_shapes(found) == inference.official_shapes(encoder) and found.activation == activation


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


def test_one_encoder_is_chosen_by_name(tmp_path):
    bundle = BUNDLES["pretrained"]
    store.write(bundle, tmp_path / "ours")
    for name, wanted in ((None, "target_encoder"), ("encoder", "encoder"), ("target_encoder", "target_encoder")):
        model, params = jepa_jax.load(tmp_path / "ours", encoder=name)
        assert model.sha256["encoder"] == network_sha256(bundle.networks[wanted].params)
        assert set(params) == {"encoder", "predictor"}
    assert set(jepa_jax.load(tmp_path / "ours", networks=("encoder",))[1]) == {"encoder"}
    with pytest.raises(WeightsError, match="'student' is unknown; choose one of target_encoder, encoder"):
        jepa_jax.load(tmp_path / "ours", encoder="student")
    store.write(BUNDLES["one encoder"], tmp_path / "one")
    with pytest.raises(WeightsError, match="no target_encoder; they hold: encoder, predictor"):
        jepa_jax.load(tmp_path / "one", encoder="target_encoder")
    assert convert.main([str(tmp_path / "ours"), str(tmp_path / "hf"), "--to", "huggingface"]) == 0
    card = json.loads((tmp_path / "hf" / "jepa_jax.json").read_text())
    assert card["networks"]["target_encoder"]["sha256"] == network_sha256(bundle.networks["target_encoder"].params)
    # Which of the two it is survives, so nobody takes EMA weights for the student's.
    assert set(store.read(tmp_path / "hf").networks) == {"target_encoder", "predictor"}
    with pytest.raises(WeightsError, match="no encoder; they hold: target_encoder"):
        jepa_jax.load(tmp_path / "hf", encoder="encoder")
    assert (
        convert.main(
            [str(tmp_path / "ours"), str(tmp_path / "two"), "--networks", "encoder", "predictor", "--to", "huggingface"]
        )
        == 0
    )
    assert set(store.read(tmp_path / "two").networks) == {"encoder", "predictor"}


def test_encode_is_batched_and_reads_one_program_per_shape(tmp_path):
    store.write(BUNDLES["one encoder"], tmp_path / "ours")
    model, params = jepa_jax.load(tmp_path / "ours")
    clips = np.random.default_rng(0).integers(0, 256, (2, 4, 24, 40, 3), np.uint8)
    features = model.encode(params, clips)
    assert features.tokens.shape == (2, 2 * 3 * 5, 36) and features.grid == (2, 3, 5)
    one = model.encode(params, clips[1])
    np.testing.assert_allclose(one.tokens[0], features.tokens[1], atol=1e-5)
    layers = model.encode(params, clips, layers=(0, -1)).tokens
    assert layers.shape == (2, 2, 30, 36)
    np.testing.assert_allclose(layers[1], features.tokens, atol=1e-6)
    with pytest.raises(TypeError, match="a clip is a uint8 array of RGB .*, not float32"):
        model.encode(params, clips.astype(np.float32) / 255)
    with pytest.raises(ValueError, match="height of a clip is 25"):
        model.encode(params, np.zeros((4, 25, 40, 3), np.uint8))
    half, half_params = jepa_jax.load(tmp_path / "ours", dtype="bfloat16")
    tokens = half.encode(half_params, clips).tokens
    assert tokens.dtype == "bfloat16" and half_params["encoder"]["norm"]["scale"].dtype == np.float32
    np.testing.assert_allclose(tokens.astype(np.float32), features.tokens, atol=0.15)


CONFIG = """
app: vjepa
data: {crop_size: 256, dataset_fpcs: [16, 64], patch_size: 16, tubelet_size: 2}
model: {model_name: vit_tiny, pred_depth: 2, pred_embed_dim: 24, pred_num_heads: 2, use_rope: true}
"""


def test_official_config_fills_and_contradicts(tmp_path, capsys):
    torch = needs_torch()
    bundle = make_bundle(
        target_encoder=make_encoder("vit_tiny"), predictor=MaskedPredictor(192, 24, 2, 2, num_mask_tokens=2)
    )
    content = {
        name: {
            f"module.backbone.{key}": torch.from_numpy(np.ascontiguousarray(value))
            for key, value in inference.to_official(network.module, network.params).items()
        }
        for name, network in bundle.networks.items()
    }
    source, config = tmp_path / "run.pt", tmp_path / "params-pretrain.yaml"
    torch.save(content, source)
    with pytest.raises(WeightsError, match="--heads predictor=N"):
        store.read(source)
    config.write_text(CONFIG)
    found = store.read(source, Hints(config=str(config)))
    assert found.networks["predictor"].module.num_heads == 2 and found.networks["target_encoder"].module.num_heads == 3
    assert found.preprocessing.frames == 64
    for change, message, flags in (
        (("vit_tiny", "vit_small"), r"the weights are not vit_small \(width 384.*which is vit_tiny", ()),
        (
            ("pred_depth: 2", "pred_depth: 12"),
            "contradicts the weights:\n  predictor.depth: 12 in the config, 2 in the weights",
            (),
        ),
        (("tubelet_size: 2", "tubelet_size: 1"), "target_encoder.tubelet_size: 1 in the config, 2", ()),
        (("x", "x"), "crop_size 384 is not its 256", ("--crop-size", "384")),
        (("model:", "modell:"), "needs the sections model and data", ()),
        (("{crop", "{{crop"), "is not YAML", ()),
    ):
        config.write_text(CONFIG.replace(*change))
        refused(source, message, tmp_path, capsys, "--config", str(config), *flags)


# Bad input. Every case: an error that says what is wrong, and nothing written.


def edit_json(path, **changes):
    """Change keys of a JSON file; None removes one."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def edit_tensors(path, change):
    """Change the tensors of a safetensors file in place."""
    found = tensors.read_safetensors(path)
    change(found)
    path.unlink()
    tensors.write_safetensors(found, path)


def put(name, value):
    """Return a change that stores a tensor."""
    return lambda found: found.update({name: value})


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


def refused(path, message, tmp_path, capsys, *flags):
    """Convert must exit with 1, say `message`, and leave nothing."""
    before = sorted(tmp_path.iterdir())
    assert convert.main([str(path), str(tmp_path / "out"), *flags]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert re.search(message, error), error
    assert sorted(tmp_path.iterdir()) == before


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
        lambda f: edit_json(f / "model.json", version=2),
        "version 2; this code reads 'jepa_jax model', version 1",
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


def test_a_probe_is_no_encoder_and_can_be_joined(tmp_path, capsys):
    store.write(BUNDLES["probes"], tmp_path / "probes")
    store.write(BUNDLES["pretrained"], tmp_path / "backbone")
    with pytest.raises(WeightsError, match="a probe where an encoder is expected.*--join ENCODER"):
        jepa_jax.load(tmp_path / "probes")
    joined = tmp_path / "joined"
    assert convert.main([str(tmp_path / "probes"), str(joined), "--join", str(tmp_path / "backbone")]) == 0
    bundle = store.read(joined)
    assert set(bundle.networks) == {*PRETRAINED, "probe_0", "probe_1"} and bundle.labels == LABELS
    model, params = jepa_jax.load(joined, probe=1)
    assert model.sha256["probe"] == network_sha256(BUNDLES["probes"].networks["probe_1"].params) and "probe" in params
    with pytest.raises(WeightsError, match="probe 2 is not there: these weights hold probes 0 to 1"):
        jepa_jax.load(joined, probe=2)
    capsys.readouterr()
    refused(
        tmp_path / "backbone", "nothing to join: SRC has no probe", tmp_path, capsys, "--join", str(tmp_path / "probes")
    )
    store.write(make_bundle(AttentiveProbe(30, 2, 3, outputs=(("label", 5),))), tmp_path / "narrow")
    refused(
        tmp_path / "narrow",
        "features of width 30, this encoder has 36",
        tmp_path,
        capsys,
        "--join",
        str(tmp_path / "backbone"),
    )


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


def test_report_without_destination_writes_nothing(tmp_path, capsys):
    store.write(BUNDLES["pretrained"], tmp_path / "ours")
    before = sorted(tmp_path.rglob("*"))
    assert convert.main([str(tmp_path / "ours")]) == 0
    out = capsys.readouterr().out
    assert "target_encoder" in out and "parameters" in out and "sha256" in out and "crop_size 40" in out
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


def test_half_precision_is_widened_exactly(tmp_path):
    import ml_dtypes

    store.write(BUNDLES["one encoder"], tmp_path / "hf", "huggingface")
    path = tmp_path / "hf" / "model.safetensors"
    edit_tensors(path, lambda found: found.update({k: v.astype(ml_dtypes.bfloat16) for k, v in found.items()}))
    found = store.read(tmp_path / "hf").networks["encoder"].params
    wanted = BUNDLES["one encoder"].networks["encoder"].params
    for name in ("norm", "patch_embed"):
        for key, value in wanted[name].items():
            rounded = value.astype(ml_dtypes.bfloat16).astype(np.float32)
            np.testing.assert_array_equal(found[name][key], rounded)
            assert found[name][key].dtype == np.float32


def test_sharded_huggingface_weights(tmp_path):
    store.write(BUNDLES["classifier"], tmp_path / "hf", "huggingface")
    path = tmp_path / "hf" / "model.safetensors"
    found = tensors.read_safetensors(path)
    path.unlink()
    parts = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(found)}
    for part in set(parts.values()):
        tensors.write_safetensors({name: found[name] for name in found if parts[name] == part}, tmp_path / "hf" / part)
    (tmp_path / "hf" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))
    assert_same(store.read(tmp_path / "hf"), BUNDLES["classifier"])


def test_protocols_of_released_classifiers(tmp_path):
    """The folder name of a released classifier tells how it sees a video; transformers gives it the last layer only."""
    folder = tmp_path / "vjepa2-vitl-fpc8-256-diving48"
    store.write(BUNDLES["classifier"], folder, "huggingface")
    (folder / "jepa_jax.json").unlink()
    protocol = store.read(folder).protocol
    assert (protocol.name, protocol.num_segments, protocol.num_views, protocol.layers) == ("diving48-vitl", 4, 3, ())
    assert store.read(folder, Hints(protocol="ssv2-vitl")).protocol == released.PROTOCOLS["ssv2-vitl"]
    with pytest.raises(WeightsError, match="protocol 'ucf' is unknown; choose one of ssv2-vitl"):
        store.read(folder, Hints(protocol="ucf"))
    with pytest.raises(WeightsError, match=r"takes blocks \(17, 19, 21, 23\); this encoder has 3"):
        store.read(folder, Hints(protocol="diving48-vitl"))
    # Other names, of fine-tuned classifiers for instance, say nothing.
    for name in ("vjepa2-vitl-fpc8-256-ucf101", "my-vjepa2-vitl-fpc8-256-ssv2", "vjepa2-vitl-fpc16-256-ssv2"):
        folder = folder.rename(tmp_path / name)
        assert store.read(folder).protocol is None
    assert released.PROTOCOLS["ssv2-vitg384"].frames == 64 and released.PROTOCOLS["diving48-vitg384"].layers == (
        24,
        29,
        34,
        39,
    )


def test_hub_names_come_from_the_cache(tmp_path, monkeypatch):
    """A model that was downloaded before is found by name, offline; one that was not is an error."""
    huggingface_hub = pytest.importorskip("huggingface_hub", reason="names on the hub need huggingface_hub")
    snapshot = tmp_path / "models--someone--tiny" / "snapshots" / "0"
    (tmp_path / "models--someone--tiny" / "refs").mkdir(parents=True)
    (tmp_path / "models--someone--tiny" / "refs" / "main").write_text("0")
    store.write(BUNDLES["one encoder"], snapshot, "huggingface")
    monkeypatch.chdir(tmp_path)
    fetch = huggingface_hub.snapshot_download
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *a, **k: fetch(*a, cache_dir=tmp_path, local_files_only=True, **k)
    )
    assert hub.is_name("someone/tiny")
    assert_same(store.read("someone/tiny"), BUNDLES["one encoder"])
    assert store.read("someone/tiny").provenance["source"] == "someone/tiny"
    with pytest.raises(WeightsError, match="nobody/nothing is no path here, and no model could be downloaded"):
        store.read("nobody/nothing")


@pytest.mark.parametrize("kind", ["jax", "huggingface", "official"])
def test_labels_and_protocol_can_be_given_to_any_format(kind, tmp_path, capsys):
    bundle = BUNDLES["probes"] if kind == "official" else BUNDLES["classifier"]
    source, labels = path_for(kind, tmp_path), tmp_path / "labels.txt"
    store.write(bundle, source, kind)
    labels.write_text("a\nb\nc\nd\ne\n\n")
    assert convert.main([str(source), str(tmp_path / "new"), "--labels", str(labels), "--protocol", "ssv2-vitl"]) == 0
    found = store.read(tmp_path / "new")
    assert found.labels == tuple("abcde") and found.protocol == released.PROTOCOLS["ssv2-vitl"]
    capsys.readouterr()
    for text, message in (
        ("a\nb\n", r"2 labels for a probe with other classes \(5 for label\)"),
        ("a\n\nb\nc\nd\n", "line 2 is empty"),
        ("é\n", "is not UTF-8"),
    ):
        labels.write_bytes(text.encode("latin-1"))
        refused(source, message, tmp_path, capsys, "--labels", str(labels))
    refused(source, "probe_0 has [23] heads, not 6", tmp_path, capsys, "--heads", "probe=6")


@pytest.mark.parametrize("kind", ["jax", "huggingface", "official"])
def test_what_is_said_of_weights_is_compared(kind, tmp_path, capsys):
    source = path_for(kind, tmp_path)
    store.write(BUNDLES["one encoder"], source, kind)
    refused(source, "encoder has 2 heads, not 7", tmp_path, capsys, "--heads", "encoder=7")
    refused(source, "encoder has width 36; vit_large has 1024", tmp_path, capsys, "--size", "vit_large")
    refused(source, "crop_size is 40, not 48", tmp_path, capsys, "--crop-size", "48")
    refused(source, "encoder has rope positions, not sincos", tmp_path, capsys, "--positions", "sincos")
    refused(source, "No such file", tmp_path, capsys, "--config", str(tmp_path / "none.yaml"))
    refused(source, "unknown|no network decoder", tmp_path, capsys, "--networks", "decoder")
    assert store.read(source, Hints(rope_grid="config")).networks["encoder"].module.rope_grid == (5, 5)


def test_provenance_survives_every_step(tmp_path):
    bundle = dataclasses.replace(BUNDLES["one encoder"], provenance={"source": "first.pt"})
    store.write(bundle, tmp_path / "a")
    store.write(store.read(tmp_path / "a"), tmp_path / "b", "huggingface")
    store.write(store.read(tmp_path / "b"), tmp_path / "c")
    assert store.read(tmp_path / "c").provenance["from"]["source"] == "first.pt"


def test_a_stale_card_is_not_believed(tmp_path):
    """Weights saved over an export of ours, as fine-tuning does, are not described by our card any more."""
    bundle = dataclasses.replace(
        BUNDLES["classifier"], provenance={"source": "first.pt"}, protocol=released.PROTOCOLS["ssv2-vitl"]
    )
    store.write(bundle, tmp_path / "hf", "huggingface")
    assert store.read(tmp_path / "hf").protocol == released.PROTOCOLS["ssv2-vitl"]
    edit_json(tmp_path / "hf" / "config.json", id2label={str(i): f"new {i}" for i in range(5)})
    assert store.read(tmp_path / "hf").labels[4] == "new 4"
    edit_tensors(tmp_path / "hf" / "model.safetensors", put("classifier.bias", np.ones(5, np.float32)))
    found = store.read(tmp_path / "hf")
    assert found.protocol is None and "from" not in found.provenance


def test_pinned_preprocessing_is_kept(tmp_path):
    store.write(BUNDLES["one encoder"], tmp_path / "hf", "huggingface")
    edit_json(
        tmp_path / "hf" / "video_preprocessor_config.json", size={"shortest_edge": 60}, image_mean=[0.5, 0.5, 0.5]
    )
    pre = store.read(tmp_path / "hf").preprocessing
    assert (pre.short_side, pre.mean, pre.std) == (60, (0.5, 0.5, 0.5), (0.229, 0.224, 0.225))


def test_defaults_are_those_of_transformers():
    transformers = pytest.importorskip("transformers", reason="needs transformers: bash launch/test.sh --torch")
    config = transformers.VJEPA2Config()
    assert huggingface_config.DEFAULTS == {key: getattr(config, key) for key in huggingface_config.DEFAULTS}


def test_published_protocols():
    """Frames, step, segments, views, size and blocks, as published."""
    large, giant = (17, 19, 21, 23), (24, 29, 34, 39)
    wanted = {
        "ssv2-vitl": (16, 4, 2, 3, 256, ()),
        "ssv2-vitg384": (64, 2, 2, 3, 384, ()),
        "k400-vitl": (16, 4, 8, 3, 256, ()),
        "k400-vitg384": (16, 4, 8, 3, 384, ()),
        "coin-vitl": (16, 4, 8, 3, 256, ()),
        "coin-vitg384": (16, 4, 8, 3, 384, ()),
        "diving48-vitl": (32, 2, 4, 3, 256, large),
        "diving48-vitg384": (32, 2, 4, 3, 384, giant),
        "jester-vitl": (32, 2, 4, 3, 256, large),
        "jester-vitg384": (32, 2, 4, 3, 384, giant),
    }
    assert {name: dataclasses.astuple(protocol)[1:] for name, protocol in released.PROTOCOLS.items()} == wanted


def test_equal_weights_give_equal_files(tmp_path):
    bundle = BUNDLES["one encoder"]
    for name in ("a", "b"):
        store.write(bundle, tmp_path / name)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
    assert native.read(tmp_path / "a").networks["encoder"].sha256 == network_sha256(bundle.networks["encoder"].params)
    assert huggingface.CONFIG == "config.json"
