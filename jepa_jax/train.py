"""Train a model: `python -m jepa_jax.train --config=configs/pretrain.py:vitl16 --workdir=runs/x`.

Any field of the config can be overridden: `--config.optim.lr=1e-4`. Run the same command
again to continue from the last checkpoint in the workdir.
"""

import contextlib

from absl import app, flags, logging

from jepa_jax import cli

_CONFIG = cli.define_config()
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for checkpoints and metrics; an existing run in it is resumed.")
_PREEMPTED_STATUS = flags.DEFINE_integer(
    "preempted_status", 0, "Exit status after a SIGTERM, when the state is saved. A cluster that starts again only what failed "
    "needs one that is not 0.", lower_bound=0, upper_bound=125)


def _run(config, workdir):
    # Imported here: data workers import this module too, and must stay light.
    from etils import epath

    from jepa_jax.tasks import anticipate, pretrain, probe, world_model
    from jepa_jax.training import loop, processes

    tasks = {"anticipate": anticipate.make_task, "pretrain": pretrain.make_task, "probe": probe.make_task,
             "world_model": world_model.make_task}
    if config.task not in tasks:
        raise ValueError(f"task {config.task!r} is unknown; choose one of {sorted(tasks)}")
    if not 0 <= config.seed < 2**32:
        raise ValueError(f"seed is {config.seed}; it must be at least 0 and below 2**32")
    if config.mesh.distributed:
        processes.join_processes()
    with processes.watch(shared=(loop.Preempted, loop.TrainingStopped)) as watch:
        _train(tasks[config.task], config, epath.Path(workdir), watch.stops_at if watch else None)


def _train(make_task, config, workdir, stops_at):
    import jax

    from jepa_jax.data.skips import SkipCounter
    from jepa_jax.training import loop, processes, sharding

    mesh = sharding.make_mesh(config.mesh.fsdp, sequence=config.mesh.sequence)
    logging.info("%s; mesh %s", ", ".join(sorted({d.device_kind for d in jax.devices()})), dict(mesh.shape))
    task = make_task(config, mesh)
    for line in task.summary:
        logging.info("%s", line)
    logging.info("%.3g TFLOP per step", task.flops_per_step / 1e12)
    if not jax.config.jax_compilation_cache_dir:
        # A restart then loads the compiled step instead of compiling it again.
        jax.config.update("jax_compilation_cache_dir", str(workdir.resolve() / "compilation_cache"))
    skips = SkipCounter(config.data.max_bad_fraction, processes.sum_over_processes)
    with _claimed(config, workdir) as check_claim:
        try:
            loop.train(task, skips, mesh, workdir, config=config, total_steps=config.optim.total_steps, stops_at=stops_at,
                       check_claim=check_claim)
        finally:
            logging.info("%s", skips.report())


@contextlib.contextmanager
def _claimed(config, workdir):
    """Take the workdir, in the first of several processes, and write the config there; yields `Claim.check`."""
    import jax

    from jepa_jax.training.workdir import Claim

    if jax.process_index():
        yield lambda: None
        return
    workdir.mkdir(parents=True, exist_ok=True)
    with Claim(workdir) as claim:
        (workdir / "config.json").write_text(config.to_json_best_effort(indent=2) + "\n")
        yield claim.check


def main(argv):
    """Parse nothing more; run, and turn foreseen errors into one message and an exit code."""
    import jax

    from jepa_jax.data import DataError, WorkerDied
    from jepa_jax.training.checkpoint import CheckpointError
    from jepa_jax.training.loop import Preempted, TrainingStopped
    from jepa_jax.training.processes import ProcessLost
    from jepa_jax.training.workdir import WorkdirInUse
    from jepa_jax.training.writers import quiet_writers

    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; fields are set with --config.section.field=value")
    quiet_writers()
    try:
        _run(_CONFIG.value, _WORKDIR.value)
    except Preempted as stop:
        logging.info("%s", stop)
        return _PREEMPTED_STATUS.value
    except TrainingStopped as stop:
        # In all processes alike, so that they can part in good order.
        logging.error("%s", stop)
        return 1
    except KeyboardInterrupt:
        logging.error("interrupted; the same command continues from the last checkpoint")
        return _failed(130)
    except (ValueError, FileNotFoundError, DataError, WorkerDied, CheckpointError, WorkdirInUse, ProcessLost) as error:
        # Foreseen: the message says what to do, and a stack trace would bury it.
        logging.debug("details", exc_info=True)
        logging.error("%s", error)
        return _failed(1)
    except jax.errors.JaxRuntimeError as error:
        if not jax.distributed.is_initialized():
            raise
        logging.exception("process %d: work shared with the other processes failed, though all of them live: %s\nRun the "
                          "same command again to go on from the last checkpoint", jax.process_index(), error)
        return _failed(1)
    return 0


def _failed(code):
    """Return an exit code; of several processes, end this one, as the others may not have failed."""
    import jax

    from jepa_jax.training import processes

    if jax.distributed.is_initialized():
        processes.leave_alone(code)
    return code


if __name__ == "__main__":
    cli.run(main, required=["config", "workdir"])
