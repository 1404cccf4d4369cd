"""Networks and weights of a finished or interrupted pretraining run, for reading only."""

import functools
from typing import Any, NamedTuple

import jax
import ml_collections

from jepa_jax.models import MaskedPredictor, VideoEncoder
from jepa_jax.tasks import pretrain
from jepa_jax.weights import runs
from jepa_jax.weights.bundle import WeightsError


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
        make = functools.partial(pretrain.init_params, self.encoder, self.predictor)
        return jax.jit(make)(jax.random.key(self.config.seed))


def config_from_json(tree):
    """Turn the JSON form of a config into a locked ConfigDict; JSON knows no tuples, so lists become tuples."""
    return ml_collections.ConfigDict(_with_tuples(tree)).lock()


def _with_tuples(value):
    if isinstance(value, dict):
        return {key: _with_tuples(item) for key, item in value.items()}
    return tuple(_with_tuples(item) for item in value) if isinstance(value, (list, tuple)) else value


def load_run(path):
    """Load a pretraining run.

    Args:
      path: its workdir, the `checkpoints` folder in it, or one numbered checkpoint.

    Returns:
      `LoadedRun`.

    Raises:
      CheckpointError: if there is no checkpoint, or it does not fit its description.
      WeightsError: if it is not of a pretraining run.
    """
    bundle = runs.read(path)
    config = config_from_json(bundle.provenance["config"])
    if config.task != "pretrain":
        raise WeightsError(f"{path} is of task {config.task!r}; needed: 'pretrain'. A world model is shown by `python -m "
                           "jepa_jax.viz curves` and, on held-out trajectories, `python -m jepa_jax.evaluate rollout`")
    dtype = config.model.dtype
    encoder, predictor = (bundle.networks[name].module.clone(dtype=dtype) for name in ("encoder", "predictor"))
    params = {name: jax.device_put(bundle.networks[name].params) for name in ("encoder", "predictor")}
    target_params = jax.device_put(bundle.networks["target_encoder"].params)
    return LoadedRun(config, bundle.provenance["step"], encoder, predictor, params, target_params)
