"""Trainings read the catalog's people alone, whatever else lies on the disk."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest

from hair_pipeline.inputs.catalog import build_catalog, read_catalog
from hair_pipeline.inputs.members import Members
from hair_pipeline.processing.shards import make_image_parts
from hair_pipeline.profile import InputsConfig, PatchConfig, ProcessingConfig, Profile
from hair_pipeline.settings import Settings
from hair_pipeline.training.data import read_reliable_identities, read_style_vectors
from hair_pipeline.training.fingerprints import asset_versions
from hair_pipeline.training.latent_store import LatentStore
from hair_pipeline.training.patches import PatchStore
from hair_pipeline_tests.inputs.tiny_inputs import write_tiny_inputs
from hair_pipeline_tests.training.tiny_stage import write_catalog, write_processed

ONE_PERSON_A_SHARD = {"shard_size": 1, "validation_fraction": 0.3}
PROCESSING = ProcessingConfig(size=128, patches=PatchConfig(sizes=(16,), per_image=2))


def leave_others_files(folder: Path) -> None:
    """A shard that is gone, and what a desktop and a killed writer leave."""
    for path in list(folder.glob("shard_0000.*")):
        shutil.copy(path, path.with_name(path.name.replace("0000", "0007")))
    for name in ("._shard_0000.parquet", ".shard_0000.1.tmp.parquet", ".DS_Store"):
        (folder / name).write_bytes(b"no table")


def test_latents_and_vectors_of_those_who_left_or_are_somebody_else(tmp_path: Path) -> None:
    write_processed(tmp_path)  # p0 and p1 are trained on, p2 is held out
    for asset in ("latents", "style_vectors", "identity_embeddings"):
        leave_others_files(tmp_path / asset)
    rows = [("p0-0", "p2", "validation"), ("p1-0", "p1", "train"), ("p2-0", "p2", "validation")]
    write_catalog(tmp_path, pd.DataFrame(rows, columns=["image_id", "source", "split"]).assign(shard="shard_0000"))
    members = Members.read(tmp_path / "catalog.parquet")

    latents = LatentStore(tmp_path / "latents", members)
    found = latents.index[["image_id", "person", "split"]].drop_duplicates()
    assert list(found.itertuples(index=False, name=None)) == rows
    assert latents.rows("photo", "train").image_id.tolist() == ["p1-0"]
    for table in (
        read_style_vectors(tmp_path / "style_vectors", members),
        read_reliable_identities(tmp_path / "identity_embeddings", members),
    ):
        assert list(zip(table.ids, table.people, strict=True)) == [row[:2] for row in rows]
        assert len(table.vectors) == 3


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Four people, each in a shard of their own, whose patches are cut."""
    settings = write_tiny_inputs(tmp_path, people=4, views=1, size=160).settings()
    cut(settings, Profile(name="test", inputs=InputsConfig(**ONE_PERSON_A_SHARD), processing=PROCESSING))
    return settings


def cut(settings: Settings, profile: Profile) -> None:
    for shard in build_catalog(settings, profile).frame.shard.dropna().unique():
        make_image_parts(shard, settings, profile, ("hair_patches",))


def test_two_names_of_one_person_never_stand_on_both_sides(settings: Settings) -> None:
    people = read_catalog(settings.catalog_path).groupby("source").split.first()
    held_out, alias = (people.index[people == split][0] for split in ("validation", "train"))
    inputs = InputsConfig(**ONE_PERSON_A_SHARD, same_person={alias: held_out})
    old_shards = {path.stem for path in (settings.processed / "hair_patches").glob("*.parquet")}
    cut(settings, Profile(name="test", inputs=inputs, processing=PROCESSING))
    members = Members.read(settings.catalog_path)
    assert len(old_shards - members.by_shard.keys()) == 1  # and its files are there still

    table = PatchStore(settings.processed / "hair_patches", members).table
    catalog = read_catalog(settings.catalog_path).set_index("image_id")
    assert set(table.image_id) == set(catalog.index)
    assert table.person.tolist() == catalog.source[table.image_id].tolist()
    assert table.split.tolist() == catalog.split[table.image_id].tolist()
    assert alias not in set(table.person)


def test_the_version_of_what_is_read_is_that_of_the_catalogs_shards(settings: Settings) -> None:
    before = asset_versions(settings, "hair_patches")
    leave_others_files(settings.processed / "hair_patches")
    assert asset_versions(settings, "hair_patches") == before
    (settings.processed / "hair_patches" / "shard_0000.json").unlink()
    assert asset_versions(settings, "hair_patches") != before
