"""Closed loop: tasks of the table-top, policies whose worth is known, and the loop around a simulator of any kind."""

import argparse
import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import fast_jit

from jepa_jax import evaluate_robot, planning
from jepa_jax.evals import learned_distance
from jepa_jax.evals.closed_loop import baselines, cloning, planners, report, trials
from jepa_jax.evals.closed_loop.episodes import (
    Goals,
    Observation,
    Policy,
    Runner,
    Starts,
)
from jepa_jax.evals.closed_loop.pursuit import Pursuit
from jepa_jax.evals.closed_loop.sight import patch_sight, see_all
from jepa_jax.evals.intervals import wilson
from jepa_jax.models import ActionPredictor
from jepa_jax.robots.algebra import apply_action
from jepa_jax.robots.presets import generic
from jepa_jax.robots.world import Trained
from jepa_jax.sim import Nuisance, step, tasks
from jepa_jax.training.sharding import make_mesh
from jepa_jax.viz import episodes as pictures

SIZE = 16
SIGHT = patch_sight(SIZE, 4)


@pytest.mark.parametrize("name", ["reach", "grasp-box", "reach-with-cup", "place-cup"])
def test_the_expert_gets_there_and_nobody_is_there_at_the_start(name):
    task = tasks.TASKS[name]

    @fast_jit
    def run(keys):
        def episode(key):
            trial = tasks.draw_trial(key, task, Nuisance())
            one = lambda state, _: (step(state, tasks.expert_action(task, state, trial.intent)), None)
            end = jax.lax.scan(one, trial.start, length=task.steps)[0]
            judge = lambda state: (tasks.succeeds(task, state, trial.intent), tasks.distance(task, state, trial.intent))
            return trial, judge(trial.start), judge(end), jax.vmap(judge)(trial.goals)

        return jax.vmap(episode)(keys)

    trial, start, end, goals = jax.device_get(run(jax.random.split(jax.random.key(0), 48)))
    assert trial.valid.all() and not start[0].any()
    assert end[0].mean() >= 0.95
    low, high = task.distance
    measured = start[1]
    assert (measured >= low - 1e-6).all() and (measured <= high + 1e-6).all() or task.kind == "grasp" and (measured > 0.07).all()
    # The last goal shows the task done; those before it do not, and they come nearer.
    assert goals[0][:, -1].all() and not goals[0][:, :-1].any()
    assert goals[0].shape[1] == task.num_goals == len(task.goal_steps) and sum(task.goal_steps) == task.steps
    assert len(np.unique(measured)) == 48
    # Nothing that a planner of positions and gripper cannot reach.
    np.testing.assert_allclose(trial.goals.pose[:, :, 3:6], np.repeat(trial.start.pose[:, None, 3:6], task.num_goals, 1), atol=1e-5)


def test_waypoints_lead_to_the_goal_and_starts_that_are_done_are_left_out():
    task = dataclasses.replace(tasks.TASKS["reach"], waypoints=3, distance=(0.0, 0.07))
    drawn = fast_jit(jax.vmap(lambda key: tasks.draw_trial(key, task, Nuisance())))(jax.random.split(jax.random.key(1), 64))
    gaps = np.linalg.norm(drawn.goals.pose[:, :, :3] - drawn.intent.goal[:, None, :3], axis=-1)
    start = np.linalg.norm(drawn.start.pose[:, :3] - drawn.intent.goal[:, :3], axis=-1)
    assert (np.diff(gaps) <= 0).all() and (gaps[:, -1] < 0.006).all() and (gaps[:, 0] < start).all()
    assert drawn.excluded.sum() > 5 and (start >= tasks.REACHED_WITHIN).all()


def test_a_hand_is_open_around_what_it_grasps_then():
    task = dataclasses.replace(tasks.TASKS["grasp-box"], waypoints=2)
    drawn = fast_jit(jax.vmap(lambda key: tasks.draw_trial(key, task, Nuisance())))(jax.random.split(jax.random.key(1), 16))
    assert task.goal_steps == (5, 10) and drawn.valid.all()
    first, last = (jax.tree.map(lambda leaf, at=at: leaf[:, at], drawn.goals) for at in (0, 1))
    box = first.objects[:, 0, :3]
    assert (first.held != 0).all() and (last.held == 0).all()
    assert (np.linalg.norm(first.pose[:, :3] - box, axis=-1) < 0.026).all()
    assert (first.pose[:, 6] < 0.1).all() and (last.pose[:, 6] > first.pose[:, 6]).all()


