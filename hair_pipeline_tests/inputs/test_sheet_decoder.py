"""training_face's outputs: sheets, embeddings and JSON are read or refused with a documented reason."""

import contextlib
import io
import json
import unicodedata
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hair_pipeline.inputs.examine import Candidate, Examiner, Task
from hair_pipeline.inputs.reasons import FaceReason
from hair_pipeline.inputs.training_face import (
    BadFace,
    choose_face,
    classify_quadrant,
    count_unused,
    decode_sheet,
    faces_of,
    index_faces,
    parse_embedding,
    read_face_json,
    scan_faces,
)
from hair_pipeline.profile import InputsConfig
from hair_pipeline_tests.inputs.tiny_inputs import draw_person, embedding, label, sheet, write_face, write_rgb

CONFIG = InputsConfig()


def png(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", image[..., ::-1])[1].tobytes()


def npy(vector: object, **options: bool) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(vector), **options)
    return buffer.getvalue()


def test_a_sheet_gives_its_masks_back() -> None:
    picture = draw_person(0, size=96)
    masks = decode_sheet(png(sheet(picture)), 96, 96)
    np.testing.assert_array_equal(masks.hair, picture.hair_mask)
    np.testing.assert_array_equal(masks.face, picture.face_mask & ~picture.hair_mask)


@given(arrays(np.uint8, (6, 5, 3), elements=st.sampled_from([0, 3, 125, 128, 131, 250, 255])))
def test_every_pixel_goes_to_the_nearest_value(quadrant: np.ndarray) -> None:
    quadrant = np.repeat(quadrant[..., :1], 3, axis=2)
    if ((quadrant > 64) & (quadrant < 192)).all():
        with pytest.raises(BadFace):
            classify_quadrant(quadrant)
        return
    masks = classify_quadrant(quadrant)
    np.testing.assert_array_equal(masks.hair, quadrant[..., 0] < 64)
    np.testing.assert_array_equal(masks.face, quadrant[..., 0] > 192)


def test_a_pixel_that_is_wrong_in_every_way_counts_once() -> None:
    with pytest.raises(BadFace) as caught:
        classify_quadrant(np.full((6, 5, 3), (200, 60, 200), np.uint8))
    assert caught.value.detail == "100.0% of the quadrant's pixels"


@given(st.binary(max_size=300) | st.just(png(np.zeros((8, 8, 3), np.uint8))), st.integers(1, 40), st.integers(1, 40))
def test_any_bytes_give_masks_or_bad_face(data: bytes, width: int, height: int) -> None:
    with contextlib.suppress(BadFace):
        assert decode_sheet(data, width, height).hair.shape == (height, width)


def test_sheets_that_are_refused() -> None:
    whole = sheet(draw_person(0, size=64))
    colored, gray, soft = whole.copy(), whole.copy(), cv2.GaussianBlur(whole, (0, 0), 3)
    colored[:64, 64:, 0] = 7 * np.arange(64)
    gray[:64, 64:] = 128
    cases = (
        (png(whole[:-2]), FaceReason.SHEET_WRONG_SIZE),
        (png(colored), FaceReason.SHEET_OTHER_VALUES),
        (png(soft), FaceReason.SHEET_OTHER_VALUES),
        (png(gray), FaceReason.SHEET_EMPTY),
        (png(whole)[:200], FaceReason.SHEET_UNREADABLE),
    )
    for data, reason in cases:
        with pytest.raises(BadFace) as caught:
            decode_sheet(data, 64, 64)
        assert caught.value.reason == reason


def test_embeddings() -> None:
    good = embedding(1)
    np.testing.assert_array_equal(parse_embedding(npy(good)), good)
    np.testing.assert_array_equal(parse_embedding(npy(good[None])), good)
    broken = good.copy()
    broken[3] = np.nan
    hostile = npy(np.array([{"a": 1}], dtype=object), allow_pickle=True)
    for data in (
        npy(good[:511]),
        npy(broken),
        npy(good * 2),
        npy(good * 0),
        npy(np.ones(512, int)),
        hostile,
        b"",
        b"x",
    ):
        assert parse_embedding(data) is None


@given(st.binary(max_size=200))
def test_any_bytes_are_no_embedding(data: bytes) -> None:
    assert parse_embedding(data) is None
    assert parse_embedding(npy(embedding(0))[:128] + data) is None


