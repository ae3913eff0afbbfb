"""The generated tree with every known fault at once: every file accounted for, every expectation met."""

import io
import json
import zipfile
from pathlib import Path

import pandas as pd
import pytest

from hair_pipeline.inputs.catalog import CatalogResult, build_catalog
from hair_pipeline.inputs.reasons import Reason
from hair_pipeline.profile import Profile
from hair_pipeline.sample.write import write_sample
from hair_pipeline.settings import Settings

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CatalogResult]:
    root = tmp_path_factory.mktemp("faults")
    write_sample(root, people=2, views=2, customers=0, faults=True, workers=1)
    settings = Settings(
        k_hairstyle_root=root / "k_hairstyle",
        training_face_root=root / "training_face",
        training_root=root / "training",
    )
    return root, build_catalog(settings, Profile(name="test"))


def files(root: Path) -> list[str]:
    """Every file, with the entries of a readable zip in its place."""
    found: list[str] = []
    for path in (path for path in root.rglob("*") if path.is_file()):
        found += entries(path.relative_to(root).as_posix(), path)
    return sorted(found)


def entries(name: str, file: Path | io.BytesIO) -> list[str]:
    """The file itself, or what plain `zipfile` finds in it; the sample's zips have UTF-8 names without the flag."""
    if not name.endswith(".zip"):
        return [name]
    found: list[str] = []
    try:
        with zipfile.ZipFile(file) as archive:
            for inner in archive.namelist():
                path = f"{name}!/{inner.encode('cp437').decode()}"
                found += entries(path, io.BytesIO(archive.read(inner))) if inner.endswith(".zip") else [path]
    except zipfile.BadZipFile:
        return [name]
    return found or [name]


def test_every_file_stands_in_exactly_one_row(built: tuple[Path, CatalogResult]) -> None:
    root, result = built
    frame = result.frame
    named = [path for path in [*frame.image_path, *frame.label_path] if path is not None]
    assert sorted(named) == files(root / "k_hairstyle")
    assert result.summary["files"]["found"] == len(named)
    assert (frame.accepted == frame.reason.isna()).all()
    assert set(frame.reason.dropna()) <= {reason.value for reason in Reason}


def test_every_fault_is_found_as_foretold(built: tuple[Path, CatalogResult]) -> None:
    root, result = built
    records = json.loads((root / "faults.json").read_text(encoding="utf-8"))
    assert len(records) > 40
    for record in records:
        rows = result.frame[result.frame.image_id.str.replace("_", "-") == record["image_id"]]
        assert len(rows), record["fault"]
        row = rows.sort_values("accepted", ascending=False).iloc[0]
        for column, value in record["expect"].items():
            found = row[column]
            same = pd.isna(found) if value is None else found == value
            assert same, (record["fault"], column, value, found)


def test_copies_are_rejected_with_their_reason(built: tuple[Path, CatalogResult]) -> None:
    _, result = built
    counts = result.summary["rejected"]
    assert counts["duplicate_image"] == 1
    assert counts["other_set"] == 1
    assert result.summary["patches_from"]["a_larger_set"] == 1
    assert result.summary["files"]["archives_read"] == 6


def test_doing_it_again_changes_nothing(built: tuple[Path, CatalogResult]) -> None:
    root, result = built
    settings = Settings(
        k_hairstyle_root=root / "k_hairstyle",
        training_face_root=root / "training_face",
        training_root=root / "training",
    )
    again = build_catalog(settings, Profile(name="test"))
    assert again.unchanged
    assert again.summary == result.summary
    assert again.data_version == result.data_version
