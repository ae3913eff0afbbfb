"""The shard functions: right files, no bad image stops them, idempotent, no stale or half files."""

import errno
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from hair_pipeline import files
from hair_pipeline.errors import PipelineError
from hair_pipeline.files import decode_image, read_image
from hair_pipeline.inputs.catalog import build_catalog, read_catalog
from hair_pipeline.inputs.samples import load_photo, load_sample
from hair_pipeline.processing import journal, shard_pictures, work
from hair_pipeline.processing.report import ShardReport
from hair_pipeline.processing.shards import (
    IMAGE_PARTS,
    cut_hair_patches,
    gather_identity_embeddings,
    make_bald_images,
    make_hair_only_images,
    make_image_parts,
)
from hair_pipeline.profile import InputsConfig, PatchConfig, ProcessingConfig, Profile
from hair_pipeline.settings import Settings
from hair_pipeline_tests.inputs.tiny_inputs import embedding, write_tiny_inputs

PROFILE = Profile(name="test", processing=ProcessingConfig(size=128, patches=PatchConfig(sizes=(32, 16), per_image=3)))
SHARD = "shard_0000"
FUNCTIONS = (gather_identity_embeddings, make_bald_images, make_hair_only_images, cut_hair_patches)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    inputs = write_tiny_inputs(tmp_path, people=3, views=3, size=160, back_view=True, blurred_people=1)
    build_catalog(inputs.settings(), PROFILE)
    return inputs.settings()


def snapshot(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def outputs(settings: Settings) -> dict[str, bytes]:
    """All output files but the manifests, which hold timings."""
    return {name: data for name, data in snapshot(settings.processed).items() if not name.endswith(".json")}


@pytest.mark.parametrize("function", FUNCTIONS)
def test_twice_is_once(function: object, settings: Settings) -> None:
    first: ShardReport = function(SHARD, settings, PROFILE)  # type: ignore[operator]
    before = snapshot(settings.processed)
    second: ShardReport = function(SHARD, settings, PROFILE)  # type: ignore[operator]
    assert not first.reused
    assert second.reused
    assert snapshot(settings.processed) == before
    assert (second.data_version, second.written, second.numbers) == (first.data_version, first.written, first.numbers)
    assert first.preview is not None
    assert first.preview.stat().st_size <= 20_000
    assert second.preview == first.preview


def test_people_who_are_no_longer_relied_on_are_not_shown(settings: Settings) -> None:
    assert gather_identity_embeddings(SHARD, settings, PROFILE).preview is not None
    strict = PROFILE.model_copy(update={"inputs": InputsConfig(max_identity_yaw=0)})
    build_catalog(settings, strict)
    report = gather_identity_embeddings(SHARD, settings, strict)
    assert report.numbers["reliable"] == 0
    assert report.preview is None


def test_two_runs_on_one_shard_wait_for_each_other(settings: Settings) -> None:
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: make_image_parts(SHARD, settings, PROFILE), range(2)))
    for asset in IMAGE_PARTS:
        assert sorted(reports[asset].reused for reports in both) == [False, True]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_lost_output_is_made_again_with_the_same_bytes(function: object, settings: Settings) -> None:
    first: ShardReport = function(SHARD, settings, PROFILE)  # type: ignore[operator]
    before = outputs(settings)
    folder = settings.processed / first.asset
    lost = next(iter(sorted((folder / SHARD).iterdir()))) if (folder / SHARD).is_dir() else folder / f"{SHARD}.parquet"
    lost.unlink()
    (folder / f"{SHARD}.json").write_text("{ half a manifest")
    again: ShardReport = function(SHARD, settings, PROFILE)  # type: ignore[operator]
    assert not again.reused
    assert again.data_version == first.data_version
    assert outputs(settings) == before


