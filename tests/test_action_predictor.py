"""The action-conditioned predictor: who influences whom, kinds of conditioning, other grids, errors."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compiling import fast_jit
from jepa_jax.models import ActionPredictor, convert
from jepa_jax.models.spec import abstract_params, build, describe
from jepa_jax.weights.bundle import WeightsError
from jepa_jax.weights.inference import refuse_unofficial

GRID, FRAMES, PATCHES = (2, 3), 4, 6
PREDICTOR = ActionPredictor(20, 48, 2, 3, use_extrinsics=True, grid=GRID)
ADALN = PREDICTOR.copy(conditioning="adaln")
NAMES = ("tokens", "actions", "states", "extrinsics")


def _inputs(frames=FRAMES, patches=PATCHES, seed=0):
    shapes = ((frames * patches, 20), (frames, 7), (frames, 7), (frames, 6))
    rngs = jax.random.split(jax.random.key(seed), len(shapes))
    return {name: jax.random.normal(rng, (2, *shape)) for name, rng, shape in zip(NAMES, rngs, shapes)}


def _disturbed(params):
    """Add noise to all parameters, so that none is zero or one."""
    leaves, treedef = jax.tree.flatten(params)
    rngs = jax.random.split(jax.random.key(1), len(leaves))
    return treedef.unflatten([x + 0.1 * jax.random.normal(rng, x.shape) for x, rng in zip(leaves, rngs)])


@pytest.fixture(scope="module")
def params():
    return _disturbed(fast_jit(PREDICTOR.init)(jax.random.key(0), **_inputs()))


@pytest.fixture(scope="module")
def adaln_start():
    return fast_jit(ADALN.init)(jax.random.key(0), **_inputs())


@pytest.fixture(scope="module")
def apply():
    return fast_jit(PREDICTOR.apply)


@pytest.mark.parametrize("conditioning, attention", [("tokens", "xla"), ("tokens", "chunked"), ("adaln", "chunked")])
def test_no_frame_sees_a_later_one(params, adaln_start, conditioning, attention):
    """Every input of every frame changes all predictions from that frame on, and none before."""
    apply = fast_jit(PREDICTOR.copy(conditioning=conditioning, attention=attention).apply)
    params, inputs = params if conditioning == "tokens" else _disturbed(adaln_start), _inputs()
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


def test_modulation_starts_without_effect(params, adaln_start):
    """Before training nothing depends on actions; the blocks are plain ones, and a first gradient reaches them."""
    modulation = adaln_start["params"]["blocks"]["layers"]["modulation"]
    assert {name: leaf.shape for name, leaf in modulation.items()} == {"kernel": (2, 48, 288), "bias": (2, 288)}
    assert not any(leaf.any() for leaf in modulation.values())
    apply, inputs = fast_jit(ADALN.apply), _inputs()
    before = apply(adaln_start, **inputs)
    np.testing.assert_array_equal(apply(adaln_start, **(inputs | {"actions": inputs["actions"] + 1.0})), before)
    # What is there besides the modulation is what conditioning by tokens has.
    others = {name: leaf for name, leaf in adaln_start["params"]["blocks"]["layers"].items() if name != "modulation"}
    chex.assert_trees_all_equal_shapes(others, params["params"]["blocks"]["layers"])
    gradients = fast_jit(jax.grad(lambda p: jnp.sum(ADALN.apply(p, **inputs) ** 2)))(adaln_start)["params"]
    for kernel in gradients["blocks"]["layers"]["modulation"]["kernel"]:
        # Scale, shift and gate of both halves.
        assert (np.abs(kernel).reshape(48, 6, 48).max(axis=(0, 2)) > 1e-3).all()


def test_unused_extrinsics_of_modulation():
    """Only official checkpoints need weights that nobody uses."""
    plain = abstract_params(ADALN.copy(use_extrinsics=False))
    assert plain.keys() == abstract_params(ADALN).keys() - {"extrinsics"}


def test_modulation_is_described_and_has_no_official_form(adaln_start):
    spec = describe(ADALN)
    assert spec["conditioning"] == "adaln" and build(spec) == ADALN
    # Descriptions written before there was a choice.
    del spec["conditioning"]
    assert build(spec) == PREDICTOR
    with pytest.raises(ValueError, match="conditioning 'adaln' has no official form"):
        convert.action_predictor_to_official(adaln_start["params"])
    with pytest.raises(WeightsError, match="conditioning='adaln', which the official code does not have"):
        refuse_unofficial("action_predictor", ADALN)
    refuse_unofficial("action_predictor", PREDICTOR)


def test_a_predicted_change_is_added(params):
    changing = PREDICTOR.copy(predicts_change=True)
    inputs = _inputs()
    expected = inputs["tokens"] + fast_jit(PREDICTOR.apply)(params, **inputs)
    np.testing.assert_allclose(fast_jit(changing.apply)(params, **inputs), expected, atol=1e-5)
    assert build(describe(changing)) == changing
    # A new one copies the frame, and yet its first step moves the last layer.
    start = fast_jit(changing.init)(jax.random.key(0), **inputs)
    np.testing.assert_array_equal(fast_jit(changing.apply)(start, **inputs), inputs["tokens"])
    gradients = fast_jit(jax.grad(lambda p: jnp.sum(changing.apply(p, **inputs) ** 2)))(start)["params"]
    assert float(jnp.abs(gradients["proj"]["kernel"]).max()) > 0
    with pytest.raises(WeightsError, match="predicts_change=True, which the official code does not have"):
        refuse_unofficial("action_predictor", changing)


def test_unknown_conditioning(params):
    with pytest.raises(ValueError, match=r"'film' is unknown; choose one of \('tokens', 'adaln'\)"):
        PREDICTOR.copy(conditioning="film").apply(params, **_inputs())


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
