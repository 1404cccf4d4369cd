"""Layer normalisation, inside the networks and of the latents that they are compared on."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jepa_jax.models.precision import widen

# Parity: the norm of latents has PyTorch's default eps, unlike the networks.
LATENT_NORM_EPS = 1e-5


class LayerNorm(nn.Module):
    """Layer normalisation in float32 (or wider) with the two-pass variance.

    Attributes:
      eps: added to the variance. 1e-6 in encoder and predictor.
      affine: learn scale and bias.
      dtype: dtype of the result.
      param_dtype: dtype of scale and bias.
    """

    eps: float = 1e-6
    affine: bool = True
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        x = widen(x)
        x = x - jnp.mean(x, axis=-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.eps)
        if self.affine:
            shape = (x.shape[-1],)
            scale = self.param("scale", nn.initializers.ones, shape, self.param_dtype)
            x = x * scale + self.param("bias", nn.initializers.zeros, shape, self.param_dtype)
        return x.astype(self.dtype)


def normalize_latents(latents):
    """Normalise every latent vector, without learned scale and bias: what predictions are compared to.

    Args:
      latents: `[..., D]` in any float dtype.

    Returns:
      `[..., D]` in float32 or wider.
    """
    dtype = jnp.promote_types(latents.dtype, jnp.float32)
    return LayerNorm(LATENT_NORM_EPS, affine=False, dtype=dtype).apply({}, latents)
