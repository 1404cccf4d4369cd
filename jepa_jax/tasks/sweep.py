"""Many settings of a probe trained at once: pairs of learning rate and weight decay, their schedules and optimizer."""

import itertools
import math

import jax
import jax.numpy as jnp
import optax

from jepa_jax.training import optim
from jepa_jax.weights import bundle as weights


def make_sweep(section):
    """List the settings of the probes: dicts of lr and weight_decay, in the order of their names.

    Args:
      section: `optim` of a config, with tuples `lr` and `weight_decay`.

    Raises:
      ValueError: if there is none, or one is negative.
    """
    found = [{"lr": lr, "weight_decay": decay} for lr, decay in itertools.product(section.lr, section.weight_decay)]
    if not found or any(not math.isfinite(value) or value < 0 for setting in found for value in setting.values()):
        raise ValueError(f"optim.lr {section.lr} and optim.weight_decay {section.weight_decay} must be lists of numbers of at "
                         "least 0; a probe is trained for every pair")
    return found


def settle_lengths(section, samples, batch_size):
    """Turn epochs into steps, in place: `total_steps` and `warmup_steps` where they are 0.

    Args:
      section: `optim` of a config.
      samples: how many there are in an epoch.
      batch_size: of the run.

    Raises:
      ValueError: if an epoch has no full batch, or all steps would be warm-up.
    """
    if not section.total_steps:
        section.total_steps = section.epochs * (samples // batch_size)
        if section.total_steps < 1:
            raise ValueError(f"optim.epochs is {section.epochs} and data.batch_size {batch_size}, but there are only {samples} samples, so that "
                             "no batch is full; lower data.batch_size, or set optim.total_steps")
    if section.warmup_epochs and not section.warmup_steps:
        section.warmup_steps = round(section.total_steps * section.warmup_epochs / section.epochs)
    if section.warmup_steps >= section.total_steps:
        raise ValueError(f"optim.warmup_steps is {section.warmup_steps} of optim.total_steps {section.total_steps}: the rate would never fall")


def make_schedules(section, sweep):
    """Build the schedules of all probes: their values are float32 `[P]`.

    Args:
      section: `optim` of a config; `start_lr` None starts every probe at its own rate.
      sweep: from `make_sweep`.

    Returns:
      `optim.Schedules`.

    Source: evals/video_classification_frozen/eval.py (init_opt, WarmupCosineLRSchedule).
    """
    alone = [
        optim.make_schedules(
            schedule="warmup_cosine", lr=one["lr"], start_lr=one["lr"] if section.start_lr is None else section.start_lr,
            final_lr=section.final_lr, weight_decay=one["weight_decay"], final_weight_decay=one["weight_decay"], ema=1.0,
            final_ema=1.0, total_steps=section.total_steps, warmup_steps=section.warmup_steps, anneal_steps=0, horizon_scale=1.0,
        )
        for one in sweep
    ]
    together = lambda field: lambda k: jnp.stack([getattr(schedules, field)(k) for schedules in alone])
    return optim.Schedules(together("learning_rate"), together("weight_decay"), alone[0].ema_rate)


def make_optimizer(section):
    """Build AdamW for probes with a rate and a weight decay each; everything is decayed, biases and norms too.

    Returns:
      optax.GradientTransformationExtraArgs; `update` takes `learning_rate` and `weight_decay` as `[P]`.
    """
    adam = optax.scale_by_adam(b1=section.b1, b2=section.b2, eps=section.eps)

    def update(grads, state, params, *, learning_rate, weight_decay):
        direction, state = adam.update(grads, state, params)
        updates = {
            name: jax.tree.map(lambda d, p, at=at: -learning_rate[at] * (d + weight_decay[at] * p), direction[name], params[name])
            for at, name in enumerate(weights.probe_names(params))
        }
        return updates, state

    return optax.GradientTransformationExtraArgs(adam.init, update)


def describe_sweep(sweep, section, abstract):
    """Say which probes are trained and what memory they take; `abstract` holds the shapes of all of them."""
    size = 4 * weights.count_params(abstract)
    return (f"{len(sweep)} probes trained at once: lr {', '.join(map(str, section.lr))} x weight decay "
            f"{', '.join(map(str, section.weight_decay))}; {size / 2**30:.2f} GiB of weights, {4 * size / 2**30:.2f} GiB with gradients and AdamW's moments")
