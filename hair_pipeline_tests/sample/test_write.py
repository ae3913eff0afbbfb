"""The files: layout, training_face outputs, faults, idempotence."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from hair_pipeline import vocabulary
from hair_pipeline.errors import PipelineError
from hair_pipeline.files import decode_image, hash_files
from hair_pipeline.sample.write import SampleSummary, write_sample

PEOPLE, VIEWS = 3, 3


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SampleSummary]:
    out = tmp_path_factory.mktemp("sample")
    return out, write_sample(out, people=PEOPLE, views=VIEWS, customers=1, seed=2, faults=True, workers=1)


def _labels(out: Path) -> list[tuple[Path, dict]]:
    paths = [p for p in (out / "k_hairstyle").rglob("*.json") if "FAULT" not in p.name]
    return [(p, json.loads(p.read_text(encoding="utf-8"))) for p in sorted(paths)]


def test_counts(written: tuple[Path, SampleSummary]) -> None:
    out, summary = written
    assert summary.images == PEOPLE * VIEWS == len(_labels(out))
    assert summary.faces == PEOPLE * 2  # front and three-quarter, not the back
    assert not summary.reused
    assert summary.faults == len(json.loads((out / "faults.json").read_text(encoding="utf-8")))


def test_layout_is_k_hairstyles(written: tuple[Path, SampleSummary]) -> None:
    out, _ = written
    for path, label in _labels(out):
        part, the_set, kind, name, style, person, file = path.relative_to(out / "k_hairstyle").parts
        assert (part in ("Training", "Validation"), the_set, kind, name) == (True, "mqset", "labels", "0002.mqset")
        assert style.split(".")[1] in vocabulary.BASE_STYLE
        assert person.split(".")[1] == label["source"] == file.split("_")[0]
        image = path.parents[6] / part / "mqset" / "images" / name / style / person / label["filename"]
        assert image.name.replace("-", "_").rsplit(".", 1)[0] == path.stem
        assert decode_image(image.read_bytes()).shape == (512, 512, 3)
    sources = [{p.parent.name for p, _ in _labels(out) if part in p.parts} for part in ("Training", "Validation")]
    assert len(sources[0] & sources[1]) == 1


def test_face_outputs_are_training_faces(written: tuple[Path, SampleSummary]) -> None:
    out, _ = written
    stems = {label["filename"].rsplit(".", 1)[0]: label for _, label in _labels(out)}
    found = {}
    for path in (out / "training_face").rglob("face_01_*.json"):
        stem = path.relative_to(out / "training_face").parts[0]
        if not stem.startswith("FAULT"):
            found[stem] = path
    for stem, label in stems.items():
        azimuth = float(label["horizontal"])
        assert (stem in found) == (min(azimuth, 360 - azimuth) <= 95)
    for path in found.values():
        record = json.loads(path.read_text(encoding="utf-8"))
        vector = np.load(path.with_name(record["embedding_path"]))
        assert vector.dtype == np.float32
        assert vector.shape == (512,)
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
        assert record["embedding_model"] == ("InsightFace" if abs(record["yaw"]) < 45 else "AdaFace")
        sheet = decode_image(path.with_name(record["visualization_path"]).read_bytes())
        assert sheet.shape == (1024, 1024, 3)
        assert set(np.unique(sheet[:512, 512:])) == {0, 128, 255}
        x0, y0, x1, y1 = record["bbox"]
        skin = sheet[:512, 512:, 0] == 255
        assert skin[int(y0) : int(y1), int(x0) : int(x1)].mean() > 0.3


def test_customers_have_faces_beside(written: tuple[Path, SampleSummary]) -> None:
    out, _ = written
    photos = sorted((out / "customers").glob("*.jpg"))
    assert len(photos) == 1
    assert list((out / "customers" / photos[0].stem).rglob("face_01/*.json"))


def test_every_fault_is_there(written: tuple[Path, SampleSummary]) -> None:
    out, _ = written
    records = json.loads((out / "faults.json").read_text(encoding="utf-8"))
    assert len({r["source"] for r in records}) == len(records) >= 24
    files = [p.name for p in out.rglob("*FAULT*") if p.is_file()]
    for record in records:
        assert any(record["source"] in name for name in files), record
    disguised = next(r for r in records if r["fault"].startswith("JSON disguised"))
    image = next((out / "k_hairstyle").rglob(f"{disguised['image_id']}.jpg"))
    assert json.loads(image.read_text(encoding="utf-8"))["source"] == disguised["source"]
    assert not list(out.parent.rglob("outside.jpg"))


def test_the_same_arguments_write_nothing_again(written: tuple[Path, SampleSummary]) -> None:
    out, summary = written
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}
    again = write_sample(out, people=PEOPLE, views=VIEWS, customers=1, seed=2, faults=True, workers=1)
    assert again.reused
    assert again.seconds < 1
    assert (again.images, again.faces, again.faults) == (summary.images, summary.faces, summary.faults)
    assert before == {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}


def test_two_processes_write_what_one_does_and_other_arguments_replace(tmp_path: Path) -> None:
    def content() -> str:
        files = [p for p in tmp_path.rglob("*") if p.is_file() and p.name != "sample.json"]
        return hash_files(files, tmp_path)

    write_sample(tmp_path, people=2, views=1, customers=0, seed=4, workers=1)
    alone = content()
    write_sample(tmp_path, people=1, views=1, customers=0, seed=4, workers=1)
    assert content() != alone
    write_sample(tmp_path, people=2, views=1, customers=0, seed=4, workers=2)
    assert content() == alone


def test_a_sample_for_faces_shows_every_face_with_another_hairstyle(tmp_path: Path) -> None:
    summary = write_sample(tmp_path, people=2, views=2, customers=0, seed=3, faces=True, workers=1)
    assert (summary.faces, summary.blurred) == (4, 0)
    labels = [json.loads(path.read_text()) for path in sorted((tmp_path / "k_hairstyle").rglob("*.json"))]
    hair = {
        (label["source"], label["basestyle"], label["length"], label["curl"], str(label["rgb"])) for label in labels
    }
    assert len(hair) == len(labels) == 4
    assert all(label["polygon2"] == "[]" for label in labels)


def test_a_folder_that_is_no_sample_is_left_alone(tmp_path: Path) -> None:
    precious = tmp_path / "k_hairstyle" / "mine.txt"
    precious.parent.mkdir()
    precious.write_text("x")
    with pytest.raises(PipelineError, match="not written by this command"):
        write_sample(tmp_path, people=1, views=1, customers=0, workers=1)
    assert precious.exists()


def test_senseless_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="at least one person"):
        write_sample(tmp_path, people=0)
