"""Our networks against Hugging Face's, live: random configurations and weights, in both directions."""

# ruff: noqa: E402 (without these packages the file is skipped here, before it imports them)

import json

import media
import numpy as np
import peers
import pytest

peers.need("torch", "transformers")

import torch
import transformers
from safetensors.numpy import load_file
from transformers import VJEPA2Config, VJEPA2ForVideoClassification, VJEPA2Model

from jepa_jax.bench.encode import random_params
from jepa_jax.data.clips import read_clip
from jepa_jax.models import AttentiveProbe, MaskedPredictor, VideoEncoder
from jepa_jax.weights import store
from jepa_jax.weights.bundle import Bundle, Network, Preprocessing
from jepa_jax.weights.hints import Hints
from jepa_jax.weights.load import load

_TOLERANCE = 2e-5
_SIZES = {
    "plain": {
        "patch_size": 8, "tubelet_size": 2, "crop_size": 32, "frames_per_clip": 8, "hidden_size": 48,
        "num_attention_heads": 4, "num_hidden_layers": 3, "pred_hidden_size": 24, "pred_num_attention_heads": 2,
        "pred_num_hidden_layers": 2, "pred_num_mask_tokens": 3,
    },
    # As little as possible is round or equal; the ratio is that of ViT-g, the heads have rest channels, and a wrong
    # epsilon shows.
    "odd": {
        "patch_size": 8, "tubelet_size": 4, "crop_size": 40, "frames_per_clip": 12, "hidden_size": 60,
        "num_attention_heads": 3, "num_hidden_layers": 5, "mlp_ratio": 48 / 11, "layer_norm_eps": 1e-3,
        "pred_hidden_size": 42, "pred_num_attention_heads": 3, "pred_num_hidden_layers": 1, "pred_num_mask_tokens": 7,
        "pred_mlp_ratio": 2.5,
    },
}
_LABELS = ("opening", "closing", "pouring", "tearing", "nothing")

transformers.utils.logging.disable_progress_bar()


def _config(size, **fields):
    labels = dict(enumerate(_LABELS))
    return VJEPA2Config(**_SIZES[size], id2label=labels, label2id={name: i for i, name in labels.items()}, **fields)


def _theirs(kind, config):
    """Make a model of theirs whose weights are far from the usual start, where attention is uniform."""
    rng = torch.Generator().manual_seed(0)
    model = kind(config).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            fan_in = value[0].numel() if value.ndim > 1 else 100
            value.copy_(torch.randn(value.shape, generator=rng) * fan_in**-0.5)
            if "norm" in name and name.endswith("weight"):
                value += 1
    return model


def _clip(config, batch=2, side=None, frames=None):
    side, frames = side or config.crop_size, frames or config.frames_per_clip
    return np.random.default_rng(1).integers(0, 256, (batch, frames, side, side, 3), np.uint8)


def _pixels(clip, preprocessing):
    """Normalise a clip as their processor does: a float tensor `[B, T, 3, H, W]`."""
    pixels = (clip / 255.0 - preprocessing.mean) / preprocessing.std
    return torch.from_numpy(pixels).float().permute(0, 1, 4, 2, 3)


def _reload(kind, folder):
    """Load a folder into their model; nothing may be missing, left over or of another shape."""
    model, loading = kind.from_pretrained(folder, output_loading_info=True)
    wrong = {key: names for key, names in loading.items() if names}
    assert not wrong, wrong
    return model.eval()


def _equal(ours, theirs):
    theirs = theirs.detach().numpy()
    assert np.std(theirs) > 0.05
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=0, atol=_TOLERANCE)


