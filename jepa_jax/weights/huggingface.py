"""Folders of Hugging Face transformers: `config.json` and `model.safetensors`, a model or a classifier.

Source: (HF) models/vjepa2 of transformers 5.23.0.
"""

import dataclasses
import json
import os
import re

import numpy as np

from jepa_jax.models import AttentiveProbe, MaskedPredictor, VideoEncoder
from jepa_jax.weights import inference, native, tensors
from jepa_jax.weights.bundle import (
    PROBE,
    Bundle,
    Network,
    WeightsError,
    check_tensors,
    check_values,
    choose_encoder,
    network_sha256,
)
from jepa_jax.weights.huggingface_config import (
    CONFIG,
    PROBE_MLP_RATIO,
    PROCESSOR,
    compare_config,
    labels_of,
    make_config,
    make_processor,
    read_config,
    read_processor,
)
from jepa_jax.weights.huggingface_names import from_official, to_official
from jepa_jax.weights.released import PROTOCOLS

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_CARD = "jepa_jax.json"
_PREFIX = "vjepa2."
_PROBE_NAME = f"{PROBE}0"

_ROPE_NOTE = (
    "rotary positions by the real input, as in training; transformers goes by config.crop_size, which is the same at "
    "that size (--rope-grid config does as transformers)"
)


def read(path, name=None):
    """Read a Hugging Face folder.

    Args:
      path: the folder.
      name: name of the model on the hub, if it came from there; the name of the folder if None.

    Returns:
      `Bundle` with an encoder, `predictor` where there is one, and `probe_0` for a classifier.

    Raises:
      WeightsError: if files are missing or damaged, or the config contradicts the weights.
    """
    name = name or os.path.basename(os.path.abspath(path))
    config, files = read_config(path), _weight_files(path)
    found = check_values(_read_weights(path, files), path)
    if any(key.startswith("classifier.") for key in found):
        found = _without_prefix(found, path)
    compare_config(config, found, os.path.join(path, CONFIG))
    rest, sha256 = _read_card(path)
    # The card remembers which of the two encoders this was; transformers itself comes from the student.
    encoder = rest.provenance.get("encoder", "encoder")
    modules = _modules(config, found, encoder)
    official = {key: inference.official_shapes(module) for key, module in modules.items()}
    expected = {}
    for shapes in official.values():
        zeros = {key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()}
        expected |= {key: value.shape for key, value in from_official(zeros).items()}
    check_tensors({key: value.shape for key, value in found.items()}, expected, path)
    networks = {
        key: Network(module, inference.from_official(module, to_official(found, official[key])))
        for key, module in modules.items()
    }
    del found
    if any(network_sha256(network.params) != sha256.get(key) for key, network in networks.items()):
        # Other weights have come into this folder since: the card is not theirs.
        rest = Bundle({})
    hashes = {file: tensors.file_sha256(os.path.join(path, file)) for file in files}
    provenance = {"format": "huggingface", "source": name, "source_sha256": hashes}
    provenance |= {"from": rest.provenance} if rest.provenance else {}
    return _surround(path, name, config, networks, dataclasses.replace(rest, provenance=provenance))


def _read_card(path):
    """Return what our own export left beside the weights, as (`Bundle` without networks, sha256 by network)."""
    card = os.path.join(path, _CARD)
    if not os.path.isfile(card):
        return Bundle({}), {}
    _, sha256, rest = native.read_card(json.dumps(tensors.read_json(card)), card)
    return rest, sha256


def _surround(path, name, config, networks, rest):
    """Add to the networks what surrounds them."""
    labels, protocol, notes = None, None, [*rest.notes, _ROPE_NOTE]
    if _PROBE_NAME in networks:
        labels = labels_of(config)
        protocol = rest.protocol or _known_protocol(name, config)
        if rest.protocol is None and protocol is not None:
            notes.append(f"protocol {protocol.name} taken from the name {name}")
        notes.append("the probe gets the last layer only, as in transformers")
    return dataclasses.replace(
        rest,
        networks=networks,
        preprocessing=read_processor(path, config),
        labels=labels,
        protocol=protocol,
        notes=tuple(dict.fromkeys(notes)),
    )


