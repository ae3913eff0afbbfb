"""What of the outputs counts: that of images which the catalog has now, as the people it says they are.

Outputs stay on disk when their people leave the inputs or turn out to be somebody else (`inputs.same_person`). To read
all there is would bring them back, on whatever side of the split they once stood.

Belongs here: telling which shards and rows count. Does not belong here: what the outputs hold (`processing`,
`training`), and removing the rest (`processing.gone`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from hair_pipeline.inputs.catalog import read_catalog


@dataclass(frozen=True)
class Members:
    """The accepted images of a catalog.

    Attributes:
        by_shard: shard, in sorted order -> its images: columns person and split, by image id.
    """

    by_shard: dict[str, pd.DataFrame]

    @classmethod
    def read(cls, catalog: Path) -> Members:
        """Of the catalog at `settings.catalog_path`.

        Raises:
            PipelineError: there is no catalog, or it cannot be read.
        """
        rows = read_catalog(catalog, columns=["accepted", "image_id", "source", "shard", "split"])
        rows = rows[rows.accepted].rename(columns={"source": "person"}).set_index("image_id")
        return cls({str(shard): own[["person", "split"]] for shard, own in rows.groupby("shard", sort=True)})

    def tables(self, folder: Path) -> list[Path]:
        """The Parquet files of the catalog's shards that are there."""
        return shard_files(folder, self.by_shard)

    def among(self, table: pd.DataFrame, shard: str) -> pd.DataFrame:
        """The rows of a shard's table (column image_id) that count, with the catalog's person and split."""
        own = self.by_shard[shard]
        rows = table[table.image_id.isin(own.index)]
        known = own.loc[rows.image_id]
        return rows.assign(person=known.person.to_numpy(), split=known.split.to_numpy())


def read_shards(catalog: Path) -> list[str]:
    """The catalog's shards, sorted. Raises as `Members.read`."""
    rows = read_catalog(catalog, columns=["accepted", "shard"])
    return sorted(rows.shard[rows.accepted].unique())


def shard_files(folder: Path, shards: Iterable[str], suffix: str = ".parquet") -> list[Path]:
    """The files of these shards that are there."""
    return [path for shard in shards if (path := folder / f"{shard}{suffix}").exists()]
