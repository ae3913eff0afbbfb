"""The catalog on good inputs: every file accounted for, deterministic, append-only, and what each column says."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hair_pipeline.inputs.catalog import CatalogResult, build_catalog, read_catalog
from hair_pipeline.inputs.columns import SCHEMA
from hair_pipeline.inputs.examine import mask_iou
from hair_pipeline.inputs.fingerprint import fingerprint_folder
from hair_pipeline.inputs.samples import load_photo, load_sample
from hair_pipeline.inputs.shards import Assignments
from hair_pipeline.inputs.workers import map_in_processes
from hair_pipeline.profile import InputsConfig, Profile
from hair_pipeline_tests.inputs.tiny_inputs import TinyInputs, draw_person, write_tiny_inputs

PROFILE = Profile(name="test", inputs=InputsConfig(shard_size=6))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> TinyInputs:
    root = tmp_path_factory.mktemp("catalog")
    return write_tiny_inputs(root, people=4, views=3, size=192, back_view=True, blurred_people=1, customers=2)


@pytest.fixture(scope="module")
def result(inputs: TinyInputs) -> CatalogResult:
    return build_catalog(inputs.settings(), PROFILE)


def test_every_image_is_accepted(inputs: TinyInputs, result: CatalogResult) -> None:
    assert list(result.frame.columns) == SCHEMA.names
    assert result.frame.accepted.all()
    assert sorted(result.frame.image_id) == sorted(inputs.image_ids)
    assert result.summary["files"] == {"found": 24, "images_accepted": 12, "rows_rejected": 0}


def test_faces_masks_and_identity(result: CatalogResult) -> None:
    frame = result.frame.set_index("image_id")
    front, back = frame.iloc[0], frame.iloc[2]
    assert (front.mask_origin, front.has_face, front.stage2, front.identity_reliable) == (
        "training_face",
        True,
        True,
        True,
    )
    assert front.mask_iou > 0.9
    assert front.identity_reason is None
    assert (back.mask_origin, back.has_face, back.stage2) == ("polygon", False, False)
    assert (back.face_reason, back.stage2_reason, back.identity_reason) == ("no_output", "no_output", "no_face")
    assert np.isnan(back.box_x1)
    assert result.summary["identity"] == {"blurred_face": 2, "no_face": 4, "reliable": 6}
    blurred = frame[frame.identity_reason == "blurred_face"]
    assert blurred.stage2.all()


def test_attributes_are_english(result: CatalogResult) -> None:
    row = result.frame.iloc[0]
    assert (row.base_style, row.length, row.curl, row.curl_class, row.has_bangs) == (
        "parted",
        "long",
        "none",
        "straight",
        False,
    )
    assert row.rgb == [38.0, 30.0, 28.0]


def test_people_are_whole_in_shards_and_splits(result: CatalogResult) -> None:
    per_person = result.frame.groupby("source")[["shard", "split"]].nunique()
    assert (per_person == 1).all().all()
    assert result.frame.shard.nunique() == 2
    assert set(result.frame.split) == {"train", "validation"}


def test_the_same_inputs_give_the_same_bytes(inputs: TinyInputs, result: CatalogResult, tmp_path: Path) -> None:
    settings = inputs.settings(training_root=tmp_path / "other")
    again = build_catalog(settings, PROFILE)
    assert again.data_version == result.data_version
    assert settings.catalog_path.read_bytes() == inputs.settings().catalog_path.read_bytes()
    assert build_catalog(settings, PROFILE).data_version == result.data_version


def test_new_people_leave_old_shards_and_splits_alone(inputs: TinyInputs, tmp_path: Path) -> None:
    shutil.copytree(inputs.root / "k_hairstyle", tmp_path / "k_hairstyle")
    shutil.copytree(inputs.root / "training_face", tmp_path / "training_face")
    small = TinyInputs(tmp_path, tmp_path / "k_hairstyle", tmp_path / "training_face", tmp_path / "customers", [], [])
    for folder in list((tmp_path / "k_hairstyle").rglob("*CP100000")):
        shutil.rmtree(folder)
    before = build_catalog(small.settings(), PROFILE).frame
    shutil.copytree(inputs.root / "k_hairstyle", tmp_path / "k_hairstyle", dirs_exist_ok=True)
    after = build_catalog(small.settings(), PROFILE).frame
    merged = before.merge(after, on="image_id", suffixes=("_before", "_after"))
    assert len(merged) == len(before)
    assert (merged.shard_before == merged.shard_after).all()
    assert (merged.split_before == merged.split_after).all()
    newcomers = after[~after.source.isin(before.source)]
    assert not set(newcomers.shard) & set(before.shard)


def test_a_lost_file_of_assignments_is_made_again_from_the_catalog(inputs: TinyInputs, tmp_path: Path) -> None:
    settings = inputs.settings(training_root=tmp_path / "training")
    settings.processed.mkdir(parents=True)
    path = settings.processed / "assignments.json"
    moved = Assignments(dict.fromkeys(inputs.sources, "shard_0007"), {inputs.sources[2]: "validation"}, 0.05, 0)
    moved.write(path)
    before = build_catalog(settings, PROFILE)
    assert set(before.frame.shard) == {"shard_0007"}
    kept = path.read_bytes()
    path.unlink()
    assert build_catalog(settings, PROFILE).data_version == before.data_version
    assert Assignments.read(path).shards == moved.shards
    assert path.read_bytes() == kept


def test_the_merged_tree_gives_the_same_people(inputs: TinyInputs, result: CatalogResult, tmp_path: Path) -> None:
    merged = tmp_path / "merged"
    merged.mkdir()
    for path in [*inputs.k_hairstyle.rglob("*.jpg"), *inputs.k_hairstyle.rglob("*.json")]:
        target = merged / "training" / "images" / path.parts[-3] / path.parts[-2] / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    settings = inputs.settings(k_hairstyle_root=merged, training_root=tmp_path / "training")
    frame = build_catalog(settings, PROFILE).frame
    columns = ["image_id", "source", "base_style", "curl", "shard", "split", "content_hash"]
    pd.testing.assert_frame_equal(frame[columns], result.frame[columns])


def test_reading_one_shard(inputs: TinyInputs, result: CatalogResult) -> None:
    part = read_catalog(inputs.settings().catalog_path, "shard_0001")
    assert set(part.shard) == {"shard_0001"}
    assert len(part) == (result.frame.shard == "shard_0001").sum()


def test_samples(inputs: TinyInputs, result: CatalogResult) -> None:
    settings = inputs.settings()
    for row in result.frame.itertuples():
        sample = load_sample(row, settings, 128)
        assert sample.image.shape == (128, 128, 3)
        assert sample.image.dtype == np.uint8
        assert sample.hair_mask.shape == sample.face_mask.shape == (128, 128)
        assert sample.hair_mask.any()
        assert not (sample.hair_mask & sample.face_mask).any()
        assert sample.face_mask.any() == row.stage2
        assert (sample.box is None) == (not row.has_face)
    drawn = draw_person(0, 0, size=192)
    photo = load_photo(result.frame.iloc[0], settings)
    np.testing.assert_array_equal(photo.hair_mask, drawn.hair_mask)
    np.testing.assert_allclose(photo.box, drawn.box, atol=0.1)


def test_the_fingerprint_follows_content_and_names_only(tmp_path: Path) -> None:
    made = write_tiny_inputs(tmp_path / "a", people=2, views=1, size=64)
    first = fingerprint_folder(made.root)
    shutil.copytree(made.root, tmp_path / "b")
    assert fingerprint_folder(tmp_path / "b") == first
    path = next((tmp_path / "b").rglob("*.json"))
    path.write_bytes(path.read_bytes().replace(b"1", b"2", 1))
    assert fingerprint_folder(tmp_path / "b") != first


def test_iou() -> None:
    mask = np.eye(4, dtype=bool)
    assert mask_iou(mask, mask) == 1
    assert mask_iou(mask, ~mask) == 0
    assert mask_iou(~mask & mask, mask & ~mask) == 0


def test_a_pool_gives_results_in_order() -> None:
    assert list(map_in_processes(abs, range(-40, 0), description="test", chunk=4, workers=2)) == list(range(40, 0, -1))
