"""Small random weights of every kind, and ways to write, damage and refuse them."""

import json
import re

import jax
import numpy as np
import pytest

from jepa_jax import convert
from jepa_jax.models import ActionPredictor, AttentiveProbe, MaskedPredictor, VideoEncoder
from jepa_jax.models.spec import abstract_params
from jepa_jax.weights import inference, official, tensors
from jepa_jax.weights.bundle import Bundle, Network, Preprocessing, network_sha256
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


def official_state(module):
    """Make the tensors of a network under official names, without memory."""
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in inference.official_shapes(module).items()}


def write_official_probes(path, monkeypatch, *probes):
    """Make `path` read as a file of official probes, `Network`s, also where there is no PyTorch; returns it as text."""
    states = [{f"module.{key}": value for key, value in inference.to_official(probe.module, probe.params).items()} for probe in probes]
    path.write_bytes(b"weights of the official code")
    monkeypatch.setattr(official, "read_torch", lambda _: {"classifiers": states, "epoch": 20})
    monkeypatch.setattr(official, "to_numpy", np.asarray)
    return str(path)


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


def refused(path, message, tmp_path, capsys, *flags):
    """Convert must exit with 1, say `message`, and leave nothing."""
    before = sorted(tmp_path.iterdir())
    assert convert.main([str(path), str(tmp_path / "out"), *flags]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert re.search(message, error), error
    assert sorted(tmp_path.iterdir()) == before
