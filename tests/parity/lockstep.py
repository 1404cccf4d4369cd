"""Ten optimiser steps beside the official loop.

The float64 run shows that the mathematics is the same: everything agrees strictly. The
float32 run is what users get. The gradient of an L1 loss jumps where a prediction crosses
its target, so a rounding difference of 1e-7 can flip the sign of a few of its hundred
thousand terms and change a gradient norm by about 1e-3 at single steps, and no more.
"""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compiling import fast_jit
from jepa_jax.models import MaskedPredictor, VideoEncoder, convert
from jepa_jax.tasks import pretrain
from jepa_jax.tasks.step import make_train_step
from jepa_jax.training import optim
from jepa_jax.training.state import create_state
from parity.files import load, subtree

FILES = ("pretrain_lockstep", "pretrain_lockstep_multi")


def _build(arrays, config, dtype):
    """Return (encoder, loss_fn, optimizer, schedules, initial state)."""
    fields = dict(
        positions="rope" if config["use_rope"] else "sincos", norm_eps=config["norm_eps"], attention="xla",
        dtype=dtype, param_dtype=dtype, residual_dtype=dtype,
    )
    size, small = config["encoder"], config["predictor"]
    encoder = VideoEncoder(size["embed_dim"], size["depth"], size["num_heads"], size["mlp_ratio"],
                           patch_size=config["patch_size"], **fields)
    predictor = MaskedPredictor(encoder.width, small["predictor_embed_dim"], small["depth"], small["num_heads"],
                                small["mlp_ratio"], num_mask_tokens=config["num_mask_tokens"], **fields)
    side = config["crop_size"] // config["patch_size"]
    strategies = tuple(f"mask{i}" for i in range(len(config["mask"])))
    groups = [
        pretrain.Group(SimpleNamespace(name=f"g{i}", frames=frames), 1.0, (frames // 2, side, side), None, strategies)
        for i, frames in enumerate(config["group_fpcs"])
    ]
    loss_fn = pretrain.make_loss(encoder, predictor, groups, loss_exponent=config["loss_exp"], monitor_tokens=64)
    params = {
        "encoder": convert.encoder_from_official(subtree(arrays, "params/encoder/"), encoder),
        "predictor": convert.predictor_from_official(subtree(arrays, "params/predictor/")),
    }
    target = convert.encoder_from_official(subtree(arrays, "params/target_encoder/"), encoder)
    optimizer = pretrain.make_optimizer(
        SimpleNamespace(b1=config["betas"][0], b2=config["betas"][1], eps=config["eps"]), params, len(groups)
    )
    cast = lambda tree: jax.tree.map(lambda x: jnp.asarray(x, dtype), tree)
    state = create_state(cast(params), cast(target), optimizer)
    return encoder, loss_fn, optimizer, _schedules(config["optimization"]), state


def _schedules(section):
    return optim.make_schedules(
        schedule="linear" if section.get("is_anneal", False) else "warmup_cosine",
        lr=section["lr"], start_lr=section["start_lr"], final_lr=section["final_lr"],
        weight_decay=section["weight_decay"], final_weight_decay=section["final_weight_decay"],
        ema=section["ema"][0], final_ema=section["ema"][1], total_steps=section["ipe"] * section["epochs"],
        warmup_steps=int(section["warmup"] * section["ipe"]), anneal_steps=0, horizon_scale=section["ipe_scale"],
    )


def _batch(arrays, config, step):
    """Official clips and masks of a step in our layout."""
    def lists(kind, group):
        prefix = f"in/{kind}_step{step}_g{group}_m"
        return tuple(arrays[f"{prefix}{i}"] for i in range(len(config["mask"])))

    return {
        f"g{group}": {
            "video": arrays[f"in/clips_u8_step{step}_g{group}"],
            "context_ids": lists("mask_enc", group),
            "target_ids": lists("mask_pred", group),
        }
        for group in range(config["num_groups"])
    }


def _official(encoder, params, target_params=None):
    trees = {"encoder": convert.encoder_to_official(params["encoder"], encoder),
             "predictor": convert.predictor_to_official(params["predictor"])}
    if target_params is not None:
        trees["target_encoder"] = convert.encoder_to_official(target_params, encoder)
    return {f"{network}/{name}": value for network, tree in trees.items() for name, value in tree.items()}


def _run(arrays, config, dtype):
    """Return (metrics of every step, final parameters under official names)."""
    encoder, loss_fn, optimizer, schedules, state = _build(arrays, config, dtype)
    step = fast_jit(make_train_step(loss_fn, optimizer, schedules, accumulate=1, spike_factor=0, target_key="encoder"))
    history = []
    for number in range(config["steps"]):
        state, metrics, _ = step(state, _batch(arrays, config, number))
        history.append(jax.device_get(metrics))
    metrics = {name: np.array([entry[name] for entry in history]) for name in history[0]}
    return metrics, _official(encoder, state.params, state.target_params)


def check_run(arrays, config, metrics, final):
    """Compare what does not depend on the precision of the gradient norm."""
    assert not metrics["guard/skipped"].any()
    np.testing.assert_allclose(metrics["train/loss"], arrays["out/loss"], atol=2e-5)
    np.testing.assert_allclose(metrics["optim/lr"], arrays["out/lr"], rtol=1e-6)
    np.testing.assert_allclose(metrics["optim/weight_decay"], arrays["out/wd"], rtol=1e-6)
    rounding = config["fp32_vs_fp64_final_param_maxdiff"]
    assert set(final) == set(subtree(arrays, "out/final/"))
    for name, value in final.items():
        bound = max(2e-5, 10 * rounding.get(name, 0.0))
        np.testing.assert_allclose(value, arrays[f"out/final/{name}"], rtol=0, atol=bound, err_msg=name)


def _norm_errors(arrays, metrics):
    norms = np.stack([metrics["optim/grad_norm_encoder"], metrics["optim/grad_norm_predictor"]], axis=1)
    return np.abs(norms / arrays["out/grad_norm"] - 1)


# Classes, so that a parallel run may give them to different processes: every step has other
# lengths and takes seconds to compile.
class TestLockstepInFloat64:
    # One file: with a single group, float32 is strict enough by itself.
    @pytest.mark.parametrize("name", FILES[1:])
    def test_ten_steps(self, golden, name):
        arrays, config = load(golden, name)
        with jax.enable_x64(True):
            metrics, final = _run(arrays, config, jnp.float64)
        assert metrics["train/loss"].dtype == np.float64
        check_run(arrays, config, metrics, final)
        np.testing.assert_allclose(metrics["train/loss"], arrays["out/loss64"], rtol=1e-6)
        assert _norm_errors(arrays, metrics).max() < 1e-4


class TestLockstepInFloat32:
    # Slow: ten compilations of the largest step, whose mathematics float64 has checked above.
    @pytest.mark.parametrize("name", [FILES[0], pytest.param(FILES[1], marks=pytest.mark.slow)])
    def test_ten_steps(self, golden, name):
        arrays, config = load(golden, name)
        metrics, final = _run(arrays, config, jnp.float32)
        check_run(arrays, config, metrics, final)
        errors = _norm_errors(arrays, metrics).max(axis=1)
        assert np.mean(errors < 1e-4) >= 0.7 and errors.max() < 1e-2, errors


@pytest.mark.parametrize("name", FILES)
def test_gradients_of_the_first_step(golden, name):
    """Tensor by tensor; tensors without a gradient there have zero gradient here."""
    arrays, config = load(golden, name)
    encoder, loss_fn, _, _, state = _build(arrays, config, jnp.float32)
    grads = fast_jit(jax.grad(lambda *args: loss_fn(*args)[0]))(state.params, state.target_params, _batch(arrays, config, 0))
    expected = subtree(arrays, "out/grad_step0/")
    for key, value in _official(encoder, grads).items():
        if key in expected:
            np.testing.assert_allclose(value, expected[key], atol=1e-6, rtol=1e-3, err_msg=key)
        else:
            assert key in config["params_without_gradient"] and not np.any(value), key
