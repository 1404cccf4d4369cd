"""Whether the weights that a world model starts from are of the same robot, and of the same latents."""

from absl import logging

from jepa_jax.robots.checks import check_same
from jepa_jax.robots.spec import RobotSpec
from jepa_jax.weights import start
from jepa_jax.weights.bundle import WeightsError

# What a trained predictor takes for granted. Longer clips or other views it may be given later on.
_FIXED = {"fps": "data.fps", "crop_aspect": "data.crop_aspect", "encoder_sha256": "the encoder's weights"}


def check_card(path, then, resumed, *, card):
    """Compare a checkpoint's description with that of this run.

    Args:
      path: of the checkpoint, for messages.
      then: its `runs.model_card`.
      resumed: it is an earlier start of this run, which must have been of the same robot, rate, crop and
        encoder; weights of another run may be of another robot, which is said.
      card: that of this run.

    Raises:
      ValueError: the networks compute something else, or a resumed run is of another robot, rate, crop or
        encoder.
    """
    start.check_networks(path, card, then)
    now, then = card["world_model"], then["world_model"]
    if not resumed:
        note_robot(path, then, now)
        return
    remedy = "go on with the config it was started with, or take another --workdir"
    try:
        check_same(RobotSpec.from_json(then["robot"]), RobotSpec.from_json(now["robot"]), f"{path} and this config")
    except ValueError as error:
        raise WeightsError(f"{error}; {remedy}") from error
    wrong = [f"{name}: {then[key]!r} in the checkpoint, {now[key]!r} in this config"
             for key, name in _FIXED.items() if then[key] != now[key]]
    if wrong:
        raise WeightsError(f"{path} was trained otherwise than this config describes: {'; '.join(wrong)}; {remedy}")


def note_robot(path, then, now):
    """Warn where weights were trained on another robot, whose numbers may mean something else.

    Args:
      path: of the weights.
      then, now: `Bundle.world_model` of the weights, or None if they say nothing, and of this run.
    """
    if then is None:
        return
    try:
        check_same(RobotSpec.from_json(then["robot"]), RobotSpec.from_json(now["robot"]), f"{path} and this config")
    except ValueError as error:
        logging.warning("%s: the predictor has to learn these numbers anew", error)
