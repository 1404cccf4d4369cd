"""Frozen evaluation: attentive probes that read classes off an encoder, many settings trained at once."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jepa_jax.data.iterate import make_iterator
from jepa_jax.data.labelled import ListSource, align_classes, check_examples, check_labels, open_labelled
from jepa_jax.data.labelled_pipeline import LabelledPipeline
from jepa_jax.data.probe_tokens import TokenPipeline
from jepa_jax.data.specs import CropSpec, GroupSpec, check_specs
from jepa_jax.models import AttentiveProbe, erase_boxes, join_levels, join_segments, normalize_pixels, time_table, token_grid
from jepa_jax.models.flops import encoder_flops, stack_flops
from jepa_jax.models.spec import abstract_params
from jepa_jax.tasks import probe_tokens
from jepa_jax.tasks.pretrain import make_augment
from jepa_jax.tasks.sources import make_cache, make_sources, naming_root
from jepa_jax.tasks.step import make_train_step, sample_latents
from jepa_jax.tasks.sweep import describe_sweep, make_optimizer, make_schedules, make_sweep, settle_lengths
from jepa_jax.training import optim, sharding
from jepa_jax.training.state import create_state, tensor_names
from jepa_jax.training.task import Task
from jepa_jax.weights import bundle as weights
from jepa_jax.weights import runs, settle, start, store

GROUP = "labelled"
OUTPUT = "label"
# Where a config says what `settle.find_misfits` asks about.
_FIELDS = {"layers": "protocol.layers", "frames": "protocol.frames", "crop_size": "data.size"}


def encode_segments(encoder, params, video, layers, frame_indices=None):
    """Compute the tokens of all segments of a batch, as a probe gets them.

    Args:
      encoder, params: the frozen `VideoEncoder`.
      video: float32 `[B, S, T, H, W, 3]`, normalised.
      layers: see `Protocol`.
      frame_indices: int `[B, S, T]`, the frames as counted in their video, whose times are added to the tokens; None to add none.

    Returns:
      `[B, S*N, D]`, all tokens of the first segment first; with layers `[B, S*L*N, D]`. No gradient.

    Source: evals/video_classification_frozen/modelcustom/*.py.
    """
    def encode(segment):
        if layers:
            return join_levels(encoder.apply({"params": params}, segment, layers, method="encode_layers"))
        return encoder.apply({"params": params}, segment)

    # Segment by segment: an encoder needs far more memory than its tokens.
    tokens = jax.lax.map(encode, jnp.swapaxes(video, 0, 1))
    times = None if frame_indices is None else time_table(encoder.width, jnp.swapaxes(frame_indices, 0, 1), encoder.tubelet_size)
    return jax.lax.stop_gradient(join_segments(tokens[:, None], times)[0])


def encode_batch(encoder, params, batch, *, layers, mean, std, frames):
    """Compute the tokens of a batch as `LabelledPipeline.batch_at` makes it: `[B, S*N, D]` as `encode_segments`, with its erasing and times.

    A still is repeated for `frames` frames, after its erasing.
    """
    video = normalize_pixels(batch["video"], np.float32(mean), np.float32(std))
    if "erase_boxes" in batch:
        flat = lambda name: batch[name].reshape(-1, *batch[name].shape[2:])
        erased = erase_boxes(video.reshape(-1, *video.shape[2:]), flat("erase_boxes"), flat("erase_seeds"))
        video = erased.reshape(video.shape)
    if video.shape[2] == 1:
        video = jnp.repeat(video, frames, axis=2)
    return encode_segments(encoder, params, video, layers, batch.get("frame_indices"))


def score_outputs(probe, params, tokens, at_once=True):
    """Score the classes with every probe, as one program over all.

    Args:
      probe: `AttentiveProbe`.
      params: dict from the name of a probe to its parameters.
      tokens: `[B, N, D]`.
      at_once: all probes together, which trains small ones faster; else one after the other, in the memory of one.

    Returns:
      dict from the name of an output to float32 `[P, B, classes]`, probes in the order of `weights.bundle.probe_names`.
    """
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(params[name] for name in weights.probe_names(params)))
    run = lambda one: probe.apply({"params": one}, tokens)
    return jax.vmap(run)(stacked) if at_once else jax.lax.map(run, stacked)


def score(probe, params, tokens, at_once=True):
    """Return what `score_outputs` does for probes with a single output: float32 `[P, B, classes]`."""
    (logits,) = score_outputs(probe, params, tokens, at_once).values()
    return logits


def make_loss(probe, encoder, *, layers, mean, std, frames, monitor_tokens):
    """Build the loss of all probes.

    Returns:
      Function (params, frozen, batch) -> (loss, aux) as in `step.make_train_step`; `params` maps names of probes
      to their parameters, `frozen` has the key encoder, unless the batch holds tokens; `batch` is as `LabelledPipeline` or
      `TokenPipeline` make it. The loss is the sum of the probes' mean cross-entropies, so that each is trained as if it were alone.

    Source: evals/video_classification_frozen/eval.py.
    """
    encode = functools.partial(encode_batch, encoder, layers=layers, mean=mean, std=std, frames=frames)

    def loss_fn(params, frozen, batch):
        tokens = batch["tokens"] if "tokens" in batch else encode(frozen["encoder"], batch)
        logits = score(probe, params, tokens)
        labels = batch["label"]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels[None]).mean(1)
        right = (logits.argmax(-1) == labels[None]).astype(jnp.float32).mean(1)
        metrics = {}
        for number, name in enumerate(weights.probe_names(params)):
            metrics |= {f"train/loss/{name}": losses[number], f"train/accuracy/{name}": right[number]}
        metrics |= {"train/best_loss": losses.min(), "train/best_accuracy": right.max()}
        return losses.sum(), {"losses": metrics, "samples": sample_latents(tokens, tokens, monitor_tokens)}

    return loss_fn


def make_protocol(config):
    """Build the `Protocol` of a config: how a video is seen in training and evaluation."""
    section = config.protocol
    return weights.Protocol(section.name, section.frames, section.frame_step, section.num_segments, section.num_views,
                            config.data.size, tuple(section.layers), section.use_pos_embed)


def open_data(config, root, paths, cache):
    """Open labelled data; returns (sources, number of classes, their names or None).

    Raises:
      ValueError: if the number of classes is not set and no list tells it.
      ListError: if a list is of another format, folders name other classes, a label is out of range, or a class has no
        example. What shards hold is seen only when it is read.
    """
    data = config.data
    with naming_root(data.root):
        sources = [open_labelled(spec.paths[0], cache) for spec in make_sources(root, paths, "data")]
    lists = [source for source in sources if isinstance(source, ListSource)]
    names = align_classes(lists)
    count = data.num_classes or (len(names) if names else 0)
    if not count and len(lists) == len(sources):
        count = int(max(source.labels().max() for source in lists)) + 1
    if count < 2:
        raise ValueError(f"data.num_classes is {count}; say how many classes there are, at least 2 (shards do not tell)")
    for spec, source in zip(data.paths, sources):
        if isinstance(source, ListSource):
            check_labels(source, count, what=spec)
    if len(lists) == len(sources) and not data.allow_empty_classes:
        check_examples(lists, count, what=", ".join(data.paths))
    return sources, count, names


def read_frozen(path, roles=("encoder",)):
    """Read the networks that are frozen: (`Bundle` of them alone, dict from role to name, dict from role to sha256).

    Args:
      path: as `weights.store.read` takes.
      roles: as in `weights.bundle.choose_networks`.

    Raises:
      ValueError: if there is no path.
      WeightsError: if it cannot be read, or lacks one of them.
    """
    if not path:
        raise ValueError("encoder is not set: give --config.encoder=WEIGHTS, a run or a name on the hub")
    found = store.read(path, choose=lambda names: tuple(weights.choose_networks(names, roles=roles).values()))
    names = weights.choose_networks(found.networks, roles=roles)
    networks = {role: found.networks[name] for role, name in names.items()}
    sha256 = {role: network.sha256 or weights.network_sha256(network.params) for role, network in networks.items()}
    return weights.keep_networks(found, names.values()), names, sha256


def make_task(config, mesh):
    """Build the task of training probes.

    Args:
      config: locked ConfigDict as in `configs/probe.py`; where `optim.total_steps` is 0, it is set to what
        `optim.epochs` take.
      mesh: device mesh from `sharding.make_mesh`.

    Returns:
      `Task`.

    Raises:
      ValueError: if a setting is impossible; nothing has been compiled then.
      WeightsError: if the encoder cannot be read.
      ListError, FileNotFoundError, DataError: if there is something wrong with the data.
    """
    data, section = config.data, config.optim
    sharding.check_batch_size(GROUP, data.batch_size, mesh, section.accumulate)
    sweep, protocol = make_sweep(section), make_protocol(config)
    sources, num_classes, class_names = open_data(config, data.root, data, make_cache(data))
    settle_lengths(section, sum(map(len, sources)), data.batch_size)
    frozen, chosen, sha256 = read_frozen(config.encoder)
    network = frozen.networks[chosen["encoder"]]
    model, pre = config.model, frozen.preprocessing
    check_encoder(network.module, protocol.frames, data.size, protocol.layers)
    encoder = network.module.clone(attention=model.attention, dtype=jnp.dtype(model.dtype),
                                   residual_dtype=jnp.dtype(model.encoder_residual_dtype))
    probe = make_probe(model, encoder.width, ((OUTPUT, num_classes),))
    names = [f"{weights.PROBE}{number}" for number in range(len(sweep))]
    if data.tokens:
        pipeline = _stored_pipeline(config, sources, protocol, num_classes, encoder, network.params, sha256["encoder"], pre, mesh)
    else:
        pipeline = make_pipeline(config, sources, protocol, num_classes, jax.process_index(), jax.process_count())
    optimizer = make_optimizer(section)
    abstract = {name: abstract_params(probe) for name in names}
    loss_fn = make_loss(probe, encoder, layers=protocol.layers, mean=pre.mean, std=pre.std, frames=protocol.frames,
                        monitor_tokens=config.log.monitor_tokens)
    card = runs.model_card(dict.fromkeys(names, probe), data.size, protocol.frames, protocol=protocol, labels=class_names,
                           trained={"encoder_sha256": sha256["encoder"], "sweep": sweep})
    return Task(
        init_state=lambda rng: create_state(init_probes(probe, names, rng), {}, optimizer),
        train_step=make_train_step(loss_fn, optimizer, make_schedules(section, sweep), accumulate=section.accumulate,
                                   spike_factor=config.guard.spike_factor),
        open_data=functools.partial(make_iterator, pipeline, workers=data.workers, threads=data.threads, prefetch=data.prefetch),
        tensor_names=optim.checked_names(tensor_names(abstract)),
        clips_per_step=data.batch_size,
        flops_per_step=_step_flops(probe, encoder, protocol, data, len(sweep)),
        data_state={"seed": config.seed} | pipeline.contents(),
        model_card=card,
        check_card=functools.partial(check_card, card=card),
        read_weights=refuse_weights,
        summary=[*_summarize(protocol, sweep, abstract, num_classes, section, sha256["encoder"]), *settle.note_levels(protocol, encoder),
                 *pipeline.describe()],
        frozen={} if data.tokens else {"encoder": network.params},
        write_frozen=functools.partial(runs.write_frozen, frozen),
    )


def check_encoder(encoder, frames, size, layers=()):
    """Raise ValueError, which names the field of the config, where a frozen encoder cannot take what is asked of it.

    Args:
      encoder: `VideoEncoder`.
      frames, layers: see `Protocol`.
      size: of the crop, pixels.
    """
    for name, problem in settle.find_misfits(encoder, frames, size, layers):
        raise ValueError(f"{_FIELDS[name]} does not suit this encoder: {problem}")


def make_probe(model, width, outputs):
    """Build the `AttentiveProbe` of a config's `model` section; `outputs` as there, a query for each.

    Raises:
      ValueError: if its heads do not divide the width.
    """
    if model.num_heads < 1 or width % model.num_heads:
        raise ValueError(f"model.num_heads is {model.num_heads}, which does not divide the encoder's width, {width}; set "
                         "--config.model.num_heads (16, as officially, divides that of every released encoder)")
    return AttentiveProbe(
        width=width, depth=model.depth, num_heads=model.num_heads, mlp_ratio=model.mlp_ratio, num_queries=len(outputs), outputs=outputs,
        norm_eps=model.norm_eps, attention=model.attention, remat=model.remat, dtype=jnp.dtype(model.dtype),
        param_dtype=jnp.dtype(model.param_dtype), residual_dtype=jnp.dtype(model.residual_dtype),
    )


def init_probes(probe, names, rng):
    """Initialise probes of one shape, each differently: dict from name to parameters."""
    tokens = jnp.zeros((1, 1, probe.width))
    return {name: probe.init(jax.random.fold_in(rng, number), tokens)["params"] for number, name in enumerate(names)}


def make_pipeline(config, sources, protocol, num_classes, process_index=0, process_count=1):
    """Build the `LabelledPipeline` of one process."""
    data = config.data
    return LabelledPipeline(
        _make_group(config, protocol), sources, *_make_transforms(data), protocol, num_classes,
        seed=config.seed, still=data.still, max_bad_fraction=data.max_bad_fraction, process_index=process_index, process_count=process_count,
    )


def _make_group(config, protocol):
    data = config.data
    return GroupSpec(GROUP, "video", protocol.frames, 1.0, data.batch_size, make_sources(data.root, data, "data"), step=protocol.frame_step)


def _make_transforms(data):
    return CropSpec(data.size, data.crop_scale, data.crop_aspect, data.flip), make_augment(data.augment)


def _stored_pipeline(config, sources, protocol, num_classes, encoder, params, sha256, pre, mesh):
    """Build the `TokenPipeline` of a config with `data.tokens`; encodes first what is not stored yet."""
    data, group = config.data, _make_group(config, protocol)
    crop, augment = _make_transforms(data)
    check_specs([group], crop, augment, {GROUP: None})
    encode = functools.partial(encode_batch, encoder, layers=protocol.layers, mean=pre.mean, std=pre.std, frames=protocol.frames)
    stored = probe_tokens.store_tokens(
        config, sources, (protocol, crop, augment, num_classes), encode, params,
        {"encoder_sha256": sha256, "compute_dtype": jnp.dtype(encoder.dtype).name},
        (_tokens(encoder, protocol, data.size)[1], encoder.width), mesh,
    )
    return TokenPipeline(group, stored, seed=config.seed, max_bad_fraction=data.max_bad_fraction)


def check_card(path, then, resumed, *, card):
    """Refuse, as `Task.check_card`, to go on with probes that were trained otherwise than `card` says.

    Raises:
      WeightsError: naming what differs.
    """
    start.check_networks(path, card, then)
    now, then = ({"protocol": found.get("protocol"), **(found.get("trained") or {})} for found in (card, then))
    wrong = [f"{key}: {then.get(key)!r} in the checkpoint, {value!r} in this config" for key, value in now.items() if then.get(key) != value]
    if resumed and wrong:
        raise weights.WeightsError(f"{path} was trained otherwise than this config describes: {'; '.join(wrong)}; go on with the "
                                   "config it was started with, or take another --workdir")


def refuse_weights(path):
    """Raise WeightsError, as `Task.read_weights`: no probes are started from others."""
    raise weights.WeightsError(f"probes start from new weights, not from {path}; leave start.mode at 'scratch'")


def _tokens(encoder, protocol, size):
    per_clip = math.prod(token_grid(protocol.frames, size, size, encoder.patch_size, encoder.tubelet_size))
    return per_clip, per_clip * protocol.num_segments * max(1, len(protocol.layers))


def probe_flops(probe, tokens):
    """Count the operations of a forward pass of a probe over `tokens` tokens of one sample."""
    return stack_flops(tokens, probe.width, probe.depth - 1, probe.mlp_ratio) + 4 * tokens * probe.width**2


def _step_flops(probe, encoder, protocol, data, count):
    per_clip, tokens = _tokens(encoder, protocol, data.size)
    # A backward pass costs twice the forward pass; the encoder has none.
    encoding = 0.0 if data.tokens else protocol.num_segments * encoder_flops(encoder, per_clip)
    return data.batch_size * (encoding + 3 * count * probe_flops(probe, tokens))


def _summarize(protocol, sweep, abstract, num_classes, section, sha256):
    return [
        f"protocol {protocol.describe()}; {num_classes} classes",
        f"encoder sha256 {sha256[:12]}, frozen",
        describe_sweep(sweep, section, abstract),
    ]
