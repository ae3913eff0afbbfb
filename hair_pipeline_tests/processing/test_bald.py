"""Bald images: kept pixels untouched, no hair colour in the fill, the face's core left alone."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hair_pipeline.inputs.samples import Photo, Sample, to_sample
from hair_pipeline.processing.bald import GRAY, face_height, fill, make_bald, repaint_mask, vary_mask
from hair_pipeline.processing.work import fill_to_hair_distance
from hair_pipeline.profile import BaldConfig
from hair_pipeline_tests.inputs.tiny_inputs import TinyPicture, draw_person

METHODS = ("telea", "navier_stokes", "gaussian_blur", "gray")
MASKS = arrays(bool, (24, 24))


def person(number: int = 0, size: int = 256) -> TinyPicture:
    return draw_person(number, size=size)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("number", [0, 1])
def test_kept_pixels_are_identical(method: str, number: int) -> None:
    picture = person(number)
    bald, repaint = make_bald(picture.photo, picture.hair_mask, picture.face_mask, BaldConfig(method=method))
    np.testing.assert_array_equal(bald[~repaint], picture.photo[~repaint])
    assert repaint[picture.hair_mask].all()
    hair = picture.hair_mask
    assert (bald[hair] != picture.photo[hair]).any(axis=1).mean() > 0.9


@pytest.mark.parametrize("method", METHODS)
def test_what_is_in_the_hole_does_not_matter(method: str) -> None:
    picture, config = person(), BaldConfig(method=method)
    first, repaint = make_bald(picture.photo, picture.hair_mask, picture.face_mask, config)
    other = picture.photo.copy()
    other[repaint] = np.random.default_rng(0).integers(0, 255, (int(repaint.sum()), 3), dtype=np.uint8)
    second, _ = make_bald(other, picture.hair_mask, picture.face_mask, config)
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("method", METHODS)
def test_no_hair_colour_enters_the_fill(method: str) -> None:
    """Magenta hair on a scene without any red: no filled pixel may turn towards magenta."""
    picture = person(2)
    photo = picture.photo.copy()
    photo[...] = (0, 120, 60)
    photo[picture.hair_mask] = (255, 0, 255)
    bald, _ = make_bald(photo, picture.hair_mask, picture.face_mask, BaldConfig(method=method))
    limit = GRAY if method == "gray" else 2
    assert bald[..., 0].max() <= limit


@given(MASKS, MASKS, arrays(np.uint8, (24, 24, 3)), st.sampled_from(METHODS), st.floats(0, 0.5))
def test_any_masks(hair: np.ndarray, face: np.ndarray, image: np.ndarray, method: str, growth: float) -> None:
    face = face & ~hair
    bald, repaint = make_bald(image, hair, face, BaldConfig(method=method, growth=growth))
    assert repaint[hair].all()
    np.testing.assert_array_equal(bald[~repaint], image[~repaint])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(1, 90), (90, 2), (3, 3), (7, 40)])
def test_narrow_images_are_filled_the_same_way_each_time(method: str, shape: tuple[int, int]) -> None:
    random = np.random.default_rng(0)
    image, hole = random.integers(0, 255, (*shape, 3), dtype=np.uint8), random.random(shape) < 0.4
    first = fill(image, hole, BaldConfig(method=method))
    assert all((fill(image, hole, BaldConfig(method=method)) == first).all() for _ in range(20))


@given(MASKS, MASKS, st.integers(0, 2**31))
def test_varied_masks_hold_the_hair(hair: np.ndarray, face: np.ndarray, seed: int) -> None:
    varied = vary_mask(hair, face & ~hair, seed)
    assert varied[hair].all()
    np.testing.assert_array_equal(varied, vary_mask(hair, face & ~hair, seed))


def test_varied_masks_differ_and_spare_the_face() -> None:
    picture = person(size=256)
    masks = [vary_mask(picture.hair_mask, picture.face_mask, seed) for seed in range(16)]
    assert len({mask.tobytes() for mask in masks}) >= 15
    middle = picture.face_mask.copy()
    rows, columns = np.nonzero(middle)
    middle[:] = False
    middle[int(np.median(rows)), int(np.median(columns))] = True
    assert not any(mask[middle].any() for mask in masks)


def test_growth_is_relative_to_the_face() -> None:
    picture = person(size=256)
    masks = [
        repaint_mask(picture.hair_mask, picture.face_mask, BaldConfig(growth=growth))
        for growth in (0.0, 0.05, 0.1, 0.2)
    ]
    areas = [int(mask.sum()) for mask in masks]
    assert areas == sorted(areas)
    assert areas[0] < areas[-1]
    kept = picture.face_mask & ~masks[1]
    assert kept.sum() > 0.8 * picture.face_mask.sum()
    _, repainted = make_bald(picture.photo, picture.hair_mask, picture.face_mask, BaldConfig(growth=0.1))
    np.testing.assert_array_equal(repainted, masks[2])


def test_face_height_ignores_the_neck() -> None:
    mask = np.zeros((200, 200), bool)
    mask[40:140, 60:140] = True
    with_neck = mask.copy()
    with_neck[140:190, 85:115] = True
    assert face_height(mask) == pytest.approx(100, abs=2)
    assert face_height(with_neck) == pytest.approx(100, abs=2)
    assert face_height(np.zeros((200, 100), bool)) == pytest.approx(60)


def test_crumbs_of_face_between_strands_are_repainted() -> None:
    hair, face = np.zeros((128, 128), bool), np.zeros((128, 128), bool)
    hair[10:60, 20:108] = True
    face[60:120, 30:98] = True
    hair[30:32, 50:52] = False
    face[30:32, 50:52] = True
    repaint = repaint_mask(hair, face, BaldConfig())
    assert repaint[30:32, 50:52].all()
    assert not repaint[80:110, 40:90].any()


@pytest.mark.parametrize("method", ["telea", "navier_stokes", "gaussian_blur"])
def test_the_fill_is_far_from_the_hairs_colour(method: str) -> None:
    """Dark hair before a bright scene: what stands in its place looks like the scene, not like the hair."""
    picture = person(0, size=512)
    sample = Sample("x", "p", picture.photo, picture.hair_mask, picture.face_mask, None)
    bald, repaint = make_bald(picture.photo, picture.hair_mask, picture.face_mask, BaldConfig(method=method))
    kept = picture.photo[~repaint].mean(axis=0)
    apart = np.linalg.norm(kept - picture.photo[picture.hair_mask].mean(axis=0))
    assert fill_to_hair_distance(sample, bald) > 0.6 * apart
    assert fill_to_hair_distance(sample, picture.photo) == 0


def test_half_size_telea_looks_like_full_size() -> None:
    squares = []
    for number in range(4):
        picture = person(number, size=512)
        hole = repaint_mask(picture.hair_mask, picture.face_mask, BaldConfig())
        full = cv2.inpaint(picture.photo, hole.astype(np.uint8), 5, cv2.INPAINT_TELEA)
        difference = full[hole].astype(float) - fill(picture.photo, hole, BaldConfig())[hole]
        squares.append((difference**2).mean())
    assert np.sqrt(np.mean(squares)) <= 5


def test_hiding_the_forehead_and_beside_the_jaw() -> None:
    bob = person(1, size=512)
    oval = np.zeros((512, 512), np.uint8)
    cv2.ellipse(oval, (256, 250), (70, 105), 0, 0, 360, 1, -1)
    face, hair = oval.astype(bool), np.zeros((512, 512), bool)
    hair[110:150, 180:332] = True
    hair &= ~face
    plain = repaint_mask(hair, face, BaldConfig())
    forehead = repaint_mask(hair, face, BaldConfig(hide_forehead=True))
    assert forehead[plain].all()
    assert forehead[145:160][face[145:160]].all()
    assert not (forehead & ~plain & ~face).any()
    np.testing.assert_array_equal(forehead[200:], plain[200:])

    plain = repaint_mask(bob.hair_mask, bob.face_mask, BaldConfig())
    beside = repaint_mask(bob.hair_mask, bob.face_mask, BaldConfig(hide_beside_jaw=True))
    assert beside[plain].all()
    lowest = np.flatnonzero(plain.any(axis=1))[-1]
    assert beside[lowest + 10].sum() > 40
    assert not (beside & ~plain & bob.face_mask).any()

    box = np.array([190, 150, 320, 350], np.float32)  # brows at 190, wherever hair leaves the face bare
    by_box = repaint_mask(hair, face, BaldConfig(hide_forehead=True), box=box)
    assert by_box[:190][face[:190]].all()
    plain = repaint_mask(hair, face, BaldConfig())
    np.testing.assert_array_equal(by_box[190:], plain[190:])

    nobody, hidden = np.zeros_like(bob.face_mask), BaldConfig(hide_forehead=True, hide_beside_jaw=True)
    without_a_face = repaint_mask(bob.hair_mask, nobody, hidden)
    np.testing.assert_array_equal(without_a_face, repaint_mask(bob.hair_mask, nobody, BaldConfig()))


@pytest.mark.parametrize("method", ["telea", "navier_stokes", "gaussian_blur"])
@pytest.mark.parametrize(("height", "width"), [(192, 256), (256, 192)])
def test_the_bars_beside_a_photo_do_not_enter_the_fill(method: str, height: int, width: int) -> None:
    """Hair that runs out of a photo of one bright colour leaves that colour, not the bars' gray."""
    photo = np.full((height, width, 3), (40, 230, 200), np.uint8)
    hair = np.zeros((height, width), bool)
    hair[height // 3 :, width // 4 :] = True
    nothing = np.zeros_like(hair)
    sample = to_sample(Photo("x", "p", photo, hair, nothing, nothing, None), 256)
    assert sample.window is not None
    masks = sample.hair_mask, sample.face_mask
    bald, repaint = make_bald(sample.image, *masks, BaldConfig(method=method), window=sample.window)
    assert np.abs(bald[sample.window].astype(int) - (40, 230, 200)).max() <= 25  # Telea alone strays by 20
    np.testing.assert_array_equal(bald[~repaint], sample.image[~repaint])


def test_a_square_photo_has_no_bars() -> None:
    photo, mask = np.zeros((300, 300, 3), np.uint8), np.zeros((300, 300), bool)
    assert to_sample(Photo("x", "p", photo, mask, mask, mask, None), 256).window is None
