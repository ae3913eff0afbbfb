"""What earlier runs found out about files that have not changed since: examined rows and the names in labels.

Belongs here: keeping and finding rows by signature, in Parquet parts of bounded size. Does not belong here: examining.
"""

from __future__ import annotations

import shutil
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hair_pipeline.errors import PipelineError
from hair_pipeline.files import atomic_path
from hair_pipeline.inputs.columns import EXAMINED
from hair_pipeline.inputs.k_hairstyle import LabelName
from hair_pipeline.inputs.reasons import Reason

PART_ROWS = 8192
_PARTS_IN_MEMORY = 3
SCHEMA = EXAMINED.append(pa.field("signature", pa.uint64())).append(pa.field("unsettled", pa.bool_()))
"""Rows of examined images with the signature of the image, and whether they rest on a read that failed and may
succeed another time: such rows serve one run only."""


class ExaminedRows:
    """Rows of examined images on disk, found by signature; the rows of one image stand together.

    A folder per key: other settings or another revision of the examiner remember nothing. A part is written as soon
    as it is full, so that a run that was killed goes on where it stopped.

    Attributes:
        unsettled: images whose rows this run added and the next one will make again.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self._root, self._folder = folder, folder / key
        self._load()

    def _load(self) -> None:
        self._parts: list[Path] = []
        self._tables: OrderedDict[tuple[int, tuple[str, ...] | None], pa.Table] = OrderedDict()
        self._signatures = np.empty(0, np.uint64)
        self._places = np.empty((0, 3), np.int64)
        self.unsettled = 0
        self._index(sorted(self._folder.glob("part-*.parquet")), only_settled=True)

    def _index(self, paths: list[Path], *, only_settled: bool = False) -> None:
        """Learn where each image's rows are: signature -> part, first row, number of rows."""
        signatures: list[np.ndarray] = [self._signatures]
        places: list[np.ndarray] = [self._places]
        for path in paths:
            try:
                table = pq.read_table(path, columns=["signature", "unsettled"])
                column, unsettled = (table.column(number).to_numpy() for number in range(2))
            except (pa.ArrowException, OSError):
                path.unlink(missing_ok=True)  # damaged: its images are examined again
                continue
            starts = np.flatnonzero(np.r_[True, column[1:] != column[:-1]]) if len(column) else np.empty(0, int)
            counts = np.diff(np.r_[starts, len(column)])
            kept = ~unsettled[starts] if only_settled else np.ones(len(starts), bool)
            self.unsettled += int(np.count_nonzero(unsettled[starts[kept]]))
            signatures.append(column[starts[kept]])
            places.append(np.stack([np.full_like(starts, len(self._parts)), starts, counts], 1)[kept])
            self._parts.append(path)
        joined = np.concatenate(signatures)
        order = np.argsort(joined, kind="stable")
        self._signatures, self._places = joined[order], np.concatenate(places)[order]

    def missing(self, signatures: np.ndarray) -> np.ndarray:
        """(N,) bool: which of the signatures are not remembered."""
        at = np.searchsorted(self._signatures, signatures)
        inside = at < len(self._signatures)
        known = np.zeros(len(signatures), bool)
        known[inside] = self._signatures[at[inside]] == signatures[inside]
        return ~known

    def add(self, batches: Iterable[pa.RecordBatch]) -> None:
        """Write rows in parts of about `PART_ROWS`; each part is complete or absent."""
        paths: list[Path] = []
        try:
            for table in _grouped(batches):
                number = 1 + max((int(path.stem[5:]) for path in [*self._parts, *paths]), default=-1)
                path = self._folder / f"part-{number:06d}.parquet"
                with atomic_path(path) as temporary:
                    pq.write_table(table, temporary, compression="zstd", compression_level=1)
                paths.append(path)
        finally:
            self._index(paths)

    def rows(self, signatures: np.ndarray, columns: tuple[str, ...] | None = None) -> pa.Table:
        """The rows of the given images, in their order (those of one image stand together).

        Args:
            signatures: (N,) uint64, all remembered.
            columns: only these.

        Raises:
            PipelineError: a part is damaged.
        """
        places = self._places[np.searchsorted(self._signatures, signatures)]
        numbers = np.unique(places[:, 0])
        tables = [self._table(int(number), columns) for number in numbers]
        if not tables:
            names = columns or tuple(EXAMINED.names)
            return pa.schema([SCHEMA.field(name) for name in names]).empty_table()
        first_rows = np.cumsum([0] + [len(table) for table in tables])[np.searchsorted(numbers, places[:, 0])]
        counts = places[:, 2]
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        wanted = np.repeat(first_rows + places[:, 1], counts) + within
        return pa.concat_tables(tables).combine_chunks().take(pa.array(wanted))

    def _table(self, number: int, columns: tuple[str, ...] | None) -> pa.Table:
        key = (number, columns)
        if key not in self._tables:
            names = list(columns or EXAMINED.names)
            self._tables[key] = _read_part(self._parts[number], names)
            while len(self._tables) > _PARTS_IN_MEMORY:
                self._tables.popitem(last=False)
        self._tables.move_to_end(key)
        return self._tables[key]

    def tidy(self, signatures: np.ndarray) -> None:
        """Forget other settings' rows; and rewrite the parts where most rows are of no use any more, or parts small.

        Args:
            signatures: (N,) of the images there are now, in order.
        """
        for other in self._root.iterdir():
            if other.is_dir() and other != self._folder:
                shutil.rmtree(other, ignore_errors=True)
        stale = len(self._signatures) > 2 * len(signatures)
        scattered = len(self._parts) > 8 + 2 * (len(signatures) // PART_ROWS)
        if stale or scattered:
            old = list(self._parts)
            self.add(self._again(signatures))
            for path in old:
                path.unlink(missing_ok=True)
            self._load()

    def _again(self, signatures: np.ndarray) -> Iterator[pa.RecordBatch]:
        for start in range(0, len(signatures), PART_ROWS):
            block = signatures[start : start + PART_ROWS]
            yield from self.rows(block, tuple(SCHEMA.names)).combine_chunks().to_batches()


def _read_part(path: Path, columns: list[str]) -> pa.Table:
    """Some columns of a part.

    Raises:
        PipelineError: it is damaged, in other columns than those that `_index` reads.
    """
    try:
        return pq.read_table(path, columns=columns, use_threads=False)
    except (pa.ArrowException, OSError) as error:
        remedy = "delete it and run the same command again: its images are examined again"
        raise PipelineError(f"is damaged ({error})", file=path, remedy=remedy) from error


def _grouped(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        waiting.append(batch)
        if sum(map(len, waiting)) >= PART_ROWS:
            yield pa.Table.from_batches(waiting, schema=SCHEMA)
            waiting = []
    if waiting:
        yield pa.Table.from_batches(waiting, schema=SCHEMA)


_NAMES = pa.schema(
    {
        "signature": pa.uint64(),
        "filename": pa.string(),
        "source": pa.string(),
        "reason": pa.string(),
        "detail": pa.string(),
    }
)
NameOrFault = LabelName | tuple[str, Reason, str]
"""What a label's file says: its names, or its path, the reason why it is none, and a detail."""


class RememberedNames:
    """`filename` and `source` of labels, found by a signature of path, size and time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._table = _NAMES.empty_table()
        if path.exists():
            try:
                self._table = pq.read_table(path, schema=_NAMES).combine_chunks()
            except (pa.ArrowException, OSError):
                path.unlink(missing_ok=True)
        signatures = self._table.column("signature").to_numpy()
        self._order = np.argsort(signatures, kind="stable")
        self._sorted = signatures[self._order]

    @property
    def count(self) -> int:
        """How many labels are remembered."""
        return len(self._sorted)

    def find(self, paths: list[str], signatures: np.ndarray) -> list[NameOrFault | None]:
        """For each label what is remembered, else None."""
        at = np.minimum(np.searchsorted(self._sorted, signatures), max(0, len(self._sorted) - 1))
        known = self._sorted[at] == signatures if len(self._sorted) else np.zeros(len(paths), bool)
        found: list[NameOrFault | None] = [None] * len(paths)
        taken = self._table.take(pa.array(self._order[at[known]])) if known.any() else _NAMES.empty_table()
        places = iter(np.flatnonzero(known).tolist())
        for batch in taken.to_batches(max_chunksize=PART_ROWS):
            columns = [batch.column(number).to_pylist() for number in range(1, 5)]
            for filename, source, reason, detail in zip(*columns, strict=True):
                place = next(places)
                path = paths[place]
                found[place] = (path, Reason[reason.upper()], detail) if reason else LabelName(path, filename, source)
        return found

    def keep(self, signatures: np.ndarray, names: list[NameOrFault]) -> None:
        """Remember these and forget all others."""
        with atomic_path(self._path) as temporary, pq.ParquetWriter(temporary, _NAMES, compression="zstd") as writer:
            for start in range(0, len(names), PART_ROWS):
                part = names[start : start + PART_ROWS]
                faults = [None if isinstance(name, LabelName) else name for name in part]
                columns = {
                    "signature": signatures[start : start + PART_ROWS],
                    "filename": [name.filename if isinstance(name, LabelName) else None for name in part],
                    "source": [name.source if isinstance(name, LabelName) else None for name in part],
                    "reason": [fault and fault[1].value for fault in faults],
                    "detail": [fault and fault[2] for fault in faults],
                }
                writer.write_table(pa.table(columns, schema=_NAMES))
