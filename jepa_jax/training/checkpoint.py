"""Checkpoints: one thin owner of Orbax, and the ways a run can start."""

import concurrent.futures
import dataclasses
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from jepa_jax.training import fingerprint
from jepa_jax.training.processes import sum_over_processes
from jepa_jax.training.state import tensor_names
from jepa_jax.training.writers import first_of, tell_failure

# Where damaged checkpoints are put, beside the folder of the others: nothing is deleted that might still be of use.
DAMAGED = "damaged_checkpoints"
# Written side by side, so that a reader can take the weights alone.
_TREES = ("params", "target_params", "opt_state", "progress")


class CheckpointError(Exception):
    """A checkpoint could not be written, or does not fit."""


class DamagedCheckpoint(CheckpointError):
    """Files of a checkpoint are missing, or do not hold what was written; the same in all processes."""


def _trees(state, names=_TREES):
    """Return the items of a state that hold anything; Orbax stores no empty ones."""
    progress = {"step": state.step, "guard": state.guard}
    trees = dict(zip(_TREES, (state.params, state.target_params, state.opt_state, progress)))
    return {name: trees[name] for name in names if jax.tree.leaves(trees[name])}


class CheckpointStore:
    """Checkpoints of one run, saved in the background.

    A checkpoint holds the items params, target_params, opt_state and progress (step and
    guard) as arrays, and `run`: the config and the state of the data order as JSON, with a
    fingerprint of every array, since its files do not protect their contents.

    Args:
      directory: where they are or will be; created on the first save.
      keep_last: newest checkpoints to keep.
      keep_every: also keep those whose step is a multiple of this; 0 keeps none.
      read_only: touch nothing, not even what looks like a half-written save: another process
        may be writing it.
    """

    def __init__(self, directory, *, keep_last=3, keep_every=0, read_only=False):
        # Orbax reads by absolute paths only.
        self.directory = epath.Path(directory).resolve()
        # Orbax warns that a folder opened for reading is read-only.
        verbosity = logging.get_verbosity()
        logging.set_verbosity(logging.ERROR if read_only else verbosity)
        self._saving, self._failure = None, concurrent.futures.Future()
        self._handlers = {name: tell_failure(ocp.StandardCheckpointHandler(), self._failure) for name in _TREES}
        self._handlers["run"] = tell_failure(ocp.JsonCheckpointHandler(), self._failure)
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep_last, keep_period=keep_every or None, enable_async_checkpointing=True,
                create=not read_only, read_only=read_only, cleanup_tmp_directories=not read_only,
                async_options=None if read_only else ocp.AsyncOptions(post_finalization_callback=self._report_written),
            ),
            item_handlers=self._handlers,
        )
        logging.set_verbosity(verbosity)

    def latest(self):
        """Return the step of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def steps(self):
        """Return the steps of all complete checkpoints, the newest last."""
        return sorted(self._manager.all_steps())

    def save(self, step, state, run):
        """Start saving; errors of this save show at the next call of `save`, `wait` or `close`.

        Args:
          step: batches consumed, the name of the checkpoint.
          state: `TrainState`.
          run: JSON-able dict.

        Raises:
          CheckpointError: if the previous save failed, for instance on a full disk.
        """
        began, trees = time.monotonic(), _trees(state)
        run = run | {"fingerprints": {name: fingerprint.fingerprints(tree) for name, tree in trees.items()}}
        items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(trees)) / 2**30
        with self._failures_named():
            # Else the report on a save that still goes on would be about this one.
            self._finish()
            self._saving = step, size, time.monotonic()
            self._manager.save(step, args=ocp.args.Composite(**items, run=ocp.args.JsonSave(run)), force=True)
        logging.info("saving step %d, %.3g GiB; training waited %.1f s, writing goes on beside it", step, size,
                     time.monotonic() - began)

    def _report_written(self):
        step, size, began = self._saving
        seconds = time.monotonic() - began
        logging.info("saved step %d: %.3g GiB in %.1f s, %.3g MiB/s", step, size, seconds, 1024 * size / seconds)

    def wait(self):
        """Block until everything is on disk.

        Raises:
          CheckpointError: if the save failed.
        """
        with self._failures_named():
            self._finish()

    def check(self):
        """Look, without waiting, whether the save under way has failed.

        Raises:
          CheckpointError: if it has.
        """
        if self._failure.done():
            self.wait()

    def _finish(self):
        """Wait for the save under way."""
        if jax.process_count() == 1:
            self._manager.wait_until_finished()
            return
        # Where a writer of one process failed, Orbax lets it wait, for minutes, for the others, which wait for it.
        first_of(self._manager.wait_until_finished, self._failure)

    def close(self):
        """Wait, and release the background threads. After a failure there is nothing to wait for.

        Raises:
          CheckpointError: if a save failed.
        """
        if self._failure.done() and jax.process_count() > 1:
            return
        with self._failures_named():
            self._finish()
            self._manager.close()

    def restore(self, step, abstract_state):
        """Load a checkpoint into the shapes, dtypes and shardings of `abstract_state`.

        Returns:
          (state, run).

        Raises:
          DamagedCheckpoint: in all processes alike, if one of them cannot read its part or an array
            is not the one that was saved.
          CheckpointError: if it holds tensors of another model.
        """
        trees, where = _trees(abstract_state), self.directory / str(step)
        attempt = _Attempt()
        with attempt:
            self._check_fits(step, trees)
            # Not by the manager: it waits for all processes, also for one whose part cannot be read.
            found = {name: self._handlers[name].restore(where / name, args=ocp.args.StandardRestore(tree))
                     for name, tree in trees.items()}
            run = self._handlers["run"].restore(where / "run", args=ocp.args.JsonRestore())
        if sum_over_processes(np.array([attempt.failed]))[0]:
            raise DamagedCheckpoint(f"checkpoint {where} cannot be read: {attempt.why or 'by another process; its log says why'}")
        # Checkpoints from before these were kept have none.
        self._check_unchanged(step, found, run.pop("fingerprints", {}))
        progress = found.pop("progress")
        return abstract_state.replace(**found, **progress), run

    def set_aside(self, steps):
        """Move checkpoints out of the way, to the folder `DAMAGED`; all processes must call it."""
        folder = self.directory.parent / DAMAGED
        if jax.process_index() == 0:
            folder.mkdir(parents=True, exist_ok=True)
            # In a bucket there are no folders without files.
            (folder / "README").write_text("Checkpoints with missing or changed files; nothing reads them.\n")
            for step in steps:
                number = sum(path.name.partition(".")[0] == str(step) for path in folder.iterdir())
                (self.directory / str(step)).rename(folder / (f"{step}.{number}" if number else str(step)))
        sum_over_processes(np.zeros(1, np.int32))
        self._manager.reload()

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
        self._check_unchanged(step, found, self.read_run(step).get("fingerprints", {}))
        return found["params"], found.get("target_params", {})

    def read_run(self, step):
        """Load only `run`, the JSON of a checkpoint: its config and the state of its data order.

        Raises:
          CheckpointError: if the checkpoint has none.
        """
        if not (self.directory / str(step) / "run").is_dir():
            raise CheckpointError(f"checkpoint {self.directory / str(step)} has no readable 'run'")
        return self._manager.restore(step, args=ocp.args.Composite(run=ocp.args.JsonRestore())).run

    def _check_unchanged(self, step, trees, expected):
        wrong = [f"{item}/{name}" for item, tree in trees.items() for name in fingerprint.changed(tree, expected.get(item, {}))]
        if wrong:
            raise DamagedCheckpoint(f"checkpoint {self.directory / str(step)} does not hold what was saved: {len(wrong)} arrays "
                                    f"changed on disk, first {wrong[0]!r}")

    def _check_fits(self, step, trees):
        metadata, problems = self._manager.item_metadata(step), []
        for item, tree in trees.items():
            if metadata[item] is None:
                raise DamagedCheckpoint(f"checkpoint {self.directory / str(step)} has no readable {item!r}")
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
        # Not of a writer, but of waiting for another process.
        if issubclass(kind, jax.errors.JaxRuntimeError) and jax.process_count() > 1:
            return False
        # Asking Orbax would raise the same error again; a finished checkpoint has a bare number.
        steps = [int(path.name) for path in self.store.directory.glob("*") if path.name.isdigit()]
        kept = f"step {max(steps)}" if steps else "none yet"
        raise CheckpointError(
            f"could not write a checkpoint to {self.store.directory}: {error}\n"
            f"Last complete checkpoint: {kept}. Free disk space or fix the path, then run the same command again: "
            "it continues from there"
        ) from error


@dataclasses.dataclass
class _Attempt:
    """Note whatever keeps a checkpoint from being read, other than that it is one of another model.

    By `with`, as Orbax and TensorStore raise errors of many classes, bare `Exception` among them.
    """

    failed: bool = False
    why: str = ""

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        misfit = kind is not None and issubclass(kind, CheckpointError) and not issubclass(kind, DamagedCheckpoint)
        if kind is None or misfit or not issubclass(kind, Exception):
            return False
        self.failed, self.why = True, f"{kind.__name__}: {error}".partition("\n")[0][:500]
        return True


def _misfits(item, here, there):
    return [f"  {item}/{name}: {there.get(name, 'absent')} in the checkpoint, {here.get(name, 'absent')} in this config"
            for name in sorted(here.keys() | there.keys()) if here.get(name) != there.get(name)]


def _refuse(what, problems):
    if problems:
        shown = "\n".join(problems[:5] + [f"  and {len(problems) - 5} more"] * (len(problems) > 5))
        raise CheckpointError(f"checkpoint {what} holds another model than this config describes:\n{shown}\n"
                              "Use the config it was trained with, or another --workdir")


def check_tensors(what, wanted, found):
    """Raise CheckpointError unless (params, target_params) hold the tensors that are wanted; `what` names where they are."""
    problems = []
    for item, like, tree in zip(_TREES, wanted, found):
        problems += _misfits(item, _shapes(like), _shapes(tree))
    _refuse(what, problems)


def _shapes(tree):
    return {name: tuple(leaf.shape) for name, leaf in zip(tensor_names(tree), jax.tree.leaves(tree))}


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


def log_parameters(params):
    """Log a table of parameter counts by module and the total."""
    rows = {}
    for name, leaf in zip(tensor_names(params), jax.tree.leaves(params)):
        module = "/".join(name.split("/")[:2])
        rows[module] = rows.get(module, 0) + leaf.size
    width = max(map(len, rows))
    lines = [f"  {module:{width}}  {count:>15,}" for module, count in rows.items()]
    logging.info("parameters\n%s\n  %s  %15s", "\n".join(lines), "total".ljust(width), f"{sum(rows.values()):,}")
