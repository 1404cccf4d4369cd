"""The trajectories of action-conditioned training: where they come from, and of which robot they are."""

from absl import logging

from jepa_jax.data.errors import DataError
from jepa_jax.data.mixing import open_sources
from jepa_jax.data.opening import readable
from jepa_jax.data.specs import GroupSpec
from jepa_jax.data.trajectories import KIND
from jepa_jax.data.trajectory_clips import trajectory_indices
from jepa_jax.robots.checks import check_record
from jepa_jax.robots.presets import make_spec
from jepa_jax.robots.recorded import check_recorded
from jepa_jax.tasks.sources import make_cache, make_sources, naming_root

GROUP = "trajectory"


def make_group(config):
    """Build the `GroupSpec` of the trajectories."""
    data = config.data
    return GroupSpec(GROUP, "video", data.frames, data.fps, data.batch_size, make_sources(data.root, data, "data"))


def open_trajectories(config):
    """Open the sources of a config.

    Returns:
      list of (name, `ShardSource`).

    Raises:
      FileNotFoundError: if shards are missing.
    """
    group = make_group(config)
    with naming_root(config.data.root):
        sources = open_sources([group], KIND, make_cache(config.data))[GROUP]
    return list(zip((spec.name for spec in group.sources), sources))


def first_records(sources):
    """Read the first `TrajectoryRecord` that can be read of every source of `open_trajectories`; list of (name of the source, record).

    Raises:
      DataError: 'empty source', or why none of the first ones of a source can be read.
    """
    return [(name, next(readable(source, name))) for name, source in sources]


def make_robot(config, sources):
    """Build the robot of a config and look whether the data, of `open_trajectories`, are of it.

    Returns:
      (`RobotSpec`, a `TrajectoryRecord` of it).

    Raises:
      ValueError: if the config describes no robot.
      DataError: why the first trajectory does not fit, if none of the first few does; 'empty source'; or recorded
        actions are not what the robot takes them for.
    """
    robot, record = _find_robot(config, *sources[0])
    if robot.source == "recorded":
        for name, source in sources:
            check_recorded(robot, readable(source, name), name)
    return robot, record


def _find_robot(config, name, source):
    problems = []
    for record in readable(source, name):
        try:
            robot = make_spec(config.robot.to_dict(), record)
            _check_views(record, config.data.views)
            check_record(robot, record, tuple(config.data.views) or None)
            _check_length(record, config.data)
            return robot, record
        except DataError as error:
            problems.append(error)
    raise problems[0]


def _check_views(record, wanted):
    names = [view.name for view in record.views]
    if absent := [name for name in wanted if name not in names]:
        raise DataError(
            "missing view", f"{record.source_id}: no view {', '.join(map(repr, absent))} (data.views); there are: {', '.join(names)}"
        )


def _check_length(record, data):
    """Raise DataError where no clip of the config fits into a trajectory."""
    try:
        trajectory_indices(record.num_frames, record.sampling_fps, frames=data.frames, fps=data.fps, uniform=0.0)
    except DataError as error:
        raise DataError(error.reason, f"{record.source_id}: {error} (data.frames, data.fps)") from error


def warn_of_mixed_views(config, sources):
    """Warn where clips are drawn from several cameras although none was chosen and the network is not told which it sees."""
    if config.data.views or config.model.predictor.use_extrinsics:
        return
    several = {name: names for name, record in first_records(sources) if len(names := [view.name for view in record.views]) > 1}
    if several:
        names = ", ".join(dict.fromkeys(view for views in several.values() for view in views))
        logging.warning(
            "%s: every clip is of any of the cameras %s, wrist cameras included, and the model is not told which; the paper found that "
            "mixing views without their extrinsics does harm. Choose: --config.data.views=\"('%s',)\", or `prepare ... --views %s`",
            ", ".join(several), names, *2 * (next(iter(several.values()))[0],),
        )


def describe_robot(robot, views):
    """Say what states and actions of a robot mean and which cameras see it: lines."""
    absolute = f" ({', '.join(robot.absolute)} absolute)" if robot.absolute else ""
    if robot.integrable:
        foreseen = "states ahead are computed from actions, in open loop and in plans"
    else:
        foreseen = "states ahead cannot be computed from actions, which are not laid out like them: open loop reads them, plans look one step ahead"
        if robot.state_dim == robot.action_dim:
            foreseen += " (if each action does change the state at its place: --config.robot.action_layout=states)"
    return [
        f"robot {robot.name}: states {', '.join(robot.state_names)}; {robot.mode} actions {', '.join(robot.action_names)}"
        f"{absolute} in the {robot.frame} frame, {'derived from states' if robot.source == 'states' else 'as recorded'}",
        foreseen,
        f"views: {', '.join(views) if len(views) == 1 else 'one of ' + ', '.join(views) + ' for every clip'}",
    ]
