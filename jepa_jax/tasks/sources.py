"""Sources of training data, as configs name them."""

from jepa_jax.data import copies, remote
from jepa_jax.data.specs import SourceSpec


def make_sources(root, section, name):
    """Build `SourceSpec`s from the `paths` and `weights` of a config section.

    Args:
      root: put before relative paths.
      section: ConfigDict.
      name: of the section, for messages.

    Raises:
      ValueError: if there are not as many weights as paths.
    """
    if len(section.paths) != len(section.weights):
        raise ValueError(f"{name} has {len(section.paths)} paths and {len(section.weights)} weights")
    return tuple(SourceSpec((remote.join(root, path),), weight) for path, weight in zip(section.paths, section.weights))


def make_cache(data):
    """Build the cache of remote shards from the `data` section of a config."""
    return copies.make_cache(data.cache_dir, data.cache_gib)
