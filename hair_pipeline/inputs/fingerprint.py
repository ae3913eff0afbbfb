"""A cheap content fingerprint of an input folder: the data version of the observable sources.

Belongs here: telling whether an input changed. Does not belong here: which images are usable (`catalog`).
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from hair_pipeline.files import hash_bytes
from hair_pipeline.inputs.k_hairstyle import walk_files

SMALL_FILE = 16_384
_BLOCK = 4096


def fingerprint_folder(root: Path) -> str:
    """SHA-256 (hex) over the names, sizes and contents of the files under `root`.

    Files up to 16 KiB count whole; of larger ones the size and three blocks (start, middle, end), so that a
    terabyte of photos is not read. Times of modification do not count.

    Raises:
        PipelineError: the folder is missing or may not be read.
    """
    parts: list[bytes | str] = []
    for path in walk_files(root):
        parts += [os.fsencode(path), _content(root / path)]
    return hash_bytes(*parts)


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size <= SMALL_FILE:
                sampled = file.read()
            else:
                sampled = b""
                for position in (0, size // 2, size - _BLOCK):
                    file.seek(position)
                    sampled += file.read(_BLOCK)
    except OSError as error:
        return f"unreadable {error.errno}".encode()
    return size.to_bytes(8, "little") + hashlib.sha256(sampled).digest()
