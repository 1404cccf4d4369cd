"""Calibration through a turned camera of the simulated table-top: what is seen are pictures, nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jepa_jax import planning
from jepa_jax.planning import calibration
from jepa_jax.robots.presets import DROID
from jepa_jax.sim import cameras, nuisance, world
from jepa_jax.sim.rendering import render

SIZE, ANGLE = 32, 40.0
# Cameras look at a place above this one, around which the camera was carried, m.
CENTER = np.array([0.45, 0.0])
PLACE, TARGET = np.array([1.32, 0.12, 0.86]), np.array([0.45, 0.0, 0.13])


def turn(places, degrees):
    """Turn `[..., 2]` around the center."""
    a = np.radians(degrees)
    return (places - CENTER) @ np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]).T + CENTER


def turned_state(state, degrees):
    """Turn all there is on the table."""
    bodies = [np.array(state.pose)[None], np.array(state.objects)]
    for body in bodies:
        body[:, :2] = turn(body[:, :2], degrees)
        body[:, 5] += np.radians(degrees)
    return state._replace(pose=jnp.asarray(bodies[0][0]), objects=jnp.asarray(bodies[1]), plate=jnp.asarray(turn(state.plate, degrees)))


def moved(state, action):
    return state._replace(pose=state.pose.at[:2].add(action))


def test_a_turned_camera():
    """The model knows the camera in front, so that it takes the table for turned the other way; hence it sees motion turned too."""
    carried = np.append(turn(PLACE[:2], ANGLE), PLACE[2])
    jitter = cameras.looking_at(carried, TARGET) - cameras.looking_at(PLACE, TARGET)
    # Lit from above, so that turning changes no shade.
    plain = nuisance.clean_scene()._replace(light=jnp.array([0.0, 0.0, 1.0]))
    scene = plain._replace(camera=jnp.asarray(jitter, jnp.float32))
    state = world.reset(jax.random.key(0))
    state = state._replace(pose=jnp.array([*CENTER, 0.12, 0, 0, 0.2, 0.1]))
    look = jax.jit(lambda state, scene: render(state, scene, "front", SIZE).astype(jnp.float32) / 255)
    believed = turned_state(state, -ANGLE)
    assert jnp.abs(look(believed, plain) - look(state, scene)).mean() < 0.02 < jnp.abs(look(state, plain) - look(state, scene)).mean()

    spec = planning.PlanSpec(low=(-0.06,) * 2, high=(0.06,) * 2, samples=24, iterations=4, elites=5)
    planner = planning.Planner(
        lambda params, state, action: jax.vmap(moved)(state, action),
        lambda params, state, goal, action: jnp.abs(jax.vmap(lambda one: render(one, plain, "front", SIZE))(state) / 255 - goal).mean((1, 2, 3)),
        spec, DROID)
    moves = calibration.exploratory_moves(spec, (0, 1))
    goals = jnp.stack([look(moved(state, move), scene) for move in moves])
    roots = planning.Root(jax.tree.map(lambda leaf: jnp.stack([leaf] * len(moves)), believed), goals)
    found = calibration.fit(moves, calibration.infer(planner, {}, jax.random.key(0), roots), (0, 1))
    assert found.angle == pytest.approx(-ANGLE, abs=8) and found.unexplained < 0.2, found

    aim = np.array([0.04, -0.02], np.float32)
    missed = []
    for one in (planner, calibration.calibrate(planner, found)):
        root = planning.Root(believed, look(moved(state, aim), scene))
        missed.append(float(np.linalg.norm(jax.jit(one.plan)({}, jax.random.key(1), root).actions[0] - aim)))
    assert missed[1] < 0.006 and missed[0] > 0.02, missed
