"""Our own form: a folder with `model.json` and one safetensors file per network.

`model.json` holds, for every network, its description (class and fields), the identity of
its weights and their number; the preprocessing; labels and protocol of a probe; where the
weights come from and what was assumed. Tensors carry the names of the parameter tree,
such as `blocks/layers/attention/qkv/kernel`, stacked over depth.
"""

import dataclasses
import json
import os

import jax

from jepa_jax.models.spec import SpecError, build, describe
from jepa_jax.training.state import tensor_names
from jepa_jax.weights import tensors
from jepa_jax.weights.bundle import (
    ENCODERS,
    NETWORKS,
    PROBE_NAME,
    Bundle,
    Network,
    Preprocessing,
    Protocol,
    WeightsError,
    check_tensors,
    check_values,
    count_params,
    expected_shapes,
    network_sha256,
)

FILE = "model.json"
_FORMAT, _VERSION = "jepa_jax model", 2
_SUFFIX = ".safetensors"


def write(bundle, path):
    """Write a bundle as a new folder.

    Raises:
      WeightsError: if the destination exists or cannot be written.
    """
    with tensors.whole_output(path, folder=True) as folder:
        for name, network in bundle.networks.items():
            names = tensor_names(network.params)
            tensors.write_safetensors(
                dict(zip(names, jax.tree.leaves(network.params))), os.path.join(folder, name + _SUFFIX)
            )
        with open(os.path.join(folder, FILE), "w", encoding="utf-8") as file:
            json.dump({"format": _FORMAT, "version": _VERSION} | card(bundle), file, indent=1)


def card(bundle):
    """Describe a bundle, without its weights, as JSON-able dict."""
    return {
        "networks": {
            name: {
                "spec": describe(network.module),
                "sha256": network.sha256 or network_sha256(network.params),
                "parameters": count_params(network.params),
            }
            for name, network in bundle.networks.items()
        },
        "preprocessing": _plain(bundle.preprocessing),
        "labels": bundle.labels,
        "protocol": _plain(bundle.protocol),
        "provenance": bundle.provenance,
        "notes": bundle.notes,
        "world_model": bundle.world_model,
        "anticipation": bundle.anticipation,
    }


def read_card(text, what):
    """Read the JSON of `card`, checked.

    Returns:
      (modules, sha256, rest): dicts by network name, and a `Bundle` without networks.

    Raises:
      WeightsError: if it is no such JSON.
    """
    try:
        content = json.loads(text)
        modules = {name: build(entry["spec"]) for name, entry in content["networks"].items()}
        sha256 = {name: entry["sha256"] for name, entry in content["networks"].items()}
        rest = Bundle(
            {},
            _record(Preprocessing, content["preprocessing"]),
            _tuple(content["labels"]),
            _record(Protocol, content["protocol"]),
            content["provenance"],
            tuple(content["notes"]),
            content["world_model"],
            # Folders from before this was kept have none.
            content.get("anticipation"),
        )
    except json.JSONDecodeError as error:
        raise WeightsError(f"{what} is not JSON: {error}") from error
    except KeyError as error:
        raise WeightsError(f"{what} lacks the key {error}") from error
    except (SpecError, TypeError, AttributeError) as error:
        raise WeightsError(f"{what} does not describe a model: {error}") from error
    unknown = [name for name in modules if name not in NETWORKS and not PROBE_NAME.fullmatch(name)]
    if unknown:
        raise WeightsError(
            f"{what} names unknown networks {unknown}; known: {', '.join(NETWORKS)} and probe_0, probe_1, ..."
        )
    return modules, sha256, rest


def check_sha256(params, stored, what):
    """Raise WeightsError if weights are not those that were stored with a description; None compares nothing."""
    if stored is not None and network_sha256(params) != stored:
        raise WeightsError(
            f"{what} does not hold the weights that its description names (sha256 {stored}): it was "
            "changed or damaged; convert again"
        )


def read(path, choose=None, verify=False):
    """Read a folder.

    Args:
      path: the folder.
      choose: function from the names of its networks to those to read; all if None.
      verify: compare every weight with the stored hash.

    Raises:
      WeightsError: if files are missing, damaged, or contradict `model.json`.
    """
    what = os.path.join(path, FILE)
    content = tensors.read_json(what)
    if (content.get("format"), content.get("version")) != (_FORMAT, _VERSION):
        raise WeightsError(
            f"{what} is of format {content.get('format')!r}, version {content.get('version')!r}; this code reads "
            f"{_FORMAT!r}, version {_VERSION}: convert it again"
        )
    modules, sha256, rest = read_card(json.dumps(content), what)
    networks = {}
    for name in choose(tuple(modules)) if choose else modules:
        module = modules[name]
        file = os.path.join(path, name + _SUFFIX)
        found = tensors.read_safetensors(file)
        check_tensors({key: value.shape for key, value in found.items()}, expected_shapes(module), file)
        networks[name] = Network(module, _nested(check_values(found, file)), sha256[name])
        if verify:
            check_sha256(networks[name].params, sha256[name], file)
    if rest.preprocessing is None and any(name in ENCODERS for name in modules):
        raise WeightsError(f"{what} holds an encoder but no preprocessing")
    return dataclasses.replace(rest, networks=networks)


def _nested(flat):
    tree = {}
    for name, value in flat.items():
        *folders, last = name.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[last] = value
    return tree


def _plain(record):
    return None if record is None else dataclasses.asdict(record)


def _record(kind, fields):
    return None if fields is None else kind(**{key: _tuple(value) for key, value in fields.items()})


def _tuple(value):
    return tuple(value) if isinstance(value, list) else value
