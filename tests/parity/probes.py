"""Attentive probes equal the official ones, and their weights survive conversion."""

import jax.numpy as jnp
import numpy as np
import pytest

from compiling import fast_jit
from jepa_jax.models import AttentiveProbe, convert
from parity.files import load, subtree

PROBES = (
    "attentive_classifier_d1", "attentive_classifier_d4", "attentive_anticipation", "attentive_anticipation_actiononly",
)


def build_probe(config, **fields):
    """Build the probe a golden config describes."""
    if "num_classes" in config:
        outputs = (("label", config["num_classes"]),)
    else:
        classes = zip(("verb", "noun", "action"), config["verb_noun_action_classes"])
        outputs = tuple((name, number) for name, number in classes if number)
    return AttentiveProbe(
        config["embed_dim"], config["depth"], config["num_heads"], num_queries=len(outputs), outputs=outputs,
        **({"norm_eps": config["norm_eps"]} | fields),
    )


@pytest.mark.parametrize("name", PROBES)
def test_probe(golden, name):
    arrays, config = load(golden, name)
    probe = build_probe(config)
    params = {"params": convert.probe_from_official(subtree(arrays, "params/"))}
    tokens = jnp.asarray(arrays["in/x"])
    pooled = fast_jit(lambda params, x: probe.apply(params, x, method="pool"))(params, tokens)
    np.testing.assert_allclose(pooled, arrays["out/pooled"], atol=2e-5, rtol=2e-5)
    expected = subtree(arrays, "out/")
    del expected["pooled"]
    if "logits" in expected:
        expected["label"] = expected.pop("logits")
    logits = fast_jit(probe.apply)(params, tokens)
    assert logits.keys() == expected.keys()
    for output, value in expected.items():
        np.testing.assert_allclose(logits[output], value, atol=2e-5, rtol=2e-5, err_msg=output)


@pytest.mark.parametrize("name", PROBES)
def test_probe_weights_round_trip(golden, name):
    state = subtree(load(golden, name)[0], "params/")
    back = convert.probe_to_official(convert.probe_from_official(state))
    assert back.keys() == state.keys()
    for key, value in back.items():
        np.testing.assert_array_equal(value, state[key], key)


@pytest.mark.parametrize("name", ["probe_d1", "probe_d2"])
@pytest.mark.parametrize("factor, close", [(1, True), (10, False), (0.1, False)])
def test_norm_eps_of_probes(golden, name, factor, close):
    """Encoders use a tenth of the epsilon of probes, so mixing them up shows."""
    arrays, config = load(golden, "norm_eps")
    probe = build_probe(config[name], norm_eps=config[name]["norm_eps"] * factor)
    params = {"params": convert.probe_from_official(subtree(arrays, f"params/{name}/"))}
    logits = fast_jit(probe.apply)(params, arrays[f"in/{name}/x"])["label"]
    assert np.allclose(logits, arrays[f"out/{name}/logits"], atol=1e-4) == close
