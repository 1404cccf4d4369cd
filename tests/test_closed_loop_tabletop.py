"""`python -m jepa_jax.evaluate robot`: the table-top as an environment, planning with the simulator itself, and the command."""

import dataclasses
import json

import av
import jax
import numpy as np
import pytest

from jepa_jax import evaluate, evaluate_robot, planning
from jepa_jax.evals.closed_loop import planners, response, trials
from jepa_jax.evals.closed_loop.episodes import Runner
from jepa_jax.evals.closed_loop.sight import patch_sight
from jepa_jax.evals.closed_loop.tabletop import ROBOT, Tabletop
from jepa_jax.planning.observations import read_picture, read_state
from jepa_jax.sim import Scene
from jepa_jax.sim.tasks import TASKS
from jepa_jax.training.sharding import make_mesh

SIZE = 24
REACH = dataclasses.replace(TASKS["reach"], distance=(0.06, 0.12), steps=4)


def test_the_simulator_itself_is_a_perfect_model():
    """Also: one program for everything, the same seed the same episodes, others for other seeds."""
    environment, sight = Tabletop(REACH, size=SIZE), patch_sight(SIZE, 8)
    settings = trials.Settings(changes=(("samples", 24), ("iterations", 2)))
    policy, _ = trials.make_planner("oracle", environment, sight, settings)
    traces = []
    runner = Runner(environment, policy._replace(act=lambda *given: traces.append(1) or policy.act(*given)), at_once=8)
    planned, again = runner.run([0, 1], 8), runner.run([0], 8)
    assert len(traces) == 1
    np.testing.assert_array_equal(planned.actions[:8], again.actions)
    np.testing.assert_array_equal(planned.film["frames"], again.film["frames"])
    assert not np.array_equal(planned.distance[:8], planned.distance[8:])
    # Devices share episodes, of which none depends on who runs the others.
    spread = Runner(environment, policy, at_once=8, mesh=make_mesh(devices=jax.devices()[:4])).run([1], 8)
    np.testing.assert_allclose(spread.actions, planned.actions[8:], atol=1e-5)
    np.testing.assert_array_equal(spread.success, planned.success[8:])
    # What cannot be turned is not turned, and what is asked for is allowed.
    assert (np.abs(planned.actions) <= np.float32(environment.robot.action_high) + 1e-6).all()
    assert not planned.actions[..., 3:6].any()
    # Goals are pictures of the same scene, in which the energy of being there is 0.
    trial, _ = planned.film["states"]
    assert isinstance(trial.scene, Scene) and len(np.unique(trial.scene.table_color[:, 0], axis=0)) == 6
    first = jax.tree.map(lambda part: part[0, :1], trial)
    shown = environment.draw(jax.tree.map(lambda part: part[:, 0], first.goals), first.scene)
    np.testing.assert_array_equal(shown[0], planned.film["goals"][0, 0])
    _, states = planned.film["states"]
    np.testing.assert_array_equal(planned.film["poses"], states.pose)
    np.testing.assert_array_equal(planned.film["goal_poses"], trial.goals.pose[:, 0])


def test_a_response_says_which_numbers_a_model_does_not_know():
    environment, sight = Tabletop(dataclasses.replace(TASKS["grasp-box"], steps=4), size=SIZE), patch_sight(SIZE, 8)
    oracle = planners.oracle_dynamics(environment, sight, planning.Energy())
    numb = oracle._replace(dynamics_fn=lambda params, state, action: oracle.dynamics_fn(params, state, action.at[:, 3].set(0.0)))
    spec = planners.planner_spec(environment, environment.robot)
    found = response.measure_response(environment, sight, numb, oracle, spec, seed=3, episodes=3)
    assert [row["name"] for row in found] == ["x", "y", "z", "gripper"] and all(row["true"] > 0 for row in found)
    assert found[3]["slope"] == found[3]["correlation"] == 0
    # The gripper stays as it is in all of the model's candidates, which hardly matters to what the others do.
    assert all(row["slope"] == pytest.approx(1, abs=0.1) and row["correlation"] > 0.95 for row in found[:3])
    said = response.describe_response(found)
    assert "gripper 0 % (0.00)" in said and said.startswith("changes of the energy that are foreseen (correlation): x 1")
    assert response.describe_response([{"name": "x", "slope": None, "correlation": None}]).endswith("x -")


def test_the_command_counts_films_and_reports(tmp_path, capsys):
    arguments = ["robot", "--output", str(tmp_path), "--task", "grasp-box", "--policy", "expert", "--episodes", "3", "--seeds", "0,5",
                 "--steps", "9", "--films", "1", "--at-once", "3", "--nuisance", "0"]
    assert evaluate.main(arguments) == 0
    out = capsys.readouterr().out
    assert "grasp-box: 6 episodes" in out and "100 [61, 100]" in out
    found = json.loads((tmp_path / "robot.json").read_text())
    expert, = found["rows"]
    assert expert["end"]["value"] == 1 and expert["end_by_seed"] == {"0": 1, "5": 1} and expert["milliseconds_per_plan"] is None
    assert found["settings"]["seeds"] == [0, 5] and found["versions"]["jax"] == jax.__version__
    with av.open(tmp_path / "grasp-box-expert.mp4") as film:
        frames = list(film.decode(video=0))
    assert len(frames) == 10 + 6 and frames[0].width > 500
    assert (tmp_path / "grasp-box-expert.png").stat().st_size > 5000
    # What `plan` is to be given, to try it.
    start, goal = (read_picture(str(tmp_path / f"grasp-box-{name}.png")) for name in ("start", "goal"))
    assert start.shape == goal.shape == (64, 64, 3) and not np.array_equal(start, goal)
    states = [read_state(str(tmp_path / f"grasp-box-{name}.npy"), ROBOT) for name in ("start", "goal")]
    assert 0.01 < np.linalg.norm((states[1] - states[0])[:3]) < 0.5


@pytest.mark.parametrize("arguments, said", [
    (["--policy", "model"], "need --model"),
    (["--policy", "expert", "--range", "0.3,0.1"], "from 0.3 to 0.1 m"),
    (["--policy", "poses", "--goal-steps", "3,3"], "2 times for 1 goals"),
    (["--policy", "expert,poses", "--set", "smples=3"], "no setting smples"),
    (["--policy", "expert", "--task", "reach,place-cup", "--waypoints", "3"], "task 'place' has 1 at most"),
    (["--policy", "poses", "--task", "reach,place-cup", "--goal-steps", "15"], "1 times for 3 goals"),
    (["--policy", "expert,cloning", "--sight", "patches"], "needs --cloning-data"),
    (["--policy", "expert", "--devices", "3"], "--devices is 3; there are 8 devices, over which 2 episodes at a time must divide: 1, 2"),
])  # fmt: skip
def test_what_cannot_be_run_is_said(arguments, said, tmp_path, capsys):
    assert evaluate.main(["robot", "--output", str(tmp_path), "--episodes", "2", "--films", "0", *arguments]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_rows_that_are_finished_are_kept_when_it_is_stopped(tmp_path, capsys, monkeypatch):
    def stop(args, row):
        if row.kind == "zero":
            raise KeyboardInterrupt
        return {"policy": row.kind}, []

    monkeypatch.setattr(evaluate_robot, "_run_row", stop)
    assert evaluate.main(["robot", "--output", str(tmp_path), "--policy", "expert,zero", "--episodes", "2"]) == 130
    assert json.loads((tmp_path / "robot.json").read_text())["rows"] == [{"task": "reach", "policy": "expert"}]
    assert "robot.json has the rows that were finished" in capsys.readouterr().err
