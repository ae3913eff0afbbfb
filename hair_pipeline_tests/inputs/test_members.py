"""Which outputs count: the catalog's images, in its shards, as the people it names."""

from pathlib import Path

import pandas as pd
import pytest

from hair_pipeline.errors import PipelineError
from hair_pipeline.inputs.members import Members, read_shards, shard_files


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    rows = [
        ("a-1", "a", "shard_0002", "train", True),
        ("b-1", "b", "shard_0000", "validation", True),
        ("a-2", "a", "shard_0002", "train", True),
        ("b-1", "b", None, None, False),  # the same image again
    ]
    path = tmp_path / "catalog.parquet"
    pd.DataFrame(rows, columns=["image_id", "source", "shard", "split", "accepted"]).to_parquet(path)
    return path


def test_rows_take_person_and_split_from_the_catalog(catalog: Path) -> None:
    table = pd.DataFrame({"image_id": ["a-2", "gone", "b-1", "a-2"], "person": "somebody", "value": [1, 2, 3, 4]})
    kept = Members.read(catalog).among(table, "shard_0002")
    assert kept.to_dict("list") == {
        "image_id": ["a-2", "a-2"],
        "person": ["a", "a"],
        "value": [1, 4],
        "split": ["train", "train"],
    }
    assert Members.read(catalog).among(table[:0], "shard_0000").empty


def test_files_of_the_catalogs_shards_count_alone(catalog: Path, tmp_path: Path) -> None:
    assert read_shards(catalog) == list(Members.read(catalog).by_shard) == ["shard_0000", "shard_0002"]
    for name in ("shard_0001", "shard_0002", "._shard_0002", ".shard_0002.7.tmp"):
        (tmp_path / f"{name}.parquet").write_bytes(b"")
    (tmp_path / "shard_0000.json").write_bytes(b"")
    assert Members.read(catalog).tables(tmp_path) == [tmp_path / "shard_0002.parquet"]
    assert shard_files(tmp_path, read_shards(catalog), ".json") == [tmp_path / "shard_0000.json"]


def test_without_a_catalog_nothing_counts(tmp_path: Path) -> None:
    for read in (Members.read, read_shards):
        with pytest.raises(PipelineError, match="materialise the asset catalog"):
            read(tmp_path / "catalog.parquet")
