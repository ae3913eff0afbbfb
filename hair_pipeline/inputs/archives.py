"""Zip archives as downloaded, read in place: entry names restored, nested zips opened in memory, nothing extracted.

Belongs here: one archive's entries and their bytes, and the limits on hostile ones. Does not belong here: which
archives there are (`inventory`) and what the entries mean.
"""

from __future__ import annotations

import errno
import io
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from hair_pipeline.inputs.reasons import Reason

SEPARATOR = "!/"
"""Between an archive's path and an entry's name, as in Java's JAR URLs: `images/0001.zip!/0126.CP1/CP1-016.jpg`."""
SUFFIX = ".zip"
MAX_ENTRY_BYTES = 256 * 2**20
"""Larger entries, unpacked, are refused (a nested zip is held in memory)."""
MAX_RATIO = 200
"""Unpacked bytes per packed byte from which an entry above `RATIO_FROM_BYTES` counts as a zip bomb."""
RATIO_FROM_BYTES = 2**20
MAX_ENTRIES = 2_000_000
MAX_DEPTH = 3
_OPEN_ARCHIVES = 8


class ArchiveError(OSError):
    """An archive or an entry that cannot be read; an `OSError`, so that readers of files need not tell them apart.

    Attributes:
        reason: UNREADABLE_ARCHIVE, EMPTY_ARCHIVE, SUSPICIOUS_ARCHIVE, PATH_OUTSIDE_ROOT or BAD_FILE_NAME.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        self.reason, self.detail = reason, detail
        super().__init__(errno.EIO, detail)


@dataclass(frozen=True)
class Entry:
    """One file in an archive.

    Attributes:
        name: restored name, posix; "!/" stands between a nested archive and its own entry.
        size: unpacked bytes. crc: CRC-32 of the content, as the archive states it.
        problem: why it is not read, with a detail; None when it may be read.
    """

    name: str
    size: int
    crc: int
    problem: tuple[Reason, str] | None = None


def restored_name(info: zipfile.ZipInfo) -> str:
    """An entry's name: UTF-8 or CP949 bytes that the archive did not mark as such are restored; `/` separates.

    An entry without the UTF-8 flag is read by Python as CP437; Korean tools write UTF-8 or CP949 there.
    """
    name = info.orig_filename
    if not info.flag_bits & 0x800:
        try:
            raw = name.encode("cp437")
        except UnicodeEncodeError:
            raw = b""
        for encoding in ("utf-8", "cp949"):
            try:
                name = raw.decode(encoding) if raw else name
                break
            except UnicodeDecodeError:
                continue
    return name.replace("\\", "/")


def list_entries(path: Path) -> Iterator[Entry]:
    """Every file in the archive, also in the archives it nests; an empty one of these is a file.

    Raises:
        ArchiveError: the archive itself is damaged.
        OSError: it cannot be read.
    """
    yield from _list(_Archive.open(path), "", 1)


def _list(archive: _Archive, prefix: str, depth: int) -> Iterator[Entry]:
    seen: set[str] = set()
    for info in archive.infos:
        if info.is_dir() or info.orig_filename.endswith(("/", "\\")):
            continue
        name = restored_name(info)
        problem = _problem(name, info)
        if problem is None and name in seen:
            problem = (Reason.DUPLICATE_ENTRY, "the archive holds this name more than once; the first is read")
        seen.add(name)
        if problem is not None or not name.lower().endswith(SUFFIX):
            yield Entry(prefix + name, info.file_size, info.CRC, problem)
            continue
        try:
            if depth >= MAX_DEPTH:
                raise ArchiveError(Reason.SUSPICIOUS_ARCHIVE, f"more than {MAX_DEPTH} archives in one another")
            empty = True
            for entry in _list(archive.nested(name), f"{prefix}{name}{SEPARATOR}", depth + 1):
                empty = False
                yield entry
            if empty:
                raise ArchiveError(Reason.EMPTY_ARCHIVE, "")
        except ArchiveError as error:
            yield Entry(prefix + name, info.file_size, info.CRC, (error.reason, error.detail))


def _problem(name: str, info: zipfile.ZipInfo) -> tuple[Reason, str] | None:
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or name[1:2] == ":":
        return Reason.PATH_OUTSIDE_ROOT, "the entry's name climbs out of the archive"
    if SEPARATOR in name:
        return Reason.BAD_FILE_NAME, "a folder's name ends in !, which stands for an archive's entries here"
    if info.file_size > MAX_ENTRY_BYTES:
        return Reason.SUSPICIOUS_ARCHIVE, f"{info.file_size} bytes unpacked"
    if info.file_size > RATIO_FROM_BYTES and info.file_size > MAX_RATIO * max(1, info.compress_size):
        return Reason.SUSPICIOUS_ARCHIVE, f"{info.compress_size} bytes unpack to {info.file_size}"
    if info.flag_bits & 0x1:
        return Reason.UNREADABLE_ARCHIVE, "the entry is encrypted"
    return None


class _Archive:
    """An open zip with an index by restored name. Only the first of several entries of one name counts."""

    def __init__(self, file: Path | io.BytesIO) -> None:
        try:
            self._zip = zipfile.ZipFile(file)
            self.infos = self._zip.infolist()
            if len(self.infos) > MAX_ENTRIES:
                raise ArchiveError(Reason.SUSPICIOUS_ARCHIVE, f"{len(self.infos)} entries")
            self._index: dict[str, zipfile.ZipInfo] = {}
            for info in self.infos:
                self._index.setdefault(restored_name(info), info)
        except Exception as error:  # zipfile raises many types on hostile directories
            _raise_if_of_the_disk(error)
            raise ArchiveError(Reason.UNREADABLE_ARCHIVE, f"not a readable zip ({str(error)[:80]})") from error
        self._nested: OrderedDict[str, _Archive] = OrderedDict()

    @classmethod
    def open(cls, path: Path) -> _Archive:
        """The archive at `path`, kept open until others take its place or the file changes."""
        status = path.stat()
        key = (str(path), status.st_size, status.st_mtime_ns)
        found = _archives.get(key)
        if found is None:
            found = _archives[key] = cls(path)
            while len(_archives) > _OPEN_ARCHIVES:
                _archives.popitem(last=False)[1].close()
        _archives.move_to_end(key)
        return found

    def nested(self, name: str) -> _Archive:
        """The archive stored as the entry `name`, held in memory; only the last one is kept."""
        if name not in self._nested:
            self._nested.clear()
            self._nested[name] = _Archive(io.BytesIO(self.read(name)))
        return self._nested[name]

    def read(self, name: str, limit: int = MAX_ENTRY_BYTES) -> bytes:
        """An entry's bytes, at most the first `limit`; a whole read checks the CRC."""
        info = self._index.get(name)
        if info is None:
            raise FileNotFoundError(errno.ENOENT, "no such entry", name)
        problem = _problem(name, info)
        if problem is not None:
            raise ArchiveError(*problem)
        try:
            with self._zip.open(info) as file:
                return file.read(min(limit, info.file_size))
        except Exception as error:  # wrong CRC, damaged streams, unknown methods
            _raise_if_of_the_disk(error)
            raise ArchiveError(
                Reason.UNREADABLE_ARCHIVE, f"the entry cannot be unpacked ({str(error)[:80]})"
            ) from error

    def close(self) -> None:
        self._zip.close()


def _raise_if_of_the_disk(error: Exception) -> None:
    """Let through what says nothing about the archive's content. A damaged one may send zipfile to a place before its
    start, which is an invalid seek, or make a decompressor raise an `OSError` without a number."""
    if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
        raise error


_archives: OrderedDict[tuple[str, int, int], _Archive] = OrderedDict()


def read_entry(path: Path, chain: list[str], limit: int = MAX_ENTRY_BYTES) -> bytes:
    """The bytes of an entry, at most the first `limit`.

    Args:
        path: the outermost archive. chain: entry names from the outside in; all but the last are archives.

    Raises:
        OSError: it does not exist; `ArchiveError`: it may not or cannot be read.
    """
    if len(chain) > MAX_DEPTH:
        raise ArchiveError(Reason.SUSPICIOUS_ARCHIVE, f"more than {MAX_DEPTH} archives in one another")
    archive = _Archive.open(path)
    for name in chain[:-1]:
        archive = archive.nested(name)
    return archive.read(chain[-1], limit)
