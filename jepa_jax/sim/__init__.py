"""A table-top with a robot arm, a box, a cup and a plate, simulated and drawn in JAX.

`reset` draws a `State`; `step` moves it by an action in DROID's layout: x y z (m), three angles
(extrinsic xyz, rad) and closedness of the gripper, 4 times per second. Fingers that close on an
object hold it; what is let go falls onto the table, the plate or the other object; fingers stop on
what is below them and push what is beside them. With all angles at 0 the gripper points straight
down and its fingers open along y. Episodes hold actions as they were commanded; how far the tool really moved
is in the states, and `jepa_jax.robots` derives actions from these unless told otherwise. `render` draws what a camera (`CAMERAS`) sees, at any size.
A `Scene` is the look of an episode: `sample_scene` draws table, light, distractors and a shift of
the camera, each with a strength from 0 to 1 (`Nuisance`). `expert` is a scripted policy and
`run_episode` a noisy mixture for collecting data. All of these are pure functions for one robot:
`jit`, `vmap` and `scan` them. `python -m jepa_jax.sim.collect` writes trajectory shards, and
`python -m jepa_jax.viz tabletop` draws a picture of it all.
"""

from jepa_jax.sim.cameras import CAMERAS, FIELD_OF_VIEW, extrinsics
from jepa_jax.sim.nuisance import Nuisance, Scene, clean_scene, sample_scene
from jepa_jax.sim.policies import (
    PHASES,
    Episode,
    Intent,
    expert,
    follow,
    is_placed,
    new_intent,
    run_episode,
)
from jepa_jax.sim.rendering import render, render_batch
from jepa_jax.sim.world import (
    CONTROL_RATE,
    HIGH,
    LOW,
    MAX_ACTION,
    NOTHING,
    State,
    holding,
    reset,
    step,
)

__all__ = [
    "CAMERAS", "CONTROL_RATE", "FIELD_OF_VIEW", "HIGH", "LOW", "MAX_ACTION", "NOTHING", "PHASES",
    "Episode", "Intent", "Nuisance", "Scene", "State",
    "clean_scene", "expert", "extrinsics", "follow", "holding", "is_placed", "new_intent", "render", "render_batch",
    "reset", "run_episode", "sample_scene", "step",
]  # fmt: skip
