"""Weights of any format as the start of a training run."""

from jepa_jax.models.spec import build, describe
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


def read_action_predictor(path, predictor, on_read=lambda path, bundle: None):
    """Read an action-conditioned predictor to go on with.

    Args:
      path: anything `jepa_jax.weights.store.read` takes.
      predictor: the network that will be trained, as in `read_start`.
      on_read: called with the path and the `Bundle`, which may say what the weights were trained on.

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
    on_read(path, bundle)
    return {"action_predictor": found.params}, {}


def check_networks(path, card, then):
    """Compare the networks to be trained with those of another run, or of an earlier start of the same.

    Args:
      path: of the run, for the message.
      card, then: `runs.model_card` of this run and of that one.

    Raises:
      WeightsError: if they compute something else; tensors of the same shapes do not show that.
    """
    _check_described(path, card["networks"], {name: describe(build(spec)) for name, spec in then["networks"].items()})


def _check_same(path, pairs):
    """Raise WeightsError unless the networks (here, there) of every name compute the same."""
    here, there = ({name: describe(pair[at]) for name, pair in pairs.items()} for at in (0, 1))
    _check_described(path, here, there)


def _check_described(path, here, there):
    problems = [
        f"{name}.{key}: {there[name].get(key)!r} in the weights, {value!r} in this config"
        for name in here
        for key, value in here[name].items()
        if key not in _FREE and there[name].get(key) != value
    ]
    if problems:
        raise WeightsError(f"{path} holds other networks than this config describes:\n  " + "\n  ".join(problems))