def _check_model(model, params, theirs, preprocessing):
    """Compare encoder and predictor on a clip, with some tokens as context and others as targets."""
    clip = _clip(theirs.config)
    features = model.encode(params, clip)
    num_tokens = features.tokens.shape[1]
    rng = np.random.default_rng(2)
    context_ids, target_ids = (
        np.stack([rng.permutation(num_tokens)[:count] for _ in clip]) for count in (num_tokens // 3, num_tokens // 2))
    with torch.no_grad():
        expected = theirs(
            pixel_values_videos=_pixels(clip, preprocessing), context_mask=[torch.from_numpy(context_ids)],
            target_mask=[torch.from_numpy(target_ids)],
        )
    _equal(features.tokens, expected.last_hidden_state)
    context = np.take_along_axis(np.asarray(features.tokens), context_ids[..., None], axis=1)
    predicted = model.predict(params, context, context_ids, target_ids, features.grid)
    _equal(predicted, expected.predictor_output.last_hidden_state)


def _check_classifier(model, params, theirs, preprocessing):
    clip = _clip(theirs.config)
    tokens = model.encode(params, clip).tokens
    logits = model.networks["probe"].apply({"params": params["probe"]}, tokens)["label"]
    with torch.no_grad():
        expected = theirs(pixel_values_videos=_pixels(clip, preprocessing)).logits
    assert logits.shape == (len(clip), len(_LABELS))
    _equal(logits, expected)


@pytest.mark.parametrize("size", _SIZES)
def test_their_model_in_ours(size, tmp_path):
    theirs = _theirs(VJEPA2Model, _config(size))
    theirs.save_pretrained(tmp_path)
    model, params = load(tmp_path)
    _check_model(model, params, theirs, model.preprocessing)


@pytest.mark.parametrize("size, pooler_layers", [("plain", 3), ("odd", 1), ("odd", 0)])
def test_their_classifier_in_ours(size, pooler_layers, tmp_path):
    theirs = _theirs(VJEPA2ForVideoClassification, _config(size, num_pooler_layers=pooler_layers))
    theirs.save_pretrained(tmp_path)
    model, params = load(tmp_path)
    assert model.labels == _LABELS
    _check_classifier(model, params, theirs, model.preprocessing)


def _ours(size, depth=None):
    """Make a bundle of ours with random weights, and with a probe of some depth."""
    c = _config(size)
    encoder = VideoEncoder(
        c.hidden_size, c.num_hidden_layers, c.num_attention_heads, c.mlp_ratio, c.patch_size, c.tubelet_size,
        norm_eps=c.layer_norm_eps,
    )
    modules = {"encoder": encoder, "predictor": MaskedPredictor(
        c.hidden_size, c.pred_hidden_size, c.pred_num_hidden_layers, c.pred_num_attention_heads, c.pred_mlp_ratio,
        c.pred_num_mask_tokens, norm_eps=c.layer_norm_eps,
    )}
    if depth:
        modules["probe_0"] = AttentiveProbe(
            c.hidden_size, depth, c.num_attention_heads, outputs=(("label", len(_LABELS)),),
            norm_eps=c.layer_norm_eps,
        )
    networks = {name: Network(module, random_params(module, seed))
                for seed, (name, module) in enumerate(modules.items())}
    return Bundle(networks, Preprocessing(c.crop_size, frames=c.frames_per_clip), labels=_LABELS if depth else None)


@pytest.mark.parametrize("size", _SIZES)
def test_our_model_in_theirs(size, tmp_path):
    store.write(_ours(size), tmp_path / "ours")
    store.write(_ours(size), tmp_path / "theirs", "huggingface")
    model, params = load(tmp_path / "ours")
    _check_model(model, params, _reload(VJEPA2Model, tmp_path / "theirs"), model.preprocessing)


@pytest.mark.parametrize("size, depth", [("plain", 1), ("odd", 4)])
def test_our_classifier_in_theirs(size, depth, tmp_path):
    store.write(_ours(size, depth), tmp_path / "ours")
    store.write(_ours(size, depth), tmp_path / "theirs", "huggingface")
    theirs = _reload(VJEPA2ForVideoClassification, tmp_path / "theirs")
    assert tuple(theirs.config.id2label.values()) == _LABELS
    model, params = load(tmp_path / "ours")
    _check_classifier(model, params, theirs, model.preprocessing)


@pytest.mark.parametrize("kind, between", [
    (VJEPA2Model, "folder"), (VJEPA2Model, "file.pt"), (VJEPA2ForVideoClassification, "folder"),
])
def test_round_trip_is_exact(kind, between, tmp_path):
    # The official code has this epsilon fixed.
    sizes = _SIZES["odd"] | {"layer_norm_eps": 1e-6, "num_pooler_layers": 2}
    _theirs(kind, VJEPA2Config(**sizes)).save_pretrained(tmp_path / "first")
    store.write(store.read(tmp_path / "first"), tmp_path / between)
    store.write(store.read(tmp_path / between), tmp_path / "second", "huggingface")
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "second"))
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert value.dtype == second[name].dtype and value.tobytes() == second[name].tobytes(), name
    if kind is VJEPA2Model:
        # A model without a probe does not say how deep its probe would be.
        del sizes["num_pooler_layers"]
    written = VJEPA2Config.from_pretrained(tmp_path / "second")
    assert {key: getattr(written, key) for key in sizes} == sizes


def test_positions_off_the_crop_size(tmp_path):
    # Theirs reads positions off config.crop_size; at another size that is a choice, and it shows.
    theirs = _theirs(VJEPA2Model, _config("plain"))
    theirs.save_pretrained(tmp_path)
    clip = _clip(theirs.config, side=24)
    model, params = load(tmp_path, hints=Hints(rope_grid="config"))
    with torch.no_grad():
        expected = theirs(pixel_values_videos=_pixels(clip, model.preprocessing), skip_predictor=True).last_hidden_state
    _equal(model.encode(params, clip).tokens, expected)
    by_input, params = load(tmp_path)
    assert np.max(np.abs(by_input.encode(params, clip).tokens - expected.numpy())) > 0.01


def test_one_frame(tmp_path):
    theirs = _theirs(VJEPA2Model, _config("odd"))
    theirs.save_pretrained(tmp_path)
    clip = _clip(theirs.config, frames=1)
    model, params = load(tmp_path)
    with torch.no_grad():
        expected = theirs(pixel_values_videos=_pixels(clip, model.preprocessing), skip_predictor=True).last_hidden_state
    _equal(model.encode(params, clip).tokens, expected)


def test_features_of_a_video(tmp_path):
    video = media.write_video(tmp_path / "video.mp4", frames=40, height=90, width=120)
    store.write(_ours("odd"), tmp_path / "ours")
    store.write(_ours("odd"), tmp_path / "theirs", "huggingface")
    model, params = load(tmp_path / "ours")
    clip = read_clip(video, model.preprocessing.frames, model.preprocessing.crop_size)
    tokens = model.encode(params, clip).tokens
    # What their processor would read, as we wrote it beside the weights.
    with open(tmp_path / "theirs" / "video_preprocessor_config.json", encoding="utf-8") as file:
        processor = json.load(file)
    assert processor["crop_size"]["height"] == clip.shape[1]
    pinned = Preprocessing(mean=tuple(processor["image_mean"]), std=tuple(processor["image_std"]))
    theirs = _reload(VJEPA2Model, tmp_path / "theirs")
    with torch.no_grad():
        expected = theirs(pixel_values_videos=_pixels(clip[None], pinned), skip_predictor=True).last_hidden_state
    assert clip.std() > 10
    _equal(tokens, expected)
