"""A version for each shard's rows of the catalog: what tells which shards a new catalog concerns.

Belongs here: hashing rows. Does not belong here: who stands in which shard (`shards`), and Dagster.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hair_pipeline.errors import PipelineError
from hair_pipeline.files import hash_bytes

DECISIVE = (
    *("image_id", "source", "split", "content_hash", "image_path", "label_path", "sheet_path", "embedding_path"),
    *("largest_path", "mask_origin", "stage2", "identity_reason", "curl", "curl_class"),
)
"""Columns that processing and training read, apart from what `content_hash` (photo, label, face files) stands for."""


def shard_versions(catalog: Path) -> dict[str, str]:
    """Shard -> 16 hex digits over its accepted rows; shards in sorted order.

    Raises:
        PipelineError: there is no catalog, or it cannot be read.
    """
    try:
        rows = pq.read_table(catalog, columns=["shard", *DECISIVE], filters=[("accepted", "=", True)])
    except (pa.ArrowException, OSError) as error:
        raise PipelineError(
            f"is not a readable catalog ({error})", file=catalog, remedy="materialise the asset catalog"
        ) from error
    texts = [pc.fill_null(pc.cast(rows.column(name), pa.string()), "\x01") for name in DECISIVE]
    rows = pa.table({"shard": rows.column("shard"), "row": pc.binary_join_element_wise(*texts, "\0")})
    rows = rows.sort_by([("shard", "ascending"), ("row", "ascending")])
    grouped = rows.group_by("shard", use_threads=False).aggregate([("row", "list")])
    columns = (grouped.column(name).to_pylist() for name in ("shard", "row_list"))
    return {shard: hash_bytes(*lines)[:16] for shard, lines in zip(*columns, strict=True)}
