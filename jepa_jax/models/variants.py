"""Named sizes of the encoder."""

from jepa_jax.models.encoder import VideoEncoder

# name: (width, depth, num_heads, mlp_ratio). Source: src/models/vision_transformer.py.
_SIZES = {
    "vit_tiny": (192, 12, 3, 4.0),
    "vit_small": (384, 12, 6, 4.0),
    "vit_base": (768, 12, 12, 4.0),
    "vit_large": (1024, 24, 16, 4.0),
    "vit_huge": (1280, 32, 16, 4.0),
    "vit_giant": (1408, 40, 16, 48 / 11),
    "vit_giant_xformers": (1408, 40, 22, 48 / 11),
    # Parity: the official constructors misspell the ratio (64/13), so it stays 4.
    "vit_gigantic": (1664, 48, 16, 4.0),
    "vit_gigantic_xformers": (1664, 48, 26, 4.0),
    # Ours, for demos and tests on a CPU.
    "vit_micro": (192, 6, 3, 4.0),
    "vit_nano": (128, 4, 2, 4.0),
}
_ROPE = "_rope"
NAMES = tuple(_SIZES) + tuple(name + _ROPE for name in _SIZES)


def encoder_size(name):
    """Look up a named size.

    Args:
      name: one of `NAMES`; the `_rope` forms are the same sizes with rotary
        positions preset.

    Returns:
      dict of `VideoEncoder` fields: width, depth, num_heads, mlp_ratio, and
      positions for the `_rope` forms.

    Raises:
      ValueError: if the name is unknown.
    """
    base = name.removesuffix(_ROPE)
    if base not in _SIZES:
        raise ValueError(f"model size {name!r} is unknown; choose one of {', '.join(NAMES)}")
    size = dict(zip(("width", "depth", "num_heads", "mlp_ratio"), _SIZES[base]))
    return size | ({"positions": "rope"} if name.endswith(_ROPE) else {})


def make_encoder(name, **fields):
    """Build a `VideoEncoder` of a named size; `fields` are its other attributes.

    Raises:
      ValueError: if the name is unknown, or `fields` contradict it.
    """
    size = encoder_size(name)
    for key in size.keys() & fields.keys():
        if fields[key] != size[key]:
            raise ValueError(f"{key}={fields[key]!r} contradicts {name!r}, which has {key}={size[key]!r}")
    return VideoEncoder(**(fields | size))