def test_bald_and_hair_only_files(settings: Settings) -> None:
    make_bald_images(SHARD, settings, PROFILE)
    report = make_hair_only_images(SHARD, settings, PROFILE)
    assert report.written == 9
    for row in read_catalog(settings.catalog_path).itertuples():
        sample = load_sample(row, settings, 128)
        bald = read_image(settings.processed / "bald_images" / SHARD / f"{row.image_id}.jpg")
        assert bald.shape == (128, 128, 3)
        cut = read_image(settings.processed / "hair_only_images" / SHARD / f"{row.image_id}.webp", alpha=True)
        np.testing.assert_array_equal(cut[..., 3] > 0, sample.hair_mask)
        assert not cut[cut[..., 3] == 0].any()


def test_patch_table(settings: Settings) -> None:
    report = cut_hair_patches(SHARD, settings, PROFILE)
    rows = pq.read_table(settings.processed / "hair_patches" / f"{SHARD}.parquet").to_pylist()
    assert report.written == len(rows) > 9
    photos = {row.image_id: load_photo(row, settings) for row in read_catalog(settings.catalog_path).itertuples()}
    for row in rows:
        photo, size = photos[row["image_id"]], row["size"]
        window = np.s_[row["y"] : row["y"] + size, row["x"] : row["x"] + size]
        assert photo.sure_hair[window].all()
        assert not photo.blurred[window].any()
        assert decode_image(row["image"]).shape == (size, size, 3)
        assert row["scale"] == pytest.approx(160 / 128)
        assert row["person"] == photo.person


def test_identity_table(settings: Settings) -> None:
    report = gather_identity_embeddings(SHARD, settings, PROFILE)
    assert (report.written, report.skipped) == (6, {"no_face": 3})
    table = pq.read_table(settings.processed / "identity_embeddings" / f"{SHARD}.parquet")
    rows = table.to_pylist()
    assert [row["reason"] for row in rows].count("blurred_face") == 2
    assert sum(row["reliable"] for row in rows) == 4
    np.testing.assert_array_equal(np.float32(rows[0]["embedding"]), embedding(0, 0))
    assert report.numbers["same_person_cosine"] > 0.8 > abs(report.numbers["other_person_cosine"])


def test_one_bad_image_fails_alone(settings: Settings) -> None:
    rows = read_catalog(settings.catalog_path)
    (settings.k_hairstyle_root / rows.image_path[0]).write_bytes(b"\xff\xd8\xff broken")
    (settings.training_face_root / rows.sheet_path[1]).unlink()
    for function in FUNCTIONS[1:]:
        report = function(SHARD, settings, PROFILE)
        assert set(report.failed) == {rows.image_id[0], rows.image_id[1]}
        assert report.failed[rows.image_id[0]].startswith("UnreadableImage")


