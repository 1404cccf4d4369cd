"""What is known of the released files and of the published protocols.

Source: README.md, src/hub/backbones.py, configs/eval/*.
"""

from typing import NamedTuple

from jepa_jax.weights.bundle import Protocol, WeightsError


class Released(NamedTuple):
    """A released `.pt` file.

    Attributes:
      size: named size of its encoder; for a probe, of the encoder it was trained on.
      crop_size: side of the input in the last phase of training, pixels.
      protocol: key of `PROTOCOLS`, for a probe.
    """

    size: str
    crop_size: int
    protocol: str | None = None


_L, _H, _G = "vit_large", "vit_huge", "vit_giant_xformers"
FILES = {
    "vitl.pt": Released(_L, 256),
    "vith.pt": Released(_H, 256),
    "vitg.pt": Released(_G, 256),
    "vitg-384.pt": Released(_G, 384),
    "vjepa2-ac-vitg.pt": Released(_G, 256),
    "ssv2-vitl-16x2x3.pt": Released(_L, 256, "ssv2-vitl"),
    "ssv2-vitg-384-64x2x3.pt": Released(_G, 384, "ssv2-vitg384"),
    "diving48-vitl-256.pt": Released(_L, 256, "diving48-vitl"),
    "diving48-vitg-384-32x4x3.pt": Released(_G, 384, "diving48-vitg384"),
    "ek100-vitl-256.pt": Released(_L, 256),
    "ek100-vitg-384.pt": Released(_G, 384),
}
URL = "https://dl.fbaipublicfiles.com/vjepa2/"

# Names that are ambiguous by shape go to the size that was released.
PREFERRED_SIZES = ("vit_giant_xformers", "vit_gigantic_xformers")
# Heads by (kind of network, width); weights do not show them. Every released probe has 16,
# whatever its encoder has.
HEADS = {("predictor", 384): 12, ("action_predictor", 1024): 16} | {
    ("probe", width): 16 for width in (1024, 1280, 1408)
}

# Blocks whose outputs multi-level probes take.
_LEVELS = {"vitl": (17, 19, 21, 23), "vitg384": (24, 29, 34, 39)}


def _protocols():
    # name: (frames, step for ViT-L), (frames, step for ViT-g at 384), segments, views, several levels.
    tasks = {
        "ssv2": ((16, 4), (64, 2), 2, 3, False),
        "k400": ((16, 4), (16, 4), 8, 3, False),
        "coin": ((16, 4), (16, 4), 8, 3, False),
        "diving48": ((32, 2), (32, 2), 4, 3, True),
        "jester": ((32, 2), (32, 2), 4, 3, True),
        # Pictures, repeated for so many frames.
        "imagenet": ((16, 1), (18, 1), 1, 1, False),
    }
    protocols = {}
    for task, (large, giant, segments, views, levels) in tasks.items():
        for model, crop, (frames, step) in (("vitl", 256, large), ("vitg384", 384, giant)):
            name = f"{task}-{model}"
            protocols[name] = Protocol(name, frames, step, segments, views, crop, _LEVELS[model] if levels else ())
    return protocols


# Segments x views x frames of the published numbers. Source: spec of each task in configs/eval/.
PROTOCOLS = _protocols()


def find_protocol(name):
    """Look up a published protocol.

    Raises:
      WeightsError: if the name is unknown.
    """
    if name not in PROTOCOLS:
        raise WeightsError(f"protocol {name!r} is unknown; choose one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]
