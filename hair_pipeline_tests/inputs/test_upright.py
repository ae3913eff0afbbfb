"""People's own photos: upright whatever the camera stored, with their colour profile, and what was made for them."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from hair_pipeline.files import UnreadableImage, encode_image
from hair_pipeline.inputs.training_face import BadFace, faces_of
from hair_pipeline.inputs.upright import decode_upright, encode_picture, read_face, read_upright
from hair_pipeline.profile import InputsConfig
from hair_pipeline_tests.inputs.tiny_inputs import draw_person, embedding, lay, place, write_face, write_tagged

PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_as_viewers_turn_it(tmp_path: Path, orientation: int) -> None:
    stored = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    write_tagged(tmp_path / "a.png", stored, orientation)
    with Image.open(tmp_path / "a.png") as image:
        seen = np.asarray(ImageOps.exif_transpose(image))
    photo = read_upright(tmp_path / "a.png")
    assert np.array_equal(photo.image, seen)
    mask = stored[..., 0] > 128
    same = np.array_equal(photo.upright(mask), seen[..., 0] > 128)
    assert same == (orientation in (1, 5, 6, 7, 8))  # of 2, 3 and 4 the size does not tell


def test_a_tag_that_makes_no_sense_turns_nothing(tmp_path: Path) -> None:
    stored = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    write_tagged(tmp_path / "a.png", stored, 77)
    assert np.array_equal(read_upright(tmp_path / "a.png").image, stored)


def test_a_jpeg_of_which_data_are_gone_is_refused() -> None:
    data = encode_image(draw_person(0, size=256).photo, ".jpg")
    assert decode_upright(data).size == (256, 256)
    with pytest.raises(UnreadableImage, match="its data end before its pixels"):
        decode_upright(data[: len(data) // 2].rstrip(b"\xff") + b"\xff\xd9")


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_the_colour_profile_comes_through_and_the_tag_does_not(tmp_path: Path, suffix: str) -> None:
    write_tagged(tmp_path / f"a{suffix}", np.full((20, 30, 3), 90, np.uint8), 6, PROFILE)
    photo = read_upright(tmp_path / f"a{suffix}")
    with Image.open(io.BytesIO(encode_picture(photo.image, suffix, photo.icc_profile))) as written:
        assert written.info["icc_profile"] == PROFILE
        assert not written.getexif()
        assert written.size == (20, 30)
        if suffix == ".png":
            assert np.array_equal(np.asarray(written), photo.image)


def test_a_gray_photos_profile_is_not_given_to_a_colour_picture(tmp_path: Path) -> None:
    gray = PROFILE[:16] + b"GRAY" + PROFILE[20:]
    Image.new("L", (30, 20)).save(tmp_path / "a.jpg", icc_profile=gray)
    assert read_upright(tmp_path / "a.jpg").icc_profile is None


@pytest.mark.parametrize(("orientation", "seen_as"), [(1, 1), (3, 1), (6, 1), (6, 6)])
def test_outputs_of_either_orientation_fit(tmp_path: Path, orientation: int, seen_as: int) -> None:
    person = place(draw_person(0, size=96), 120, 160, 10, 30)
    write_tagged(tmp_path / "a.png", lay(person, orientation).photo, orientation)
    write_face(tmp_path / "a", lay(person, seen_as), embedding(0))
    photo = read_upright(tmp_path / "a.png")
    face, masks = read_face(photo, tmp_path, faces_of(tmp_path, "a"), InputsConfig())
    assert np.array_equal(photo.image, person.photo)
    assert np.array_equal(masks.hair, person.hair_mask)
    assert np.array_equal(masks.face, person.face_mask)
    assert face.box == pytest.approx(person.box, abs=0.06)


def test_outputs_of_another_size_are_named_by_the_upright_one(tmp_path: Path) -> None:
    person = place(draw_person(0, size=96), 120, 160, 10, 30)
    write_tagged(tmp_path / "a.png", lay(person, 6).photo, 6)
    write_face(tmp_path / "a", draw_person(0, size=150), embedding(0))
    with pytest.raises(BadFace, match="300x300 and not 240x320"):
        read_face(read_upright(tmp_path / "a.png"), tmp_path, faces_of(tmp_path, "a"), InputsConfig())
