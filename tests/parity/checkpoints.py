"""Networks read from official and Hugging Face files compute what they computed there."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from compiling import fast_jit
from jepa_jax.models import LayerNorm, gather_tokens, join_segments
from jepa_jax.weights import huggingface, store, tensors
from jepa_jax.weights.bundle import choose_encoder
from jepa_jax.weights.hints import Hints
from parity.files import load, subtree

TOLERANCE = dict(atol=2e-5, rtol=2e-5)
PRETRAIN, AC = ("pretrain_latest", "pretrain_released_like"), ("ac_latest", "ac_no_optimizer")


def needs_torch():
    """Skip, with the reason, where PyTorch is not installed."""
    pytest.importorskip("torch", reason="reading .pt files needs PyTorch: bash launch/test.sh --torch")


def run(network, *inputs, **kwargs):
    """Apply a `Network` of a bundle."""
    forward = fast_jit(lambda params, *args: network.module.apply({"params": params}, *args, **kwargs))
    return forward(network.params, *inputs)


def last_axis(video, axis):
    """Move the channels of a golden clip to the end."""
    return jnp.asarray(np.moveaxis(video, axis, -1))


def expected(golden):
    """Read `checkpoints/expected.npz`."""
    return load(golden / "checkpoints", "expected")


def hints_of(config):
    """Turn a golden description of encoder and predictor into `Hints`."""
    encoder, predictor = config["encoder"], config["predictor"]
    kind = "predictor" if "num_mask_tokens" in predictor else "action_predictor"
    return Hints(
        heads={"encoder": encoder["num_heads"], kind: predictor["num_heads"]},
        crop_size=encoder["img_size"],
        frames=encoder["num_frames"],
        positions="rope",
    )


@pytest.mark.parametrize("name", PRETRAIN)
def test_pretraining_checkpoint(golden, name):
    needs_torch()
    arrays, config = expected(golden)
    bundle = store.read(golden / "checkpoints" / f"{name}.pt", hints_of(config["pretrain"]))
    assert choose_encoder(bundle.networks) == "target_encoder"
    video = last_axis(arrays["in/pretrain/video"], 1)
    for entry in ("encoder", "target_encoder"):
        tokens = run(bundle.networks[entry], video)
        np.testing.assert_allclose(tokens, arrays[f"out/pretrain/{entry}_tokens"], **TOLERANCE)
    context_ids, target_ids = arrays["in/pretrain/mask_enc"], arrays["in/pretrain/mask_pred"]
    context = run(bundle.networks["encoder"], video, context_ids)
    grid = bundle.networks["encoder"].module.table_grid
    prefix = "out/pretrain/predictor_mask_index"
    indices = [int(key.removeprefix(prefix)) for key in arrays if key.startswith(prefix)]
    assert len(indices) > 1
    for index in indices:
        tokens = run(bundle.networks["predictor"], context, context_ids, target_ids, grid=grid, mask_index=index)
        np.testing.assert_allclose(tokens, arrays[f"{prefix}{index}"], **TOLERANCE)


@pytest.mark.parametrize("name", AC)
def test_action_conditioned_checkpoint(golden, name):
    needs_torch()
    arrays, config = expected(golden)
    bundle = store.read(golden / "checkpoints" / f"{name}.pt", hints_of(config["ac"]))
    clips = last_axis(arrays["in/ac/clips"], 1)
    batch, frames = clips.shape[:2]
    images = clips.reshape(batch * frames, 1, *clips.shape[2:])
    tokens = run(bundle.networks["encoder"], images).reshape(batch, -1, config["ac"]["encoder"]["embed_dim"])
    np.testing.assert_allclose(tokens, arrays["out/ac/frame_tokens"], **TOLERANCE)
    per_frame = tokens.shape[1] // frames
    latents = LayerNorm(1e-5, affine=False).apply({}, tokens)[:, : per_frame * (frames - 1)]
    actions, states = arrays["in/ac/actions"], arrays["in/ac/states"][:, :-1]
    predicted = run(bundle.networks["action_predictor"], latents, actions, states)
    np.testing.assert_allclose(predicted, arrays["out/ac/predicted"], **TOLERANCE)


def test_probe_checkpoint(golden):
    needs_torch()
    arrays, config = expected(golden)
    hints = Hints(heads={"probe": config["probe"]["num_heads"]})
    bundle = store.read(golden / "checkpoints" / "probe_latest.pt", hints)
    results = [name for name in arrays if name.startswith("out/probe/logits_")]
    assert len(results) == len(bundle.probes()) > 1
    for i, name in enumerate(bundle.probes()):
        assert bundle.networks[name].module.norm_eps == config["probe"]["norm_eps"]
        logits = run(bundle.networks[name], arrays["in/probe/x"])["label"]
        np.testing.assert_allclose(logits, arrays[f"out/probe/logits_{i}"], **TOLERANCE)


def predict_all(bundle, tokens):
    """Run the predictor as transformers does without masks: every token is context and target."""
    ids = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape[:2])
    grid = bundle.networks["predictor"].module.table_grid
    return run(bundle.networks["predictor"], tokens, ids, ids, grid=grid, mask_index=1)


@pytest.mark.parametrize("rope_grid", ["input", "config"])
def test_huggingface_folders(golden, rope_grid):
    """At the size in the config, both ways of reading rotary positions are the same."""
    arrays, _ = expected(golden)
    video = last_axis(arrays["in/hf/pixel_values_videos"], 2)
    bundle = store.read(golden / "checkpoints" / "hf_model", Hints(rope_grid=rope_grid))
    tokens = run(bundle.networks["encoder"], video)
    np.testing.assert_allclose(tokens, arrays["out/hf_model/last_hidden_state"], **TOLERANCE)
    np.testing.assert_allclose(predict_all(bundle, tokens), arrays["out/hf_model/predictor"], **TOLERANCE)
    bundle = store.read(golden / "checkpoints" / "hf_classifier", Hints(rope_grid=rope_grid))
    logits = run(bundle.networks["probe_0"], run(bundle.networks["encoder"], video))["label"]
    np.testing.assert_allclose(logits, arrays["out/hf_classifier/logits"], **TOLERANCE)


def huggingface_folder(golden, name, folder):
    """Write the weights of a golden file as a Hugging Face folder and return (arrays, bundle)."""
    arrays, config = load(golden, name)
    folder.mkdir()
    tensors.write_safetensors(subtree(arrays, "params/"), folder / huggingface.WEIGHTS)
    fields = {"model_type": "vjepa2", "layer_norm_eps": config["layer_norm_eps"]} | config["cfg_"]
    if "num_labels" in fields:
        fields["id2label"] = {str(i): f"label {i}" for i in range(fields["num_labels"])}
    (folder / huggingface.CONFIG).write_text(json.dumps(fields))
    return arrays, store.read(folder)


def test_huggingface_model(golden, tmp_path):
    arrays, bundle = huggingface_folder(golden, "hf_vjepa2_model", tmp_path / "model")
    tokens = run(bundle.networks["encoder"], last_axis(arrays["in/pixel_values_videos"], 2))
    context_ids, target_ids = arrays["in/context_mask"], arrays["in/target_mask"]
    context = gather_tokens(tokens, context_ids)
    grid = bundle.networks["predictor"].module.table_grid
    for result, name in (
        (tokens, "last_hidden_state"),
        (context, "masked_hidden_state"),
        (
            run(bundle.networks["predictor"], context, context_ids, target_ids, grid=grid, mask_index=1),
            "predictor_last_hidden_state",
        ),
        (gather_tokens(tokens, target_ids), "predictor_target_hidden_state"),
        (predict_all(bundle, tokens), "predictor_default_masks"),
    ):
        np.testing.assert_allclose(result, arrays[f"out/{name}"], **TOLERANCE, err_msg=name)


def test_huggingface_classifier(golden, tmp_path):
    arrays, bundle = huggingface_folder(golden, "hf_vjepa2_classifier", tmp_path / "classifier")
    # Parity: the official probe has another epsilon.
    assert bundle.networks["probe_0"].module.norm_eps == 1e-6
    tokens = run(bundle.networks["encoder"], last_axis(arrays["in/pixel_values_videos"], 2))
    np.testing.assert_allclose(tokens, arrays["out/features"], **TOLERANCE)
    # One segment and one view: what a classifier of transformers sees.
    features = join_segments(tokens[None, None])[0]
    np.testing.assert_allclose(run(bundle.networks["probe_0"], features)["label"], arrays["out/logits"], **TOLERANCE)
    pooled = run(bundle.networks["probe_0"], features, method="pool")
    np.testing.assert_allclose(pooled[:, 0], arrays["out/pooled"], **TOLERANCE)
