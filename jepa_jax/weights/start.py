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
    problems = []
    for name, module in (("encoder", encoder), ("predictor", predictor)):
        here, there = describe(module), describe(found[name].module)
        problems += [
            f"{name}.{key}: {there[key]!r} in the weights, {here[key]!r} in this config"
            for key in here
            if key not in _FREE and here[key] != there[key]
        ]
    if problems:
        raise WeightsError(f"{path} holds other networks than this config describes:\n  " + "\n  ".join(problems))
    return {name: network.params for name, network in found.items()}, target.params