def test_starts_that_the_expert_cannot_solve_are_left_out_and_counted():
    hasty = dataclasses.replace(tasks.TASKS["reach"], steps=2)
    drawn = fast_jit(jax.vmap(lambda key: tasks.draw_trial(key, hasty, Nuisance())))(jax.random.split(jax.random.key(2), 32))
    start = np.abs(drawn.start.pose[:, :3] - drawn.intent.goal[:, :3]).max(1)
    assert drawn.valid.all() and (start <= 0.105 + 1e-6).all() and drawn.unsolved.sum() > 32 and not drawn.excluded.any()


@pytest.mark.parametrize("changes, said", [
    ({"kind": "fly"}, "fly"), ({"thing": "box"}, "box"), ({"distance": (0.3, 0.1)}, "0.3"), ({"steps": 0}, "0 steps"),
    ({"lift": 0.5}, "0.5"), ({"kind": "grasp", "thing": "cup", "waypoints": 3}, "waypoints is 3; task .grasp. has 2 at most$"),
    ({"kind": "place", "thing": "cup", "waypoints": 2}, "task .place. has 1 at most, as its 3 goals are its own"),
])  # fmt: skip
def test_tasks_that_make_no_sense_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(tasks.TASKS["reach"], **changes)


class Point:
    """A point that moves in a cube and is seen from above: a simulator that is not written in JAX."""

    pure, steps, goal_steps, control_rate = False, 8, (4, 4), 4.0
    robot = generic(("x", "y", "z"), position=0, action_low=(-0.2,) * 3, action_high=(0.2,) * 3)

    def __init__(self, hopeless=False):
        self.hopeless = hopeless

    def reset(self, seed, numbers):
        starts = np.stack([np.random.default_rng([seed, number]).uniform(-0.8, 0.8, (2, 3)) for number in numbers]).astype(np.float32)
        # Two goals: half of the way, and the rest.
        self.goals = np.stack([starts.mean(1), starts[:, 1]], 1)
        state, valid = starts[:, 0], np.full(len(numbers), not self.hopeless)
        frames = np.stack([draw_point(goals) for goals in self.goals])
        return state, self.see(state), Goals(frames, self.goals), Starts(*np.zeros((2, len(numbers)), np.int32), valid)

    def see(self, state):
        return Observation(draw_point(state), state, np.zeros((len(state), 6), np.float32), ())

    def step(self, state, actions):
        state = state + np.clip(np.asarray(actions), -0.2, 0.2)
        return state, self.see(state)

    def measure(self, state):
        gaps = np.linalg.norm(state - self.goals[:, -1], axis=-1)
        return gaps < 0.05, gaps


def draw_point(places, xp=np):
    """Draw a bright blob at x y for places `[n, 3]`, wider for a larger z."""
    rows, columns = np.float32(np.mgrid[:SIZE, :SIZE]) / (SIZE - 1) * 2 - 1
    distance = (rows - places[:, 1, None, None]) ** 2 + (columns - places[:, 0, None, None]) ** 2
    light = 250 * xp.exp(-distance / (0.6 + 0.25 * xp.tanh(places[:, 2, None, None])))
    return xp.repeat(light.astype(np.uint8)[..., None], 3, -1)


def plan_with_poses(environment, **changes):
    settings = trials.Settings(changes=(("samples", 48), ("iterations", 3)), **changes)
    return trials.make_planner(planners.POSES, environment, SIGHT, settings)[0]


