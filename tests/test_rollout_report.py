"""What the rollout report measures, against predictors whose worth is known, and how it turns that into words."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import robots
from compiling import fast_jit
from weight_bundles import random_network

from jepa_jax.data.latents import DTYPE
from jepa_jax.evals import controls, readout, rollout_report
from jepa_jax.evals.intervals import Bootstrap
from jepa_jax.evals.rollouts import (
    COPY_LAST, MEAN_ACTION, MODEL, ONE_STEP, OPEN_LOOP, ROWS, SHUFFLED, TRUE, measure, pooling,
)
from jepa_jax.evals.samples import Samples
from jepa_jax.models import ActionPredictor, VideoEncoder
from jepa_jax.models.norms import normalize_latents
from jepa_jax.robots.algebra import derive_actions
from jepa_jax.robots.presets import DROID, generic
from jepa_jax.robots.world import WorldModel
from jepa_jax.viz.rollouts import draw_report
from jepa_jax.weights.bundle import Bundle, Network, Preprocessing

PREDICTOR = ActionPredictor(24, 32, 1, 2, grid=(4, 4))
COUNT, FRAMES, CONTEXT = 10, 6, 2
HORIZON = FRAMES - CONTEXT
POINT = generic(("x", "y", "z"), state_units=("m",) * 3)


class Oracle:
    """A world in which latents show the state, and whose predictions are perfect, or blind to the actions."""

    robot, encoder, predictor = POINT, None, PREDICTOR

    def __init__(self, heeds=True):
        self._heeds = heeds
        self._map = np.random.default_rng(0).normal(size=(3, 16 * 24)).astype(np.float32)

    def see(self, states):
        """Return latents `[B, F, 16, 24]` of states."""
        return normalize_latents((states @ self._map).reshape(*states.shape[:2], 16, 24))

    def predict_next(self, params, latents, actions, states):
        return self.see(states + actions * self._heeds)

    def rollout(self, params, latents, actions, states, *, integrate):
        assert integrate and states.shape[1] == latents.shape[1]
        moved = jnp.cumsum(actions[:, states.shape[1] - 1 :], axis=1)
        return self.see(states[:, -1:] + moved * self._heeds)


def make_samples(states, robot, latents, per_trajectory=1):
    """Make samples of states `[N, F, S]`."""
    arrays = {"states": np.float32(states), "actions": np.float32(derive_actions(robot, np.float64(states)))}
    arrays["latents"] = np.asarray(latents, np.float32).astype(DTYPE)
    return Samples(arrays, {}, np.arange(len(states)) // per_trajectory, np.full(len(states), 0.3), [("lab/3", "too short", "lab/3: 4 frames")])


@pytest.fixture(scope="module")
def seen():
    """Samples of the oracle's world: a point that moves at random, never along z."""
    steps = np.random.default_rng(1).normal(size=(COUNT, FRAMES, 3)) * [0.3, 0.1, 0]
    states = np.float32(np.cumsum(steps, axis=1) + [0.5, 1, 2])
    return make_samples(states, POINT, Oracle().see(states))


@pytest.fixture(scope="module")
def random_samples():
    """Samples of DROID's robot with latents that mean nothing, two per trajectory."""
    states = np.stack([robots.smooth_states(FRAMES, seed) for seed in range(COUNT)])
    latents = np.random.default_rng(2).normal(size=(COUNT, FRAMES, 16, 24))
    return make_samples(states, DROID, latents, per_trajectory=2)


@pytest.fixture(scope="module")
def real():
    """A real network with random weights, and its world."""
    return WorldModel(PREDICTOR, DROID), {"action_predictor": random_network(PREDICTOR, 3).params}


def normalized(samples):
    latents = np.asarray(samples.arrays["latents"], np.float64)
    return (latents - latents.mean(-1, keepdims=True)) / np.sqrt(latents.var(-1, keepdims=True) + 1e-5)


@pytest.fixture(scope="module")
def judged(seen):
    """What is measured of a predictor that knows the world, and of one that does not heed actions."""
    return {heeds: measure(Oracle(heeds), {}, seen, context=CONTEXT, batch_size=4) for heeds in (True, False)}


