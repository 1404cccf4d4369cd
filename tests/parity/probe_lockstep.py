"""Ten optimiser steps of probes beside programs that know formulas and official weights only.

The formulas stand here once, for arrays of JAX and of PyTorch. In JAX, AdamW is written out too, so that expected losses
come from any golden set in float64 without PyTorch; where that is installed, its own AdamW and gradients say the same.

Source: evals/video_classification_frozen/eval.py, src/models/attentive_pooler.py.
"""

import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compiling import fast_jit
from configs.probe import get_config
from jepa_jax.models import convert
from jepa_jax.tasks import probe as task
from jepa_jax.tasks import sweep
from jepa_jax.tasks.step import make_train_step
from jepa_jax.training.state import create_state
from parity.files import load, subtree
from parity.probes import build_probe
from peers import need

FILES = ("attentive_classifier_d1", "attentive_classifier_d4")
STEPS = 10
RATES, DECAYS = (5e-3, 1e-3), (0.01, 0.8)  # the largest and a middle rate, the smallest and the largest decay of the official sweep
_JAX = SimpleNamespace(einsum=jnp.einsum, softmax=jax.nn.softmax, log_softmax=jax.nn.log_softmax, erf=jax.scipy.special.erf)


def _loss(p, tokens, wanted, config, ops):
    """Mean cross-entropy of a classifier with official parameters `p` against one-hot rows `wanted`, by functions of `ops`."""
    def linear(name, x):
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    def norm(name, x):
        x = x - x.mean(-1)[..., None]
        return x / ((x * x).mean(-1)[..., None] + config["norm_eps"]) ** 0.5 * p[f"{name}.weight"] + p[f"{name}.bias"]

    def mlp(name, x):
        hidden = linear(f"{name}.fc1", x)
        return linear(f"{name}.fc2", 0.5 * hidden * (1 + ops.erf(hidden / 2**0.5)))

    def attend(query, key, value):
        query, key, value = (a.reshape(*a.shape[:2], config["num_heads"], -1) for a in (query, key, value))
        scores = ops.einsum("bqhd,bkhd->bhqk", query, key) / query.shape[-1] ** 0.5
        mixed = ops.einsum("bhqk,bkhd->bqhd", ops.softmax(scores, -1), value)
        return mixed.reshape(*mixed.shape[:2], -1)

    x, width = tokens, tokens.shape[-1]
    for block in (f"pooler.blocks.{i}" for i in range(config["depth"] - 1)):
        qkv = linear(f"{block}.attn.qkv", norm(f"{block}.norm1", x))
        x = x + linear(f"{block}.attn.proj", attend(*(qkv[..., i * width : (i + 1) * width] for i in range(3))))
        x = x + mlp(f"{block}.mlp", norm(f"{block}.norm2", x))
    block = "pooler.cross_attention_block"
    query = p["pooler.query_tokens"] + 0 * x[:, :1]
    kv = linear(f"{block}.xattn.kv", norm(f"{block}.norm1", x))
    query = query + attend(linear(f"{block}.xattn.q", query), kv[..., :width], kv[..., width:])
    query = query + mlp(f"{block}.mlp", norm(f"{block}.norm2", query))
    chances = ops.log_softmax(linear("linear", query[:, 0]), -1)
    return -(chances * wanted).sum(-1).mean()


def _rate(rate, k):
    """Half a cosine from `rate` to 0 at the last step; the first step, k = 1, is lower already."""
    return rate * 0.5 * (1 + math.cos(math.pi * k / STEPS))


def _losses_by_formula(state, batches, config, rate, decay):
    """Losses of all steps in float64, by JAX gradients and AdamW as its paper has it: everything decays."""
    gradient = fast_jit(jax.value_and_grad(lambda p, x, y: _loss(p, x, y, config, _JAX)))
    p, m, v = state, jax.tree.map(np.zeros_like, state), jax.tree.map(np.zeros_like, state)
    losses = []
    for k, (tokens, labels) in enumerate(batches, start=1):
        loss, grads = jax.device_get(gradient(p, tokens, np.eye(config["num_classes"])[labels]))
        m = {name: 0.9 * m[name] + 0.1 * g for name, g in grads.items()}
        v = {name: 0.999 * v[name] + 0.001 * g**2 for name, g in grads.items()}
        step = {name: m[name] / (1 - 0.9**k) / (np.sqrt(v[name] / (1 - 0.999**k)) + 1e-8) for name in p}
        p = {name: value - _rate(rate, k) * (step[name] + decay * value) for name, value in p.items()}
        losses.append(loss)
    return losses


def _losses_of_torch(state, batches, config, rate, decay):
    """Losses of all steps in float32, by PyTorch."""
    import torch

    ops = SimpleNamespace(einsum=torch.einsum, softmax=torch.softmax, log_softmax=torch.log_softmax, erf=torch.erf)
    p = {name: torch.tensor(np.float32(value), requires_grad=True) for name, value in state.items()}
    optimizer = torch.optim.AdamW(p.values(), lr=rate, weight_decay=decay)
    losses = []
    for k, (tokens, labels) in enumerate(batches, start=1):
        optimizer.param_groups[0]["lr"] = _rate(rate, k)
        optimizer.zero_grad()
        loss = _loss(p, torch.tensor(np.float32(tokens)), torch.eye(config["num_classes"])[labels], config, ops)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def _our_losses(state, batches, config):
    """Losses `[steps, probes]` in float32, as users get them: all probes in one program."""
    section = get_config("demo").optim
    section.update({"lr": RATES, "weight_decay": DECAYS, "total_steps": STEPS, "warmup_steps": 0, "start_lr": None})
    settings = sweep.make_sweep(section)
    names = [f"probe_{number}" for number in range(len(settings))]
    loss_fn = task.make_loss(build_probe(config), None, layers=(), mean=0.0, std=1.0, frames=1, monitor_tokens=8)
    optimizer = sweep.make_optimizer(section)
    step = fast_jit(make_train_step(loss_fn, optimizer, sweep.make_schedules(section, settings), accumulate=1, spike_factor=0))
    # Copies: a leaf may be given to a program once only.
    run = create_state({name: jax.tree.map(jnp.array, convert.probe_from_official(state)) for name in names}, {}, optimizer)
    losses = []
    for tokens, labels in batches:
        run, metrics, _ = step(run, {"tokens": np.float32(tokens), "label": labels})
        losses.append([metrics[f"train/loss/{name}"] for name in names])
    return np.array(losses)


def _features(arrays, config):
    """Ten batches of features and labels: those of the golden file with noise of their own size, and any class."""
    rng, tokens = np.random.default_rng(0), np.float64(arrays["in/x"])
    return [(tokens + tokens.std() * rng.normal(size=tokens.shape), rng.integers(config["num_classes"], size=len(tokens)))
            for _ in range(STEPS)]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("peer", ["formula", "torch"])
def test_ten_steps_of_probes(golden, name, peer):
    if peer == "torch":
        need("torch")
    arrays, config = load(golden, name)
    state, batches = subtree(arrays, "params/"), _features(arrays, config)
    losses_of = {"formula": _losses_by_formula, "torch": _losses_of_torch}[peer]
    with jax.enable_x64(True):
        double = {key: np.float64(value) for key, value in state.items()}
        expected = [losses_of(double, batches, config, rate, decay) for rate in RATES for decay in DECAYS]
    np.testing.assert_allclose(_our_losses(state, batches, config), np.transpose(expected), rtol=1e-4)
    # Rates and decays must show, or the comparison would not tell one setting from another.
    assert np.min(np.ptp(expected, axis=0)[1:]) > 1e-3
