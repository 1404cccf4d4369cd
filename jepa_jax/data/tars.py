"""Images inside tar files: listed once, then read each from its place, without unpacking."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator, Sequence
from typing import BinaryIO, NamedTuple

from jepa_jax.data import folders, remote
from jepa_jax.data.errors import DataError
from jepa_jax.data.listing import IMAGE_SUFFIXES, Item, ListError, Rejected, list_items

_SUFFIX = ".tar"
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
_REASON = "unreadable tar member"


class Member(NamedTuple):
    """Name one file in a tar: where its bytes begin in the (outer) tar, and how many there are."""

    tar: str
    member: str
    offset: int
    size: int
    label: int | None = None

    @property
    def name(self) -> str:
        """Name the member in reports and records."""
        return folders.printable(f"{self.tar}!{self.member}")


def list_images(sources: Sequence[str]) -> list[Item | Member | Rejected]:
    """Expand sources to image files and images in tar files.

    Args:
        sources: as in `listing.list_items`; a tar stands for the images in it, in
            the tars inside it too (ImageNet is such a tar).

    Returns:
        The items; a place where a tar cannot be read further is rejected as
        'unreadable tar member', a tar in a folder or list that is compressed or holds
        no image as 'compressed tar' or 'tar without images'.

    Raises:
        ListError: as in `listing.list_items`, or a tar that is named itself is compressed
            or holds no image.
    """
    named = {os.fspath(source) for source in sources}
    items: list[Item | Member | Rejected] = []
    for item in list_items(sources, (*IMAGE_SUFFIXES, _SUFFIX, *_COMPRESSED)):
        if not item.path.lower().endswith((_SUFFIX, *_COMPRESSED)):
            items.append(item)
            continue
        try:
            items += _list_tar(item.path)
        except DataError as error:
            if item.path in named:
                raise ListError(str(error)) from error
            items.append(Rejected(item.name, error.reason, str(error)))
    return items


def _list_tar(path: str) -> list[Member | Rejected]:
    if path.lower().endswith(_COMPRESSED):
        raise DataError(
            "compressed tar",
            f"{path} is compressed, so that its members cannot be reached one by one; images hardly compress: "
            f"unpack it to a plain {_SUFFIX} first, for example with gunzip",
        )
    try:
        with remote.open_binary(path) as file:
            found = list(_members(file, path, "", 0, file.seek(0, os.SEEK_END)))
    except OSError as error:
        raise DataError("unreadable file", f"{path} cannot be read: {error.strerror or error}") from error
    if not found:
        raise DataError("tar without images", f"{path} holds no file ending in {', '.join(IMAGE_SUFFIXES)}")
    return found


def _members(file: BinaryIO, path: str, prefix: str, start: int, end: int) -> Iterator[Member | Rejected]:
    """Walk the tar at start .. end of a file, and the tars in it."""
    place = folders.printable(f"{path}!{prefix}" if prefix else path)
    file.seek(start)
    try:
        tar = tarfile.TarFile(fileobj=file, mode="r")
        for info in tar:
            name = os.path.basename(info.name).lower()
            if not info.isreg() or name.startswith("."):
                continue
            if name.endswith(_SUFFIX):
                # Only headers are read here, so the walk of the outer tar must find its place again.
                yield from _members(file, path, f"{prefix}{info.name}!", info.offset_data, info.offset_data + info.size)
            elif name.endswith(IMAGE_SUFFIXES):
                yield Member(path, prefix + info.name, info.offset_data, info.size)
        stopped = tar.offset
    except tarfile.TarError as error:
        yield Rejected(place, _REASON, f"{place}: {error}; what follows in this tar is lost")
        return
    # The library takes a damaged header for the end; a real end is a block of zeros.
    file.seek(stopped)
    if any(file.read(min(tarfile.BLOCKSIZE, max(0, end - stopped)))):
        yield Rejected(place, _REASON, f"{place}: the header at byte {stopped} is damaged; what follows is lost")


def read_member(member: Member) -> bytes:
    """Read the bytes of a member.

    Args:
        member: of `list_images`.

    Returns:
        Its content.

    Raises:
        DataError: 'missing file', 'unreadable file', 'unreadable tar member', or as in `remote.read_range`.
    """
    try:
        data = remote.read_range(member.tar, member.offset, member.size)
    except FileNotFoundError as error:
        raise DataError("missing file", f"{member.tar}: no such file") from error
    except OSError as error:
        raise DataError("unreadable file", f"{member.tar}: {error.strerror}") from error
    if len(data) < member.size:
        raise DataError(_REASON, f"{member.name}: the tar ends after {len(data)} of its {member.size} bytes")
    return data
