"""Bad input: each fault becomes one counted row with its reason, or one clear error; no file is dropped."""

import errno
import json
import os
import shutil
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from hair_pipeline.errors import PipelineError
from hair_pipeline.inputs.catalog import build_catalog
from hair_pipeline.inputs.examine import Examiner, Task
from hair_pipeline.inputs.folder_state import folder_state
from hair_pipeline.inputs.largest import load_largest
from hair_pipeline.inputs.reasons import FaceReason, IdentityReason, Reason
from hair_pipeline.inputs.samples import load_photo
from hair_pipeline.inputs.summary import summarise
from hair_pipeline.profile import Profile
from hair_pipeline.settings import PROJECT_ROOT
from hair_pipeline_tests.inputs.tiny_inputs import (
    TinyInputs,
    draw_person,
    embedding,
    label,
    sheet,
    write_face,
    write_rgb,
    write_tiny_inputs,
)

PROFILE = Profile(name="test")


@pytest.fixture
def inputs(tmp_path: Path) -> TinyInputs:
    return write_tiny_inputs(tmp_path / "inputs", people=3, views=2, size=128)


def files(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def reasons(inputs: TinyInputs) -> dict[str, str]:
    """File name -> reason of the rejected rows; also checks that every file has exactly one row."""
    frame = build_catalog(inputs.settings(), PROFILE).frame
    named = [path for path in [*frame.image_path, *frame.label_path] if path is not None]
    assert sorted(named) == files(inputs.k_hairstyle)
    rejected = frame[~frame.accepted]
    assert set(rejected.reason) <= {reason.value for reason in Reason}
    return {
        Path(path or other).name: reason
        for path, other, reason in zip(rejected.image_path, rejected.label_path, rejected.reason, strict=True)
    }


def image_and_label(inputs: TinyInputs, image_id: str) -> tuple[Path, Path]:
    image = next(inputs.k_hairstyle.rglob(f"{image_id}.jpg"))
    return image, next(inputs.k_hairstyle.rglob(f"{image_id.replace('-', '_')}.json"))


def edit(path: Path, **changes: object) -> None:
    values = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(values | changes, ensure_ascii=False), encoding="utf-8")


def test_every_fault_at_once(inputs: TinyInputs) -> None:
    ids = inputs.image_ids
    folder = image_and_label(inputs, ids[0])[0].parent
    image, _ = image_and_label(inputs, ids[1])
    image.write_bytes(image.read_bytes()[:700])
    image, _ = image_and_label(inputs, ids[3])
    image.write_bytes(b'{"filename": "x"}')
    (folder / "CP100000-900.jpg").write_bytes(b'{"filename": "CP100000-900.jpg"}')
    shutil.copy(folder / f"{ids[0]}.jpg", folder / "CP100000-901.JPG")
    labels = image_and_label(inputs, ids[0])[1].parent
    values = label("CP100000", "CP100000-902.jpg", 0, draw_person(0, size=128))
    (labels / "CP100000_902.json").write_text(json.dumps(values))
    (labels / "CP100000_903.json").write_text(json.dumps(values | {"filename": "../../../escape.jpg"}))
    (labels / "CP100000_904.json").write_text("[]")
    (labels / "CP100000_905.json").write_bytes(b"\xff\x00")
    (labels / "CP100000_906.json").write_text(json.dumps(values | {"filename": f"{ids[0]}.jpg"}))
    (inputs.k_hairstyle / "labels.zip").write_bytes(b"PK")
    (inputs.k_hairstyle / "Thumbs.db").write_bytes(b"x")
    found = reasons(inputs)
    assert found == {
        f"{ids[1]}.jpg": Reason.TRUNCATED_IMAGE,
        f"{ids[3]}.jpg": Reason.JSON_AS_IMAGE,
        "CP100000-900.jpg": Reason.JSON_AS_IMAGE,
        "CP100000-901.JPG": Reason.IMAGE_WITHOUT_LABEL,
        "CP100000_902.json": Reason.LABEL_WITHOUT_IMAGE,
        "CP100000_903.json": Reason.PATH_OUTSIDE_ROOT,
        "CP100000_904.json": Reason.NOT_A_LABEL,
        "CP100000_905.json": Reason.UNREADABLE_LABEL,
        "CP100000_906.json": Reason.DUPLICATE_LABEL,
        "labels.zip": Reason.UNREADABLE_ARCHIVE,
        "Thumbs.db": Reason.UNKNOWN_FILE,
    }


