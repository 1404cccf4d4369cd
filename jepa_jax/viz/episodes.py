"""Episodes in a simulator as a film and as one picture: what the robot did, beside the goal that it was given."""

import cv2
import numpy as np

from jepa_jax.viz import canvas

_BORDER, _GAP = 6, 10
_COLUMNS = 7
_WHITE, _GOOD, _NEUTRAL = (255, 255, 255), (47, 133, 90), (160, 174, 192)
_TEXT_HEIGHT = 24
# Still pictures at the end, s.
_PAUSE = 1.5


def film_frames(episodes, frames, goals, *, pixels=256, columns=3, rate=4.0):
    """Make the frames of a film: every episode with its goal to the right; a green frame says that the task is done.

    Args:
      episodes: `evals.closed_loop.episodes.Episodes`.
      frames: uint8 `[K, T + 1, H, W, 3]` of the first K of them.
      goals: uint8 `[K, G, H, W, 3]`.
      pixels: side to which small frames are enlarged.
      columns: episodes side by side.
      rate: frames per second, for the pause at the end.

    Yields:
      uint8 `[h, w, 3]`.
    """
    frames, goals = (np.stack([canvas.enlarge(clip, pixels) for clip in clips]) for clips in (frames, goals))
    count, length = frames.shape[:2]
    shown = [*range(length), *[length - 1] * round(_PAUSE * rate)]
    for step in shown:
        tiles = [_tile(episodes, number, step, frames[number, step], goals[number]) for number in range(count)]
        columns = min(columns, count)
        tiles += [np.full_like(tiles[0], 255)] * (-count % columns)
        rows = [np.concatenate(tiles[first : first + columns], 1) for first in range(0, len(tiles), columns)]
        yield np.concatenate(rows, 0)


def _tile(episodes, number, step, frame, goals):
    """Draw one episode at a step, with the goal that it pursued and a line of text."""
    done = step > 0 and bool(episodes.success[number, step - 1])
    pursued = int(episodes.goal[number, min(step, episodes.goal.shape[1] - 1)])
    text = f"step {step}" + (f"   {100 * episodes.distance[number, step - 1]:.0f} cm to go" if step else "") + ("   done" if done else "")
    aim = "goal" if len(goals) == 1 else f"goal {pursued + 1} of {len(goals)}"
    pair = [_framed(frame, _GOOD if done else _NEUTRAL, text), _framed(goals[pursued], _WHITE, aim)]
    return np.pad(np.concatenate(pair, 1), ((_GAP, 0), (_GAP, _GAP), (0, 0)), constant_values=255)


def _framed(image, color, text):
    """Put a colored frame around a picture and a line of text above it."""
    height, width = (side + 2 * _BORDER for side in image.shape[:2])
    out = np.full((height, width, 3), color, np.uint8)
    out[_BORDER:-_BORDER, _BORDER:-_BORDER] = image
    line = np.full((_TEXT_HEIGHT, width, 3), 255, np.uint8)
    cv2.putText(line, text, (_BORDER, _TEXT_HEIGHT - 7), cv2.FONT_HERSHEY_SIMPLEX, 0.48, (45, 55, 72), 1, cv2.LINE_AA)
    return np.concatenate([line, out], 0)


def draw_sheet(episodes, frames, goals, title, subtitle=""):
    """Draw episodes as rows of pictures, from the start to the end, with the last goal at the right.

    Args:
      episodes, frames, goals: as in `film_frames`.
      title, subtitle: of the picture.

    Returns:
      matplotlib `Figure`.
    """
    count, length = frames.shape[:2]
    shown = np.unique(np.linspace(0, length - 1, _COLUMNS).round().astype(int))
    columns = len(shown) + goals.shape[1]
    figure = canvas.make_figure(1.7 * columns + 0.9, 0.9 + 2.0 * count, title, subtitle)
    for number, panels in enumerate(figure.subplots(count, columns, squeeze=False)):
        pictures = [*frames[number, shown], *goals[number]]
        aims = ["goal"] if goals.shape[1] == 1 else [f"goal {place + 1}" for place in range(goals.shape[1])]
        titles = [*(_step_title(episodes, number, step) for step in shown), *aims]
        for panel, picture, text in zip(panels, pictures, titles):
            canvas.show_image(panel, picture)
            done = text.endswith("done")
            panel.set_title(text, fontsize=8, color=canvas.GREEN if done else canvas.GREY, pad=3)
        canvas.label_row(panels[0], f"seed {episodes.seed[number]}\nepisode {episodes.number[number]}")
    return figure


def _step_title(episodes, number, step):
    if step == 0:
        return "start"
    gap = f"step {step}, {100 * episodes.distance[number, step - 1]:.0f} cm"
    return gap + (", done" if episodes.success[number, step - 1] else "")
