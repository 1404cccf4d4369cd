"""The world model's networks: frames apart, rollouts with and without a cache, both kinds of conditioning."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compiling import fast_jit
from jepa_jax.models import (
    ActionPredictor, FrameCache, VideoEncoder, encode_frames, normalize_pixels, predict_next, rollout,
)
from jepa_jax.models.attention import block_causal_attention
from jepa_jax.models.flops import action_predictor_flops
from jepa_jax.models.spec import abstract_params

GRID, PATCHES, WIDTH = (2, 3), 6, 20
ENCODER = VideoEncoder(WIDTH, 2, 2, patch_size=4)
TOKENS = ActionPredictor(WIDTH, 48, 2, 3, action_dim=4, state_dim=5, grid=GRID)
PREDICTORS = {
    "tokens": TOKENS,
    "extrinsics": TOKENS.copy(use_extrinsics=True),
    "adaln": TOKENS.copy(conditioning="adaln"),
    "adaln with extrinsics, checkpointed": TOKENS.copy(conditioning="adaln", use_extrinsics=True, remat="full"),
}


def _random_params(network, dtype=np.float32):
    """Return parameters in which nothing is zero or one."""
    draw = np.random.default_rng(0).normal
    return jax.tree.map(lambda leaf: jnp.asarray(0.2 * draw(size=leaf.shape), dtype), abstract_params(network))


def _clip(frames=5, batch=2):
    return jnp.asarray(np.random.default_rng(1).integers(0, 256, (batch, frames, 8, 12, 3), np.uint8))


def _inputs(predictor, context, total, dtype=np.float32, batch=2, grid=GRID):
    """Return context latents and the conditions of all frames."""
    rng = np.random.default_rng(2)
    dims = [predictor.action_dim, predictor.state_dim] + [predictor.extrinsics_dim] * predictor.use_extrinsics
    shapes = [(context, grid[0] * grid[1], WIDTH), *((total, dim) for dim in dims)]
    return [jnp.asarray(rng.normal(size=(batch, *shape)), dtype) for shape in shapes]


def _wide(predictor):
    return predictor.copy(dtype=jnp.float64, param_dtype=jnp.float64, residual_dtype=jnp.float64)


@pytest.fixture(scope="module")
def encoder_params():
    return _random_params(ENCODER)


def test_every_frame_is_a_clip_of_its_own(encoder_params):
    """Source: spec/action_conditioned.md 4: two equal frames, one time step, a norm with eps 1e-5."""
    video = _clip()
    latents = fast_jit(functools.partial(encode_frames, ENCODER))(encoder_params, video)
    chex.assert_shape(latents, (2, 5, PATCHES, WIDTH))
    doubled = jnp.repeat(normalize_pixels(video).reshape(10, 1, 8, 12, 3), 2, axis=1)
    raw = np.asarray(fast_jit(ENCODER.apply)({"params": encoder_params}, doubled), np.float64)
    expected = (raw - raw.mean(-1, keepdims=True)) / np.sqrt(raw.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(latents.reshape(10, PATCHES, WIDTH), expected, atol=1e-5)


@pytest.mark.parametrize("at_once", [1, 2, 3, 7])
def test_frames_in_chunks(encoder_params, at_once):
    encode = fast_jit(functools.partial(encode_frames, ENCODER, at_once=at_once))
    expected = fast_jit(functools.partial(encode_frames, ENCODER))(encoder_params, _clip())
    np.testing.assert_allclose(encode(encoder_params, _clip()), expected, atol=1e-5)
    # Frames that are normalised already are taken as they are.
    np.testing.assert_allclose(encode(encoder_params, normalize_pixels(_clip())), expected, atol=1e-5)


def test_chunks_bound_the_memory(encoder_params):
    def temporary(at_once):
        encode = jax.jit(functools.partial(encode_frames, ENCODER.copy(attention="xla"), at_once=at_once))
        return encode.lower(encoder_params, _clip(frames=64)).compile().memory_analysis().temp_size_in_bytes

    assert temporary(2) < temporary(None) / 3


@pytest.mark.parametrize("at_once", [None, 2])
def test_no_latent_knows_of_a_later_frame(encoder_params, at_once):
    """Other pixels in the last frame move its own latents and prediction, and not one bit of earlier ones."""
    predictor, video = TOKENS, _clip()
    params, (_, actions, states) = _random_params(predictor), _inputs(predictor, 1, 5)

    @fast_jit
    def see(video):
        latents = encode_frames(ENCODER, encoder_params, video, at_once=at_once)
        return latents, predict_next(predictor, params, latents, actions, states)

    before, after = see(video), see(video.at[:, -1].set(255 - video[:, -1]))
    for old, new in zip(before, after):
        np.testing.assert_array_equal(old[:, :-1], new[:, :-1])
        assert (np.abs(old - new)[:, -1].max(axis=-1) > 1e-3).all()


@pytest.mark.parametrize("name, context, total", [
    ("tokens", 1, 1), ("tokens", 3, 5), ("extrinsics", 1, 3), ("adaln", 2, 4),
    ("adaln with extrinsics, checkpointed", 1, 3),
])
def test_a_cache_changes_nothing(name, context, total):
    predictor = PREDICTORS[name]
    params, inputs = _random_params(predictor), _inputs(predictor, context, total)
    run = lambda cached: fast_jit(functools.partial(rollout, predictor, cached=cached))(params, *inputs)
    predicted = run(cached=True)
    chex.assert_shape(predicted, (2, total - context + 1, PATCHES, WIDTH))
    np.testing.assert_allclose(predicted, run(cached=False), atol=2e-5)
    # It is what teacher forcing gives on frames that are the predictions themselves.
    frames = jnp.concatenate([inputs[0], predicted[:, :-1]], axis=1)
    forced = fast_jit(functools.partial(predict_next, predictor))(params, frames, *inputs[1:])
    np.testing.assert_allclose(predicted, forced[:, context - 1 :], atol=2e-5)


@pytest.mark.parametrize("name, detach", [("tokens", False), ("adaln with extrinsics, checkpointed", True)])
def test_a_cache_changes_nothing_in_float64(name, detach):
    """Neither predictions nor gradients, with respect to anything."""
    with jax.enable_x64(True):
        predictor = _wide(PREDICTORS[name])
        params, inputs = _random_params(predictor, np.float64), _inputs(predictor, 1, 3, np.float64)

        def run(cached):
            def loss(params, *inputs):
                out = rollout(predictor, params, *inputs, cached=cached, detach=detach)
                return jnp.sum(out * jnp.arange(out.size).reshape(out.shape) / out.size), out

            grad = jax.value_and_grad(loss, argnums=tuple(range(1 + len(inputs))), has_aux=True)
            (_, out), gradients = fast_jit(grad)(params, *inputs)
            return out, gradients

        (out, gradients), (expected, expected_gradients) = run(cached=True), run(cached=False)
        np.testing.assert_allclose(out, expected, atol=1e-12)
        chex.assert_trees_all_close(gradients, expected_gradients, atol=1e-10, rtol=1e-9)
        # Every action, state and context latent matters, the first and the last.
        for value in gradients[1:]:
            assert np.isfinite(value).all() and (np.abs(value).reshape(2, value.shape[1], -1).max(-1) > 1e-6).all()


def test_half_precision():
    predictor = TOKENS.copy(dtype=jnp.bfloat16)
    params, inputs = _random_params(predictor), _inputs(predictor, 1, 3)
    run = lambda predictor, cached: fast_jit(functools.partial(rollout, predictor, cached=cached))(params, *inputs)
    out = run(predictor, True)
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, run(predictor, False), atol=0.1)
    np.testing.assert_allclose(out, run(TOKENS, True), atol=0.4)


def test_another_grid_than_built_for():
    params, inputs = _random_params(TOKENS), _inputs(TOKENS, 1, 3, grid=(4, 2))
    run = lambda **options: fast_jit(functools.partial(rollout, TOKENS, **options))(params, *inputs)
    np.testing.assert_allclose(run(grid=(4, 2)), run(grid=(4, 2), cached=False), atol=2e-5)
    assert not np.allclose(run(grid=(4, 2)), run(grid=(2, 4)), atol=1e-3)


@pytest.mark.parametrize("conditioning", ["tokens", "adaln"])
def test_merged_tokens_are_one_token_of_the_blocks(conditioning):
    """Squares of 2 x 2 tokens, and a predictor of wider tokens on a grid of half the sides, are the same."""
    merging = TOKENS.copy(conditioning=conditioning, merge=2, grid=(4, 6))
    wider = TOKENS.copy(conditioning=conditioning, output_dim=4 * WIDTH)
    params, (latents, *told) = _random_params(merging), _inputs(merging, 3, 3, grid=(4, 6))
    chex.assert_trees_all_equal_shapes(params, _random_params(wider))
    squares = latents.reshape(2, 3, 2, 2, 3, 2, WIDTH).swapaxes(4, 3).reshape(2, 3 * PATCHES, 4 * WIDTH)
    out = fast_jit(merging.apply)({"params": params}, latents.reshape(2, -1, WIDTH), *told)
    expected = fast_jit(wider.apply)({"params": params}, squares, *told)
    squares = out.reshape(2, 3, 2, 2, 3, 2, WIDTH).swapaxes(4, 3).reshape(expected.shape)
    np.testing.assert_allclose(squares, expected, atol=1e-5)
    # Keys and values that are kept are those of the blocks' tokens.
    run = lambda cached: fast_jit(functools.partial(rollout, merging, cached=cached))(params, latents[:, :1], *told)
    np.testing.assert_allclose(run(True), run(False), atol=2e-5)
    assert action_predictor_flops(merging, 24, 3) == action_predictor_flops(wider, 6, 3)
    for merge, grid in ((3, (4, 6)), (0, (4, 6)), (2, (2, 3))):
        with pytest.raises(ValueError, match=f"merge is {merge}; it must be at least 1, and divide both sides of the grid of {grid[0]} x"):
            inputs = _inputs(merging, 1, 1, grid=grid)
            merging.copy(merge=merge).apply({"params": params}, inputs[0][:, 0], *inputs[1:], grid=grid)


def test_detached_steps_are_teacher_forced_on_constants():
    """Without gradient through the latents, a step is one on frames that happen to be the predictions."""
    params, (latents, actions, states) = _random_params(TOKENS), _inputs(TOKENS, 1, 2)
    predicted = fast_jit(functools.partial(rollout, TOKENS))(params, latents, actions, states)
    frames = jnp.concatenate([latents, predicted[:, :-1]], axis=1)
    total = lambda out: jnp.sum(out[..., 0] ** 2)
    forced = fast_jit(jax.grad(lambda p: total(predict_next(TOKENS, p, frames, actions, states))))(params)
    through = lambda **options: fast_jit(
        jax.grad(lambda p: total(rollout(TOKENS, p, latents, actions, states, **options)))
    )(params)
    chex.assert_trees_all_close(through(detach=True), forced, atol=1e-4, rtol=1e-3)
    assert not np.allclose(through()["proj"]["kernel"], forced["proj"]["kernel"], atol=1e-2)


@pytest.mark.parametrize("context", [1, 2])
def test_integrated_states(context):
    params, (latents, actions, states) = _random_params(TOKENS), _inputs(TOKENS, context, 4)
    integrate = lambda state, action: state.at[:, :4].add(action)
    steps = jnp.cumsum(actions[:, context - 1 : -1], axis=1)
    steps = jnp.pad(steps, ((0, 0), (0, 0), (0, 1))) + states[:, context - 1 : context]
    truth = jnp.concatenate([states[:, :context], steps], axis=1)

    def run(states, **options):
        return fast_jit(functools.partial(rollout, TOKENS, **options))(params, latents, actions, states)

    np.testing.assert_allclose(run(states[:, :context], integrate=integrate), run(truth), atol=2e-5)


def _flops(function, *arguments):
    return fast_jit(function).lower(*arguments).cost_analysis()["flops"]


@pytest.mark.parametrize("conditioning", ["tokens", "adaln"])
def test_cost_grows_linearly_with_the_steps(conditioning):
    """Computing every frame once costs H frames, computing all so far at every step H (H + 1) / 2."""
    # One block, because XLA counts the body of a scan once.
    predictor = ActionPredictor(64, 96, 1, 2, grid=GRID, conditioning=conditioning, attention="xla")
    params = abstract_params(predictor)

    def cost(steps, cached):
        shapes = (1, 1, PATCHES, 64), (1, steps, 7), (1, steps, 7)
        inputs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
        return _flops(functools.partial(rollout, predictor, cached=cached), params, *inputs)

    assert cost(8, cached=True) < 1.1 * 8 * cost(1, cached=True)
    assert 4.2 < cost(8, cached=False) / cost(8, cached=True) < 4.7
    counted = sum(action_predictor_flops(predictor, PATCHES, 1, past) for past in range(8))
    assert counted == action_predictor_flops(predictor, PATCHES, 8)
    assert 1.0 < cost(8, cached=True) / counted < 1.12


@pytest.mark.parametrize("backend", ["xla", "chunked"])
def test_attention_with_a_past_is_the_end_of_all_of_it(backend):
    q, k, v = (jax.random.normal(rng, (2, 60, 2, 16)) for rng in jax.random.split(jax.random.key(0), 3))
    whole = block_causal_attention(q, k, v, 12, backend)
    np.testing.assert_allclose(block_causal_attention(q[:, 36:], k, v, 12, backend), whole[:, 36:], atol=2e-6)
    with pytest.raises(ValueError, match="6 tokens are not a whole number of blocks of 12"):
        block_causal_attention(q[:, 36:], k[:, :30], v[:, :30], 12, backend)
    with pytest.raises(ValueError, match="24 queries are the last of the tokens, but there are only 12 keys"):
        block_causal_attention(q[:, 36:], k[:, :12], v[:, :12], 12, backend)


def test_who_keeps_nothing_pays_nothing():
    """The scan over blocks returns keys and values only where they were asked for."""
    predictor, params = TOKENS, {"params": abstract_params(TOKENS)}
    tokens, actions, states = (jnp.zeros(shape) for shape in ((1, PATCHES, WIDTH), (1, 1, 4), (1, 1, 5)))

    def outputs(apply, *inputs):
        jaxpr = jax.make_jaxpr(apply)(params, *inputs)
        return [len(eqn.outvars) for eqn in jaxpr.jaxpr.eqns if eqn.primitive.name == "scan"]

    # The residual stream; then keys and values too.
    assert outputs(predictor.apply, tokens, actions, states) == [1]
    assert outputs(functools.partial(predictor.apply, keep=True), tokens, actions, states) == [3]
    params = {"params": abstract_params(ENCODER)}
    assert outputs(ENCODER.apply, jnp.zeros((1, 2, 8, 8, 3))) == [1]


def _cache(frames=1, batch=2, depth=2, heads=3, per_frame=PATCHES + 2):
    return FrameCache(*((part,) for part in jnp.zeros((2, depth, batch, frames * per_frame, heads * 16))))


@pytest.mark.parametrize("cache, message", [
    (_cache(batch=1), r"keys of past must be of shape \(2, 2, 'N', 48\), with N tokens in frames of 8, not \(2, 1"),
    (_cache(depth=3), r"not \(3, 2, 8, 48\)"),
    (_cache(per_frame=PATCHES), r"in frames of 8, not \(2, 2, 6, 48\)"),
    (_cache()._replace(values=_cache(heads=2).values), r"values of past must be .* not \(2, 2, 8, 32\)"),
    (_cache()._replace(values=()), "past has 1 arrays of keys and 0 of values"),
])
def test_a_past_that_does_not_fit(cache, message):
    with pytest.raises(ValueError, match=message):
        predict_next(TOKENS, _random_params(TOKENS), *_inputs(TOKENS, 1, 1), past=cache)


@pytest.mark.parametrize("context, actions, states, options, message", [
    (3, 2, 2, {}, "3 context frames and 2 actions; "),
    (0, 2, 0, {"integrate": lambda state, action: state}, "0 context frames and 2 actions; there must be at least one"),
    (2, 4, 3, {}, "3 states beside 4 actions; there must be one of each per frame"),
    (2, 4, 4, {"integrate": lambda state, action: state}, "4 states for 2 context frames; integrated"),
])
def test_rollouts_that_do_not_fit(context, actions, states, options, message):
    arrays = jnp.zeros((1, context, PATCHES, WIDTH)), jnp.zeros((1, actions, 4)), jnp.zeros((1, states, 5))
    with pytest.raises(ValueError, match=message):
        rollout(TOKENS, {}, *arrays, **options)


@pytest.mark.parametrize("video, options, message", [
    (np.zeros((1, 8, 8, 3), np.uint8), {}, r"uint8 or float \[B, F, H, W, 3\], not uint8 \(1, 8, 8, 3\)"),
    (np.zeros((1, 2, 8, 8, 3), np.int32), {}, "not int32"),
    (np.zeros((1, 2, 8, 8, 3), np.uint8), {"at_once": 0}, "at_once is 0 frames; it must be at least 1"),
    (np.zeros((1, 0, 8, 8, 3), np.uint8), {}, r"not uint8 \(1, 0, 8, 8, 3\)"),
    (np.zeros((1, 2, 8, 9, 3), np.uint8), {}, "width of a clip is 9; it must be a multiple of patch_size, 4"),
])
def test_videos_that_do_not_fit(encoder_params, video, options, message):
    with pytest.raises(ValueError, match=message):
        encode_frames(ENCODER, encoder_params, video, **options)
