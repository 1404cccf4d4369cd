"""The learned energy that knows where the arm is to go by its eyes, and how far fingers are by what the robot reports."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_learned_distance import ENCODER, FRAMES, GRID, WIDTH, compile_fast, files, fit, make_plan, slide, wander  # noqa: F401 (fixtures)

from jepa_jax import evaluate, evaluate_distance, planning
from jepa_jax.evals import learned_distance
from jepa_jax.evals.closed_loop.tabletop import Tabletop
from jepa_jax.models import ActionPredictor
from jepa_jax.robots.presets import DROID, SE2, generic
from jepa_jax.robots.world import WorldModel
from jepa_jax.sim import tasks
from jepa_jax.weights.bundle import WeightsError
from jepa_jax.weights.learned_energy import init_points, init_reading, load_learned, point_distance, read_points, save_learned

STEP = 0.4


def new_energy(**changes):
    params = {"position": init_points(jax.random.key(0), GRID[1], WIDTH), "gripper": init_reading(jax.random.key(1), GRID[1], WIDTH, 4)}
    return dataclasses.replace(planning.LearnedEnergy(params, GRID, "a" * 64, 4.0, FRAMES, {}, (6, STEP)), **changes)


def test_the_longer_way_counts_and_fingers_are_where_the_robot_says():
    energy, latents = new_energy(), slide(np.array([[3.0, 9.0]]), 1)[0]
    goal = latents[1]
    asked = 1.5 * float(read_points(energy.params["gripper"], goal)[-1]) * STEP
    far = float(point_distance(*(read_points(energy.params["position"], one) for one in (latents[0], goal))))
    states = np.zeros((5, 7), np.float32)
    states[:, 6] = asked + STEP * np.array([0, 0.1, -0.1, 2 * far, -2 * far])
    pictures = jnp.broadcast_to(latents[0], (5, *latents[0].shape))
    # On the way fingers may do what they like; where they have farther to go, they count, however they look.
    np.testing.assert_allclose(energy(pictures, goal, GRID, states), [1.2 * far] * 3 + [2.2 * far] * 2, rtol=1e-4)
    there = jnp.broadcast_to(goal, pictures.shape)
    np.testing.assert_allclose(energy(there, goal, GRID, states), [0, 0.1, 0.1, 2 * far, 2 * far], rtol=1e-3, atol=1e-5)
    # Nothing closes further than all the way.
    params = energy.params | {"gripper": energy.params["gripper"] | {"out_bias": jnp.full(4, 10.0)}}
    shut = dataclasses.replace(energy, params=params)(there[:1], goal, GRID, np.full((1, 7), 1.0, np.float32))
    np.testing.assert_allclose(shut, 0, atol=1e-5)
    with pytest.raises(ValueError, match="with 'gripper' it compares the goal with what the robot reports; states are missing"):
        energy(there, goal, GRID)
    # Moving them costs something, alike in both directions.
    np.testing.assert_allclose(energy.effort(jnp.array([0.0, STEP, -STEP])), [0, 0.2, 0.2], rtol=1e-6)
    assert float(dataclasses.replace(energy, params={"steps": energy.params["position"]}, gripper=None).effort(jnp.ones(()))) == 0


def test_planners_count_the_fingers_of_their_own_robot():
    network = ActionPredictor(WIDTH, 24, 2, 2, grid=GRID)
    world, energy = WorldModel(network, DROID), new_energy()
    planner = planning.bind(world, planning.make_spec(DROID, "cem"), energy)
    latents = slide(np.array([[3.0, 9.0]]), 1)[0]
    state = planning.LatentState(latents[:1], jnp.zeros((1, 7)))
    cost = lambda action: float(planner.cost_fn({}, state, latents[1], action)[0])
    still, moved = (jnp.array([[0.01, 0.0, 0.0, closing]]) for closing in (0.0, 0.3))
    assert cost(None) == pytest.approx(cost(still), rel=1e-6)
    assert cost(moved) - cost(still) == pytest.approx(0.2 * 0.3 / STEP, rel=1e-4)
    # The same price where the simulator is the model, so that both can be compared.
    effort = planning.gripper_effort(energy, Tabletop(tasks.TASKS["reach"]).robot)
    assert float(effort(moved)[0]) == pytest.approx(0.15)
    assert float(planning.gripper_effort(planning.Energy(), DROID)(moved)[0]) == 0
    assert not np.asarray(planning.gripper_effort(energy, dataclasses.replace(DROID, planned=("x", "y", "z")))(moved)).any()
    with pytest.raises(ValueError, match="whose gripper is number 6 of its state; of robot 'se2' it is None; fit it"):
        energy.check_robot(SE2)
    joints = generic(tuple("abcdef") + ("gripper",), ("push",), gripper=6, source="recorded")
    with pytest.raises(ValueError, match="the states of robot 'generic' cannot be computed from its actions"):
        energy.check_robot(joints)


def test_a_number_is_read():
    places = wander(300, 0)
    values = np.float32(np.stack([places, places / 4], -1))
    params = learned_distance.fit_reading(slide(places, 0), values, steps=400)
    others = wander(40, 1)
    found, truth = np.asarray(read_points(params, slide(others, 1)))[..., -1], others / 4
    assert np.median(np.abs(found - truth)) < 0.5 * np.median(np.abs(truth - truth.mean()))
    assert np.corrcoef(found.ravel(), truth.ravel())[0, 1] > 0.85
    # Where pictures say nothing, what is likelier is read.
    noise = np.random.default_rng(5)
    blank, drawn = noise.normal(size=(1, 4, 16, WIDTH)).repeat(300, 0), np.float32(noise.uniform(0, 1, (300, 4, 1)) < 0.7)
    found = read_points(learned_distance.fit_reading(blank, drawn, steps=300), blank[:1])
    np.testing.assert_allclose(found, 1.0, atol=0.1)


def test_units_are_those_of_usual_moves():
    states = np.zeros((2, 41, 7))
    # It mostly stands, shakes a little, and moves by 0.05 or, a hand, by 0.4.
    states[0, :, 0] = np.cumsum(np.r_[0, np.tile([0.05, 0.0, 0.001, 0.05], 10)])
    states[0, :, 6] = np.r_[np.zeros(20), 0.4 * np.ones(21)]
    states[1, :, 1] = np.cumsum(np.r_[0, np.tile([0.1, 0.0], 20)])
    apart = learned_distance.positions_apart(DROID, states)
    # What never moves is no way, what moves faster is no longer one.
    assert apart[0, 0, 1] == pytest.approx(1) and apart[1, 0, 1] == pytest.approx(1) and apart.dtype == np.float32
    closed, step = learned_distance.gripper_steps(DROID, states)
    assert step == pytest.approx(0.4) and closed.shape == (2, 41, 3) and closed[0, -1, -1] == pytest.approx(1) and not closed[1, :, -1].any()
    np.testing.assert_allclose(closed[0, :, 0], states[0, :, 0] / 0.05, rtol=1e-5)
    with pytest.raises(ValueError, match="robot 'droid' never moves in these clips"):
        learned_distance.gripper_steps(DROID, states[1:])


def test_files(tmp_path):
    energy = new_energy()
    save_learned(energy, tmp_path / "arm.safetensors")
    found = load_learned(tmp_path / "arm.safetensors")
    latents, states = slide(np.array([[3.0, 9.0]]), 1)[0], np.full((2, 7), 0.3, np.float32)
    np.testing.assert_array_equal(found(latents, latents[1], GRID, states), energy(latents, latents[1], GRID, states))
    assert found.gripper == (6, STEP)
    for number, wrong in enumerate((dataclasses.replace(energy, gripper=None),
                                    dataclasses.replace(energy, params={"gripper": energy.params["gripper"]}))):
        save_learned(wrong, tmp_path / f"{number}.safetensors")
        with pytest.raises(WeightsError, match="holds no learned distance"):
            load_learned(tmp_path / f"{number}.safetensors")


def test_command(files, tmp_path, capsys):  # noqa: F811
    """What is measured by default, and what cannot be."""
    head = tmp_path / "arm.safetensors"
    assert fit(files, head) == 0
    assert load_learned(head).gripper[0] == 6 and "fitting gripper" in capsys.readouterr().err
    assert make_plan(files, "--distance", "learned", "--distance-head", str(head)) == 0
    capsys.readouterr()
    assert fit(files, tmp_path / "a", "--of", "gripper") == 2
    assert "--of gripper alone leads no arm anywhere; add one of steps, states, position" in capsys.readouterr().err
    assert fit(files, tmp_path / "a", "--of", "position", model="encoder") == 2
    assert "--of position: these weights name no robot; say with --robot" in capsys.readouterr().err


def test_clips_are_as_many_as_memory_holds(files, tmp_path, capsys, monkeypatch):  # noqa: F811
    clip = 4 * 16 * ENCODER.width * 2
    arguments = ["distance", str(files / "frames"), "--model", str(files / "ac"), "--frames", "4", "--steps", "1", "--held-out", "0.3"]

    def refuse(source, maker, count, **_):
        raise ValueError(f"asked for {count}")

    monkeypatch.setattr(evaluate_distance.samples, "read_samples", refuse)
    for free, count in ((4 * 5 * clip, 5), (0, 2), (None, 1500)):
        monkeypatch.setattr(evaluate_distance, "free_host_bytes", lambda free=free: free)
        assert evaluate.main([*arguments, "--output", str(tmp_path / "a")]) == 2
        assert f"asked for {count}" in capsys.readouterr().err
