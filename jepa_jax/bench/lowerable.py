"""Programs that can be lowered with nothing at hand but a config: the train step of a task, and the planner."""

import math
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp

from jepa_jax.models import make_encoder
from jepa_jax.models.attention import choose_backend
from jepa_jax.models.flops import Pass, action_predictor_flops, action_tokens, attention_flops
from jepa_jax.models.spec import abstract_params
from jepa_jax.planning import bind, make_root, make_spec
from jepa_jax.planning.memory import fit_memory
from jepa_jax.robots.world import WorldModel
from jepa_jax.tasks import pretrain, world_model
from jepa_jax.training import loop, sharding


class Lowerable(NamedTuple):
    """A program for a mesh, and what it holds and computes.

    Attributes:
      what: "train step" or "plan".
      lower: function () -> `jax.stages.Lowered`; call it within `sharding.use_mesh`.
      passes: `flops.Pass`es of one execution.
      items: clips of a step, or plans.
      clip: (frames, side in pixels) of the longest clips that are decoded for it, or None.
      held: trees of `jax.ShapeDtypeStruct` with shardings, by kind: parameters, ema, optimizer, batch, frozen.
      weights: number of parameters by the network of a `Pass`.
      not_split: parameters that had to be replicated although the config asks to split them.
      settings: of the planner; empty for a train step.
    """

    what: str
    lower: Callable
    passes: list[Pass]
    items: int
    clip: tuple[int, int] | None
    held: dict[str, Any]
    weights: dict[str, int]
    not_split: list[str]
    settings: dict[str, Any]


def for_tpu(model):
    """Choose the TPU's attention where a `model` section leaves it open: "auto" would go by the machine at hand."""
    model.attention = choose_backend(model.attention, model.dtype, platform="tpu")


def train_step(config, mesh, encoder):
    """Describe the train step of a config.

    Args:
      config: ConfigDict; no data and no weights are read.
      mesh: device mesh.
      encoder: named size of the frozen encoder, where the task has one.

    Returns:
      `Lowerable`; what it lowers is what training compiles.

    Raises:
      ValueError: if a setting is impossible, or the task cannot be described without its data.
    """
    frozen = {}
    if config.task == "pretrain":
        groups = pretrain.make_groups(config)
        program, batch = pretrain.make_program(config, groups, mesh), pretrain.abstract_batch(config, groups)
        items, frames = sum(group.spec.batch_size for group in groups), max(group.spec.frames for group in groups)
    elif config.task == "world_model":
        robot, features, module, frozen = world_model.describe_run(config, make_encoder(encoder, positions="rope"))
        program = world_model.make_program(config, robot, features, module, {}, mesh)
        batch, items, frames = world_model.abstract_batch(config, robot, features), config.data.batch_size, config.data.frames
    else:
        raise ValueError(f"task {config.task!r} cannot be compiled without its data; those that can: pretrain, world_model")
    with sharding.use_mesh(mesh):
        state = loop.abstract_train_state(program, mesh)
    batch = sharding.place_abstract(batch, sharding.batch_sharding(mesh))
    frozen = sharding.place_abstract(frozen, sharding.state_sharding(frozen, mesh))
    weights = {**frozen, **state.params} | ({"target_encoder": state.target_params} if state.target_params else {})
    held = {"parameters": state.params, "ema": state.target_params, "optimizer": state.opt_state, "batch": batch, "frozen": frozen}
    unsplit = sharding.unsplit({"params": state.params, "frozen": frozen}, mesh)
    return Lowerable("train step", lambda: loop.lower_step(program, state, batch, frozen, mesh), program.passes, items,
                     (frames, config.data.size), held, {name: _count(tree) for name, tree in weights.items()},
                     [f"{name} {list(shape)}" for name, shape in unsplit], {})


def planner(config, mesh, encoder, horizon, free):
    """Describe one plan by the paper's planner with the world model of a config; candidates are spread over the mesh.

    Args:
      config: ConfigDict of task world_model.
      mesh, encoder: as for `train_step`; the observed and the goal frame are encoded already.
      horizon: steps ahead.
      free: bytes of memory of a device; as many candidates are evaluated at once as fit.

    Returns:
      `Lowerable`.

    Raises:
      ValueError: if the config is not of a world model, or a setting is impossible.
    """
    if config.task != "world_model":
        raise ValueError(f"task {config.task!r} has no planner; world_model has")
    robot, features, _, _ = world_model.describe_run(config, make_encoder(encoder, positions="rope"))
    world = WorldModel(world_model.make_predictor(config.model, features, robot).clone(remat="none"), robot)
    spec = fit_memory(world, make_spec(robot, "paper", horizon=horizon), free=free, devices=mesh.size)
    whole = sharding.replicated(mesh)
    params = sharding.place_abstract({"action_predictor": abstract_params(world.predictor)}, whole)
    patches, network = math.prod(features.grid), world.predictor

    def place(shape, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=whole)

    seen, pose = place((patches, network.output_dim)), place((robot.state_dim,))
    rng = sharding.place_abstract(jax.eval_shape(lambda: jax.random.key(0)), whole)
    bound = bind(world, spec)

    def run(params, rng, seen, pose, goal):
        return bound.plan(params, rng, make_root(world, seen, pose, goal), mesh=mesh)

    frames = []
    for past in range(horizon):
        tokens, pairs = action_tokens(network, patches, 1, past)
        frames.append(Pass("action_predictor", network, spec.samples, tokens, action_predictor_flops(network, patches, 1, past),
                           attention_flops(network, pairs), False))
    settings = {"planner": "paper", "horizon": horizon, "samples": spec.samples, "iterations": spec.iterations, "chunk": spec.chunk}
    return Lowerable("plan", lambda: jax.jit(run).lower(params, rng, seen, pose, seen), frames * spec.iterations, 1, None, {"parameters": params},
                     {"action_predictor": _count(params)}, [], settings)


def _count(tree):
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))
