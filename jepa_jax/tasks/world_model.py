"""Action-conditioned post-training: on a frozen encoder, predict the next frame's latents from actions and states."""

import functools

import jax
import jax.numpy as jnp

from jepa_jax.data.iterate import make_iterator
from jepa_jax.data.specs import CropSpec
from jepa_jax.data.trajectory_clips import trajectory_step
from jepa_jax.data.trajectory_pipeline import TrajectoryPipeline
from jepa_jax.models import ActionPredictor, token_grid
from jepa_jax.models.flops import Pass, action_predictor_flops, action_tokens, attention_flops, encoder_flops, total_flops
from jepa_jax.models.norms import normalize_latents
from jepa_jax.models.spec import abstract_params, init_params
from jepa_jax.robots.conditions import ConditionMaker
from jepa_jax.robots.presets import make_spec
from jepa_jax.robots.world import WorldModel
from jepa_jax.tasks import continuing, recordings
from jepa_jax.tasks.latents import Features, find_features
from jepa_jax.tasks.losses import latent_loss
from jepa_jax.tasks.robot_data import GROUP, describe_robot, make_group, make_robot, open_trajectories, warn_of_mixed_views
from jepa_jax.tasks.sources import make_cache
from jepa_jax.tasks.step import make_schedules, make_train_step, sample_latents
from jepa_jax.training import optim, sharding
from jepa_jax.training.state import create_state, tensor_names
from jepa_jax.training.task import Program, Task
from jepa_jax.weights import runs, start
from jepa_jax.weights.learned_energy import load_learned

REDUCTIONS = ("mean", "sum")


def make_loss(world, rollout, *, frames_at_once, loss_exponent, monitor_tokens, energy=None, energy_weight=0.0):
    """Build the loss of the action-conditioned predictor.

    Args:
      world: `WorldModel`.
      rollout: section of a config: auto_steps, detach, integrate_states, reduce, cached.
      frames_at_once: frames of a clip that are encoded at once.
      energy: `LearnedEnergy`, or None. Most of a frame stands still or is nuisance, so a predictor learns late, or never, what changes
        few tokens, such as what fingers do; with it, what a planner will read counts too.
      energy_weight: of the squared error of its points, steps squared, of teacher forcing and of the rollout.

    Returns:
      Function (params, frozen, batch) -> (loss, aux) as in `step.make_train_step`; `params` has the
      key action_predictor, `frozen` the key encoder unless the batch holds latents, `batch` is as
      `TrajectoryPipeline.batch_at` makes it. The loss is that of teacher forcing, every frame from
      the true ones before it, plus that of the rollout.

    Source: app/vjepa_droid/train.py (loss_fn, forward_predictions).
    """
    distance = functools.partial(latent_loss, exponent=loss_exponent)

    def loss_fn(params, frozen, batch):
        if "latents" in batch:
            latents = normalize_latents(batch["latents"])
        else:
            latents = world.encode(frozen, batch["video"], frames_at_once)
        latents = jax.lax.stop_gradient(latents)
        told = [batch["actions"], batch["states"][:, :-1]]
        if "extrinsics" in batch:
            told.append(batch["extrinsics"][:, :-1])
        forced = world.predict_next(params, latents[:, :-1], *told)
        steps = _rollout_predictions(world, rollout, params, latents, forced, told)
        summed = rollout.auto_steps if rollout.reduce == "sum" else 1
        compare = lambda distance: (distance(forced, latents[:, 1:]), summed * distance(steps, latents[:, 1 : 1 + rollout.auto_steps]))
        losses = dict(zip(("train/loss/teacher_forcing", "train/loss/rollout"), compare(distance)))
        if energy is not None:
            losses["train/loss/energy"] = energy_weight * sum(compare(lambda *both: energy.misread(*both).mean()))
        total = sum(losses.values())
        # What is reached by predicting no change at all.
        losses["train/copy_last"] = distance(latents[:, :-1], latents[:, 1:])
        flat = lambda x: x.reshape(len(x), -1, x.shape[-1])
        samples = sample_latents(flat(latents[:, 1:]), flat(forced), monitor_tokens)
        return total, {"losses": losses, "samples": samples}

    return loss_fn


