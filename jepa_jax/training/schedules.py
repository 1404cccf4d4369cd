"""Learning rate, weight decay and EMA rate as functions of the update number.

Every schedule maps `k` = 1, 2, ... (the number of the update it applies to; int or
float scalar, may be traced) to a float32 scalar. Differences are formed before
rounding to float32, so that values near the end of a schedule keep their precision.

Source: src/utils/schedulers.py, app/vjepa/train.py, evals/*/eval.py.
"""

import jax.numpy as jnp
import numpy as np


def _half_cosine(done, left, start, end):
    """Go from `start` at done = 0 to `end` at left = 0; each half is measured from its own end."""
    length = jnp.maximum(1, done + left)

    def share(part):
        return jnp.square(jnp.sin(0.5 * np.pi * part / length))

    return jnp.where(done < left, start + share(done) * (end - start), end + share(left) * (start - end))


def _ramp(k, length, start, end):
    return start + (k / max(1, length)) * (end - start)


def warmup_cosine(k, *, start, ref, final, warmup_steps, horizon):
    """Rise linearly for `warmup_steps`, then fall by a half cosine to `final` at `horizon`.

    With `final == ref` the rate stays constant after warm-up, as in the primary phase.
    """
    cosine = jnp.maximum(final, _half_cosine(k - warmup_steps, horizon - k, ref, final))
    return jnp.where(k < warmup_steps, _ramp(k, warmup_steps, start, ref), cosine)


def linear(k, *, ref, final, horizon):
    """Change linearly from `ref` at 0 to `final` at `horizon`, and on beyond it (cooldown)."""
    # Parity: not clamped at the horizon.
    return jnp.asarray(_ramp(horizon - k, horizon, final, ref), jnp.float32)


def warmup_stable_decay(k, *, start, ref, final, warmup_steps, anneal_steps, horizon):
    """Rise linearly, stay at `ref`, then fall linearly to `final` over the last `anneal_steps`."""
    stable_end = horizon - anneal_steps
    # Parity: not clamped at the horizon.
    falling = final + (horizon - k) / max(1, anneal_steps) * (ref - final)
    return jnp.where(k < warmup_steps, _ramp(k, warmup_steps, start, ref), jnp.where(k < stable_end, ref, falling))


def cosine(k, *, ref, final, horizon):
    """Go by a half cosine from `ref` at 0 to `final` at `horizon` and not past it (weight decay)."""
    value = _half_cosine(k, horizon - k, ref, final)
    return jnp.maximum(final, value) if final <= ref else jnp.minimum(final, value)


def ema_rate(k, *, start, end, horizon):
    """Return 1 - momentum for update k; momentum goes linearly from `start` to `end`.

    The complement is returned because 0.00075 keeps its precision in float32 and
    1 - float32(0.99925) does not.
    """
    return jnp.asarray((1.0 - start) - (k - 1) * ((end - start) / horizon), jnp.float32)
