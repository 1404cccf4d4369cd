"""Where numbers must not be narrower than float32."""

import jax.numpy as jnp


def widen(x):
    """Cast to float32, or leave a wider float as it is.

    Norms, softmax, rotations and losses go through here, so bfloat16 networks compute
    them in float32 and float64 networks (used to verify parity) stay float64 throughout.
    """
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
