"""The ways a run can start."""

import jax
from absl import logging

from jepa_jax.training.checkpoint import (
    DAMAGED, CheckpointError, DamagedCheckpoint, check_tensors, holds_checkpoint, open_checkpoint,
)

STARTS = ("scratch", "cooldown", "weights")


def start(store, abstract_state, make_state, read_weights, check_card, *, mode, checkpoint):
    """Give a run its first state. The four ways to start, in order of precedence:

    1. resume: the workdir holds a checkpoint; everything is taken from it;
    2. cooldown: `checkpoint` gives weights, EMA weights and Adam moments; steps, schedules
       and data order start at 0;
    3. weights: `checkpoint` gives weights and EMA weights only; it may also be converted or
       released weights, in any format that `read_weights` knows;
    4. scratch.

    Args:
      store: `CheckpointStore` of this run.
      abstract_state: shapes and shardings.
      make_state: () -> freshly initialised `TrainState`.
      read_weights: path -> (params, target_params), for weights that are no checkpoint.
      check_card: `Task.check_card`, asked about every checkpoint that is read.
      mode: one of `STARTS`.
      checkpoint: workdir, or checkpoint folder, of the other run; for 2 and 3.

    Returns:
      (state, run, text): `run` is the saved JSON for 1, else None; `text` is a line for the log.

    Raises:
      ValueError: if mode and checkpoint do not go together.
      CheckpointError: if there is no checkpoint, it does not fit, or all in the workdir are damaged.
      ValueError: from `check_card`.
    """
    check_start(mode, checkpoint)
    if store.steps():
        step, state, run = _resume(store, abstract_state)
        check_card(store.directory / str(step), run["model"], True)
        return state, run, f"resumed from step {step} in {store.directory}"
    if mode == "scratch":
        return make_state(), None, "starting from scratch"
    if mode == "weights" and not holds_checkpoint(checkpoint):
        params, target_params = _place(checkpoint, read_weights(checkpoint), abstract_state)
        return make_state().replace(params=params, target_params=target_params), None, f"weights from {checkpoint}"
    source, step = open_checkpoint(checkpoint)
    if mode == "weights":
        params, target_params = source.restore_weights(step, abstract_state)
        state = make_state().replace(params=params, target_params=target_params)
    else:
        # Source: app/vjepa/utils.py (load_checkpoint with is_anneal).
        found, _ = source.restore(step, abstract_state)
        fresh = make_state()
        state = found.replace(step=fresh.step, guard=fresh.guard)
    # After the shapes, which say more where they differ.
    check_card(source.directory / str(step), source.read_run(step)["model"], False)
    source.close()
    return state, None, f"{mode} from step {step} of {source.directory}"


def _resume(store, abstract_state):
    """Load the newest checkpoint that is whole; those after it are set aside, with a warning each."""
    damaged = []
    for step in reversed(store.steps()):
        try:
            state, run = store.restore(step, abstract_state)
        except DamagedCheckpoint as error:
            logging.warning("%s", error)
            damaged.append(step)
            continue
        if damaged:
            store.set_aside(damaged)
            logging.warning("going back to step %d; the damaged checkpoints are now in %s", step,
                            store.directory.parent / DAMAGED)
        return step, state, run
    raise CheckpointError(
        f"none of the checkpoints in {store.directory} can be read: steps {sorted(damaged)}; each is explained above. Nothing "
        "was changed. If the storage fails, try again later; else give another --workdir, to start anew"
    )


def _place(what, trees, abstract_state):
    """Put host arrays where the state wants them, if they are the tensors it wants."""
    wanted = (abstract_state.params, abstract_state.target_params)
    check_tensors(what, wanted, trees)
    return jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), tuple(trees), wanted)


def check_start(mode, checkpoint):
    """Raise ValueError unless `start.mode` and `start.checkpoint` go together."""
    if mode not in STARTS:
        raise ValueError(f"start.mode {mode!r} is unknown; choose one of {STARTS}")
    if (mode == "scratch") != (not checkpoint):
        raise ValueError(f"start.mode {mode!r} and start.checkpoint {checkpoint!r} do not go together: 'scratch' takes "
                         "no checkpoint, the other modes need one (--config.start.checkpoint=WORKDIR)")
