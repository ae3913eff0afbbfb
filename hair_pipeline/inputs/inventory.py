"""What files there are: one walk over an input's folder with sizes and times, and the entries of its zips.

Belongs here: listing, sorting by kind, and stamps that tell whether a file changed. Does not belong here: opening
photos and labels, and pairing them (`k_hairstyle`).
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hair_pipeline.errors import PipelineError
from hair_pipeline.files import atomic_path
from hair_pipeline.inputs.archives import SEPARATOR, SUFFIX, ArchiveError, Entry, list_entries
from hair_pipeline.inputs.reasons import Reason
from hair_pipeline.inputs.workers import map_in_processes

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".png")
LABEL_SUFFIXES = (".json",)
OTHER_ARCHIVE_SUFFIXES = (".tar", ".gz", ".tgz", ".7z", ".rar", ".egg", ".alz")
_ARCHIVE_PART = re.compile(r"\.(zip|7z|rar|tar|gz|tgz|egg|alz)\.(part)?\d+$|\.z\d\d+$", re.IGNORECASE)
MAX_STEM_BYTES = 200
SYSTEM_FOLDERS = frozenset({"lost+found", "$recycle.bin", "system volume information", ".snapshot", "@eadir"})
"""What drives and network stores keep in folders of their own (in small letters): never looked into."""
_WORD = 2**64 - 1
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def stamp(size: int, time: int) -> int:
    """64 bits that change with a file's size or time."""
    return (time * 0x9E3779B97F4A7C15 ^ size * 0xC2B2AE3D27D4EB4F) & _WORD