def test_the_same_image_in_training_and_validation_counts_once(inputs: TinyInputs) -> None:
    shutil.copytree(inputs.k_hairstyle / "Training", inputs.k_hairstyle / "Validation")
    result = build_catalog(inputs.settings(), PROFILE)
    assert Counter(result.frame.reason.dropna()) == {"duplicate_image": 6}
    assert all(path.startswith("Training") for path in result.frame.image_path[result.frame.accepted])


def test_of_two_sets_the_one_training_face_saw_is_kept(inputs: TinyInputs) -> None:
    for image_id in inputs.image_ids:
        image, label_path = image_and_label(inputs, image_id)
        larger = cv2.resize(cv2.imread(str(image)), None, fx=2, fy=2)
        write_rgb(Path(str(image).replace("mqset", "hqset")), larger[..., ::-1])
        target = Path(str(label_path).replace("mqset", "hqset"))
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(label_path, target)
    frame = build_catalog(inputs.settings(), PROFILE).frame
    assert frame.accepted.sum() == len(inputs.image_ids)
    assert all("mqset" in path for path in frame.image_path[frame.accepted])
    assert set(frame.reason.dropna()) == {"other_set"}


def test_people_in_both_sets_are_counted(inputs: TinyInputs) -> None:
    for path in image_and_label(inputs, inputs.image_ids[0]):
        target = inputs.k_hairstyle / "Validation" / path.relative_to(inputs.k_hairstyle / "Training")
        target.parent.mkdir(parents=True)
        path.rename(target)
    summary = build_catalog(inputs.settings(), PROFILE).summary
    assert summary["people"]["in_training_and_validation"] == 1


def test_no_mask_at_all(inputs: TinyInputs) -> None:
    edit(image_and_label(inputs, inputs.image_ids[0])[1], polygon1="[]")
    shutil.rmtree(inputs.training_face / inputs.image_ids[0])
    assert reasons(inputs) == {f"{inputs.image_ids[0]}.jpg": Reason.NO_HAIR_MASK}


def test_a_label_of_another_size_is_scaled(inputs: TinyInputs) -> None:
    _, path = image_and_label(inputs, inputs.image_ids[0])
    rings = json.loads(json.loads(path.read_text())["polygon1"])
    doubled = [[{"x": 2 * point["x"], "y": 2 * point["y"]} for point in ring] for ring in rings]
    edit(path, polygon1=json.dumps(doubled), width="256", height=256.0)
    frame = build_catalog(inputs.settings(), PROFILE).frame.set_index("image_id")
    assert frame.mask_iou[inputs.image_ids[0]] > 0.9


@pytest.mark.parametrize(
    "polygon", ['[[{"x":1,"y":2},{"x":3', {"x": 10, "y": 10, "w": 40, "h": 40}, [[[1, 1], [5, 5]]]]
)
def test_a_blurred_face_with_a_broken_outline_is_no_identity(inputs: TinyInputs, polygon: object) -> None:
    edit(image_and_label(inputs, inputs.image_ids[0])[1], polygon2=polygon)
    result = build_catalog(inputs.settings(), PROFILE)
    row = result.frame.set_index("image_id", drop=False).loc[inputs.image_ids[0]]
    assert row.face_blurred
    assert row.identity_reason == IdentityReason.BLURRED_FACE
    assert row.label_problems.startswith("polygon2: ")
    assert sum(result.summary["label_problems"].values()) == 1
    photo = load_photo(row, inputs.settings())
    x1, y1, x2, y2 = np.round(photo.box).astype(int)
    assert photo.blurred[y1:y2, x1:x2].all()
    assert photo.blurred.sum() < 1.1 * (x2 - x1) * (y2 - y1)


