"""From picture files and numbers to where a plan starts and leads: frames cropped as in training, encoded, checked."""

from __future__ import annotations

import functools
import math
import os
import zipfile
from typing import NamedTuple

import cv2
import jax
import numpy as np

from jepa_jax.data.encoding import stored_size
from jepa_jax.data.publish import new_file
from jepa_jax.data.transforms import centered_crop_box, crop_resize_uint8
from jepa_jax.planning.latent import make_root
from jepa_jax.robots.algebra import to_frame
from jepa_jax.robots.checks import check_states


class Scene(NamedTuple):
    """What is seen and where to go.

    Attributes:
      now, goal: uint8 `[S, S, 3]` as the model sees them.
      state: float32 `[state_dim]`, in the robot's units and the frame that its actions are in.
      root: `Root` made of them.
    """

    now: np.ndarray
    goal: np.ndarray
    state: np.ndarray
    root: NamedTuple


def read_picture(path):
    """Read a picture of any usual format, or an array `[H, W, 3]` of a .npy file, uint8 or float from 0 to 1.

    Args:
      path: file.

    Returns:
      uint8 `[H, W, 3]`, RGB.

    Raises:
      ValueError: if it cannot be read, or holds something else.
    """
    if not os.path.isfile(path):
        raise ValueError(f"{path}: there is no such file")
    if path.endswith(".npy"):
        return check_picture(np.load(path, allow_pickle=False), path)
    picture = cv2.imread(path, cv2.IMREAD_COLOR)
    if picture is None:
        raise ValueError(f"{path}: cannot be read as a picture; give a PNG, JPEG or .npy file")
    return np.ascontiguousarray(picture[..., ::-1])


def write_picture(path, picture):
    """Write a picture uint8 `[H, W, 3]`, RGB, as PNG: `read_picture` reads the same numbers."""
    with new_file(path) as local, open(local, "wb") as file:
        file.write(cv2.imencode(".png", picture[..., ::-1])[1].tobytes())


def check_picture(picture, name):
    """Bring an array into uint8 `[H, W, 3]`.

    Raises:
      ValueError: if it has another shape or type, numbers that are not finite, or are not from 0 to 1.
    """
    if picture.ndim != 3 or picture.shape[-1] != 3 or not picture.size:
        raise ValueError(f"{name}: has shape {tuple(picture.shape)}; a picture is [H, W, 3]")
    if picture.dtype == np.uint8:
        return picture
    if not np.issubdtype(picture.dtype, np.floating):
        raise ValueError(f"{name}: has type {picture.dtype}; a picture is uint8, or float from 0 to 1")
    if bad := int((~np.isfinite(picture)).sum()):
        raise ValueError(f"{name}: {bad} of {picture.size} numbers are not finite")
    if picture.min() < 0 or picture.max() > 1:
        raise ValueError(f"{name}: floats from {picture.min():g} to {picture.max():g}; they must be from 0 to 1")
    return np.round(255 * picture).astype(np.uint8)


def read_state(text, robot):
    """Read a robot's state from numbers with commas between them, or a .npy file.

    Args:
      text: as on a command line.
      robot: `RobotSpec`.

    Returns:
      float32 `[state_dim]`, in the units of the shards: a gripper whose range `prepare` knew is 0 open and 1 closed.

    Raises:
      ValueError: if there are more or fewer numbers, they are not finite, or cannot be the robot's, such as angles in degrees.
    """
    names = ", ".join(f"{name} ({unit})" if unit else name for name, unit in zip(robot.state_names, robot.state_units))
    try:
        numbers = np.load(text, allow_pickle=False).reshape(-1) if text.endswith(".npy") else [float(part) for part in text.split(",")]
    except (ValueError, OSError) as error:
        raise ValueError(f"state {text!r}: {error}; give {names}, with commas between the numbers") from error
    if len(numbers) != robot.state_dim or not all(map(math.isfinite, numbers)):
        raise ValueError(f"state has {len(numbers)} numbers, {sum(map(math.isfinite, numbers))} of them finite; robot {robot.name!r} "
                         f"needs {robot.state_dim}: {names}")
    state = np.asarray(numbers, np.float32)
    check_states(robot, state, f"state {text!r}")
    return state


