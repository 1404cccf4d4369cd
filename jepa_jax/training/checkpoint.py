"""Checkpoints: one thin owner of Orbax, and the ways a run can start."""

import dataclasses
import logging as std_logging
import sys

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from jepa_jax.training.state import tensor_names

STARTS = ("scratch", "cooldown", "weights")
# Written side by side, so that a reader can take the weights alone.
_TREES = ("params", "target_params", "opt_state", "progress")


class CheckpointError(Exception):
    """A checkpoint could not be written, or does not fit."""


def _trees(state, names=_TREES):
    """Return the items of a state that hold anything; Orbax stores no empty ones."""
    progress = {"step": state.step, "guard": state.guard}
    trees = dict(zip(_TREES, (state.params, state.target_params, state.opt_state, progress)))
    return {name: trees[name] for name in names if jax.tree.leaves(trees[name])}


class CheckpointStore:
    """Checkpoints of one run, saved in the background.

    A checkpoint holds the items params, target_params, opt_state and progress (step and
    guard) as arrays, and `run`: the config and the state of the data order as JSON.

    Args:
      directory: where they are or will be; created on the first save.
      keep_last: newest checkpoints to keep.
      keep_every: also keep those whose step is a multiple of this; 0 keeps none.
      read_only: touch nothing, not even what looks like a half-written save: another process
        may be writing it.
    """

    def __init__(self, directory, *, keep_last=3, keep_every=0, read_only=False):
        self.directory = epath.Path(directory)
        # Orbax warns that a folder opened for reading is read-only.
        verbosity = logging.get_verbosity()
        logging.set_verbosity(logging.ERROR if read_only else verbosity)
        handlers = {name: ocp.StandardCheckpointHandler() for name in _TREES}
        self._manager = ocp.CheckpointManager(
            self.directory.resolve(),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep_last, keep_period=keep_every or None, enable_async_checkpointing=True,
                create=not read_only, read_only=read_only, cleanup_tmp_directories=not read_only,
            ),
            item_handlers=handlers | {"run": ocp.JsonCheckpointHandler()},
        )
        logging.set_verbosity(verbosity)

    def latest(self):
        """Return the step of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, step, state, run):
        """Start saving; errors of this save show at the next call of `save`, `wait` or `close`.

        Args:
          step: batches consumed, the name of the checkpoint.
          state: `TrainState`.
          run: JSON-able dict.

        Raises:
          CheckpointError: if the previous save failed, for instance on a full disk.
        """
        items = {name: ocp.args.StandardSave(tree) for name, tree in _trees(state).items()}
        with self._failures_named():
            self._manager.save(step, args=ocp.args.Composite(**items, run=ocp.args.JsonSave(run)), force=True)

    def wait(self):
        """Block until everything is on disk.

        Raises:
          CheckpointError: if the save failed.
        """
        with self._failures_named():
            self._manager.wait_until_finished()

    def close(self):
        """Wait, and release the background threads.

        Raises:
          CheckpointError: if a save failed.
        """
        with self._failures_named():
            self._manager.close()

    def preempted(self, step):
        """Return whether the cluster announced, to all processes alike, that it will stop this job."""
        return jax.process_count() > 1 and self._manager.reached_preemption(step)

    def restore(self, step, abstract_state):
        """Load a checkpoint into the shapes, dtypes and shardings of `abstract_state`.

        Returns:
          (state, run).

        Raises:
          CheckpointError: if it holds tensors of another model.
        """
        trees = _trees(abstract_state)
        self._check_fits(step, trees)
        items = {name: ocp.args.StandardRestore(tree) for name, tree in trees.items()}
        found = dict(self._manager.restore(step, args=ocp.args.Composite(**items, run=ocp.args.JsonRestore())).items())
        run, progress = found.pop("run"), found.pop("progress")
        return abstract_state.replace(**found, **progress), run

    def restore_weights(self, step, abstract_state):
        """Load only (params, target_params); see `restore`."""
        trees = _trees(abstract_state, _TREES[:2])
        self._check_fits(step, trees)
        items = {name: ocp.args.StandardRestore(tree) for name, tree in trees.items()}
        try:
            found = dict(self._manager.restore(step, args=ocp.args.Composite(**items)).items())
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(f"checkpoint {self.directory / str(step)} cannot be read: {error}; if its run is still "
                                  "training, it was replaced by a newer one meanwhile: try again") from error
        return found["params"], found.get("target_params", {})

    def read_run(self, step):
        """Load only `run`, the JSON of a checkpoint: its config and the state of its data order.

        Raises:
          CheckpointError: if the checkpoint has none.
        """
        if not (self.directory / str(step) / "run").is_dir():
            raise CheckpointError(f"checkpoint {self.directory / str(step)} has no readable 'run'")
        return self._manager.restore(step, args=ocp.args.Composite(run=ocp.args.JsonRestore())).run

    def _check_fits(self, step, trees):
        metadata, problems = self._manager.item_metadata(step), []
        for item, tree in trees.items():
            if metadata[item] is None:
                raise CheckpointError(f"checkpoint {self.directory / str(step)} has no readable {item!r}")
            problems += _misfits(item, _shapes(tree), _shapes(metadata[item].tree))
        _refuse(self.directory / str(step), problems)

    def _failures_named(self):
        return _NamedFailure(self)


@dataclasses.dataclass
class _NamedFailure:
    """Turn the errors of Orbax's writers into a `CheckpointError` that says what is left."""

    store: CheckpointStore

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        # TensorStore reports failed writes as ValueError, the file system as OSError.
        if kind is None or not issubclass(kind, (OSError, ValueError, RuntimeError)):
            return False
        # Asking Orbax would raise the same error again; a finished checkpoint has a bare number.
        steps = [int(path.name) for path in self.store.directory.glob("*") if path.name.isdigit()]
        kept = f"step {max(steps)}" if steps else "none yet"
        raise CheckpointError(
            f"could not write a checkpoint to {self.store.directory}: {error}\n"
            f"Last complete checkpoint: {kept}. Free disk space or fix the path, then run the same command again: "
            "it continues from there"
        ) from error