def test_index_knows_nested_stems_and_dates(tmp_path: Path) -> None:
    picture = draw_person(0, size=32)
    plain = write_face(tmp_path / "a-1", picture, embedding(0))
    write_face(tmp_path / "b-1" / "b-1", picture, embedding(0))
    write_face(tmp_path / "c-1_20250101", picture, embedding(0))
    for path in sorted(plain.parent.iterdir()):
        path.rename(path.with_stem(path.stem + "_20240101"))
    index = index_faces(tmp_path)
    assert set(index) == {"a-1", "b-1", "c-1", "c-1_20250101"}
    assert index["c-1"] == index["c-1_20250101"]
    dated = read_face_json(tmp_path, *index["a-1"])
    assert (tmp_path / dated.sheet_path).is_file()
    assert (tmp_path / dated.embedding_path).is_file()


def test_of_one_face_the_newest_naming_counts(tmp_path: Path) -> None:
    picture = draw_person(0, size=32)
    for date in ("_20240101", "_20250101"):
        write_face(tmp_path / f"a-1{date}", picture, embedding(0))
        path = write_face(tmp_path / "b-1", picture, embedding(0))
        path.rename(path.with_stem(path.stem + date))
        path = write_face(tmp_path / "c-1", picture, embedding(0), bbox=[0, 0, 32, 32])
        path.rename(path.with_stem(path.stem + date))
        write_face(tmp_path / f"d-1{date}" / "d-1", picture, embedding(0))
    write_face(tmp_path / "c-1", picture, embedding(0), bbox=[2, 2, 30, 30])
    write_face(tmp_path / "c-1", picture, embedding(0), number=2)
    index = index_faces(tmp_path)
    assert index["a-1"] == ["a-1_20250101/face_01/face_01_yaw_4.json"]
    assert index["b-1"] == ["b-1/face_01/face_01_yaw_4_20250101.json"]
    assert index["c-1"] == [f"c-1/face_0{number}/face_0{number}_yaw_4.json" for number in (1, 2)]
    assert index["d-1"] == ["d-1_20250101/d-1/face_01/face_01_yaw_4.json"]
    assert choose_face(tmp_path, index["c-1"][:1], 32, 32, CONFIG).box == (2, 2, 30, 30)


def test_hidden_files_are_no_faces_and_a_face_without_json_is_a_bad_one(tmp_path: Path) -> None:
    path = write_face(tmp_path / "a-1", draw_person(0, size=32), embedding(0))
    path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7")
    assert index_faces(tmp_path)["a-1"] == [path.relative_to(tmp_path).as_posix()]
    path.unlink()
    assert index_faces(tmp_path) == {}
    (folder,) = scan_faces(tmp_path).files["a-1"].paths
    with pytest.raises(BadFace, match="bad_json: a-1/face_01/: no JSON"):
        choose_face(tmp_path, [folder], 32, 32, CONFIG)
    dated = write_face(tmp_path / "a-1_20250101", draw_person(0, size=32), embedding(0))
    assert scan_faces(tmp_path).files["a-1"].paths == (dated.relative_to(tmp_path).as_posix(),)


def test_outputs_of_no_image_are_counted(tmp_path: Path) -> None:
    for stem in ("a-1", "a_2", "b-1_20250101", "c-1_20240101", "c-1_20250101", "d-1_20240101", "e-1/e-1"):
        write_face(tmp_path / stem, draw_person(0, size=32), embedding(0))
    faces = scan_faces(tmp_path)
    assert count_unused(faces, {"a-1", "a-2", "b-1", "d-1_20240101"}) == 3
    assert count_unused(faces, {"a-1", "a_2", "b-1", "c-1", "d-1", "e-1"}) == 0


def test_the_largest_confident_face_is_chosen(tmp_path: Path) -> None:
    picture = draw_person(0, size=128)
    boxes = {1: ([10, 10, 30, 30], 0.9), 2: ([10, 10, 90, 90], 0.9), 3: ([0, 0, 128, 128], 0.2)}
    for number, (box, confidence) in boxes.items():
        write_face(tmp_path / "a", picture, embedding(0), number=number, bbox=box, confidence=confidence)
    paths = index_faces(tmp_path)["a"]
    assert choose_face(tmp_path, paths, 128, 128, CONFIG).face_id == 2
    with pytest.raises(BadFace) as caught:
        choose_face(tmp_path, [path for path in paths if "face_03" in path], 128, 128, CONFIG)
    assert caught.value.reason == FaceReason.LOW_CONFIDENCE
    with pytest.raises(BadFace) as caught:
        choose_face(tmp_path, [], 128, 128, CONFIG)
    assert caught.value.reason == FaceReason.NO_OUTPUT


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"bbox": None}, FaceReason.BAD_JSON),
        ({"bbox": [1, 2, 3]}, FaceReason.BAD_JSON),
        ({"bbox": [1, 2, "x", 4]}, FaceReason.BAD_JSON),
        ({"bbox": [30, 30, 20, 20]}, FaceReason.BAD_BOX),
        ({"bbox": [900, 900, 950, 950]}, FaceReason.BAD_BOX),
        ({"confidence": "high"}, FaceReason.LOW_CONFIDENCE),
        ({"embedding_path": "../../../secret.npy"}, FaceReason.PATH_OUTSIDE_ROOT),
        ({"visualization_path": "../../../x.png"}, FaceReason.PATH_OUTSIDE_ROOT),
    ],
)
def test_faces_that_are_refused(tmp_path: Path, changes: dict[str, object], reason: FaceReason) -> None:
    write_face(tmp_path / "a", draw_person(0, size=64), embedding(0), **changes)
    with pytest.raises(BadFace) as caught:
        choose_face(tmp_path, index_faces(tmp_path)["a"], 64, 64, CONFIG)
    assert caught.value.reason == reason


