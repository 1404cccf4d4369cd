"""The JSON files of a Hugging Face folder: what they say, and whether the weights agree.

Source: (HF) models/vjepa2 of transformers 5.23.0.
"""

import os

from jepa_jax.models.layers import mlp_hidden_dim
from jepa_jax.weights import runs, tensors
from jepa_jax.weights.bundle import Preprocessing, WeightsError
from jepa_jax.weights.huggingface_names import MASK_TOKENS

CONFIG, PROCESSOR = "config.json", "video_preprocessor_config.json"
# Whatever the encoder has, which at ViT-g is 48/11.
PROBE_MLP_RATIO = 4.0
_CLASSIFIER, _MODEL = "VJEPA2ForVideoClassification", "VJEPA2Model"
_BILINEAR = 2

# Values that transformers leaves out of config.json where they are the default. Source: (HF) configuration_vjepa2.py.
DEFAULTS = {
    "patch_size": 16,
    "crop_size": 256,
    "frames_per_clip": 64,
    "tubelet_size": 2,
    "hidden_size": 1024,
    "in_chans": 3,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "mlp_ratio": 4.0,
    "layer_norm_eps": 1e-6,
    "qkv_bias": True,
    "hidden_act": "gelu",
    "num_pooler_layers": 3,
    "pred_hidden_size": 384,
    "pred_num_attention_heads": 12,
    "pred_num_hidden_layers": 12,
    "pred_num_mask_tokens": 10,
    "pred_mlp_ratio": 4.0,
    "num_labels": 2,
}
_ONLY = {"in_chans": 3, "qkv_bias": True, "hidden_act": "gelu"}


def read_config(path):
    """Read config.json, with transformers' defaults for what it leaves out.

    Raises:
      WeightsError: if it is missing, of another model, or asks for what this code does not have.
    """
    what = os.path.join(path, CONFIG)
    # Names of labels are made up where there are none, as transformers does; no other model may pass for this one.
    config = DEFAULTS | {"id2label": None, "model_type": None} | tensors.read_json(what)
    if config["model_type"] != "vjepa2":
        raise WeightsError(f"{what} is of model_type {config['model_type']!r}; needed: 'vjepa2'")
    wrong = [f"{key} {config[key]!r} (needed: {value!r})" for key, value in _ONLY.items() if config[key] != value]
    wrong += [
        f"{key} {config[key]!r} (needed: a number)"
        for key, value in DEFAULTS.items()
        if key not in _ONLY
        and (isinstance(config[key], (bool, str)) or not isinstance(config[key], (int, type(value))))
    ]
    if wrong:
        raise WeightsError(f"{what} asks for what this code does not have: {', '.join(wrong)}")
    return config


def compare_config(config, found, what):
    """Compare a config with the sizes that the tensors show, and list every contradiction."""
    shape = {name: value.shape for name, value in found.items()}
    kernel = shape.get("encoder.embeddings.patch_embeddings.proj.weight")
    if kernel is None or len(kernel) != 5:
        raise WeightsError(f"{what}: its weights hold no video encoder; they start with {', '.join(sorted(shape)[:3])}")

    def first(name, axis=0):
        return shape[name][axis] if name in shape else None

    def layers(prefix):
        return len({name.removeprefix(prefix).split(".")[0] for name in shape if name.startswith(prefix)})

    width, predictor_width = kernel[0], first("predictor.layernorm.weight")
    seen = {
        "hidden_size": (config["hidden_size"], width),
        "patch_size": (config["patch_size"], kernel[3]),
        "tubelet_size": (config["tubelet_size"], kernel[2]),
        "num_hidden_layers": (config["num_hidden_layers"], layers("encoder.layer.")),
        "mlp_ratio (hidden channels)": (
            mlp_hidden_dim(width, config["mlp_ratio"], "gelu"),
            first("encoder.layer.0.mlp.fc1.weight"),
        ),
    }
    if predictor_width is not None:
        seen |= {
            "pred_hidden_size": (config["pred_hidden_size"], predictor_width),
            "pred_num_hidden_layers": (config["pred_num_hidden_layers"], layers("predictor.layer.")),
            "pred_num_mask_tokens": (config["pred_num_mask_tokens"], first(MASK_TOKENS)),
        }
    if "classifier.bias" in shape:
        seen |= {
            "num_pooler_layers": (config["num_pooler_layers"], layers("pooler.self_attention_layers.")),
            "number of labels": (len(labels_of(config)), first("classifier.bias")),
        }
    wrong = [
        f"{key}: {said} in the config, {there} in the weights" for key, (said, there) in seen.items() if said != there
    ]
    if wrong:
        raise WeightsError(f"{what} contradicts the weights:\n  " + "\n  ".join(wrong))


def labels_of(config):
    """Return the class names of a config, in order."""
    labels = config["id2label"] or {i: f"LABEL_{i}" for i in range(config["num_labels"])}
    try:
        return tuple(str(labels[key]) for key in sorted(labels, key=int))
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{CONFIG} has an id2label whose keys are no numbers: {error}") from error


