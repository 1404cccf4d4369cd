"""What the hosts of a pod have to decode, beside what a core was measured to decode."""

import glob
import json
import os


def host_input(topology, clips, step_s, *, frames, size, results):
    """Say what every host must deliver for a step time, and how many cores that takes.

    Args:
      topology: `Topology`.
      clips: of the global batch.
      step_s: seconds of a step.
      frames, size: of a clip; of several kinds, the longest.
      results: folder with records of `bench data`.

    Returns:
      JSON-able dict.
    """
    hosts = max(1, topology.num_chips // topology.chip.chips_per_host)
    rate = clips / step_s / hosts
    pixels = frames * size * size * 3
    needed = {"hosts": hosts, "chips_per_host": topology.chip.chips_per_host, "clips_per_s_per_host": rate,
              "pixel_bytes_per_s_per_host": rate * pixels}
    measured = _measured(frames, size, results)
    if measured is None:
        return needed | {"decoding": None}
    per_core = measured["clips_per_s_per_core"]
    return needed | {
        "stored_bytes_per_s_per_host": rate * measured["bytes_per_record"],
        "decoding": measured,
        "cores_needed_per_host": rate / per_core,
        "cores_per_host": topology.chip.cores_per_host,
    }


def _measured(frames, size, results):
    """Return the measured rate for the nearest clip shape, scaled by frames where there is none of this one."""
    found = []
    for path in sorted(glob.glob(os.path.join(results, "data-*.json"))):
        with open(path, encoding="utf-8") as file:
            record = json.load(file)
        found.append((record["clip"]["size"] != size, abs(record["clip"]["frames"] - frames), path, record))
    if not found:
        return None
    *_, path, record = min(found, key=lambda item: item[:3])
    clip = record["clip"]
    same = clip["frames"] == frames and clip["size"] == size
    scale = clip["frames"] / frames
    return {
        "record": os.path.basename(path),
        "processor": record["machine"]["processor"],
        "measured_clip": {"frames": clip["frames"], "size": clip["size"]},
        # A longer clip decodes more frames of the same stored videos; its resolution only changes the crop.
        "scaled_by_frames": None if same else scale,
        "clips_per_s_per_core": record["pipeline_clips_per_s_per_core"] * (1.0 if same else scale),
        "bytes_per_record": record["source"]["bytes_per_record"],
    }