def _rollout_predictions(world, rollout, params, latents, forced, told):
    """Return `[B, auto_steps, h*w, D]`: the first teacher-forced prediction and those that follow from it."""
    # Parity: the first step is the teacher-forced prediction itself, so it counts in both losses.
    first = forced[:, :1]
    if rollout.auto_steps == 1:
        return first
    handed = jax.lax.stop_gradient(first) if rollout.detach else first
    actions, states, *extrinsics = (value[:, : rollout.auto_steps] for value in told)
    if rollout.integrate_states:
        # The state beside a predicted frame is predicted too: only the first one is measured.
        states = jnp.stack([states[:, 0], world.move(states[:, 0], actions[:, 0])], axis=1)
    later = world.rollout(
        params, jnp.concatenate([latents[:, :1], handed], axis=1), actions, states, *extrinsics,
        integrate=rollout.integrate_states, cached=rollout.cached, detach=rollout.detach,
    )
    return jnp.concatenate([first, later], axis=1)


def check_rollout(rollout, frames):
    """Raise ValueError unless the `rollout` section of a config fits clips of so many frames."""
    if not 1 <= rollout.auto_steps < frames:
        raise ValueError(f"rollout.auto_steps {rollout.auto_steps} must be from 1 to {frames - 1}, as data.frames is {frames}")
    if rollout.reduce not in REDUCTIONS:
        raise ValueError(f"rollout.reduce {rollout.reduce!r} is unknown; choose one of {REDUCTIONS}")


def make_optimizer(section, abstract_params, use_extrinsics):
    """Build AdamW from the `optim` section for these parameters."""
    factors = optim.decay_factors(abstract_params)
    predictor = factors["action_predictor"]
    if not use_extrinsics and "extrinsics" in predictor:
        # Parity: these get no gradient, and PyTorch then leaves them alone, decay included.
        predictor["extrinsics"] = jax.tree.map(lambda _: 0.0, predictor["extrinsics"])
    return optim.make_adamw(b1=section.b1, b2=section.b2, eps=section.eps, decay_factors=factors)


def make_predictor(model, features, robot):
    """Build the `ActionPredictor` of a config's `model` section for these features and this robot."""
    return ActionPredictor(
        output_dim=features.width, action_dim=robot.action_dim, state_dim=robot.state_dim, grid=features.grid,
        rope_layout=model.rope_layout, attention=model.attention, remat=model.remat, dtype=jnp.dtype(model.dtype),
        param_dtype=jnp.dtype(model.param_dtype), residual_dtype=jnp.dtype(model.residual_dtype),
        **model.predictor.to_dict(),
    )


def make_pipeline(config, robot, features, process_index=0, process_count=1):
    """Build the `TrajectoryPipeline` of one process."""
    data, views = config.data, tuple(config.data.views) or None
    return TrajectoryPipeline(
        make_group(config), CropSpec(data.size, data.crop_scale, data.crop_aspect, 0.0), ConditionMaker(robot, views),
        views=views, extrinsics=config.model.predictor.use_extrinsics, latents=features.stored, origin=features.origin, seed=config.seed,
        cache=make_cache(data), max_bad_fraction=data.max_bad_fraction,
        process_index=process_index, process_count=process_count,
    )


def describe_world(config, recorded, features):
    """Say what the predictor is trained on, as the `world_model` of a `Bundle`; `recorded` is of `recordings`."""
    data = config.data
    return {"robot": recorded.robot.to_json(), "frames": data.frames, "fps": data.fps, "step_seconds": recorded.step_seconds,
            "short_side": recorded.short_side, "crop_aspect": list(data.crop_aspect), "views": list(data.views),
            "encoder_sha256": features.sha256}


