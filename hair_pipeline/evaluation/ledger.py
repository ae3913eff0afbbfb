"""Finished cases of a report in the making, on disk: what was measured, and the pictures worth showing.

Belongs here: saving after every batch, and reading back after a kill. Does not belong here: what is measured
(`measure`) and which pictures are worth it.

Format: `batch_NNNNNN.npz` holds the rows as JSON and the features as arrays (written at once, never changed);
`pictures/<case>.<cell>.jpg` the thumbnails. A case counts as finished when its batch file is there.
"""

from __future__ import annotations

import base64
import json
import logging
import shutil
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hair_pipeline import files
from hair_pipeline.evaluation import pictures
from hair_pipeline.evaluation.measure import Measurements

log = logging.getLogger(__name__)


class Ledger:
    """One report's finished cases.

    Args:
        folder: made when something is finished; what a killed run left there is read back.
        models: names of the models that draw every case.

    Attributes:
        rows: model -> its rows so far (see `Measurements`); the features stay on disk.
        left_out: image id -> why. done: keys of finished cases.
    """

    def __init__(self, folder: Path, models: Sequence[str]) -> None:
        self.folder = folder
        self.rows: dict[str, list[dict[str, Any]]] = {name: [] for name in models}
        self.left_out: dict[str, str] = {}
        self.done: set[str] = set()
        self._batches = 0
        self._pictures: set[str] = set()
        for path in sorted(folder.glob("batch_*.npz")):
            self._read(path)
        for path in (folder / "pictures").glob("*.jpg"):
            self._pictures.add(path.name.split(".", 1)[0])

    def add(self, keys: Iterable[str], measured: Mapping[str, Measurements], left_out: Mapping[str, str]) -> None:
        """Save a finished batch: all its cases, what each model's pictures gave, and who is left out."""
        keys = list(keys)
        rows = {name: values.rows for name, values in measured.items()}
        head = json.dumps({"keys": keys, "rows": rows, "left_out": dict(left_out)}).encode()
        arrays = {
            f"{name}:{feature}": values.astype(np.float32) if values.dtype == np.float64 else values
            for name, part in measured.items()
            for feature, values in part.features.items()
            if len(values)
        }
        with files.atomic_open(self.folder / f"batch_{self._batches:06d}.npz") as file:
            np.savez(file, head=np.frombuffer(head, np.uint8), **arrays)  # type: ignore[arg-type]
        self._take(keys, rows, left_out)

    def measurements(self, model: str) -> Measurements:
        """Everything that one model's pictures gave, features included."""
        chunks: dict[str, list[np.ndarray]] = {}
        for path in sorted(self.folder.glob("batch_*.npz")):
            with np.load(path, allow_pickle=False) as data:
                for entry in data.files:
                    name, _, feature = entry.partition(":")
                    if name == model:
                        chunks.setdefault(feature, []).append(data[entry])
        return Measurements(self.rows[model], {name: np.concatenate(parts) for name, parts in chunks.items()})

    def keep(self, key: str, cells: Mapping[str, np.ndarray], side: int = 256) -> None:
        """Keep a case's pictures, as JPEGs of at most `side` pixels."""
        name = _name(key)
        for cell, image in cells.items():
            data = files.encode_image(pictures.shrink(image, side), ".jpg", 88)
            files.write_bytes(self.folder / "pictures" / f"{name}.{cell}.jpg", data)
        self._pictures.add(name)

    def drop_all_but(self, keys: Iterable[str]) -> None:
        """Delete the pictures of all other cases."""
        wanted = {_name(key) for key in keys}
        for name in self._pictures - wanted:
            for path in (self.folder / "pictures").glob(f"{name}.*.jpg"):
                path.unlink()
        self._pictures &= wanted

    def data_uri(self, key: str, cell: str, side: int | None = None) -> str | None:
        """A kept picture for a page, at most `side` pixels if that is given, or None."""
        path = self._path(key, cell)
        if path is None:
            return None
        if side is not None:
            return pictures.data_uri(files.read_image(path), side)
        return "data:image/jpeg;base64," + base64.b64encode(path.read_bytes()).decode()

    def image(self, key: str, cell: str) -> np.ndarray | None:
        """A kept picture as uint8 RGB, or None."""
        path = self._path(key, cell)
        return None if path is None else files.read_image(path)

    def close(self) -> None:
        """Delete it: the report is written."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, key: str, cell: str) -> Path | None:
        path = self.folder / "pictures" / f"{_name(key)}.{cell}.jpg"
        return path if path.exists() else None

    def _read(self, path: Path) -> None:
        try:
            with np.load(path, allow_pickle=False) as data:
                head: dict[str, Any] = json.loads(data["head"].tobytes())
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            log.warning("%s cannot be read (%s): its cases are drawn again", path, error)
            path.unlink(missing_ok=True)
            return
        self._batches = int(path.stem.removeprefix("batch_"))
        self._take(head["keys"], head["rows"], head["left_out"])

    def _take(self, keys: list[str], rows: Mapping[str, list[dict[str, Any]]], left_out: Mapping[str, str]) -> None:
        for name, part in rows.items():
            self.rows[name] += part
        self.left_out |= left_out
        self.done |= set(keys)
        self._batches += 1


def _name(key: str) -> str:
    return files.hash_bytes(key)[:20]
