"""The action-conditioned predictor: who influences whom, any number of frames, other grids, errors."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compiling import fast_jit
from jepa_jax.models import ActionPredictor

GRID, FRAMES, PATCHES = (2, 3), 4, 6
PREDICTOR = ActionPredictor(20, 48, 2, 3, use_extrinsics=True, grid=GRID)
NAMES = ("tokens", "actions", "states", "extrinsics")


def _inputs(frames=FRAMES, patches=PATCHES, seed=0):
    shapes = ((frames * patches, 20), (frames, 7), (frames, 7), (frames, 6))
    rngs = jax.random.split(jax.random.key(seed), len(shapes))
    return {name: jax.random.normal(rng, (2, *shape)) for name, rng, shape in zip(NAMES, rngs, shapes)}


@pytest.fixture(scope="module")
def params():
    leaves, treedef = jax.tree.flatten(fast_jit(PREDICTOR.init)(jax.random.key(0), **_inputs()))
    rngs = jax.random.split(jax.random.key(1), len(leaves))
    return treedef.unflatten([x + 0.1 * jax.random.normal(rng, x.shape) for x, rng in zip(leaves, rngs)])


@pytest.fixture(scope="module")
def apply():
    return fast_jit(PREDICTOR.apply)


@pytest.mark.parametrize("attention", ["xla", "chunked"])
def test_no_frame_sees_a_later_one(params, attention):
    """Every input of every frame changes all predictions from that frame on, and none before."""
    apply, inputs = fast_jit(PREDICTOR.copy(attention=attention).apply), _inputs()
    before = apply(params, **inputs)
    for name in NAMES:
        for frame in range(FRAMES):
            # The last patch of the frame, or the only row of it.
            row = frame * PATCHES + PATCHES - 1 if name == "tokens" else frame
            after = apply(params, **(inputs | {name: inputs[name].at[:, row].add(1.0)}))
            change = np.abs(after - before).max(axis=-1)
            assert not change[:, : frame * PATCHES].any(), (name, frame)
            assert (change[:, frame * PATCHES :] > 1e-6).all(), (name, frame)


def test_gradients_flow_to_earlier_frames_only(params):
    def last_but_one(inputs):
        return jnp.sum(PREDICTOR.apply(params, **inputs).reshape(2, FRAMES, PATCHES, -1)[:, -2] ** 2)

    gradients = fast_jit(jax.grad(last_but_one))(_inputs())
    for name, gradient in gradients.items():
        size = np.abs(gradient).reshape(2, FRAMES, -1).max(axis=-1)
        assert (size[:, :-1] > 0).all() and not size[:, -1].any(), name


def test_any_number_of_frames(params, apply):
    """The first frames of a clip are predicted the same without the rest: nothing depends on the length."""
    inputs = _inputs(frames=6)
    whole = apply(params, **inputs)
    chex.assert_shape(whole, (2, 6 * PATCHES, 20))
    for frames in (1, 5):
        cut = {name: value[:, : frames * (PATCHES if name == "tokens" else 1)] for name, value in inputs.items()}
        np.testing.assert_allclose(apply(params, **cut), whole[:, : frames * PATCHES], atol=2e-6)


def test_conditions_turn_with_time_only_and_other_grids_are_spread():
    predictor = ActionPredictor(20, 48, 2, 3, grid=(4, 8))
    positions = predictor._positions(2, 2, 3, num_conditions=2).reshape(2, 8, 3)
    np.testing.assert_array_equal(positions[..., 0], [[0] * 8, [1] * 8])
    assert not positions[:, :2, 1:].any()
    np.testing.assert_array_equal(positions[1, 2:, 1], [0, 0, 0, 2, 2, 2])
    # Parity: columns are spread over the height too.
    np.testing.assert_allclose(positions[1, 2:, 2], np.array([0, 1, 2, 0, 1, 2]) * 4 / 3, rtol=1e-6)


def test_another_grid_than_built_for(params):
    inputs = _inputs(patches=8)
    out = fast_jit(lambda p, inputs: PREDICTOR.apply(p, **inputs, grid=(4, 2)))(params, inputs)
    chex.assert_shape(out, (2, FRAMES * 8, 20))
    other = fast_jit(lambda p, inputs: PREDICTOR.apply(p, **inputs, grid=(2, 4)))(params, inputs)
    assert not np.allclose(out, other, atol=1e-3)


def test_unused_camera_weights_exist(params):
    plain = PREDICTOR.copy(use_extrinsics=False)
    inputs = {name: value for name, value in _inputs().items() if name != "extrinsics"}
    chex.assert_trees_all_equal_shapes(fast_jit(plain.init)(jax.random.key(0), **inputs), params)
    gradients = fast_jit(jax.grad(lambda p: jnp.sum(plain.apply(p, **inputs) ** 2)))(params)["params"]
    assert not any(leaf.any() for leaf in jax.tree.leaves(gradients.pop("extrinsics")))
    assert all(leaf.any() for leaf in jax.tree.leaves(gradients))


def test_half_precision(params, apply):
    half = PREDICTOR.copy(dtype=jnp.bfloat16)
    out = fast_jit(half.apply)(params, **_inputs())
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32), apply(params, **_inputs()), atol=0.15)


@pytest.mark.parametrize("changes, message", [
    ({"tokens": (2, 23, 20)}, "23 tokens are not a whole number of frames of 6 tokens"),
    ({"tokens": (2, 0, 20)}, "0 tokens are not a whole number of frames"),
    ({"tokens": (2, 24, 21)}, "takes features of width 20, not 21"),
    ({"actions": (2, 3, 7)}, r"action must be an array of shape \(2, 4, 7\) beside 4 frames, not \(2, 3, 7\)"),
    ({"states": (1, 4, 7)}, r"state must be an array of shape \(2, 4, 7\)"),
    ({"extrinsics": (2, 4, 7)}, r"extrinsics must be an array of shape \(2, 4, 6\)"),
    ({"extrinsics": None}, "extrinsics must be an array of .* not None"),
])
def test_mistakes_are_named(params, changes, message):
    inputs = _inputs() | {name: shape and jnp.zeros(shape) for name, shape in changes.items()}
    with pytest.raises(ValueError, match=message):
        PREDICTOR.apply(params, **inputs)


def test_extrinsics_that_would_be_ignored(params):
    with pytest.raises(ValueError, match="extrinsics were given to a predictor with use_extrinsics=False"):
        PREDICTOR.copy(use_extrinsics=False).apply(params, **_inputs())
