"""Action anticipation: attentive probes that read off a clip, and off its predicted future, what will be done next."""

import functools
import math
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from jepa_jax.data.actions import OUTPUTS, ActionSource, check_videos, make_classes, read_annotations
from jepa_jax.data.anticipation import AnticipationPipeline, TimingSpec
from jepa_jax.data.iterate import make_iterator
from jepa_jax.data.specs import CropSpec, GroupSpec, SourceSpec
from jepa_jax.models import anticipate, erase_boxes, furthest_grid, normalize_pixels
from jepa_jax.models.flops import encoder_flops, predictor_flops
from jepa_jax.models.spec import abstract_params
from jepa_jax.tasks.losses import focal_loss
from jepa_jax.tasks.pretrain import make_augment
from jepa_jax.tasks.probe import check_card, check_encoder, init_probes, make_probe, probe_flops, read_frozen, refuse_weights, score_outputs
from jepa_jax.tasks.step import make_train_step, sample_latents
from jepa_jax.tasks.sweep import describe_sweep, make_optimizer, make_schedules, make_sweep, settle_lengths
from jepa_jax.training import optim, sharding
from jepa_jax.training.state import create_state, tensor_names
from jepa_jax.training.task import Task
from jepa_jax.weights import bundle as weights
from jepa_jax.weights import runs
from jepa_jax.weights.anticipation import Anticipation, to_json

GROUP = "segments"
# Answers among which the right one has to be.
TOP = 5


def check_networks(networks, seeing, seconds):
    """Check that frozen networks can look that far ahead.

    Args:
      networks: dict of `VideoEncoder` encoder and, if it is used, `MaskedPredictor` predictor.
      seeing: `Anticipation`.
      seconds: the largest distance that is asked for.

    Returns:
      (t, h, w), the `grid` of `models.anticipate`.

    Raises:
      ValueError: if sizes do not fit.
    """
    grid = furthest_grid(networks["encoder"], seeing, seconds)
    if not seeing.use_predictor:
        return grid
    predictor = networks["predictor"]
    if predictor.output_dim != networks["encoder"].width:
        raise ValueError(f"the predictor is for an encoder of width {predictor.output_dim}, this one has {networks['encoder'].width}")
    if seeing.mask_index >= predictor.num_mask_tokens:
        raise ValueError(f"protocol.mask_index is {seeing.mask_index}; this predictor has mask tokens 0 to {predictor.num_mask_tokens - 1}")
    table = predictor.table_grid
    if predictor.positions != "rope" and (tuple(table[1:]) != grid[1:] or table[0] < grid[0]):
        raise ValueError(f"this predictor has a fixed table of positions for grid {table}; clips and what follows them take {grid}")
    return grid


def make_loss(probe, networks, seeing, grid, *, mean, std, alpha, gamma, monitor_tokens):
    """Build the loss of all probes.

    Args:
      probe: `AttentiveProbe` with the outputs `data.actions.OUTPUTS`.
      networks, seeing, grid: see `check_networks`.
      mean, std: of the pixels.
      alpha, gamma: see `focal_loss`.
      monitor_tokens: see `sample_latents`.

    Returns:
      Function (params, frozen, batch) -> (loss, aux) as in `step.make_train_step`; `params` maps names of probes to
      their parameters, `frozen` has the keys of `networks`, `batch` is as `AnticipationPipeline.batch_at` makes it. The
      loss is summed over probes, outputs, classes and rows. Parity: not averaged; officially over the rows of one
      process, by which AdamW's steps differ only where gradients are as small as its epsilon.

    Source: evals/action_anticipation_frozen/eval.py.
    """
    def loss_fn(params, frozen, batch):
        video = normalize_pixels(batch["video"], np.float32(mean), np.float32(std))
        if "erase_boxes" in batch:
            video = erase_boxes(video, batch["erase_boxes"], batch["erase_seeds"])
        tokens = anticipate(networks["encoder"], networks.get("predictor"), frozen, video, batch["seconds"], seeing, grid)
        logits = score_outputs(probe, params, tokens)
        losses, metrics = 0.0, {}
        for output in OUTPUTS:
            labels = jnp.broadcast_to(batch[output], logits[output].shape[:2])
            losses += focal_loss(logits[output], labels, alpha=alpha, gamma=gamma).sum((1, 2))
            metrics[f"train/best_top{TOP}_{output}"] = _among_first(logits[output], labels).mean(1).max()
        metrics |= {f"train/loss/{name}": losses[number] for number, name in enumerate(weights.probe_names(params))}
        metrics["train/best_loss"] = losses.min()
        return losses.sum(), {"losses": metrics, "samples": sample_latents(tokens, tokens, monitor_tokens)}

    return loss_fn


def _among_first(logits, labels):
    """Tell where the right class is among the first answers: float32 `[...]`."""
    own = jnp.take_along_axis(logits, labels[..., None], axis=-1)
    # Asked this way round, what is not a number is no right answer.
    return ((~(logits <= own)).sum(-1) < TOP).astype(jnp.float32)


def make_protocol(config):
    """Build the `Anticipation` of a config."""
    return Anticipation(crop_size=config.data.size, **config.protocol.to_dict())


def open_data(config):
    """Read the list of a config; returns (`ActionSource`, its classes).

    Raises:
      ListError: if the list cannot be used, or none of its videos is there.
      ValueError: if the layout or the order of classes is impossible.
    """
    data = config.data
    rows = read_annotations(data.annotations)
    classes = make_classes(rows, data.class_order)
    source = ActionSource(data.annotations, rows, classes, data.videos, data.layout)
    check_videos(source, data.videos, what="data.videos")
    return source, classes


