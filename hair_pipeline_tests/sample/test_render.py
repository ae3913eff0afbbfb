"""The pictures: they agree with their attributes, masks, boxes and labels."""

from __future__ import annotations

import functools
import json
from dataclasses import replace

import cv2
import numpy as np
import pytest

from hair_pipeline import vocabulary
from hair_pipeline.files import decode_image
from hair_pipeline.sample.face_output import encode_png, make_sheet, mask_quadrant
from hair_pipeline.sample.labels import make_label, polygon
from hair_pipeline.sample.people import Person, View, make_people, make_views
from hair_pipeline.sample.render import Photo, build_model, render

SEED = 5


def _person(**hair: str) -> Person:
    person = make_people(1, SEED)[0]
    neutral = {"color": "yellow_brown", "width": "medium", "parting": "5:5"}
    changed = replace(person.hair, rgb=(150.0, 105.0, 60.0), rgb_tip=(165.0, 115.0, 66.0), **(neutral | hair))
    return replace(person, hair=changed, female=hair.get("length") != "mens", blurred=False)


@functools.cache
def _photo(yaw: float, **hair: str) -> Photo:
    person = _person(**hair)
    view = replace(make_views(person, 1)[0], yaw=yaw, pitch=0.0, roll=0.0)
    return render(build_model(person), view)


def _view(person: Person) -> View:
    return make_views(person, 1)[0]


def test_the_same_seed_gives_the_same_bytes() -> None:
    person = make_people(1, SEED)[0]
    first, second = (render(build_model(person), _view(person)) for _ in range(2))
    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(first.hair, second.hair)
    other = make_people(1, SEED + 1)[0]
    assert (render(build_model(other), _view(other)).image != first.image).mean() > 0.5


@pytest.mark.parametrize("length", ["mens", "bob", "long"])
def test_masks_are_plausible_and_disjoint(length: str) -> None:
    photo = _photo(0.0, length=length, curl="none", bangs="none")
    assert photo.image.shape == (512, 512, 3)
    assert photo.image.dtype == np.uint8
    assert not (photo.hair & photo.skin).any()
    assert photo.hair.mean() > 0.03
    assert photo.skin.mean() > 0.05
    pieces, _, stats, _ = cv2.connectedComponentsWithStats(photo.hair.astype(np.uint8))
    assert pieces <= 12
    assert stats[1:, cv2.CC_STAT_AREA].min() >= 50


def test_longer_hair_reaches_lower_and_covers_more() -> None:
    lowest, area = [], []
    for length in ("mens", "bob", "medium", "long"):
        hair = _photo(0.0, length=length, curl="none", bangs="none").hair
        lowest.append(int(np.flatnonzero(hair.any(1))[-1]))
        area.append(float(hair.mean()))
    assert lowest == sorted(lowest)
    assert area == sorted(area)


def _forehead_covered(photo: Photo) -> float:
    """Share of hair in the middle of the forehead (upper quarter of the face box)."""
    assert photo.box is not None
    x0, y0, x1, y1 = photo.box
    width, height = x1 - x0, y1 - y0
    region = photo.hair[
        int(y0 + 0.02 * height) : int(y0 + 0.22 * height), int(x0 + 0.3 * width) : int(x1 - 0.3 * width)
    ]
    return float(region.mean())


@pytest.mark.parametrize("curl", ["none", "S", "S3"])
def test_bangs_cover_the_forehead(curl: str) -> None:
    assert _forehead_covered(_photo(0.0, length="medium", curl=curl, bangs="full")) > 0.8
    assert _forehead_covered(_photo(0.0, length="medium", curl=curl, bangs="none")) < 0.2


