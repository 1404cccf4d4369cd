"""Make small real video and image files, with the frame number painted into each frame."""

from fractions import Fraction

import av
import cv2
import numpy as np
from array_record.python import array_record_module

from jepa_jax.data.masks import MaskSampler, MaskSpec
from jepa_jax.data.records import WRITER_OPTIONS, encode_record

_BITS = 8


def numbered_frame(number, height=64, width=96):
    """Paint `number` as eight vertical bars, white for a set bit, over a slope."""
    frame = np.empty((height, width, 3), np.uint8)
    frame[:] = np.linspace(60, 190, height)[:, None, None]
    for bit in range(_BITS):
        left, right = bit * width // _BITS, (bit + 1) * width // _BITS
        frame[: height // 2, left:right] = 255 * (number >> bit & 1)
    return frame


def read_number(frame):
    """Read back the number of `numbered_frame`, at any size."""
    height, width = frame.shape[:2]
    columns = [int((bit + 0.5) * width / _BITS) for bit in range(_BITS)]
    return sum((int(frame[height // 4, column].mean()) > 127) << bit for bit, column in enumerate(columns))


def write_video(path, frames=48, fps=30, height=64, width=96, stamps=None, codec="libx264", **options):
    """Write a numbered video; `stamps` (in 1/1000 s) make its rate variable, options go to the encoder."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(fps))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        context = stream.codec_context
        context.time_base = Fraction(1, 1000) if stamps else 1 / Fraction(fps)
        context.options = {"crf": "10", **{key: str(value) for key, value in options.items()}}
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(numbered_frame(number, height, width), format="rgb24")
            frame.pts, frame.time_base = stamps[number] if stamps else number, context.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return str(path)


def write_sound(path):
    """Write an mp4 with a sound track only."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return str(path)


def write_image(path, height=64, width=96, number=5):
    """Write a numbered picture; the suffix says the format."""
    cv2.imwrite(str(path), numbered_frame(number, height, width)[..., ::-1])
    return str(path)


def write_shard(path, records):
    """Write records (ClipRecord or raw bytes) as one shard."""
    writer = array_record_module.ArrayRecordWriter(str(path), WRITER_OPTIONS)
    for record in records:
        writer.write(record if isinstance(record, bytes) else encode_record(record))
    writer.close()
    return str(path)


def mask_sampler(frames=8, size=32, seed=0):
    """Make a small mask sampler of fixed lengths for clips of that size."""
    spec = MaskSpec(num_blocks=2, num_context=4, num_target=4)
    return MaskSampler([spec], (max(1, frames // 2), size // 8, size // 8), seed=seed)


def flip_byte(path, offset):
    """Change one byte of a file in place; a negative offset counts from the end."""
    with open(path, "r+b") as file:
        file.seek(offset, 2 if offset < 0 else 0)
        value = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([value ^ 0xFF]))
