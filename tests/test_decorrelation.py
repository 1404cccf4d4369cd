"""The loss that keeps latents from collapsing to a few directions."""

import jax
import numpy as np
import test_step
from compiling import fast_jit

from jepa_jax.tasks import pretrain
from jepa_jax.tasks.losses import correlation_loss


def test_correlations_count_collapse():
    rng = np.random.default_rng(0)
    free = rng.normal(size=(4, 5000, 8)).astype(np.float32)
    measure = fast_jit(correlation_loss)
    # Normalisation takes one of eight directions away.
    assert 0.1 < measure(free) < 0.2
    # One direction is left: all entries of the covariance are 1 or -1, so 8 * 7 / 8 are too many.
    np.testing.assert_allclose(measure(free[..., :1] * np.float32([1, -1] * 4)), 7.0, rtol=0.01)
    np.testing.assert_allclose(measure(100 * free), measure(free), rtol=1e-3)


def test_decorrelation_is_added_to_the_loss():
    encoder, predictor, groups = test_step.ENCODER, test_step.PREDICTOR, test_step.VIDEO
    params = fast_jit(lambda: pretrain.init_params(encoder, predictor, jax.random.key(0)))()
    batch = test_step._batch(groups)

    @fast_jit
    def losses(params):
        make = lambda weight: pretrain.make_loss(encoder, predictor, groups, loss_exponent=1.0, monitor_tokens=32,
                                                 decorrelation=weight)
        return [make(weight)(params, params["encoder"], batch) for weight in (0.0, 0.5)]

    (plain, official), (more, aux) = losses(params)
    found = [value for name, value in aux["losses"].items() if name.startswith("train/correlation/video/")]
    assert len(found) == 2 and not any("correlation" in name for name in official["losses"])
    np.testing.assert_allclose(more - plain, 0.5 * sum(found) / 2, rtol=1e-3)
