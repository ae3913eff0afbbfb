"""The record of finished images, by which a killed shard goes on where it stopped.

Belongs here: append-only files of checked records. Does not belong here: what a record means (`shards`, `work`).
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hair_pipeline import files
from hair_pipeline.errors import PipelineError

_HEAD = struct.Struct(">II16s")
_TOKEN = uuid.uuid4().hex
"""Of this process: a process never appends to another's file, whose last record may be half written."""


@dataclass(frozen=True)
class Record:
    """One finished image.

    Attributes:
        facts: a JSON object.
        file, start, size: where its blob stands.
    """

    facts: dict[str, Any]
    file: Path
    start: int
    size: int

    def blob(self) -> bytes:
        """The bytes recorded beside the facts."""
        with self.file.open("rb") as file:
            file.seek(self.start)
            return file.read(self.size)


def append(folder: Path, facts: dict[str, Any], blob: bytes = b"") -> None:
    """Record a finished image. A record that a kill cuts off is never taken for a whole one.

    Raises:
        PipelineError: the disk is full or cannot be written.
    """
    text = json.dumps(facts).encode()
    frame = _HEAD.pack(len(text), len(blob), _digest(text, blob)) + text + blob
    path = folder / f"{os.getpid()}-{_TOKEN}"
    try:
        with path.open("ab", buffering=0) as file:
            if file.write(frame) != len(frame):
                raise OSError("only a part was written; is the disk full?")
    except OSError as error:
        remedy = "free some disk space and run the same command again: finished images are kept"
        raise PipelineError(f"cannot be written ({error})", file=path, remedy=remedy) from error


def read(folder: Path) -> Iterator[Record]:
    """All whole records of a folder, without their blobs."""
    for path in sorted(folder.glob("[0-9]*-*")):
        with path.open("rb") as file:
            while len(head := file.read(_HEAD.size)) == _HEAD.size:
                text_size, blob_size, digest = _HEAD.unpack(head)
                if file.tell() + text_size + blob_size > path.stat().st_size:
                    break
                text, start = file.read(text_size), file.tell()
                if _digest(text, file.read(blob_size)) != digest:
                    break
                yield Record(json.loads(text), path, start, blob_size)


def prepare(folder: Path, pattern: str) -> None:
    """Make the journal's folder; delete its siblings that match `pattern`, left by other inputs or settings.

    Raises:
        PipelineError: the folder above cannot be written.
    """
    remove(folder, pattern, keep=folder)
    files.make_folder(folder)


def remove(folder: Path, pattern: str, keep: Path | None = None) -> None:
    """Delete the journals beside `folder` that match `pattern`.

    Raises:
        PipelineError: one cannot be deleted.
    """
    for other in folder.parent.glob(pattern) if folder.parent.is_dir() else ():
        if other != keep and other.is_dir():
            files.remove(other)


def _digest(text: bytes, blob: bytes) -> bytes:
    digest = hashlib.blake2b(text, digest_size=16)
    digest.update(blob)
    return digest.digest()
