"""Several of the release's sets at once: which is taken, what becomes of the others, and the largest photo's mask."""

import json
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from hair_pipeline.files import UnreadableImage
from hair_pipeline.inputs.catalog import build_catalog
from hair_pipeline.inputs.k_hairstyle import LabelName, image_set_of, pair
from hair_pipeline.inputs.largest import load_largest
from hair_pipeline.inputs.samples import load_photo
from hair_pipeline.processing.shards import cut_hair_patches
from hair_pipeline.profile import InputsConfig, PatchConfig, ProcessingConfig, Profile
from hair_pipeline.sample.faults import make_zip
from hair_pipeline_tests.inputs.tiny_inputs import (
    TinyInputs,
    TinyPicture,
    draw_person,
    label,
    write_rgb,
    write_tiny_inputs,
)

SIZE = 128
HALVES = ("Training", "Validation")
FOLDERS = {"hqset": ("hqset", "0001.hqset"), "rawset": ("rawset", "0003.rawset")}


@pytest.fixture
def inputs(tmp_path: Path) -> TinyInputs:
    return write_tiny_inputs(tmp_path / "inputs", people=2, views=2, size=SIZE)


def add(inputs: TinyInputs, image_set: str, picture: TinyPicture, *, number: int = 0, labelled: bool = True) -> Path:
    """Write the image `number` into another set too; its image's path."""
    stem = inputs.image_ids[number]
    small = next((inputs.k_hairstyle / "Training" / "mqset").rglob(f"{stem}.jpg"))
    outer, inner = FOLDERS[image_set]
    path = Path(str(small).replace("0002.mqset", inner).replace("/mqset/", f"/{outer}/"))
    write_rgb(path, picture.photo)
    if labelled:
        source = stem.partition("-")[0]
        label_path = Path(str(path.parent).replace("/images/", "/labels/")) / f"{stem.replace('-', '_')}.json"
        label_path.parent.mkdir(parents=True, exist_ok=True)
        label_path.write_text(json.dumps(label(source, f"{stem}.jpg", 0, picture)), encoding="utf-8")
    return path


def wide(picture: TinyPicture) -> TinyPicture:
    """Another framing: bars at both sides."""
    bar = picture.photo.shape[1] // 6
    pad = ((0, 0), (bar, bar))
    x1, y1, x2, y2 = picture.box
    return TinyPicture(
        np.pad(picture.photo, (*pad, (0, 0))),
        np.pad(picture.hair_mask, pad),
        np.pad(picture.face_mask, pad),
        (x1 + bar, y1, x2 + bar, y2),
    )


def test_sets_are_told_by_their_folders() -> None:
    assert image_set_of("Training/mqset/images/0002.mqset/x.jpg") == "mqset"
    assert image_set_of("0003.RawSet.zip!/a/x.jpg") == "rawset"
    assert image_set_of("Training/images/0001.가르마/mqset.jpg") is None
    assert image_set_of("hq/Training/images/x.jpg") == image_set_of("Training/images_HQ/x.jpg") == "hqset"
    assert image_set_of("raw/0002.mqset/x.jpg") == "mqset"
    assert image_set_of("drawn/hqs/x.jpg") is None


def test_each_label_takes_the_image_of_its_own_set_first() -> None:
    images = ["mqset/images/P-1.jpg", "rawset/images/P-1.jpg"]
    labels = [LabelName(path, "P-1.jpg", "P") for path in ("hqset/labels/P_1.json", "mqset/labels/P_1.json")]
    pairs = {image: name.path for image, name in pair(images, labels).pairs}
    assert pairs == {images[0]: "mqset/labels/P_1.json", images[1]: "hqset/labels/P_1.json"}


def test_a_label_away_from_home_takes_the_image_of_its_set_and_half_first() -> None:
    images = [
        "Training/hqset/images/images.zip!/0001.hqset/P/P-1.jpg",
        "Training/mqset/images/images.zip!/0002.mqset/P/P-1.jpg",
        "Validation/mqset/images/images.zip!/0002.mqset/P/P-1.jpg",
    ]
    labels = [LabelName(f"{half}/mqset/labels/labels.zip!/P.zip!/P_1.json", "P-1.jpg", "P") for half in HALVES[::-1]]
    pairs = {image: name.path for image, name in pair(images, labels).pairs}
    assert pairs == {images[1]: labels[1].path, images[2]: labels[0].path}


