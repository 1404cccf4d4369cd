"""A picture of the simulated table-top: cameras, heights, the gripper's opening, nuisance, and an episode."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jepa_jax.sim import cameras, policies, world
from jepa_jax.sim.nuisance import Nuisance, sample_scene
from jepa_jax.sim.rendering import render
from jepa_jax.viz import canvas

_COLUMNS = 7
_WIDTH, _HEIGHT = 14.0, 1.95
_SIZES = (128, 64)
# The gripper in the first two rows: what it shows, and its pose.
_POSES = {
    "open, high": (0.42, 0.0, 0.32, 0.0, 0.0, 0.35, 0.0),
    "half open, high": (0.42, 0.0, 0.32, 0.0, 0.0, 0.35, 0.5),
    "closed, high": (0.42, 0.0, 0.32, 0.0, 0.0, 0.35, 1.0),
    "closed, low": (0.42, 0.0, 0.06, 0.0, 0.0, 0.35, 1.0),
    "open, low": (0.42, 0.0, 0.06, 0.0, 0.0, 0.35, 0.0),
    "turned": (0.42, 0.0, 0.15, 0.0, 0.0, -1.0, 0.0),
    "tilted": (0.42, 0.0, 0.15, 0.4, 0.2, 0.35, 0.0),
}
_STRENGTHS = ((0.0, 128), (0.5, 128), (1.0, 128), (1.0, 64))
_EPISODE_STEPS, _EPISODE_ROWS = 28, 2


def draw_tabletop(seed):
    """Draw the table-top as training sees it.

    Args:
      seed: of the scenes and the episode.

    Returns:
      matplotlib `Figure`.
    """
    key = jax.random.key(seed)
    rows = [*_gripper_rows(key), _camera_row(key), *_nuisance_rows(key), *_episode_rows(key)]
    subtitle = "one robot, a box, a cup and a plate; the shadow lies straight below the gripper in clean light"
    figure = canvas.make_figure(_WIDTH, 0.9 + (_HEIGHT + 0.3) * len(rows), "Simulated table-top", subtitle)
    grid = figure.subplots(len(rows), _COLUMNS, squeeze=False)
    for panels, (label, pictures) in zip(grid, rows):
        for panel in panels[len(pictures) :]:
            panel.set_axis_off()
        for panel, (title, picture) in zip(panels, pictures):
            canvas.show_image(panel, picture)
            panel.set_title(title, fontsize=8.5, color=canvas.GREY, pad=3)
        canvas.label_row(panels[0], label)
    return figure


@functools.cache
def _compiled(camera, size):
    return jax.jit(lambda state, scene: render(state, scene, camera, size))


def _draw(camera, size, states, scenes):
    """Draw states and scenes with a leading axis, one by one: compiling takes longer than drawing."""
    leaves, structure = jax.tree.flatten((states, scenes))
    return [np.asarray(_compiled(camera, size)(*structure.unflatten(parts))) for parts in zip(*leaves)]


def _scenes(key, strength, count):
    nuisance = Nuisance.all(strength)
    return jax.vmap(lambda key: sample_scene(key, nuisance))(jax.random.split(key, count))


def _gripper_rows(key):
    count = len(_POSES)
    state = world.reset(key)
    states = jax.tree.map(lambda part: jnp.broadcast_to(part, (count, *part.shape)), state)
    states, scenes = states._replace(pose=jnp.float32(list(_POSES.values()))), _scenes(key, 0.0, count)
    for size in _SIZES:
        yield f"gripper\n{size} px", list(zip(_POSES, _draw("front", size, states, scenes)))


def _camera_row(key):
    state = jax.tree.map(lambda part: part[None], world.reset(jax.random.fold_in(key, 1)))
    scene = _scenes(key, 0.0, 1)
    return "cameras\n128 px", [(name, _draw(name, 128, state, scene)[0]) for name in cameras.CAMERAS]


def _nuisance_rows(key):
    states, _ = jax.jit(jax.vmap(policies.start))(jax.random.split(key, _COLUMNS))
    for strength, size in _STRENGTHS:
        pictures = _draw("front", size, states, _scenes(key, strength, _COLUMNS))
        yield f"nuisance {strength:g}\n{size} px", [("", picture) for picture in pictures]


def _episode_rows(key):
    episode = jax.jit(_task_episode)(key)
    shown = np.linspace(0, _EPISODE_STEPS - 1, _COLUMNS * _EPISODE_ROWS).astype(int)
    states = jax.tree.map(lambda part: part[shown], episode.states)
    scenes = jax.tree.map(lambda part: jnp.broadcast_to(part, (len(shown), *part.shape[1:])), _scenes(key, 0.0, 1))
    pictures = _draw("front", 128, states, scenes)
    titles = [
        f"{step / world.CONTROL_RATE:.2f} s, {policies.PHASES[int(episode.phases[step])]}" for step in shown
    ]
    for row in range(_EPISODE_ROWS):
        place = slice(row * _COLUMNS, (row + 1) * _COLUMNS)
        yield "an episode\n128 px", list(zip(titles[place], pictures[place]))


def _task_episode(key):
    """Run one episode of the expert without noise: the box goes onto the plate."""
    state = world.reset(key)
    intent = policies.new_intent(key, state)._replace(target=jnp.int32(0), put=state.plate)

    def one(state, _):
        action, phase = policies.expert(state, intent)
        return world.step(state, action), policies.Episode(state, action, phase)

    return jax.lax.scan(one, state, length=_EPISODE_STEPS)[1]
