"""Customers folders: every form they may have, and what is said of each that is incomplete."""

import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from hair_pipeline.errors import PipelineError
from hair_pipeline.evaluation.cases import Case
from hair_pipeline.evaluation.contenders import Drawing, PictureContender
from hair_pipeline.evaluation.customers import Problems, customer_cases, find_customers, fingerprint
from hair_pipeline.inputs.geometry import letterbox
from hair_pipeline.processing.bald import make_bald
from hair_pipeline.profile import BaldConfig
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


def write_own(path: Path, image: np.ndarray) -> None:
    """A photo of its own, since copies of one file are left out."""
    write_rgb(path, image)
    as_its_own(path)


def as_its_own(path: Path) -> None:
    """Another file with the same pixels."""
    path.write_bytes(path.read_bytes() + path.name.encode())


def read(folder: Path) -> tuple[dict[str, Case], Problems]:
    settings = write_tiny_inputs(folder.parent / "elsewhere", people=1, views=1, size=64).settings()
    problems = Problems()
    cases = [
        case
        for batch in customer_cases(find_customers(folder, settings, problems), PROFILE, problems)
        for case in batch
    ]
    return {case.sample.image_id: case for case in cases}, problems


def test_each_form_is_read_and_each_gap_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "customers"
    person = draw_person(0, size=160)
    bald, repaint = make_bald(person.photo, person.hair_mask, person.face_mask, BaldConfig())
    for name in ("face", "bald_only", "both", "nothing", "other_size", "not_removed"):
        write_own(folder / f"{name}.jpg", person.photo)
    for name in ("face", "both"):
        write_face(folder / name, person, embedding(0))
    write_rgb(folder / "bald_only_bald.png", bald)
    write_rgb(folder / "bald" / "both.jpg", bald)
    write_rgb(folder / "other_size_bald.png", bald[:100])
    write_rgb(folder / "not_removed_bald.jpg", person.photo)
    write_own(folder / "profile.jpg", person.photo)
    write_face(folder / "profile", person, embedding(0), yaw=60.0, embedding_model="AdaFace")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 no image")
    cases, problems = read(folder)
    assert set(cases) == {"face", "bald_only", "both", "profile"}
    assert set(problems.left_out) == {"nothing.jpg", "other_size.jpg", "not_removed.jpg", "broken.jpg"}
    assert "160x160" in problems.left_out["other_size.jpg"]
    assert "no removed hair" in problems.left_out["not_removed.jpg"]
    assert set(problems.no_identity) == {"bald_only", "profile"}
    assert cases["face"].judged_identity
    assert cases["both"].judged_identity
    assert not cases["bald_only"].judged_identity
    square = cv2.resize(repaint.astype(np.uint8), (128, 128), interpolation=cv2.INTER_NEAREST) > 0
    for name in ("bald_only", "both"):
        found = cases[name].repaint_mask
        assert (found & square).sum() / (found | square).sum() > 0.65  # the fill resembles its surroundings
        outside = ~found
        assert np.array_equal(cases[name].bald[outside], cases[name].sample.image[outside])


def test_the_fingerprint_sees_how_photos_are_framed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_rgb(tmp_path / "anna.jpg", draw_person(0, size=64).photo)
    settings = write_tiny_inputs(tmp_path / "elsewhere", people=1, views=1, size=64).settings()
    found = find_customers(tmp_path, settings, Problems())
    before = fingerprint(found)
    for name in ("MARGIN", "WHOLE", "PADDING"):
        with monkeypatch.context() as changed:
            changed.setattr(f"hair_pipeline.evaluation.customers.{name}", 0)
            assert fingerprint(found) != before, name


def test_the_fingerprint_sees_every_file_that_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "customers"
    person = draw_person(0, size=64)
    write_rgb(folder / "anna.jpg", person.photo)
    write_face(folder / "anna", person, embedding(0))
    settings = write_tiny_inputs(tmp_path / "elsewhere", people=1, views=1, size=64).settings()
    seen = {fingerprint(find_customers(folder, settings, Problems()))}
    write_rgb(folder / "anna_bald.png", person.photo)
    seen.add(fingerprint(find_customers(folder, settings, Problems())))
    np.save(next(folder.glob("anna/face_01/*.npy")), embedding(1))
    seen.add(fingerprint(find_customers(folder, settings, Problems())))
    assert len(seen) == 3