@pytest.mark.parametrize("zipped", [True, False])
def test_a_larger_set_without_labels_changes_nothing_else(inputs: TinyInputs, tmp_path: Path, zipped: bool) -> None:
    before = build_catalog(inputs.settings(), Profile(name="test")).frame
    release: dict[str, dict[str, bytes]] = {"hqset/images": {}, "mqset/images": {}, "mqset/labels": {}}
    for path in sorted(inputs.k_hairstyle.rglob("*.*")):
        if path.suffix == ".jpg":
            person, view = inputs.sources.index(path.parent.name[5:]), int(path.stem[-3:]) - 1
            style = f"{path.parent.parent.name}/{path.parent.name}/{path.name}"
            release["mqset/images"][f"0002.mqset/{style}"] = path.read_bytes()
            write_rgb(path.with_suffix(".large.jpg"), draw_person(person, view, size=2 * SIZE).photo)
            release["hqset/images"][f"0001.hqset/{style}"] = path.with_suffix(".large.jpg").read_bytes()
        elif path.suffix == ".json":
            release["mqset/labels"][f"{path.parent.name}/{path.name}"] = path.read_bytes()
    root = tmp_path / "release"
    for part, files in release.items():
        kind = part.rpartition("/")[2]
        if zipped:
            path = root / "Training" / part / f"{kind}.zip"
            path.parent.mkdir(parents=True)
            path.write_bytes(make_zip(files))
        for name, data in {} if zipped else files.items():
            folder = {"images": "images_512", "labels": "labels_512/0002.mqset"}[kind]
            path = root / (folder.replace("512", "1024") if "hqset" in part else folder) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    settings = inputs.settings(k_hairstyle_root=root, training_root=tmp_path / "out")
    result = build_catalog(settings, Profile(name="test"))
    frame = result.frame[result.frame.accepted].reset_index(drop=True)
    assert result.summary["rejected"] == {"other_set": 4}
    columns = ["image_id", "width", "stage2", "identity_reliable", "mask_origin", "mask_iou"]
    pd.testing.assert_frame_equal(frame[columns], before[columns])
    assert set(frame.largest_width) == {2 * SIZE}


def test_patches_come_from_the_largest_set_with_its_own_polygon(inputs: TinyInputs) -> None:
    add(inputs, "hqset", draw_person(0, 0, size=2 * SIZE))
    picture = wide(draw_person(0, 0, size=4 * SIZE))
    add(inputs, "rawset", picture)
    result = build_catalog(inputs.settings(), Profile(name="test"))
    frame = result.frame
    assert result.summary["rejected"] == {"other_set": 2}
    assert result.summary["patches_from"] == {"the_photo_itself": 3, "a_larger_set": 1}
    row = next(row for row in frame.itertuples() if row.image_id == inputs.image_ids[0] and row.accepted)
    assert (row.width, row.largest_width, row.largest_height) == (SIZE, picture.photo.shape[1], 4 * SIZE)
    assert "rawset" in row.largest_path
    assert "rawset" in row.largest_label_path
    largest = load_largest(row, inputs.settings())
    assert largest.image.shape == picture.photo.shape
    assert largest.scale(SIZE) == picture.photo.shape[1] / SIZE
    agreement = (largest.hair_mask & picture.hair_mask).sum() / (largest.hair_mask | picture.hair_mask).sum()
    assert agreement > 0.95


def test_a_larger_photo_without_a_label_takes_the_mask_of_the_smaller_one(inputs: TinyInputs) -> None:
    picture = draw_person(0, 0, size=4 * SIZE)
    add(inputs, "rawset", picture, labelled=False)
    settings = inputs.settings()
    frame = build_catalog(settings, Profile(name="test")).frame
    row = next(row for row in frame.itertuples() if row.image_id == inputs.image_ids[0] and row.accepted)
    assert row.largest_label_path == row.label_path
    largest = load_largest(row, settings)
    assert largest.image.shape == (4 * SIZE, 4 * SIZE, 3)
    small = cv2.resize(largest.hair_mask.astype(np.uint8), (SIZE, SIZE), interpolation=cv2.INTER_AREA) > 0
    own = load_photo(row, settings).hair_mask
    assert (small & own).sum() / (small | own).sum() > 0.95
    assert set(frame.reason.dropna()) == {"other_set"}


