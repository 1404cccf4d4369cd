"""The Franka Panda in MuJoCo: commands are obeyed, episodes repeat, the scripted expert does every task."""

import json
import sys
import types

import jax
import numpy as np
import pytest

from jepa_jax import data, evaluate
from jepa_jax.data import poses
from jepa_jax.sim import collect, episodes, policies
from jepa_jax.sim.panda import installed
from jepa_jax.sim.world import HIGH, LOW, MAX_ACTION

needs_panda = pytest.mark.skipif(
    not all(installed.importlib.util.find_spec(name) for name in ("mujoco", "gym_hil", "fast_simplification")),
    reason=f"the simulated Panda is not installed: {installed.INSTALL}",
)


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(installed.importlib.util, "find_spec", lambda name: None)
    installed.load_mujoco.cache_clear()
    with pytest.raises(installed.MissingSimulatorError, match="pip install 'jepa_jax\\[sim\\]'"):
        installed.load_mujoco()
    with pytest.raises(installed.MissingSimulatorError, match="gym-hil 0.1.14: pip install"):
        installed.robot_file()


def test_a_simulator_that_cannot_draw_is_refused(monkeypatch):
    # Without PyOpenGL MuJoCo is imported all the same, and only lacks what draws.
    monkeypatch.setattr(installed.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setenv("MUJOCO_GL", "egl")
    monkeypatch.setenv("LP_NUM_THREADS", "1")
    monkeypatch.setitem(sys.modules, "mujoco", types.SimpleNamespace(__version__=installed.VERSION))
    with pytest.raises(installed.MissingSimulatorError, match="cannot draw with MUJOCO_GL=egl: PyOpenGL is missing"):
        installed.load_mujoco.__wrapped__()


def _collect(folder, workers, *more):
    arguments = ["--world", "panda", "--output", str(folder), "--episodes", "2", "--frames", "8", "--size", "32", "--per-shard", "1"]
    assert collect.main([*arguments, "--workers", str(workers), *more]) == 0
    return [path.read_bytes() for path in sorted(folder.glob("*.array_record"))]


@needs_panda
def test_shards_are_those_of_the_tabletop_and_the_same_from_any_processes(tmp_path):
    alone, together = _collect(tmp_path / "alone", 0), _collect(tmp_path / "together", 2)
    assert len(alone) == 2 and alone == together
    source = data.ShardSource([str(tmp_path / "alone")], kind="trajectory")
    record = source[0]
    assert record.states.shape == record.actions.shape == (8, 7) and record.control_rate == 4.0
    assert set(record.extras) == {"box_position", "cup_position", "plate_position", "held", "phase"}
    assert [view.name for view in record.views] == ["front"] and np.isfinite(record.states).all()


@needs_panda
def test_the_tool_goes_where_it_is_told():
    from jepa_jax.sim.panda.rollouts import shared_world

    world, errors = shared_world(), []
    for seed in range(3):
        world.place(jax.device_get(policies.start(jax.random.key(seed))[0]))
        rng = np.random.default_rng(seed)
        for _ in range(8):
            before = world.pose()
            # As far as an action goes, toward places high above the table: nothing is in the way.
            way = rng.uniform([0.35, -0.2, 0.22], [0.6, 0.2, 0.33]) - before[:3]
            action = np.array([*np.clip(way, -MAX_ACTION[:3], MAX_ACTION[:3]), 0, 0, rng.uniform(-0.2, 0.2), 0])
            world.step(action)
            errors.append(np.linalg.norm(world.pose()[:3] - poses.apply_action(before, action)[:3]))
    assert np.median(errors) < 1e-3, f"median command error {1e3 * np.median(errors):.2f} mm"


@needs_panda
def test_the_arm_is_put_wherever_it_may_be():
    from jepa_jax.sim.panda import control
    from jepa_jax.sim.panda.rollouts import shared_world

    world, rng = shared_world(), np.random.default_rng(0)
    for pose in rng.uniform(LOW, HIGH, (200, 7)):
        wanted = control.pose_matrix(pose)
        world._arm.put(world.data, *wanted)
        world._mujoco.mj_forward(world._model, world.data)
        for value, found in zip(wanted, world._arm.tool(world.data)):
            np.testing.assert_allclose(found, value, atol=1e-3, err_msg=str(pose))


@needs_panda
def test_an_arm_that_is_stretched_out_does_not_turn_over():
    from jepa_jax.sim.panda.rollouts import shared_world

    # Episode 1071 of the training data, in which a free policy leads the tilted hand as far as the elbow goes.
    key = jax.random.split(episodes.Draw("train", 0, 1071, "panda").key)[0]
    start_key, step_key = jax.random.split(key)
    start, intent = policies.start(start_key)
    world, states = shared_world(), []
    world.place(jax.device_get(start))
    for one in jax.random.split(step_key, 16):
        states.append(world.state())
        action, _, intent = policies.follow(one, states[-1], intent)
        world.step(np.asarray(action))
    turns = poses.rotation_steps(np.float64([state.pose[3:6] for state in states]))
    assert states[-1].pose[0] > 0.6, "it is not stretched out"
    # Told are 0.3 rad a step at most; it was 2.5.
    assert turns.max() < 0.4, f"the hand turned by {turns.max():.2f} rad in a step"


@needs_panda
@pytest.mark.parametrize("task", ["grasp-box", "place-cup"])
def test_the_expert_does_tasks_that_zero_actions_do_not(task, tmp_path):
    arguments = ["robot", "--world", "panda", "--policy", "expert,zero", "--task", task, "--episodes", "2", "--films", "0"]
    assert evaluate.main([*arguments, "--output", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "robot.json").read_text())["rows"]
    assert {row["policy"]: row["end"]["value"] for row in rows} == {"expert": 1.0, "zero": 0.0}
