"""Frozen encoders that have learnt nothing: what a trained one is to be compared with."""

import jax
import jax.numpy as jnp
import numpy as np

from jepa_jax.weights.bundle import Bundle, Network, abstract_tree, choose_encoder

RANDOM, PATCHES = "random", "patches"
KINDS = (RANDOM, PATCHES)
# Blocks need at least one channel per rotary axis and direction.
_HEAD_WIDTH = 64


def make_control(bundle, kind, seed=0):
    """Make an encoder that sees what another one sees and has learnt nothing.

    Args:
      bundle: `Bundle` with an encoder.
      kind: `RANDOM`: the same network, newly initialised; `PATCHES`: hands on the pixels of every patch, normalised.
      seed: of the random one.

    Returns:
      `Bundle` of this encoder.

    Raises:
      ValueError: the kind is unknown.
    """
    if kind not in KINDS:
        raise ValueError(f"there is no control {kind!r}; choose one of {', '.join(KINDS)}")
    module = bundle.networks[choose_encoder(bundle.networks)].module
    if kind == RANDOM:
        params = random_weights(module, seed)
    else:
        module, params = _patches(module)
    params = jax.tree.map(np.asarray, params)
    return Bundle({"encoder": Network(module, params)}, bundle.preprocessing, provenance={"control": kind, "seed": seed})


def random_weights(encoder, seed):
    """Draw the weights of an encoder that was never trained.

    Args:
      encoder: `VideoEncoder`.
      seed: of the weights.

    Returns:
      Nested dict of float32 device arrays.
    """
    clip = jnp.zeros((1, encoder.tubelet_size, encoder.patch_size, encoder.patch_size, 3))
    return jax.jit(lambda key: encoder.init(key, clip)["params"])(jax.random.key(seed))


def _patches(module):
    """Return a network of one block that changes nothing, around an embedding that changes nothing, and its weights."""
    width = module.tubelet_size * module.patch_size**2 * 3
    heads = max(1, width // _HEAD_WIDTH)
    module = module.clone(width=width, depth=1, num_heads=heads, mlp_ratio=1.0)
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract_tree(module))
    params["patch_embed"]["kernel"] = np.eye(width, dtype=np.float32)
    params["norm"]["scale"] = np.ones(width, np.float32)
    return module, params