def test_a_label_does_not_make_two_people_of_one(inputs: TinyInputs) -> None:
    first, second, third = (image_and_label(inputs, inputs.image_ids[number])[1] for number in (0, 1, 2))
    edit(first, source=inputs.sources[0].lower())
    edit(second, source="CP999999")
    edit(third, source="")
    result = build_catalog(inputs.settings(), PROFILE)
    frame = result.frame.set_index("image_id")
    assert list(frame.source) == [source for source in inputs.sources for _ in range(2)]
    assert result.summary["label_problems"] == {f"source: CP999999 (the path says {inputs.sources[0]})": 1}
    assert frame.label_problems[inputs.image_ids[1]].startswith("source: CP999999")


def test_a_label_counts_where_the_folder_and_the_file_name_do_not_agree(inputs: TinyInputs) -> None:
    image, path = image_and_label(inputs, inputs.image_ids[0])
    image.rename(image.with_name("photo.jpg"))
    edit(path, filename="photo.jpg", source="CP999999")
    frame = build_catalog(inputs.settings(), PROFILE).frame.set_index("image_id")
    assert frame.source["photo"] == "CP999999"
    assert frame.label_problems["photo"] == f"source: CP999999 (the path says {inputs.sources[0]})"


def test_where_masks_disagree_the_outline_drawn_by_hand_counts(inputs: TinyInputs) -> None:
    corner = [{"x": 0, "y": 0}, {"x": 40, "y": 0}, {"x": 0, "y": 40}]
    edit(image_and_label(inputs, inputs.image_ids[0])[1], polygon1=[corner])
    frame = build_catalog(inputs.settings(), PROFILE).frame.set_index("image_id", drop=False)
    row = frame.loc[inputs.image_ids[0]]
    assert row.masks_disagree
    assert row.mask_iou < 0.2
    assert (row.mask_origin, row.stage2, row.stage2_reason) == ("polygon", False, "masks_disagree")
    hair = load_photo(frame.loc[inputs.image_ids[0]], inputs.settings()).hair_mask
    assert hair[:30, :8].all()
    assert not hair[:, 44:].any()


def test_texture_is_cut_only_where_both_masks_say_hair(inputs: TinyInputs) -> None:
    _, label_path = image_and_label(inputs, inputs.image_ids[0])
    ring = json.loads(json.loads(label_path.read_text(encoding="utf-8"))["polygon1"])[0]
    edit(label_path, polygon1=[[point for point in ring if point["y"] < 90]])
    row = build_catalog(inputs.settings(), PROFILE).frame.iloc[0]
    assert row.mask_origin == "training_face"
    photo = load_photo(row, inputs.settings())
    sure = load_largest(row, inputs.settings()).hair_mask
    assert photo.hair_mask[95:].any()
    assert sure.any()
    assert not sure[95:].any()
    assert not (sure & ~photo.hair_mask).any()


