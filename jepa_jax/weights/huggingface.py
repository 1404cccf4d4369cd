"""Folders of Hugging Face transformers: `config.json` and `model.safetensors`, a model or a classifier.

Source: (HF) models/vjepa2 of transformers 5.23.0.
"""

import dataclasses
import json
import os
import re

import numpy as np

from jepa_jax.models import AttentiveProbe, MaskedPredictor, VideoEncoder
from jepa_jax.models.layers import mlp_hidden_dim
from jepa_jax.weights import inference, native, runs, tensors
from jepa_jax.weights.bundle import (
    PROBE,
    Bundle,
    Network,
    Preprocessing,
    WeightsError,
    check_tensors,
    check_values,
    choose_encoder,
)
from jepa_jax.weights.hints import Hints
from jepa_jax.weights.huggingface_names import MASK_TOKENS, from_official, to_official
from jepa_jax.weights.released import find_protocol

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_PROCESSOR = "video_preprocessor_config.json"
_CARD = "jepa_jax.json"
_CLASSIFIER, _MODEL = "VJEPA2ForVideoClassification", "VJEPA2Model"
_PREFIX = "vjepa2."
_PROBE_NAME = f"{PROBE}0"
_BILINEAR = 2
# Whatever the encoder has, which at ViT-g is 48/11.
_PROBE_MLP_RATIO = 4.0

# Values that transformers leaves out of config.json where they are the default. Source: (HF) configuration_vjepa2.py.
_DEFAULTS = {
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
}
_ROPE_NOTES = {
    "input": "rotary positions by the real input, as in training; transformers goes by config.crop_size, which is the "
    "same at that size",
    "config": "rotary positions by the configured size, as in transformers; wrong for inputs of another size",
}
_ONLY = {"in_chans": 3, "qkv_bias": True, "hidden_act": "gelu"}


def read(path, hints=None):
    """Read a Hugging Face folder.

    Args:
      path: the folder.
      hints: `Hints`; `rope_grid`, `protocol` and `labels` are used, sizes come from the config.

    Returns:
      `Bundle` with `encoder`, `predictor` where there is one, and `probe_0` for a classifier.

    Raises:
      WeightsError: if files are missing or damaged, or the config contradicts the weights.
    """
    hints = hints or Hints()
    config = _read_config(path)
    found = check_values(_read_weights(path), path)
    is_classifier = any(name.startswith("classifier.") for name in found)
    found = {name.removeprefix(_PREFIX) if is_classifier else name: value for name, value in found.items()}
    _compare(config, found, os.path.join(path, CONFIG))
    modules = _modules(config, found, hints)
    official = {name: inference.official_shapes(module) for name, module in modules.items()}
    expected = {}
    for shapes in official.values():
        zeros = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
        expected |= {name: value.shape for name, value in from_official(zeros).items()}
    check_tensors({name: value.shape for name, value in found.items()}, expected, path)
    networks = {
        name: Network(module, inference.from_official(module, to_official(found, official[name])))
        for name, module in modules.items()
    }
    return _surround(path, config, networks, hints)


def _surround(path, config, networks, hints):
    """Add to the networks what surrounds them."""
    card = os.path.join(path, _CARD)
    provenance, notes, labels, protocol = {}, (), None, None
    if os.path.isfile(card):
        with open(card, encoding="utf-8") as file:
            rest = native.read_card(file.read(), card)[2]
        provenance, notes, labels, protocol = rest.provenance, rest.notes, rest.labels, rest.protocol
    notes += (_ROPE_NOTES[hints.rope_grid],)
    if _PROBE_NAME in networks:
        labels = hints.labels or labels or _labels(config)
        protocol = find_protocol(hints.protocol) if hints.protocol else protocol or _known_protocol(path, config)
        notes += ("the probe gets the last layer only, as in transformers",)
    provenance = provenance | {
        "format": "huggingface",
        "source": os.path.basename(os.path.abspath(path)),
        "source_sha256": tensors.file_sha256(os.path.join(path, WEIGHTS))
        if os.path.isfile(os.path.join(path, WEIGHTS))
        else tensors.file_sha256(path),
    }
    return Bundle(networks, _read_processor(path, config), labels, protocol, provenance, tuple(dict.fromkeys(notes)))


