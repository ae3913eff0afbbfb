"""Listing, pairing and the image check of the K-Hairstyle tree."""

import contextlib
import io
import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hair_pipeline.files import UnreadableImage, decode_image
from hair_pipeline.inputs.inventory import list_files
from hair_pipeline.inputs.k_hairstyle import LabelName, Rejected, check_image, is_sure_of_source, pair, source_of
from hair_pipeline.inputs.reasons import Reason


def jpeg(size: int = 32) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def test_parallel_trees_are_paired_by_filename() -> None:
    image = "Training/mqset/images/0002.mqset/0001.가르마/0126.CP032677/CP032677-016.jpg"
    label = "Training/mqset/labels/0002.mqset/0001.가르마/0126.CP032677/CP032677_016.json"
    result = pair([image], [LabelName(label, "CP032677-016.jpg", "CP032677")])
    assert [(found, name.path) for found, name in result.pairs] == [(image, label)]


def test_filename_wins_over_the_labels_own_name() -> None:
    names = [LabelName("l/A_001.json", "A-002.jpg", None), LabelName("l/A_002.json", "A-001.jpg", None)]
    result = pair(["i/A-001.jpg", "i/A-002.jpg"], names)
    assert [(image, label.filename) for image, label in result.pairs] == [
        ("i/A-001.jpg", "A-001.jpg"),
        ("i/A-002.jpg", "A-002.jpg"),
    ]


@pytest.mark.parametrize(
    ("image", "named"),
    [
        ("x/A-001.JPG", "A-001.jpg"),
        ("x/A-001.jpeg", "A-001.jpg"),
        ("x/A-001.jpg", None),
        ("x/" + unicodedata.normalize("NFD", "가-001.jpg"), unicodedata.normalize("NFC", "가-001.jpg")),
    ],
)
def test_loose_names(image: str, named: str | None) -> None:
    assert len(pair([image], [LabelName("x/A_001.json", named, "A")]).pairs) == 1


def test_the_same_person_in_training_and_validation_keeps_each_label_at_home() -> None:
    images = [f"{part}/images/P/P-001.jpg" for part in ("Training", "Validation")]
    labels = [LabelName(f"{part}/labels/P/P_001.json", "P-001.jpg", "P") for part in ("Validation", "Training")]
    result = pair(images, labels)
    assert all(image.split("/")[0] == label.path.split("/")[0] for image, label in result.pairs)


def test_a_label_takes_the_image_at_home_though_one_elsewhere_bears_its_name_exactly() -> None:
    images = ["Training/mqset/images/P/P-1.jpg", "Validation/hqset/images/P/P-1.JPG"]
    labels = [
        LabelName(f"{Path(image).parent}/P_1.json".replace("images", "labels"), "P-1.jpg", "P") for image in images
    ]
    for names in (labels, labels[::-1]):
        assert [(image, name.path) for image, name in pair(images, names).pairs] == [
            (image, label.path) for image, label in zip(images, labels, strict=True)
        ]
    assert pair(images[:1], labels).labels[0][1] == Reason.DUPLICATE_LABEL


def test_of_two_labels_that_name_an_image_the_one_called_like_it_is_taken() -> None:
    labels = [LabelName("x/P_0.json", "P-1.jpg", "P"), LabelName("x/P_1.json", "P-1.jpg", "P")]
    assert [name.path for _, name in pair(["x/P-1.jpg"], labels).pairs] == ["x/P_1.json"]


@given(st.lists(st.integers(0, 6), max_size=8, unique=True), st.lists(st.integers(0, 6), max_size=10))
def test_every_file_has_exactly_one_fate(image_numbers: list[int], label_numbers: list[int]) -> None:
    images = [f"i/A-{number:03d}.jpg" for number in image_numbers]
    labels = [LabelName(f"l/{i}.json", f"A-{n:03d}.jpg", "A") for i, n in enumerate(label_numbers)]
    result = pair(images, labels)
    assert sorted([image for image, _ in result.pairs] + result.images) == sorted(images)
    fates = [label.path for _, label in result.pairs] + [label.path for label, _, _ in result.labels]
    assert sorted(fates) == sorted(label.path for label in labels)