def test_a_larger_photo_of_another_framing_without_a_label_is_not_used(inputs: TinyInputs) -> None:
    add(inputs, "rawset", wide(draw_person(0, 0, size=4 * SIZE)), labelled=False)
    frame = build_catalog(inputs.settings(), Profile(name="test")).frame
    accepted = frame[frame.accepted]
    assert (accepted.largest_path == accepted.image_path).all()
    assert set(frame.reason.dropna()) == {"other_set"}


def test_a_broken_larger_photo_is_left_for_the_next(inputs: TinyInputs) -> None:
    add(inputs, "hqset", draw_person(0, 0, size=2 * SIZE))
    broken = add(inputs, "rawset", draw_person(0, 0, size=4 * SIZE))
    broken.write_bytes(broken.read_bytes()[:-2000])
    frame = build_catalog(inputs.settings(), Profile(name="test")).frame
    row = frame[frame.accepted & (frame.image_id == inputs.image_ids[0])].iloc[0]
    assert row.largest_width == 2 * SIZE
    assert sorted(frame.reason.dropna()) == ["other_set", "truncated_image"]


def test_a_larger_photo_with_data_behind_its_end_is_whole(inputs: TinyInputs) -> None:
    path = add(inputs, "rawset", draw_person(0, 0, size=4 * SIZE))
    path.write_bytes(path.read_bytes() + bytes(3000))
    frame = build_catalog(inputs.settings(), Profile(name="test")).frame
    row = frame[frame.accepted & (frame.image_id == inputs.image_ids[0])].iloc[0]
    assert row.largest_width == 4 * SIZE
    assert list(frame.reason.dropna()) == ["other_set"]


def test_a_broken_photo_is_replaced_by_the_same_image_of_another_set(inputs: TinyInputs) -> None:
    add(inputs, "hqset", draw_person(0, 0, size=2 * SIZE))
    next((inputs.k_hairstyle / "Training" / "mqset").rglob(f"{inputs.image_ids[0]}.jpg")).write_bytes(b"{}")
    frame = build_catalog(inputs.settings(), Profile(name="test")).frame
    row = frame[frame.accepted & (frame.image_id == inputs.image_ids[0])].iloc[0]
    assert "hqset" in row.image_path
    assert list(frame.reason.dropna()) == ["json_as_image"]


BROKEN = {"json_as_image": b'{"filename": "x"}', "truncated_image": b"\xff\xd8\xff\xe0", "not_an_image": b""}


@pytest.mark.parametrize("reason", BROKEN)
def test_a_broken_copy_leaves_its_label_to_the_whole_one(inputs: TinyInputs, reason: str) -> None:
    before = build_catalog(inputs.settings(), Profile(name="test")).frame
    image = next((inputs.k_hairstyle / "Training").rglob(f"{inputs.image_ids[0]}.jpg"))
    whole = Path(str(image).replace("/Training/", "/Validation/"))
    write_rgb(whole, draw_person(0, 0, size=SIZE).photo)
    image.write_bytes(image.read_bytes()[:600] if reason == "truncated_image" else BROKEN[reason])
    frame = build_catalog(inputs.settings(), Profile(name="test")).frame
    accepted = frame[frame.accepted].sort_values("image_id").reset_index(drop=True)
    assert accepted.image_path[0] == whole.relative_to(inputs.k_hairstyle).as_posix()
    assert list(accepted.reason) == [None] * 4
    pd.testing.assert_series_equal(accepted.label_path, before.label_path)
    pd.testing.assert_series_equal(accepted.mask_iou, before.mask_iou)
    (row,) = frame[~frame.accepted].itertuples()
    assert (row.reason, row.label_path) == (reason, None)
    assert row.detail.endswith(f"kept {accepted.image_path[0]}")


def test_a_broken_copy_lends_its_label_to_no_other_framing(inputs: TinyInputs) -> None:
    other = add(inputs, "hqset", wide(draw_person(0, 0, size=2 * SIZE)), labelled=False)
    image = next((inputs.k_hairstyle / "Training" / "mqset").rglob(f"{inputs.image_ids[0]}.jpg"))
    image.write_bytes(b"{}")
    check_label_stays(inputs, image, other)


