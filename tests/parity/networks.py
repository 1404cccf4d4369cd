"""Encoders, predictors and norms equal the official ones, and weights survive conversion."""

import re

import jax.numpy as jnp
import numpy as np
import pytest

from compiling import fast_jit
from jepa_jax.models import LayerNorm, MaskedPredictor, VideoEncoder, convert, gather_tokens
from jepa_jax.models.sincos import resample_table, sincos_table
from parity.files import load, subtree

ENCODERS = (
    "encoder_rope", "encoder_rope_ratio", "encoder_rope_image", "encoder_sincos", "encoder_sincos_uniform",
    "encoder_sincos_image", "encoder_silu", "encoder_silu_narrow",
)
PREDICTORS = ("predictor", "predictor_sincos")
TOLERANCE = dict(atol=2e-5, rtol=2e-5)


def grid_of(config):
    """Token grid for which a network was constructed."""
    size = config["img_size"]
    height, width = size if isinstance(size, list) else (size, size)
    tubelet = 1 if config["num_frames"] == 1 else config["tubelet_size"]
    return config["num_frames"] // tubelet, height // config["patch_size"], width // config["patch_size"]


def _positions(config):
    return {
        "positions": "rope" if config["use_rope"] else "sincos",
        "table_grid": grid_of(config),
        "uniform_power": config.get("uniform_power", False),
        "norm_eps": config["norm_eps"],
        "mlp_ratio": config.get("mlp_ratio", 4.0),
    }


def build_encoder(config, **fields):
    """Build the encoder a golden config describes."""
    activation = "gelu"
    if config.get("use_silu", False):
        activation = "swiglu_wide" if config["wide_silu"] else "swiglu"
    return VideoEncoder(
        config["embed_dim"], config["depth"], config["num_heads"], patch_size=config["patch_size"],
        tubelet_size=1 if config["num_frames"] == 1 else config["tubelet_size"], activation=activation,
        **(_positions(config) | fields),
    )


def build_predictor(config, **fields):
    """Build the predictor a golden config describes."""
    return MaskedPredictor(
        config["embed_dim"], config["predictor_embed_dim"], config["depth"], config["num_heads"],
        num_mask_tokens=config["num_mask_tokens"], **(_positions(config) | fields),
    )


def _channels_last(video):
    return jnp.asarray(np.moveaxis(video, 1, -1))


def _load_encoder(golden, name):
    arrays, config = load(golden, name)
    encoder = build_encoder(config)
    state = subtree(arrays, "params/")
    return arrays, config, encoder, state, {"params": convert.encoder_from_official(state, encoder)}


def _mask(arrays, suffix):
    if suffix:
        return [arrays[f"in/mask{suffix}"]]
    return [arrays[name] for name in sorted(arrays) if re.fullmatch(r"in/mask_\d+", name)]


@pytest.mark.parametrize("name", ENCODERS)
def test_encoder(golden, name):
    arrays, _, encoder, _, params = _load_encoder(golden, name)
    kind = "in/video" if "in/video" in arrays else "in/image"
    forward = fast_jit(encoder.apply)
    outputs = [key.removeprefix("out/tokens") for key in arrays if key.startswith("out/tokens")]
    assert outputs
    for suffix in outputs:
        clip = suffix.removesuffix("_masked")
        video = _channels_last(arrays[kind + clip])
        if suffix.endswith("_masked"):
            tokens = np.concatenate([forward(params, video, ids) for ids in _mask(arrays, clip)])
        else:
            tokens = forward(params, video)
        np.testing.assert_allclose(tokens, arrays[f"out/tokens{suffix}"], **TOLERANCE, err_msg=f"{name}{suffix}")


@pytest.mark.parametrize("name", ["encoder_rope", "encoder_rope_ratio"])
def test_encoder_layers(golden, name):
    arrays, config, encoder, _, params = _load_encoder(golden, name)
    wanted = tuple(config["out_layers"])
    layers = fast_jit(lambda params, video: encoder.apply(params, video, wanted, method="encode_layers"))(
        params, _channels_last(arrays["in/video"])
    )
    assert len(layers) == len(wanted)
    for i, layer in enumerate(layers):
        np.testing.assert_allclose(layer, arrays[f"out/layer_{i}"], **TOLERANCE)


