"""Frame sampling, crops and resizes equal the official ones, on the golden arrays."""

import numpy as np
import pytest

from jepa_jax.data import sampling, transforms
from jepa_jax.models.pixels import PIXEL_MEAN, PIXEL_STD
from parity.files import load

_RATE_KEY = {"fps": "fps", "duration": "duration", "frame_step": "step"}


def _normalized(frames):
    """Bring `[T, H, W, 3]` in 0..255 to the golden layout `[3, T, H, W]`, normalised."""
    return ((frames.astype(np.float32) / 255 - np.asarray(PIXEL_MEAN)) / np.asarray(PIXEL_STD)).transpose(3, 0, 1, 2)


def test_frame_sampling(golden):
    arrays, config = load(golden, "frame_sampling")
    for number, case in enumerate(config["cases"]):
        indices = sampling.sample_frame_indices(
            case["video_len"],
            case["video_fps"],
            frames=case["frames_per_clip"],
            num_clips=case["num_clips"],
            allow_overlap=case["allow_clip_overlap"],
            random=case["random_clip_sampling"],
            uniforms=arrays[f"in/case{number}_uniforms"],
            **{_RATE_KEY[case["mode"]]: case["value"]},
        )
        np.testing.assert_array_equal(indices, arrays[f"out/case{number}_indices"], str(case))


@pytest.mark.parametrize("uniforms", ["in/crop_uniforms", "in/crop_uniforms64"])
def test_crop_boxes(golden, uniforms):
    arrays, config = load(golden, "transforms")
    for row, (height, width) in enumerate(arrays["in/crop_sizes_hw"].tolist()):
        setting = config["crop_settings"][arrays["in/crop_setting"][row]]
        box = transforms.random_crop_box(height, width, setting["scale"], setting["ratio"], arrays[uniforms][row])
        assert box == tuple(arrays["out/crop_ijhw"][row].tolist())


@pytest.mark.parametrize("number", range(4))
def test_training_crop(golden, number):
    arrays, config = load(golden, "transforms")
    clip = transforms.crop_resize(arrays["in/wide"], arrays["in/boxes"][number], config["crop_size"])
    np.testing.assert_allclose(_normalized(clip), arrays[f"out/train_box{number}"], atol=1e-4)
    transforms.flip_in_place(clip)
    np.testing.assert_allclose(_normalized(clip), arrays[f"out/train_box{number}_flip"], atol=1e-4)


def test_motion_shift(golden):
    arrays, config = load(golden, "transforms")
    boxes = transforms.motion_boxes(*config["motion_shift_boxes"], frames=len(arrays["in/wide"]))
    clip = transforms.crop_resize_moving(arrays["in/wide"], boxes, config["crop_size"])
    np.testing.assert_allclose(_normalized(clip), arrays["out/train_motion_shift"], atol=1e-4)


@pytest.mark.parametrize("name", ["wide", "tall", "upscale"])
def test_evaluation_resize_crop_and_views(golden, name):
    arrays, config = load(golden, "transforms")
    resized = transforms.eval_resize(arrays[f"in/{name}"], config["eval_short_side"])
    expected = arrays[f"out/{name}/eval_resized_u8"]
    assert resized.shape == expected.shape
    difference = np.abs(resized.astype(int) - expected)
    assert difference.max() <= 1 and difference.mean() < 0.2
    crop = transforms.center_crop(resized, config["crop_size"])
    np.testing.assert_allclose(_normalized(crop), arrays[f"out/{name}/eval"], atol=0.02)
    for number, view in enumerate(transforms.spatial_views(arrays[f"in/{name}"], config["crop_size"], 3)):
        np.testing.assert_allclose(_normalized(view), arrays[f"out/{name}/view_{number}"], atol=0.02)


def test_two_views(golden):
    arrays, config = load(golden, "transforms")
    for number, view in enumerate(transforms.spatial_views(arrays["in/wide"], config["crop_size"], 2)):
        np.testing.assert_allclose(_normalized(view), arrays[f"out/wide/two_views_{number}"], atol=0.02)


def test_probe_training_crop(golden):
    arrays, config = load(golden, "transforms")
    clip = transforms.crop_resize(arrays["in/wide"], arrays["in/boxes"][0], config["crop_size"])
    np.testing.assert_allclose(_normalized(clip), arrays["out/probe_train_box0"], atol=1e-4)
