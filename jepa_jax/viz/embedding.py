"""Pictures of the features of one file: a still of frames and colours, and a movie of them side by side."""

import os

import numpy as np

from jepa_jax.data.movies import write_mp4
from jepa_jax.features.pca import fit_colors
from jepa_jax.features.sources import read_frames
from jepa_jax.features.windows import most_central
from jepa_jax.viz import canvas, features

# Square frames in a row; fewer of wider ones, or the picture is a strip that no page shows well.
_COLUMNS = 8


def draw_source(source, sampling, tokens, grid, name, png, mp4):
    """Write the pictures of a file; for a still image only the first.

    One colour mapping is fitted to all tokens of the file, so colours mean the same at all
    times. Where windows overlap, a frame is coloured by the window in whose middle it is nearest.

    Args:
      source, sampling: as `features.sources.open_source` takes and gives them.
      tokens: float `[W, N, D]` of every window.
      grid: (t, h, w), N = t * h * w.
      name: of the encoder, for the title.
      png, mp4: paths of the results.

    Raises:
      DataError: if the file can no longer be read.
      OSError: if a result cannot be written.
    """
    mapping = fit_colors([tokens[window] for window in range(len(tokens))])
    window, place = most_central(source.windows)
    # Frames of a tubelet share a token; an image is one frame and one whole tubelet.
    time = place * grid[0] // source.windows.frames
    stretch = features.panel_stretch(*grid[1:])
    shown = features.shown_places(len(source.windows.sampled), round(_COLUMNS / stretch))
    kept = {}

    def colored():
        for position, frame in enumerate(read_frames(source, sampling)):
            colors = mapping.apply(tokens[window[position]].reshape(*grid, -1)[time[position]])
            if position in shown:
                kept[position] = frame, colors
            yield features.beside(frame, colors)

    if source.timeline is None:
        list(colored())
    else:
        # A file without a rate was sampled by frames; any speed is as good.
        write_mp4(mp4, colored(), source.fps or 1.0)
    frames, colors = (np.stack(part) for part in zip(*kept.values()))
    height, width = frames.shape[1:3]
    captions = [_caption(source, position) for position in shown]
    rate = f", {source.fps:.3g} frames/s" if source.timeline else ""
    figure = features.draw_strip(
        frames, captions, [(features.share_label("features", mapping.share), colors)], f"Features of {os.path.basename(source.path)}",
        f"{name}, {width} x {height} pixels{rate}\ncolours: first three principal components, one fit for the whole file",
    )
    canvas.save_figure(figure, png)


def _caption(source, position):
    if source.timeline is None:
        return ""
    return f"{source.timeline.times[source.windows.sampled[position]]:.2f} s"
