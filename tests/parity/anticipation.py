"""Features of the future, the loss on them and class-mean recall equal the official ones."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compiling import fast_jit
from jepa_jax.evals.classification import class_recall, ranks
from jepa_jax.evals.anticipation import only_valid
from jepa_jax.models import anticipate, convert, furthest_grid
from jepa_jax.tasks.losses import focal_loss
from jepa_jax.weights.anticipation import Anticipation
from parity.files import load, subtree
from parity.networks import build_encoder, build_predictor

_TOLERANCE = dict(atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("variant", ["steps1", "steps2", "noenc", "nopred"])
def test_features_of_the_future(golden, variant):
    arrays, config = load(golden, "anticipation_wrapper")
    encoder, predictor = build_encoder(config["encoder"]), build_predictor(config["predictor"])
    params = {"encoder": convert.encoder_from_official(subtree(arrays, "params/encoder/"), encoder),
              "predictor": convert.predictor_from_official(subtree(arrays, "params/predictor/"))}
    options = config["variants"][variant]
    seeing = Anticipation(
        frames=config["encoder"]["num_frames"], fps=config["frames_per_second"], crop_size=config["crop_size"],
        output_frames=options.get("num_output_frames", 2), num_steps=options.get("num_steps", 1),
        use_encoder=not options.get("no_encoder", False), use_predictor=not options.get("no_predictor", False),
    )
    video, seconds = jnp.asarray(np.moveaxis(arrays["in/video"], 1, -1)), arrays["in/anticipation_times"]
    grid = furthest_grid(encoder, seeing, seconds.max())
    run = fast_jit(lambda seeing, params, video, seconds: anticipate(encoder, predictor, params, video, seconds, seeing, grid), static_argnums=0)
    np.testing.assert_allclose(run(seeing, params, video, seconds), arrays[f"out/{variant}"], **_TOLERANCE)
    if variant == "steps1":
        other = run(dataclasses.replace(seeing, mask_index=0), params, video, seconds)
        assert not np.allclose(other, arrays[f"out/{variant}"], atol=1e-3)


def test_focal_loss(golden):
    arrays, config = load(golden, "metrics")
    logits, labels = arrays["in/focal_logits"], arrays["in/focal_labels"]
    np.testing.assert_allclose(focal_loss(logits, labels), arrays["out/focal_none"], rtol=1e-5, atol=1e-9)
    loss, grad = jax.value_and_grad(lambda logits: focal_loss(logits, labels).sum())(logits)
    np.testing.assert_allclose(loss, arrays["out/focal_default"], rtol=1e-5)
    np.testing.assert_allclose(grad, arrays["out/focal_default_grad"], rtol=1e-5, atol=1e-8)
    for name, options in config["focal_variants"].items():
        if name in ("noalpha", "gamma0", "gamma3"):
            np.testing.assert_allclose(focal_loss(logits, labels, **options).sum(), arrays[f"out/focal_{name}"], rtol=1e-5, err_msg=name)


def test_class_mean_recall_among_valid_classes(golden):
    arrays, config = load(golden, "metrics")
    logits = arrays["in/logits"].reshape(-1, config["num_classes"])
    labels = arrays["in/labels"].reshape(-1).astype(np.int64)
    for kind, scores in (("all", logits), ("valid", only_valid(logits, arrays["in/valid_classes"]))):
        np.testing.assert_allclose(100 * np.nanmean(class_recall(scores, labels, 5)), arrays[f"out/recall5_{kind}"][-1], rtol=1e-5)
        hits = ranks(scores, labels) < 5
        np.testing.assert_allclose(100 * hits.mean(), arrays[f"out/accuracy5_{kind}"][-1], rtol=1e-5)
        np.testing.assert_array_equal(np.bincount(labels[hits], minlength=config["num_classes"]), arrays[f"out/tp5_{kind}"])
