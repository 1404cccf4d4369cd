"""AdamW with per-step hyper-parameters, the update guard, and gradient accumulation."""

import functools
from typing import Callable, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jepa_jax.training import schedules
from jepa_jax.training.state import Guard

SCHEDULES = ("warmup_cosine", "linear", "warmup_stable_decay")
_NOT_DECAYED = ("bias", "scale")
_NORM_AVERAGE_DECAY = 0.98


class Schedules(NamedTuple):
    """Functions of the update number k = 1, 2, ...; see `jepa_jax.training.schedules`."""

    learning_rate: Callable
    weight_decay: Callable
    ema_rate: Callable


def make_schedules(*, schedule, lr, start_lr, final_lr, weight_decay, final_weight_decay, ema, final_ema,
                   total_steps, warmup_steps, anneal_steps, horizon_scale):
    """Build the schedules of a run.

    Args:
      schedule: one of `SCHEDULES`.
      lr, start_lr, final_lr: peak, initial and final learning rate.
      weight_decay, final_weight_decay: ends of the half cosine.
      ema, final_ema: ends of the linear EMA momentum.
      total_steps: updates of the run.
      warmup_steps, anneal_steps: lengths of the linear ramps, where the schedule has them.
      horizon_scale: the schedules are laid out for this multiple of `total_steps`.
        Parity: 1.25 in the released configs, so that their ends are never reached.

    Raises:
      ValueError: if the schedule is unknown or a length is impossible.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"optim.schedule {schedule!r} is unknown; choose one of {SCHEDULES}")
    if total_steps < 1 or not 0 <= warmup_steps or horizon_scale < 1:
        raise ValueError(f"optim needs total_steps >= 1, warmup_steps >= 0 and horizon_scale >= 1, got "
                         f"{total_steps}, {warmup_steps} and {horizon_scale}")
    horizon = int(horizon_scale * total_steps)
    if schedule == "warmup_cosine":
        rate = functools.partial(schedules.warmup_cosine, start=start_lr, ref=lr, final=final_lr,
                                 warmup_steps=warmup_steps, horizon=horizon)
    elif schedule == "linear":
        rate = functools.partial(schedules.linear, ref=lr, final=final_lr, horizon=horizon)
    else:
        rate = functools.partial(schedules.warmup_stable_decay, start=start_lr, ref=lr, final=final_lr,
                                 warmup_steps=warmup_steps, anneal_steps=anneal_steps, horizon=horizon)
    return Schedules(
        learning_rate=rate,
        weight_decay=functools.partial(schedules.cosine, ref=weight_decay, final=final_weight_decay, horizon=horizon),
        ema_rate=functools.partial(schedules.ema_rate, start=ema, end=final_ema, horizon=horizon_scale * total_steps),
    )


def decay_factors(params):
    """Return a tree of 1.0 for tensors that are decayed and 0.0 for biases and norm scales.

    Source: app/vjepa/utils.py (init_opt).
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, _: 0.0 if path[-1].key in _NOT_DECAYED else 1.0, params
    )


def make_adamw(*, b1, b2, eps, decay_factors):
    """Build AdamW whose `update` takes `learning_rate` and `weight_decay` as arguments.

    Taking them per step, instead of counting steps inside, lets a cooldown keep the Adam
    moments and their bias correction while its schedules start again.

    Args:
      decay_factors: tree like the parameters; each leaf broadcasts to its parameter and
        multiplies the weight decay.

    Returns:
      optax.GradientTransformationExtraArgs.
    """
    adam = optax.scale_by_adam(b1=b1, b2=b2, eps=eps)

    def update(grads, state, params, *, learning_rate, weight_decay):
        direction, state = adam.update(grads, state, params)
        updates = jax.tree.map(
            lambda d, p, factor: -learning_rate * (d + weight_decay * factor * p), direction, params, decay_factors
        )
        return updates, state

    return optax.GradientTransformationExtraArgs(adam.init, update)