def short_hash(text: str) -> int:
    """64-bit hash of a text, the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "little")


class Folder(NamedTuple):
    """A folder as `walk` finds it.

    Attributes:
        prefix: its path, "" or ending in "/".
        files: name and stamp, sorted.
        others: names of what is neither file nor folder (pipes, sockets, devices), sorted: opening one may never end.
        fault: why it cannot be listed; empty when it can.
    """

    prefix: str
    files: list[tuple[str, int]]
    others: list[str]
    fault: str = ""


def walk(root: Path, below: Sequence[str] | None = None) -> Iterator[Folder]:
    """Each folder under `root` once, linked ones too, but for `SYSTEM_FOLDERS`.

    Args:
        below: only these folders of the root, without the root itself.

    Raises:
        PipelineError: `root` is missing or may not be read.
    """
    base = os.fspath(root)
    seen: set[tuple[int, int]] = set()
    waiting = [""] if below is None else [f"{name}/" for name in reversed(below)]
    if below is not None:  # a link to the root leads to nothing new
        status = os.stat(base)  # noqa: PTH116
        seen.add((status.st_dev, status.st_ino))
    while waiting:
        prefix = waiting.pop()
        try:
            status = os.stat(f"{base}/{prefix}")  # noqa: PTH116 (a Path per folder would double the time)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            files, others, folders = _scan(f"{base}/{prefix}")
        except OSError as error:
            if not prefix:
                raise _unreadable(error) from error
            yield Folder(prefix, [], [], str(error.strerror))
            continue
        waiting.extend(f"{prefix}{name}/" for name in sorted(folders, reverse=True))
        yield Folder(prefix, sorted(files), sorted(others))


def folders_of(root: Path) -> list[str]:
    """Names of the folders in `root`, sorted. Raises as `walk`."""
    try:
        return sorted(_scan(os.fspath(root))[2])
    except OSError as error:
        raise _unreadable(error) from error


def _unreadable(error: OSError) -> PipelineError:
    remedy = "check HAIR_PIPELINE_K_HAIRSTYLE_ROOT, HAIR_PIPELINE_TRAINING_FACE_ROOT and the permissions"
    return PipelineError(f"the folder cannot be read ({error.strerror})", file=error.filename, remedy=remedy)


def is_system_folder(name: str) -> bool:
    """Is it one of `SYSTEM_FOLDERS`, in any case?"""
    return name.lower() in SYSTEM_FOLDERS


def _scan(folder: str) -> tuple[list[tuple[str, int]], list[str], list[str]]:
    """Files with their stamps, what is neither file nor folder, and folders."""
    files: list[tuple[str, int]] = []
    others: list[str] = []
    folders: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                if entry.is_dir():
                    if not is_system_folder(entry.name):
                        folders.append(entry.name)
                    continue
                status = entry.stat()
                if stat.S_ISREG(status.st_mode):
                    files.append((entry.name, stamp(status.st_size, status.st_mtime_ns)))
                else:
                    others.append(entry.name)
            except OSError:  # a link that leads nowhere, or to itself: found, but not readable
                files.append((entry.name, 0))
    return files, others, folders


@dataclass
class Inventory:
    """The files of the K-Hairstyle root; an archive stands for its entries, as a folder does.

    Attributes:
        images, labels: sorted posix paths relative to the root; "!/" leads into archives.
        rejected: path, reason and detail of every other file.
        stamps: path -> stamp, of images and labels.
        archives: zips read.
        unreadable: folders that could not be listed; they stand among the rejected too.
    """

    images: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    rejected: list[tuple[str, Reason, str]] = field(default_factory=list)
    stamps: dict[str, int] = field(default_factory=dict)
    archives: int = 0
    unreadable: int = 0

    @property
    def count(self) -> int:
        """Files found."""
        return len(self.images) + len(self.labels) + len(self.rejected)


def list_files(root: Path, remembered: Path | None = None) -> Inventory:
    """Sort the files under `root`, and those in its zips, into images, labels and the rest, by extension (any case).

    Args:
        root: of K-Hairstyle.
        remembered: a Parquet file that keeps the archives' entries, so that an unchanged zip is not opened again.
    """
    found = Inventory()
    zips: list[tuple[str, int]] = []
    for prefix, files, others, fault in walk(root):
        if fault:
            found.rejected.append((prefix.rstrip("/"), Reason.UNREADABLE_FOLDER, fault))
            found.unreadable += 1
        found.rejected += [(prefix + name, Reason.UNKNOWN_FILE, "not a regular file") for name in others]
        in_odd_folder = SUFFIX + SEPARATOR in prefix.lower()
        for name, mark in files:
            if name.lower().endswith(SUFFIX) and not in_odd_folder and _nameable(prefix + name):
                zips.append((prefix + name, mark))
            else:
                _sort_in(found, prefix + name, mark, Reason.BAD_FILE_NAME if in_odd_folder else None)
    stamps = dict(zips)
    for path, entries in _archive_entries(root, sorted(zips), remembered):
        found.archives += isinstance(entries, list)
        if isinstance(entries, list):
            for entry in entries:
                # with the archive's own stamp: its directory says the same where its data were damaged and are mended
                mark = stamp(entry.size, entry.crc ^ stamps[path])
                _sort_in(found, f"{path}{SEPARATOR}{entry.name}", mark, entry.problem)
            if not entries:
                found.rejected.append((path, Reason.EMPTY_ARCHIVE, ""))
        else:
            found.rejected.append((path, entries.reason, entries.detail))
    found.images.sort()
    found.labels.sort()
    found.rejected.sort()
    return found


def _sort_in(found: Inventory, path: str, mark: int, problem: Reason | tuple[Reason, str] | None) -> None:
    name = path.rpartition("/")[2]
    stem, dot, suffix = name.rpartition(".")
    suffix = (dot + suffix).lower()
    if problem is not None:
        reason, detail = problem if isinstance(problem, tuple) else (problem, "")
        found.rejected.append((path, reason, detail))
    elif not _nameable(path) or len(os.fsencode(stem)) > MAX_STEM_BYTES:
        found.rejected.append((path, Reason.BAD_FILE_NAME, ""))
    elif name.startswith(".") or "__MACOSX/" in path:
        found.rejected.append((path, Reason.UNKNOWN_FILE, "hidden"))
    elif suffix in IMAGE_SUFFIXES:
        found.images.append(path)
        found.stamps[path] = mark
    elif suffix in LABEL_SUFFIXES:
        found.labels.append(path)
        found.stamps[path] = mark
    elif _ARCHIVE_PART.search(name):
        found.rejected.append((path, Reason.ARCHIVE, "join the parts first"))
    else:
        other = suffix in OTHER_ARCHIVE_SUFFIXES
        found.rejected.append((path, Reason.ARCHIVE if other else Reason.UNKNOWN_FILE, ""))


def _nameable(path: str) -> bool:
    """Is it UTF-8 without control characters, so that Parquet, JSON and other systems can name it?"""
    if path.isascii():
        return path.isprintable()
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return _CONTROL.search(path) is None


class _EntryReader:
    """Lists one archive; picklable for the worker processes."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __call__(self, path: str) -> list[Entry] | tuple[Reason, str]:
        try:
            return list(list_entries(self.root / path))
        except ArchiveError as error:
            return error.reason, error.detail
        except OSError as error:
            return Reason.UNREADABLE_ARCHIVE, str(error.strerror)