def test_outputs_in_the_training_face_root_are_found(tmp_path: Path) -> None:
    inputs = write_tiny_inputs(tmp_path, people=1, views=1, size=64, customers=1)
    shutil.move(str(inputs.customers / "customer_000"), str(inputs.training_face / "customer_000"))
    problems = Problems()
    found = find_customers(inputs.customers, inputs.settings(), problems)
    (batch,) = customer_cases(found, PROFILE, problems)
    assert [case.sample.image_id for case in batch] == ["customer_000"]
    assert not problems.as_lines()


def test_gaps_carry_the_reasons_of_the_inputs(tmp_path: Path) -> None:
    inputs = write_tiny_inputs(tmp_path, people=1, views=1, size=64, customers=2)
    folder = inputs.customers
    shutil.copy(folder / "customer_000.jpg", folder / "nobody.JPG")
    as_its_own(folder / "nobody.JPG")
    (folder / "broken.jpg").write_bytes(b"{}")
    np.save(next((folder / "customer_001").rglob("*.npy")), np.zeros(12, np.float32))
    cases, problems = read(folder)
    assert {name: case.judged_identity for name, case in cases.items()} == {"customer_000": True, "customer_001": False}
    assert problems.no_identity == {"customer_001": "bad_embedding"}
    assert problems.left_out == {"nobody.JPG": "no_output", "broken.jpg": "json_as_image"}


def test_another_persons_outputs_further_down_are_not_taken(tmp_path: Path) -> None:
    folder = tmp_path / "customers"
    person = draw_person(0, size=64)
    for name in ("photo", "bob"):
        write_own(folder / f"{name}.jpg", person.photo)
    write_face(folder / "anna" / "photo", person, embedding(1))
    write_face(folder / "bob" / "bob", person, embedding(0))
    inputs = write_tiny_inputs(tmp_path / "elsewhere", people=1, views=1, size=64)
    write_face(inputs.training_face / "photo", person, embedding(2))  # the customers have outputs of their own
    cases, problems = read(folder)
    assert set(cases) == {"bob"}
    assert problems.left_out == {"photo.jpg": "no_output"}


