"""Episodes of a simulated robot as trajectory records, for shards."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jepa_jax.data.conversion import Noted
from jepa_jax.data.encoding import encode_video, rgb_frames
from jepa_jax.data.poses import GRIPPER_RANGE
from jepa_jax.data.sources.robots import POSE_NAMES, POSE_UNITS, TrajectorySpec
from jepa_jax.data.trajectories import TrajectoryRecord, View
from jepa_jax.sim import bodies, policies
from jepa_jax.sim.cameras import extrinsics
from jepa_jax.sim.nuisance import Nuisance, sample_scene
from jepa_jax.sim.panda import rollouts
from jepa_jax.sim.rendering import render_batch
from jepa_jax.sim.world import CONTROL_RATE

# Episodes of two splits never have a start or a scene in common, whatever their seeds.
SPLITS = ("train", "test")
TABLETOP, PANDA = WORLDS = ("tabletop", "panda")


class Draw(NamedTuple):
    """Name one episode to simulate: its split, the seed, its number and the world."""

    split: str
    seed: int
    number: int
    world: str = TABLETOP

    @property
    def name(self) -> str:
        """Name the episode in reports."""
        return f"{self.world}/{self.split}/{self.seed}/{self.number:06d}"

    @property
    def key(self) -> jax.Array:
        """Make the key of everything that is drawn."""
        key = jax.random.fold_in(jax.random.key(self.seed), SPLITS.index(self.split))
        return jax.random.fold_in(key, self.number)


@dataclass(frozen=True)
class EpisodeSpec(TrajectorySpec):
    """Say how episodes are simulated and stored; a world adds how it simulates them.

    Args:
        size: side of the frames, pixels; even.
        gop, min_frames, max_turn: as in `TrajectorySpec`.
        crf: x264 quality; small frames need a better one than videos of cameras.
        frames: per episode.
        cameras: of `cameras.CAMERAS`, in the order they are stored.
        nuisance: strengths, as in `Nuisance`.
    """

    # A finger is few pixels wide: colors at half the resolution smear it, and do so at every `crf`.
    pixel_format: ClassVar[str] = "yuv444p"
    size: int = 64
    crf: int = 17
    frames: int = 32
    cameras: tuple[str, ...] = ("front",)
    nuisance: tuple[float, ...] = Nuisance.all(1.0)

    def simulate(self, key: jax.Array) -> tuple[policies.Episode, dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Simulate and draw an episode: (episode, extrinsics `[L, 6]` by camera, frames uint8 `[L, H, W, 3]` by camera)."""
        raise NotImplementedError

    def convert(self, item: Draw) -> Noted:
        """Simulate one episode and make its record.

        Raises:
            DataError: as in `TrajectorySpec.checked`.
        """
        episode, places, pictures = self.simulate(item.key)
        views = []
        for name in self.cameras:
            video = encode_video(rgb_frames(pictures[name]), Fraction(CONTROL_RATE), self, item.name)
            views.append(View(name, video.data, video.height, video.width, places[name]))
        return self.checked(
            TrajectoryRecord(
                tuple(views), episode.states.pose, episode.actions, CONTROL_RATE, CONTROL_RATE, "true",
                POSE_NAMES, POSE_UNITS, POSE_NAMES, POSE_UNITS, "robot base", "xyz euler", GRIPPER_RANGE,
                None, item.name, _extras(episode),
            )
        )  # fmt: skip


@dataclass(frozen=True)
class TabletopSpec(EpisodeSpec):
    """Simulate in JAX."""

    def simulate(self, key: jax.Array):
        """Simulate and draw an episode; see `EpisodeSpec`."""
        strengths = jnp.asarray(self.nuisance, jnp.float32)
        return jax.device_get(_simulation(self.frames, self.cameras, self.size)(key, strengths))


@dataclass(frozen=True)
class PandaSpec(EpisodeSpec):
    """Simulate in MuJoCo."""

    def simulate(self, key: jax.Array):
        """Simulate and draw an episode; see `EpisodeSpec`.

        Raises:
            MissingSimulatorError: the extra 'sim' is not installed.
        """
        return rollouts.collect_episode(key, self.frames, self.cameras, self.size, Nuisance(*self.nuisance))


SPECS = {TABLETOP: TabletopSpec, PANDA: PandaSpec}


def _extras(episode) -> dict[str, np.ndarray]:
    """Collect what a report may want to know and no model is given: float32 `[L, K]` each."""
    states, length = episode.states, len(episode.actions)
    plate = np.concatenate([states.plate, np.full((length, 1), bodies.PLATE_HEIGHT)], 1)
    places = {f"{name}_position": states.objects[:, i, :3] for i, name in enumerate(bodies.OBJECTS)}
    numbers = {"held": states.held[:, None], "phase": episode.phases[:, None]}
    return {name: np.float32(array) for name, array in {**places, "plate_position": plate, **numbers}.items()}


@functools.cache
def _simulation(frames: int, names: tuple[str, ...], size: int):
    """Compile what simulates and draws an episode: key and strengths to episode, extrinsics and pictures by camera."""

    def simulate(key, strengths):
        episode_key, scene_key = jax.random.split(key)
        episode = policies.run_episode(episode_key, frames)
        scene = sample_scene(scene_key, Nuisance(*strengths))
        scenes = jax.tree.map(lambda part: jnp.broadcast_to(part, (frames, *part.shape)), scene)
        places = {name: jax.vmap(extrinsics, (None, 0, 0))(name, episode.states.pose, scenes.camera) for name in names}
        return episode, places, {name: render_batch(episode.states, scenes, name, size) for name in names}

    return jax.jit(simulate)


def phase_shares(records: Iterable[TrajectoryRecord]) -> dict[str, float]:
    """Count which part of all steps each phase has, in [0, 1], by its name."""
    counts = Counter()
    for record in records:
        counts.update(record.extras["phase"][:, 0].astype(int).tolist())
    return {name: counts[number] / max(1, counts.total()) for number, name in enumerate(policies.PHASES)}