def step_passes(predictor, encoder, features, config):
    """List what one optimiser step computes, as `flops.Pass`es."""
    frames, patches, steps = config.data.frames, features.grid[0] * features.grid[1], config.rollout.auto_steps
    clips, passes = config.data.batch_size, []
    count = functools.partial(action_predictor_flops, predictor, patches)
    # With the keys and values of earlier frames kept, a rollout computes each frame once.
    lengths = [steps] if config.rollout.cached else range(2, steps + 1)
    for length in (frames - 1, *(lengths if steps > 1 else ())):
        tokens, pairs = action_tokens(predictor, patches, length)
        passes.append(Pass("action_predictor", predictor, clips, tokens, count(length), attention_flops(predictor, pairs), True))
    if not features.stored:
        passes.append(Pass("encoder", encoder, clips * frames, patches, encoder_flops(encoder, patches),
                           attention_flops(encoder, patches**2), False))
    return passes


def make_program(config, robot, features, encoder, pixels, mesh):
    """Build the `Program` of a config.

    Args:
      config: ConfigDict.
      robot: `RobotSpec`.
      features: `Features`; of its encoder only the shape of the latents is read.
      encoder: the frozen network as the step runs it, or None where latents are stored.
      pixels: keyword arguments `mean` and `std` of `WorldModel`, or none of them.
      mesh: device mesh.

    Raises:
      ValueError: if a setting is impossible; nothing has been compiled then.
    """
    section = config.optim
    check_rollout(config.rollout, config.data.frames)
    if config.rollout.integrate_states and not robot.integrable:
        raise ValueError(f"rollout.integrate_states is set, but actions of robot {robot.name!r} are not laid out like its states, so "
                         "that these cannot be computed; unset it, or, if they are, set --config.robot.action_layout=states")
    sharding.check_batch_size(GROUP, config.data.batch_size, mesh, section.accumulate)
    predictor = make_predictor(config.model, features, robot)
    predictor.check_grid(features.grid)
    abstract = {"action_predictor": abstract_params(predictor)}
    optimizer = make_optimizer(section, abstract, predictor.use_extrinsics)
    loss_fn = make_loss(WorldModel(predictor, robot, encoder, **pixels), config.rollout, frames_at_once=config.model.frames_at_once,
                        loss_exponent=section.loss_exponent, monitor_tokens=config.log.monitor_tokens,
                        energy=_read_energy(config.energy, features), energy_weight=config.energy.weight)
    train_step = make_train_step(loss_fn, optimizer, make_schedules(section, with_ema=False),
                                 accumulate=section.accumulate, spike_factor=config.guard.spike_factor)
    init_state = lambda rng: create_state({"action_predictor": init_params(predictor, rng)}, {}, optimizer)
    return Program({"action_predictor": predictor}, init_state, train_step, tensor_names(abstract),
                   step_passes(predictor, encoder, features, config))


def _read_energy(section, features):
    """Return the `LearnedEnergy` that predictions are compared by, or None.

    Raises:
      ValueError: its weight is negative, or it was fitted on another encoder or grid.
      WeightsError: it cannot be read.
    """
    if section.weight < 0:
        raise ValueError(f"energy.weight is {section.weight:g}; it must be at least 0")
    if not section.distance_head:
        return None
    energy = load_learned(section.distance_head)
    energy.check_grid(features.grid)
    energy.check_encoder(features.sha256, "the world model")
    return energy


def abstract_batch(config, robot, features):
    """Return the global batch of a step as `jax.ShapeDtypeStruct`s, shaped as `TrajectoryPipeline.batch_at` makes it."""
    data = config.data
    rows = lambda dtype, *shape: jax.ShapeDtypeStruct((data.batch_size, *shape), dtype)
    batch = {"states": rows(jnp.float32, data.frames, robot.state_dim), "actions": rows(jnp.float32, data.frames - 1, robot.action_dim)}
    if config.model.predictor.use_extrinsics:
        batch["extrinsics"] = rows(jnp.float32, data.frames, ActionPredictor.extrinsics_dim)
    if features.stored:
        return batch | {"latents": rows(jnp.bfloat16, data.frames, features.grid[0] * features.grid[1], features.width)}
    return batch | {"video": rows(jnp.uint8, data.frames, data.size, data.size, 3)}