def test_bad_files_and_second_photos_are_left_out_not_fatal(tmp_path: Path) -> None:
    folder = tmp_path / "customers"
    person = draw_person(0, size=64)
    for name in ("anna.jpg", "anna.png", "bob.jpg"):
        write_own(folder / name, person.photo)
    for name in ("anna", "bob"):
        write_face(folder / name, person, embedding(0))
    (folder / "folder.jpg").mkdir()
    (folder / "dangling.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (folder / "bob_bald.png").symlink_to(tmp_path / "nowhere.png")
    cases, problems = read(folder)
    assert set(cases) == {"anna"}
    assert set(problems.left_out) == {"anna.png", "bob.jpg", "folder.jpg", "dangling.jpg"}
    assert problems.left_out["anna.png"] == "has the same id as anna.jpg"
    settings = write_tiny_inputs(tmp_path / "elsewhere", people=1, views=1, size=64).settings()
    found = find_customers(folder, settings, Problems())
    whole = fingerprint(found)
    found[0].photo.unlink()
    assert fingerprint(found) != whole


def test_photos_in_formats_that_are_not_read_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "customers"
    write_rgb(folder / "anna.jpg", draw_person(0, size=64).photo)
    for name in ("bob.HEIC", "eve.webp", "notes.txt"):
        (folder / name).write_bytes(b"any")
    settings = write_tiny_inputs(tmp_path / "elsewhere", people=1, views=1, size=64).settings()
    problems = Problems()
    assert [customer.id for customer in find_customers(folder, settings, problems)] == ["anna"]
    assert set(problems.left_out) == {"bob.HEIC", "eve.webp"}


@pytest.mark.parametrize("orientation", [3, 6])
def test_phone_photos_are_judged_upright_and_around_the_head(tmp_path: Path, orientation: int) -> None:
    folder = tmp_path / "customers"
    person = place(draw_person(0, size=160), 600, 800, 200, 100)
    bald, _ = make_bald(person.photo, person.hair_mask, person.face_mask, BaldConfig())
    write_rgb(folder / "plain.png", person.photo)
    write_tagged(folder / "turned.png", lay(person, orientation).photo, orientation)
    write_rgb(folder / "plain_bald.png", bald)
    turns = 1 if orientation == 6 else 0  # made for the stored pixels where the size can tell
    write_rgb(folder / "turned_bald.png", np.rot90(bald, turns))
    write_face(folder / "plain", person, embedding(0))
    write_face(folder / "turned", lay(person, 6) if turns else person, embedding(0))
    cases, problems = read(folder)
    assert not problems.as_lines()
    plain, turned = cases["plain"], cases["turned"]
    assert np.array_equal(plain.sample.image, turned.sample.image)
    assert np.array_equal(plain.sample.face_mask, turned.sample.face_mask)
    assert np.array_equal(plain.bald, turned.bald)
    assert np.array_equal(plain.repaint_mask, turned.repaint_mask)
    box = plain.sample.box
    assert box is not None
    assert turned.sample.box == pytest.approx(box, abs=0.1)
    assert (box[3] - box[1]) / 128 > 0.3  # 57 of the photo's 800 rows


def test_pictures_of_another_system_are_seen_through_the_same_square(tmp_path: Path) -> None:
    folder, pictures = tmp_path / "customers", tmp_path / "pictures"
    person = place(draw_person(0, size=160), 600, 800, 200, 100)
    for name in ("same", "stored", "scaled", "square", "wrong"):
        write_tagged(folder / f"{name}.png", lay(person, 6).photo, 6)
        as_its_own(folder / f"{name}.png")
        write_face(folder / name, person, embedding(0))
    write_rgb(pictures / "same.png", person.photo)
    write_rgb(pictures / "stored.png", np.rot90(person.photo))
    write_rgb(pictures / "scaled.png", cv2.resize(person.photo, (1200, 1600), interpolation=cv2.INTER_CUBIC))
    write_rgb(pictures / "square.png", letterbox(600, 800, 800).image(person.photo))
    write_rgb(pictures / "wrong.png", person.photo[:400])
    cases, _ = read(folder)
    drawn = dict(zip(cases, PictureContender(pictures).draw(list(cases.values())), strict=True))
    assert drawn.pop("wrong") == "wrong.png is 600x400, the photo 600x800"
    for name, drawing in drawn.items():
        assert isinstance(drawing, Drawing)
        assert np.abs(drawing.final.astype(int) - cases[name].sample.image).mean() < 1, name


def test_a_link_that_leads_nowhere_is_a_missing_picture(tmp_path: Path) -> None:
    write_rgb(tmp_path / "anna.png", draw_person(0, size=64).photo)
    (tmp_path / "bob.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "eve.png").mkdir()
    assert set(PictureContender(tmp_path).pictures) == {"anna"}


def test_pictures_of_a_narrow_photo_fit_though_its_width_in_the_square_is_rounded(tmp_path: Path) -> None:
    folder, pictures = tmp_path / "customers", tmp_path / "pictures"
    photo = np.full((400, 61, 3), 60, np.uint8)  # 19.5 of 128 columns
    bald = photo.copy()
    bald[50:350] = 200
    for picture in (folder / "anna.png", pictures / "anna.png"):
        write_rgb(picture, photo)
    write_rgb(folder / "anna_bald.png", bald)
    cases, _ = read(folder)
    (drawing,) = PictureContender(pictures).draw([cases["anna"]])
    assert isinstance(drawing, Drawing)
    assert np.array_equal(drawing.final, cases["anna"].sample.image)


def test_a_name_that_is_not_utf8_and_copies_are_left_out_and_the_rest_runs(tmp_path: Path) -> None:
    folder = tmp_path / "customers"
    person = draw_person(0, size=64)
    write_rgb(folder / "anna.jpg", person.photo)
    write_face(folder / "anna", person, embedding(0))
    photo = (folder / "anna.jpg").read_bytes()
    (folder / "berta.jpg").write_bytes(photo)
    (folder / "clara.jpg").write_bytes(photo[:-1] + b"x")  # as long, but no copy
    unnamed = folder / os.fsdecode(b"jos\xe9.jpg")
    unnamed.write_bytes(photo)
    cases, problems = read(folder)
    assert set(cases) == {"anna"}
    assert problems.left_out["jos\\xe9.jpg"] == "its name is not UTF-8: rename it"
    assert problems.left_out["berta.jpg"] == "the same file as anna.jpg"
    assert "same file" not in problems.left_out["clara.jpg"]
    json.dumps(problems.as_lines(), ensure_ascii=False).encode()
    settings = write_tiny_inputs(tmp_path / "more", people=1, views=1, size=64).settings()
    (folder / "anna" / "face_01" / os.fsdecode(b"\xff.txt")).touch()
    assert fingerprint(find_customers(folder, settings, Problems()))


def test_no_folder_and_no_photo_are_explained(tmp_path: Path) -> None:
    settings = write_tiny_inputs(tmp_path / "elsewhere", people=1, views=1, size=64).settings()
    with pytest.raises(PipelineError, match="no such folder"):
        find_customers(tmp_path / "nowhere", settings, Problems())
    (tmp_path / "none").mkdir()
    with pytest.raises(PipelineError, match="holds no photo"):
        find_customers(tmp_path / "none", settings, Problems())
