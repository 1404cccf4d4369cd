"""Networks: sizes, rotary positions, inputs of any shape, initialisation, precision, errors."""

import functools

import chex
import einops
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compiling import fast_jit
from jepa_jax.models import NAMES, MaskedPredictor, VideoEncoder, gather_tokens, make_encoder, normalize_pixels, token_grid
from jepa_jax.models import layers, rope
from jepa_jax.models.layers import REMAT_POLICIES
from jepa_jax.models.rope import grid_positions, rotary_angles, rotary_axis_dim, rotate
from jepa_jax.training import sharding

# Published sizes: 3-D patch embedding, no position table, final norm included.
PARAMETERS = {
    "vit_tiny": 5_633_856, "vit_small": 21_884_544, "vit_base": 86_236_416, "vit_large": 303_885_312,
    "vit_huge": 631_648_000, "vit_giant": 1_012_173_952, "vit_giant_xformers": 1_012_173_952,
    "vit_gigantic": 1_598_483_328, "vit_gigantic_xformers": 1_598_483_328,
}
PREDICTOR_PARAMETERS = {1024: 22_086_016, 1280: 22_282_880, 1408: 22_381_312}

tiny = functools.partial(VideoEncoder, width=48, depth=2, num_heads=3, patch_size=4)


def _count(tree):
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def _clip(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), (*shape, 3))


def _init(encoder, seed=0):
    size = (1, encoder.tubelet_size, encoder.patch_size, encoder.patch_size, 3)
    return fast_jit(encoder.init)(jax.random.key(seed), jnp.zeros(size))


@pytest.fixture(scope="module")
def params():
    """Parameters that fit every tiny encoder, with random biases and scales."""
    leaves, treedef = jax.tree.flatten(_init(tiny()))
    rngs = jax.random.split(jax.random.key(1), len(leaves))
    return treedef.unflatten([x + 0.1 * jax.random.normal(rng, x.shape) for x, rng in zip(leaves, rngs)])


@pytest.mark.parametrize("name", [name + form for name in PARAMETERS for form in ("", "_rope")])
def test_published_parameter_counts(name):
    encoder = make_encoder(name)
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), jnp.zeros((1, 16, 256, 256, 3)))["params"]
    assert _count(shapes) == PARAMETERS[name.removesuffix("_rope")]
    # One layout for all: blocks are stacked on a leading depth axis.
    assert {leaf.shape[0] for leaf in jax.tree.leaves(shapes["blocks"])} == {encoder.depth}


def test_every_name_builds():
    for name in NAMES:
        encoder = make_encoder(name)
        assert encoder.width % encoder.num_heads == 0
    assert set(PARAMETERS) <= set(NAMES) and len(set(NAMES)) == len(NAMES)
    assert make_encoder("vit_large_rope").positions == "rope"
    with pytest.raises(ValueError, match="'vit_larg' is unknown; choose one of vit_tiny.*vit_gigantic_xformers_rope"):
        make_encoder("vit_larg")
    with pytest.raises(ValueError, match="positions='sincos' contradicts 'vit_large_rope'"):
        make_encoder("vit_large_rope", positions="sincos")


@pytest.mark.parametrize("width", PREDICTOR_PARAMETERS)
def test_predictor_parameter_counts(width):
    predictor = MaskedPredictor(width)
    ids = jnp.zeros((1, 2), jnp.int32)
    shapes = jax.eval_shape(predictor.init, jax.random.key(0), jnp.zeros((1, 2, width)), ids, ids, (8, 16, 16))
    assert _count(shapes["params"]) == PREDICTOR_PARAMETERS[width]


def test_rotary_oracle():
    """Two frequencies on one axis, position 3: angles (3, .03, 3, .03)."""
    positions = jnp.array([[[3, 0, 0]]])
    angles = rotary_angles(positions, 12)
    np.testing.assert_allclose(angles[0, 0, :4], [3, 0.03, 3, 0.03], rtol=1e-6)
    x = jnp.zeros((1, 1, 1, 12)).at[..., :4].set(jnp.array([1.0, 2, 3, 4]))
    np.testing.assert_allclose(rotate(x, angles)[0, 0, 0, :4], [-1.27223, 2.02910, -3.53446, 4.08819], atol=1e-5)


