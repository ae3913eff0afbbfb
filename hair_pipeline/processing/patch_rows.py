"""The table of patches, and one photo's rows of it on their way from a worker, through the journal, into the table.

Belongs here: columns, and packing rows as bytes. Does not belong here: cutting patches (`patches`), writing the table
(`shards`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from hair_pipeline.processing.patches import Patch

PATCH_SCHEMA = pa.schema(
    {
        "image_id": pa.string(),
        "person": pa.string(),
        "curl": pa.string(),
        "curl_class": pa.string(),
        "size": pa.int32(),
        "x": pa.int32(),
        "y": pa.int32(),
        "scale": pa.float32(),
        "zone": pa.string(),
        "photo": pa.string(),
        "image": pa.binary(),
    }
)
"""curl, curl_class: as in the catalog; x, y: top-left corner in `photo`, the photo the patch was cut from (relative to
the K-Hairstyle root, the largest there is of the image); scale: its pixels per processed pixel; zone: roots, lengths or
ends."""
_OF_PATCH = ("size", "x", "y", "zone")


def pack(photo: dict[str, Any], patches: Sequence[Patch], images: Sequence[bytes]) -> bytes:
    """One photo's rows: a line of JSON, then the encoded images one after another.

    Args:
        photo: the columns that all rows share. patches, images: one of each per row; `images` encoded.
    """
    columns = {name: [getattr(patch, name) for patch in patches] for name in _OF_PATCH}
    head = json.dumps({"photo": photo, "columns": columns, "bytes": [len(image) for image in images]})
    return b"\n".join((head.encode(), b"".join(images)))


def unpack(blob: bytes) -> dict[str, list[Any]]:
    """The rows that were packed: column of `PATCH_SCHEMA` -> values."""
    line = blob.index(b"\n")
    head = json.loads(blob[:line])
    images, start = [], line + 1
    for size in head["bytes"]:
        images.append(blob[start : start + size])
        start += size
    shared = {name: [value] * len(images) for name, value in head["photo"].items()}
    return shared | head["columns"] | {"image": images}


def as_table(packed: Sequence[bytes]) -> pa.Table:
    """The rows of several photos."""
    rows = [unpack(blob) for blob in packed]
    return pa.table(
        {name: [value for each in rows for value in each[name]] for name in PATCH_SCHEMA.names}, schema=PATCH_SCHEMA
    )