def _orientation_spread(photo: Photo) -> float:
    """Circular variance of the gradient directions inside the hair, 0 (all parallel) .. 1."""
    gray = cv2.GaussianBlur(cv2.cvtColor(photo.image, cv2.COLOR_RGB2GRAY).astype(np.float32), (0, 0), 1.0)
    inside = cv2.erode(photo.hair.astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
    inside[:200] = False
    dx, dy = cv2.Sobel(gray, cv2.CV_32F, 1, 0), cv2.Sobel(gray, cv2.CV_32F, 0, 1)
    angle, weight = 2 * np.arctan2(dy[inside], dx[inside]), np.hypot(dx[inside], dy[inside])
    return float(1 - abs((np.exp(1j * angle) * weight).sum()) / weight.sum())


def test_curl_is_visible() -> None:
    straight, wavy, curly = (
        _orientation_spread(_photo(0.0, length="long", curl=c, bangs="none")) for c in ("none", "S", "S3")
    )
    assert straight + 0.08 < wavy
    assert wavy + 0.08 < curly


def test_a_back_view_shows_no_face_and_a_profile_does() -> None:
    assert _photo(180.0, length="bob", curl="none", bangs="none").box is None
    profile = _photo(85.0, length="bob", curl="none", bangs="none")
    front = _photo(0.0, length="bob", curl="none", bangs="none")
    assert profile.box is not None
    assert front.box is not None
    assert len(profile.landmarks) < len(front.landmarks) == 5
    for x, y in front.landmarks:
        assert front.box[0] < x < front.box[2]
        assert front.box[1] < y < front.box[3]


def test_the_color_of_the_hair_is_the_label_s() -> None:
    person = _person(length="long", curl="none", bangs="none")
    red = replace(person, hair=replace(person.hair, rgb=(150.0, 30.0, 25.0), rgb_tip=(160.0, 34.0, 28.0)))
    view = _view(person)
    for one, channel in (
        (red, 0),
        (replace(person, hair=replace(person.hair, rgb=(50, 60, 160), rgb_tip=(50, 60, 165))), 2),
    ):
        photo = render(build_model(one), view)
        assert photo.image[photo.hair].mean(0).argmax() == channel


def test_the_face_is_blurred_where_polygon2_says_so() -> None:
    person = replace(_person(length="bob", curl="none", bangs="none"), blurred=True)
    model, view = build_model(person), _view(person)
    blurred, sharp = render(model, view), render(model, view, blur_face=False)
    assert blurred.blur is not None
    assert sharp.blur is None
    region = np.zeros((512, 512), np.uint8)
    cv2.fillConvexPoly(region, np.round(blurred.blur).astype(np.int32), 1)
    inner = cv2.erode(region, np.ones((15, 15), np.uint8)) > 0
    detail = [cv2.Laplacian(p.image.astype(np.float32), cv2.CV_32F)[inner].std() for p in (blurred, sharp)]
    assert detail[0] < 0.4 * detail[1]
    outer = cv2.dilate(region, np.ones((25, 25), np.uint8)) == 0
    np.testing.assert_array_equal(blurred.image[outer], sharp.image[outer])


def test_the_sheet_decodes_to_the_masks() -> None:
    photo = _photo(0.0, length="bob", curl="none", bangs="none")
    sheet = decode_image(encode_png(make_sheet(photo)))
    assert sheet.shape == (1024, 1024, 3)
    quadrant = sheet[:512, 512:]
    np.testing.assert_array_equal(quadrant[..., 0], mask_quadrant(photo))
    np.testing.assert_array_equal(quadrant[..., 0] == 0, photo.hair)
    np.testing.assert_array_equal(quadrant[..., 2] == 255, photo.skin)


def _fill(rings: list[list[dict[str, float]]]) -> np.ndarray:
    mask = np.zeros((512, 512), np.uint8)
    for ring in rings:
        cv2.fillPoly(mask, [np.array([(p["x"], p["y"]) for p in ring], np.float64).round().astype(np.int32)], 1)
    return mask > 0


@pytest.mark.parametrize(("yaw", "curl", "bangs"), [(0, "none", "full"), (35, "S3", "none"), (180, "S", "none")])
def test_the_polygon_agrees_with_the_mask(yaw: float, curl: str, bangs: str) -> None:
    photo = _photo(float(yaw), length="medium", curl=curl, bangs=bangs)
    filled = _fill(polygon(photo.hair))
    assert (filled & photo.hair).sum() / (filled | photo.hair).sum() > 0.8


def test_a_polygon_keeps_a_hole_open() -> None:
    ring = np.zeros((512, 512), bool)
    ring[100:300, 100:300] = True
    ring[150:250, 150:250] = False
    filled = _fill(polygon(ring))
    assert not filled[200, 200]
    assert (filled & ring).sum() / (filled | ring).sum() > 0.95


def test_the_label_has_the_schema_of_the_release() -> None:
    person = make_people(1, SEED)[0]
    view = _view(person)
    photo = render(build_model(person), view, blur_face=True)
    label = json.loads(json.dumps(make_label(person, view, photo, "XX1-001.jpg", "0002.mqset/x"), ensure_ascii=False))
    for column, (key, table) in vocabulary.ATTRIBUTES.items():
        assert label[key] in table, column
    assert label["filename"] == "XX1-001.jpg"
    assert label["source"] == person.source
    assert table is not None
    assert vocabulary.CURL[label["curl"]] == person.hair.curl
    assert float(label["horizontal"]) == view.horizontal
    assert len(json.loads(label["polygon2"])) == 1
    assert {"x", "y"} == set(json.loads(label["polygon1"])[0][0])
    clear = make_label(person, view, replace(photo, blur=None), "XX1-001.jpg", "")
    assert clear["polygon2"] == "[]"
