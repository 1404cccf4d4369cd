"""Write small robot data sets in the formats that `prepare` reads, with the frame number painted into each frame."""

import json
from fractions import Fraction

import av
import h5py
import media
import numpy as np

CAMERAS = {"left": "12345678", "right": "23456789", "wrist": "34567890"}


def smooth_states(length, seed=0):
    """Make float64 `[L, 7]` poses of a slow, smooth motion with roll near pi, as a gripper looking down has."""
    phase = np.linspace(0, 2, length)[:, None] + np.random.default_rng(seed).uniform(0, 6, 7)
    states = np.sin(phase) * [0.2, 0.2, 0.1, 0.3, 0.3, 0.5, 0.5] + [0.5, 0, 0.3, np.pi, 0, 0, 0.5]
    states[:, 3] = (states[:, 3] + np.pi) % (2 * np.pi) - np.pi
    return states


def write_droid(folder, length=40, *, header_fps=15, rate=15, views=("left", "right", "wrist"), seed=0, frames=None, **h5):
    """Write one raw DROID trajectory; `h5` replaces or (None) removes entries, by the last part of their name.

    Returns:
        The states as stored, float64 `[L, 7]`.
    """
    videos = folder / "recordings" / "MP4"
    videos.mkdir(parents=True)
    states = smooth_states(length, seed)
    nanos = (np.arange(length) * 1e9 / rate).astype(np.int64)
    entries = {
        "observation/robot_state/cartesian_position": states[:, :6],
        "observation/robot_state/gripper_position": states[:, 6],
        "observation/timestamp/robot_state/robot_timestamp_seconds": 1_690_000_000 + nanos // 10**9,
        "observation/timestamp/robot_state/robot_timestamp_nanos": nanos % 10**9,
    }
    for view in views:
        extrinsics = np.tile([0.1, 0.5, 0.4, -1.5, 0.1, 2.0], (length, 1)) + CAMERAS[view].startswith("2")
        entries[f"observation/camera_extrinsics/{CAMERAS[view]}_left"] = extrinsics
        media.write_video(videos / f"{CAMERAS[view]}.mp4", frames=frames or length, fps=header_fps)
    for name, values in h5.items():
        (key,) = (key for key in entries if key.endswith(name))
        entries[key] = values
    with h5py.File(folder / "trajectory.h5", "w") as file:
        for key, values in entries.items():
            if values is not None:
                file[key] = values
    metadata = {f"{view}_mp4_path": f"lab/success/day/run/recordings/MP4/{CAMERAS[view]}.mp4" for view in views}
    # The json that the official loader would take first has none of the keys.
    (folder / "aaa.json").write_text(json.dumps({"note": 1}))
    (folder / "metadata_lab.json").write_text(json.dumps({**metadata, "current_task": "close the drawer"}))
    return states


def concatenate_videos(path, lengths, fps=10):
    """Write one video of several numbered ones, each counting from 0."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps))
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.codec_context.options = {"crf": "10"}
        for number in (number for length in lengths for number in range(length)):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(media.numbered_frame(number), format="rgb24")))
        container.mux(stream.encode(None))
