"""What a request reads, and that the A/B test draws the very square that is served."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hair_pipeline.errors import PipelineError
from hair_pipeline.evaluation.customers import Problems, customer_cases, find_customers
from hair_pipeline.files import encode_image, write_bytes
from hair_pipeline.inputs.samples import Photo, to_sample
from hair_pipeline.processing.bald import make_bald
from hair_pipeline.release.serving import Request, TryOn, read_request, try_on_files
from hair_pipeline.settings import Settings
from hair_pipeline_tests.evaluation.tiny_world import tiny_profile
from hair_pipeline_tests.inputs.tiny_inputs import (
    draw_person,
    embedding,
    lay,
    place,
    write_face,
    write_rgb,
    write_tagged,
    write_tiny_inputs,
)

PROFILE = tiny_profile()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return write_tiny_inputs(tmp_path / "inputs", people=1, views=1, size=64).settings()


def request_for(image: Path, settings: Settings, mask: Path | None = None, root: Path | None = None) -> Request:
    return read_request(image, root, mask, settings, PROFILE.inputs, "--hair-mask")


def test_a_person_further_down_with_the_same_file_name_is_not_taken(tmp_path: Path, settings: Settings) -> None:
    person = draw_person(0, size=64)
    write_rgb(tmp_path / "photos" / "photo.jpg", person.photo)
    write_face(tmp_path / "photos" / "anna" / "photo", person, embedding(1))
    write_face(settings.training_face_root / "photo", person, embedding(2))
    with pytest.raises(PipelineError, match="no output of training_face"):
        request_for(tmp_path / "photos" / "photo.jpg", settings)
    write_face(tmp_path / "photos" / "photo" / "photo", person, embedding(0))
    found = request_for(tmp_path / "photos" / "photo.jpg", settings)
    assert found.identity is not None
    assert np.array_equal(found.identity, embedding(0))


def test_a_photo_of_k_hairstyle_has_its_outputs_in_the_configured_root(settings: Settings) -> None:
    photo = next(settings.k_hairstyle_root.rglob("*.jpg"))
    assert request_for(photo, settings).hair_mask.any()


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("as_stored", [False, True])
def test_a_phone_photo_is_upright_with_outputs_and_masks(
    tmp_path: Path, settings: Settings, orientation: int, as_stored: bool
) -> None:
    person = place(draw_person(0, size=96), 120, 160, 10, 30)
    stored = lay(person, orientation)
    made_for = stored if as_stored and orientation == 6 else person
    write_tagged(tmp_path / "anna.png", stored.photo, orientation)
    write_bytes(
        tmp_path / "mask.png", encode_image(np.repeat(made_for.hair_mask[..., None], 3, 2) * np.uint8(255), ".png")
    )
    by_mask = request_for(tmp_path / "anna.png", settings, tmp_path / "mask.png")
    write_face(tmp_path / "anna", made_for, embedding(0))
    found = request_for(tmp_path / "anna.png", settings)
    for request in (by_mask, found):
        assert np.array_equal(request.photo, person.photo)
        assert np.array_equal(request.hair_mask, person.hair_mask)
    assert np.array_equal(found.face_mask, person.face_mask & ~person.hair_mask)
    assert found.box == pytest.approx(np.array(person.box), abs=0.06)


class Recorder:
    """A pipeline that returns what it is given."""

    def __call__(self, **given: Any) -> SimpleNamespace:
        self.given = given
        return SimpleNamespace(raw=given["images"], finite=[True])


@pytest.mark.parametrize(("size", "height"), [(96, 400), (300, 340)])
def test_the_ab_test_draws_the_square_that_is_served(
    tmp_path: Path, settings: Settings, size: int, height: int
) -> None:
    person = place(draw_person(0, size=size), 300, height, 0, 40)
    folder = tmp_path / "customers"
    write_tagged(folder / "anna.png", lay(person, 6).photo, 6)
    write_face(folder / "anna", person, embedding(0))
    problems = Problems()
    ((case,),) = customer_cases(find_customers(folder, settings, problems), PROFILE, problems)
    request = request_for(folder / "anna.png", settings)
    pipeline = Recorder()
    serving = TryOn(SimpleNamespace(version="x", pipeline=pipeline, resolution=64), PROFILE)  # type: ignore[arg-type]
    serving(request.photo, request.hair_mask, request.face_mask, request.identity, None, box=request.box)
    assert case.framing is not None
    assert (case.framing.crop.side == height) == (size == 300)  # the larger head fills the photo
    assert np.array_equal(pipeline.given["images"][0], case.sample.image)
    assert np.array_equal(pipeline.given["hair_masks"][0], case.sample.hair_mask)
    assert np.array_equal(pipeline.given["face_masks"][0], case.sample.face_mask)
    assert np.array_equal(pipeline.given["bald_images"][0], case.bald)
    assert np.array_equal(pipeline.given["repaint_masks"][0], case.repaint_mask)


def test_a_style_is_seen_at_the_size_of_the_person_it_belongs_to(tmp_path: Path, settings: Settings) -> None:
    person = place(draw_person(0, size=96), 300, 400, 0, 60)
    folder = tmp_path / "customers"
    write_rgb(folder / "anna.png", person.photo)
    write_face(folder / "anna", person, embedding(0))
    problems, seen = Problems(), []
    ((case,),) = customer_cases(find_customers(folder, settings, problems), PROFILE, problems)
    styles = SimpleNamespace(vector=lambda sample: seen.append(sample) or np.zeros(16, np.float32))
    contender = SimpleNamespace(version="x", pipeline=Recorder(), resolution=64, styles=styles)
    request = request_for(folder / "anna.png", settings)
    TryOn(contender, PROFILE).redraw(request, request)  # type: ignore[arg-type]
    assert np.array_equal(seen[0].image, case.reference.image)
    assert np.array_equal(seen[0].hair_mask, case.reference.hair_mask)


def test_a_model_that_returns_no_numbers_is_an_error(settings: Settings) -> None:
    person = draw_person(0, size=96)

    class Broken:
        def __call__(self, **given: Any) -> SimpleNamespace:
            return SimpleNamespace(raw=given["images"], finite=[False])

    contender = SimpleNamespace(label="version x", version="x", pipeline=Broken(), resolution=64)
    with pytest.raises(PipelineError, match="version x: the model returned values that are not finite"):
        TryOn(contender, PROFILE)(person.photo, person.hair_mask, person.face_mask, None, None)  # type: ignore[arg-type]


def test_nothing_of_the_old_hair_shows_in_the_blend(settings: Settings) -> None:
    person = place(draw_person(0, size=256), 320, 300, 30, 20)
    repainted = make_bald(person.photo, person.hair_mask, person.face_mask, PROFILE.processing.bald)[1]
    other = np.where(person.hair_mask[..., None], 255 - person.photo, person.photo)

    class Painter:
        def __call__(self, **given: Any) -> SimpleNamespace:
            return SimpleNamespace(raw=[np.full_like(image, 90) for image in given["images"]], finite=[True])

    serving = TryOn(SimpleNamespace(version="x", pipeline=Painter(), resolution=64), PROFILE)  # type: ignore[arg-type]
    first, second = (serving(photo, person.hair_mask, person.face_mask, None, None) for photo in (person.photo, other))
    assert np.array_equal(first[person.hair_mask], second[person.hair_mask])
    assert np.array_equal(second[~repainted], other[~repainted])


@pytest.mark.parametrize(("width", "height"), [(191, 256), (256, 191)])
def test_a_photo_that_is_not_square_is_drawn_as_training_sees_it(width: int, height: int) -> None:
    """Also in the photo itself nothing but its own pixels enters the removal: it keeps its one bright colour."""
    photo = np.full((height, width, 3), (40, 230, 200), np.uint8)
    hair, nobody = np.zeros((2, height, width), bool)
    hair[height // 3 :, width // 4 :] = True

    class Bald:
        def __call__(self, **given: Any) -> SimpleNamespace:
            self.given = given
            return SimpleNamespace(raw=given["bald_images"], finite=[True])

    pipeline = Bald()
    serving = TryOn(SimpleNamespace(version="x", pipeline=pipeline, resolution=64), PROFILE)  # type: ignore[arg-type]
    served = serving(photo, hair, nobody, None, None)
    seen = to_sample(Photo("x", "p", photo, hair, nobody, nobody, None), PROFILE.processing.size)
    bald, repaint = make_bald(seen.image, seen.hair_mask, seen.face_mask, PROFILE.processing.bald, window=seen.window)
    assert np.array_equal(pipeline.given["images"][0], seen.image)
    assert np.array_equal(pipeline.given["bald_images"][0], bald)
    assert np.array_equal(pipeline.given["repaint_masks"][0], repaint)
    assert np.abs(served.astype(int) - (40, 230, 200)).max() <= 25  # Telea alone strays by 20


def test_a_photo_smaller_than_the_square_gets_the_mean_of_what_is_drawn() -> None:
    hair = np.zeros((32, 32), bool)
    hair[6:26, 6:26] = True

    class Stripes:
        def __call__(self, **given: Any) -> SimpleNamespace:
            raw = np.zeros_like(given["images"][0])
            raw[:, ::4] = 200
            return SimpleNamespace(raw=[raw], finite=[True])

    serving = TryOn(SimpleNamespace(version="x", pipeline=Stripes(), resolution=64), PROFILE)  # type: ignore[arg-type]
    served = serving(np.full((32, 32, 3), 90, np.uint8), hair, np.zeros_like(hair), None, None)
    assert (served[12:20, 12:20] == 50).all()


def test_a_mask_in_the_alpha_channel_and_one_that_is_empty(tmp_path: Path, settings: Settings) -> None:
    person = draw_person(0, size=96)
    write_rgb(tmp_path / "anna.png", person.photo)
    alpha = np.dstack([np.full_like(person.photo, 255), person.hair_mask * np.uint8(255)])
    write_bytes(tmp_path / "mask.png", encode_image(alpha, ".png"))
    assert np.array_equal(
        request_for(tmp_path / "anna.png", settings, tmp_path / "mask.png").hair_mask, person.hair_mask
    )
    write_rgb(tmp_path / "ones.png", np.repeat(person.hair_mask[..., None], 3, 2).astype(np.uint8))
    with pytest.raises(PipelineError, match="its largest value is 1"):
        request_for(tmp_path / "anna.png", settings, tmp_path / "ones.png")


@pytest.mark.parametrize("name", ["anna.png", "style.png", "folder/../anna.png"])
def test_a_result_never_overwrites_what_it_is_made_from(tmp_path: Path, settings: Settings, name: str) -> None:
    (tmp_path / "folder").mkdir()
    photo, style = tmp_path / "anna.png", tmp_path / "style.png"
    with pytest.raises(PipelineError, match="would overwrite"):
        try_on_files("production", photo, style, tmp_path / name, None, settings, PROFILE)


def test_a_person_without_hair_and_a_style_with_hardly_any_are_refused(settings: Settings) -> None:
    person = draw_person(0, size=96)
    full = Request(person.photo, person.hair_mask, person.face_mask, None, np.array(person.box))
    dot = np.zeros_like(person.hair_mask)
    contender = SimpleNamespace(version="x", pipeline=Recorder(), resolution=64, styles=SimpleNamespace())
    serving = TryOn(contender, PROFILE)  # type: ignore[arg-type]
    with pytest.raises(PipelineError, match="the hair mask is empty"):
        serving.redraw(replace(full, hair_mask=dot.copy()), full)
    dot[40, 40] = True
    with pytest.raises(PipelineError, match="too little hair"):
        serving.redraw(full, replace(full, hair_mask=dot))
