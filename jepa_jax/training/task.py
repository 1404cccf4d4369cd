"""What the train loop needs to know about a task."""

from typing import Any, Callable, NamedTuple


class Program(NamedTuple):
    """What a task computes, which needs no data: it is also compiled where there is none.

    Attributes:
      networks: those that are trained, by role.
      init_state, train_step: as in `Task`.
      tensor_names: names of the parameters in flattening order.
      passes: what a step computes, `models.flops.Pass`es.
    """

    networks: dict[str, Any]
    init_state: Callable
    train_step: Callable
    tensor_names: list[str]
    passes: list[Any]


class Task(NamedTuple):
    """A training task as a record of pure functions and plain data.

    Attributes:
      init_state: rng -> `TrainState`; jittable.
      train_step: (state, batch, frozen) -> (state, metrics, samples); jittable. `metrics` is a flat
        dict of scalars with the `guard/` entries of `optim.check_update`; `samples` holds
        `targets` and `predictions` `[n, D]` for the collapse monitors.
      open_data: (start_step, num_steps) -> context manager that yields an iterator of
        (batch of host arrays, notes on what it was made of) for this process.
      tensor_names: names behind `guard/first_bad`, from `optim.checked_names`.
      clips_per_step: clips of the global batch.
      flops_per_step: operations of one step on the global batch, without recomputation.
      data_state: texts and numbers by name that describe the data order, saved with every checkpoint
        and compared at resume.
      model_card: JSON-able description of the networks, saved with every checkpoint, so that it
        can be read without the config; see `jepa_jax.weights.runs.model_card`.
      check_card: (path, model card, resumed) -> None; looks at the card of a checkpoint that the run starts
        from or, with `resumed`, goes on from, and raises ValueError if that is of another model.
      read_weights: path -> (params, target_params) of foreign weights, nested dicts of host arrays, to
        start from; or raises ValueError.
      summary: lines for the log at start.
      frozen: weights that the step reads and nobody changes, nested dict of host arrays; they are on
        the devices once and in no checkpoint.
      write_frozen: workdir -> None; keeps the frozen weights there, for readers of the run.
      observe: (step, state) -> dict of floats that are logged beside the metrics, called in all processes at steps
        that are logged, outside of the step's program; empty where none are due. None for nothing to look at.
    """

    init_state: Callable
    train_step: Callable
    open_data: Callable
    tensor_names: list[str]
    clips_per_step: int
    flops_per_step: float
    data_state: dict[str, Any]
    model_card: dict[str, Any]
    check_card: Callable
    read_weights: Callable
    summary: list[str]
    frozen: Any
    write_frozen: Callable
    observe: Callable | None = None
