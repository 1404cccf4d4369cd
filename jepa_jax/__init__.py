"""V-JEPA 2 in JAX and Flax: pretraining on video, for TPU and GPU pods and for laptops.

Shapes in docstrings use one alphabet: `B` batch, `T` or `F` frames, `H W` pixels,
`t h w` token grid, `N` tokens, `Kc Kt` context and target tokens, `D` width,
`K` heads, `d` channels per head. Video is channels-last, tokens are row-major
over (time, row, column). Units: pixels, seconds, frames per second.
"""

import importlib

__version__ = "0.1.0"

# Public names and where they live. They are imported when first used, so that data workers and
# `--help` stay free of JAX.
_PUBLIC = {
    "load": "jepa_jax.weights.load",
    "read_clip": "jepa_jax.data.clips",
    "Model": "jepa_jax.weights.model",
    "Features": "jepa_jax.weights.model",
    "Hints": "jepa_jax.weights.hints",
    "CheckpointError": "jepa_jax.training.checkpoint",
    "WeightsError": "jepa_jax.weights.bundle",
    "DataError": "jepa_jax.data.errors",
}
__all__ = list(_PUBLIC)


def __getattr__(name):
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(_PUBLIC)}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__():
    return [*globals(), *_PUBLIC]
