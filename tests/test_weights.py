"""Weights survive every conversion bit for bit, and load as one model."""

import dataclasses
import json

import numpy as np
import pytest
from weight_bundles import (
    BUNDLES,
    ENCODER,
    HINTS,
    LABELS,
    PREDICTOR,
    PRETRAINED,
    assert_same,
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
from jepa_jax.models import AttentiveProbe
from jepa_jax.weights import hub, huggingface, native, released, store, tensors
from jepa_jax.weights.bundle import WeightsError, network_sha256

PAIRS = [(name, kind) for name in BUNDLES for kind in ("jax", "official") if (name, kind) != ("classifier", "official")]
PAIRS += [("one encoder", "huggingface"), ("classifier", "huggingface")]


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


def test_report_without_destination_writes_nothing(tmp_path, capsys):
    store.write(BUNDLES["pretrained"], tmp_path / "ours")
    before = sorted(tmp_path.rglob("*"))
    assert convert.main([str(tmp_path / "ours")]) == 0
    out = capsys.readouterr().out
    assert "target_encoder" in out and "parameters" in out and "sha256" in out and "crop_size 40" in out
    assert sorted(tmp_path.rglob("*")) == before


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


def test_equal_weights_give_equal_files(tmp_path):
    bundle = BUNDLES["one encoder"]
    for name in ("a", "b"):
        store.write(bundle, tmp_path / name)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
    assert native.read(tmp_path / "a").networks["encoder"].sha256 == network_sha256(bundle.networks["encoder"].params)
    assert huggingface.CONFIG == "config.json"


def test_predict_uses_the_mask_token_of_released_evaluations(tmp_path):
    store.write(BUNDLES["one encoder"], tmp_path / "ours")
    model, params = jepa_jax.load(tmp_path / "ours")
    context = np.random.default_rng(0).normal(size=(2, 5, 36)).astype(np.float32)
    ids = np.arange(16)[None].repeat(2, axis=0)
    inputs = (context, ids[:, :5], ids[:, 5:])
    wanted = [PREDICTOR.apply({"params": params["predictor"]}, *inputs, (2, 2, 4), index) for index in (0, 1)]
    np.testing.assert_allclose(model.predict(params, *inputs, (2, 2, 4)), wanted[1], atol=1e-5)
    np.testing.assert_allclose(model.predict(params, *inputs, (2, 2, 4), mask_index=0), wanted[0], atol=1e-5)
    assert np.abs(wanted[0] - wanted[1]).max() > 1e-2
    encoder_only, params = jepa_jax.load(tmp_path / "ours", networks=("encoder",))
    with pytest.raises(WeightsError, match="no predictor: these weights hold encoder"):
        encoder_only.predict(params, *inputs, (2, 2, 4))
