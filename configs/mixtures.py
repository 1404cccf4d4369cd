"""The mixtures of the paper and of the released configs: folders of shards and their shares.

Folder names are placeholders under `data.root`; keep them, or set `data.groups.*.paths`.
Nobody can rebuild VideoMix22M exactly: most of its sources are lists of links that rot.
"""

# Share of all clips. Source: paper, table 1 (VideoMix22M).
_VM22M = {
    "video": {"ssv2": 0.056, "k710": 0.188, "howto100m": 0.318, "yt1b": 0.188},
    "image": {"imagenet": 0.250},
}
# Source: configs/train/*/*.yaml; the table's first three, renormalised and rounded there.
_RELEASED = {"video": {"k710": 0.335, "ssv2": 0.100, "howto100m": 0.565}}

NAMES = ("own", "released", "vm22m")
_TABLES = {"released": _RELEASED, "vm22m": _VM22M}


def set_mixture(config, name):
    """Fill the groups `video` and `image` of a config with a mixture, in place.

    Clips per step stay as many as `video` had. Each kind gets its share of them as a batch of its
    own; its loss counts by its clips, as in one batch of both.

    Args:
      config: as from `common.base_config`.
      name: 'own' leaves everything as it is; 'released' and 'vm22m' are the tables above.
    """
    if name not in NAMES:
        raise ValueError(f"mixture {name!r} is unknown; choose one of {', '.join(NAMES)}")
    if name == "own":
        return
    table = _TABLES[name]
    config.data.root = "shards"
    clips = config.data.groups.video.batch_size
    everything = sum(weight for sources in table.values() for weight in sources.values())
    for kind, sources in table.items():
        share = sum(sources.values()) / everything
        config.data.groups[kind].update({
            "batch_size": max(1, round(clips * share)), "paths": tuple(sources), "weights": tuple(sources.values()),
        })
