"""A world model bound to a robot: the networks, fed with the robot's own numbers."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp

from jepa_jax.data.latents import Origin
from jepa_jax.models import ActionPredictor, VideoEncoder, world_model
from jepa_jax.models.pixels import PIXEL_MEAN, PIXEL_STD
from jepa_jax.robots.algebra import apply_action, network_inputs
from jepa_jax.robots.checks import check_same
from jepa_jax.robots.presets import DROID
from jepa_jax.robots.spec import RobotSpec

# What released weights leave unsaid. Source: configs/train/vitg16/droid-256px-8f.yaml.
_RELEASED = {"fps": 4.0, "frames": 8, "crop_aspect": (0.75, 1.35)}
_RELEASED_VIEWS = ("left",)


@dataclasses.dataclass(frozen=True)
class WorldModel:
    """Predict what a robot will see. Weights are separate: `params` has the keys encoder and action_predictor.

    Attributes:
      predictor: the action-conditioned predictor.
      robot: what states and actions mean; they are given in its units.
      encoder: the frozen encoder, or None where latents are given.
      mean, std: of the encoder's input, per channel, in units of [0, 1].
    """

    predictor: ActionPredictor
    robot: RobotSpec
    encoder: VideoEncoder | None = None
    mean: tuple[float, ...] = tuple(map(float, PIXEL_MEAN))
    std: tuple[float, ...] = tuple(map(float, PIXEL_STD))

    def __post_init__(self):
        """Check that the networks and the robot fit together.

        Raises:
          ValueError: if they do not.
        """
        pairs = [("action_dim", self.robot.action_dim, self.predictor.action_dim),
                 ("state_dim", self.robot.state_dim, self.predictor.state_dim)]
        if self.encoder is not None:
            pairs.append(("width", self.encoder.width, self.predictor.output_dim))
        for name, needed, found in pairs:
            if needed != found:
                what = "encoder" if name == "width" else f"robot {self.robot.name!r}"
                raise ValueError(f"{name} of the {what} is {needed}, that of the action predictor {found}")

    def encode(self, params, video, at_once=None):
        """Encode every frame by itself; see `models.world_model.encode_frames`."""
        return world_model.encode_frames(
            self.encoder, params["encoder"], video, at_once=at_once, mean=jnp.array(self.mean), std=jnp.array(self.std)
        )

    def predict_next(self, params, latents, actions, states, extrinsics=None, **options):
        """Predict the frame after each frame; see `models.world_model.predict_next`."""
        states, actions = network_inputs(self.robot, states, actions, jnp)
        return world_model.predict_next(
            self.predictor, params["action_predictor"], latents, actions, states, extrinsics, **options
        )

    def move(self, states, actions):
        """Compute the states that actions lead to; see `algebra.apply_action`."""
        return apply_action(self.robot, states, actions, jnp)

    def rollout(self, params, latents, actions, states, extrinsics=None, *, integrate=False, **options):
        """Predict open loop; see `models.world_model.rollout`.

        Args:
          integrate: compute the states after the context from its last one and the actions,
            instead of reading them; `states` are then those of the context alone.
        """
        move = None
        if integrate:
            scales = [jnp.array(scale, states.dtype) for scale in (self.robot.state_scale, self.robot.action_scale)]

            def move(state, action):
                return self.move(state * scales[0], action * scales[1]) / scales[0]

        states, actions = network_inputs(self.robot, states, actions, jnp)
        return world_model.rollout(
            self.predictor, params["action_predictor"], latents, actions, states, extrinsics, integrate=move, **options
        )


class Trained(NamedTuple):
    """A world model, and how it was trained to see.

    Attributes:
      world: `WorldModel`; without an encoder where the weights have none.
      fps: frames per second that are asked of recordings, which have some whole number of rows a step.
      step_seconds: that an action lasted in training, by the true rates of the recordings.
      frames: of a training clip.
      size: side of the square frames, pixels.
      short_side: of the stored frames that were cropped; larger pictures are shrunk to it first. None if not known.
      crop_aspect: (lowest, highest) width / height of the crop that is squeezed to them.
      views: names of the cameras; None for any.
      encoder_sha256: identity of the encoder's weights; "" if it is not known.
      notes: what was assumed; lines for people.
    """

    world: WorldModel
    fps: float
    step_seconds: float
    frames: int
    size: int
    short_side: int | None
    crop_aspect: tuple[float, float]
    views: tuple[str, ...] | None
    encoder_sha256: str
    notes: tuple[str, ...]

    @property
    def origin(self):
        """Return what made the stored latents that this model takes.

        Raises:
          ValueError: if the encoder is not known.
        """
        if not self.encoder_sha256:
            raise ValueError("the weights do not say which encoder their action predictor was trained on, so stored "
                             "latents cannot be checked; give the encoder too")
        predictor = self.world.predictor
        return Origin(tuple(predictor.grid), predictor.output_dim, self.encoder_sha256, (self.size, *self.crop_aspect))


def bind_model(model, robot=None, fps=None):
    """Bind loaded weights to the robot that they were trained on.

    Args:
      model: `jepa_jax.weights.model.Model` with an action predictor and, unless latents are given,
        an encoder.
      robot: `RobotSpec`, for weights that name none, such as those of the official code. Without
        it these are taken for the preset 'droid', if the numbers of states and actions allow.
      fps: frames per second, instead of those of the training.

    Returns:
      `Trained`.

    Raises:
      ValueError: if there is no action predictor, it is not known what it was trained on, or robot,
        encoder and predictor do not fit together.
    """
    if "action_predictor" not in model.networks:
        raise ValueError(f"no action predictor: these weights hold {', '.join(model.networks)}; train one with "
                         "configs/world_model.py")
    predictor, card, notes = model.networks["action_predictor"], model.world_model, ()
    if card is None:
        robot, card = assume_world(predictor, robot)
        view = " or ".join(card["views"]) or "any"
        said = f"taken for robot {robot.name!r} at {card['fps']:g} frames per second, view {view}"
        notes = (f"the weights do not say what they were trained on: {said}",)
    else:
        known = RobotSpec.from_json(card["robot"])
        check_same(known, robot or known, "the weights and the robot that is given")
        robot = known
    sha256 = model.sha256.get("encoder", "")
    said = card.get("encoder_sha256", sha256)
    if sha256 and said != sha256:
        raise ValueError(f"the action predictor was trained on the encoder with sha256 {said[:12]}..., the one given is "
                         f"{sha256[:12]}...; give that one, or none where the weights hold it")
    encoder, pre = model.networks.get("encoder"), model.preprocessing
    world = WorldModel(predictor, robot, encoder, tuple(pre.mean), tuple(pre.std))
    rate = fps or card["fps"]
    if rate != card["fps"]:
        notes += (f"frames are taken at {rate:g} per second, trained were {card['fps']:g}",)
    return Trained(world, rate, card.get("step_seconds", 1 / card["fps"]), card["frames"], pre.crop_size, card.get("short_side"),
                   tuple(card["crop_aspect"]), tuple(card["views"]) or None, said, notes)


def assume_world(predictor, robot=None):
    """Assume what weights that do not say it were trained on: the released recipe.

    Args:
      predictor: `ActionPredictor`.
      robot: `RobotSpec`; None for that of the recipe.

    Returns:
      (`RobotSpec`, dict with the other entries of `Bundle.world_model`, but for the encoder).

    Raises:
      ValueError: no robot is given, and the predictor takes other numbers than that of the recipe.
    """
    dims = predictor.state_dim, predictor.action_dim
    if robot is None and dims != (DROID.state_dim, DROID.action_dim):
        raise ValueError(f"these weights do not say which robot they are of: states of {dims[0]} numbers, actions of "
                         f"{dims[1]}; name it, a preset with as many")
    robot = robot or DROID
    return robot, _RELEASED | {"views": _RELEASED_VIEWS if robot == DROID else ()}
