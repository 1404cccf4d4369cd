"""Networks and weights of a finished or interrupted pretraining run, for reading only."""

import functools
from typing import Any, NamedTuple

import jax
import ml_collections

from jepa_jax.models import MaskedPredictor, VideoEncoder, token_grid
from jepa_jax.tasks import pretrain
from jepa_jax.training import checkpoint
from jepa_jax.training.state import TrainState


class LoadedRun(NamedTuple):
    """A pretraining run as its newest checkpoint describes it.

    Attributes:
      config: ConfigDict it was trained with.
      step: batches consumed.
      encoder, predictor: networks that run on the platform at hand.
      params: `{"encoder": ..., "predictor": ...}`, on the first device.
      target_params: EMA weights of the encoder.
    """

    config: ml_collections.ConfigDict
    step: int
    encoder: VideoEncoder
    predictor: MaskedPredictor
    params: Any
    target_params: Any

    def initial_params(self):
        """Return the parameters of step 0, drawn again from the seed."""
        return _make_params(self.encoder, self.predictor)(jax.random.key(self.config.seed))


def config_from_json(tree):
    """Turn the JSON form of a config into a locked ConfigDict; JSON knows no tuples, so lists become tuples."""
    return ml_collections.ConfigDict(_with_tuples(tree)).lock()


def _with_tuples(value):
    if isinstance(value, dict):
        return {key: _with_tuples(item) for key, item in value.items()}
    return tuple(_with_tuples(item) for item in value) if isinstance(value, (list, tuple)) else value


def _make_params(encoder, predictor):
    return jax.jit(functools.partial(pretrain.init_params, encoder, predictor))


def load_run(path):
    """Load a pretraining run.

    Args:
      path: its workdir, the `checkpoints` folder in it, or one numbered checkpoint.

    Returns:
      `LoadedRun`.

    Raises:
      CheckpointError: if there is no checkpoint, or it is not of a pretraining run.
    """
    store, step = checkpoint.open_checkpoint(path)
    try:
        config = config_from_json(store.read_run(step)["config"])
        if config.task != "pretrain":
            raise checkpoint.CheckpointError(f"{store.directory} is of task {config.task!r}; needed: 'pretrain'")
        encoder, predictor = _models(config)
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here),
            jax.eval_shape(_make_params(encoder, predictor), jax.random.key(0)),
        )
        state = TrainState(step=(), params=abstract, target_params=abstract["encoder"], opt_state=(), guard=())
        params, target_params = store.restore_weights(step, state)
    finally:
        store.close()
    return LoadedRun(config, step, encoder, predictor, params, target_params)


def _models(config):
    """Build the networks; backend and remat of the training machine need not suit this one."""
    model, data = config.model, config.data
    # The clips of the first group, as in `pretrain.make_groups`, set the grid of sincos tables.
    section = min(
        (section for _, section in sorted(data.groups.items()) if section.batch_size),
        key=lambda section: section.kind != "video",
    )
    grid = token_grid(section.frames, data.size, data.size, model.patch_size, model.tubelet_size)
    return tuple(network.clone(attention="auto", remat="none") for network in pretrain.make_models(model, grid))
