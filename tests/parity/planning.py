"""The cross-entropy method beside the official planner, on its own noise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compiling import fast_jit
from jepa_jax import planning
from jepa_jax.models import convert
from jepa_jax.robots.algebra import apply_action
from jepa_jax.robots.presets import DROID
from jepa_jax.robots.world import WorldModel
from parity.action_predictor import build_action_predictor
from parity.files import load, subtree

ANALYTIC = ("r1", "r2", "r1_close0", "r2_close1", "r2_close0", "r1_axis2", "r2_axis0", "r2_axis3", "r3_axis1_close1")
NETWORK = ("r1", "r2", "r2_close1", "r2_axis2", "r3")


def _spec(config, case):
    """Build the settings a golden config describes."""
    reach, own = config["maxnorm"], (config["momentum_mean_gripper"], config["momentum_std_gripper"])
    case = config["cases"][case]
    return planning.PlanSpec(
        low=(-reach,) * 3 + (-0.75,), high=(reach,) * 3 + (0.75,), std=(reach,) * 3 + (1.0,), horizon=case["rollout"],
        samples=config["samples"], iterations=config["cem_steps"], elites=config["topk"],
        momentum_mean=(config["momentum_mean"],) * 3 + own[:1], momentum_std=(config["momentum_std"],) * 3 + own[1:],
        deadzone=(0.0, 0.0, 0.0, 0.25), fixed=[(int(dim), value) for dim, value in case.get("axis", {}).items()],
        held=[(3, case["close_gripper"], 1.0)] if "close_gripper" in case else (),
    )


def _check(arrays, case, output, actions, atol):
    found = {"mean": output.trace.means, "std": output.trace.stds, "sims": output.trace.costs}
    for name, value in found.items():
        np.testing.assert_allclose(value, arrays[f"out/{case}/{name}"], atol=atol, err_msg=name)
    np.testing.assert_allclose(actions, arrays[f"out/{case}/action"].reshape(actions.shape), atol=atol)


def _plan(spec, dynamics_fn, cost_fn):
    return fast_jit(functools.partial(planning.plan, dynamics_fn=dynamics_fn, cost_fn=cost_fn, spec=spec))


@pytest.mark.parametrize("case", ANALYTIC)
def test_cem(golden, case):
    arrays, config = load(golden, "cem")
    spec, constants = _spec(config, case), subtree(arrays, "params/")
    first, goal, pose = (jnp.asarray(arrays[f"in/{name}"]).squeeze((0, 1)) for name in ("context_frame", "goal_frame", "context_pose"))

    def dynamics_fn(params, state, action):
        frame, pose = state
        action = planning.full_actions(DROID, pose, action)
        moved = jnp.tanh(action @ params["Wa"] + pose @ params["Wp"])
        return frame + moved[:, None] * params["g"][:, None], apply_action(DROID, pose, action, jnp)

    cost_fn = lambda params, state, goal, action: jnp.abs(state[0] - goal).mean((1, 2))
    output = _plan(spec, dynamics_fn, cost_fn)(
        constants, jax.random.key(0), planning.Root((first, pose), goal), noise=jnp.asarray(arrays[f"in/{case}/noise"])
    )
    _check(arrays, case, output, planning.full_actions(DROID, pose, output.actions), 1e-5)


@pytest.mark.parametrize("case", NETWORK)
def test_cem_with_the_action_predictor(golden, case):
    arrays, config = load(golden, "cem_ac")
    world = WorldModel(build_action_predictor(config["predictor"]), DROID)
    params = {"action_predictor": convert.action_predictor_from_official(subtree(arrays, "params/"))}
    planner = planning.bind(world, _spec(config, case))
    first, goal, pose = (jnp.asarray(arrays[f"in/{name}"]).squeeze((0, 1)) for name in ("context_frame", "goal_frame", "context_pose"))
    output = _plan(planner.spec, planner.dynamics_fn, planner.cost_fn)(
        params, jax.random.key(0), planning.make_root(world, first, pose, goal), noise=jnp.asarray(arrays[f"in/{case}/noise"])
    )
    _check(arrays, case, output, planning.full_actions(DROID, pose, output.actions), 2e-5)
