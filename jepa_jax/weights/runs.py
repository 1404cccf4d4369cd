"""Weights of our own training runs, finished or not."""

import dataclasses

import jax
from etils import epath

from jepa_jax.data.clips import resized_side
from jepa_jax.models.spec import abstract_params, build, describe
from jepa_jax.training import checkpoint
from jepa_jax.training.state import TrainState
from jepa_jax.weights import native
from jepa_jax.weights.bundle import Bundle, Network, Preprocessing, Protocol, WeightsError

# Folder of a workdir with the networks that its run read and did not train.
_FROZEN = "frozen"


def model_card(networks, crop_size, frames, target=None, world_model=None, protocol=None, labels=None, trained=None,
               anticipation=None):
    """Say what a checkpoint's networks are, as JSON-able dict that `read` understands.

    Args:
      networks: dict from the names in `params` to their modules.
      crop_size: side of the training crops, pixels.
      frames: frames per clip in training.
      target: which of the networks has an EMA copy, or None.
      world_model, protocol, labels, anticipation: see `Bundle`.
      trained: JSON-able dict of what else decided the weights, compared at resume.
    """
    return {
        "networks": {name: describe(module) for name, module in networks.items()},
        "crop_size": crop_size,
        "frames": frames,
        "target": target,
        "world_model": world_model,
        "protocol": protocol and protocol.to_json(),
        "labels": labels and list(labels),
        "trained": trained,
        "anticipation": anticipation,
    }


def preprocessing(crop_size, frames):
    """Return the official evaluation preprocessing for a training resolution."""
    return Preprocessing(crop_size=crop_size, short_side=resized_side(crop_size), frames=frames)


def write_frozen(bundle, workdir):
    """Keep what a run reads and does not train beside its checkpoints, so that the workdir is whole.

    Args:
      bundle: `Bundle` of the frozen networks.
      workdir: of the run; nothing is written where an earlier start of the run did so.

    Raises:
      WeightsError: if the workdir holds other frozen networks, or cannot be written.
    """
    folder = epath.Path(workdir) / _FROZEN
    if not folder.exists():
        native.write(bundle, folder)
        return
    here, there = (native.card(found)["networks"] for found in (bundle, native.read(folder)))
    if here != there:
        raise WeightsError(
            f"{workdir} was started with other frozen weights than these "
            f"({', '.join(sorted(name for name in here | there if here.get(name) != there.get(name)))} differ): "
            "give the weights of its first start, or another --workdir"
        )


def read(path):
    """Read the newest checkpoint of a run.

    Args:
      path: its workdir, the `checkpoints` folder in it, or one numbered checkpoint.

    Returns:
      `Bundle` with the networks of `params`, the EMA copy of one, and what the run kept frozen.

    Raises:
      CheckpointError: if there is no checkpoint, or it does not fit its own description.
    """
    store, step = checkpoint.open_checkpoint(path)
    try:
        run = store.read_run(step)
        if "world_model" not in run.get("model", {}):
            raise WeightsError(
                f"{store.directory / str(step)} does not describe its networks; train it with this version"
            )
        card = run["model"]
        modules = {name: build(spec) for name, spec in card["networks"].items()}
        params, target_params = store.restore_weights(step, _abstract_state(modules, card["target"]))
    finally:
        store.close()
    params, target_params = jax.device_get((params, target_params))
    networks = {name: Network(module, params[name]) for name, module in modules.items()}
    if card["target"]:
        networks = {f"target_{card['target']}": Network(modules[card["target"]], target_params)} | networks
    workdir = store.directory.parent
    provenance = {"format": "run", "source": workdir.name, "step": step, "config": run["config"]}
    protocol = card.get("protocol")
    protocol = protocol and Protocol(**protocol | {"layers": tuple(protocol["layers"])})
    bundle = Bundle(networks, preprocessing(card["crop_size"], card["frames"]), provenance=provenance, protocol=protocol,
                    labels=card.get("labels") and tuple(card["labels"]), world_model=card["world_model"],
                    anticipation=card.get("anticipation"))
    return _with_frozen(bundle, workdir / _FROZEN)


def _with_frozen(bundle, folder):
    if not folder.exists():
        return bundle
    frozen = native.read(folder)
    return dataclasses.replace(
        bundle, networks=frozen.networks | bundle.networks, notes=(*frozen.notes, *bundle.notes),
        provenance=bundle.provenance | {"frozen": frozen.provenance},
    )


def _abstract_state(modules, target):
    # On the host, whatever devices there are: who wants them elsewhere puts them there.
    here = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    params = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here),
        {name: abstract_params(module) for name, module in modules.items()},
    )
    return TrainState(step=(), params=params, target_params=params[target] if target else {}, opt_state=(), guard=())