def test_a_simulator_outside_jax_takes_the_same_policies():
    environment, batches = Point(), []
    found = Runner(environment, plan_with_poses(environment), at_once=8, filmed=3).run([0, 1], 12, batches.append)
    assert batches == [8, 4, 8, 4] and found.success.shape == (24, 8) and found.actions.shape == (24, 8, 3)
    # In steps of 20 cm some goals are too far for 8 steps; the others are reached.
    far = np.abs(Point().reset(0, range(12))[0] - Goals(*_goals(0, 12)).poses[:, -1]).max(1) > 0.2 * 7
    np.testing.assert_array_equal(found.success[:12, -1] | far, True)
    assert found.film["frames"].shape == (3, 9, SIZE, SIZE, 3) and found.film["goals"].shape == (3, 2, SIZE, SIZE, 3)
    np.testing.assert_array_equal(found.goal[0], [0] * 4 + [1] * 4)
    assert (found.energy[0] > 0).all() and found.seed.tolist() == [0] * 12 + [1] * 12
    assert not np.array_equal(found.distance[:12], found.distance[12:])
    rows = [report.summarize(found, "poses"), report.summarize(Runner(environment, baselines.zero_policy(environment)).run([0], 8), "zero")]
    still = Runner(environment, baselines.zero_policy(environment)).run([0], 2)
    assert (still.goal == 1).all(), "who pursues no goal is shown the last one"
    assert rows[0]["end_by_seed"].keys() == {"0", "1"} and rows[1]["end"]["value"] == 0 and rows[1]["energy_median"] is None
    assert len({line.index("[") for line in report.describe(rows)[1:]}) == 1
    assert report.describe_starts(rows[1]) == "8 episodes, 95 % intervals"
    said = report.describe_starts(rows[1] | {"unsolved_starts": 3})
    assert said == "8 episodes, 95 % intervals; 3 starts left out from which the expert did not get there"
    with pytest.raises(ValueError, match="table-top"):
        trials.make_planner(planners.ORACLE, environment, SIGHT)
    with pytest.raises(ValueError, match="8 of 8 episodes have no start"):
        Runner(Point(hopeless=True), baselines.random_policy(environment), at_once=8).run([0], 8)
    for seeds, said in (([3, 0, 3], "seeds 3, 0, 3; they must be different"), ([2**31], "from 0 to 2147483647")):
        with pytest.raises(ValueError, match=said):
            Runner(environment, baselines.zero_policy(environment), at_once=8).run(seeds, 8)
    nan = Policy("broken", lambda params, goals: (), lambda *given: (baselines.zero_policy(environment).act(*given)[0]._replace(
        actions=jnp.full((8, 3), jnp.nan)), ()))
    with pytest.raises(ValueError, match="'broken'.*8 of 8"), np.errstate(invalid="ignore"):
        Runner(environment, nan, at_once=8).run([0], 8)


class PerfectWorld:
    """A world model of the point that foresees every picture, or believes that actions do the opposite."""

    predictor = ActionPredictor(48, 32, 1, 2, action_dim=3, state_dim=3, grid=SIGHT.grid)
    robot, encoder = Point.robot, None

    def __init__(self, sign):
        self.sign = sign

    def predict_next(self, params, latents, actions, states, *, past, keep):
        assert latents.shape[2:] == (16, 48) and past is None and not keep
        return SIGHT.see((), draw_point((states + self.sign * actions)[:, 0], jnp))[:, None]

    def move(self, states, actions):
        return states + actions


def test_a_perfect_model_plans_through_pictures_and_a_wrong_one_does_not():
    environment, settings = Point(), trials.Settings(changes=(("samples", 64), ("iterations", 4)))
    found = {}
    for sign in (1, -1):
        trained = Trained(PerfectWorld(sign), 4.0, 0.25, 8, SIZE, None, (1.0, 1.0), None, "", ())
        policy, spec = trials.make_planner(planners.MODEL, environment, SIGHT, settings, trained, {"action_predictor": {}})
        assert spec.evaluations == 64 * 4
        found[sign] = Runner(environment, policy, at_once=16).run([0], 16)
    still = Runner(environment, baselines.zero_policy(environment), at_once=16).run([0], 16).distance[:, -1]
    near = still < 1.2
    assert near.sum() > 5 and np.median(found[1].distance[near, -1]) < 0.15
    assert np.median(found[-1].distance[near, -1]) > np.median(still[near])
    environment.robot = dataclasses.replace(Point.robot, state_units=("m",) * 3, action_units=("m",) * 3)
    for changes, said in (
        ({"mode": "absolute"}, "absolute in frame 'base'; the simulator takes delta"),
        ({"state_names": ("x", "y", "lift")}, r"of robot 'generic' with states x, y, lift; those of the simulator, 'generic', are x \(m\), y"),
        (dict.fromkeys(("state_units", "action_units"), ("m", "", "mm")), r"with states x \(m\), y, z \(mm\); .* are x \(m\), y \(m\), z \(m\)"),
    ):
        with pytest.raises(ValueError, match=said):
            trials.make_planner(planners.MODEL, environment, SIGHT, settings, _seen_by(changes), {"action_predictor": {}})


@pytest.mark.parametrize("seconds, fits", [(0.25, True), (0.3, False)])
def test_actions_of_model_and_simulator_last_alike(seconds, fits):
    """By the true rate of the recordings, whatever was asked for."""
    args = argparse.Namespace(range=None, waypoints=None, steps=None, lift=None, camera=None, world="tabletop", nuisance=Nuisance())
    trained = Trained(None, 4.0, seconds, 8, SIZE, None, (1.0, 1.0), None, "", ())
    with contextlib.nullcontext() if fits else pytest.raises(ValueError, match=r"an action of the model lasts 0.3 s, .* simulator 0.25 s"):
        assert evaluate_robot._environment(args, "reach", None, trained).control_rate == 4