def test_a_broken_copy_lends_its_label_to_no_other_person(inputs: TinyInputs) -> None:
    image = next(inputs.k_hairstyle.rglob(f"{inputs.image_ids[0]}.jpg"))
    label_path = next(inputs.k_hairstyle.rglob(f"{inputs.image_ids[0].replace('-', '_')}.json"))
    label_path.write_text(label_path.read_text().replace(image.name, "photo.jpg"))
    image.unlink()
    image = image.with_name("photo.jpg")
    image.write_bytes(b"{}")
    other = image.parent.with_name("0009.CP999999") / image.name
    write_rgb(other, draw_person(0, 0, size=SIZE).photo)
    check_label_stays(inputs, image, other)


def check_label_stays(inputs: TinyInputs, image: Path, other: Path) -> None:
    frame = build_catalog(inputs.settings(), Profile(name="test")).frame
    assert frame.accepted.sum() == 3
    image_path, other_path = (path.relative_to(inputs.k_hairstyle).as_posix() for path in (image, other))
    (row,) = frame[frame.reason == "image_without_label"].itertuples()
    assert row.image_path == other_path
    assert row.detail.endswith(f"went to {image_path}, which is broken")


def test_a_broken_copy_lends_its_label_to_a_larger_photo_of_its_framing(inputs: TinyInputs) -> None:
    add(inputs, "hqset", draw_person(0, 0, size=2 * SIZE), labelled=False)
    next((inputs.k_hairstyle / "Training" / "mqset").rglob(f"{inputs.image_ids[0]}.jpg")).write_bytes(b"{}")
    row = build_catalog(inputs.settings(), Profile(name="test")).frame.set_index(["image_id", "accepted"])
    assert row.width[inputs.image_ids[0], True] == 2 * SIZE