def _read_config(path):
    what = os.path.join(path, CONFIG)
    with open(what, encoding="utf-8") as file:
        try:
            config = json.load(file)
        except json.JSONDecodeError as error:
            raise WeightsError(f"{what} is not JSON: {error}") from error
    if config.get("model_type") != "vjepa2":
        raise WeightsError(f"{what} is of model_type {config.get('model_type')!r}; needed: 'vjepa2'")
    config = _DEFAULTS | config
    wrong = [f"{key} {config[key]!r} (needed: {value!r})" for key, value in _ONLY.items() if config[key] != value]
    if wrong:
        raise WeightsError(f"{what} asks for what this code does not have: {', '.join(wrong)}")
    return config


def _read_weights(path):
    index = os.path.join(path, INDEX)
    if os.path.isfile(os.path.join(path, WEIGHTS)):
        return tensors.read_safetensors(os.path.join(path, WEIGHTS))
    if not os.path.isfile(index):
        raise WeightsError(f"{path} holds {CONFIG} but no {WEIGHTS}; it has: {', '.join(sorted(os.listdir(path)))}")
    with open(index, encoding="utf-8") as file:
        files = sorted(set(json.load(file)["weight_map"].values()))
    found = {}
    for name in files:
        found |= tensors.read_safetensors(os.path.join(path, name))
    return found


def _compare(config, found, what):
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
            "number of labels": (len(_labels(config)), first("classifier.bias")),
        }
    wrong = [
        f"{key}: {said} in the config, {there} in the weights" for key, (said, there) in seen.items() if said != there
    ]
    if wrong:
        raise WeightsError(f"{what} contradicts the weights:\n  " + "\n  ".join(wrong))


def _labels(config):
    labels = config.get("id2label") or {i: f"LABEL_{i}" for i in range(config.get("num_labels", 2))}
    return tuple(labels[key] for key in sorted(labels, key=int))