@pytest.mark.parametrize("head_dim, axis_dim", [(64, 20), (80, 26), (88, 28), (104, 34), (32, 10), (6, 2)])
def test_rotary_axis_dims(head_dim, axis_dim):
    assert rotary_axis_dim(head_dim) == axis_dim
    angles = rotary_angles(jnp.array([[5, 7, 11]]), head_dim)[0]
    assert not angles[3 * axis_dim :].any()
    frequencies = 10000.0 ** (-(np.arange(axis_dim) % (axis_dim // 2)) / (axis_dim // 2))
    for axis, position in enumerate((5, 7, 11)):
        part = angles[axis * axis_dim : (axis + 1) * axis_dim]
        np.testing.assert_allclose(part, position * frequencies, rtol=1e-5)


def test_positions_are_time_row_column():
    positions = grid_positions(jnp.arange(24), (2, 3, 4))
    expected = np.stack(np.meshgrid(range(2), range(3), range(4), indexing="ij"), -1).reshape(24, 3)
    np.testing.assert_array_equal(positions, expected)


def test_gradients_of_kernels_are_added_up_in_float32():
    """Of bfloat16 layers too, over tokens and over devices."""
    x = jax.random.normal(jax.random.key(0), (8, 64, 16))
    layer = layers.dense(8, None, jnp.bfloat16, jnp.float32)
    params = layer.init(jax.random.key(1), x)
    gradient = jax.jit(jax.grad(lambda params, x: layer.apply(params, x).astype(jnp.float32).sum()))
    expected = np.asarray(x.astype(jnp.bfloat16), np.float64).sum((0, 1))[:, None].repeat(8, 1)
    mesh = sharding.make_mesh()
    spread = jax.device_put((params, x), (sharding.replicated(mesh), sharding.batch_sharding(mesh)))
    for found in (gradient(params, x), gradient(*spread)):
        kernel = found["params"]["kernel"]
        assert kernel.dtype == jnp.float32 and (kernel != kernel.astype(jnp.bfloat16)).any()
        np.testing.assert_allclose(kernel, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_all_ways_to_turn_pairs_agree(dtype):
    y, weights = jax.random.normal(jax.random.key(0), (2, 2, 3, 2, 10)).astype(dtype).astype(jnp.float32)
    slopes = []
    for turn in (rope._turn_pairs, rope._turn_by_shifts, functools.partial(rope._turn_by_product, dtype=dtype)):
        assert turn(y).dtype == jnp.float32
        np.testing.assert_array_equal(turn(y)[..., ::2], -y[..., 1::2])
        np.testing.assert_array_equal(turn(y)[..., 1::2], y[..., ::2])
        slopes.append(jax.grad(lambda y, turn=turn: (weights * turn(y)).sum())(y))
    np.testing.assert_array_equal(slopes[0], slopes[1])
    np.testing.assert_array_equal(slopes[0], slopes[2])


@pytest.mark.parametrize("layout, is_rotation", [("interleaved", True), ("tiled", False)])
def test_only_the_corrected_layout_rotates(layout, is_rotation):
    """A rotation keeps norms and makes scores depend on differences of positions alone."""
    head_dim = 64
    q, k = _clip(2, 1, 1, 64)[..., 0][:, None, None].reshape(2, 1, 1, 1, 64)
    place = lambda x, position: rotate(x, rotary_angles(jnp.array([[position]]), head_dim, layout))
    norms = [float(jnp.linalg.norm(place(q, p))) for p in ((0, 0, 0), (3, 5, 7))]
    assert np.isclose(*norms, rtol=1e-5) == is_rotation
    near = jnp.sum(place(q, (4, 9, 2)) * place(k, (1, 3, 2)))
    far = jnp.sum(place(q, (7, 12, 13)) * place(k, (4, 6, 13)))
    assert np.isclose(near, far, atol=1e-4) == is_rotation


@pytest.mark.parametrize("positions", ["rope", "sincos"])
@pytest.mark.parametrize("shape", [(4, 16, 16), (6, 8, 20), (2, 12, 4), (1, 16, 8)])
def test_any_clip_length_and_shape(params, positions, shape):
    encoder = tiny(positions=positions, table_grid=(2, 4, 4))
    tokens = fast_jit(encoder.apply)(params, _clip(2, *shape))
    t, h, w = token_grid(*shape, 4)
    chex.assert_shape(tokens, (2, t * h * w, 48))
    chex.assert_tree_all_finite(tokens)


@pytest.mark.parametrize("keep", [False, True])
def test_rope_grid_is_where_positions_are_read(params, keep):
    """The same patches in another shape of clip are the same tokens, if both read positions on one grid."""
    patches = _clip(2, 16, 2, 4, 4)
    wide = einops.rearrange(patches, "b (t h w) u p q c -> b (t u) (h p) (w q) c", t=2, h=1)
    tall = einops.rearrange(patches, "b (t h w) u p q c -> b (t u) (h p) (w q) c", t=1, h=4)
    ids = jnp.array([[1, 5, 6, 15], [9, 8, 2, 11]]) if keep else None
    plain = fast_jit(tiny().apply)
    expected = plain(params, tall, ids)
    np.testing.assert_allclose(fast_jit(tiny(rope_grid=(4, 4)).apply)(params, wide, ids), expected, atol=1e-5)
    assert not np.allclose(plain(params, wide, ids), expected, atol=1e-2)


def test_image_is_a_clip_of_equal_frames(params):
    forward = fast_jit(tiny().apply)
    image = _clip(2, 16, 12)
    expected = forward(params, jnp.stack([image, image], axis=1))
    np.testing.assert_allclose(forward(params, image), expected, atol=1e-6)
    np.testing.assert_allclose(forward(params, image[:, None]), expected, atol=1e-6)


@pytest.mark.parametrize("positions", ["rope", "sincos"])
def test_kept_tokens_do_not_see_the_rest(params, positions):
    """Keeping all in another order permutes; keeping some ignores the pixels of the others."""
    encoder = tiny(positions=positions, table_grid=(2, 4, 4))
    forward = fast_jit(encoder.apply)
    video = _clip(2, 4, 16, 16)
    order = jnp.stack([jax.random.permutation(jax.random.key(i), 32) for i in range(2)])
    np.testing.assert_allclose(forward(params, video, order), gather_tokens(forward(params, video), order), atol=1e-5)
    # Tokens of the first time step only: pixels of later frames are free.
    ids = jnp.tile(jnp.arange(0, 16, 2), (2, 1))
    changed = video.at[:, 2:].set(7.0)
    np.testing.assert_allclose(forward(params, video, ids), forward(params, changed, ids), atol=1e-6)
    # Attending among 8 tokens is not attending among 32 and gathering 8.
    assert not np.allclose(forward(params, video, ids), gather_tokens(forward(params, video), ids), atol=1e-3)


def test_predictor_follows_the_order_of_targets():
    predictor = MaskedPredictor(48, 36, 2, 3, num_mask_tokens=3, zero_init_mask_tokens=False)
    context, ids = _clip(1, 5, 16).reshape(1, 5, 48), jnp.array([[0, 3, 7, 9, 30]])
    targets = jnp.array([[1, 2, 20, 31]])
    grid = (2, 4, 4)
    params = fast_jit(lambda rng: predictor.init(rng, context, ids, targets, grid))(jax.random.key(0))
    forward = fast_jit(lambda ids, context, targets, index: predictor.apply(params, context, ids, targets, grid, index))
    out = forward(ids, context, targets, 0)
    np.testing.assert_allclose(forward(ids, context, targets[:, ::-1], 0), out[:, ::-1], atol=1e-5)
    np.testing.assert_allclose(forward(ids[:, ::-1], context[:, ::-1], targets, 0), out, atol=1e-5)
    np.testing.assert_allclose(forward(ids, context, targets, 3), out, atol=1e-6)  # modulo
    assert not np.allclose(forward(ids, context, targets, 1), out, atol=1e-3)
    everything = fast_jit(lambda p: predictor.apply(p, context, ids, targets, grid, method="predict_all"))(params)
    np.testing.assert_allclose(everything[:, 5:], out, atol=1e-5)


def test_layers_equal_truncated_networks(params):
    encoder = tiny()
    video = _clip(1, 4, 8, 8)
    layers = lambda wanted: fast_jit(
        lambda p: encoder.apply(p, video, wanted, method="encode_layers"))(params)
    last, first = layers((1, 0))
    np.testing.assert_allclose(last, fast_jit(encoder.apply)(params, video), atol=1e-6)
    np.testing.assert_array_equal(jnp.stack([first, last]), layers((0, 1)))
    shorter = {"params": params["params"] | {"blocks": jax.tree.map(lambda x: x[:1], params["params"]["blocks"])}}
    np.testing.assert_allclose(first, fast_jit(tiny(depth=1).apply)(shorter, video), atol=1e-6)


def test_unwanted_layers_cost_no_memory():
    """The scan carries one slot per wanted layer, however deep the network."""
    encoder = VideoEncoder(24, 16, 2, patch_size=4)
    video = _clip(1, 4, 32, 32)
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), video)
    run = fast_jit(lambda p, v: encoder.apply(p, v, (3,), method="encode_layers"))
    memory = run.lower(shapes, video).compile().memory_analysis()
    plain = fast_jit(encoder.apply).lower(shapes, video).compile().memory_analysis()
    tokens = 128 * 24 * 4
    assert memory.temp_size_in_bytes - plain.temp_size_in_bytes <= 4 * tokens


def test_initialisation_statistics():
    encoder = VideoEncoder(192, 6, 3, patch_size=8)
    params = _init(encoder)["params"]
    layers = params["blocks"]["layers"]
    depth = np.arange(1, 7)
    for path, scale in (
        (("attention", "qkv"), np.ones(6)), (("mlp", "fc1"), np.ones(6)),
        (("attention", "proj"), (2 * depth) ** -0.5), (("mlp", "fc2"), (2 * depth) ** -0.5),
    ):
        kernel = layers[path[0]][path[1]]["kernel"]
        np.testing.assert_allclose(kernel.reshape(6, -1).std(axis=1), 0.02 * scale, rtol=0.03, err_msg=str(path))
        assert not layers[path[0]][path[1]]["bias"].any()
    assert abs(float(params["patch_embed"]["kernel"].std()) / 0.02 - 1) < 0.03
    # Blocks differ from each other.
    assert not np.allclose(layers["mlp"]["fc1"]["kernel"][0], layers["mlp"]["fc1"]["kernel"][1])
    for norm in (params["norm"], layers["norm1"], layers["norm2"]):
        assert (norm["scale"] == 1).all() and (norm["bias"] == 0).all()


@pytest.mark.parametrize("zero", [True, False])
def test_mask_token_initialisation(zero):
    predictor = MaskedPredictor(48, 96, 1, 3, num_mask_tokens=10, zero_init_mask_tokens=zero)
    ids = jnp.zeros((1, 2), jnp.int32)
    params = fast_jit(lambda rng: predictor.init(rng, jnp.zeros((1, 2, 48)), ids, ids, (1, 1, 1)))(jax.random.key(0))
    assert abs(float(params["params"]["mask_tokens"].std()) - (0 if zero else 0.02)) < 0.003


def test_gated_mlp_scales_the_value_branch():
    """Official quirk: fc2, not the output fc3, starts smaller with depth."""
    layers = _init(tiny(activation="swiglu"))["params"]["blocks"]["layers"]["mlp"]
    np.testing.assert_allclose(layers["fc2"]["kernel"][1].std(), 0.02 / 2, rtol=0.05)
    np.testing.assert_allclose(layers["fc3"]["kernel"][1].std(), 0.02, rtol=0.05)


@pytest.mark.parametrize("residual", [jnp.bfloat16, jnp.float32])
def test_half_precision_compute_keeps_float32_parameters(params, residual):
    encoder = tiny(dtype=jnp.bfloat16, residual_dtype=residual)
    assert {leaf.dtype for leaf in jax.tree.leaves(_init(encoder))} == {jnp.dtype(jnp.float32)}
    video = _clip(2, 4, 8, 8)
    loss = lambda p: jnp.mean(encoder.apply(p, video).astype(jnp.float32) ** 2)
    grads = fast_jit(jax.grad(loss))(params)
    chex.assert_trees_all_equal_shapes_and_dtypes(grads, params)
    out = fast_jit(encoder.apply)(params, video)
    assert out.dtype == jnp.bfloat16
    wide = fast_jit(tiny().apply)(params, video)
    np.testing.assert_allclose(out.astype(jnp.float32), wide, atol=0.08)


def test_remat_policies_change_no_gradient(params):
    video, ids = _clip(2, 4, 16, 8), jnp.tile(jnp.arange(0, 16, 3), (2, 1))

    def gradient(remat):
        loss = lambda p: jnp.mean(tiny(remat=remat).apply(p, video, ids) ** 3)
        return fast_jit(jax.grad(loss))(params)

    expected = gradient("none")
    for remat in REMAT_POLICIES:
        chex.assert_trees_all_close(gradient(remat), expected, rtol=1e-4, atol=1e-6)


def test_remat_dots_computes_no_linear_layer_again(params):
    video = _clip(2, 4, 16, 8)

    def products(remat):
        loss = lambda p: jnp.mean(tiny(remat=remat).apply(p, video) ** 3)
        # `[B, N, i]` times `[i, o]`, which in a backward pass is there only where it is done again.
        return jax.jit(jax.grad(loss)).lower(params).as_text().count("contracting_dims = [2] x [0]")

    assert products("dots") == products("none") < products("full")


def test_pixels_are_normalised():
    frames = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), np.uint8)
    expected = (frames / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(normalize_pixels(frames), expected, atol=1e-5)


@pytest.mark.parametrize("fields, shape, message", [
    (dict(activation="relu"), (2, 4, 4), "activation 'relu' is unknown; choose one of .*gelu.*swiglu"),
    (dict(width=50), (2, 4, 4), "width 50 is not divisible by num_heads 3"),
    (dict(width=12), (2, 4, 4), "head_dim 4 leaves no channel to rotate; it must be at least 6"),
    (dict(positions="learned"), (2, 4, 4), "positions 'learned' is unknown; choose one of"),
    (dict(rope_layout="paired"), (2, 4, 4), "rope layout 'paired' is unknown; choose one of"),
    (dict(remat="some"), (2, 4, 4), "remat 'some' is unknown; choose 'none' or one of"),
    (dict(attention="slow"), (2, 4, 4), "attention backend 'slow' is unknown"),
    (dict(), (3, 4, 4), "frames .*3.* multiple of .*2"),
    (dict(), (2, 6, 4), "height .*6.* multiple of .*4"),
    (dict(), (2, 4, 2), "width .*2.* multiple of .*4"),
])
def test_mistakes_are_named(fields, shape, message):
    encoder = VideoEncoder(**(dict(width=48, depth=2, num_heads=3, patch_size=4) | fields))
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(encoder.init, jax.random.key(0), jnp.zeros((1, *shape, 3)))


@pytest.mark.parametrize("layers", [(0, 0), (2,), (-1,)])
def test_impossible_layers(params, layers):
    with pytest.raises(ValueError, match=r"must be distinct block indices in 0\.\.1"):
        tiny().apply(params, _clip(1, 2, 4, 4), layers, method="encode_layers")


def test_sincos_predictor_refuses_grids_its_table_does_not_cover():
    predictor = MaskedPredictor(output_dim=24, width=24, depth=1, num_heads=2, positions="sincos", table_grid=(4, 2, 2))
    ids = jnp.zeros((1, 1), jnp.int32)
    for grid in ((4, 3, 2), (5, 2, 2)):
        with pytest.raises(ValueError, match="or fewer time steps"):
            jax.eval_shape(lambda rng, grid=grid: predictor.init(rng, jnp.zeros((1, 1, 24)), ids, ids, grid), jax.random.key(0))