def make_pipeline(config, source, seeing, timing, process_index=0, process_count=1):
    """Build the `AnticipationPipeline` of one process."""
    data = config.data
    group = GroupSpec(GROUP, "video", seeing.frames, seeing.fps, data.batch_size, (SourceSpec((data.annotations,), 1.0),))
    return AnticipationPipeline(
        group, source, seeing, timing, CropSpec(data.size, data.crop_scale, data.crop_aspect, data.flip), make_augment(data.augment),
        seed=config.seed, max_bad_fraction=data.max_bad_fraction, process_index=process_index, process_count=process_count,
    )


def make_task(config, mesh):
    """Build the task of training probes that anticipate actions.

    Args:
      config: locked ConfigDict as in `configs/anticipate.py`; where `optim.total_steps` is 0, it is set to what
        `optim.epochs` take.
      mesh: device mesh from `sharding.make_mesh`.

    Returns:
      `Task`.

    Raises:
      ValueError: if a setting is impossible; nothing has been compiled then.
      WeightsError: if encoder or predictor cannot be read.
      ListError: if the list of segments cannot be used, or none of its videos is there.
    """
    data, section = config.data, config.optim
    sharding.check_batch_size(GROUP, data.batch_size, mesh, section.accumulate)
    sweep, seeing, timing = make_sweep(section), make_protocol(config), TimingSpec(data.seconds, data.points, data.anchor)
    source, classes = open_data(config)
    settle_lengths(section, len(source), data.batch_size)
    frozen, chosen, sha256 = read_frozen(config.encoder, seeing.roles())
    pre, networks = frozen.preprocessing, _run_as(config.model, {role: frozen.networks[name].module for role, name in chosen.items()})
    check_encoder(networks["encoder"], seeing.frames, seeing.crop_size)
    grid = check_networks(networks, seeing, timing.seconds[1])
    probe = make_probe(config.model, networks["encoder"].width, tuple((output, len(classes[output])) for output in OUTPUTS))
    names = [f"{weights.PROBE}{number}" for number in range(len(sweep))]
    abstract = {name: abstract_params(probe) for name in names}
    pipeline = make_pipeline(config, source, seeing, timing, jax.process_index(), jax.process_count())
    optimizer = make_optimizer(section)
    loss_fn = make_loss(probe, networks, seeing, grid, mean=pre.mean, std=pre.std, alpha=section.alpha, gamma=section.gamma,
                        monitor_tokens=config.log.monitor_tokens)
    trained = {f"{role}_sha256": value for role, value in sha256.items()}
    trained |= {"sweep": sweep, "seeing": seeing.describe(), "timing": _describe_timing(timing), "classes": _describe_classes(classes)}
    card = runs.model_card(dict.fromkeys(names, probe), data.size, seeing.frames, trained=trained, anticipation=to_json(seeing, classes))
    return Task(
        init_state=lambda rng: create_state(init_probes(probe, names, rng), {}, optimizer),
        train_step=make_train_step(loss_fn, optimizer, make_schedules(section, sweep), accumulate=section.accumulate,
                                   spike_factor=config.guard.spike_factor),
        open_data=functools.partial(make_iterator, pipeline, workers=data.workers, threads=data.threads, prefetch=data.prefetch),
        tensor_names=optim.checked_names(tensor_names(abstract)),
        clips_per_step=data.batch_size,
        flops_per_step=data.batch_size * _clip_flops(probe, networks, seeing, grid, len(sweep)),
        data_state={"seed": config.seed} | pipeline.contents(),
        model_card=card,
        check_card=functools.partial(check_card, card=card),
        read_weights=refuse_weights,
        summary=_summarize(trained, sha256, describe_sweep(sweep, section, abstract)) + pipeline.describe(),
        frozen={role: frozen.networks[name].params for role, name in chosen.items()},
        write_frozen=functools.partial(runs.write_frozen, frozen),
    )


def _run_as(model, modules):
    """Set how the frozen networks run. Parity: the predictor keeps its residual in float32."""
    residual = {"encoder": model.encoder_residual_dtype, "predictor": "float32"}
    return {role: module.clone(attention=model.attention, dtype=jnp.dtype(model.dtype), residual_dtype=jnp.dtype(residual[role]))
            for role, module in modules.items()}


def _clip_flops(probe, networks, seeing, grid, count):
    encoder = networks["encoder"]
    per_step = math.prod(grid[1:])
    seen, ahead = (frames // encoder.tubelet_size * per_step for frames in (seeing.frames, seeing.output_frames))
    tokens = seen * seeing.use_encoder + ahead * seeing.num_steps * seeing.use_predictor
    future = seeing.num_steps * predictor_flops(networks["predictor"], seen, ahead) if seeing.use_predictor else 0.0
    # A backward pass costs twice the forward pass; the frozen networks have none.
    return encoder_flops(encoder, seen) + future + 3 * count * probe_flops(probe, tokens)


def _describe_timing(timing):
    low, high = timing.seconds
    first, last = (f"{100 * point:g}" for point in timing.points)
    anchor = {"released": "stop frame", "standard": "start frame"}[timing.anchor]
    return f"{timing.anchor} protocol: {low:g} to {high:g} s before a moment {first} to {last} % of the segment from its {anchor}"


def _describe_classes(classes):
    text = ", ".join(f"{len(classes[output])} {output}s" for output in OUTPUTS)
    return f"{text}, checksum {zlib.crc32(repr([list(classes[output]) for output in OUTPUTS]).encode()):08x}"


def _summarize(trained, sha256, probes):
    return [f"protocol {trained['seeing']}", trained["timing"], trained["classes"],
            *(f"{role} sha256 {value[:12]}, frozen" for role, value in sha256.items()), probes]