def _without_prefix(found, what):
    """Drop the prefix that a classifier gives its encoder and predictor."""
    bare = {}
    for name, value in found.items():
        short = name.removeprefix(_PREFIX)
        if short in bare:
            raise WeightsError(f"{what} holds {short} twice, with and without the prefix {_PREFIX}")
        bare[short] = value
    return bare


def _weight_files(path):
    """Return the weight files of a folder, as dict from name to the tensors it must hold; None where any will do."""
    index = os.path.join(path, INDEX)
    if os.path.isfile(os.path.join(path, WEIGHTS)):
        return {WEIGHTS: None}
    if not os.path.isfile(index):
        raise WeightsError(f"{path} holds {CONFIG} but no {WEIGHTS}; it has: {', '.join(sorted(os.listdir(path)))}")
    places = tensors.read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise WeightsError(f"{index} has no weight_map from tensors to files")
    files = {}
    for name, file in places.items():
        if os.path.basename(file) != file:
            raise WeightsError(f"{index} puts {name} into {file!r}; only files of its own folder are read")
        files.setdefault(file, set()).add(name)
    return files


def _read_weights(path, files):
    found = {}
    for file, names in files.items():
        part = tensors.read_safetensors(os.path.join(path, file))
        if names is not None and part.keys() != names:
            wrong = ", ".join(sorted(part.keys() ^ names)[:5])
            raise WeightsError(f"{os.path.join(path, file)} does not hold the tensors that {INDEX} says: {wrong}")
        found |= part
    return found


def _modules(config, found, encoder):
    side = config["crop_size"] // config["patch_size"]
    grid = (max(1, config["frames_per_clip"] // config["tubelet_size"]), side, side)
    eps, width = config["layer_norm_eps"], config["hidden_size"]
    modules = {
        encoder: VideoEncoder(
            width,
            config["num_hidden_layers"],
            config["num_attention_heads"],
            config["mlp_ratio"],
            config["patch_size"],
            config["tubelet_size"],
            norm_eps=eps,
            table_grid=grid,
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
            PROBE_MLP_RATIO,
            outputs=(("label", len(found["classifier.bias"])),),
            norm_eps=eps,
        )
    return modules


def _known_protocol(name, config):
    """Recognise a released classifier by its name, such as vjepa2-vitl-fpc16-256-ssv2; None for any other."""
    match = re.fullmatch(r"(?:facebook/)?vjepa2-(vit\w)-fpc(\d+)-(\d+)-(\w+)", name)
    if not match or int(match[2]) != config["frames_per_clip"]:
        return None
    model = match[1] + (match[3] if match[3] != "256" else "")
    protocol = PROTOCOLS.get(f"{match[4]}-{model}")
    # What the classifier can follow of it: transformers feeds the last layer only.
    return protocol and dataclasses.replace(protocol, layers=())


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
    modules = {name: network.module for name, network in chosen.items()}
    config = make_config(bundle, modules["encoder"], modules["predictor"], modules.get(_PROBE_NAME))
    found = {}
    for network in chosen.values():
        found |= from_official(inference.to_official(network.module, network.params))
    if bundle.probes():
        found = {
            name if name.startswith(("pooler.", "classifier.")) else _PREFIX + name: value
            for name, value in found.items()
        }
    provenance = bundle.provenance | {"encoder": encoder}
    networks = {encoder if name == "encoder" else name: network for name, network in chosen.items()}
    kept = dataclasses.replace(bundle, networks=networks, provenance=provenance)
    with tensors.whole_output(path, folder=True) as folder:
        tensors.write_safetensors(found, os.path.join(folder, WEIGHTS))
        for name, content in (
            (CONFIG, config),
            (PROCESSOR, make_processor(bundle.preprocessing)),
            (_CARD, native.card(kept)),
        ):
            with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
                json.dump(content, file, indent=2)
                file.write("\n")