def describe_run(config, encoder):
    """Describe the run of a config without data and weights.

    Args:
      config: ConfigDict; its robot must need no trajectory to be known.
      encoder: `VideoEncoder`, which will be frozen.

    Returns:
      (`RobotSpec`, `Features` without weights, the encoder as the step runs it, its frozen parameters as
      `{"encoder": ...}` of `jax.ShapeDtypeStruct`s).

    Raises:
      ValueError: if the config leaves the robot open.
    """
    robot, encoder = make_spec(config.robot.to_dict()), as_it_runs(config.model, encoder)
    grid = token_grid(encoder.tubelet_size, config.data.size, config.data.size, encoder.patch_size, encoder.tubelet_size)[1:]
    return robot, Features(None, "", None, grid, encoder.width), encoder, {"encoder": abstract_params(encoder)}


def make_task(config, mesh):
    """Build the action-conditioned task.

    Args:
      config: locked ConfigDict as in `configs/world_model.py`.
      mesh: device mesh from `sharding.make_mesh`.

    Returns:
      `Task`.

    Raises:
      ValueError: if a setting is impossible; nothing has been compiled then.
      FileNotFoundError: if shards are missing.
      DataError: if the first trajectories cannot be read, or are of another robot.
    """
    data = config.data
    check_rollout(config.rollout, data.frames)
    sharding.check_batch_size(GROUP, data.batch_size, mesh, config.optim.accumulate)
    sources = open_trajectories(config)
    robot, record = make_robot(config, sources)
    features = find_features(config, sources, record)
    warn_of_mixed_views(config, sources)
    frozen, encoder, pixels = _frozen(config, features)
    program = make_program(config, robot, features, encoder, pixels, mesh)
    predictor = program.networks["action_predictor"]
    pipeline = make_pipeline(config, robot, features, jax.process_index(), jax.process_count())
    recorded = recordings.look_at(sources, make_cache(data), robot, record, data.fps, tuple(data.views) or None)
    card = runs.model_card(program.networks, data.size, data.frames,
                           world_model=describe_world(config, recorded, features))
    return Task(
        init_state=program.init_state,
        train_step=program.train_step,
        open_data=functools.partial(make_iterator, pipeline, workers=data.workers, threads=data.threads,
                                    prefetch=data.prefetch),
        tensor_names=optim.checked_names(program.tensor_names),
        clips_per_step=data.batch_size,
        flops_per_step=total_flops(program.passes),
        data_state={"seed": config.seed} | pipeline.contents(),
        model_card=card,
        check_card=functools.partial(continuing.check_card, card=card),
        read_weights=functools.partial(
            start.read_action_predictor, predictor=predictor,
            on_read=lambda path, bundle: continuing.note_weights(path, bundle, card["world_model"]),
        ),
        summary=[*_summarize(config, robot, features, record), *recorded.lines, *pipeline.describe()],
        frozen=frozen,
        write_frozen=lambda workdir: features.bundle and runs.write_frozen(features.bundle, workdir),
    )


def _frozen(config, features):
    """Return what the step reads of the encoder: (params, module, keyword arguments of `WorldModel`)."""
    if features.stored:
        return {}, None, {}
    (network,) = features.bundle.networks.values()
    pre = features.bundle.preprocessing
    return {"encoder": network.params}, as_it_runs(config.model, network.module), {"mean": pre.mean, "std": pre.std}


def as_it_runs(model, encoder):
    """Return the frozen encoder with the backend and the dtypes of a config's `model` section."""
    return encoder.clone(
        attention=model.attention, dtype=jnp.dtype(model.dtype), residual_dtype=jnp.dtype(model.encoder_residual_dtype)
    )


def _summarize(config, robot, features, record):
    where = "stored in the shards" if features.stored else "computed in every step"
    grid = "x".join(map(str, features.grid))
    step, native, fps = trajectory_step(record.sampling_fps, config.data.fps), record.sampling_fps, config.data.fps
    return [
        *describe_robot(robot, tuple(config.data.views) or tuple(view.name for view in record.views)),
        f"actions lead {step} rows on, as in {record.source_id}: {native:g} rows/s give {native / step:.3g} frames/s; "
        f"data.fps is {fps:g}",
        f"latents {where}: {grid} tokens of {features.width} per frame, encoder sha256 {features.sha256[:12]}",
    ]