def test_listing_sorts_every_file(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.JPG", "c.jpeg", "d.json", "e.rar", "f.txt", ".DS_Store", "._a.jpg", "g" * 220 + ".jpg"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "loop").symlink_to(tmp_path)
    listing = list_files(tmp_path)
    assert listing.images == ["a.jpg", "b.JPG", "c.jpeg"]
    assert listing.labels == ["d.json"]
    assert listing.count == 9
    assert {path[:3]: reason for path, reason, _ in listing.rejected} == {
        "e.r": Reason.ARCHIVE,
        "f.t": Reason.UNKNOWN_FILE,
        ".DS": Reason.UNKNOWN_FILE,
        "._a": Reason.UNKNOWN_FILE,
        "ggg": Reason.BAD_FILE_NAME,
    }


def test_source_of() -> None:
    assert source_of("0001.x/0126.CP032677/CP032677-016.jpg") == "CP032677"
    assert source_of("0126.CP032677/odd.jpg") == "CP032677"
    assert source_of("flat/DSS12345_004.jpg") == "DSS12345"
    assert source_of("flat/odd.jpg") is None
    assert source_of("0126.CP032677/cp032677-016.jpg") == "CP032677"
    assert source_of("0126.CP032677/CP000001-016.jpg") == "CP000001"
    assert is_sure_of_source("0126.CP032677/cp032677-016.jpg")
    assert not is_sure_of_source("0126.CP032677/CP000001-016.jpg")
    assert not is_sure_of_source("0126.CP032677/odd.jpg")


def test_check_image() -> None:
    whole = jpeg()
    assert check_image(whole) == (32, 32)
    cases = (
        (json.dumps({"filename": "x"}).encode(), Reason.JSON_AS_IMAGE),
        (b"\xef\xbb\xbf\n {", Reason.JSON_AS_IMAGE),
        (b"GIF89a", Reason.NOT_AN_IMAGE),
        (b"", Reason.NOT_AN_IMAGE),
        (whole[: len(whole) // 2], Reason.TRUNCATED_IMAGE),
        (whole[: len(whole) // 2] + b"\xff\xd9", Reason.TRUNCATED_IMAGE),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), Reason.UNREADABLE_IMAGE),
    )
    for data, reason in cases:
        with pytest.raises(Rejected) as caught:
            check_image(data)
        assert caught.value.reason == reason, data[:20]


@pytest.mark.parametrize("trailer", [bytes(3000), b"\xff" * 3000, b"\xff\xda" * 1500])
@pytest.mark.parametrize("progressive", [False, True])
def test_data_behind_the_end_marker_do_no_harm(trailer: bytes, progressive: bool) -> None:
    buffer, thumbnail = io.BytesIO(), jpeg(8)
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    exif = b"Exif\0\0" + thumbnail
    Image.fromarray(pixels).save(buffer, "JPEG", exif=exif, progressive=progressive)
    whole = buffer.getvalue()
    assert check_image(whole + trailer) == (64, 64)
    assert decode_image(whole + trailer).shape == (64, 64, 3)
    for cut in (whole[:-500], whole[:-2]):
        with pytest.raises(Rejected) as caught:
            check_image(cut + bytes(3000))
        assert caught.value.reason == Reason.TRUNCATED_IMAGE
        with pytest.raises(UnreadableImage, match="end marker"):
            decode_image(cut + bytes(3000))


@given(st.integers(0, 1500), st.binary(min_size=1, max_size=30))
def test_a_damaged_image_is_read_or_rejected(position: int, noise: bytes) -> None:
    data = bytearray(jpeg())
    data[position : position + len(noise)] = noise
    with contextlib.suppress(Rejected):
        assert check_image(bytes(data)) is not None
