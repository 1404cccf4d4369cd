"""Names of the outputs: one per file, the same in every run, and never the same twice."""

import collections
import glob
import os
from typing import NamedTuple

from jepa_jax.data import remote
from jepa_jax.data.listing import IMAGE_SUFFIXES, LIST_SUFFIXES, VIDEO_SUFFIXES, ListError, list_items

# Our own pictures are no sources, wherever the output folder lies.
PICTURE_ENDINGS = (".pca.png", ".pca.mp4")


class Entry(NamedTuple):
    """A file to embed.

    Attributes:
      path: absolute, or a URL.
      label: from a CSV, or None.
      name: of its outputs, below the output folder and without ending.
    """

    path: str
    label: int | None
    name: str


def list_entries(sources):
    """Find the files that sources mean and name their outputs.

    Below a folder, names are paths relative to it; other files are named by themselves. Files that
    would share a name keep their ending in it, or as many parent folders as tell them apart.

    Args:
      sources: files, folders, globs, and CSVs of path and label; also behind URLs.

    Returns:
      list of `Entry`, each file once.

    Raises:
      ListError: if a source does not exist or holds nothing.
    """
    found = {}
    for source in sources:
        items = list_items([source], VIDEO_SUFFIXES + IMAGE_SUFFIXES)
        items = [item for item in items if not item.path.lower().endswith(PICTURE_ENDINGS)]
        if not items:
            raise ListError(f"{source!r} holds only pictures of features, which are made here and are no sources")
        root = _root(source)
        for item in items:
            path = remote.absolute(item.path)
            label, _ = found.setdefault(path, (item.label, _relative(path, root)))
            if label != item.label and None not in (label, item.label):
                raise ListError(f"{path} is listed twice, with labels {label} and {item.label}")
    names = _without_suffix({path: relative for path, (_, relative) in found.items()})
    return [Entry(path, label, names[path]) for path, (label, _) in found.items()]


def _root(source):
    """Return the folder that names are relative to, or None where only the file's own name counts."""
    if remote.is_folder(source):
        return remote.absolute(source)
    if remote.is_file(source) or source.lower().endswith(LIST_SUFFIXES):
        return None
    fixed = source
    while glob.has_magic(fixed):
        fixed = os.path.dirname(fixed)
    return remote.absolute(fixed)


def _relative(path, root):
    return os.path.basename(path) if root is None else os.path.relpath(path, root)


def _without_suffix(relatives):
    """Shorten {path: relative name} to names without suffix, as far as they stay distinct."""
    groups = collections.defaultdict(list)
    for path, relative in relatives.items():
        groups[relative].append(path)
    distinct = {}
    for relative, paths in groups.items():
        # The same place below different folders: go up until the folders differ.
        common = os.path.commonpath([os.path.dirname(path) for path in paths])
        distinct |= {path: relative if len(paths) == 1 else os.path.relpath(path, common) for path in paths}
    stems = collections.Counter(os.path.splitext(name)[0] for name in distinct.values())
    names = {
        path: os.path.splitext(name)[0] if stems[os.path.splitext(name)[0]] == 1 else name
        for path, name in distinct.items()
    }
    clashes = [name for name, count in collections.Counter(names.values()).items() if count > 1]
    if clashes:
        raise ListError(f"several files would be stored as {clashes[0]!r}; embed their folders separately")
    return names
