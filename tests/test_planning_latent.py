"""Planning with a world model: what candidates are told, energies, memory, goals and calibration."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import fast_jit

from jepa_jax import planning
from jepa_jax.models import ActionPredictor
from jepa_jax.models.spec import abstract_params
from jepa_jax.planning import calibration, latent, memory
from jepa_jax.planning.rollouts import make_score
from jepa_jax.robots.presets import DROID, SE2, generic
from jepa_jax.robots.world import WorldModel

GRID, WIDTH = (2, 2), 12
PREDICTOR = ActionPredictor(WIDTH, 24, 2, 2, grid=GRID)
DRAW = np.random.default_rng(0).normal
POSE = np.array([0.5, 0.1, 0.3, 3.1, 0.2, -0.4, 0.6], np.float32)
PLANNED = (0.03, -0.02, 0.05, 0.3)


def random_params(network):
    return {"action_predictor": jax.tree.map(lambda leaf: jnp.asarray(0.3 * DRAW(size=leaf.shape), jnp.float32), abstract_params(network))}


def draw_latents(*leading):
    return jnp.asarray(DRAW(size=(*leading, GRID[0] * GRID[1], WIDTH)), jnp.float32)


@pytest.mark.parametrize("extrinsics", [False, True])
def test_candidates_cost_what_a_rollout_says(extrinsics):
    """The rollout of the world model, with poses that follow from the actions, is a second way to the same energy."""
    robot = dataclasses.replace(DROID, planned=("x", "pitch", "gripper") if "pitch" in DROID.action_names else (), action_low=(-0.1,) * 7,
                                action_high=(0.1,) * 7)
    world = WorldModel(PREDICTOR.copy(use_extrinsics=extrinsics), robot)
    params, horizon = random_params(world.predictor), 3
    spec = planning.make_spec(robot, "cem", horizon=horizon, cost="sum")
    planner = planning.bind(world, spec, planning.Energy("l2"))
    start, goal = draw_latents(), draw_latents()
    camera = jnp.arange(6.0) / 10 if extrinsics else None
    root = planning.make_root(world, start, POSE, goal, camera)
    actions = jnp.asarray(0.1 * DRAW(size=(4, horizon, spec.dims)), jnp.float32)
    found = fast_jit(lambda params, root, actions: make_score(params, root, planner.dynamics_fn, planner.cost_fn, spec)(actions))(
        params, root, actions)
    full = latent.full_actions(robot, jnp.asarray(POSE), actions)
    cameras = () if camera is None else (jnp.broadcast_to(camera, (4, horizon, 6)),)
    frames = fast_jit(functools.partial(world.rollout, integrate=True))(
        params, jnp.tile(start[None, None], (4, 1, 1, 1)), full, jnp.tile(POSE[None, None], (4, 1, 1)), *cameras)
    np.testing.assert_allclose(found, ((frames - goal) ** 2).mean((2, 3)).sum(1), rtol=1e-4)


def test_rotations_can_be_planned():
    robot = dataclasses.replace(DROID, planned=(), action_low=(-0.1,) * 7, action_high=(0.1,) * 7)
    world = WorldModel(PREDICTOR, robot)
    params = random_params(PREDICTOR)
    planner = planning.bind(world, planning.make_spec(robot, "icem", samples=16, iterations=2, elites=4))
    root = planning.make_root(world, draw_latents(), POSE, draw_latents())
    out = fast_jit(planner.plan)(params, jax.random.key(0), root)
    assert out.actions.shape == (1, 7) and (jnp.abs(out.actions[0, 3:6]) > 1e-3).any()
    assert float(out.cost) == pytest.approx(float(out.trace.costs.min()), rel=1e-5)


def test_numbers_that_are_not_planned_do_not_move():
    full = latent.full_actions(DROID, jnp.asarray(POSE), jnp.array([PLANNED, PLANNED]))
    np.testing.assert_allclose(full, np.tile([*PLANNED[:3], 0, 0, 0, PLANNED[3]], (2, 1)), atol=1e-6)
    absolute = dataclasses.replace(DROID, mode="absolute")
    full = latent.full_actions(absolute, jnp.asarray(POSE), jnp.array([PLANNED]))
    np.testing.assert_allclose(full[0], [*PLANNED[:3], *POSE[3:6], PLANNED[3]], atol=1e-6)
    gripper = dataclasses.replace(DROID, absolute=("gripper",))
    np.testing.assert_allclose(latent.still_actions(gripper, jnp.asarray(POSE)), [0, 0, 0, 0, 0, 0, POSE[6]], atol=1e-6)
    turned = dataclasses.replace(DROID, frame="camera")
    np.testing.assert_allclose(latent.still_actions(turned, jnp.asarray(POSE)), np.zeros(7), atol=1e-6)
    assert latent.full_actions(SE2, jnp.zeros(3), jnp.ones((5, 3))).shape == (5, 3)


def test_targets_that_move_nothing_are_not_known():
    """Absolute actions of another layout than states: the search starts within the bounds, not at a target of 0."""
    robot = generic([f"q{at}" for at in range(4)], ["u", "v"], source="recorded", mode="absolute", action_low=(1, 2), action_high=(3, 4))
    assert latent.still_actions(robot, jnp.zeros(4)) is None
    world = WorldModel(PREDICTOR.copy(action_dim=2, state_dim=4), robot)
    root = planning.make_root(world, draw_latents(), np.zeros(4, np.float32), draw_latents())
    spec = planning.make_spec(robot, "cem", samples=4, elites=2, iterations=1, std=0, momentum_mean=0)
    assert root.mean is None and spec.start == (1, 2)
    out = fast_jit(planning.bind(world, spec).plan)(random_params(world.predictor), jax.random.key(0), root)
    np.testing.assert_allclose(out.actions, [[1, 2]], atol=1e-6)
    # Changes are 0, whatever they are changes of.
    pushed = dataclasses.replace(robot, mode="delta", absolute=("u",), planned=("u",))
    assert latent.still_actions(dataclasses.replace(robot, mode="delta"), jnp.zeros(4)).tolist() == [0, 0]
    np.testing.assert_allclose(latent.full_actions(pushed, jnp.zeros(4), jnp.full((3, 1), 2.0)), [[2, 0]] * 3)


def test_an_absolute_gripper_is_searched_from_where_it_is():
    robot = dataclasses.replace(DROID, absolute=("gripper",))
    world = WorldModel(PREDICTOR, robot)
    roots = jax.vmap(lambda pose: planning.make_root(world, draw_latents(), pose, draw_latents()))(np.stack([POSE, POSE]))
    np.testing.assert_allclose(roots.mean, [[0, 0, 0, POSE[6]]] * 2, atol=1e-6)
    spec = planning.make_spec(robot, "cem", samples=4, elites=2, iterations=1, horizon=2, low=(-0.1,) * 3 + (0,), high=(0.1,) * 3 + (1,),
                              std=0, momentum_mean=0)
    out = fast_jit(planning.bind(world, spec).plan)(random_params(PREDICTOR), jax.random.key(0), jax.tree.map(lambda leaf: leaf[0], roots))
    np.testing.assert_allclose(out.actions, [[0, 0, 0, POSE[6]]] * 2, atol=1e-6)
    with pytest.raises(ValueError, match="action_penalty is 1 for a planned action that is absolute"):
        planning.bind(world, dataclasses.replace(spec, action_penalty=1.0))
    planning.bind(world, dataclasses.replace(spec, action_penalty=(1.0, 1.0, 1.0, 0.0)))


def test_robots_that_cannot_be_planned():
    joints = generic(["a", "b"], ["u", "v", "w"], source="recorded")
    world = WorldModel(PREDICTOR.copy(action_dim=3, state_dim=2), joints)
    bounds = {"low": (-1,) * 3, "high": (1,) * 3}
    planning.bind(world, planning.make_spec(joints, "cem", **bounds))
    with pytest.raises(ValueError, match="states cannot be computed from its actions, so the planner cannot look 2 steps ahead"):
        planning.bind(world, planning.make_spec(joints, "cem", horizon=2, **bounds))
    partly = dataclasses.replace(joints, mode="absolute", planned=("u",))
    with pytest.raises(ValueError, match="v, w are absolute and not laid out like states.* planned must name all absolute"):
        planning.bind(dataclasses.replace(world, robot=partly), planning.make_spec(partly, "cem", low=(-1,), high=(1,)))
    with pytest.raises(ValueError, match="moves 4 numbers; robot 'generic' has 3 to plan: u, v, w"):
        planning.bind(world, planning.make_spec(DROID, "cem"))
    with pytest.raises(ValueError, match="pool is 3, which does not divide a grid of 2 x 2"):
        planning.bind(WorldModel(PREDICTOR, DROID), planning.make_spec(DROID, "cem"), planning.Energy(pool=3))


@pytest.mark.parametrize("change, message", [
    ({"pose": POSE[:6]}, r"state have shape \(6,\); the model takes \(7,\)"),
    ({"goal": jnp.zeros((9, WIDTH))}, r"latents of the goal have shape \(9, 12\)"),
    ({"extrinsics": jnp.zeros(6)}, "they are given, but use_extrinsics of the model is False"),
])
def test_roots_of_another_size(change, message):
    given = {"latents": draw_latents(), "pose": POSE, "goal": draw_latents()} | change
    with pytest.raises(ValueError, match=message):
        planning.make_root(WorldModel(PREDICTOR, DROID), **given)


class TestEnergy:
    def test_distances(self):
        a, b = draw_latents(3), draw_latents()
        np.testing.assert_allclose(planning.Energy()(a, b, GRID), np.abs(a - b).mean((1, 2)), rtol=1e-6)
        np.testing.assert_allclose(planning.Energy("l2")(a, b, GRID), ((a - b) ** 2).mean((1, 2)), rtol=1e-6)
        assert np.abs(planning.Energy("cosine")(a, 3 * a, GRID)).max() < 1e-6
        pooled = planning.Energy(pool=2)(a, b, GRID)
        np.testing.assert_allclose(pooled, np.abs(a.mean(1) - b.mean(0)).mean(1), rtol=1e-5)

    def test_smoothing_lets_things_apart_attract(self):
        """A spot two tokens from its goal is nearer than one three tokens away, which plain L1 cannot see."""
        spot = lambda column: jnp.zeros((6, 6, 1)).at[2, column].set(1.0).reshape(36, 1)
        near, far, goal = spot(2), spot(4), spot(0)
        plain, smooth = planning.Energy(), planning.Energy(smooth=3)
        assert plain(near, goal, (6, 6)) == plain(far, goal, (6, 6))
        assert smooth(near, goal, (6, 6)) < 0.9 * smooth(far, goal, (6, 6))

    def test_bad_settings(self):
        with pytest.raises(ValueError, match="distance is 'l3'; it must be one of l1, l2, cosine"):
            planning.Energy("l3")
        with pytest.raises(ValueError, match="pool is 0"):
            planning.Energy(pool=0)


class TestMemory:
    WORLD = WorldModel(ActionPredictor(64, 96, 4, 4, grid=(8, 8), attention="xla"), DROID)

    @pytest.mark.parametrize("fields", [{"horizon": 1}, {"horizon": 3}, {"samples": 1, "iterations": 0, "gradient_steps": 1, "restarts": 64}])
    def test_estimate_is_near_what_the_compiler_says(self, fields):
        spec = planning.make_spec(DROID, "cem", **({"samples": 64, "iterations": 1} | fields))
        planner = planning.bind(self.WORLD, spec)
        shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
        root = planning.Root(planning.LatentState(shape(64, 64), shape(7)), shape(64, 64))
        score = lambda params, root, actions: make_score(
            params, root, planner.dynamics_fn, planner.cost_fn, spec, slopes=spec.gradient_steps > 0)(actions)
        params = {"action_predictor": abstract_params(self.WORLD.predictor)}
        compiled = fast_jit(score).lower(params, root, shape(64, spec.horizon, 4)).compile()
        needed = compiled.memory_analysis().temp_size_in_bytes / 64
        estimate = memory.candidate_bytes(self.WORLD, spec, slopes=spec.gradient_steps > 0)
        assert 0.6 < estimate / needed < 2.0, estimate / needed

    def test_says_what_fits_before_compiling(self):
        spec = planning.make_spec(DROID, "cem", samples=800, horizon=2)
        each = memory.candidate_bytes(self.WORLD, spec)
        assert memory.fit_memory(self.WORLD, spec, free=1400 * each) is spec
        small = memory.fit_memory(self.WORLD, spec, free=120 * each)
        assert 0 < small.chunk <= 72 and small.samples == 800
        with pytest.raises(ValueError, match="chunk is 400; the largest that fits is 72"):
            memory.fit_memory(self.WORLD, dataclasses.replace(spec, chunk=400), free=int(120.1 * each))
        with pytest.raises(ValueError, match="not even one fits; .*fewer robots"):
            memory.fit_memory(self.WORLD, spec, free=4 * each, robots=8)
        assert memory.fit_memory(self.WORLD, spec, free=90 * each, devices=8).chunk == 400
        assert memory.free_bytes() > 2**20

    def test_a_few_gradients_do_not_chunk_the_candidates(self):
        spec = planning.make_spec(DROID, "hybrid", samples=400, restarts=2)
        forward, backward = (memory.candidate_bytes(self.WORLD, spec, slopes=slopes) for slopes in (False, True))
        assert backward > 2 * forward
        assert memory.fit_memory(self.WORLD, spec, free=700 * forward) is spec
        assert memory.fit_memory(self.WORLD, spec, free=2 * backward).chunk == 1


def test_goals_follow_each_other():
    def walk(energies, **rule):
        progress, seen = planning.start_goals((1,)), []
        for energy in energies:
            seen.append(int(progress.goal[0]))
            progress = planning.next_goal(progress, jnp.full(1, energy), 3, **rule)
        return seen

    assert walk([1] * 8, timer=(2, 3, 2)) == [0, 0, 1, 1, 1, 2, 2, 2]
    assert walk([1, 0.1, 1, 1, 0.2, 0.1], threshold=0.3) == [0, 0, 1, 1, 1, 2]
    assert walk([1, 0.1, 1, 1, 1, 1], threshold=(0.3, 0.05, 0), timer=(9, 3, 9)) == [0, 0, 1, 1, 1, 2]
    with pytest.raises(ValueError, match="2 times for 3 goals"):
        walk([1], timer=(1, 2))
    with pytest.raises(ValueError, match="neither is given"):
        walk([1])


class TestCalibration:
    """The robot sees its motion turned by 50 degrees and stretched; its model knows nothing of that."""

    TURN = jnp.array([[0.64, -0.77, 0], [0.77, 0.64, 0], [0, 0, 1.0]]) * jnp.array([1.2, 1.2, 1.0])[:, None]
    SPEC = planning.PlanSpec(low=(-0.1,) * 3, high=(0.1,) * 3, samples=64, iterations=8, elites=8)
    PLANNER = planning.Planner(lambda params, state, action: state + action,
                               lambda params, state, goal, action: jnp.abs(state - goal).sum(-1), SPEC, DROID)

    def test_brings_a_robot_to_its_goal(self):
        moves = calibration.exploratory_moves(self.SPEC, (0, 1), size=0.5)
        after = moves @ self.TURN.T
        roots = planning.Root(jnp.zeros_like(after), after)
        seen = calibration.infer(self.PLANNER, {}, jax.random.key(0), roots)
        found = calibration.fit(moves, seen, (0, 1))
        np.testing.assert_allclose(found.matrix, self.TURN[:2, :2], atol=0.05)
        assert found.angle == pytest.approx(50.3, abs=2) and found.unexplained < 0.05
        goal, reached = jnp.array([0.05, -0.03, 0.02]), []
        for planner in (self.PLANNER, calibration.calibrate(self.PLANNER, found)):
            out = planning.plan({}, jax.random.key(1), planning.Root(jnp.zeros(3), goal), planner.dynamics_fn, planner.cost_fn, self.SPEC)
            reached.append(float(jnp.abs(self.TURN @ out.actions[0] - goal).sum()))
        assert reached[1] < 0.01 < 0.04 < reached[0]

    def test_moves_that_say_too_little(self):
        moves = np.array([[0.1, 0.0, 0], [0.1, 0.001, 0]])
        with pytest.raises(ValueError, match="2 moves do not tell 2 directions apart"):
            calibration.fit(moves, moves, (0, 1))
        with pytest.raises(ValueError, match="not finite"):
            calibration.fit(moves, moves * np.nan, (0, 1))
        with pytest.raises(ValueError, match="horizon is 2; it must be 1"):
            planner = self.PLANNER._replace(spec=dataclasses.replace(self.SPEC, horizon=2))
            calibration.infer(planner, {}, jax.random.key(0), planning.Root(jnp.zeros((1, 3)), jnp.zeros((1, 3))))

    def test_moves_stay_in_the_bounds(self):
        moves = calibration.exploratory_moves(planning.PlanSpec(low=(-1, -2, 0), high=(1, 2, 5)), (0, 1), size=0.5)
        assert moves.shape == (6, 3) and np.abs(moves).max(0).tolist() == [0.5, 1.0, 0.0]
        np.testing.assert_allclose(moves.sum(0), 0)
