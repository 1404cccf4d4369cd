"""The YAML config of an official training run: what it adds to the weights, and whether it contradicts them.

Source: configs/train/*, app/vjepa/train.py, app/vjepa_droid/train.py.
"""

import dataclasses

import yaml

from jepa_jax.weights.bundle import ENCODERS, WeightsError

_PREDICTORS = ("predictor", "action_predictor")


def read_config(path):
    """Read a config.

    Returns:
      dict with the sections `model` and `data`, as the file has them.

    Raises:
      WeightsError: if it is no config of a training run.
    """
    try:
        with open(path, encoding="utf-8") as file:
            content = yaml.safe_load(file)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise WeightsError(f"{path} is not YAML: {str(error).splitlines()[0]}") from error
    sections = ("model", "data")
    if not isinstance(content, dict) or not all(isinstance(content.get(key), dict) for key in sections):
        raise WeightsError(f"{path} is no config of an official training run: it needs the sections model and data")
    missing = [
        key
        for section, key in (("model", "model_name"), ("data", "crop_size"), ("data", "dataset_fpcs"))
        if key not in content[section]
    ]
    if missing:
        raise WeightsError(f"{path} lacks {', '.join(missing)}")
    frames = content["data"]["dataset_fpcs"]
    if not isinstance(content["model"]["model_name"], str) or not isinstance(frames, list) or not frames:
        raise WeightsError(f"{path}: model_name must be a name and dataset_fpcs a list of frame counts")
    return {key: content[key] for key in sections}


def add_to_hints(config, hints, what):
    """Fill what the hints leave open from a config.

    Args:
      config: from `read_config`.
      hints: `Hints`.
      what: the file, for the message.

    Returns:
      `Hints`.

    Raises:
      WeightsError: if hints and config contradict each other.
    """
    model, data = config["model"], config["data"]
    said = {
        "size": model["model_name"].removesuffix("_rope"),
        # The official default is the fixed table.
        "positions": "rope" if model.get("use_rope") or model["model_name"].endswith("_rope") else "sincos",
        "crop_size": data["crop_size"],
        "frames": max(data["dataset_fpcs"]),
    }
    wrong = [
        f"{name} {getattr(hints, name)!r} is not its {value!r}"
        for name, value in said.items()
        if getattr(hints, name) not in (None, value)
    ]
    heads = dict(hints.heads)
    if model.get("pred_num_heads"):
        for name in _PREDICTORS:
            if heads.setdefault(name, model["pred_num_heads"]) != model["pred_num_heads"]:
                wrong.append(f"{heads[name]} heads of the {name} are not its {model['pred_num_heads']}")
    if wrong:
        raise WeightsError(f"{what} contradicts what was given: {'; '.join(wrong)}")
    extrinsics = hints.use_extrinsics or bool(model.get("use_extrinsics"))
    return dataclasses.replace(hints, heads=heads, use_extrinsics=extrinsics, **said)


def compare(config, networks, what):
    """Compare a config with the networks that were read off the weights.

    Args:
      config: from `read_config`.
      networks: dict from name to `Network`.
      what: the file, for the message.

    Raises:
      WeightsError: listing every contradiction.
    """
    model, data = config["model"], config["data"]
    checks = {
        name: {"patch_size": data.get("patch_size"), "tubelet_size": data.get("tubelet_size")} for name in ENCODERS
    }
    checks |= {name: {"depth": model.get("pred_depth"), "width": model.get("pred_embed_dim")} for name in _PREDICTORS}
    wrong = [
        f"{name}.{field}: {value} in the config, {getattr(networks[name].module, field)} in the weights"
        for name, fields in checks.items()
        if name in networks
        for field, value in fields.items()
        if value not in (None, getattr(networks[name].module, field))
    ]
    if wrong:
        raise WeightsError(f"{what} contradicts the weights:\n  " + "\n  ".join(wrong))
