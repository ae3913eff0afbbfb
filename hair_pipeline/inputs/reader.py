"""The one way to open a file that the catalog names, whether it lies in a folder or in an archive.

Belongs here: bytes of `image_path`, `label_path` and `largest_path`. Does not belong here: their content.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hair_pipeline.files import UnreadableImage, decode_image
from hair_pipeline.inputs.archives import MAX_ENTRY_BYTES, SEPARATOR, SUFFIX, read_entry

_MARK = SUFFIX + SEPARATOR


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
    if chain:
        return read_entry(root / file, chain, limit)
    with open(f"{root}/{file}", "rb") as stream:  # noqa: PTH123 (called for every file: Path takes longer to join)
        return stream.read(limit)


def read_photo(root: Path, path: str) -> np.ndarray:
    """An input image as (H, W, 3) uint8 RGB, EXIF rotation ignored.

    Raises:
        UnreadableImage: not an image, or it cannot be read.
    """
    try:
        return decode_image(read_bytes(root, path))
    except OSError as error:
        raise UnreadableImage(f"{path} cannot be read ({error.strerror})") from error
