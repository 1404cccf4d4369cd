"""Pictures of robot trajectories: where the end effector goes, over the frames of a camera and from two sides."""

import numpy as np
from matplotlib import colormaps
from matplotlib.collections import LineCollection

from jepa_jax.data import poses, video
from jepa_jax.viz import canvas
from jepa_jax.viz.features import enlarge_colors, pca_colors, shown_places

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

    Where features are stored in place of frames, those are drawn.

    Args:
      records: `TrajectoryRecord`s, at least one.
      name: of the shards, for the title.
      field_of_view: degrees across a frame.

    Returns:
      matplotlib `Figure`.

    Raises:
      DataError: if a video cannot be decoded.
    """
    views = [_chosen_view(record) for record in records]
    subtitle = (
        "path of the end effector, dark at its beginning and bright at its end; a ring marks the frame's own place"
    )
    if any(view.data and view.extrinsics is not None for view in views):
        subtitle += f"\nput into frames by the recorded camera poses and an assumed {field_of_view:g} degrees across"
    if not all(view.data for view in views):
        subtitle += "\nwhere only features are stored: their first three principal components as colours, one fit per row"
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
    view = _chosen_view(record)
    draw_view = _draw_frames if view.data else _draw_stored_features
    draw_view(row[:_FRAMES], record, view, places, field_of_view)
    # A long name would push the frames away.
    parts = [_short(canvas.legible(part)) for part in record.source_id.rstrip("/").split("/")[-2:]]
    canvas.label_row(row[0], "/\n".join(parts).replace("$", r"\$"))
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


def _draw_frames(row, record, view, places, field_of_view):
    """Draw frames of a view, with the path in them where the camera's pose is known."""
    shown = np.unique(shown_places(record.num_frames, len(row)))
    frames = video.decode_frames(view.data, shown)
    for panel in row[len(shown) :]:
        panel.set_axis_off()
    for panel, index, frame in zip(row, shown, frames):
        _show(panel, frame, f"{view.name}, {index / record.control_rate:.2f} s")
        if places is not None and view.extrinsics is not None:
            points = project(record.states[:, places], view.extrinsics[index], frame.shape[:2], field_of_view)
            _draw_path(panel, points, index)
            inside = (points >= 0) & (points <= np.array(frame.shape[1::-1]) - 1)
            if not inside.all(axis=1).any():
                # Wrong camera poses look like this.
                panel.set_xlabel("the path is out of view", fontsize=8, color=canvas.ORANGE, labelpad=3)


def _draw_stored_features(row, record, view, places, field_of_view):
    """Draw what is stored in place of frames: a crop whose place in the frame is not known well enough for the path."""
    del places, field_of_view
    latents = view.latents
    shown = np.unique(shown_places(len(latents.frames), len(row)))
    indices = [latents.frames[place] for place in shown]
    tokens = latents.rows(indices).astype(np.float32).reshape(len(indices), *latents.grid, latents.width)
    colors, _ = pca_colors(tokens)
    side = latents.crop[0]
    for panel in row[len(shown) :]:
        panel.set_axis_off()
    for panel, index, image in zip(row, indices, colors):
        size = round(side), round(side * latents.grid[1] / latents.grid[0])
        _show(panel, enlarge_colors(image, *size), f"{view.name}, {index / record.control_rate:.2f} s, features")


def _show(panel, image, title):
    canvas.show_image(panel, image)
    panel.set_title(title, fontsize=8.5, color=canvas.GREY, pad=3)


def _short(part, characters=24):
    return part if len(part) <= characters else part[: characters - 1] + "…"


def _chosen_view(record):
    """Choose the first view that has frames and a known camera pose, or else frames."""
    return max(record.views, key=lambda view: (bool(view.data), view.extrinsics is not None))


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
    steps = np.stack([points[:-1], points[1:]], axis=1)
    seen = np.isfinite(steps).all(axis=(1, 2))
    lines = LineCollection(steps[seen], colors=colors[:-1][seen], linewidths=1.8, capstyle="round")
    panel.add_collection(lines)
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
