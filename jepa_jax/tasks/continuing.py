"""Whether the weights that a world model starts from are of the same robot, and of the same latents."""

from absl import logging

from jepa_jax.robots.checks import check_same
from jepa_jax.robots.spec import RobotSpec
from jepa_jax.robots.world import assume_world
from jepa_jax.weights import start
from jepa_jax.weights.bundle import ENCODERS, WeightsError, choose_encoder, network_sha256

# What a trained predictor takes for granted. Longer clips or other views it may be given later on.
_FIXED = {"fps": "data.fps", "crop_aspect": "data.crop_aspect", "encoder_sha256": "the encoder's weights"}


def check_card(path, then, resumed, *, card):
    """Compare a checkpoint's description with that of this run.

    Args:
      path: of the checkpoint, for messages.
      then: its `runs.model_card`.
      resumed: it is an earlier start of this run, which must have been of the same robot, rate, crop and
        encoder; weights of another run may be of others, which is said.
      card: that of this run.

    Raises:
      ValueError: the networks compute something else, or a resumed run is of another robot, rate, crop or
        encoder.
    """
    start.check_networks(path, card, then)
    now, then = card["world_model"], then["world_model"]
    if not resumed:
        note_differences(path, then, now)
        return
    remedy = "go on with the config it was started with, or take another --workdir"
    try:
        check_same(RobotSpec.from_json(then["robot"]), RobotSpec.from_json(now["robot"]), f"{path} and this config")
    except ValueError as error:
        raise WeightsError(f"{error}; {remedy}") from error
    if wrong := _list_differences(then, now):
        raise WeightsError(f"{path} was trained otherwise than this config describes: {'; '.join(wrong)}; {remedy}")


def note_differences(path, then, now):
    """Warn where weights were trained on another robot, whose numbers may mean something else, or at another rate, crop or encoder.

    Args:
      path: of the weights.
      then, now: `Bundle.world_model` of the weights and of this run.
    """
    try:
        check_same(RobotSpec.from_json(then["robot"]), RobotSpec.from_json(now["robot"]), f"{path} and this config")
    except ValueError as error:
        logging.warning("%s: the predictor has to learn these numbers anew", error)
    if differences := _list_differences(then, now):
        logging.warning("%s was trained otherwise than this config describes, so the predictor has to adapt: %s", path, "; ".join(differences))


def note_weights(path, bundle, now):
    """Warn, as `note_differences`, of weights that are no checkpoint; those that say nothing are taken for the released ones.

    Args:
      path: of the weights.
      bundle: `Bundle` with an action predictor.
      now: `Bundle.world_model` of this run.
    """
    if bundle.world_model is not None:
        note_differences(path, bundle.world_model, now)
        return
    try:
        robot, then = assume_world(bundle.networks["action_predictor"].module)
    except ValueError as error:
        logging.warning("%s: %s; whether it is that of this config is not known", path, error)
        return
    logging.warning("%s does not say what it was trained on: taken for the released recipe, robot %s at %g frames per second", path,
                    robot.name, then["fps"])
    sha256 = now["encoder_sha256"]
    if held := [name for name in ENCODERS if name in bundle.networks]:
        network = bundle.networks[choose_encoder(held)]
        sha256 = network.sha256 or network_sha256(network.params)
    note_differences(path, then | {"robot": robot.to_json(), "encoder_sha256": sha256}, now)


def _list_differences(then, now):
    """Say which of the fixed entries differ, one text for each."""
    plain = lambda value: list(value) if isinstance(value, tuple) else value
    return [f"{name}: {plain(then[key])!r} in the checkpoint, {plain(now[key])!r} in this config"
            for key, name in _FIXED.items() if plain(then[key]) != plain(now[key])]