def test_what_failed_is_tried_again_and_nothing_else(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = {function: function(SHARD, settings, PROFILE) for function in FUNCTIONS}
    for folder in ("bald_images", "hair_only_images", "hair_patches", "identity_embeddings"):
        shutil.rmtree(settings.processed / folder)
    rows = read_catalog(settings.catalog_path)
    away = settings.k_hairstyle_root / rows.image_path[0], settings.training_face_root / rows.embedding_path[1]
    for path in away:
        path.rename(path.with_suffix(".away"))
    away[1].mkdir()  # there, and not readable
    for function in FUNCTIONS:
        report = function(SHARD, settings, PROFILE)
        place = 1 if function is gather_identity_embeddings else 0
        assert list(report.failed) == [rows.image_id[place]]
    away[1].rmdir()
    for path in away:
        path.with_suffix(".away").rename(path)
    made: list[str] = []
    load = work.load_photo
    monkeypatch.setattr(work, "load_photo", lambda row, roots: (made.append(row.image_id), load(row, roots))[1])
    monkeypatch.setattr("hair_pipeline.processing.shards._draw", lambda *_: None)
    for function in FUNCTIONS:
        report = function(SHARD, settings, PROFILE)
        assert not report.reused
        assert report.failed == {}
        assert report.data_version == expected[function].data_version
        assert not list((settings.processed / report.asset).glob(".*.journal"))
        assert function(SHARD, settings, PROFILE).reused
    assert made == [rows.image_id[0]] * 3


def test_when_every_image_fails_the_old_shard_is_kept(settings: Settings) -> None:
    for function in FUNCTIONS[1:]:
        function(SHARD, settings, PROFILE)
    before = snapshot(settings.processed)
    for path in settings.k_hairstyle_root.rglob("*.jpg"):
        path.unlink()
    catalog = settings.catalog_path.read_bytes()
    other = PROFILE.model_copy(update={"processing": PROFILE.processing.model_copy(update={"size": 96})})
    for function in FUNCTIONS[1:]:
        with pytest.raises(PipelineError, match="none of the 9 images"):
            function(SHARD, settings, other)
    assert snapshot(settings.processed) == before
    assert settings.catalog_path.read_bytes() == catalog


def test_stale_files_are_removed(settings: Settings) -> None:
    make_bald_images(SHARD, settings, PROFILE)
    folder = settings.processed / "bald_images" / SHARD
    (folder / "gone-001.jpg").write_bytes(b"old")
    (folder / ".half.jpg.x.tmp").write_bytes(b"half")
    assert not make_bald_images(SHARD, settings, PROFILE).reused
    assert len(list(folder.iterdir())) == 9
    leftover = settings.processed / "hair_patches" / f".{SHARD}.123.tmp.parquet"
    leftover.parent.mkdir()
    leftover.write_bytes(b"half")
    cut_hair_patches(SHARD, settings, PROFILE)
    assert not leftover.exists()


@pytest.mark.parametrize("function", FUNCTIONS[1:])
def test_what_others_left_in_the_folders_is_neither_counted_nor_removed(function: object, settings: Settings) -> None:
    first: ShardReport = function(SHARD, settings, PROFILE)  # type: ignore[operator]
    folder = settings.processed / first.asset
    places = [folder, folder / SHARD] if (folder / SHARD).is_dir() else [folder]
    for place in places:
        for name in (".DS_Store", "._picture.jpg", "Thumbs.db"):
            (place / name).write_bytes(b"a desktop's")
        for name in (".ipynb_checkpoints", "@eaDir"):
            (place / name).mkdir()
    before = snapshot(folder)
    assert function(SHARD, settings, PROFILE).reused  # type: ignore[operator]
    assert snapshot(folder) == before
    (folder / f"{SHARD}.json").unlink()
    again: ShardReport = function(SHARD, settings, PROFILE)  # type: ignore[operator]
    assert (again.data_version, again.numbers["files"]) == (first.data_version, first.numbers["files"])
    for place in places:
        assert {".DS_Store", "Thumbs.db", ".ipynb_checkpoints", "@eaDir"} <= {path.name for path in place.iterdir()}


def test_foreign_files_in_a_journal_are_no_records(tmp_path: Path) -> None:
    journal.append(tmp_path, {"image_id": "a"})
    (tmp_path / ".DS_Store").write_bytes(b"a desktop's")
    (tmp_path / "@eaDir").mkdir()
    assert [record.facts["image_id"] for record in journal.read(tmp_path)] == ["a"]


def test_a_picture_that_can_no_longer_be_shown_fails_no_shard(settings: Settings) -> None:
    rows = read_catalog(settings.catalog_path)
    first, last = (settings.k_hairstyle_root / rows.image_path[place] for place in (0, 8))
    photo = last.read_bytes()
    last.write_bytes(b"broken")
    for function in FUNCTIONS[1:]:
        assert list(function(SHARD, settings, PROFILE).failed) == [rows.image_id[8]]
    last.write_bytes(photo)
    first.unlink()  # its parts are made
    for function in FUNCTIONS[1:]:
        report = function(SHARD, settings, PROFILE)
        assert report.failed == {}
        assert report.preview is not None
        assert report.steps is not None  # of another image


def test_without_anything_to_show_there_are_no_pictures(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, "the drive")

    for function in FUNCTIONS[1:]:
        function(SHARD, settings, PROFILE)
    monkeypatch.setattr(shard_pictures, "thumbnail", refuse)
    other = PROFILE.model_copy(update={"processing": PROFILE.processing.model_copy(update={"size": 96})})
    for function in FUNCTIONS[1:]:
        report = function(SHARD, settings, other)
        assert (report.failed, report.preview, report.steps) == ({}, None, None)
        assert not list((settings.processed / report.asset).glob("*.jpg"))


def test_a_journal_that_cannot_be_made_or_removed_is_explained(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    mkdir = Path.mkdir
    with monkeypatch.context() as patch:
        patch.setattr(
            Path, "mkdir", lambda path, *a, **k: (refuse if path.suffix == ".journal" else mkdir)(path, *a, **k)
        )
        with pytest.raises(PipelineError, match="cannot be written to"):
            make_bald_images(SHARD, settings, PROFILE)
    (settings.processed / "bald_images" / f".{SHARD}.other.journal").mkdir()
    monkeypatch.setattr(files.shutil, "rmtree", refuse)
    with pytest.raises(PipelineError, match="cannot be written to"):
        make_bald_images(SHARD, settings, PROFILE)


def test_other_settings_are_done_again(settings: Settings) -> None:
    first = make_bald_images(SHARD, settings, PROFILE)
    bald = PROFILE.processing.bald.model_copy(update={"method": "gray"})
    changed = PROFILE.model_copy(update={"processing": PROFILE.processing.model_copy(update={"bald": bald})})
    second = make_bald_images(SHARD, settings, changed)
    assert not second.reused
    assert second.data_version != first.data_version
    lossless = PROFILE.model_copy(update={"processing": PROFILE.processing.model_copy(update={"image_format": "png"})})
    make_bald_images(SHARD, settings, lossless)
    assert {path.suffix for path in (settings.processed / "bald_images" / SHARD).iterdir()} == {".png"}


def test_people_who_become_one_change_the_tables(settings: Settings) -> None:
    names = sorted({row.source for row in read_catalog(settings.catalog_path).itertuples()})
    for function in (cut_hair_patches, gather_identity_embeddings):
        function(SHARD, settings, PROFILE)
    joined = PROFILE.model_copy(update={"inputs": InputsConfig(same_person={names[1]: names[0]})})
    build_catalog(settings, joined)
    for function in (cut_hair_patches, gather_identity_embeddings):
        report = function(SHARD, settings, joined)
        table = pq.read_table(settings.processed / report.asset / f"{SHARD}.parquet", columns=["person"])
        assert not report.reused
        assert set(table.column("person").to_pylist()) == {names[0], names[2]}


def test_an_unknown_shard_and_a_missing_catalog_are_clear(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="no image is in 'shard_0042'"):
        make_bald_images("shard_0042", settings, PROFILE)
    settings.catalog_path.write_bytes(b"not parquet")
    with pytest.raises(PipelineError, match="not a readable catalog"):
        make_bald_images(SHARD, settings, PROFILE)
    settings.catalog_path.unlink()
    with pytest.raises(PipelineError, match="materialise"):
        make_bald_images(SHARD, settings, PROFILE)


def test_a_folder_that_cannot_be_written_stops_the_shard(settings: Settings) -> None:
    (settings.processed / "bald_images").write_bytes(b"a file where a folder should be")
    with pytest.raises(PipelineError):
        make_bald_images(SHARD, settings, PROFILE)


def test_the_manifest_is_plain_json(settings: Settings) -> None:
    report = make_bald_images(SHARD, settings, PROFILE)
    values = json.loads((settings.processed / "bald_images" / f"{SHARD}.json").read_text())
    assert values["fingerprint"] == report.fingerprint
    assert values["preview"] == f"{SHARD}.preview.jpg"


def test_the_pool_writes_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = write_tiny_inputs(tmp_path, people=16, views=4, size=64)
    settings = inputs.settings()
    build_catalog(settings, PROFILE)
    pooled = make_bald_images(SHARD, settings, PROFILE)
    monkeypatch.setattr("hair_pipeline.inputs.workers.cpu_count", lambda: 1)
    alone = settings.model_copy(update={"training_root": tmp_path / "alone"})
    build_catalog(alone, PROFILE)
    assert make_bald_images(SHARD, alone, PROFILE).data_version == pooled.data_version
