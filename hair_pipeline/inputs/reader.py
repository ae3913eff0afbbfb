"""The one way to open a file that the catalog names, whether it lies in a folder or in an archive.

Belongs here: bytes of input files, and whether a file that could not be read may be readable another time. Does not
belong here: their content.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from hair_pipeline.files import UnreadableImage, decode_image
from hair_pipeline.inputs.archives import MAX_ENTRY_BYTES, SEPARATOR, SUFFIX, ArchiveError, read_entry

_MARK = SUFFIX + SEPARATOR
_LASTING = (errno.EINVAL, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
_noted: list[OSError] | None = None


def in_archive(path: str) -> bool:
    """Does the path lead into an archive?"""
    return _MARK in path.lower()


def split_location(path: str) -> tuple[str, list[str]]:
    """A path -> the path of the file on disk and, inside it, the chain of entry names from the outside in."""
    parts: list[str] = []
    rest = path
    while (at := rest.lower().find(_MARK)) >= 0:
        parts.append(rest[: at + len(SUFFIX)])
        rest = rest[at + len(_MARK) :]
    parts.append(rest)
    return parts[0], parts[1:]


def read_bytes(root: Path, path: str, limit: int = MAX_ENTRY_BYTES) -> bytes:
    """The bytes of an input file, at most the first `limit`.

    Args:
        root: the input's root. path: posix, relative to it; `a.zip!/b.zip!/c.jpg` leads into archives.

    Raises:
        OSError: it is missing or cannot be read, also inside an archive.
    """
    file, chain = split_location(path)
    if not chain:
        return read_file(root, path, limit)
    try:
        return read_entry(root / file, chain, limit)
    except OSError as error:
        _note(error)
        raise


def read_file(root: Path, path: str, limit: int = MAX_ENTRY_BYTES) -> bytes:
    """The bytes of a file in a folder, at most the first `limit`.

    Raises:
        OSError: it is missing or cannot be read.
    """
    try:
        return _read(root, path, limit)
    except OSError as error:
        _note(error)
        raise


def read_if_there(root: Path, path: str, limit: int = MAX_ENTRY_BYTES) -> bytes | None:
    """As `read_file`, for a file that need not exist: None then.

    Raises:
        OSError: it is there and cannot be read.
    """
    try:
        return _read(root, path, limit)
    except FileNotFoundError:
        return None
    except OSError as error:
        _note(error)
        raise


def _read(root: Path, path: str, limit: int) -> bytes:
    with open_regular(f"{root}/{path}") as stream:
        return stream.read(limit)


def open_regular(path: str) -> BinaryIO:
    """Open a file to read its bytes; a pipe, a device or a folder at its place is refused and never waited for.

    Raises:
        OSError: it is missing, cannot be read or is no regular file.
    """
    return open(path, "rb", opener=_open_regular)


def _open_regular(path: str, flags: int) -> int:
    handle = os.open(path, flags | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "not a regular file", path)
    return handle


def read_spread(root: Path, path: str, size: int, blocks: int) -> list[bytes]:
    """Blocks of `size` bytes of an input file, evenly spread, the last one at its end. Errors as `read_bytes`."""
    try:
        with io.BytesIO(read_bytes(root, path)) if in_archive(path) else open_regular(f"{root}/{path}") as file:
            last = max(0, file.seek(0, os.SEEK_END) - size)
            found = []
            for number in range(1, blocks + 1):
                file.seek(last * number // blocks)
                found.append(file.read(size))
            return found
    except OSError as error:
        _note(error)
        raise


@contextmanager
def passing_faults() -> Iterator[list[OSError]]:
    """Collects the errors of reads, inside, that say nothing lasting about the file: the next try may succeed.

    So do all but those of a damaged archive, of a link that leads nowhere, and of what is no file. A file that was
    listed and is gone when it is read counts too: a network drive that went away comes back with the same files.
    """
    global _noted
    outer, faults = _noted, list[OSError]()
    _noted = faults
    try:
        yield faults
    finally:
        _noted = outer


def _note(error: OSError) -> None:
    if _noted is None:
        return
    dangling = error.errno == errno.ENOENT and os.path.islink(error.filename or "")  # noqa: PTH114 (str, bytes or None)
    if not isinstance(error, ArchiveError) and error.errno not in _LASTING and not dangling:
        _noted.append(error)


def read_photo(root: Path, path: str) -> np.ndarray:
    """An input image as (H, W, 3) uint8 RGB, EXIF rotation ignored.

    Raises:
        UnreadableImage: not an image, or it cannot be read.
    """
    return decode_image(read_input(root, path))


def read_input(root: Path, path: str) -> bytes:
    """The bytes of an input image.

    Raises:
        UnreadableImage: it cannot be read.
    """
    try:
        return read_bytes(root, path)
    except OSError as error:
        raise UnreadableImage(f"{path} cannot be read ({error.strerror})") from error
