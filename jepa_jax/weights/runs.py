"""Weights of our own training runs, finished or not."""

import jax

from jepa_jax.data.clips import resized_side
from jepa_jax.models.spec import abstract_params, build, describe
from jepa_jax.training import checkpoint
from jepa_jax.training.state import TrainState
from jepa_jax.weights.bundle import Bundle, Network, Preprocessing, WeightsError


def model_card(networks, crop_size, frames):
    """Say what a checkpoint's networks are, as JSON-able dict that `read` understands.

    Args:
      networks: dict from the names in `params` to their modules.
      crop_size: side of the training crops, pixels.
      frames: frames per clip in training.
    """
    networks = {name: describe(module) for name, module in networks.items()}
    return {"networks": networks, "crop_size": crop_size, "frames": frames}


def preprocessing(crop_size, frames):
    """Return the official evaluation preprocessing for a training resolution."""
    return Preprocessing(crop_size=crop_size, short_side=resized_side(crop_size), frames=frames)


def read(path):
    """Read the newest checkpoint of a run.

    Args:
      path: its workdir, the `checkpoints` folder in it, or one numbered checkpoint.

    Returns:
      `Bundle` with the networks of `params` and `target_encoder`.

    Raises:
      CheckpointError: if there is no checkpoint, or it does not fit its own description.
    """
    store, step = checkpoint.open_checkpoint(path)
    try:
        run = store.read_run(step)
        if "model" not in run:
            raise WeightsError(
                f"{store.directory / str(step)} does not describe its networks; train it with this version"
            )
        modules = {name: build(spec) for name, spec in run["model"]["networks"].items()}
        params, target_params = store.restore_weights(step, _abstract_state(modules))
    finally:
        store.close()
    params, target_params = jax.device_get((params, target_params))
    networks = {name: Network(module, params[name]) for name, module in modules.items()}
    networks = {"target_encoder": Network(modules["encoder"], target_params)} | networks
    provenance = {
        "format": "run",
        "source": store.directory.resolve().parent.name,
        "step": step,
        "config": run["config"],
    }
    return Bundle(networks, preprocessing(run["model"]["crop_size"], run["model"]["frames"]), provenance=provenance)


def _abstract_state(modules):
    # On the host, whatever devices there are: who wants them elsewhere puts them there.
    here = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    params = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here),
        {name: abstract_params(module) for name, module in modules.items()},
    )
    return TrainState(step=(), params=params, target_params=params["encoder"], opt_state=(), guard=())
