"""Every schedule equals the official one at every step, also past its horizon."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jepa_jax.training import schedules
from parity.files import load

# Kind of schedule -> [(name of the result, function of (update number, settings))].
_SCHEDULES = {
    "wsd": [("wsd", lambda k, s: schedules.warmup_stable_decay(
        k, start=s["start_lr"], ref=s["ref_lr"], final=s["final_lr"], warmup_steps=s["warmup_steps"],
        anneal_steps=s["anneal_steps"], horizon=s["T_max"]))],
    "warmup_cosine": [("warmup_cosine", lambda k, s: schedules.warmup_cosine(
        k, start=s["start_lr"], ref=s["ref_lr"], final=s["final_lr"], warmup_steps=s["warmup_steps"],
        horizon=s["T_max"]))],
    "linear": [("linear", lambda k, s: schedules.linear(k, ref=s["ref_lr"], final=s["final_lr"], horizon=s["T_max"]))],
    "cosine_wd": [("cosine_wd", lambda k, s: schedules.cosine(
        k, ref=s["ref_wd"], final=s["final_wd"], horizon=s["T_max"]))],
    "probe": [
        ("probe_lr", lambda k, s: schedules.warmup_cosine(
            k, start=s["mc_start_lr"], ref=s["mc_ref_lr"], final=s["mc_final_lr"],
            warmup_steps=s["mc_warmup_steps"], horizon=s["T_max"])),
        ("probe_wd", lambda k, s: schedules.cosine(
            k, ref=s["mc_ref_wd"], final=s["mc_final_wd"], horizon=s["T_max"])),
    ],
    "ema": [("ema", lambda k, s: 1.0 - schedules.ema_rate(
        k, start=s["ema"][0], end=s["ema"][1], horizon=s["ipe"] * s["epochs"] * s["ipe_scale"]))],
}


@pytest.mark.parametrize("kind", _SCHEDULES)
def test_schedules(golden, kind):
    arrays, config = load(golden, "schedules")
    names = [name for name in config if name.rpartition("_")[0] == kind]
    assert names
    for name in names:
        number = name.rpartition("_")[2]
        for result, schedule in _SCHEDULES[kind]:
            expected = arrays[f"out/{result}_{number}"]
            steps = jnp.arange(1, len(expected) + 1)
            values = jax.jit(jax.vmap(lambda k: schedule(k, config[name])))(steps)
            np.testing.assert_allclose(values, expected, rtol=1e-6, err_msg=f"{result}_{number}")
            groups = arrays.get(f"out/{result}_{number}_groups")
            if groups is not None:
                np.testing.assert_allclose(values, groups[:, 0], rtol=1e-6, err_msg=f"{result}_{number}_groups")
