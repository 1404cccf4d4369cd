"""The loss that keeps latents from collapsing to a few directions."""

import jax
import jax.numpy as jnp
import numpy as np
import test_step
from compiling import fast_jit

from jepa_jax.tasks import pretrain
from jepa_jax.tasks.losses import correlation_loss, variance_loss


def test_correlations_count_collapse():
    rng = np.random.default_rng(0)
    free = rng.normal(size=(4, 5000, 8)).astype(np.float32)
    measure = fast_jit(correlation_loss)
    # Normalisation takes one of eight directions away.
    assert 0.1 < measure(free) < 0.2
    # One direction is left: all entries of the covariance are 1 or -1, so 8 * 7 / 8 are too many.
    np.testing.assert_allclose(measure(free[..., :1] * np.float32([1, -1] * 4)), 7.0, rtol=0.01)
    np.testing.assert_allclose(measure(100 * free), measure(free), rtol=1e-3)


def test_latents_that_are_alike_are_led_apart():
    same = np.random.default_rng(0).normal(size=(1, 8)).astype(np.float32)
    noise = np.random.default_rng(1).normal(size=(500, 8)).astype(np.float32)
    collapsed = lambda scale: same + scale * noise
    np.testing.assert_allclose(fast_jit(variance_loss)(collapsed(0.0)), 1.0, atol=0.01)
    assert fast_jit(variance_loss)(noise) < 0.01
    # How much is won where latents, so far alike but for a hundredth, differ twice as much.
    slope = lambda measure: -jax.grad(lambda scale: measure(same + scale * jnp.asarray(noise)))(0.01)
    assert slope(variance_loss) > 0.5 and slope(variance_loss) > 10 * abs(slope(correlation_loss))


def test_decorrelation_is_added_to_the_loss():
    encoder, predictor, groups = test_step.ENCODER, test_step.PREDICTOR, test_step.VIDEO
    params = fast_jit(lambda: pretrain.init_params(encoder, predictor, jax.random.key(0)))()
    batch = test_step._batch(groups)

    @fast_jit
    def losses(params):
        make = lambda **weights: pretrain.make_loss(encoder, predictor, groups, loss_exponent=1.0, monitor_tokens=32, **weights)
        return [make(**weights)(params, params["encoder"], batch) for weights in ({}, {"decorrelation": 0.5}, {"variance": 0.3})]

    (plain, official), *others = losses(params)
    for (more, aux), kind, weight in zip(others, ("correlation", "variance"), (0.5, 0.3)):
        found = [value for name, value in aux["losses"].items() if name.startswith(f"train/{kind}/video/")]
        assert len(found) == 2 and len(aux["losses"]) == len(official["losses"]) + 2
        np.testing.assert_allclose(more - plain, weight * sum(found) / 2, rtol=1e-3)
