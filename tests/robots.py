"""Write small robot data sets in the formats that `prepare` reads, with the frame number painted into each frame."""

import json
import struct
from fractions import Fraction

import av
import cv2
import google_crc32c
import h5py
import media
import numpy as np
import pyarrow as pa
import pyarrow.parquet

CAMERAS = {"left": "12345678", "right": "23456789", "wrist": "34567890"}


def smooth_states(length, seed=0):
    """Make float64 `[L, 7]` poses of a slow, smooth motion with roll near pi, as a gripper looking down has."""
    phase = np.linspace(0, 2, length)[:, None] + np.random.default_rng(seed).uniform(0, 6, 7)
    states = np.sin(phase) * [0.2, 0.2, 0.1, 0.3, 0.3, 0.5, 0.5] + [0.5, 0, 0.3, np.pi, 0, 0, 0.5]
    states[:, 3] = (states[:, 3] + np.pi) % (2 * np.pi) - np.pi
    return states


def write_droid(
    folder, length=40, *, header_fps=15, rate=15, views=("left", "right", "wrist"), seed=0, frames=None, **h5
):
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


def write_lerobot(root, lengths=(12, 20, 9), *, version="v2.1", fps=10, pictures=False, seed=0):
    """Write a LeRobot data set of one camera 'observation.images.top' in the layout of a version.

    Returns:
        The states of all episodes, float32 `[L, 7]` each.
    """
    new = version.startswith("v3")
    key = "observation.images.top"
    video_path = (
        "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
        if new
        else ("videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4")
    )
    info = {
        "codebase_version": version, "fps": fps, "chunks_size": 1000, "total_episodes": len(lengths),
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet" if new else
        "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": None if pictures else video_path,
        "features": {
            key: {"dtype": "image" if pictures else "video", "shape": [64, 96, 3], "names": list("hwc")},
            "observation.state": {"dtype": "float32", "shape": [7], "names": {"motors": list("xyzabcg")}},
            "action": {"dtype": "float32", "shape": [2], "names": ["u", "v"]},
        },
    }  # fmt: skip
    states = [smooth_states(length, seed + number).astype(np.float32) for number, length in enumerate(lengths)]
    tables = []
    for number, values in enumerate(states):
        columns = {
            "observation.state": values.tolist(), "action": [[number, row] for row in range(len(values))],
            "frame_index": list(range(len(values))), "episode_index": [number] * len(values),
        }  # fmt: skip
        if pictures:
            shots = [
                cv2.imencode(".png", media.numbered_frame(row)[..., ::-1])[1].tobytes() for row in range(len(values))
            ]
            columns[key] = [{"bytes": shot, "path": None} for shot in shots]
        tables.append(pa.table(columns))
    (root / "meta").mkdir(parents=True)
    (root / "meta/info.json").write_text(json.dumps(info))
    (_write_new if new else _write_old)(root, info, tables, None if pictures else key)
    return states


def _write_old(root, info, tables, key):
    rows = []
    for number, table in enumerate(tables):
        place = {"episode_chunk": 0, "episode_index": number}
        _write_table(root / info["data_path"].format(**place), table)
        if key:
            path = root / info["video_path"].format(video_key=key, **place)
            path.parent.mkdir(parents=True, exist_ok=True)
            media.write_video(path, frames=len(table), fps=info["fps"])
        rows.append({"episode_index": number, "tasks": [f"task {number}"], "length": len(table)})
    (root / "meta/episodes.jsonl").write_text("\n".join(map(json.dumps, rows)))


def _write_new(root, info, tables, key):
    place = {"chunk_index": 0, "file_index": 0}
    lengths = [len(table) for table in tables]
    _write_table(root / info["data_path"].format(**place), pa.concat_tables(tables))
    columns = {
        "episode_index": list(range(len(tables))), "length": lengths,
        "tasks": [[f"task {number}"] for number in range(len(tables))],
        "data/chunk_index": [0] * len(tables), "data/file_index": [0] * len(tables),
        "stats/action/min": [0.0] * len(tables),
    }  # fmt: skip
    if key:
        path = root / info["video_path"].format(video_key=key, **place)
        path.parent.mkdir(parents=True, exist_ok=True)
        concatenate_videos(path, lengths, info["fps"])
        ends = np.cumsum(lengths) / info["fps"]
        columns |= {f"videos/{key}/{part}": [0] * len(tables) for part in place}
        columns[f"videos/{key}/from_timestamp"] = [0.0, *ends[:-1].tolist()]
        columns[f"videos/{key}/to_timestamp"] = ends.tolist()
    _write_table(root / "meta/episodes/chunk-000/file-000.parquet", pa.table(columns))


def _write_table(path, table):
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(table, path)


def write_tfrecord(path, payloads):
    """Write a TFRecord file, with checksums computed here."""
    with open(path, "wb") as file:
        for payload in payloads:
            length = struct.pack("<Q", len(payload))
            file.write(length + _masked_crc(length) + payload + _masked_crc(payload))


def _masked_crc(data):
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32)


def example_bytes(features):
    """Serialise a tf.train.Example by hand: lists of bytes, float32 arrays or int64 arrays by name."""

    def field(number, content):
        size, prefix = len(content), bytes([number << 3 | 2])
        while True:
            size, low = size >> 7, size & 127
            prefix += bytes([low | 128 * (size > 0)])
            if not size:
                return prefix + content

    def feature(values):
        if isinstance(values, list):
            return field(1, b"".join(field(1, value) for value in values))
        if values.dtype == np.float32:
            return field(2, field(1, values.astype("<f4").tobytes()))
        return field(3, b"".join(bytes([8, int(value)]) for value in values))

    entries = (field(1, name.encode()) + field(2, feature(values)) for name, values in features.items())
    return field(1, b"".join(field(1, entry) for entry in entries))


def rlds_episode(length, seed=0, views=("exterior_image_1_left", "wrist_image_left"), **changes):
    """Make an episode with DROID's features, as `example_bytes` takes them; `changes` by the last part of a name."""
    states = smooth_states(length, seed).astype(np.float32)
    shots = [cv2.imencode(".png", media.numbered_frame(row)[..., ::-1])[1].tobytes() for row in range(length)]
    features = {
        **{f"steps/observation/{view}": shots for view in views},
        "steps/observation/cartesian_position": states[:, :6].reshape(-1),
        "steps/observation/gripper_position": states[:, 6],
        "steps/language_instruction": [b""] * (length - 1) + ["öffne die Schublade".encode()],
        "steps/is_last": np.arange(length) == length - 1,
        "episode_metadata/file_path": [b"lab/one"],
    }
    for name, values in changes.items():
        (key,) = (key for key in features if key.endswith("/" + name))
        features[key] = values
    return features, states