_ENTRY_SCHEMA = pa.schema(
    {
        "archive": pa.string(),
        "stamp": pa.uint64(),
        "name": pa.string(),
        "size": pa.int64(),
        "crc": pa.int64(),
        "reason": pa.string(),
        "detail": pa.string(),
    }
)


def _archive_entries(
    root: Path, zips: list[tuple[str, int]], remembered: Path | None
) -> Iterator[tuple[str, list[Entry] | ArchiveError]]:
    known = _read_entries(remembered)
    fresh = [path for path, mark in zips if (path, mark) not in known]
    listed = dict(zip(fresh, map_in_processes(_EntryReader(root), fresh, description="archives", chunk=1), strict=True))
    kept: dict[tuple[str, int], list[Entry]] = {}
    for path, mark in zips:
        entries = known.get((path, mark)) or listed.get(path, [])
        if isinstance(entries, tuple):
            yield path, ArchiveError(*entries)
        else:
            kept[path, mark] = entries
            yield path, entries
    if remembered is not None and kept.keys() != known.keys():
        _write_entries(remembered, kept)


def _read_entries(path: Path | None) -> dict[tuple[str, int], list[Entry]]:
    known: dict[tuple[str, int], list[Entry]] = {}
    if path is None or not path.exists():
        return known
    try:
        table = pq.read_table(path, schema=_ENTRY_SCHEMA)
    except (pa.ArrowException, OSError):
        return known
    for batch in table.to_batches(max_chunksize=8192):
        columns = batch.to_pydict()
        for archive, mark, name, size, crc, reason, detail in zip(*columns.values(), strict=True):
            entries = known.setdefault((archive, mark), [])
            if name is not None:
                entries.append(Entry(name, size, crc, (Reason[reason.upper()], detail) if reason else None))
    return known


def _write_entries(path: Path, kept: dict[tuple[str, int], list[Entry]]) -> None:
    with atomic_path(path) as temporary, pq.ParquetWriter(temporary, _ENTRY_SCHEMA, compression="zstd") as writer:
        for (archive, mark), entries in kept.items():
            # An empty archive keeps one row without a name.
            listed: list[Entry | None] = [*entries] or [None]
            problems = [entry.problem if entry else None for entry in listed]
            columns = {
                "archive": [archive] * len(listed),
                "stamp": np.full(len(listed), mark, np.uint64),
                "name": [entry and printable(entry.name) for entry in listed],
                "size": [entry.size if entry else 0 for entry in listed],
                "crc": [entry.crc if entry else 0 for entry in listed],
                "reason": [problem and problem[0].value for problem in problems],
                "detail": [problem and problem[1] for problem in problems],
            }
            writer.write_table(pa.table(columns, schema=_ENTRY_SCHEMA))


def printable(path: str) -> str:
    """A path that may hold bytes that are not UTF-8, as text that can be stored."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def digest(parts: Iterable[tuple[str, int]]) -> str:
    """SHA-256 (hex) over paths and stamps in the order given."""
    total = hashlib.sha256()
    for path, mark in parts:
        total.update(f"{path}\0{mark}\0".encode("utf-8", "surrogateescape"))
    return total.hexdigest()