def read_processor(path, config):
    """Read the preprocessing that is pinned beside the weights, or take the official one."""
    usual = runs.preprocessing(config["crop_size"], config["frames_per_clip"])
    what = os.path.join(path, PROCESSOR)
    if not os.path.isfile(what):
        return usual
    content = make_processor(usual) | tensors.read_json(what)
    try:
        crop, short = content["crop_size"], content["size"]["shortest_edge"]
        crop = crop["height"] if isinstance(crop, dict) else crop
        mean, std = (tuple(float(x) for x in content[key]) for key in ("image_mean", "image_std"))
    except (TypeError, KeyError) as error:
        raise WeightsError(
            f"{what} is not understood: it needs crop_size, size.shortest_edge, image_mean and image_std "
            f"({type(error).__name__} {error})"
        ) from error
    fixed = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "resample", "rescale_factor")
    wrong = [
        f"{key} {content[key]!r} (needed: {make_processor(usual)[key]!r})"
        for key in fixed
        if content[key] != make_processor(usual)[key]
    ]
    if wrong:
        raise WeightsError(f"{what} asks for what this code does not do: {', '.join(wrong)}")
    return Preprocessing(crop, short, config["frames_per_clip"], mean=mean, std=std)


def make_config(bundle, encoder, predictor, probe):
    """Make the content of config.json.

    Args:
      bundle: `Bundle`, for preprocessing, labels and protocol.
      encoder, predictor, probe: modules; the last may be None.

    Raises:
      WeightsError: if transformers would compute something else than these networks.
    """
    _refuse_foreign(bundle, encoder, predictor, probe)
    config = {
        "architectures": [_CLASSIFIER if probe else _MODEL],
        "model_type": "vjepa2",
        "dtype": "float32",
        **_ONLY,
        "patch_size": encoder.patch_size,
        "tubelet_size": encoder.tubelet_size,
        "crop_size": bundle.preprocessing.crop_size,
        "frames_per_clip": bundle.preprocessing.frames,
        "hidden_size": encoder.width,
        "num_hidden_layers": encoder.depth,
        "num_attention_heads": encoder.num_heads,
        "mlp_ratio": encoder.mlp_ratio,
        "layer_norm_eps": encoder.norm_eps,
        "pred_hidden_size": predictor.width,
        "pred_num_hidden_layers": predictor.depth,
        "pred_num_attention_heads": predictor.num_heads,
        "pred_num_mask_tokens": predictor.num_mask_tokens,
        "pred_mlp_ratio": predictor.mlp_ratio,
    }
    if probe:
        labels = bundle.labels or tuple(f"LABEL_{i}" for i in range(probe.outputs[0][1]))
        config |= {
            "num_pooler_layers": probe.depth - 1,
            "id2label": {str(i): label for i, label in enumerate(labels)},
            "label2id": {label: i for i, label in enumerate(labels)},
        }
    return config


def _refuse_foreign(bundle, encoder, predictor, probe):
    """Raise WeightsError listing what transformers would compute differently."""
    problems = []
    for name, module in (("encoder", encoder), ("predictor", predictor)):
        wanted = {"positions": "rope", "rope_layout": "tiled", "activation": "gelu", "norm_eps": encoder.norm_eps}
        problems += [
            f"{name}: {key} {getattr(module, key)!r}, transformers has {value!r}"
            for key, value in wanted.items()
            if getattr(module, key) != value
        ]
    side = bundle.preprocessing.crop_size // encoder.patch_size
    if encoder.rope_grid not in (None, (side, side)):
        problems.append(f"encoder: rope_grid {encoder.rope_grid}, transformers has {(side, side)} by its crop_size")
    if encoder.table_grid[0] == 1 and encoder.tubelet_size == 1:
        problems.append("encoder: it takes images, transformers has video encoders only")
    if probe:
        wanted = {"num_heads": encoder.num_heads, "norm_eps": encoder.norm_eps, "mlp_ratio": PROBE_MLP_RATIO}
        problems += [
            f"probe: {key} {getattr(probe, key)}, transformers gives it {value}"
            for key, value in wanted.items()
            if getattr(probe, key) != value
        ]
        if len(probe.outputs) != 1:
            problems.append(f"probe: {len(probe.outputs)} outputs, transformers has one")
        if bundle.protocol and bundle.protocol.layers:
            problems.append(f"probe: it takes layers {bundle.protocol.layers}, transformers gives it the last one only")
        if bundle.protocol and bundle.protocol.use_pos_embed:
            problems.append("probe: it takes times of frames (use_pos_embed), transformers gives it none")
    if problems:
        raise WeightsError("transformers would compute something else than these networks:\n  " + "\n  ".join(problems))


def make_processor(preprocessing):
    """Make the content of video_preprocessor_config.json."""
    return {
        "video_processor_type": "VJEPA2VideoProcessor",
        "do_resize": True,
        "do_center_crop": True,
        "do_rescale": True,
        "do_normalize": True,
        "rescale_factor": 1 / 255,
        "resample": _BILINEAR,
        "size": {"shortest_edge": preprocessing.short_side},
        "crop_size": {"height": preprocessing.crop_size, "width": preprocessing.crop_size},
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
    }