def read_moves(path, robot):
    """Read what a camera saw while a robot moved, from a .npz file laid out as the official example.

    Args:
      path: file with `observations` `[1, T, H, W, 3]`, as `check_picture` takes them, and `states` `[1, T, state_dim]`.
      robot: `RobotSpec`.

    Returns:
      (list of T pictures uint8 `[H, W, 3]`, states float32 `[T, state_dim]`).

    Raises:
      ValueError: if an array is missing or has another shape, a number is not finite, or states cannot be the robot's.
    """
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path}: is no .npz file" if os.path.exists(path) else f"{path}: there is no such file")
    with np.load(path, allow_pickle=False) as file:
        if missing := {"observations", "states"} - set(file.files):
            raise ValueError(f"{path}: has no {', '.join(sorted(missing))}; it has {', '.join(file.files)}")
        frames, states = file["observations"], np.asarray(file["states"], np.float32)
    if frames.ndim != 5 or states.ndim != 3 or len(frames) != 1 or frames.shape[:2] != states.shape[:2] or frames.shape[1] < 2:
        raise ValueError(f"{path}: observations have shape {frames.shape}, states {states.shape}; they must be [1, T, H, W, 3] and "
                         "[1, T, S], with T of at least 2")
    if states.shape[-1] != robot.state_dim or not np.isfinite(states).all():
        raise ValueError(f"{path}: states have {states.shape[-1]} numbers, {int((~np.isfinite(states)).sum())} of all are not finite; "
                         f"robot {robot.name!r} has {robot.state_dim}")
    check_states(robot, states, path)
    return [check_picture(frame, path) for frame in frames[0]], states[0]


def encode(trained, params, frames):
    """Shrink and crop frames as in training, and encode each by itself.

    Args:
      trained: `Trained`, with an encoder.
      params: of its world model.
      frames: pictures uint8 `[H, W, 3]` of one camera.

    Returns:
      (list of pictures uint8 `[S, S, 3]`, latents `[T, h*w, D]`).

    Raises:
      ValueError: if there is no encoder, or features are not finite.
    """
    world = trained.world
    if world.encoder is None:
        raise ValueError("these weights have no encoder; give the encoder too")
    frames = [crop(trained, frame) for frame in frames]
    latents = np.asarray(_encode(world)(params, np.stack(frames)[None]))[0]
    if bad := int((~np.isfinite(latents)).sum()):
        raise ValueError(f"{bad} of {latents.size} features are not finite: weights that have diverged, or a compute dtype that is "
                         "too narrow for them")
    return frames, latents


def see(trained, params, now, goal, state, extrinsics=None):
    """Make the root of a plan from pictures of one camera.

    Args:
      trained: `Trained`, with an encoder.
      params: of its world model.
      now, goal: uint8 `[H, W, 3]`.
      state: float32 `[state_dim]` as in the shards, in the robot's base frame.
      extrinsics: float32 `[6]`, pose of the camera, where the model or the robot's frame needs it.

    Returns:
      `Scene`.

    Raises:
      ValueError: if the pictures differ in size, there is no encoder, extrinsics are missing, or features are not finite.
    """
    world = trained.world
    if now.shape != goal.shape:
        sizes = " and ".join(f"{frame.shape[1]} x {frame.shape[0]}" for frame in (now, goal))
        raise ValueError(f"observation and goal are {sizes} pixels; both must come from the same camera, at one size")
    frames, latents = encode(trained, params, (now, goal))
    state = np.asarray(to_frame(world.robot, state, extrinsics), np.float32)
    camera = extrinsics if world.predictor.use_extrinsics else None
    return Scene(*frames, state, make_root(world, latents[0], state, latents[1], camera))


def crop(trained, frame):
    """Crop and resize a frame uint8 `[H, W, 3]` as in training: uint8 `[S, S, 3]`."""
    if trained.short_side and min(frame.shape[:2]) > trained.short_side:
        # Frames of trajectories were shrunk when they were stored, without aliasing; what follows aliases.
        height, width = stored_size(*frame.shape[:2], trained.short_side)
        frame = cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)
    return crop_resize_uint8([frame], centered_crop_box(*frame.shape[:2], trained.crop_aspect), trained.size)[0]


@functools.lru_cache(maxsize=8)
def _encode(world):
    return jax.jit(world.encode)