@pytest.mark.parametrize("name", [name for name in ENCODERS if "sincos" in name])
def test_position_tables(golden, name):
    arrays, config = load(golden, name)
    grid, kind = grid_of(config), "image" if config["num_frames"] == 1 else "video"
    table = sincos_table(config["embed_dim"], grid, config.get("uniform_power", False))
    np.testing.assert_allclose(table, arrays["out/pos_embed_init"][0], atol=1e-6)
    np.testing.assert_array_equal(arrays["params/pos_embed"], arrays["out/pos_embed_init"])
    resampled = [key for key in arrays if key.startswith("out/pos_embed_interp")]
    assert resampled
    for key in resampled:
        shape = arrays[f"in/{kind}{key.removeprefix('out/pos_embed')}"].shape
        height, width = (size // config["patch_size"] for size in shape[-2:])
        frames = shape[2] // config["tubelet_size"] if kind == "video" else 1
        np.testing.assert_allclose(resample_table(table, grid, (frames, height, width)), arrays[key][0], atol=1e-5)


def _load_predictor(golden, name):
    arrays, config = load(golden, name)
    predictor = build_predictor(config)
    state = subtree(arrays, "params/")
    params = {"params": convert.predictor_from_official(state)}
    grid = grid_of(config)

    def forward(x, context_ids, target_ids, index, method=None):
        apply = fast_jit(lambda *args: predictor.apply(*args, grid, index, method=method))
        return apply(params, x, context_ids, target_ids)

    return arrays, config, state, forward


@pytest.mark.parametrize("name", PREDICTORS)
def test_predictor_groups(golden, name):
    arrays, _, _, forward = _load_predictor(golden, name)
    cases = [tuple(map(int, key.split("_")[1:])) for key in arrays if re.fullmatch(r"out/z_\d+_\d+", key)]
    assert cases
    for i, j in cases:
        inputs = (arrays[f"in/{part}_{i}_{j}"] for part in ("x", "mask_ctxt", "mask_tgt"))
        np.testing.assert_allclose(forward(*inputs, i), arrays[f"out/z_{i}_{j}"], **TOLERANCE)


@pytest.mark.parametrize("name", PREDICTORS)
def test_predictor_mask_index_and_order(golden, name):
    arrays, config, _, forward = _load_predictor(golden, name)
    x, context, target = (arrays[f"in/{part}_0_0"] for part in ("x", "mask_ctxt", "mask_tgt"))
    for result, ids, index in (
        ("default_index", target, 1),
        ("wrapped_index", target, config["wrapped_index"]),
        ("unordered", arrays["in/mask_tgt_unordered"], 0),
    ):
        np.testing.assert_allclose(forward(x, context, ids, index), arrays[f"out/z_{result}"], **TOLERANCE)


@pytest.mark.parametrize("name", PREDICTORS)
def test_predictor_all_tokens(golden, name):
    """The official order is by id; ours is the order given. Dropping ids is choosing fewer."""
    arrays, _, _, forward = _load_predictor(golden, name)
    x, context, target = (arrays[f"in/{part}_0_0"] for part in ("x", "mask_ctxt", "mask_tgt"))
    order = np.argsort(np.concatenate([context, target], axis=1), axis=1)
    tokens = forward(x, context, target, 0, "predict_all")
    np.testing.assert_allclose(gather_tokens(tokens, order), arrays["out/all_tokens"], **TOLERANCE)
    (chopped,) = [key for key in arrays if key.startswith("out/all_tokens_chop")]
    count = int(chopped.removeprefix("out/all_tokens_chop"))
    for row in range(len(x)):
        ids = np.concatenate([context[row], target[row]])
        limit = np.sort(ids)[-count]
        keep, aim = context[row] < limit, target[row] < limit
        kept = np.concatenate([context[row][keep], target[row][aim]])
        tokens = forward(x[row : row + 1, keep], context[row : row + 1, keep], target[row : row + 1, aim], 0, "predict_all")
        np.testing.assert_allclose(tokens[0][np.argsort(kept)], arrays[chopped][row], **TOLERANCE)


def test_predictor_table(golden):
    arrays, config = load(golden, "predictor_sincos")
    table = sincos_table(config["predictor_embed_dim"], grid_of(config), config["uniform_power"])
    np.testing.assert_allclose(table, arrays["params/predictor_pos_embed"][0], atol=1e-6)


@pytest.mark.parametrize("name", ENCODERS)
def test_encoder_weights_round_trip(golden, name):
    _, _, encoder, state, params = _load_encoder(golden, name)
    back = convert.encoder_to_official(params["params"], encoder)
    assert set(back) == set(state) - {"pos_embed"}
    for key, value in back.items():
        np.testing.assert_array_equal(value, state[key], key)


@pytest.mark.parametrize("name", PREDICTORS)
def test_predictor_weights_round_trip(golden, name):
    _, _, state, _ = _load_predictor(golden, name)
    back = convert.predictor_to_official(convert.predictor_from_official(state))
    assert set(back) == set(state) - {"predictor_pos_embed"}
    for key, value in back.items():
        np.testing.assert_array_equal(value, state[key], key)


@pytest.mark.parametrize("factor, close", [(1, True), (10, False), (0.1, False)])
def test_norm_eps_of_networks(golden, factor, close):
    """Inputs near the epsilon: the right one matches, one ten times off does not."""
    arrays, config = load(golden, "norm_eps")
    weights = {name: subtree(arrays, f"params/{name}/") for name in ("encoder", "predictor")}
    eps = {name: {"norm_eps": config[name]["norm_eps"] * factor} for name in weights}
    encoder = build_encoder(config["encoder"], **eps["encoder"])
    params = {"params": convert.encoder_from_official(weights["encoder"], encoder)}
    tokens = fast_jit(encoder.apply)(params, _channels_last(arrays["in/encoder/video"]))
    predictor = build_predictor(config["predictor"], **eps["predictor"])
    params = {"params": convert.predictor_from_official(weights["predictor"])}
    inputs = [arrays[f"in/predictor/{part}"] for part in ("x", "mask_ctxt", "mask_tgt")]
    z = predictor.apply(params, *inputs, grid_of(config["predictor"]), config["predictor"]["mask_index"])
    for result, key in ((tokens, "encoder/tokens"), (z, "predictor/z")):
        assert np.allclose(result, arrays[f"out/{key}"], atol=1e-4) == close, key


def test_norm_eps_of_targets(golden):
    arrays, config = load(golden, "norm_eps")
    norm = LayerNorm(**config["target_norm"])
    result = norm.apply({}, arrays["in/target_norm/h"])
    np.testing.assert_allclose(result, arrays["out/target_norm/h"], atol=1e-4)