def _seen_by(changes):
    world = PerfectWorld(1)
    world.robot = dataclasses.replace(world.robot, **changes)
    return Trained(world, 4.0, 0.25, 8, SIZE, None, (1.0, 1.0), None, "", ())


def test_a_model_moves_the_numbers_that_its_robot_plans(monkeypatch):
    environment, settings = Point(), trials.Settings(changes=(("samples", 64), ("iterations", 2)))
    plan = lambda **more: trials.make_planner(planners.MODEL, environment, SIGHT, settings, _seen_by({"planned": ("x", "z")}),
                                              {"action_predictor": {}}, **more)
    policy, spec = plan()
    actions = Runner(environment, policy, at_once=4).run([0], 4).actions
    assert spec.dims == 2 and (actions[..., 1] == 0).all() and actions[..., [0, 2]].any((0, 1)).all()
    monkeypatch.setattr("jepa_jax.planning.memory.free_bytes", lambda: 1_000_000)
    chunk = plan()[1].chunk
    assert chunk < 64
    with pytest.raises(ValueError, match="not even one fits"):
        monkeypatch.setattr("jepa_jax.planning.memory.free_bytes", lambda: 4000)
        plan()


def _goals(seed, count):
    environment = Point()
    return environment.reset(seed, range(count))[2]


def test_the_policy_is_compiled_once_and_episodes_do_not_depend_on_their_neighbours():
    environment, traces = Point(), []
    policy = plan_with_poses(environment)
    counted = policy._replace(act=lambda *given: traces.append(1) or policy.act(*given))
    runner = Runner(environment, counted, at_once=4)
    first, again = (runner.run([3], 8) for _ in range(2))
    np.testing.assert_array_equal(first.actions, again.actions)
    assert len(traces) == 1 and runner.milliseconds_per_plan(2) > 0
    drawn = [Runner(environment, baselines.random_policy(environment), at_once=count).run([3], 6).actions for count in (2, 4)]
    np.testing.assert_array_equal(*drawn)
    assert len(np.unique(drawn[0][..., 0])) == drawn[0][..., 0].size
    searched = Runner(environment, policy, at_once=2).run([3], 6).actions
    np.testing.assert_allclose(searched, first.actions[:6], atol=1e-6)
    two = make_mesh(devices=jax.devices()[:2])
    np.testing.assert_allclose(Runner(environment, policy, at_once=4, mesh=two).run([3], 6).actions, first.actions[:6], atol=1e-6)
    with pytest.raises(ValueError, match="5 episodes side by side.* each of 2 devices"):
        Runner(environment, policy, at_once=5, mesh=two)


def test_nobody_moves_further_than_the_robot_can():
    environment = Point()
    far = lambda params, memory, keys, seen: (baselines.zero_policy(environment).act((), (), keys, seen)[0]._replace(
        actions=jnp.full((2, 3), -9.0)), memory)
    found = Runner(environment, Policy("far", lambda params, goals: (), far), at_once=2).run([0], 2)
    np.testing.assert_array_equal(found.actions, np.float32(-0.2))


def test_goals_change_when_they_look_near_enough():
    environment = Point()
    for threshold, least in ((1e6, [0, 1]), (1e-9, [0, 0])):
        policy = plan_with_poses(environment, timer=None, threshold=threshold)
        goal = Runner(environment, policy, at_once=4).run([0], 4).goal
        # The first look may already be near enough.
        assert (goal[:, 1:] == least[1]).all()
    with pytest.raises(ValueError, match="neither is given"):
        Pursuit(SIGHT)
    with pytest.raises(ValueError, match="3 times for 2 goals"):
        plan_with_poses(environment, timer=(1, 2, 3))


def test_a_plan_for_one_goal_is_no_start_for_the_next():
    environment, settings = Point(), trials.Settings(changes=(("samples", 16), ("iterations", 2), ("horizon", 2)))
    policy = trials.make_planner(planners.POSES, environment, SIGHT, settings)[0]
    act, keys = fast_jit(policy.act), jax.random.split(jax.random.key(0), 2)
    state, seen, goals, _ = environment.reset(0, range(2))
    memory, warm = policy.begin(policy.params, goals), []
    for _ in range(6):
        pursued, means = memory
        cold, _ = act(policy.params, (pursued, jnp.zeros_like(means)), keys, seen)
        choice, memory = act(policy.params, memory, keys, seen)
        warm.append(not np.array_equal(choice.actions, cold.actions))
        state, seen = environment.step(state, choice.actions)
    assert choice.goal.tolist() == [1, 1] and warm == [False, True, True, True, False, True]


