"""Many probes trained at once: each as if alone, its schedules, its memory, and the numbers by which it is judged."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from compiling import fast_jit
from configs.probe import get_config
from jepa_jax.evals import classification
from jepa_jax.models import AttentiveProbe
from jepa_jax.tasks import anticipate
from jepa_jax.tasks import probe as task
from jepa_jax.tasks import sweep
from parity.files import load
from test_probe_task import CLASSES, make_config


def test_every_probe_is_trained_as_if_it_were_alone():
    module = AttentiveProbe(12, 2, 2, outputs=(("label", CLASSES),))
    config = make_config("none", "none", start_lr=0.02, warmup_steps=2, total_steps=6)
    settings = sweep.make_sweep(config.optim)
    names = [f"probe_{i}" for i in range(len(settings))]
    rng = np.random.default_rng(0)
    tokens, labels = rng.normal(size=(6, 4, 5, 12)).astype(np.float32), rng.integers(CLASSES, size=(6, 4))
    initial = {name: module.init(jax.random.key(i), tokens[0])["params"] for i, name in enumerate(names)}
    optimizer, schedules = sweep.make_optimizer(config.optim), sweep.make_schedules(config.optim, settings)

    def cross_entropy(logits, labels):
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(-1)

    @fast_jit
    def together(params, state, tokens, labels, k):
        loss, grads = jax.value_and_grad(lambda p: cross_entropy(task.score(module, p, tokens), labels[None]).sum())(params)
        updates, state = optimizer.update(grads, state, params, learning_rate=schedules.learning_rate(k), weight_decay=schedules.weight_decay(k))
        return optax.apply_updates(params, updates), state

    params, state = initial, optimizer.init(initial)
    for k in range(6):
        params, state = together(params, state, tokens[k], labels[k], k + 1)
    for number in (0, 3):
        rates = jnp.stack([schedules.learning_rate(k + 1)[number] for k in range(6)])
        reference = optax.adamw(lambda count: rates[count], weight_decay=settings[number]["weight_decay"])
        alone = initial[names[number]]
        state = reference.init(alone)
        step = fast_jit(lambda p, s, x, y: _alone(module, reference, cross_entropy, p, s, x, y))
        for k in range(6):
            alone, state = step(alone, state, tokens[k], labels[k])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), alone, params[names[number]])


def _alone(module, optimizer, loss, params, state, tokens, labels):
    grads = jax.grad(lambda p: loss(module.apply({"params": p}, tokens)["label"], labels))(params)
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state


def test_schedules_of_a_sweep_are_those_of_the_golden_arrays(golden):
    arrays, config = load(golden, "schedules")
    for number in (0, 1):
        s = config[f"probe_{number}"]
        section = make_config("none", "none", lr=(s["mc_ref_lr"],), weight_decay=(s["mc_final_wd"],), start_lr=s["mc_start_lr"],
                              final_lr=s["mc_final_lr"], warmup_steps=s["mc_warmup_steps"], total_steps=s["T_max"]).optim
        rate = sweep.make_schedules(section, sweep.make_sweep(section)).learning_rate
        expected = arrays[f"out/probe_lr_{number}"][: s["T_max"]]
        np.testing.assert_allclose([rate(k + 1)[0] for k in range(0, s["T_max"], 7)], expected[::7], rtol=1e-4, atol=1e-9)


def test_metrics_are_those_of_the_golden_arrays(golden):
    arrays, _ = load(golden, "metrics")
    logits = arrays["in/logits"].reshape(-1, arrays["in/logits"].shape[-1])
    labels = arrays["in/labels"].reshape(-1).astype(np.int64)
    for k in (1, 5):
        np.testing.assert_allclose(100 * np.nanmean(classification.class_recall(logits, labels, k)), arrays[f"out/recall{k}_all"][-1], rtol=1e-5)
        np.testing.assert_allclose(100 * (classification.ranks(logits, labels) < k).mean(), arrays[f"out/accuracy{k}_all"][-1], rtol=1e-5)
    views = np.asarray(jax.nn.softmax(arrays["in/view_logits"])).mean(0)
    np.testing.assert_allclose(views, arrays["out/view_prob"], rtol=1e-5)
    hits = classification.ranks(views, arrays["in/labels"][0].astype(np.int64)) < 1
    np.testing.assert_allclose(100 * hits.mean(), arrays["out/view_top1"], rtol=1e-5)


def test_what_is_no_number_is_no_right_answer():
    probabilities = np.array([[np.nan] * 3, [0.5, 0.3, 0.2], [0.2, 0.2, 0.6]], np.float32)
    assert classification.ranks(probabilities, np.array([2, 0, 1])).tolist() == [3, 0, 2]
    judged = classification.Judged(probabilities[None], np.array([2, 0, 1]), np.arange(3), [])
    (row,) = classification.summarize(judged, [{}])["probes"]
    assert row["not_finite"] == 1 and row["top1"] == pytest.approx(33.33)
    assert anticipate._among_first(jnp.full((1, 6), jnp.nan), jnp.array([0])) == 0


def test_probes_one_by_one_are_those_at_once():
    module = AttentiveProbe(12, 2, 2, outputs=(("label", CLASSES),))
    tokens = jax.random.normal(jax.random.key(0), (2, 5, 12))
    params = task.init_probes(module, ["probe_0", "probe_1"], jax.random.key(1))
    np.testing.assert_allclose(task.score(module, params, tokens, at_once=False), task.score(module, params, tokens), atol=1e-6)


def test_probes_one_by_one_take_the_memory_of_one():
    module, count = AttentiveProbe(12, 2, 2, outputs=(("label", CLASSES),)), 8
    params = task.init_probes(module, [f"probe_{number}" for number in range(count)], jax.random.key(1))
    one, all_ = (jax.jit(functools.partial(task.score, module, at_once=at_once)).lower(params, jnp.zeros((2, 256, 12))).compile()
                 .memory_analysis().temp_size_in_bytes for at_once in (False, True))
    assert one < all_ / (count / 2)


def test_epochs_become_steps():
    section = get_config("imagenet").optim
    sweep.settle_lengths(section, 126_000, 1024)
    assert (section.total_steps, section.warmup_steps) == (20 * 123, 5 * 123)
    with pytest.raises(ValueError, match="only 200 samples, so that no batch is full"):
        sweep.settle_lengths(get_config("ssv2").optim, 200, 256)
    section.total_steps = 600
    with pytest.raises(ValueError, match="warmup_steps is 615 of optim.total_steps 600"):
        sweep.settle_lengths(section, 126_000, 1024)


def test_confusion_counts_what_is_taken_for_what():
    probabilities = np.array([[0.9, 0.1, 0.0], [0.2, 0.5, 0.3], [0.4, 0.35, 0.25]], np.float32)
    labels = np.array([0, 2, 2])
    assert classification.confusion(probabilities, labels).tolist() == [[1, 0, 0], [0, 0, 0], [1, 1, 0]]
    assert classification.worst(probabilities, labels, 5).tolist() == [1, 2]
    assert np.isnan(classification.class_recall(probabilities, labels)[1])


def test_where_a_probe_looks_is_the_softmax_of_its_query():
    probe = AttentiveProbe(8, 1, 1, outputs=(("label", CLASSES),))
    tokens = jax.random.normal(jax.random.key(0), (2, 5, 8))
    params = jax.tree.map(lambda leaf: 3 * leaf, probe.init(jax.random.key(1), tokens)["params"])
    cross = params["cross"]
    normal = (tokens - tokens.mean(-1, keepdims=True)) / np.sqrt(tokens.var(-1, keepdims=True) + probe.norm_eps)
    keys = (normal * cross["norm1"]["scale"] + cross["norm1"]["bias"]) @ cross["kv"]["kernel"][:, :8] + cross["kv"]["bias"][:8]
    query = params["query_tokens"][0] @ cross["q"]["kernel"] + cross["q"]["bias"]
    expected = jax.nn.softmax(keys @ query / np.sqrt(8))
    np.testing.assert_allclose(probe.apply({"params": params}, tokens, method="weigh")[:, 0], expected, rtol=1e-4)
