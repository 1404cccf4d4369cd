"""Self-supervised pretraining: predict the EMA encoder's latents of masked tubelets."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from absl import logging

from jepa_jax.data.iterate import make_iterator
from jepa_jax.data.masks import MaskSampler, MaskSpec
from jepa_jax.data.pipeline import ClipPipeline
from jepa_jax.data.randaugment import parse_spec
from jepa_jax.data.specs import AugmentSpec, CropSpec, GroupSpec
from jepa_jax.models import (
    MaskedPredictor, erase_boxes, gather_tokens, make_encoder, normalize_pixels, token_grid,
)
from jepa_jax.models.flops import Pass, attention_flops, encoder_flops, predictor_flops, total_flops
from jepa_jax.models.norms import normalize_latents
from jepa_jax.tasks.losses import correlation_loss, latent_loss, variance_loss
from jepa_jax.tasks.online_probe import make_observer
from jepa_jax.tasks.sources import make_cache, make_sources, naming_root
from jepa_jax.tasks.step import make_schedules, make_train_step, sample_latents
from jepa_jax.training import optim, sharding
from jepa_jax.training.state import create_state, tensor_names
from jepa_jax.training.task import Program, Task
from jepa_jax.weights import runs, start


class Group(NamedTuple):
    """A sub-batch of clips of one shape.

    Attributes:
      spec: what the data pipeline needs to know.
      loss_weight: of this group's mean loss in the total, relative to the other groups; its clips per step
        unless the config says otherwise, so that every clip counts the same.
      grid: (t, h, w) tokens of its clips.
      sampler: masks of its clips.
      strategies: names of the mask strategies, in the order of `sampler`.
    """

    spec: GroupSpec
    loss_weight: float
    grid: tuple[int, int, int]
    sampler: MaskSampler
    strategies: tuple[str, ...]


def make_models(model, grid):
    """Build (VideoEncoder, MaskedPredictor) from the `model` section of a config.

    Args:
      model: ConfigDict section.
      grid: (t, h, w) for which sincos tables are built.
    """
    shared = dict(
        positions=model.positions, rope_layout=model.rope_layout, uniform_power=model.uniform_power, table_grid=grid,
        activation=model.activation, attention=model.attention, remat=model.remat,
        dtype=jnp.dtype(model.dtype), param_dtype=jnp.dtype(model.param_dtype),
    )
    encoder = make_encoder(
        model.size, patch_size=model.patch_size, tubelet_size=model.tubelet_size,
        residual_dtype=jnp.dtype(model.encoder_residual_dtype), **shared,
    )
    predictor = MaskedPredictor(
        output_dim=encoder.width, residual_dtype=jnp.dtype(model.predictor_residual_dtype),
        **model.predictor.to_dict(), **shared,
    )
    return encoder, predictor


def make_groups(config):
    """Build the `Group`s of a run, video groups first; a batch size of 0 leaves a group out.

    Raises:
      ValueError: if no group is left, or a size or weight is impossible.
    """
    model, data = config.model, config.data
    # The position in this list chooses the mask token, so the order must not depend on names alone.
    named = sorted(data.groups.items(), key=lambda item: (item[1].kind != "video", item[0]))
    strategies = tuple(sorted(config.masks.strategies.keys()))
    specs = tuple(MaskSpec(**config.masks.strategies[name].to_dict()) for name in strategies)
    groups = []
    for name, section in named:
        if section.batch_size == 0:
            continue
        loss_weight = section.batch_size if section.loss_weight is None else section.loss_weight
        if not 0 < loss_weight < math.inf:
            raise ValueError(f"data.groups.{name}.loss_weight is {loss_weight}; it must be above 0 and finite. To train "
                             "without a group, set its batch_size to 0")
        grid = token_grid(section.frames, data.size, data.size, model.patch_size, model.tubelet_size)
        groups.append(Group(
            GroupSpec(name, section.kind, section.frames, section.fps, section.batch_size,
                      make_sources(data.root, section, f"data.groups.{name}")),
            loss_weight, grid,
            MaskSampler(specs, grid, seed=config.seed, stream=len(groups),
                        group_size=config.masks.group_size, round_to=config.masks.round_to),
            strategies,
        ))
    if not groups:
        raise ValueError("every group of data.groups has batch_size 0; give at least one a batch")
    return tuple(groups)


def make_pipeline(config, groups, process_index=0, process_count=1):
    """Build the `ClipPipeline` of one process."""
    data = config.data
    with naming_root(data.root):
        return ClipPipeline(
            [group.spec for group in groups], CropSpec(data.size, data.crop_scale, data.crop_aspect, data.flip),
            {group.spec.name: group.sampler for group in groups}, seed=config.seed,
            augment=make_augment(data.augment), cache=make_cache(data), max_bad_fraction=data.max_bad_fraction,
            process_index=process_index, process_count=process_count,
        )


def make_augment(section):
    """Build an `AugmentSpec` from the `data.augment` section of a config; ValueError for an unknown policy."""
    policy = parse_spec(section.rand_augment) if section.rand_augment else None
    return AugmentSpec(section.get("motion_shift", False), policy, section.erase)


def make_loss(encoder, predictor, groups, *, loss_exponent, monitor_tokens, decorrelation=0.0, variance=0.0):
    """Build the pretraining loss.

    `decorrelation` times the correlations of the context's latents is added, and `variance` times what their deviations lack; the official recipe
    has 0 of both.

    Returns:
      Function (params, target_params, batch) -> (loss, aux). `params` has the keys
      `encoder` and `predictor`; `target_params` is an encoder tree and receives no gradient;
      `batch` maps group names to `video` uint8 `[b, F, H, W, 3]`, `context_ids` and
      `target_ids`, tuples over strategies of int32 `[b, K]`, and with erasing `erase_boxes` and
      `erase_seeds`. `aux` has `losses`, the
      mean of every (group, strategy), and `samples`, a few target and predicted latents.

    Source: app/vjepa/train.py.
    """
    total_weight = sum(group.loss_weight for group in groups)

    def encode_targets(target_params, video):
        latents = encoder.apply({"params": target_params}, video)
        # The targets are constants of the step: without this the loss could be lowered by
        # moving them, which collapses the representation.
        return jax.lax.stop_gradient(normalize_latents(latents))

    def loss_fn(params, target_params, batch):
        total, losses, samples = 0.0, {}, None
        for index, group in enumerate(groups):
            rows = batch[group.spec.name]
            video = normalize_pixels(rows["video"])
            if video.shape[1] != group.spec.frames:
                video = jnp.repeat(video, group.spec.frames, axis=1)
            if "erase_boxes" in rows:
                video = erase_boxes(video, rows["erase_boxes"], rows["erase_seeds"])
            latents = encode_targets(target_params, video)
            for name, context_ids, target_ids in zip(group.strategies, rows["context_ids"], rows["target_ids"], strict=True):
                context = encoder.apply({"params": params["encoder"]}, video, context_ids)
                predictions = predictor.apply(
                    {"params": params["predictor"]}, context, context_ids, target_ids, group.grid, index
                )
                targets = gather_tokens(latents, target_ids)
                loss = latent_loss(predictions, targets, exponent=loss_exponent)
                losses[f"train/loss/{group.spec.name}/{name}"] = loss
                for kind, weight, measure in (("correlation", decorrelation, correlation_loss), ("variance", variance, variance_loss)):
                    if weight:
                        losses[f"train/{kind}/{group.spec.name}/{name}"] = measured = measure(context)
                        loss += weight * measured
                total += loss * group.loss_weight / (total_weight * len(group.strategies))
                if samples is None:
                    samples = sample_latents(targets, predictions, monitor_tokens)
        return total, {"losses": losses, "samples": samples}

    return loss_fn


def make_optimizer(section, abstract_params, num_groups):
    """Build AdamW from the `optim` section for these parameters."""
    factors = optim.decay_factors(abstract_params)
    # Parity: a mask token no group uses gets no gradient, and PyTorch then leaves it alone,
    # decay included.
    rows = jnp.arange(abstract_params["predictor"]["mask_tokens"].shape[0])
    factors["predictor"]["mask_tokens"] = (rows < num_groups).astype(jnp.float32)[:, None]
    return optim.make_adamw(b1=section.b1, b2=section.b2, eps=section.eps, decay_factors=factors)


def init_params(encoder, predictor, rng, batch_size=1):
    """Initialise both networks: `{"encoder": ..., "predictor": ...}`; the clip size does not matter."""
    encoder_rng, predictor_rng = jax.random.split(rng)
    clip = jnp.zeros((batch_size, encoder.tubelet_size, encoder.patch_size, encoder.patch_size, 3))
    ids = jnp.zeros((batch_size, 1), jnp.int32)
    context = jnp.zeros((batch_size, 1, encoder.width))
    return {
        "encoder": encoder.init(encoder_rng, clip)["params"],
        "predictor": predictor.init(predictor_rng, context, ids, ids, predictor.table_grid)["params"],
    }


def step_passes(encoder, predictor, groups):
    """List what one optimiser step computes, over tokens that are really processed, as `flops.Pass`es."""
    passes = []
    for group in groups:
        clips, tokens = group.spec.batch_size, math.prod(group.grid)
        passes.append(_pass("target_encoder", encoder, clips, tokens, encoder_flops(encoder, tokens), trained=False))
        for num_context, num_target in group.sampler.lengths:
            joined = num_context + num_target
            passes.append(_pass("encoder", encoder, clips, num_context, encoder_flops(encoder, num_context)))
            passes.append(_pass("predictor", predictor, clips, joined, predictor_flops(predictor, num_context, num_target)))
    return passes


def _pass(name, network, clips, tokens, flops, trained=True):
    return Pass(name, network, clips, tokens, flops, attention_flops(network, tokens**2), trained)


def abstract_batch(config, groups):
    """Return the global batch of a step as `jax.ShapeDtypeStruct`s, shaped as `ClipPipeline.batch_at` makes it."""
    batch = {}
    for group in groups:
        spec, size = group.spec, config.data.size
        frames = 1 if spec.kind == "image" and not config.data.augment.motion_shift else spec.frames
        ids = lambda column: tuple(_rows(spec, (lengths[column],), jnp.int32) for lengths in group.sampler.lengths)
        batch[spec.name] = {"video": _rows(spec, (frames, size, size, 3), jnp.uint8), "context_ids": ids(0), "target_ids": ids(1)}
        if config.data.augment.erase > 0:
            batch[spec.name] |= {"erase_boxes": _rows(spec, (4,), jnp.int32), "erase_seeds": _rows(spec, (), jnp.uint32)}
    return batch


def _rows(spec, shape, dtype):
    return jax.ShapeDtypeStruct((spec.batch_size, *shape), dtype)


def make_program(config, groups, mesh):
    """Build the `Program` of a config.

    Raises:
      ValueError: if a setting is impossible; nothing has been compiled then.
    """
    for group in groups:
        sharding.check_batch_size(group.spec.name, group.spec.batch_size, mesh, config.optim.accumulate)
    encoder, predictor = make_models(config.model, groups[0].grid)
    make_params = functools.partial(init_params, encoder, predictor, batch_size=sharding.batch_parts(mesh))
    abstract_params = jax.eval_shape(make_params, jax.random.key(0))
    optimizer = make_optimizer(config.optim, abstract_params, len(groups))

    def init_state(rng):
        params = make_params(rng)
        return create_state(params, jax.tree.map(jnp.copy, params["encoder"]), optimizer)

    loss_fn = make_loss(encoder, predictor, groups, loss_exponent=config.optim.loss_exponent,
                        monitor_tokens=config.log.monitor_tokens, decorrelation=config.optim.decorrelation, variance=config.optim.variance)
    train_step = make_train_step(loss_fn, optimizer, make_schedules(config.optim),
                                 accumulate=config.optim.accumulate, spike_factor=config.guard.spike_factor,
                                 target_key="encoder")
    return Program({"encoder": encoder, "predictor": predictor}, init_state, train_step, tensor_names(abstract_params),
                   step_passes(encoder, predictor, groups))


def make_task(config, mesh):
    """Build the pretraining task.

    Args:
      config: locked ConfigDict as in `configs/pretrain.py`.
      mesh: device mesh from `sharding.make_mesh`.

    Returns:
      `Task`.

    Raises:
      ValueError: if a setting is impossible; nothing has been compiled then.
      FileNotFoundError: if shards are missing.
      ListError, DataError: if the clips of the online probe cannot be used.
    """
    groups = make_groups(config)
    program = make_program(config, groups, mesh)
    pipeline = make_pipeline(config, groups, jax.process_index(), jax.process_count())
    for line in pipeline.warnings():
        logging.warning("%s", line)
    data = config.data
    observe, observed = make_observer(config, program.networks["encoder"], groups[0].spec.frames, mesh)
    card = runs.model_card(program.networks, data.size,
                           groups[0].spec.frames, target="encoder")
    return Task(
        init_state=program.init_state,
        train_step=program.train_step,
        open_data=functools.partial(make_iterator, pipeline, workers=data.workers, threads=data.threads,
                                    prefetch=data.prefetch),
        tensor_names=optim.checked_names(program.tensor_names),
        clips_per_step=sum(group.spec.batch_size for group in groups),
        flops_per_step=total_flops(program.passes),
        data_state={"seed": config.seed} | pipeline.contents(),
        model_card=card,
        check_card=lambda path, then, resumed: start.check_networks(path, card, then),
        read_weights=functools.partial(start.read_start, **program.networks),
        summary=_summarize(groups) + pipeline.describe() + observed,
        frozen={},
        write_frozen=lambda workdir: None,
        observe=observe,
    )


def _summarize(groups):
    lines = []
    for group in groups:
        lengths = ", ".join(f"{name} {num_context} -> {num_target}"
                            for name, (num_context, num_target) in zip(group.strategies, group.sampler.lengths))
        total = group.grid[0] * group.grid[1] * group.grid[2]
        lines.append(f"group {group.spec.name}: {group.spec.batch_size} clips of {total} tokens {group.grid}, "
                     f"context -> target: {lengths}")
    return lines
