"""Fixed sine/cosine position tables, the alternative to rotary positions.

The tables are constants of the configuration, so they are numpy arrays built
while tracing and never appear among the parameters.
"""

import numpy as np


def sincos_frequencies(dim):
    """Return the frequencies of `dim` channels, float64 `[dim // 2]`, radians per position."""
    return 1.0 / 10000.0 ** (np.arange(dim // 2, dtype=np.float64) / (dim / 2.0))


def sincos_axis(dim, positions):
    """Build float64 `[len(positions), dim]` (dim even): the sines of all frequencies, then the cosines."""
    angles = np.outer(positions, sincos_frequencies(dim))
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def sincos_table(width, grid, uniform_power=True):
    """Build the position table of a token grid.

    Args:
      width: channels D.
      grid: (t, h, w). With t = 1 the table is two-dimensional (image model).
      uniform_power: give time, row and column equal shares of the channels
        (rounded up to even, then cut to D); otherwise D/2, D/4, D/4.

    Returns:
      float32 `[t*h*w, D]`, row-major over (time, row, column).

    Source: src/models/utils/pos_embs.py.
    """
    t, h, w = grid
    time, row, column = (axis.reshape(-1) for axis in np.meshgrid(*map(np.arange, (t, h, w)), indexing="ij"))
    if t == 1:
        parts = [(width // 2, row), (width // 2, column)]
    elif uniform_power:
        share = 2 * int(np.ceil(width / 6))
        parts = [(share, time), (share, row), (share, column)]
    else:
        parts = [(width // 2, time), (width // 4, row), (width // 4, column)]
    table = np.concatenate([sincos_axis(dim, positions) for dim, positions in parts], axis=1)
    return table[:, :width].astype(np.float32)


def _linear_weights(size, new_size):
    source = np.maximum((np.arange(new_size) + 0.5) * size / new_size - 0.5, 0.0)
    low = np.minimum(source.astype(int), size - 1)
    high = np.minimum(low + 1, size - 1)
    weights = np.zeros((new_size, size))
    np.add.at(weights, (np.arange(new_size), low), 1.0 - (source - low))
    np.add.at(weights, (np.arange(new_size), high), source - low)
    return weights


def _cubic_weights(size, new_size, scale):
    # Keys' kernel with a = -0.75 and clamped borders, the convention of PyTorch.
    a = -0.75
    source = (np.arange(new_size) + 0.5) / scale - 0.5
    first = np.floor(source).astype(int) - 1
    weights = np.zeros((new_size, size))
    for tap in range(4):
        x = np.abs(source - (first + tap))
        near = (a + 2) * x**3 - (a + 3) * x**2 + 1
        far = a * (x**3 - 5 * x**2 + 8 * x - 4)
        index = np.clip(first + tap, 0, size - 1)
        np.add.at(weights, (np.arange(new_size), index), np.where(x <= 1, near, np.where(x < 2, far, 0.0)))
    return weights


def resample_table(table, grid, new_grid):
    """Fit a position table to a clip of another size.

    Args:
      table: float32 `[t*h*w, D]` built for `grid`.
      grid: (t, h, w) of the table.
      new_grid: (t, h, w) of the clip.

    Returns:
      float32 `[t'*h'*w', D]`: a shorter clip of equal frame size takes the first
      rows; otherwise trilinear, or bicubic for an image table (t = 1).

    Source: src/models/vision_transformer.py (interpolate_pos_encoding).
    """
    if tuple(grid) == tuple(new_grid):
        return table
    if tuple(grid[1:]) == tuple(new_grid[1:]) and new_grid[0] < grid[0]:
        return table[: int(np.prod(new_grid))]
    cube = table.reshape(*grid, -1).astype(np.float64)
    if grid[0] == 1:
        # Parity: one scale, the root of the ratio of token counts, serves both axes.
        scale = np.sqrt(np.prod(new_grid[1:]) / np.prod(grid[1:]))
        weights = [np.ones((1, 1))] + [_cubic_weights(n, m, scale) for n, m in zip(grid[1:], new_grid[1:])]
    else:
        weights = [_linear_weights(n, m) for n, m in zip(grid, new_grid)]
    cube = np.einsum("ta,hb,wc,abcd->thwd", *weights, cube, optimize=True)
    return cube.reshape(-1, table.shape[1]).astype(np.float32)
