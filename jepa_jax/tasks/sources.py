"""Sources of training data, as configs name them."""

import contextlib

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
        raise ValueError(
            f"{name} has {len(section.paths)} paths, {section.paths}, and {len(section.weights)} weights, "
            f"{section.weights}; give one weight for every path. A flag given twice, such as --config.{name}.paths, adds "
            "to what it gave before"
        )
    return tuple(SourceSpec((remote.join(root, path),), weight) for path, weight in zip(section.paths, section.weights))


@contextlib.contextmanager
def naming_root(root):
    """Add to the error for missing shards where relative paths are looked for; `root` as in `make_sources`."""
    try:
        yield
    except FileNotFoundError as error:
        where = f"data.root, which is {root!r}" if root else "the current folder, as data.root is not set"
        raise FileNotFoundError(f"{error}\nRelative paths of shards lie under {where}") from error


def make_cache(data):
    """Build the cache of remote shards from the `data` section of a config."""
    return copies.make_cache(data.cache_dir, data.cache_gib)
