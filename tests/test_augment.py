"""RandAugment, erasing, moving crops and DROID's crop: the official constants, from given numbers."""

import math

import jax
import media
import numpy as np
import pytest
from jepa_jax import data
from jepa_jax.data import erasing, randaugment, sampling, transforms, video
from jepa_jax.data.pipeline import load_clip
from jepa_jax.data.randaugment import OPERATION_NAMES, Operation, RandAugmentSpec, apply_operations, choose_operations
from jepa_jax.data.transcode import ImageSpec, VideoSpec, store_image, transcode_video
from jepa_jax.models import erase_boxes

POLICY = RandAugmentSpec(7.0, 4, 0.5)
SIZE, FRAMES = 32, 8
CROP = data.CropSpec(SIZE, (0.3, 1.0), (0.75, 1.35), 0.5)
PICTURE = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)


def _group(kind="video"):
    return data.GroupSpec("clips", kind, FRAMES, 4.0, 2, (data.SourceSpec(("unused",), 1.0),))


@pytest.fixture(scope="module")
def video_record(tmp_path_factory):
    """A numbered video of 70 frames."""
    path = media.write_video(tmp_path_factory.mktemp("video") / "a.mp4", frames=70, height=96, width=160)
    return transcode_video(path, VideoSpec(size=96))


@pytest.fixture(scope="module")
def image_record(tmp_path_factory):
    """A numbered picture."""
    return store_image(media.write_image(tmp_path_factory.mktemp("image") / "a.png"), ImageSpec())


# RandAugment: which operations


def _arguments(level, sign=0.1):
    """Return {operation: argument} at a level of 0..10; a sign number above 0.5 means negative."""
    spec = RandAugmentSpec(level, 1, 0.0)
    names = {}
    for number in range(15):
        (operation,) = choose_operations(spec, [[(number + 0.5) / 15, 0.0, sign]], [0.0])
        names[operation.name] = operation.argument
    return names


def test_arguments_of_the_official_policy():
    expected = {
        "AutoContrast": None, "Equalize": None, "Invert": None, "Rotate": 21.0, "Posterize": 2, "Solarize": 77,
        "SolarizeAdd": 77, "Color": 1.63, "Contrast": 1.63, "Brightness": 1.63, "Sharpness": 1.63, "ShearX": 0.21,
        "ShearY": 0.21, "TranslateX": 0.315, "TranslateY": 0.315,
    }
    positive, negative = _arguments(7.0), _arguments(7.0, sign=0.9)
    assert list(positive) == list(expected) == list(OPERATION_NAMES)
    for name, value in expected.items():
        assert positive[name] == (value if value is None else pytest.approx(value, abs=1e-12))
    for name in ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY"):
        assert negative[name] == -positive[name]
    for name in ("Color", "Contrast", "Brightness", "Sharpness"):
        assert negative[name] == pytest.approx(0.37)
    for name in ("Posterize", "Solarize", "SolarizeAdd"):
        assert negative[name] == positive[name]


def test_extreme_levels():
    strongest, weakest = _arguments(10.0), _arguments(0.0)
    assert (strongest["Posterize"], strongest["Solarize"], strongest["SolarizeAdd"]) == (0, 0, 110)
    assert (weakest["Posterize"], weakest["Solarize"], weakest["SolarizeAdd"]) == (4, 256, 0)
    assert weakest["Rotate"] == 0 and weakest["Color"] == 1
    for arguments in (strongest, weakest, _arguments(10.0, sign=0.9)):
        for name, argument in arguments.items():
            assert _done(name, argument).any() or name == "Posterize" and argument == 0


def test_strength_is_drawn_per_operation_and_bounded():
    uniforms = np.tile([3.5 / 15, 0.2, 0.1], (4, 1))
    rotations = choose_operations(POLICY, uniforms, [0.0, 1.0, -2.0, 100.0])
    assert [operation.argument for operation in rotations] == pytest.approx([21.0, 22.5, 18.0, 30.0])
    assert choose_operations(POLICY, uniforms[:1], [-100.0])[0].argument == 0.0
    assert [o.name for o in choose_operations(POLICY, [[0.0, 0.6, 0], [0.999, 0.4, 0], [0, 1, 0], [0, 0.5, 0]],
                                              np.zeros(4))] == ["TranslateY", "AutoContrast"]


