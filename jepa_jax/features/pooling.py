"""How the tokens of a window are stored: all of them, or means."""

POOLS = ("tokens", "mean", "frames")


def pool_tokens(tokens, grid, pool):
    """Pool the tokens of windows.

    Args:
      tokens: float32 `[..., N, D]`.
      grid: (t, h, w), N = t * h * w.
      pool: "tokens" keeps all, "mean" averages all, "frames" averages over rows and
        columns, per time step.

    Returns:
      float32 `[..., N, D]`, `[..., D]` or `[..., t, D]`.

    Raises:
      ValueError: if the pool is unknown.
    """
    if pool == "tokens":
        return tokens
    if pool == "mean":
        return tokens.mean(axis=-2)
    if pool == "frames":
        time, height, width = grid
        return tokens.reshape(*tokens.shape[:-2], time, height * width, tokens.shape[-1]).mean(axis=-2)
    raise ValueError(f"pool {pool!r} is unknown; choose one of {', '.join(POOLS)}")
