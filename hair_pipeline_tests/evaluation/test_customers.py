"""Customers folders: every form they may have, and what is said of each that is incomplete."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from hair_pipeline.errors import PipelineError
from hair_pipeline.evaluation.cases import Case
from hair_pipeline.evaluation.customers import Problems, customer_cases, find_customers, fingerprint
from hair_pipeline.processing.bald import make_bald
from hair_pipeline.profile import BaldConfig
from hair_pipeline_tests.evaluation.tiny_world import tiny_profile
from hair_pipeline_tests.inputs.tiny_inputs import draw_person, embedding, write_face, write_rgb, write_tiny_inputs

PROFILE = tiny_profile()


def read(folder: Path) -> tuple[dict[str, Case], Problems]:
    settings = write_tiny_inputs(folder.parent / "elsewhere", people=1, views=1, size=64).settings()
    problems = Problems()
    cases = [case for batch in customer_cases(find_customers(folder, settings), PROFILE, problems) for case in batch]
    return {case.sample.image_id: case for case in cases}, problems


def test_each_form_is_read_and_each_gap_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "customers"
    person = draw_person(0, size=160)
    bald, repaint = make_bald(person.photo, person.hair_mask, person.face_mask, BaldConfig())
    for name in ("face", "bald_only", "both", "nothing", "other_size", "not_removed"):
        write_rgb(folder / f"{name}.jpg", person.photo)
    for name in ("face", "both"):
        write_face(folder / name, person, embedding(0))
    write_rgb(folder / "bald_only_bald.png", bald)
    write_rgb(folder / "bald" / "both.jpg", bald)
    write_rgb(folder / "other_size_bald.png", bald[:100])
    write_rgb(folder / "not_removed_bald.jpg", person.photo)
    write_rgb(folder / "profile.jpg", person.photo)
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


def test_the_fingerprint_sees_every_file_that_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "customers"
    person = draw_person(0, size=64)
    write_rgb(folder / "anna.jpg", person.photo)
    write_face(folder / "anna", person, embedding(0))
    settings = write_tiny_inputs(tmp_path / "elsewhere", people=1, views=1, size=64).settings()
    seen = {fingerprint(find_customers(folder, settings))}
    write_rgb(folder / "anna_bald.png", person.photo)
    seen.add(fingerprint(find_customers(folder, settings)))
    np.save(next(folder.glob("anna/face_01/*.npy")), embedding(1))
    seen.add(fingerprint(find_customers(folder, settings)))
    assert len(seen) == 3


def test_outputs_in_the_training_face_root_are_found(tmp_path: Path) -> None:
    inputs = write_tiny_inputs(tmp_path, people=1, views=1, size=64, customers=1)
    shutil.move(str(inputs.customers / "customer_000"), str(inputs.training_face / "customer_000"))
    problems = Problems()
    found = find_customers(inputs.customers, inputs.settings())
    (batch,) = customer_cases(found, PROFILE, problems)
    assert [case.sample.image_id for case in batch] == ["customer_000"]
    assert not problems.as_lines()


def test_gaps_carry_the_reasons_of_the_inputs(tmp_path: Path) -> None:
    inputs = write_tiny_inputs(tmp_path, people=1, views=1, size=64, customers=2)
    folder = inputs.customers
    shutil.copy(folder / "customer_000.jpg", folder / "nobody.JPG")
    (folder / "broken.jpg").write_bytes(b"{}")
    np.save(next((folder / "customer_001").rglob("*.npy")), np.zeros(12, np.float32))
    cases, problems = read(folder)
    assert {name: case.judged_identity for name, case in cases.items()} == {"customer_000": True, "customer_001": False}
    assert problems.no_identity == {"customer_001": "bad_embedding"}
    assert problems.left_out == {"nobody.JPG": "no_output", "broken.jpg": "json_as_image"}


def test_no_folder_and_no_photo_are_explained(tmp_path: Path) -> None:
    settings = write_tiny_inputs(tmp_path / "elsewhere", people=1, views=1, size=64).settings()
    with pytest.raises(PipelineError, match="no such folder"):
        find_customers(tmp_path / "nowhere", settings)
    (tmp_path / "none").mkdir()
    with pytest.raises(PipelineError, match="holds no photo"):
        find_customers(tmp_path / "none", settings)