def test_drawn_operations_have_the_official_distribution():
    rng = np.random.default_rng(1)
    drawn = [randaugment.draw_operations(POLICY, rng) for _ in range(4000)]
    assert np.mean([len(operations) for operations in drawn]) == pytest.approx(2.0, abs=0.05)
    rotations = [operation.argument for operations in drawn for operation in operations if operation.name == "Rotate"]
    assert len(rotations) == pytest.approx(8000 / 15, rel=0.12)
    assert np.mean(np.sign(rotations)) == pytest.approx(0, abs=0.15)
    assert np.std(np.abs(rotations)) == pytest.approx(1.5, rel=0.1)
    assert np.mean(np.abs(rotations)) == pytest.approx(21, abs=0.3)
    assert randaugment.draw_operations(None, rng) == []


@pytest.mark.parametrize("text", ["rand-m7-n4-mstd0.5", "rand-m7-n4-mstd0.5-inc0", "augmix-m7", "rand-n4-m7-inc1", "",
                                  "rand-m11-n4-inc1", "rand-m7-n0-inc1"])
def test_other_policies_are_refused(text):
    with pytest.raises(ValueError, match="RandAugment policy|at most 10"):
        randaugment.parse_spec(text)


def test_policy_of_the_official_configs():
    assert randaugment.parse_spec("rand-m7-n4-mstd0.5-inc1") == POLICY
    assert randaugment.parse_spec("rand-m9-n2-inc1") == RandAugmentSpec(9.0, 2, 0.0)


# RandAugment: what operations do


def _done(name, argument, picture=PICTURE):
    (result,) = apply_operations([picture], [Operation(name, argument)])
    assert result.dtype == np.uint8 and result.shape == picture.shape
    return result