TEXT = st.text(st.characters(exclude_categories=()), max_size=5)
VALUES = st.none() | st.integers() | st.floats() | TEXT | st.lists(st.integers() | TEXT)
FACES = st.fixed_dictionaries(
    {},
    optional={
        "bbox": st.just([10, 10, 50, 60]) | VALUES,
        "confidence": st.just(0.9) | VALUES,
        **dict.fromkeys(("yaw", "pitch", "face_id", "embedding_model"), VALUES),
        **dict.fromkeys(("embedding_path", "visualization_path"), VALUES | TEXT.map("a/{}".format)),
    },
)


@pytest.fixture(scope="module")
def examiner(tmp_path_factory: pytest.TempPathFactory) -> Examiner:
    """Of one photo, "a.jpg", and its face's JSON, "a/face_01/face_01.json", which is still to be written."""
    root = tmp_path_factory.mktemp("any_json")
    (root / "a" / "face_01").mkdir(parents=True)
    picture = draw_person(0, size=64)
    write_rgb(root / "a.jpg", picture.photo)
    (root / "a.json").write_text(json.dumps(label("CP1", "a.jpg", 0, picture)))
    return Examiner(root, root, CONFIG, 64)


@given(st.binary(max_size=100) | FACES.map(lambda values: json.dumps(values).encode()))
@example(json.dumps({"bbox": [10, 10, 50, 60], "confidence": 0.9, "face_id": 3_000_000_000}).encode())
@example(json.dumps({"bbox": [10, 10, 50, 60], "confidence": 0.9, "face_id": 1e300}).encode())
@example(json.dumps({"bbox": [10, 10, 50, 60], "confidence": 0.9, "embedding_model": "\ud800"}).encode())
@example(json.dumps({"bbox": [10, 10, 50, 60], "confidence": 0.9, "embedding_path": "a/\ud800x.npy"}).encode())
@example(json.dumps({"bbox": [10, 10, 50, 60], "confidence": 0.9, "embedding_path": "a/" + 5000 * "x"}).encode())
@example(json.dumps({"bbox": "\ud800"}).encode())
def test_any_json_gives_a_row(examiner: Examiner, data: bytes) -> None:
    (examiner.training_face_root / "a" / "face_01" / "face_01.json").write_bytes(data)
    task = Task((Candidate("a.jpg", "a.json"),), ("a/face_01/face_01.json",), 0)
    (row,) = examiner([task]).to_pylist()
    assert row["accepted"]
    assert row["has_face"] or row["face_reason"]


def test_of_one_photo_only_the_folders_right_under_the_root_are_looked_at(tmp_path: Path) -> None:
    person = draw_person(0, size=64)
    for folder in ("anna/photo", "other/anna/photo", "photo_other", "other_20250101"):
        write_face(tmp_path / folder, person, embedding(1))
    assert faces_of(tmp_path, "photo") == []
    assert faces_of(tmp_path / "nowhere", "photo") == []
    assert faces_of(tmp_path / "anna", ".") == []
    older = write_face(tmp_path / "photo_20240101" / "photo_20240101", person, embedding(0))
    assert faces_of(tmp_path, "photo") == [older.relative_to(tmp_path).as_posix()]
    newer = write_face(tmp_path / "photo_20250101", person, embedding(0))
    assert faces_of(tmp_path, "photo") == [newer.relative_to(tmp_path).as_posix()]
    nested = write_face(tmp_path / "photo" / "photo", person, embedding(0))
    assert faces_of(tmp_path, "photo") == [nested.relative_to(tmp_path).as_posix()]
    korean = write_face(tmp_path / unicodedata.normalize("NFD", "사진"), person, embedding(0))
    assert faces_of(tmp_path, "사진") == [korean.relative_to(tmp_path).as_posix()]