def _modules(config, found, hints):
    side = config["crop_size"] // config["patch_size"]
    grid = (max(1, config["frames_per_clip"] // config["tubelet_size"]), side, side)
    eps, width = config["layer_norm_eps"], config["hidden_size"]
    modules = {
        "encoder": VideoEncoder(
            width,
            config["num_hidden_layers"],
            config["num_attention_heads"],
            config["mlp_ratio"],
            config["patch_size"],
            config["tubelet_size"],
            norm_eps=eps,
            table_grid=grid,
            rope_grid=grid[1:] if hints.rope_grid == "config" else None,
        )
    }
    if any(name.startswith("predictor.") for name in found):
        modules["predictor"] = MaskedPredictor(
            width,
            config["pred_hidden_size"],
            config["pred_num_hidden_layers"],
            config["pred_num_attention_heads"],
            config["pred_mlp_ratio"],
            config["pred_num_mask_tokens"],
            norm_eps=eps,
            table_grid=grid,
        )
    if "classifier.bias" in found:
        # Parity: transformers gives the pooler the encoder's epsilon and heads, the official probe has its own.
        modules[_PROBE_NAME] = AttentiveProbe(
            width,
            config["num_pooler_layers"] + 1,
            config["num_attention_heads"],
            _PROBE_MLP_RATIO,
            outputs=(("label", len(found["classifier.bias"])),),
            norm_eps=eps,
        )
    return modules


def _known_protocol(path, config):
    """Recognise a released classifier by its folder's name, such as vjepa2-vitl-fpc16-256-ssv2."""
    match = re.search(r"vjepa2-(vit\w)-fpc(\d+)-(\d+)-(\w+)", os.path.abspath(path).replace("/snapshots/", "-"))
    if not match or int(match[2]) != config["frames_per_clip"]:
        return None
    model = match[1] + (match[3] if match[3] != "256" else "")
    # What the classifier can follow of it: transformers feeds the last layer only.
    return dataclasses.replace(find_protocol(f"{match[4]}-{model}"), layers=())


def _read_processor(path, config):
    """Read the preprocessing that is pinned beside the weights, or take the official one."""
    usual = runs.preprocessing(config["crop_size"], config["frames_per_clip"])
    what = os.path.join(path, _PROCESSOR)
    if not os.path.isfile(what):
        return usual
    with open(what, encoding="utf-8") as file:
        content = json.load(file)
    crop = content.get("crop_size", config["crop_size"])
    crop = crop["height"] if isinstance(crop, dict) else crop
    short = content.get("size", {}).get("shortest_edge", usual.short_side)
    if content.get("resample", _BILINEAR) != _BILINEAR:
        raise WeightsError(
            f"{what} asks for resample {content['resample']}; this code resizes bilinearly ({_BILINEAR})"
        )
    mean, std = (tuple(content.get(key, getattr(usual, key[6:]))) for key in ("image_mean", "image_std"))
    return Preprocessing(crop, short, config["frames_per_clip"], mean=mean, std=std)


def write(bundle, path):
    """Write a Hugging Face folder that transformers loads without a missing or unexpected tensor.

    Args:
      bundle: `Bundle` with a predictor, and an encoder, of which the one that evaluation uses is written;
        a probe makes it a classifier.
      path: new folder.

    Raises:
      WeightsError: if transformers computes something else than these networks, or the destination exists.
    """
    encoder = choose_encoder(bundle.networks)
    chosen = {"encoder": bundle.networks[encoder]}
    if "predictor" not in bundle.networks:
        raise WeightsError(f"a Hugging Face model needs a predictor; these weights hold {', '.join(bundle.networks)}")
    chosen["predictor"] = bundle.networks["predictor"]
    if len(bundle.probes()) > 1:
        raise WeightsError(
            f"a Hugging Face classifier has one probe; these weights hold {', '.join(bundle.probes())}: choose one "
            "with --networks"
        )
    if bundle.probes():
        chosen[_PROBE_NAME] = bundle.networks[bundle.probes()[0]]
    config = _config(bundle, {name: network.module for name, network in chosen.items()})
    found = {}
    for network in chosen.values():
        found |= from_official(inference.to_official(network.module, network.params))
    if bundle.probes():
        found = {
            name if name.startswith(("pooler.", "classifier.")) else _PREFIX + name: value
            for name, value in found.items()
        }
    provenance = {"encoder": encoder} | bundle.provenance
    kept = dataclasses.replace(bundle, networks=chosen, provenance=provenance)
    with tensors.whole_output(path, folder=True) as folder:
        tensors.write_safetensors(found, os.path.join(folder, WEIGHTS))
        for name, content in (
            (CONFIG, config),
            (_PROCESSOR, _processor(bundle.preprocessing)),
            (_CARD, native.card(kept)),
        ):
            with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
                json.dump(content, file, indent=2)
                file.write("\n")


def _config(bundle, modules):
    encoder, predictor, probe = (modules.get(name) for name in ("encoder", "predictor", _PROBE_NAME))
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
    if encoder.table_grid[0] == 1 and encoder.tubelet_size == 1:
        problems.append("encoder: it takes images, transformers has video encoders only")
    if probe:
        wanted = {"num_heads": encoder.num_heads, "norm_eps": encoder.norm_eps, "mlp_ratio": _PROBE_MLP_RATIO}
        problems += [
            f"probe: {key} {getattr(probe, key)}, transformers gives it {value}"
            for key, value in wanted.items()
            if getattr(probe, key) != value
        ]
        if len(probe.outputs) != 1:
            problems.append(f"probe: {len(probe.outputs)} outputs, transformers has one")
        if bundle.protocol and bundle.protocol.layers:
            problems.append(f"probe: it takes layers {bundle.protocol.layers}, transformers gives it the last one only")
    if problems:
        raise WeightsError("transformers would compute something else than these networks:\n  " + "\n  ".join(problems))


def _processor(preprocessing):
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
