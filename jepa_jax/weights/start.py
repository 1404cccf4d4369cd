"""Weights of any format as the start of a training run."""

from jepa_jax.models.spec import describe
from jepa_jax.weights import store
from jepa_jax.weights.bundle import WeightsError, choose_encoder

# Read off the input while training, or used by sincos tables alone, whose shape is checked anyway.
_FREE = {"table_grid", "zero_init_mask_tokens"}


def read_start(path, encoder, predictor):
    """Read encoder, predictor and EMA encoder for pretraining.

    Args:
      path: anything `jepa_jax.weights.store.read` takes.
      encoder, predictor: the networks that will be trained; what weights do not show, such as
        the number of heads, is compared with them.

    Returns:
      (params, target_params) as nested dicts of host arrays, `params` with the keys encoder and
      predictor. Where there is one encoder only, both start from it.

    Raises:
      WeightsError: if a network is absent, or computes something else than those to be trained.
    """
    bundle = store.read(path)
    target = bundle.networks[choose_encoder(bundle.networks)]
    student = bundle.networks.get("encoder", target)
    if "predictor" not in bundle.networks:
        raise WeightsError(f"{path} has no predictor to train; it holds {', '.join(bundle.networks)}")
    found = {"encoder": student, "predictor": bundle.networks["predictor"]}
    _check_same(path, {name: (module, found[name].module) for name, module in (("encoder", encoder), ("predictor", predictor))})
    return {name: network.params for name, network in found.items()}, target.params


def read_action_predictor(path, predictor):
    """Read an action-conditioned predictor to go on with.

    Args:
      path: anything `jepa_jax.weights.store.read` takes.
      predictor: the network that will be trained, as in `read_start`.

    Returns:
      (`{"action_predictor": params}`, {}), host arrays.

    Raises:
      WeightsError: if it is absent, or computes something else than the one to be trained.
    """
    bundle = store.read(path)
    found = bundle.networks.get("action_predictor")
    if found is None:
        raise WeightsError(f"{path} has no action_predictor to train; it holds {', '.join(bundle.networks)}")
    _check_same(path, {"action_predictor": (predictor, found.module)})
    return {"action_predictor": found.params}, {}


def _check_same(path, pairs):
    """Raise WeightsError unless the networks (here, there) of every name compute the same."""
    problems = []
    for name, modules in pairs.items():
        here, there = map(describe, modules)
        problems += [
            f"{name}.{key}: {there[key]!r} in the weights, {here[key]!r} in this config"
            for key in here
            if key not in _FREE and here[key] != there[key]
        ]
    if problems:
        raise WeightsError(f"{path} holds other networks than this config describes:\n  " + "\n  ".join(problems))