def test_operations_on_levels():
    levels = np.tile(np.arange(256, dtype=np.uint8)[None, :, None], (2, 1, 3))
    row = np.arange(256)
    for name, argument, expected in (
        ("Invert", None, 255 - row),
        ("Posterize", 2, row & 0b11000000),
        ("Posterize", 0, row * 0),
        ("Solarize", 77, np.where(row < 77, row, 255 - row)),
        ("SolarizeAdd", 110, np.where(row < 128, np.minimum(255, row + 110), row)),
        ("Brightness", 0.5, row * 0.5),
        ("AutoContrast", None, row),
        ("Equalize", None, row),
    ):
        got = _done(name, argument, levels)
        assert (got == got[:1]).all() and (got == got[..., :1]).all()
        np.testing.assert_allclose(got[0, :, 0], expected, atol=1, err_msg=name)
    dark = (levels // 4 + 20).astype(np.uint8)
    stretched = _done("AutoContrast", None, dark)
    assert stretched.min() == 0 and stretched.max() == 255


def test_colour_contrast_and_sharpness_blend_with_their_plain_version():
    grey = PICTURE @ np.array([0.299, 0.587, 0.114])
    for factor in (0.37, 1.63):
        colour = _done("Color", factor)
        blend = grey[..., None] + factor * (PICTURE - grey[..., None])
        np.testing.assert_allclose(colour, np.clip(blend, 0, 255), atol=1.5)
        contrast = _done("Contrast", factor)
        np.testing.assert_allclose(contrast, np.clip(grey.mean() + factor * (PICTURE - grey.mean()), 0, 255), atol=2)
    kernel = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
    patch = (PICTURE[1:4, 2:5] * kernel[..., None]).sum((0, 1))
    sharp = _done("Sharpness", 0.37)
    np.testing.assert_allclose(sharp[2, 3], patch + 0.37 * (PICTURE[2, 3] - patch), atol=1.5)


def test_moves_turns_and_shears():
    picture = np.zeros((40, 40, 3), np.uint8)
    picture[10:14, 20:24] = 255
    np.testing.assert_array_equal(_done("TranslateX", 0.25, picture)[:, :30], picture[:, 10:])
    np.testing.assert_array_equal(_done("TranslateY", -0.25, picture)[10:], picture[:30])
    assert (_done("TranslateX", 0.25, picture)[:, 30:] == 128).all()
    # Counter-clockwise: what was right of the centre at the top moves to the left at the top.
    turned = _done("Rotate", 90.0, picture)
    np.testing.assert_array_equal(turned, np.rot90(picture))
    # x of the source is x + factor * y.
    sheared = _done("ShearX", 0.5, picture)
    assert sheared[12, 22 - 6, 0] == 255 and sheared[12, 22 + 6, 0] == 0
    sheared = _done("ShearY", 0.5, picture)
    assert sheared[12 - 11, 22, 0] == 255


def test_no_operation_gives_the_same_frames():
    frames = [PICTURE, PICTURE]
    assert all(a is b for a, b in zip(apply_operations(frames, []), frames, strict=True))


# Erasing


def test_erased_box_follows_its_uniforms():
    uniforms = np.full((erasing.ATTEMPTS, 4), 0.5)
    area = (0.02 + 1 / 3) / 2 * 64 * 48
    side = round(math.sqrt(area))
    assert erasing.erase_box(64, 48, uniforms) == ((64 - side + 1) // 2, (48 - side + 1) // 2, side, side)
    tall = uniforms.copy()
    # 48 wide, so a flat box of the largest area does not fit; the second attempt does.
    tall[0] = (0.99, 0.0, 0.0, 0.0)
    assert erasing.erase_box(64, 48, tall) == erasing.erase_box(64, 48, uniforms)
    assert erasing.erase_box(100, 10, np.tile((0.9, 0.0, 0.0, 0.0), (erasing.ATTEMPTS, 1))) == (0, 0, 0, 0)


def test_erased_boxes_stay_inside_and_cover_what_they_should():
    rng = np.random.default_rng(0)
    boxes = np.array([erasing.erase_box(100, 80, rng.random((erasing.ATTEMPTS, 4))) for _ in range(2000)])
    top, left, height, width = boxes.T
    assert (top >= 0).all() and (left >= 0).all() and (top + height <= 100).all() and (left + width <= 80).all()
    share = height * width / 8000
    assert 0.015 < share.min() < 0.03 and 0.3 < share.max() < 0.345
    aspect = height / width
    assert 0.28 < aspect.min() < 0.35 and 2.9 < aspect.max() < 3.6


def test_noise_fills_the_box_of_every_frame_anew():
    video = np.zeros((3, 4, 40, 40, 3), np.float32)
    boxes = np.array([(5, 7, 20, 30), (0, 0, 0, 0), (5, 7, 20, 30)], np.int32)
    out = np.array(jax.jit(erase_boxes)(video, boxes, np.array([1, 2, 2**32 - 1], np.uint32)))
    assert not out[1].any()
    inside = out[0, :, 5:25, 7:37]
    assert (inside != 0).all()
    np.testing.assert_allclose((inside.mean(), inside.std()), (0, 1), atol=0.05)
    assert abs(np.corrcoef(inside[0].ravel(), inside[1].ravel())[0, 1]) < 0.1
    assert (out[0, :, 5:25, 7:37] != out[2, :, 5:25, 7:37]).any()
    out[0, :, 5:25, 7:37] = 0
    assert not out[0].any()


# In the pipeline


def _clip(record, augment, kind="video", seed=0, crop=CROP):
    return load_clip(record, _group(kind), crop, np.random.default_rng(seed), augment)


def test_off_means_off(video_record):
    plain = load_clip(video_record, _group(), CROP, np.random.default_rng(0))
    np.testing.assert_array_equal(_clip(video_record, data.AugmentSpec()), plain)


def test_moving_crop_goes_from_one_box_to_the_other(video_record):
    moving, still = (_clip(video_record, data.AugmentSpec(motion_shift=shift)) for shift in (True, False))
    np.testing.assert_array_equal(moving[0], still[0])
    numbers = np.random.default_rng(0)
    window = numbers.random(1)
    uniforms = numbers.random((transforms.CROP_ATTEMPTS, 4))
    flipped = numbers.random() < CROP.flip
    last = transforms.random_crop_box(96, 160, CROP.scale, CROP.aspect, numbers.random((transforms.CROP_ATTEMPTS, 4)))
    assert last != transforms.random_crop_box(96, 160, CROP.scale, CROP.aspect, uniforms)
    needed = sampling.sample_frame_indices(70, 30.0, frames=FRAMES, fps=4.0, uniforms=window)[0]
    expected = transforms.crop_resize_uint8(video.decode_frame_list(video_record.data, needed[-1:]), last, SIZE)
    np.testing.assert_array_equal(moving[-1], expected[0, :, ::-1] if flipped else expected[0])


@pytest.mark.parametrize("first, last, frames, place, expected", [
    (7, 286, 64, 21, 99), (77, 0, 64, 45, 22), (91, 22, 64, 42, 45), (147, 0, 64, 36, 62), (217, 55, 64, 49, 91)])
def test_boxes_move_in_single_precision(first, last, frames, place, expected):
    """What torch.linspace(first, last, frames).int() gives; in double precision, all of these are a pixel off."""
    boxes = transforms.motion_boxes([first, last, 5, 0], [last, first, 5, 0], frames)
    assert boxes[place, 0] == expected and boxes.shape == (frames, 4)
    assert boxes[0].tolist() == [first, last, 5, 0] and boxes[-1].tolist() == [last, first, 5, 0]
    assert transforms.motion_boxes([first] * 4, [last] * 4, 1).tolist() == [[first] * 4]


def test_moving_crop_over_an_image_gives_every_frame(image_record):
    moving = [_clip(image_record, data.AugmentSpec(motion_shift=True), kind) for kind in ("video", "image")]
    assert moving[0].shape == (FRAMES, SIZE, SIZE, 3)
    assert (moving[0][0] != moving[0][-1]).any()
    np.testing.assert_array_equal(*moving)


def test_all_frames_get_the_same_operations(image_record):
    augment = data.AugmentSpec(rand_augment=RandAugmentSpec(7.0, 8, 0.5))
    changed = [_clip(image_record, augment, seed=seed) for seed in range(6)]
    for clip, seed in zip(changed, range(6), strict=True):
        assert clip.shape == (FRAMES, SIZE, SIZE, 3) and (clip == clip[:1]).all()
        np.testing.assert_array_equal(clip, _clip(image_record, augment, seed=seed))
    plain = [_clip(image_record, data.AugmentSpec(), seed=seed) for seed in range(6)]
    assert sum((a != b).any() for a, b in zip(changed, plain, strict=True)) >= 5


def test_batch_says_where_to_erase(video_record, tmp_path):
    media.write_shard(tmp_path / "a.array_record", [video_record] * 3)
    group = data.GroupSpec("clips", "video", FRAMES, 4.0, 8, (data.SourceSpec((str(tmp_path),), 1.0),))
    samplers = {"clips": media.mask_sampler(FRAMES, SIZE)}

    def batches(**augment):
        return data.ClipPipeline((group,), CROP, samplers, seed=0, augment=data.AugmentSpec(**augment))

    batch, plain = batches(erase=0.25).batch_at(3)[0]["clips"], batches().batch_at(3)[0]["clips"]
    assert "erase_boxes" not in plain
    np.testing.assert_array_equal(batch["video"], plain["video"])
    assert batch["erase_boxes"].shape == (8, 4) and batch["erase_boxes"].dtype == np.int32
    assert batch["erase_seeds"].dtype == np.uint32 and len(set(batch["erase_seeds"].tolist())) == 8
    erased = [(batches(erase=0.25).batch_at(step)[0]["clips"]["erase_boxes"][:, 2] > 0) for step in range(8)]
    assert 5 <= np.sum(erased) <= 30
    with pytest.raises(ValueError, match="erase is 1.5; it is a probability"):
        batches(erase=1.5)


@pytest.mark.parametrize(("height", "width", "box"), [(720, 1280, (0, 154, 720, 972)), (180, 320, (0, 38, 180, 243))])
def test_crop_of_droid_is_centred_and_fixed(height, width, box):
    uniforms = np.random.default_rng(0).random((20, transforms.CROP_ATTEMPTS, 4))
    assert {transforms.random_crop_box(height, width, (1.777, 1.777), (0.75, 1.35), u) for u in uniforms} == {box}
