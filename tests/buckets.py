"""File systems behind URLs for tests; `python tests/buckets.py ARGS` runs `prepare ARGS` with `folder://` known.

The in-memory file system ends with its process. Spawned workers import the script that started
them, so `folder://` is known to them too.
"""

import pathlib
import sys

import fsspec
from fsspec.implementations.local import LocalFileSystem


class FolderBehindUrl(LocalFileSystem):
    """A folder of this host that only the file system layer can read, and all processes share."""

    protocol = "folder"

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("folder://"))

    def unstrip_protocol(self, name):
        return f"folder://{name}"


fsspec.register_implementation("folder", FolderBehindUrl, clobber=True)


def upload(memory, folder, root):
    """Copy a folder into the in-memory file system."""
    for file in sorted(pathlib.Path(folder).rglob("*")):
        if file.is_file():
            memory.pipe(f"{root}/{file.relative_to(folder).as_posix()}", file.read_bytes())


def contents(memory, root):
    """Return what lies below a folder of the in-memory file system: bytes by relative name."""
    return {name.removeprefix(f"{root}/"): memory.cat_file(name) for name in memory.find(root)}


if __name__ == "__main__":
    from jepa_jax import prepare

    sys.exit(prepare.main(sys.argv[1:]))
