"""The planner on dynamics whose best plan is known."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiling import fast_jit

from jepa_jax import planning
from jepa_jax.planning.dilation import space_dilation
from jepa_jax.planning.presets import GENERAL, OFFICIAL
from jepa_jax.planning.search import curve
from jepa_jax.robots.presets import DROID, SE2
from jepa_jax.training import sharding

BOUND = 0.1
BASE = {"low": (-BOUND,) * 3, "high": (BOUND,) * 3}
# One goal within reach of a step, one out of it along two numbers.
NEAR, FAR = np.array([0.03, -0.07, 0.0], np.float32), np.array([0.3, -0.5, 0.02], np.float32)


def move(params, state, action):
    return {"at": state["at"] + params["gain"] * action, "count": state["count"] + 1}


def distance(params, state, goal, action):
    del params, action
    return jnp.abs(state["at"] - goal).sum(-1)


def root(goal, **fields):
    return planning.Root({"at": jnp.zeros(3), "count": jnp.int32(0)}, jnp.asarray(goal), **fields)


PARAMS = {"gain": jnp.float32(1.0)}


def run(spec, goal, seed=0, **options):
    mean = options.pop("mean", None)
    solve = functools.partial(planning.plan, dynamics_fn=move, cost_fn=distance, spec=spec, **options)
    return fast_jit(solve)(PARAMS, jax.random.key(seed), root(goal, mean=mean))


def spec_of(preset, **changes):
    fields = GENERAL[preset] if preset in GENERAL else OFFICIAL[preset][1]
    return planning.PlanSpec(**(BASE | fields | changes))


@pytest.mark.parametrize("preset, within", [("cem_default", 0.002), ("paper", 0.002), ("cem", 0.01), ("icem", 0.01), ("mppi", 0.02),
                                            ("gradient", 0.02), ("hybrid", 0.02), ("precise", 0.01)])
def test_planners_reach_the_optimum(preset, within):
    """Within a fraction of the box of 0.2, goals inside and outside of it."""
    solve = fast_jit(jax.vmap(
        functools.partial(planning.plan, dynamics_fn=move, cost_fn=distance, spec=spec_of(preset)), (None, 0, 0)
    ))
    goals = np.stack([NEAR, FAR])
    out = solve(PARAMS, jax.random.split(jax.random.key(0)), jax.vmap(root)(goals))
    np.testing.assert_allclose(out.actions[:, 0], np.clip(goals, -BOUND, BOUND), atol=within)
    np.testing.assert_allclose(out.cost, np.abs(goals - out.actions[:, 0]).sum(1), atol=1e-6)
    assert out.trace.costs.shape[1:] == (spec_of(preset).iterations, spec_of(preset).samples)


def test_long_plans_and_what_counts():
    """The goal is 3.5 steps away along one number: the last step can wait, the sum cannot."""
    goal = np.array([0.35, 0.0, 0.0], np.float32)
    spec = spec_of("icem", horizon=6, samples=200, iterations=10)
    last = run(spec, goal)
    assert last.cost < 0.02 and abs(float(last.actions[:, 0].sum()) - 0.35) < 0.02
    total = run(dataclasses.replace(spec, cost="sum"), goal)
    np.testing.assert_allclose(total.actions[:3, 0], BOUND, atol=0.02)
    best = 0.25 + 0.15 + 0.05
    assert best - 1e-3 <= total.cost < best + 0.15
    first = run(dataclasses.replace(spec, cost=(1, 0, 0, 0, 0, 0)), goal)
    assert float(first.cost) == pytest.approx(0.25, abs=0.01)
    lazy = run(dataclasses.replace(spec, action_penalty=10.0), goal)
    assert jnp.abs(lazy.actions).max() < 0.05
    # Of one number alone, it leaves the others free.
    both = np.array([0.35, 0.35, 0.0], np.float32)
    lame = run(dataclasses.replace(spec, action_penalty=(10.0, 0.0, 0.0)), both)
    assert jnp.abs(lame.actions[:, 0]).max() < 0.05 and abs(float(lame.actions[:, 1].sum()) - 0.35) < 0.02


def test_compiles_once_and_is_deterministic():
    spec = spec_of("hybrid", horizon=2)
    solve = jax.jit(planning.plan, static_argnames=("dynamics_fn", "cost_fn", "spec"))
    results = [solve(PARAMS, jax.random.key(seed), root(goal), move, distance, spec)
               for seed, goal in ((0, NEAR), (1, NEAR), (0, FAR), (0, NEAR))]
    assert solve._cache_size() == 1
    assert (results[0].actions == results[3].actions).all() and (results[0].actions != results[1].actions).any()


def test_several_robots_chunks_and_devices_change_nothing():
    spec = spec_of("hybrid", horizon=2, samples=32, restarts=4, polish_steps=3)
    goals, keys = jnp.stack([NEAR, FAR, -NEAR]), jax.random.split(jax.random.key(3), 3)
    means = jnp.zeros((3, 2, 3))
    solve = functools.partial(planning.plan, dynamics_fn=move, cost_fn=distance)
    one = fast_jit(functools.partial(solve, spec=spec))
    alone = [one(PARAMS, key, root(goal, mean=mean)) for key, goal, mean in zip(keys, goals, means)]
    roots = jax.vmap(lambda goal, mean: root(goal, mean=mean))(goals, means)
    together = fast_jit(jax.vmap(functools.partial(solve, spec=spec), (None, 0, 0)))(PARAMS, keys, roots)
    expected = jax.tree.map(lambda *parts: np.stack(parts), *alone)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), together, expected)
    # 7 does not divide 32, nor 4 restarts; 4 devices do not divide the one plan that is polished.
    chunked = run(dataclasses.replace(spec, chunk=7), NEAR, mean=means[0])
    mesh = sharding.make_mesh(devices=jax.devices()[:4])
    with sharding.use_mesh(mesh):
        spread = run(dataclasses.replace(spec, chunk=16), NEAR, mean=means[0], mesh=mesh)
    plain = run(spec, NEAR, mean=means[0])
    for other in (chunked, spread):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), other, plain)
    with pytest.raises(ValueError, match="chunk is 6; it must be a multiple of the 4 devices"):
        run(dataclasses.replace(spec, chunk=6), NEAR, mesh=mesh)


def test_a_mesh_spreads_the_candidates():
    """Every device sees its part only."""
    mesh = sharding.make_mesh(devices=jax.devices()[:4])
    spec = spec_of("cem", samples=64)
    solve = jax.jit(functools.partial(planning.plan, dynamics_fn=move, cost_fn=distance, spec=spec, mesh=mesh))
    text = solve.lower(PARAMS, jax.random.key(0), root(NEAR)).compile().as_text()
    assert "f32[16,3]" in text.replace("{", " {") and "all-gather" in text


def test_numbers_that_are_not_free():
    spec = spec_of("cem", horizon=2, fixed=[(0, 0.05)], held=[(2, 1, 0.4)], choice="best", deadzone=(0.0, 0.03, 0.0))
    out = run(spec, np.array([0.0, 0.02, 0.0], np.float32))
    np.testing.assert_allclose(out.actions[:, 0], 0.05)
    assert out.actions[1, 2] == pytest.approx(0.4) and abs(out.actions[0, 2]) <= BOUND
    kept = np.abs(out.actions[:, 1])
    assert ((kept == 0) | (kept >= 0.03)).all() and out.cost >= 0.1
    # A number that is fixed needs no bounds; numbers may be of any kind.
    assert planning.PlanSpec(low=np.float32([-1]), high=[1]).low == (-1.0,)
    planning.PlanSpec(low=(0, -1), high=(0, 1), fixed=[(0, 3.0)])


def test_warm_start_goes_on_where_the_last_plan_ended():
    spec = spec_of("hybrid", horizon=3, samples=8, iterations=1, elites=2, restarts=1, gradient_steps=2, std=0.01)
    first = run(dataclasses.replace(spec, std=BOUND, samples=200, iterations=8), FAR)
    mean = planning.warm_start(first)
    np.testing.assert_array_equal(mean, np.stack([first.actions[1], first.actions[2], first.actions[2]]))
    warm, cold = run(spec, FAR, mean=mean), run(spec, FAR)
    assert warm.cost < 0.6 * cold.cost and spec.evaluations < 0.02 * (200 * 8 * 3)


@pytest.mark.parametrize("temperature", [None, 0.3])
def test_impossible_candidates_do_not_pull(temperature):
    """Of 40 candidates fewer than the 20 elites are possible, and the mean goes to those; a single one says nothing of a spread."""
    spec = spec_of("cem", samples=40, elites=20, iterations=1, momentum_mean=0.0, momentum_std=0.0, temperature=temperature)
    places = jnp.linspace(-1, 1, 40)[None, None, :, None] * jnp.ones(3)
    for limit, possible in ((0.7, 6), (0.99, 1)):
        cost_fn = lambda params, state, goal, action, limit=limit: jnp.where(state["at"][:, 0] > limit * BOUND, 0.0, jnp.inf)
        out = fast_jit(functools.partial(planning.plan, dynamics_fn=move, cost_fn=cost_fn, spec=spec))(
            PARAMS, jax.random.key(0), root(NEAR), noise=places)
        kept = np.linspace(-1, 1, 40)[-possible:] * BOUND
        np.testing.assert_allclose(out.mean[0], kept.mean(), rtol=1e-5)
        np.testing.assert_allclose(out.std[0], kept.std(ddof=1) if possible > 1 else BOUND, rtol=1e-4)


@pytest.mark.parametrize("preset", ["cem", "mppi", "hybrid"])
def test_costs_that_are_not_numbers(preset):
    def half_broken(params, state, goal, action):
        return jnp.where(state["at"][:, 0] > 0.02, jnp.nan, distance(params, state, goal, action))

    solve = functools.partial(planning.plan, dynamics_fn=move, cost_fn=half_broken, spec=spec_of(preset))
    out = fast_jit(solve)(PARAMS, jax.random.key(0), root(NEAR))
    assert np.isfinite(out.actions).all() and out.actions[0, 0] < 0.021 and out.cost < 0.06
    broken = fast_jit(functools.partial(solve, cost_fn=lambda *_: jnp.full(len(_[1]["at"]), jnp.nan)))
    out = broken(PARAMS, jax.random.key(0), root(NEAR))
    assert np.isinf(out.cost) and np.isfinite(out.actions).all()


def test_colored_noise_is_smooth_and_as_strong():
    spec = planning.PlanSpec(low=(-9,), high=(9,), std=1, horizon=8, samples=4000, iterations=1, noise_color=2.0)
    seen = {}

    def watch(params, state, action):
        return jnp.concatenate([state[:, 1:], action], 1)

    for color in (0.0, 2.0):
        out = fast_jit(functools.partial(
            planning.plan, dynamics_fn=watch, cost_fn=lambda params, state, goal, action: (state[:, 1:] * state[:, :-1]).mean(1),
            spec=dataclasses.replace(spec, noise_color=color),
        ))({}, jax.random.key(0), planning.Root(jnp.zeros(8), None))
        seen[color] = float(out.trace.costs.mean())
    assert abs(seen[0.0]) < 0.03 and seen[2.0] > 0.4
    from jepa_jax.planning.search import _draw

    for horizon in (2, 5, 8):
        drawn = _draw(dataclasses.replace(spec, horizon=horizon), jax.random.key(1))
        assert float(drawn.std()) == pytest.approx(1, abs=0.03)


def test_curve_counts_the_work():
    spec = spec_of("hybrid", horizon=2)
    work, best = curve(run(spec, NEAR), spec)
    assert len(work) == spec.iterations + spec.gradient_steps == len(best) and (jnp.diff(best) <= 0).all()
    assert int(work[-1]) == spec.evaluations
    assert dataclasses.replace(spec, choice="mean").evaluations == spec.evaluations + spec.horizon
    polished = dataclasses.replace(spec, polish_steps=5)
    work, costs = curve(run(polished, NEAR), polished)
    # Of one plan, forward and backward, two steps each.
    assert int(work[-1]) == polished.evaluations == spec.evaluations + 5 * 3 * 2
    assert (jnp.diff(costs) <= 0).all() and costs[-1] <= best[-1] and len(costs) == len(best) + 5


def test_polishing_goes_on_from_the_best_of_all_starts():
    """Of two valleys, a descent from several starts finds the deeper one, and one start alone gets to its bottom."""
    def valleys(params, state, goal, action):
        x = state["at"] - goal
        return 100 * ((x**2 - 0.04) ** 2).sum(-1) + 0.1 * x[..., 0]

    spec = spec_of("precise", samples=2, iterations=0, restarts=6, gradient_steps=6, std=BOUND, low=(-0.3,) * 3, high=(0.3,) * 3)
    solve = lambda spec: fast_jit(functools.partial(planning.plan, dynamics_fn=move, cost_fn=valleys, spec=spec))(
        PARAMS, jax.random.key(0), root(np.zeros(3, np.float32)))
    rough, polished = solve(dataclasses.replace(spec, polish_steps=0)), solve(spec)
    steepest = lambda output: float(jnp.abs(jax.grad(lambda at: valleys(None, {"at": at}, 0.0, None))(output.actions[0])).max())
    assert polished.cost < rough.cost and polished.actions[0, 0] < -0.15
    assert steepest(polished) < 1e-3 < 0.02 < steepest(rough)


def test_polishing_ends_on_kinks():
    """Where the longer of two ways counts, or moving has a price, slopes do not fade: a rate that stays makes steps go to and fro."""
    def kinked(params, state, goal, action):
        way = jnp.abs(state["at"] - goal)
        return 1.0 + jnp.maximum(way[..., 0] + way[..., 1] / 2, 3 * way[..., 2]) + 0.5 * jnp.abs(action).sum(-1)

    solve = lambda **changes: fast_jit(functools.partial(planning.plan, dynamics_fn=move, cost_fn=kinked, spec=spec_of("precise", **changes)))(
        PARAMS, jax.random.key(0), root(np.array([0.03, 0.01, 0.04], np.float32)))
    out = solve()
    # The first way is worth its price, the second is not, and the third ends where it is as long as what is left of the others.
    np.testing.assert_allclose(out.actions[0], [0.03, 0.0, 0.04 - 0.005 / 3], atol=1e-5)
    np.testing.assert_allclose(out.cost, 1.005 + 0.5 * (0.07 - 0.005 / 3), atol=1e-5)
    # The second way stays 0.03 long, half of which counts; what is not free turns nothing.
    for changes in ({"fixed": ((1, -0.02),)}, {"held": ((1, 0, -0.02),)}):
        np.testing.assert_allclose(solve(**changes).actions[0], [0.03, -0.02, 0.04 - 0.015 / 3], atol=1e-5)


def test_a_bound_that_stops_a_number_does_not_slow_the_others():
    """A slope that is thirty times as steep leads out of the bounds, which takes most of the first steps."""
    def steep(params, state, goal, action):
        x = state["at"]
        return 3.0 - 30 * x[..., 0] + jnp.abs(x[..., 1] - 0.041) + jnp.abs(x[..., 1] + x[..., 2] - 0.05)

    for high in (BOUND, 0.07):
        spec = spec_of("precise", iterations=0, gradient_steps=1, restarts=1, learning_rate=0.2, high=(high, BOUND, BOUND))
        out = fast_jit(functools.partial(planning.plan, dynamics_fn=move, cost_fn=steep, spec=spec))(PARAMS, jax.random.key(0), root(NEAR))
        np.testing.assert_allclose(out.actions[0], [high, 0.041, 0.009], atol=2e-5)
        np.testing.assert_array_equal(out.mean, out.actions)


def test_space_is_made_narrower_where_a_kink_is_oblique():
    """Adam has a rate for each number, so that it gets stuck in a narrow valley that is parallel to none of them."""
    def valley(at):
        return jnp.abs(at[0] + at[1] + at[2]) * 20 + jnp.abs(at[0] - at[1]) + jnp.abs(at[2] - 0.1)

    def lowest(optimizer, steps=60):
        def step(carry, _):
            at, state = carry
            cost, slopes = jax.value_and_grad(valley)(at)
            updates, state = optimizer.update(slopes, state, at)
            return (at + updates, state), cost

        start = jnp.array([0.3, -0.4, 0.2])
        return float(jax.lax.scan(step, (start, optimizer.init(start)), None, steps)[1].min())

    assert lowest(space_dilation(0.1, bound=1.0)) < 1e-4
    assert all(lowest(optax.adam(optax.exponential_decay(rate, 60, 1e-5), 0.1, 0.6)) > 1e-2 for rate in (0.03, 0.1, 0.3))


@pytest.mark.parametrize("changes, message", [
    ({"low": (0.1, 0, 0), "high": (-0.1, 1, 1)}, r"bounds of action number 0 are 0.1 to -0.1; the low one must be below"),
    ({"elites": 65}, "elites is 65; it must be from 2 to the number of samples, 64"),
    ({"horizon": 0}, "horizon is 0"),
    ({"polish_steps": -1}, "polish_steps is -1; it must be a whole number of at least 0"),
    ({"cost": "mean"}, "cost is 'mean'; it must be last, sum"),
    ({"cost": (1, 2, 3)}, "cost is .*a finite number or 1 of them"),
    ({"momentum_mean": 1.5}, "momentum_mean is"),
    ({"std": float("nan")}, "std is"),
    ({"fixed": [(3, 0.0)]}, "fixed is"),
    ({"iterations": 0}, "iterations is 0; it must be at least 1"),
    ({"low": (-1,) * 2}, "high is .*2 long"),
    ({"held": [(2, 0)]}, "held is .*tuples of 3 numbers"),
    ({"chunk": 2.5}, "chunk is 2.5; it must be None or a whole number"),
    ({"temperature": "low"}, "temperature is 'low'; it must be None or a number above 0"),
    ({"noise_color": float("inf")}, "noise_color is inf; it must be a number"),
    ({"learning_rate": "fast"}, "learning_rate is 'fast'; it must be a number"),
    ({"include_mean": "no"}, "include_mean is 'no'; it must be True or False"),
    ({"fixed": 5}, "fixed is 5; it must be tuples of 2 numbers"),
    ({"fixed": [(0, float("nan"))]}, "fixed is .*finite value"),
    ({"held": [(0, 1, float("nan"))]}, "held is .*finite value"),
    ({"low": "abc"}, "low is 'abc'; it must be"),
    ({"low": 5}, "high is .*1 long"),
])
def test_settings_that_make_no_sense(changes, message):
    with pytest.raises(ValueError, match=message):
        planning.PlanSpec(**(BASE | GENERAL["icem"] | changes))


def test_arrays_of_other_shapes():
    with pytest.raises(ValueError, match=r"mean of the root has shape \(2, 3\); it must be \(1, 3\) or \(3,\)"):
        run(spec_of("cem"), NEAR, mean=jnp.zeros((2, 3)))
    with pytest.raises(ValueError, match="noise has shape"):
        run(spec_of("cem"), NEAR, noise=jnp.zeros((1, 1, 1, 3)))
    with pytest.raises(ValueError, match=r"cost_fn returns shape \(128, 1\); it must be one cost of each candidate, \(128,\)"):
        planning.plan(PARAMS, jax.random.key(0), root(NEAR), move, lambda params, state, *_: state["at"][:, :1], spec_of("cem"))


def test_presets_of_robots():
    spec = planning.make_spec(DROID, "paper")
    assert (spec.samples, spec.horizon, spec.iterations, spec.elites) == (800, 1, 10, 10)
    assert spec.high == (0.075, 0.075, 0.075, 0.75) and spec.std == (0.075, 0.075, 0.075, 1.0)
    assert spec.deadzone == (0, 0, 0, 0.25) and planning.make_spec(DROID, "notebook").momentum_std == (0.75, 0.75, 0.75, 0.15)
    assert planning.make_spec(DROID, "cem_default").high[0] == 0.05 and planning.make_spec(DROID, "mppi", samples=32).elites == 32
    defaults = planning.make_spec(DROID, "world_model_default")
    assert (defaults.samples, defaults.horizon, defaults.iterations, defaults.elites, defaults.high[0]) == (400, 2, 10, 10, 0.05)
    assert defaults.momentum_mean == defaults.momentum_std == (0.15,) * 4
    hundred = planning.make_spec(DROID, "cem_default")
    assert (hundred.samples, hundred.horizon, hundred.iterations, hundred.elites) == (100, 1, 100, 10)
    assert hundred.momentum_mean == (0.25, 0.25, 0.25, 0.15) and hundred.momentum_std == (0.95, 0.95, 0.95, 0.15)
    notebook = planning.make_spec(DROID, "notebook")
    assert (notebook.samples, notebook.horizon, notebook.iterations, notebook.elites, notebook.high[0]) == (25, 2, 2, 10, 0.075)
    with pytest.raises(ValueError, match="x is fixed to 5; its bounds allow -0.05 to 0.05"):
        planning.make_spec(DROID, "cem_default", fixed=[(0, 5.0)])
    with pytest.raises(ValueError, match="'gradient' draws no candidates, so samples would do nothing"):
        planning.make_spec(DROID, "gradient", samples=9)
    turning = dataclasses.replace(DROID, planned=(), action_low=(-0.1,) * 7, action_high=(0.1,) * 7)
    assert planning.make_spec(turning, "cem").dims == 7
    with pytest.raises(ValueError, match="official one, whose actions are changes of x, y, z and a gripper; robot 'droid' plans x, y, z, roll"):
        planning.make_spec(turning, "paper")
    with pytest.raises(ValueError, match=r"plans x, y, z, gripper \(absolute\); choose one of cem"):
        planning.make_spec(dataclasses.replace(DROID, absolute=("gripper",)), "paper")
    with pytest.raises(ValueError, match=r"'se2': the bounds of an action are not known; give LOW:HIGH for each of forward, left, turn, .*"
                                         r"\(--bounds; .*\), or state robot.action_low and robot.action_high"):
        planning.make_spec(SE2, "cem")
    assert planning.make_spec(SE2, "cem", low=(0, -0.1, -1), high=(1, 0.1, 1)).start == (0, 0, 0)
    with pytest.raises(ValueError, match="planner 'best' is unknown"):
        planning.make_spec(DROID, "best")
    with pytest.raises(ValueError, match="no setting sample;"):
        planning.make_spec(DROID, "cem", sample=3)