def test_the_set_can_be_chosen(inputs: TinyInputs) -> None:
    for number in range(4):
        add(inputs, "hqset", draw_person(number // 2, number % 2, size=2 * SIZE), number=number)
    chosen = Profile(name="test", inputs=InputsConfig(image_set="hqset"))
    frame = build_catalog(inputs.settings(), chosen).frame
    assert set(frame[frame.accepted].width) == {2 * SIZE}
    assert set(frame[frame.accepted].face_reason) == {"sheet_wrong_size"}
    frame = build_catalog(inputs.settings(), Profile(name="test")).frame
    assert set(frame[frame.accepted].width) == {SIZE}
    assert set(frame[frame.accepted].largest_width) == {2 * SIZE}


def test_a_larger_photo_that_changed_is_an_unreadable_image(inputs: TinyInputs) -> None:
    path = add(inputs, "hqset", draw_person(0, 0, size=2 * SIZE))
    settings = inputs.settings()
    frame = build_catalog(settings, Profile(name="test")).frame
    row = next(row for row in frame.itertuples() if row.image_id == inputs.image_ids[0] and row.accepted)
    write_rgb(path, draw_person(0, 0, size=SIZE).photo)
    with pytest.raises(UnreadableImage, match="the catalog says 256x256"):
        load_largest(row, settings)
    path.unlink()
    with pytest.raises(UnreadableImage, match="cannot be read"):
        load_largest(row, settings)


def test_the_catalogs_geometry_maps_outputs_back(inputs: TinyInputs) -> None:
    from hair_pipeline.inputs.geometry import letterbox

    add(inputs, "rawset", wide(draw_person(0, 0, size=3 * SIZE)))
    chosen = Profile(name="test", inputs=InputsConfig(image_set="rawset"))
    frame = build_catalog(inputs.settings(), chosen).frame
    assert frame.scale[frame.accepted].nunique() == 2
    for row in frame[frame.accepted].itertuples():
        geometry = letterbox(row.width, row.height, 512)
        assert (row.scale, row.offset_x, row.offset_y) == (geometry.scale, geometry.offset_x, geometry.offset_y)
        corners = np.float32([[0, 0], [row.width, row.height]])
        np.testing.assert_allclose(
            corners * row.scale + (row.offset_x, row.offset_y), geometry.points(corners), atol=1e-3
        )
        np.testing.assert_allclose(geometry.points_back(geometry.points(corners)), corners, atol=1e-2)


def row_of_first(inputs: TinyInputs):
    frame = build_catalog(inputs.settings(), Profile(name="test")).frame
    return next(row for row in frame.itertuples() if row.image_id == inputs.image_ids[0] and row.accepted)


def test_a_mended_label_or_photo_of_another_set_is_other_content(inputs: TinyInputs) -> None:
    path = add(inputs, "hqset", draw_person(0, 0, size=8 * SIZE))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 3] + bytes(len(whole) // 3) + whole[2 * len(whole) // 3 :])
    hashes = [row_of_first(inputs).content_hash]
    path.write_bytes(whole)
    hashes.append(row_of_first(inputs).content_hash)
    label_path = next((inputs.k_hairstyle / "Training" / "hqset").rglob("*.json"))
    label_path.write_text(label_path.read_text().replace('"polygon1": "[', '"polygon1": "[ '))
    hashes.append(row_of_first(inputs).content_hash)
    assert len(set(hashes)) == 3


def cut_and_closed(data: bytes) -> bytes:
    return data[: len(data) // 2] + b"\xff\xd9"


def without_tables(data: bytes) -> bytes:
    at = data.index(b"\xff\xc4")
    return data[: at + 5] + bytes([255] * 16) + data[at + 21 :]


@pytest.mark.parametrize("damage", [cut_and_closed, without_tables])
def test_patches_come_from_the_photo_itself_where_the_larger_one_is_damaged(inputs: TinyInputs, damage) -> None:
    path = add(inputs, "rawset", draw_person(0, 0, size=4 * SIZE))
    path.write_bytes(damage(path.read_bytes()))
    row, settings = row_of_first(inputs), inputs.settings()
    assert "rawset" in row.largest_path
    largest = load_largest(row, settings)
    assert largest.path == row.image_path
    assert row.largest_path in largest.fault
    np.testing.assert_array_equal(largest.image, load_photo(row, settings).image)
    profile = Profile(name="test", processing=ProcessingConfig(size=SIZE, patches=PatchConfig(sizes=(16,))))
    report = cut_hair_patches(row.shard, settings, profile)
    assert report.left_out["largest_photo_is_damaged"] == [row.image_id]
    assert not report.failed


def test_a_larger_copy_in_a_folder_that_names_no_set_is_used(inputs: TinyInputs) -> None:
    small = next(inputs.k_hairstyle.rglob(f"{inputs.image_ids[0]}.jpg"))
    inputs.k_hairstyle.joinpath("Training/mqset").rename(inputs.k_hairstyle / "Training/small")
    for path in [*inputs.k_hairstyle.rglob("0002.mqset")]:
        path.rename(path.with_name("a"))
    large = inputs.k_hairstyle / "Training/big/images/a" / Path(*small.parts[-3:])
    write_rgb(large, draw_person(0, 0, size=2 * SIZE).photo)
    frame = build_catalog(inputs.settings(), Profile(name="test")).frame
    assert list(frame.reason.dropna()) == ["other_set"]
    row = row_of_first(inputs)
    assert (row.width, row.largest_width) == (SIZE, 2 * SIZE)


@pytest.mark.parametrize("says_its_size", [True, False])
def test_a_label_of_another_set_must_say_for_which_size_it_is(inputs: TinyInputs, says_its_size: bool) -> None:
    large = add(inputs, "hqset", draw_person(0, 0, size=2 * SIZE))
    large.unlink()
    next((inputs.k_hairstyle / "Training/mqset").rglob(f"{inputs.image_ids[0].replace('-', '_')}.json")).unlink()
    label_path = next((inputs.k_hairstyle / "Training/hqset").rglob("*.json"))
    content = json.loads(label_path.read_text())
    assert (content["width"], content["height"]) == (2 * SIZE, 2 * SIZE)
    if not says_its_size:
        del content["width"], content["height"]
        label_path.write_text(json.dumps(content))
    frame = build_catalog(inputs.settings(), Profile(name="test")).frame
    (row,) = frame[frame.image_id == inputs.image_ids[0]].itertuples()
    assert row.accepted == says_its_size
    assert says_its_size or (row.reason == "image_without_label" and "names no width and height" in row.detail)
