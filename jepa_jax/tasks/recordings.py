"""What recordings tell those who use a world model later: how far actions go, how long they last, how large frames are stored."""

from typing import NamedTuple

import numpy as np
from absl import logging

from jepa_jax.data.errors import DataError
from jepa_jax.data.records import count_records
from jepa_jax.data.remote import is_remote
from jepa_jax.data.trajectory_clips import trajectory_step
from jepa_jax.robots.bounds import HIGH, LOW, describe_bounds, find_bounds, step_actions
from jepa_jax.robots.checks import check_record

# Trajectories that are looked at, of all sources together; of each at least so many.
_LOOKED_AT, _LEAST = 32, 4
# Part by which steps may differ in length: rates are measured, and rounded.
ALIKE = 0.1


class Recorded(NamedTuple):
    """What was found.

    Attributes:
      robot: `RobotSpec`, with bounds of its actions; () where they are neither stated nor to be found.
      step_seconds: that an action lasts, by the true rates of the trajectories.
      short_side: of the frames, as stored, pixels.
      lines: about the bounds, for people.
    """

    robot: object
    step_seconds: float
    short_side: int
    lines: tuple[str, ...]


def look_at(sources, cache, robot, record, fps, views):
    """Look at some trajectories of every source, spread over it.

    Args:
      sources: list of (name, `ShardSource` of trajectories).
      cache: of copies of remote shards; of a remote source only the first shard is read.
      robot: `RobotSpec`.
      record: a `TrajectoryRecord` of it, for where none of those can be used.
      fps: frames per second that are asked for.
      views: names of the cameras that are used; None for all.

    Returns:
      `Recorded`. Where steps differ in length, it is the middle one, and a warning is logged.
    """
    found, seconds = [], {}
    for name, source in sources:
        mine = list(_measured(source, cache, max(_LEAST, _LOOKED_AT // len(sources)), robot, fps, views))
        found += mine
        seconds[name] = [one.seconds for one in mine]
    found = found or [_measure(robot, record, fps, views)]
    middle = float(np.median([one.seconds for one in found]))
    _warn(seconds, fps)
    bounded, lines = robot, ()
    if not robot.action_low:
        actions = np.concatenate([one.actions for one in found])
        bounded = find_bounds(robot, actions)
        lines = (_describe(bounded, len(actions), len(found)),)
    return Recorded(bounded, middle, max(one.short_side for one in found), lines)


class _Measured(NamedTuple):
    seconds: float
    short_side: int
    actions: np.ndarray


def _measured(source, cache, count, robot, fps, views):
    """Measure trajectories of one source, as far as they can be used."""
    total = count_records(source.files[0], cache) if any(map(is_remote, source.files)) else len(source)
    for number in np.unique(np.linspace(0, total - 1, min(count, total)).astype(int)).tolist():
        try:
            record = source[number]
            check_record(robot, record, views)
            yield _measure(robot, record, fps, views)
        except DataError:
            # Counted when it is drawn in training.
            continue


def _measure(robot, record, fps, views):
    step = trajectory_step(record.sampling_fps, fps)
    used = [view for view in record.views if not views or view.name in views] or record.views
    actions = [] if robot.action_low else [step_actions(robot, record, view, step) for view in used[: None if robot.frame == "camera" else 1]]
    return _Measured(step / record.control_rate, max(min(view.height, view.width) for view in used),
                     np.concatenate([np.zeros((0, robot.action_dim)), *actions]))


def _warn(seconds, fps):
    """Warn where steps of sources last differently, as a model takes all for the same."""
    every = np.concatenate([np.zeros(0), *seconds.values()])
    if not len(every) or every.max() <= (1 + ALIKE) * every.min():
        return
    spans = [(name, min(values), max(values)) for name, values in seconds.items() if values]
    text = ", ".join(f"{name}: {low:.3g}" + (f" to {high:.3g}" if high > low else "") for name, low, high in spans)
    logging.warning("data.fps is %g, but a step is a whole number of rows, and lasts so many seconds: %s; the model takes them all for the "
                    "same. A data.fps that divides all rates makes them so", fps, text)


def _describe(robot, actions, trajectories):
    looked = f"{actions} actions of {trajectories} trajectories"
    if not robot.action_low:
        return (f"bounds for planning: not known, as a number of robot.planned never changes in {looked}; state robot.action_low and "
                "robot.action_high, or plan with --bounds")
    return (f"bounds for planning, as robot.action_low and robot.action_high state none: {LOW:.0%} to {HIGH:.0%} of {looked}: "
            f"{describe_bounds(robot)}")