def test_a_predictor_that_uses_actions(seen, judged):
    measured = judged[True]
    for errors in measured.errors.values():
        # What is left is the rounding of stored latents.
        assert errors[MODEL].shape == (COUNT, HORIZON) and errors[MODEL].max() < 5e-3
        assert errors[SHUFFLED].mean() > 20 * errors[MODEL].mean()
        assert errors[MEAN_ACTION].mean() > 20 * errors[MODEL].mean()
    report = rollout_report.summarize(measured, seen, POINT)
    assert report["ratios"]["shuffled_to_true_one_step"]["low"] > 5
    one, far, used, *rest = report["verdicts"]
    assert one.startswith("one step: predicts change") and far.startswith(f"open loop, step {HORIZON}: predicts change")
    assert used.startswith("the model uses actions: with shuffled actions its one-step error is ")
    # The number that never changes is no evidence.
    assert rest[-1] == "cannot be judged: dimension 'z' does not vary in these data" and "ignores" not in str(rest)


def test_a_predictor_that_ignores_actions(seen, judged):
    measured = judged[False]
    for errors in measured.errors.values():
        np.testing.assert_array_equal(errors[SHUFFLED], errors[MODEL])
        np.testing.assert_allclose(errors[MODEL], errors[COPY_LAST], atol=5e-3)
    report = rollout_report.summarize(measured, seen, POINT)
    assert report["ratios"]["shuffled_to_true_one_step"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    text = "\n".join(rollout_report.describe(report))
    assert "* one step: no better than predicting no change; its error is 1.00 times" in text
    assert "* the model ignores actions: with shuffled actions its one-step error is 1.00 times (1.00 to 1.00)" in text
    assert "* the model ignores dimensions 'x', 'y': one standard deviation moves the prediction by less than 1%" in text


def test_a_network_without_action_weights(random_samples, real):
    """One step does not depend on actions; in open loop the states that follow from them still do."""
    world, params = real
    blind = jax.tree.map(np.copy, params)
    blind["action_predictor"]["action"] = jax.tree.map(np.zeros_like, blind["action_predictor"]["action"])
    measured = measure(world, blind, random_samples, context=CONTEXT, batch_size=8)
    one, far = measured.errors[ONE_STEP], measured.errors[OPEN_LOOP]
    np.testing.assert_array_equal(one[SHUFFLED], one[MODEL])
    np.testing.assert_array_equal(far[SHUFFLED][:, 0], far[MODEL][:, 0])
    assert (far[SHUFFLED][:, 1:] != far[MODEL][:, 1:]).all()
    assert not measured.sensitivity.any()
    measured = measure(world, params, random_samples, context=CONTEXT, batch_size=8)
    assert (measured.errors[ONE_STEP][SHUFFLED] != measured.errors[ONE_STEP][MODEL]).all() and (measured.sensitivity > 0).all()


def test_errors_are_those_of_the_predictions(random_samples, real):
    world, params = real
    measured = measure(world, params, random_samples, context=CONTEXT, batch_size=8)
    arrays, latents = random_samples.arrays, normalized(random_samples)
    distance = lambda guess, start: np.abs(guess - latents[:, start:]).mean((2, 3))
    copied = {ONE_STEP: latents[:, CONTEXT - 1 : -1], OPEN_LOOP: latents[:, CONTEXT - 1 : CONTEXT]}
    now = jnp.asarray(latents, jnp.float32)
    each = fast_jit(world.predict_next)(params, now[:, :-1], arrays["actions"], arrays["states"][:, :-1])
    # States as they were, all frames computed again at every step.
    rollout = fast_jit(functools.partial(world.rollout, cached=False))
    far = rollout(params, now[:, :CONTEXT], arrays["actions"], arrays["states"][:, :-1])
    for mode, guess in ((ONE_STEP, each[:, CONTEXT - 1 :]), (OPEN_LOOP, far)):
        assert tuple(measured.errors[mode]) == ROWS
        np.testing.assert_allclose(measured.errors[mode][COPY_LAST], distance(copied[mode], CONTEXT), atol=1e-5)
        np.testing.assert_allclose(measured.errors[mode][MODEL], distance(guess, CONTEXT), atol=2e-4)
    moving = np.abs(arrays["actions"] / arrays["actions"].std((0, 1))).sum((1, 2)).argmax()
    assert measured.example.sample == moving
    np.testing.assert_allclose(measured.example.true, latents[moving], atol=1e-4)
    np.testing.assert_allclose(measured.example.predicted, far[moving], atol=2e-3)


def test_sensitivity_is_the_change_for_one_deviation(seen, judged):
    deviations = seen.arrays["actions"].std((0, 1))
    np.testing.assert_allclose(judged[True].deviations, deviations, rtol=1e-5)
    states = seen.arrays["states"][:, CONTEXT - 1 : CONTEXT] + seen.arrays["actions"][:, CONTEXT - 1 : CONTEXT]
    for place in range(3):
        step = np.eye(3, dtype=np.float32)[place] * deviations[place]
        expected = np.abs(Oracle().see(states + step) - Oracle().see(states - step)).mean((1, 2, 3)) / 2
        np.testing.assert_allclose(judged[True].sensitivity[:, place], expected, atol=1e-5)
    assert judged[True].sensitivity[:, :2].min() > 0.01


def test_results_do_not_depend_on_the_batch(seen, judged):
    whole = measure(Oracle(), {}, seen, context=CONTEXT, batch_size=16)
    for mode, rows in whole.errors.items():
        for row, values in rows.items():
            np.testing.assert_allclose(values, judged[True].errors[mode][row], atol=1e-6)
    assert whole.example.sample == judged[True].example.sample
    np.testing.assert_allclose(whole.example.true, judged[True].example.true, atol=1e-6)


def test_positions_are_read_off_predicted_latents(seen):
    measured = measure(Oracle(), {}, seen, context=CONTEXT, keep_latents=True)
    assert measured.pooled == (1, 1) and measured.read[TRUE].shape == (COUNT, FRAMES, 16, 24)
    positions = seen.arrays["states"]
    decoded = readout.decode_positions(measured.read, {"gripper": positions}, seen.trajectory, context=CONTEXT)["gripper"]
    assert decoded.fitted_trajectories == decoded.tested_trajectories == len(decoded.tested) == COUNT // 2
    held = positions[decoded.tested]
    far = np.linalg.norm(held[:, CONTEXT:] - held[:, CONTEXT - 1 : CONTEXT], axis=-1) * 100
    assert far.mean() > 30
    # Latents are normalised, so the readout is not exact, but far better than the controls.
    np.testing.assert_allclose(decoded.errors[COPY_LAST], far, rtol=0.5, atol=12)
    for row in (readout.TRUE_LATENTS, ONE_STEP, OPEN_LOOP):
        assert np.median(decoded.errors[row]) < 0.4 * np.median(far)
    mean = np.delete(positions, decoded.tested, axis=0).mean((0, 1))
    expected = np.linalg.norm(held[:, CONTEXT:] - mean, axis=-1) * 100
    np.testing.assert_allclose(decoded.errors[readout.MEAN_POSITION], expected, rtol=1e-4)
    report = rollout_report.summarize(measured, seen, POINT, decoded={"gripper": decoded})
    assert report["verdicts"][-1].startswith("gripper: predictions beat copying the last frame; ")
    with pytest.raises(ValueError, match="3 trajectories; a readout needs at least 4"):
        readout.decode_positions(measured.read, {"gripper": positions}, seen.trajectory % 3, context=CONTEXT)


def test_the_readout_points_at_a_thing_wherever_it_is():
    rng = np.random.default_rng(0)
    place = rng.integers(0, 16, 3000)
    latents = rng.normal(size=(3000, 16, 8)).astype(np.float32)
    # The thing is known by what its token holds, not by where it is.
    latents[np.arange(3000), place] += 6 * np.float32([1, -1] * 4)
    targets = np.stack([place // 4, place % 4, rng.normal(size=3000)], 1) * [0.1, 0.1, 1.0] + [3.0, 0.0, 0.0]
    fitted = readout.fit_readout(latents[:2000], targets[:2000])
    error = np.abs(fitted.apply(latents[2000:].reshape(10, 100, 16, 8)).reshape(1000, 3) - targets[2000:]).mean(0)
    # A guess of the mean would be 0.1 off.
    assert error[:2].max() < 0.045 and error[2] > 0.6


def test_controls_have_learnt_nothing():
    encoder = VideoEncoder(width=24, depth=2, num_heads=2, patch_size=8)
    clip = np.random.default_rng(0).normal(size=(1, 2, 16, 16, 3)).astype(np.float32)
    params = encoder.init(jax.random.key(5), clip)["params"]
    bundle = Bundle({"encoder": Network(encoder, params)}, Preprocessing(crop_size=16, short_side=16, frames=4))
    (patches,) = controls.make_control(bundle, controls.PATCHES).networks.values()
    found = patches.module.apply({"params": patches.params}, clip)[0].reshape(2, 2, -1)
    pixels = clip[0].reshape(2, 2, 8, 2, 8, 3).transpose(1, 3, 0, 2, 4, 5).reshape(2, 2, -1)
    expected = (pixels - pixels.mean(-1, keepdims=True)) / pixels.std(-1, keepdims=True)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    first, second = (controls.make_control(bundle, controls.RANDOM, seed).networks["encoder"].params for seed in (0, 1))
    assert jax.tree.map(np.shape, first) == jax.tree.map(np.shape, params)
    assert np.abs(first["patch_embed"]["kernel"] - second["patch_embed"]["kernel"]).max() > 0.01


def test_intervals_are_over_trajectories():
    rng = np.random.default_rng(0)
    values = rng.normal(3, 1, 200)
    alone = Bootstrap(np.arange(200)).mean(values)
    # 1.96 standard errors to each side.
    assert alone.value == pytest.approx(values.mean()) and alone.high - alone.low == pytest.approx(0.277, rel=0.1)
    # The same numbers four times over tell nothing new if they are of one trajectory.
    copied = np.repeat(values, 4)
    together, apart = Bootstrap(np.repeat(np.arange(200), 4)).mean(copied), Bootstrap(np.arange(800)).mean(copied)
    assert together.high - together.low == pytest.approx(alone.high - alone.low, rel=0.02)
    assert apart.high - apart.low == pytest.approx((alone.high - alone.low) / 2, rel=0.1)
    paired = Bootstrap(np.arange(200)).ratio(1.5 * values, values)
    np.testing.assert_allclose(paired, 1.5)


@pytest.mark.parametrize("grid, width, factors", [
    ((16, 16), 1408, (4, 4)), ((8, 8), 192, (1, 1)), ((4, 6), 4096, (1, 3)), ((5, 7), 2048, (5, 1)), ((2, 2), 1 << 16, (2, 2)),
])
def test_wide_latents_are_pooled_for_readouts(grid, width, factors):
    assert pooling(grid, width) == factors


def test_pictures_without_frames_or_with_one_step(seen, judged):
    report = rollout_report.summarize(judged[False], seen, POINT)
    options = {"grid": (4, 4), "context": CONTEXT, "step_seconds": 0.25, "name": "oracle"}
    with_frames = draw_report(report, judged[False].example, np.zeros((FRAMES, 32, 32, 3), np.uint8), **options)
    without = draw_report(report, judged[False].example, None, **options)
    assert len(with_frames.subfigs[1].axes) == len(without.subfigs[1].axes) + 9
    captions = [panel.get_title() for panel in without.subfigs[1].axes[: HORIZON + 1]]
    assert captions == ["last context frame", "step 1, +0.25 s", "step 2, +0.5 s", "step 3, +0.75 s", "step 4, +1 s"]


@pytest.mark.parametrize("context, message", [(0, "context 0 of 6 frames"), (6, "it must leave at least one to predict")])
def test_contexts_that_leave_nothing(seen, context, message):
    with pytest.raises(ValueError, match=message):
        measure(Oracle(), {}, seen, context=context)


def test_predictions_that_are_not_finite(random_samples, real):
    world, params = real
    broken = jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), params)
    with pytest.raises(ValueError, match="the one step predictions of 10 of 10 samples are not finite"):
        measure(world, broken, random_samples, context=CONTEXT, batch_size=8)
