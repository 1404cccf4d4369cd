"""The training step: sharding, accumulation, guard, groups, schedules, losses, monitors."""

import functools
from types import SimpleNamespace
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from compiling import fast_jit
from jepa_jax.models import MaskedPredictor, VideoEncoder, gather_tokens
from jepa_jax.tasks import pretrain
from jepa_jax.tasks.losses import latent_loss
from jepa_jax.tasks.step import make_train_step
from jepa_jax.training import monitors, optim, schedules, sharding
from jepa_jax.training.state import Guard, create_state, tensor_names

BATCH, FRAMES, SIDE = 8, 4, 16
GRID = (2, 4, 4)
STRATEGIES = ("a", "b")
# With the usual eps of 1e-8, rounding decides how Adam moves what has almost no gradient.
ADAM = SimpleNamespace(b1=0.9, b2=0.999, eps=1e-3)
# Wide enough that some tensors are split over devices and others are not.
ENCODER = VideoEncoder(width=64, depth=2, num_heads=4, patch_size=4, attention="xla")
PREDICTOR = MaskedPredictor(64, width=48, depth=1, num_heads=4, num_mask_tokens=3, attention="xla")


class Spec(NamedTuple):
    """The part of a group's data spec that the loss reads."""

    name: str
    frames: int


def _group(name, frames=FRAMES, weight=1.0):
    return pretrain.Group(Spec(name, frames), weight, (frames // 2, *GRID[1:]), None, STRATEGIES)


VIDEO = (_group("video"),)
MIXED = (_group("video", weight=3.0), _group("image", frames=2, weight=1.0))


def _schedules(lr=1e-2):
    return optim.make_schedules(
        schedule="warmup_cosine", lr=lr, start_lr=lr, final_lr=lr, weight_decay=0.04, final_weight_decay=0.04,
        ema=0.9, final_ema=0.9, total_steps=10, warmup_steps=0, anneal_steps=0, horizon_scale=1.25,
    )


def _loss(groups):
    return pretrain.make_loss(ENCODER, PREDICTOR, groups, loss_exponent=1.0, monitor_tokens=32)


def _optimizer(params, groups):
    return pretrain.make_optimizer(ADAM, params, len(groups))


def _batch(groups, seed=0):
    rng = np.random.default_rng(seed)
    batch = {}
    for group in groups:
        tokens = int(np.prod(group.grid))
        split = tokens // 2
        orders = [np.stack([rng.permutation(tokens) for _ in range(BATCH)]).astype(np.int32) for _ in STRATEGIES]
        frames = FRAMES if group.spec.name == "video" else 1
        batch[group.spec.name] = {
            "video": rng.integers(0, 256, (BATCH, frames, SIDE, SIDE, 3), np.uint8),
            "context_ids": tuple(np.sort(order[:, :split]) for order in orders),
            "target_ids": tuple(np.sort(order[:, split:-2]) for order in orders),
        }
    return batch


@functools.cache
def _step(groups, accumulate=1, spike_factor=0.0):
    return fast_jit(_plain_step(groups, accumulate, spike_factor))


def _plain_step(groups, accumulate=1, spike_factor=0.0):
    fields = {"accumulate": accumulate, "spike_factor": spike_factor, "target_key": "encoder"}
    return make_train_step(_loss(groups), _optimizer(_init().params, groups), _schedules(), **fields)


@functools.cache
def _init(groups=VIDEO):
    """State whose target network differs from the encoder."""
    params = fast_jit(lambda rng: pretrain.init_params(ENCODER, PREDICTOR, rng))(jax.random.key(0))
    # Larger than the official initialisation, so that updates are not lost in rounding.
    params = jax.tree.map(lambda x: x + 0.05 * np.random.default_rng(x.size).normal(size=x.shape).astype(np.float32), params)
    target = jax.tree.map(lambda x: 1.1 * x, params["encoder"])
    return create_state(params, target, _optimizer(params, groups))


@functools.cache
def _two_steps():
    """Reference: losses and state after two steps on one device."""
    state, losses = _init(), []
    for seed in range(2):
        state, metrics, _ = _step(VIDEO)(state, _batch(VIDEO, seed))
        losses.append(float(metrics["train/loss"]))
    return losses, jax.device_get(state)


def _assert_states_close(state, expected):
    chex.assert_trees_all_close(jax.device_get(state), jax.device_get(expected), atol=2e-5, rtol=1e-4)


# (devices along data, devices along fsdp)
@pytest.mark.parametrize("data, fsdp", [(4, 2), (8, 1), (1, 8)])
def test_sharded_step_equals_single_device_step(data, fsdp):
    losses, expected = _two_steps()
    mesh = sharding.make_mesh(fsdp)
    assert dict(mesh.shape) == {"data": data, "fsdp": fsdp, "sequence": 1}
    shardings = sharding.state_sharding(jax.eval_shape(lambda x: x, _init()), mesh)
    with sharding.use_mesh(mesh):
        step = fast_jit(_plain_step(VIDEO), out_shardings=(shardings, sharding.replicated(mesh), None))
        state = jax.device_put(_init(), shardings)
        for seed in range(2):
            state, metrics, _ = step(state, sharding.put_batch(_batch(VIDEO, seed), mesh))
            np.testing.assert_allclose(metrics["train/loss"], losses[seed], rtol=2e-5)
    _assert_states_close(state, expected)
    assert any(not x.sharding.is_fully_replicated for x in jax.tree.leaves(state)) == (fsdp > 1)


@pytest.mark.parametrize("fsdp", [2, 8])
def test_moments_and_targets_are_sharded_like_their_parameter(fsdp):
    state = jax.eval_shape(lambda x: x, _init())
    mesh = sharding.make_mesh(fsdp)
    shardings = sharding.state_sharding(state, mesh)
    by_name = dict(zip(tensor_names(state), jax.tree.leaves(shardings)))
    params = dict(zip(tensor_names(state.params), jax.tree.leaves(shardings.params)))
    assert any(s.spec for s in params.values()) and not all(s.spec for s in params.values())
    for name, own in params.items():
        same = [other for key, other in by_name.items() if key.startswith("opt_state") and key.endswith("/" + name)]
        assert len(same) == 2, name
        assert all(other == own for other in same), name
        if name.startswith("encoder/"):
            assert by_name["target_params/" + name.removeprefix("encoder/")] == own
        # The scan walks the depth axis, so it is never split.
        if "layers" in name.split("/") and own.spec:
            assert own.spec[0] is None
    roots = {name.split("/")[0] for name, own in by_name.items() if own.spec}
    assert roots == {"params", "target_params", "opt_state"}


def test_accumulation_in_two_parts_equals_one():
    state, metrics, samples = _step(VIDEO, accumulate=2)(_init(), _batch(VIDEO))
    expected, one, _ = _step(VIDEO)(_init(), _batch(VIDEO))
    np.testing.assert_allclose(metrics["train/loss"], one["train/loss"], rtol=1e-5)
    np.testing.assert_allclose(metrics["optim/grad_norm_encoder"], one["optim/grad_norm_encoder"], rtol=1e-4)
    _assert_states_close(state, jax.device_get(expected))
    assert samples["targets"].shape[-1] == 64 and samples["targets"].shape == samples["predictions"].shape


def test_steps_compile_once():
    traces = []
    step = _plain_step(VIDEO, spike_factor=2.0)

    @fast_jit
    def counted(state, batch):
        traces.append(1)
        return step(state, batch)

    state = _init()
    for seed in range(3):
        state, _, _ = counted(state, _batch(VIDEO, seed))
    assert len(traces) == 1 and int(state.step) == 3


def test_update_is_adam_then_ema_of_the_new_encoder():
    before, (after, metrics, _) = _init(), _step(VIDEO)(_init(), _batch(VIDEO))
    expected = jax.tree.map(lambda t, p: 0.9 * t + 0.1 * p, before.target_params, after.params["encoder"])
    chex.assert_trees_all_close(after.target_params, expected, atol=1e-6)
    np.testing.assert_allclose(metrics["ema/momentum"], 0.9, rtol=1e-6)
    # The first Adam step is lr times g / (|g| + eps), plus decay for kernels only.
    grads = fast_jit(jax.grad(lambda p: _loss(VIDEO)(p, before.target_params, _batch(VIDEO))[0]))(before.params)
    for path, factor in ((("norm", "bias"), 0.0), (("patch_embed", "kernel"), 1.0)):
        old, new, grad = (tree["encoder"][path[0]][path[1]] for tree in (before.params, after.params, grads))
        direction = grad / (np.abs(grad) + ADAM.eps)
        np.testing.assert_allclose(new, old - 1e-2 * (direction + 0.04 * factor * old), atol=1e-5)


def test_unused_mask_tokens_stay_as_they_are():
    before, (after, _, _) = _init(), _step(VIDEO)(_init(), _batch(VIDEO))
    old, new = before.params["predictor"]["mask_tokens"], after.params["predictor"]["mask_tokens"]
    np.testing.assert_array_equal(new[1:], old[1:])
    assert not np.allclose(new[0], old[0])


def test_targets_receive_no_gradient():
    state = _init()
    grads = fast_jit(jax.grad(lambda t: _loss(VIDEO)(state.params, t, _batch(VIDEO))[0]))(state.target_params)
    assert not any(np.any(x) for x in jax.tree.leaves(grads))


def _assert_skipped(state, after, metrics):
    chex.assert_trees_all_equal(after.params, state.params)
    chex.assert_trees_all_equal(after.target_params, state.target_params)
    chex.assert_trees_all_equal(after.opt_state, state.opt_state)
    assert int(after.step) == int(state.step) + 1
    assert int(after.guard.skipped) == int(metrics["guard/skipped"]) == 1
    assert not metrics["guard/applied"]


def test_non_finite_update_is_skipped_and_named():
    state = _init()
    names = optim.checked_names(tensor_names(state.params))
    broken = jax.tree.map(lambda x: x, state.params)
    broken["predictor"]["proj"]["bias"] = broken["predictor"]["proj"]["bias"].at[3].set(jnp.nan)
    state = state.replace(params=broken)
    after, metrics, _ = _step(VIDEO)(state, _batch(VIDEO))
    _assert_skipped(state, after, metrics)
    assert names[int(metrics["guard/first_bad"]) - 1] == "parameter predictor/proj/bias"


def test_first_bad_tensor_is_named():
    params = {"a": jnp.ones(2), "b": {"c": jnp.ones(3), "d": jnp.ones(())}}
    names = optim.checked_names(tensor_names(params))
    guard = Guard(jnp.zeros((), jnp.int32), jnp.zeros(()))
    for loss, grads, expected in (
        (1.0, params, None),
        (jnp.nan, params, "loss"),
        (1.0, params | {"a": jnp.array([1.0, jnp.inf])}, "gradient a"),
        (1.0, {"a": jnp.ones(2), "b": {"c": jnp.array([1.0, jnp.nan, 1.0]), "d": jnp.array(jnp.nan)}}, "gradient b/c"),
    ):
        apply, after, metrics = optim.check_update(guard, params, jnp.asarray(loss), grads, 0.0)
        assert bool(apply) == (expected is None)
        assert int(after.skipped) == (expected is not None)
        first = int(metrics["guard/first_bad"])
        assert (names[first - 1] if first else None) == expected


def test_spike_is_skipped_only_above_the_factor():
    grads = {"a": jnp.array([3.0, 4.0])}
    guard = Guard(jnp.zeros((), jnp.int32), jnp.zeros(()))
    # There is no average before the first accepted update.
    apply, guard, _ = optim.check_update(guard, grads, jnp.ones(()), jax.tree.map(lambda g: 2 * g, grads), 1.5)
    assert apply and np.isclose(guard.grad_norm, 10)
    apply, after, metrics = optim.check_update(guard, grads, jnp.ones(()), jax.tree.map(lambda g: 4 * g, grads), 1.5)
    assert not apply and metrics["guard/spike"] and int(metrics["guard/first_bad"]) == 0
    assert np.isclose(after.grad_norm, 10) and int(after.skipped) == 1
    apply, after, metrics = optim.check_update(guard, grads, jnp.ones(()), jax.tree.map(lambda g: 2.9 * g, grads), 1.5)
    assert apply and not metrics["guard/spike"] and np.isclose(after.grad_norm, 0.98 * 10 + 0.02 * 14.5)
    assert optim.check_update(guard, grads, jnp.ones(()), jax.tree.map(lambda g: 100 * g, grads), 0.0)[0]


def test_spike_leaves_the_state_alone():
    state = _init()
    state = state.replace(guard=state.guard.replace(grad_norm=jnp.float32(1e-6)))
    after, metrics, _ = _step(VIDEO, spike_factor=2.0)(state, _batch(VIDEO))
    _assert_skipped(state, after, metrics)
    assert metrics["guard/spike"]


def test_groups_are_weighted_means_over_their_strategies():
    """Video and images in one step; an image is a clip of equal frames, with its own mask token."""
    state, batch = _init(), _batch(MIXED)
    total, aux = fast_jit(_loss(MIXED))(state.params, state.target_params, batch)
    losses = aux["losses"]
    assert set(losses) == {f"train/loss/{group}/{mask}" for group in ("video", "image") for mask in STRATEGIES}
    mean = lambda group: np.mean([losses[f"train/loss/{group}/{mask}"] for mask in STRATEGIES])
    np.testing.assert_allclose(total, 0.75 * mean("video") + 0.25 * mean("image"), rtol=1e-5)
    repeated = batch | {"image": batch["image"] | {"video": np.repeat(batch["image"]["video"], 2, axis=1)}}
    again, _ = fast_jit(_loss(MIXED))(state.params, state.target_params, repeated)
    np.testing.assert_allclose(again, total, rtol=1e-6)
    grads = fast_jit(jax.grad(lambda p: _loss(MIXED)(p, state.target_params, batch)[0]))(state.params)
    used = np.abs(grads["predictor"]["mask_tokens"]).sum(axis=1) > 0
    assert used.tolist() == [True, True, False]


def test_loss_of_a_group_is_the_official_expression():
    state, batch = _init(), _batch(VIDEO)

    @fast_jit
    def by_hand(params, target_params, rows):
        video = (rows["video"] / 255.0 - jnp.array([0.485, 0.456, 0.406])) / jnp.array([0.229, 0.224, 0.225])
        latents = ENCODER.apply({"params": target_params}, video)
        latents = (latents - latents.mean(-1, keepdims=True)) / jnp.sqrt(latents.var(-1, keepdims=True) + 1e-5)
        losses = []
        for context_ids, target_ids in zip(rows["context_ids"], rows["target_ids"]):
            context = ENCODER.apply({"params": params["encoder"]}, video, context_ids)
            z = PREDICTOR.apply({"params": params["predictor"]}, context, context_ids, target_ids, GRID, 0)
            losses.append(jnp.abs(z - gather_tokens(latents, target_ids)).mean())
        return sum(losses) / len(losses)

    total, _ = fast_jit(_loss(VIDEO))(state.params, state.target_params, batch)
    np.testing.assert_allclose(total, by_hand(state.params, state.target_params, batch["video"]), rtol=1e-5)


def test_latent_loss_takes_levels_and_token_weights():
    rng = np.random.default_rng(0)
    z, h = (jnp.asarray(rng.normal(size=(3, 2, 5, 4)), jnp.float32) for _ in range(2))
    distance = np.abs(z - h)
    np.testing.assert_allclose(latent_loss(z, h), distance.mean(), rtol=1e-6)
    np.testing.assert_allclose(latent_loss(z, h, exponent=2.0), (distance**2).mean() / 2, rtol=1e-6)
    weights = jnp.asarray(rng.uniform(size=(2, 5)), jnp.float32)
    expected = (distance.mean(-1) * weights).sum() / (3 * weights.sum())
    np.testing.assert_allclose(latent_loss(z, h, weights=weights), expected, rtol=1e-5)
    np.testing.assert_allclose(latent_loss(z, h, weights=jnp.ones((2, 5))), latent_loss(z, h), rtol=1e-6)
    halves = latent_loss(z.astype(jnp.bfloat16), h.astype(jnp.bfloat16))
    assert halves.dtype == jnp.float32


def test_schedule_oracles():
    """Values of the released recipes."""
    primary = functools.partial(
        schedules.warmup_cosine, start=1e-4, ref=5.25e-4, final=5.25e-4, warmup_steps=12000, horizon=300000)
    for k, value in ((1, 1.000354e-4), (6000, 3.125e-4), (12000, 5.25e-4), (240000, 5.25e-4), (400000, 5.25e-4)):
        np.testing.assert_allclose(primary(k), value, rtol=1e-6)
    cooldown = functools.partial(schedules.linear, ref=5.25e-4, final=1e-6)
    np.testing.assert_allclose(cooldown(1, horizon=15000), 5.24965e-4, rtol=1e-6)
    np.testing.assert_allclose(cooldown(12000, horizon=15000), 1.058e-4, rtol=1e-6)
    np.testing.assert_allclose(cooldown(12000, horizon=12000), 1e-6, rtol=1e-6)
    stable = functools.partial(
        schedules.warmup_stable_decay, start=7.5e-5, ref=4.25e-4, final=0.0, warmup_steps=4500, anneal_steps=4500,
        horizon=94500)
    for k, value in ((1, 7.50778e-5), (4500, 4.25e-4), (90000, 4.25e-4), (92250, 2.125e-4), (94500, 0.0)):
        np.testing.assert_allclose(stable(k), value, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(schedules.cosine(5000, ref=0.04, final=0.04, horizon=300000), 0.04, rtol=1e-6)
    rate = schedules.ema_rate(1, start=0.99925, end=0.99925, horizon=300000)
    np.testing.assert_allclose(rate, 0.00075, rtol=1e-6)


def test_schedules_of_a_run_at_its_ends():
    run = optim.make_schedules(
        schedule="warmup_cosine", lr=1e-3, start_lr=1e-4, final_lr=1e-5, weight_decay=0.04, final_weight_decay=0.4,
        ema=0.99, final_ema=1.0, total_steps=80, warmup_steps=10, anneal_steps=0, horizon_scale=1.25,
    )
    np.testing.assert_allclose(run.learning_rate(10), 1e-3, rtol=1e-6)
    np.testing.assert_allclose(run.learning_rate(100), 1e-5, rtol=1e-6)
    assert run.learning_rate(80) > 1e-4  # the end lies beyond the run
    np.testing.assert_allclose(run.weight_decay(100), 0.4, rtol=1e-6)
    np.testing.assert_allclose(run.ema_rate(1), 0.01, rtol=1e-6)
    np.testing.assert_allclose(run.ema_rate(101), 0.0, atol=1e-9)


@pytest.mark.parametrize("fields, message", [
    (dict(schedule="cosin"), "optim.schedule 'cosin' is unknown; choose one of"),
    (dict(total_steps=0), "total_steps >= 1"),
    (dict(warmup_steps=-1), "warmup_steps >= 0"),
    (dict(horizon_scale=0.5), "horizon_scale >= 1"),
])
def test_impossible_schedules(fields, message):
    settings = dict(
        schedule="linear", lr=1e-3, start_lr=0.0, final_lr=0.0, weight_decay=0.0, final_weight_decay=0.0, ema=0.99,
        final_ema=1.0, total_steps=10, warmup_steps=0, anneal_steps=0, horizon_scale=1.0,
    )
    with pytest.raises(ValueError, match=message):
        optim.make_schedules(**(settings | fields))


def test_adamw_equals_optax():
    params = {"a": {"kernel": jnp.arange(6.0).reshape(2, 3), "bias": jnp.ones(3)}, "norm": {"scale": jnp.ones(3)}}
    factors = optim.decay_factors(params)
    assert factors == {"a": {"kernel": 1.0, "bias": 0.0}, "norm": {"scale": 0.0}}
    ours = optim.make_adamw(b1=0.9, b2=0.99, eps=1e-8, decay_factors=factors)
    mask = jax.tree.map(bool, factors)
    theirs = optax.adamw(1e-2, b1=0.9, b2=0.99, eps=1e-8, weight_decay=0.1, mask=mask)
    states = ours.init(params), theirs.init(params)
    for i in range(3):
        grads = jax.tree.map(lambda x: jnp.cos(x + i), params)
        mine, first = ours.update(grads, states[0], params, learning_rate=1e-2, weight_decay=0.1)
        other, second = theirs.update(grads, states[1], params)
        chex.assert_trees_all_close(mine, other, rtol=1e-5, atol=1e-8)
        params, states = optax.apply_updates(params, mine), (first, second)


def test_effective_rank_of_known_matrices():
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(64, 16)))[0]
    np.testing.assert_allclose(monitors.effective_rank(jnp.asarray(basis, jnp.float32)), 16, rtol=1e-3)
    flat = np.outer(basis[:, 0], np.ones(16))
    np.testing.assert_allclose(monitors.effective_rank(jnp.asarray(flat, jnp.float32)), 1, rtol=1e-3)
    # Shares 1/2, 1/4, 1/4: entropy 1.5 ln 2.
    mixed = basis[:, :3] * [2.0, 1.0, 1.0]
    np.testing.assert_allclose(monitors.effective_rank(jnp.asarray(mixed, jnp.float32)), 2**1.5, rtol=1e-3)


def test_collapse_metrics_of_known_samples():
    targets = jnp.array([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    metrics = monitors.collapse_metrics(targets, -2 * targets)
    expected = {"target_std": 0.5, "target_std_min": 0, "target_rank": 1, "prediction_std": 1, "prediction_rank": 1,
                "cosine": -1}
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[f"collapse/{name}"], value, atol=1e-5, err_msg=name)
    constant = monitors.collapse_metrics(jnp.ones((4, 2)), jnp.zeros((4, 2)))
    chex.assert_tree_all_finite(constant)
    assert constant["collapse/target_std"] == 0 and constant["collapse/cosine"] == 0
