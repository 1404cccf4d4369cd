"""Pictures of robot trajectories: where the end effector goes, over the frames of a camera and from two sides."""

import itertools

import numpy as np
from matplotlib import colormaps

from jepa_jax.data import poses, video
from jepa_jax.viz import canvas
from jepa_jax.viz.features import shown_places

# Degrees across the frame, where the camera's own are not recorded: those of DROID's wide cameras, about.
FIELD_OF_VIEW = 100.0
_FRAMES = 4
_TIME_COLORS = colormaps["viridis"]
# Nearer to the camera than this, in m, a point has no useful place in the frame.
_NEAREST = 0.02
_WIDTH, _HEIGHT = 16.0, 2.1
_LINES = 8


def draw_trajectories(records, name, field_of_view=FIELD_OF_VIEW):
    """Draw a row per trajectory: frames, with the path in them where the camera's pose is known, and the path's plots.

    Args:
      records: `TrajectoryRecord`s, at least one.
      name: of the shards, for the title.
      field_of_view: degrees across a frame.

    Returns:
      matplotlib `Figure`.

    Raises:
      DataError: if a video cannot be decoded.
    """
    projected = any(view.extrinsics is not None for record in records for view in record.views)
    subtitle = (
        "path of the end effector, dark at its beginning and bright at its end; a ring marks the frame's own place"
    )
    if projected:
        subtitle += f"\nput into frames by the recorded camera poses and an assumed {field_of_view:g} degrees across"
    figure = canvas.make_figure(_WIDTH, 1.1 + (_HEIGHT + 0.35) * len(records), f"Trajectories of {name}", subtitle)
    grid = figure.subplots(
        len(records),
        _FRAMES + 2,
        squeeze=False,
        width_ratios=[1.5] * _FRAMES + [1, 1],
    )
    for row, record in zip(grid, records):
        _draw_row(row, record, field_of_view)
    return figure


def _draw_row(row, record, field_of_view):
    places = position_columns(record)
    number, view = _chosen_view(record)
    shown = np.unique(shown_places(record.num_frames, _FRAMES))
    frames = video.decode_frames(record.views[number].data, shown)
    for panel in row[len(shown) : _FRAMES]:
        panel.set_axis_off()
    for panel, index, frame in zip(row, shown, frames):
        canvas.show_image(panel, frame)
        panel.set_title(f"{view.name}, {index / record.control_rate:.2f} s", fontsize=8.5, color=canvas.GREY, pad=3)
        if places is not None and view.extrinsics is not None:
            points = project(record.states[:, places], view.extrinsics[index], frame.shape[:2], field_of_view)
            _draw_path(panel, points, index)
            inside = (points >= 0) & (points <= np.array(frame.shape[1::-1]) - 1)
            if not inside.all(axis=1).any():
                # Wrong camera poses look like this.
                panel.set_xlabel("the path is out of view", fontsize=8, color=canvas.ORANGE, labelpad=3)
    # A long name would push the frames away.
    canvas.label_row(
        row[0], "/\n".join(_short(part) for part in record.source_id.rstrip("/").split("/")[-2:]).replace("$", r"\$")
    )
    if places is None:
        _draw_lines(row[_FRAMES:], record)
        return
    path = record.states[:, places]
    labels = [f"{record.state_names[place]} ({record.state_units[place]})" for place in places]
    for panel, vertical, title in ((row[_FRAMES], 1, "from above"), (row[_FRAMES + 1], 2, "from the side")):
        _draw_path(panel, path[:, [0, vertical]], None)
        panel.set_aspect("equal", adjustable="datalim")
        panel.set_title(title, fontsize=8.5, color=canvas.GREY, pad=3)
        panel.set_xlabel(labels[0], fontsize=8, labelpad=1)
        panel.set_ylabel(labels[vertical], fontsize=8, labelpad=1)
        panel.tick_params(labelsize=7)
        panel.grid(color="#e2e8f0", linewidth=0.8)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)


def _short(part, characters=24):
    return part if len(part) <= characters else part[: characters - 1] + "…"


def _chosen_view(record):
    """Choose a view whose camera pose is known, or else the first."""
    known = [pair for pair in enumerate(record.views) if pair[1].extrinsics is not None]
    return known[0] if known else (0, record.views[0])


def position_columns(record):
    """Find the three numbers of a state that are the end effector's place.

    Args:
      record: `TrajectoryRecord`.

    Returns:
      list of three column numbers, or None if the state holds no place.
    """
    if record.rotation != "none":
        return [0, 1, 2]
    metres = [number for number, unit in enumerate(record.state_units) if unit == "m"]
    return metres[:3] if len(metres) >= 3 else None


def project(points, extrinsics, size, field_of_view):
    """Put points into the frame of a pinhole camera that looks along its z axis, y down.

    Args:
      points: float `[n, 3]`, m.
      extrinsics: float `[6]`, pose of the camera in the same frame of reference.
      size: (height, width) of the frame, pixels.
      field_of_view: degrees across the frame.

    Returns:
      float64 `[n, 2]`, pixels right and down; NaN for points behind the camera.
    """
    whole = np.concatenate([points, np.zeros((len(points), 4))], axis=1, dtype=np.float64)
    seen = poses.to_camera_frame(whole, np.broadcast_to(np.float64(extrinsics), (len(points), 6)))[:, :3]
    height, width = size
    focal = width / 2 / np.tan(np.radians(field_of_view) / 2)
    depth = np.where(seen[:, 2:] > _NEAREST, seen[:, 2:], np.nan)
    return seen[:, :2] / depth * focal + np.array([width, height]) / 2 - 0.5


def _draw_path(panel, points, now):
    """Draw a path coloured by time; the limits of a frame stay."""
    inside = panel.axis() if now is not None else None
    colors = _TIME_COLORS(np.linspace(0, 1, len(points)))
    # One line per step: each has its own colour.
    for (start, end), color in zip(itertools.pairwise(points), colors):
        panel.plot([start[0], end[0]], [start[1], end[1]], color=color, linewidth=1.8, solid_capstyle="round")
    marks = {"linestyle": "none", "marker": "o", "markersize": 5}
    if now is None:
        panel.plot(*points[0], color=colors[0], **marks)
        panel.plot(*points[-1], color=colors[-1], **marks)
    else:
        panel.plot(
            *points[now],
            **marks | {"markersize": 7},
            markerfacecolor="none",
            markeredgecolor="white",
            markeredgewidth=1.5,
        )
        panel.plot(
            *points[now],
            **marks | {"markersize": 9},
            markerfacecolor="none",
            markeredgecolor="black",
            markeredgewidth=0.8,
        )
        panel.axis(inside)


def _draw_lines(panels, record):
    """Draw the numbers of a state without place over time."""
    seconds = np.arange(record.num_frames) / record.control_rate
    for number in range(min(_LINES, record.states.shape[1])):
        panel = panels[number % 2]
        panel.plot(seconds, record.states[:, number], linewidth=1.2, label=record.state_names[number])
    for panel in panels:
        panel.set_xlabel("s", fontsize=8, labelpad=1)
        panel.tick_params(labelsize=7)
        panel.legend(fontsize=6.5, frameon=False, ncols=2)
        panel.spines[["top", "right"]].set_visible(False)
