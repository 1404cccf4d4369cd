"""Ten steps of action-conditioned training beside the official loop; see `lockstep` about precision."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compiling import fast_jit
from jepa_jax.models import convert
from jepa_jax.robots.presets import DROID
from jepa_jax.robots.world import WorldModel
from jepa_jax.tasks import world_model
from jepa_jax.tasks.step import make_train_step
from jepa_jax.training import optim
from jepa_jax.training.state import create_state
from parity.action_predictor import build_action_predictor
from parity.files import load, subtree
from parity.lockstep import check_run

FILES = ("ac_lockstep_auto2", "ac_lockstep_auto3")


def _rollout(config, **fields):
    options = {"detach": False, "integrate_states": False, "reduce": "mean", "cached": True}
    return SimpleNamespace(**({"auto_steps": config["auto_steps"]} | options | fields))


def _build(arrays, config, dtype, **rollout):
    """Return (loss_fn, optimizer, schedules, initial state)."""
    side = config["crop_size"] // config["patch_size"]
    sizes = {"predictor_embed_dim": config["predictor_embed_dim"], "img_size": [config["crop_size"]] * 2}
    predictor = build_action_predictor(
        config | sizes | {"num_frames": config["frames"]}, attention="xla", dtype=dtype, param_dtype=dtype,
        residual_dtype=dtype,
    )
    assert predictor.grid == (side, side)
    loss_fn = world_model.make_loss(
        WorldModel(predictor, DROID), _rollout(config, **rollout), frames_at_once=8, loss_exponent=config["loss_exp"],
        monitor_tokens=64,
    )
    params = {"action_predictor": convert.action_predictor_from_official(subtree(arrays, "params/"))}
    adam = SimpleNamespace(b1=config["betas"][0], b2=config["betas"][1], eps=config["eps"])
    optimizer = world_model.make_optimizer(adam, params, config["use_extrinsics"])
    params = jax.tree.map(lambda x: jnp.asarray(x, dtype), params)
    return loss_fn, optimizer, _schedules(config["optimization"]), create_state(params, {}, optimizer)


def _schedules(section):
    return optim.make_schedules(
        schedule="warmup_stable_decay", lr=section["lr"], start_lr=section["start_lr"], final_lr=section["final_lr"],
        weight_decay=section["weight_decay"], final_weight_decay=section["final_weight_decay"], ema=1.0, final_ema=1.0,
        total_steps=section["ipe"] * section["epochs"], warmup_steps=int(section["warmup"] * section["ipe"]),
        anneal_steps=int(section["anneal"] * section["ipe"]), horizon_scale=1.0,
    )


def _batch(arrays, config, step, dtype):
    latents = arrays["in/h"][step]
    batch = {"latents": latents.reshape(len(latents), config["frames"], -1, latents.shape[-1])}
    names = ("actions", "states", "extrinsics")[: 2 + config["use_extrinsics"]]
    batch |= {name: arrays[f"in/{name}"][step] for name in names}
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), batch)


def _run(arrays, config, dtype, **rollout):
    """Return (metrics of every step, final parameters under official names)."""
    loss_fn, optimizer, schedules, state = _build(arrays, config, dtype, **rollout)
    step = fast_jit(make_train_step(loss_fn, optimizer, schedules, accumulate=1, spike_factor=0))
    history = []
    for number in range(config["steps"]):
        state, metrics, _ = step(state, _batch(arrays, config, number, dtype), {})
        history.append(jax.device_get(metrics))
    metrics = {name: np.array([entry[name] for entry in history]) for name in history[0]}
    return metrics, convert.action_predictor_to_official(state.params["action_predictor"])


def _check(arrays, config, metrics, final):
    check_run(arrays, config, metrics, final)
    for official, ours in {"jloss": "train/loss/teacher_forcing", "sloss": "train/loss/rollout"}.items():
        np.testing.assert_allclose(metrics[ours], arrays[f"out/{official}"], atol=2e-5, err_msg=ours)


@pytest.mark.parametrize("cached", [True, False], ids=["cached", "recomputed"])
@pytest.mark.parametrize("name", FILES)
class TestWorldModelLockstep:
    def test_ten_steps(self, golden, name, cached):
        arrays, config = load(golden, name)
        metrics, final = _run(arrays, config, jnp.float32, cached=cached)
        _check(arrays, config, metrics, final)
        norms = np.ravel(arrays["out/grad_norm"])
        errors = np.abs(metrics["optim/grad_norm_action_predictor"] / norms - 1)
        assert np.mean(errors < 1e-4) >= 0.7 and errors.max() < 1e-2, errors


@pytest.mark.parametrize("name", FILES)
def test_world_model_in_float64(golden, name):
    arrays, config = load(golden, name)
    with jax.enable_x64(True):
        metrics, final = _run(arrays, config, jnp.float64)
    _check(arrays, config, metrics, final)
    np.testing.assert_allclose(metrics["train/loss"], arrays["out/loss64"], rtol=1e-6)
    np.testing.assert_allclose(metrics["optim/grad_norm_action_predictor"], np.ravel(arrays["out/grad_norm"]), rtol=1e-4)


@pytest.mark.parametrize("name", FILES)
def test_gradients_of_the_first_world_model_step(golden, name):
    arrays, config = load(golden, name)
    loss_fn, _, _, state = _build(arrays, config, jnp.float32)
    batch = _batch(arrays, config, 0, jnp.float32)
    grads = fast_jit(jax.grad(lambda params: loss_fn(params, {}, batch)[0]))(state.params)
    expected = subtree(arrays, "out/grad_step0/")
    for key, value in convert.action_predictor_to_official(grads["action_predictor"]).items():
        if key in expected:
            np.testing.assert_allclose(value, expected[key], atol=1e-6, rtol=1e-3, err_msg=key)
        else:
            assert key in config["params_without_gradient"] and not np.any(value), key


def test_gradient_of_a_detached_rollout_differs(golden):
    arrays, config = load(golden, FILES[1])
    batch = _batch(arrays, config, 0, jnp.float32)
    losses, norms = [], []
    for detach in (False, True):
        loss_fn, _, _, state = _build(arrays, config, jnp.float32, detach=detach)
        loss, grads = fast_jit(jax.value_and_grad(lambda params: loss_fn(params, {}, batch)[0]))(state.params)
        losses.append(float(loss))
        norms.append(float(optim.optax.global_norm(grads)))
    assert losses[0] == pytest.approx(losses[1], abs=1e-6) and abs(norms[0] / norms[1] - 1) > 1e-3