def test_an_image_that_brings_the_examiner_down_does_so_alone(
    inputs: TinyInputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    examine = Examiner.examine

    def failing(self: Examiner, task: Task) -> list[dict[str, object]]:
        if inputs.image_ids[2] in task.candidates[0].image:
            raise ZeroDivisionError("\ud800")
        if inputs.image_ids[4] in task.candidates[0].image:
            return [row | {"width": 2**40} for row in examine(self, task)]
        return examine(self, task)

    with monkeypatch.context() as broken:
        broken.setattr(Examiner, "examine", failing)
        frame = build_catalog(inputs.settings(), PROFILE).frame.set_index("image_id")
    assert frame.accepted.sum() == 4
    assert set(frame.reason.dropna()) == {Reason.UNFORESEEN}
    assert frame.detail[inputs.image_ids[2]] == "ZeroDivisionError: ?"
    assert build_catalog(inputs.settings(), PROFILE).summary["rejected"] == {}


def hide(monkeypatch: pytest.MonkeyPatch, *hidden: Path) -> None:
    """Listing these folders ends with an error, as without permission (which root always has)."""
    scandir, listdir = os.scandir, os.listdir

    def refuse(path: object) -> None:
        if str(path).rstrip("/") in map(str, hidden):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    monkeypatch.setattr(os, "scandir", lambda path: (refuse(path), scandir(path))[1])
    monkeypatch.setattr(os, "listdir", lambda path: (refuse(path), listdir(path))[1])


def test_a_folder_that_cannot_be_listed_is_left_out_alone(inputs: TinyInputs, monkeypatch: pytest.MonkeyPatch) -> None:
    images = image_and_label(inputs, inputs.image_ids[0])[0].parent
    whole = build_catalog(inputs.settings(), PROFILE)
    with monkeypatch.context() as broken:
        hide(broken, images)
        result = build_catalog(inputs.settings(), PROFILE)
        assert not build_catalog(inputs.settings(), PROFILE).unchanged
    assert result.summary["rejected"] == {"label_without_image": 2, "unreadable_folder": 1}
    assert result.summary["files"]["unread"] == 1
    row = result.frame.set_index("reason").loc[Reason.UNREADABLE_FOLDER]
    assert row.image_path == images.relative_to(inputs.k_hairstyle).as_posix()
    assert row.detail == "Permission denied"
    assert build_catalog(inputs.settings(), PROFILE).data_version == whole.data_version


def test_an_output_that_cannot_be_listed_is_not_an_output_that_is_missing(
    inputs: TinyInputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (inputs.training_face / inputs.image_ids[number] for number in (0, 2))
    whole = build_catalog(inputs.settings(), PROFILE)
    with monkeypatch.context() as broken:
        hide(broken, first, second / "face_01")
        result = build_catalog(inputs.settings(), PROFILE)
    accepted = result.frame[result.frame.accepted]
    expected = [FaceReason.UNREADABLE_FOLDER, None] * 2 + [None, None]
    assert list(accepted.face_reason) == expected
    assert result.summary["rejected"] == {"unreadable_folder": 2}
    assert sorted(result.frame.face_path[~result.frame.accepted]) == [first.name, f"{second.name}/face_01"]
    assert result.summary["files"]["unread"] == 2
    assert "faces_without_image" not in result.summary["files"]
    assert build_catalog(inputs.settings(), PROFILE).data_version == whole.data_version


def test_a_root_that_cannot_be_listed_is_refused(inputs: TinyInputs, monkeypatch: pytest.MonkeyPatch) -> None:
    for root in (inputs.k_hairstyle, inputs.training_face):
        with monkeypatch.context() as broken:
            hide(broken, root)
            with pytest.raises(PipelineError, match="Permission denied"):
                build_catalog(inputs.settings(), PROFILE)
    with monkeypatch.context() as broken:
        hide(broken, *inputs.training_face.iterdir())
        with pytest.raises(PipelineError, match="only 6 unreadable_folder"):
            build_catalog(inputs.settings(), PROFILE)


@pytest.mark.parametrize("name", ["lost+found", "$Recycle.Bin", "System Volume Information", ".snapshot", "@eaDir"])
def test_what_a_drive_keeps_for_itself_is_not_looked_into(
    inputs: TinyInputs, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for root in (inputs.k_hairstyle, inputs.training_face):
        (root / name).mkdir()
        (root / name / "x.jpg").write_bytes(b"x")
    state = folder_state(inputs.k_hairstyle)
    (inputs.k_hairstyle / name / "y").mkdir()
    assert folder_state(inputs.k_hairstyle) == state
    hide(monkeypatch, inputs.k_hairstyle / name, inputs.training_face / name)
    result = build_catalog(inputs.settings(), PROFILE)
    assert result.summary["rejected"] == {}
    assert "unread" not in result.summary["files"]


def test_what_is_no_file_is_never_opened(inputs: TinyInputs) -> None:
    image, path = image_and_label(inputs, inputs.image_ids[0])
    pipes = [image.with_name("pipe.jpg"), path.with_name("pipe.json"), image.with_name("pipe.zip")]
    pipes += [inputs.k_hairstyle / "pipe.txt"]
    for pipe in pipes:
        os.mkfifo(pipe)
    image.with_name("link.jpg").symlink_to("pipe.jpg")
    face = inputs.training_face / inputs.image_ids[0] / "face_01"
    for name in ("face_01_yaw_4.png", "face_01_yaw_4.npy"):
        (face / name).unlink()
        os.mkfifo(face / name)
    os.mkfifo(face / "face_01_yaw_5.json")
    frame = build_catalog(inputs.settings(), PROFILE).frame
    rejected = frame[~frame.accepted]
    assert sorted(Path(path).name for path in rejected.image_path) == ["link.jpg", *sorted(p.name for p in pipes)]
    assert set(rejected.reason) == {Reason.UNKNOWN_FILE}
    assert set(rejected.detail) == {"not a regular file"}
    row = frame.set_index("image_id").loc[inputs.image_ids[0]]
    assert (row.face_reason, row.identity_reason) == (FaceReason.SHEET_MISSING, IdentityReason.BAD_EMBEDDING)


def test_a_link_to_itself_is_an_unreadable_image(inputs: TinyInputs) -> None:
    image, _ = image_and_label(inputs, inputs.image_ids[0])
    image.unlink()
    image.symlink_to(image.name)
    (inputs.training_face / "self").symlink_to("self")
    frame = build_catalog(inputs.settings(), PROFILE).frame
    assert dict(zip(frame.image_id, frame.reason, strict=True))[inputs.image_ids[0]] == Reason.UNREADABLE_IMAGE
    assert folder_state(inputs.training_face) != folder_state(inputs.k_hairstyle)


def test_outputs_that_no_image_finds_are_counted(inputs: TinyInputs) -> None:
    first, second, third = (inputs.training_face / image_id for image_id in inputs.image_ids[:3])
    first.rename(first.with_name(first.name.replace("-", "_")))
    next(second.rglob("*.json")).unlink()
    next(third.rglob("*.json")).rename(third / "face_01" / "._face_01.json")
    result = build_catalog(inputs.settings(), PROFILE)
    frame = result.frame.set_index("image_id")
    assert list(frame.face_reason[:4]) == [FaceReason.NO_OUTPUT, FaceReason.BAD_JSON, FaceReason.BAD_JSON, None]
    assert result.summary["files"]["faces_without_image"] == 1
    assert summarise(inputs.settings().catalog_path) == result.summary


def face_files(inputs: TinyInputs) -> tuple[Path, Path, Path]:
    folder = inputs.training_face / inputs.image_ids[0] / "face_01"
    (json_path,), (npy_path,), (png_path,) = (list(folder.glob(f"*.{suffix}")) for suffix in ("json", "npy", "png"))
    return json_path, npy_path, png_path


def spoil(kind: str, inputs: TinyInputs) -> None:
    json_path, npy_path, png_path = face_files(inputs)
    picture = draw_person(0, size=128)
    vector = embedding(0)
    if kind == "not json":
        json_path.write_bytes(b"\x00")
    elif kind == "sheet size":
        write_rgb(png_path, sheet(draw_person(0, size=64)))
    elif kind == "sheet gone":
        png_path.unlink()
    elif kind == "sheet truncated":
        png_path.write_bytes(png_path.read_bytes()[:100])
    elif kind == "sheet values":
        write_rgb(png_path, np.tile(np.arange(256, dtype=np.uint8)[None, :, None], (256, 1, 3)))
    elif kind == "sheet gray":
        write_rgb(png_path, np.full((256, 256, 3), 128, np.uint8))
    elif kind == "no face in sheet":
        bare = sheet(picture)
        bare[bare == 255] = 128
        write_rgb(png_path, bare)
    elif kind == "length":
        np.save(npy_path, vector[:128])
    elif kind == "nan":
        np.save(npy_path, np.where(np.arange(512) == 5, np.nan, vector).astype(np.float32))
    elif kind == "climbs out":
        write_face(inputs.training_face / inputs.image_ids[0], picture, vector, embedding_path="../../../../x.npy")
    elif kind == "confidence":
        write_face(inputs.training_face / inputs.image_ids[0], picture, vector, confidence=0.1)
    elif kind == "adaface":
        write_face(inputs.training_face / inputs.image_ids[0], picture, vector, embedding_model="AdaFace")
    elif kind == "no yaw":
        write_face(inputs.training_face / inputs.image_ids[0], picture, vector)
        edit(json_path, yaw=None)
    elif kind == "yaw":
        edit(json_path, yaw=-60.0)


@pytest.mark.parametrize(
    ("kind", "stage2_reason", "identity_reason"),
    [
        ("not json", FaceReason.BAD_JSON, IdentityReason.NO_FACE),
        ("sheet size", FaceReason.SHEET_WRONG_SIZE, IdentityReason.NO_FACE),
        ("sheet gone", FaceReason.SHEET_MISSING, None),
        ("sheet truncated", FaceReason.SHEET_UNREADABLE, None),
        ("sheet values", FaceReason.SHEET_OTHER_VALUES, None),
        ("sheet gray", FaceReason.SHEET_EMPTY, None),
        ("no face in sheet", FaceReason.NO_FACE_MASK, None),
        ("length", None, IdentityReason.BAD_EMBEDDING),
        ("nan", None, IdentityReason.BAD_EMBEDDING),
        ("climbs out", FaceReason.PATH_OUTSIDE_ROOT, IdentityReason.NO_FACE),
        ("confidence", FaceReason.LOW_CONFIDENCE, IdentityReason.LOW_CONFIDENCE),
        ("adaface", None, IdentityReason.OTHER_MODEL),
        ("no yaw", None, IdentityReason.UNKNOWN_POSE),
        ("yaw", None, IdentityReason.LARGE_YAW),
    ],
)
def test_faults_of_training_face(
    inputs: TinyInputs, kind: str, stage2_reason: FaceReason | None, identity_reason: IdentityReason | None
) -> None:
    spoil(kind, inputs)
    row = build_catalog(inputs.settings(), PROFILE).frame.set_index("image_id").loc[inputs.image_ids[0]]
    assert row.accepted
    assert (row.stage2, row.stage2_reason) == (stage2_reason is None, stage2_reason)
    assert (row.identity_reliable, row.identity_reason) == (identity_reason is None, identity_reason)
    polygon = stage2_reason is not None and kind != "no face in sheet"
    assert row.mask_origin == ("polygon" if polygon else "training_face")


@pytest.mark.parametrize(
    ("field", "variable"),
    [
        ("k_hairstyle_root", "HAIR_PIPELINE_K_HAIRSTYLE_ROOT"),
        ("training_face_root", "HAIR_PIPELINE_TRAINING_FACE_ROOT"),
    ],
)
def test_missing_and_empty_roots_name_their_variable(
    inputs: TinyInputs, tmp_path: Path, field: str, variable: str
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for root in (tmp_path / "nowhere", empty):
        with pytest.raises(PipelineError) as caught:
            build_catalog(inputs.settings(**{field: root}), PROFILE)
        assert variable in caught.value.message
        assert str(root) in caught.value.message


def test_a_root_of_nothing_usable_says_what_it_holds(inputs: TinyInputs, tmp_path: Path) -> None:
    root = tmp_path / "odd"
    (root / os.fsdecode("가르마".encode("cp949"))).mkdir(parents=True)
    (root / os.fsdecode("가르마".encode("cp949")) / "x.jpg").write_bytes(b"x")
    for name in ("a.zip", "b.zip"):
        (root / name).write_bytes(b"PK")
    with pytest.raises(PipelineError) as caught:
        build_catalog(inputs.settings(k_hairstyle_root=root), PROFILE)
    assert "only 2 unreadable_archive (such as a.zip not a readable zip" in caught.value.message
    assert "1 bad_file_name (such as \\xb0" in caught.value.message


def test_the_details_name_the_file_and_what_was_expected(inputs: TinyInputs) -> None:
    def detail(number: int) -> str:
        stem = inputs.image_ids[number]
        return str(frame.face_detail[stem]).removeprefix(f"{stem}/face_01/")

    paths = [next((inputs.training_face / image_id).rglob("*.json")) for image_id in inputs.image_ids]
    write_rgb(paths[0].with_suffix(".png"), sheet(draw_person(0, size=64)))
    paths[1].with_suffix(".png").unlink()
    paths[2].write_bytes(b"[]")
    edit(paths[3], bbox=[900, 900, 950, 950])
    edit(paths[4], confidence=0.1)
    edit(paths[5], embedding_path="../../../../x.npy")
    frame = build_catalog(inputs.settings(), PROFILE).frame.set_index("image_id")
    assert detail(0) == "face_01_yaw_4.png: 128x128 and not 256x256, twice the photo's size"
    assert detail(1) == "face_01_yaw_4.png"
    assert detail(2) == "face_01_yaw_4.json: a JSON list, not an object"
    assert detail(3) == "face_01_yaw_4.json: bbox [900.0, 900.0, 950.0, 950.0] lies outside 128x128"
    assert detail(4) == "face_01_yaw_4.json: confidence 0.100"
    assert detail(5) == "face_01_yaw_4.json: ../../../../x.npy"


def test_one_person_is_not_enough(inputs: TinyInputs) -> None:
    for image_id in inputs.image_ids[2:]:
        image_and_label(inputs, image_id)[0].write_bytes(b"{}")
    with pytest.raises(PipelineError, match="only one person has a usable image \\(rejected: 4 json_as_image\\)"):
        build_catalog(inputs.settings(), PROFILE)


def test_the_training_root_may_not_lie_in_an_input(inputs: TinyInputs) -> None:
    with pytest.raises(PipelineError, match="never written to"):
        build_catalog(inputs.settings(training_root=inputs.k_hairstyle / "out"), PROFILE)


@pytest.mark.parametrize("place", [".", "training_face", ".."])
def test_the_inputs_may_not_lie_in_one_another(inputs: TinyInputs, place: str) -> None:
    root = inputs.k_hairstyle / place
    root.mkdir(exist_ok=True)
    with pytest.raises(PipelineError, match="in one another") as caught:
        build_catalog(inputs.settings(training_face_root=root, training_root=inputs.root.parent / "out"), PROFILE)
    assert all(str(path) in caught.value.message for path in (root, inputs.k_hairstyle))


def test_parts_of_archives_are_to_be_joined(inputs: TinyInputs) -> None:
    names = ("a.zip.part0", "a.zip.part1073741824", "b.z01", "b.ZIP.001", "c.7z.002")
    for name in names:
        (inputs.k_hairstyle / name).write_bytes(b"PK")
    frame = build_catalog(inputs.settings(), PROFILE).frame
    rejected = frame[~frame.accepted]
    assert sorted(rejected.image_path) == sorted(names)
    assert set(rejected.reason) == {Reason.ARCHIVE}
    assert set(rejected.detail) == {"join the parts first"}


def test_inputs_are_only_read(inputs: TinyInputs) -> None:
    before = {path: (inputs.root / path).read_bytes() for path in files(inputs.root)}
    build_catalog(inputs.settings(), PROFILE)
    after = {path: (inputs.root / path).read_bytes() for path in files(inputs.root) if not path.startswith("training/")}
    assert after == before


def test_an_output_folder_that_is_a_file(inputs: TinyInputs, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(PipelineError):
        build_catalog(inputs.settings(training_root=tmp_path / "file"), PROFILE)


def test_every_reason_is_documented() -> None:
    for kind in (Reason, FaceReason, IdentityReason):
        assert all(member.description and len(member.description) > 20 for member in kind)
    listed = (PROJECT_ROOT / "docs" / "data-engineer.md").read_text(encoding="utf-8")
    assert all(f"| `{reason.value}` | {reason.description} |" in listed for reason in Reason)
