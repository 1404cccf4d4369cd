"""The optimiser step of every task: schedules, gradients, guard, update, metrics."""

import jax
import jax.numpy as jnp
import optax

from jepa_jax.training import optim

_SCHEDULE_FIELDS = ("schedule", "lr", "start_lr", "final_lr", "weight_decay", "final_weight_decay", "total_steps",
                    "warmup_steps", "anneal_steps", "horizon_scale")


def make_schedules(section, *, with_ema=True):
    """Build the schedules of a run.

    Args:
      section: `optim` of a config.
      with_ema: the task has an EMA copy, whose momentum the section sets.

    Returns:
      `optim.Schedules`.
    """
    momentum = {key: section[key] if with_ema else 1.0 for key in ("ema", "final_ema")}
    return optim.make_schedules(**{key: section[key] for key in _SCHEDULE_FIELDS}, **momentum)


def make_train_step(loss_fn, optimizer, schedules, *, accumulate, spike_factor, target_key=None):
    """Build the pure step (state, batch, frozen) -> (state, metrics, samples); see `Task`.

    Args:
      loss_fn: (params, fixed, batch) -> (loss, aux). `fixed` are weights without gradient: the EMA
        copy if there is one, else the frozen networks. `aux` has `losses`, a dict of scalars,
        and `samples`, `[n, D]` arrays.
      optimizer: from `optim.make_adamw`.
      schedules: `optim.Schedules`.
      accumulate: parts a batch is cut into.
      spike_factor: see `optim.check_update`.
      target_key: subtree of the parameters with an EMA copy, or None.
    """

    def train_step(state, batch, frozen=None):
        k = state.step + 1
        rates = {name: schedule(k) for name, schedule in schedules._asdict().items()}
        fixed = frozen if target_key is None else state.target_params
        loss, aux, grads = optim.accumulate_gradients(
            lambda params, part: loss_fn(params, fixed, part), state.params, batch, accumulate
        )
        apply, guard, metrics = optim.check_update(state.guard, state.params, loss, grads, spike_factor)
        state = optim.apply_update(optimizer, state, grads, apply, guard, target_key=target_key, **rates)
        metrics |= {"train/loss": loss} | {name: value.mean() for name, value in aux["losses"].items()}
        metrics |= {f"optim/grad_norm_{name}": optax.global_norm(tree) for name, tree in grads.items()}
        # Of networks with rates of their own, the largest.
        metrics |= {"optim/lr": jnp.max(rates["learning_rate"]), "optim/weight_decay": jnp.max(rates["weight_decay"]),
                    "guard/skipped": guard.skipped}
        if target_key is not None:
            metrics["ema/momentum"] = 1.0 - rates["ema_rate"]
        samples = jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), aux["samples"])
        return state, metrics, samples

    return train_step


def sample_latents(targets, predictions, num_tokens):
    """Take about `num_tokens` evenly spaced tokens of a batch `[B, N, D]` for the collapse monitors, as `[n, D]` each."""
    batch, length, width = targets.shape
    per_clip = max(1, min(length, num_tokens // batch))
    chosen = jnp.arange(per_clip) * length // per_clip
    pick = lambda x: jax.lax.stop_gradient(x[:, chosen].reshape(-1, width))
    return {"targets": pick(targets), "predictions": pick(predictions)}