def _misfits(item, here, there):
    return [f"  {item}/{name}: {there.get(name, 'absent')} in the checkpoint, {here.get(name, 'absent')} in this config"
            for name in sorted(here.keys() | there.keys()) if here.get(name) != there.get(name)]


def _refuse(what, problems):
    if problems:
        shown = "\n".join(problems[:5] + [f"  and {len(problems) - 5} more"] * (len(problems) > 5))
        raise CheckpointError(f"checkpoint {what} holds another model than this config describes:\n{shown}\n"
                              "Use the config it was trained with, or another --workdir")


def _shapes(tree):
    return {name: tuple(leaf.shape) for name, leaf in zip(tensor_names(tree), jax.tree.leaves(tree))}


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
      CheckpointError: if there is no checkpoint, or it does not fit.
      ValueError: from `check_card`.
    """
    check_start(mode, checkpoint)
    step = store.latest()
    if step is not None:
        state, run = store.restore(step, abstract_state)
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


def _place(what, trees, abstract_state):
    """Put host arrays where the state wants them, if they are the tensors it wants."""
    wanted = (abstract_state.params, abstract_state.target_params)
    problems = []
    for item, tree, abstract in zip(_TREES, trees, wanted):
        problems += _misfits(item, _shapes(abstract), _shapes(tree))
    _refuse(what, problems)
    return jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), tuple(trees), wanted)


def check_start(mode, checkpoint):
    """Raise ValueError unless `start.mode` and `start.checkpoint` go together."""
    if mode not in STARTS:
        raise ValueError(f"start.mode {mode!r} is unknown; choose one of {STARTS}")
    if (mode == "scratch") != (not checkpoint):
        raise ValueError(f"start.mode {mode!r} and start.checkpoint {checkpoint!r} do not go together: 'scratch' takes "
                         "no checkpoint, the other modes need one (--config.start.checkpoint=WORKDIR)")


def holds_checkpoint(path):
    """Tell whether `open_checkpoint` finds a checkpoint at a path."""
    try:
        store, _ = open_checkpoint(path)
    except CheckpointError:
        return False
    store.close()
    return True


def open_checkpoint(path):
    """Find a checkpoint for reading.

    Args:
      path: a run's workdir, its `checkpoints` folder, or one numbered checkpoint in it.

    Returns:
      (store, step).

    Raises:
      CheckpointError: if nothing is there.
    """
    path = epath.Path(path)
    # A folder may have a number for other reasons, such as a date.
    if path.name.isdigit() and (path / "run").is_dir():
        return CheckpointStore(path.parent, read_only=True), int(path.name)
    for directory in (path / "checkpoints", path):
        if directory.is_dir():
            store = CheckpointStore(directory, read_only=True)
            if store.latest() is not None:
                return store, store.latest()
            store.close()
    raise CheckpointError(f"no checkpoint in {path}; give a run's workdir or one of its numbered checkpoints "
                          "(released or converted weights are for start.mode=weights)")


def quiet_writers():
    """Keep writers of a checkpoint that failed from ending a program's output with errors of their own.

    The first write that fails closes Orbax's event loop. TensorStore then has nobody to tell of the
    others, at any later moment, and each prints a stack trace; those it did tell, nobody asks any more,
    which asyncio reports when they are collected.
    """
    shown = sys.unraisablehook

    def show(raised):
        if str(raised.exc_value) != "Event loop is closed":
            shown(raised)

    sys.unraisablehook = show
    std_logging.getLogger("asyncio").addFilter(lambda record: "exception was never retrieved" not in record.getMessage())


def log_parameters(params):
    """Log a table of parameter counts by module and the total."""
    rows = {}
    for name, leaf in zip(tensor_names(params), jax.tree.leaves(params)):
        module = "/".join(name.split("/")[:2])
        rows[module] = rows.get(module, 0) + leaf.size
    width = max(map(len, rows))
    lines = [f"  {module:{width}}  {count:>15,}" for module, count in rows.items()]
    logging.info("parameters\n%s\n  %s  %15s", "\n".join(lines), "total".ljust(width), f"{sum(rows.values()):,}")