def accumulate_gradients(loss_fn, params, batch, num_parts):
    """Average loss, gradient and outputs over equal parts of a batch, one part at a time.

    Args:
      loss_fn: (params, batch) -> (loss, aux); aux is a tree of arrays.
      batch: tree of arrays with a leading batch axis divisible by `num_parts`.
      num_parts: 1 runs the whole batch at once.

    Returns:
      (loss, aux, grads): means over the parts; `aux` keeps a leading axis of parts.
    """
    value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)
    if num_parts == 1:
        (loss, aux), grads = value_and_grad(params, batch)
        return loss, jax.tree.map(lambda x: x[None], aux), grads
    # Rows are dealt out in turn, so that every device keeps the rows it holds.
    parts = jax.tree.map(lambda x: x.reshape(-1, num_parts, *x.shape[1:]).swapaxes(0, 1), batch)

    def add(carry, part):
        (loss, aux), grads = value_and_grad(params, part)
        return jax.tree.map(jnp.add, carry, (loss, grads)), aux

    zeros = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
    (loss, grads), aux = jax.lax.scan(add, zeros, parts)
    return loss / num_parts, aux, jax.tree.map(lambda g: g / num_parts, grads)


def checked_names(param_names):
    """Name what `check_update` looks at, in its order."""
    return [f"parameter {name}" for name in param_names] + ["loss"] + [f"gradient {name}" for name in param_names]


def check_update(guard, params, loss, grads, spike_factor):
    """Decide whether an update is safe to apply.

    Args:
      guard: `Guard` before the update.
      params: parameters before the update; where one is bad, everything after it is too.
      loss: float32 scalar.
      grads: gradient tree.
      spike_factor: refuse an update whose gradient norm exceeds this multiple of the
        running average; 0 turns the test off.

    Returns:
      (apply, guard, metrics): a boolean scalar, the next `Guard`, and
      `guard/first_bad`: 0 if all is finite, else 1 + the position of the first tensor in
      `checked_names` that is not; `guard/spike`; `guard/applied`.
    """
    finite = jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves((params, loss, grads))])
    norm = optax.global_norm(grads)
    spike = jnp.zeros((), bool)
    if spike_factor:
        spike = (guard.grad_norm > 0) & (norm > spike_factor * guard.grad_norm)
    apply = finite.all() & ~spike
    average = jnp.where(guard.grad_norm > 0, guard.grad_norm, norm)
    average = average + (1 - _NORM_AVERAGE_DECAY) * (norm - average)
    guard = Guard(
        skipped=guard.skipped + ~apply,
        grad_norm=jnp.where(apply, average, guard.grad_norm),
    )
    first_bad = jnp.where(finite.all(), 0, 1 + jnp.argmin(finite))
    return apply, guard, {"guard/first_bad": first_bad, "guard/spike": spike, "guard/applied": apply}


def apply_update(optimizer, state, grads, apply, guard, *, learning_rate, weight_decay, ema_rate, target_key):
    """Advance the state by one update, or only its step and guard if `apply` is false.

    Args:
      optimizer: from `make_adamw`.
      target_key: subtree of `params` that `target_params` follows, or None.

    Returns:
      `TrainState`. The EMA follows the updated parameters, in float32.
    """
    updates, opt_state = optimizer.update(
        grads, state.opt_state, state.params, learning_rate=learning_rate, weight_decay=weight_decay
    )
    params = optax.apply_updates(state.params, updates)
    target_params = state.target_params
    if target_key is not None:
        target_params = optax.incremental_update(params[target_key], target_params, ema_rate)
    new = (params, target_params, opt_state)
    old = (state.params, state.target_params, state.opt_state)
    params, target_params, opt_state = jax.tree.map(lambda n, o: jnp.where(apply, n, o), new, old)
    return state.replace(step=state.step + 1, params=params, target_params=target_params,
                         opt_state=opt_state, guard=guard)