def test_goals_change_when_few_steps_are_left():
    """The learnt distance of pictures plans for a simulator outside JAX, and says when the first goal is reached."""
    rng, environment = np.random.default_rng(0), Point()
    starts, ends = rng.uniform(-0.8, 0.8, (2, 150, 1, 3))
    clips = np.float32(starts + np.clip(ends - starts, -1.6, 1.6) / 8 * np.arange(9)[:, None])
    latents = np.concatenate(list(see_all(SIGHT, draw_point(clips.reshape(-1, 3)))))
    latents = latents.reshape(150, 9, *latents.shape[1:])
    points = learned_distance.fit_points(latents, learned_distance.steps_apart(150, 9), detours=True, steps=150)
    energy = planning.LearnedEnergy({"steps": points}, SIGHT.grid, "", 4.0, 9)
    settings = trials.Settings(changes=(("samples", 48), ("iterations", 3)), energy=energy, timer=None, threshold=1.0)
    found = Runner(environment, trials.make_planner(planners.POSES, environment, SIGHT, settings)[0], at_once=8).run([0], 8)
    assert (found.goal[:, -1] == 1).mean() > 0.5 and (found.goal[:, 0] == 0).all()
    assert (found.energy[:, 0] > 1).mean() > 0.5


def test_cloning_learns_what_was_done():
    environment = Point()
    rng = np.random.default_rng(0)
    starts, ends = rng.uniform(-0.8, 0.8, (2, 200, 1, 3))
    # Straight ways, as a teacher would go them.
    steps = np.clip(ends - starts, -1.6, 1.6) / 8
    states = np.float32(starts + steps * np.arange(9)[:, None])
    arrays = {"states": states, "actions": np.diff(states, axis=1), "video": np.stack([draw_point(clip) for clip in states])}
    pursuit, done = Pursuit(SIGHT, timer=(1, 7)), []
    policy, error = cloning.clone(pursuit, arrays, steps=300, on_steps=done.append)
    assert sum(done) == 300 and error < 0.5
    found = Runner(environment, policy, at_once=16).run([0], 16)
    still = Runner(environment, baselines.zero_policy(environment), at_once=16).run([0], 16)
    assert np.median(found.distance[:, -1]) < 0.6 * np.median(still.distance[:, -1])
    with pytest.raises(ValueError, match="1 frames"):
        cloning.clone(pursuit, {"video": arrays["video"][:, :1]})


def test_an_interval_of_a_rate_is_wilsons():
    for successes, trials_, low, high in ((0, 10, 0, 0.2775), (5, 10, 0.2366, 0.7634), (50, 50, 0.9287, 1)):
        found = wilson(successes, trials_)
        np.testing.assert_allclose(found, (successes / trials_, low, high), atol=1e-4)


def test_films_show_the_goal_that_is_pursued_and_say_when_it_is_done():
    environment = Point()
    found = Runner(environment, plan_with_poses(environment), at_once=4, filmed=4).run([0], 4)
    film = list(pictures.film_frames(found, found.film["frames"], found.film["goals"], pixels=64, columns=3))
    assert len(film) == 9 + 6 and len({frame.shape for frame in film}) == 1 and film[0].dtype == np.uint8
    np.testing.assert_array_equal(film[-1], film[8])
    assert not np.array_equal(film[3], film[4]), "the goal changes"
    figure = pictures.draw_sheet(found, found.film["frames"], found.film["goals"], "point", "two goals")
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[0] == "start" and titles.count("goal 2") == 4
    assert any(title.endswith("done") for title in titles) == found.success[:, [0, 2, 3, 4, 6, 7]].any()


def test_dynamics_of_poses_are_the_robots():
    environment = Point()
    dynamics = planners.pose_dynamics(environment)
    states, actions = np.float32(np.random.default_rng(0).normal(size=(2, 5, 3)))
    np.testing.assert_allclose(dynamics.dynamics_fn((), states, actions), apply_action(environment.robot, states, actions, jnp), atol=1e-6)
    np.testing.assert_allclose(dynamics.cost_fn((), states, states[0], actions), np.linalg.norm(states - states[0], axis=-1), atol=1e-6)
    spec = planners.planner_spec(environment, dataclasses.replace(environment.robot, action_low=(-1.0, -0.1, -1.0)), "cem")
    np.testing.assert_allclose(spec.low, (-0.2, -0.1, -0.2))
