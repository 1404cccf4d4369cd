"""Let the scripted policies of the table-top act in the simulated Panda."""

import atexit
import functools

import jax
import numpy as np

from jepa_jax.sim import policies
from jepa_jax.sim.nuisance import sample_scene
from jepa_jax.sim.panda.rendering import Pictures
from jepa_jax.sim.panda.world import PandaWorld


def collect_episode(key, frames, cameras, size, nuisance):
    """Run and draw one episode of the mixture of policies that data is collected with.

    Args:
        key: PRNG key.
        frames: how many.
        cameras: of `cameras.CAMERAS`.
        size: side of the frames, pixels.
        nuisance: `Nuisance`.

    Returns:
        `policies.Episode` of NumPy arrays; extrinsics float32 `[L, 6]` and frames uint8 `[L, H, W, 3]` by camera.

    Raises:
        MissingSimulatorError: the extra 'sim' is not installed.
    """
    world, pictures = shared_world(), shared_pictures(size)
    # Drawn as the table-top draws its episodes.
    episode_key, scene_key = jax.random.split(key)
    start_key, step_key = jax.random.split(episode_key)
    scene = draw_scene(scene_key, nuisance)
    start, intent = _start(start_key)
    world.place(jax.device_get(start))
    rows, places, seen = [], {name: [] for name in cameras}, {name: [] for name in cameras}
    for one in jax.random.split(step_key, frames):
        state = world.state()
        for name in cameras:
            places[name].append(world.extrinsics(name, scene))
            seen[name].append(world.draw(pictures, name, scene))
        action, phase, intent = _follow(one, state, intent)
        rows.append(policies.Episode(state, np.asarray(action), np.asarray(phase)))
        world.step(rows[-1].actions)
    stacked = jax.tree.map(lambda *parts: np.stack(parts), *rows)
    return stacked, *({name: np.stack(parts) for name, parts in found.items()} for found in (places, seen))


def draw_scene(key, nuisance):
    """Draw the look of an episode: `nuisance.Scene` of NumPy arrays."""
    return jax.device_get(_sample_scene(key, jax.tree.map(np.float32, nuisance)))


@functools.cache
def shared_world():
    """Return the process's simulator, whose state belongs to whoever set it last."""
    return PandaWorld()


@functools.cache
def shared_pictures(size):
    """Return what draws pictures of a size in this process; closed when the process ends."""
    pictures = Pictures(size)
    atexit.register(pictures.close)
    return pictures


_sample_scene = jax.jit(sample_scene)
_start, _follow = jax.jit(policies.start), jax.jit(policies.follow)
