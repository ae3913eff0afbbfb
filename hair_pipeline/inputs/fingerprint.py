"""A cheap content fingerprint of an input folder: the data version of the observable sources.

Belongs here: telling whether an input changed. Does not belong here: which images are usable (`catalog`).
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hair_pipeline.files import atomic_path
from hair_pipeline.inputs.inventory import short_hash, walk
from hair_pipeline.inputs.reader import open_regular
from hair_pipeline.inputs.workers import map_in_processes

SMALL_FILE = 1 << 20
_BLOCK = 4096
_DIGEST = 16


def fingerprint_folder(root: Path, remembered: Path | None = None) -> str:
    """SHA-256 (hex) over the names, sizes and contents of the files under `root`.

    Files up to 1 MiB count whole (photos of 512 and 1024 pixels); of larger ones the size and three blocks (start,
    middle, end), so that a terabyte of photos is not read. Times of modification do not count.

    Args:
        root: the folder.
        remembered: a Parquet file that keeps each file's part, so that one of the same size and time of modification
            is not opened again.

    Raises:
        PipelineError: the folder is missing or may not be read. (What is below a folder in it that may not be read
            does not count.)
    """
    names: list[str] = []
    marks: list[int] = []
    for prefix, files, others, _ in walk(root):
        names += [prefix + name for name, _ in files] + [prefix + name for name in others]
        marks += [mark for _, mark in files] + [0] * len(others)
    keys = np.fromiter((short_hash(f"{name}\0{mark}") for name, mark in zip(names, marks, strict=True)), np.uint64)
    known_keys, known = _read(remembered)
    at = np.minimum(np.searchsorted(known_keys, keys), max(0, len(known_keys) - 1))
    is_known = known_keys[at] == keys if len(known_keys) else np.zeros(len(keys), bool)
    contents = np.zeros((len(keys), _DIGEST), np.uint8)
    contents[is_known] = known[at[is_known]]
    unknown = np.flatnonzero(~is_known)
    reader, paths = _ContentReader(root), [names[number] for number in unknown]
    was_read = np.ones(len(keys), bool)
    for place, (content, readable) in zip(
        unknown, map_in_processes(reader, paths, description="fingerprint", chunk=1000), strict=True
    ):
        contents[place], was_read[place] = np.frombuffer(content, np.uint8), readable
    if remembered is not None and (len(unknown) or len(known_keys) != len(keys)):
        _write(remembered, keys[was_read], contents[was_read])
    total = hashlib.sha256()
    for number in sorted(range(len(names)), key=names.__getitem__):
        name = os.fsencode(names[number])
        total.update(len(name).to_bytes(8, "little") + name + contents[number].tobytes())
    return total.hexdigest()


class _ContentReader:
    """Digest of a file's size and sampled content, and whether it could be read; picklable for the worker processes."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __call__(self, path: str) -> tuple[bytes, bool]:
        readable = True
        try:
            with open_regular(f"{self.root}/{path}") as file:
                size = os.fstat(file.fileno()).st_size
                if size <= SMALL_FILE:
                    sampled = file.read()
                else:
                    sampled = b""
                    for position in (0, size // 2, size - _BLOCK):
                        file.seek(position)
                        sampled += file.read(_BLOCK)
        except OSError as error:
            readable, size, sampled = False, 0, f"unreadable {error.errno}".encode()
        return hashlib.blake2b(size.to_bytes(8, "little") + sampled, digest_size=_DIGEST).digest(), readable


def _read(path: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """Sorted keys (N,) uint64 and contents (N, 16) uint8."""
    nothing = np.empty(0, np.uint64), np.empty((0, _DIGEST), np.uint8)
    if path is None or not path.exists():
        return nothing
    try:
        table = pq.read_table(path).combine_chunks()
        keys = table.column("key").to_numpy()
        packed = b"".join(table.column("content").to_pylist())
    except (pa.ArrowException, OSError, KeyError):
        return nothing
    return keys, np.frombuffer(packed, np.uint8).reshape(-1, _DIGEST)


def _write(path: Path, keys: np.ndarray, contents: np.ndarray) -> None:
    order = np.argsort(keys)
    packed = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(_DIGEST), len(keys), [None, pa.py_buffer(contents[order].tobytes())]
    )
    with atomic_path(path) as temporary:
        pq.write_table(pa.table({"key": keys[order], "content": packed}), temporary)
