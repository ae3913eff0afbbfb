"""The split's audits: near-duplicate pictures and equal identities are found, different ones are not."""

import json
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from hair_pipeline.cli import app
from hair_pipeline.inputs.audit import equal_identities, near_duplicates
from hair_pipeline.inputs.catalog import build_catalog, read_catalog
from hair_pipeline.inputs.perceptual_hash import as_words, near_pairs, perceptual_hash
from hair_pipeline.inputs.summary import Summary, summarise
from hair_pipeline.profile import InputsConfig, Profile
from hair_pipeline_tests.inputs.tiny_inputs import TinyInputs, draw_person, embedding, write_tiny_inputs

CONFIG = InputsConfig(validation_fraction=0.4)
PROFILE = Profile(name="test", inputs=CONFIG)


@pytest.fixture
def inputs(tmp_path: Path) -> TinyInputs:
    return write_tiny_inputs(tmp_path / "inputs", people=5, views=2, size=128)


def gray(person: int, view: int = 0) -> np.ndarray:
    return cv2.cvtColor(draw_person(person, view, size=256).photo, cv2.COLOR_RGB2GRAY)


def distance(first: np.ndarray, second: np.ndarray) -> int:
    words = [as_words([perceptual_hash(image)]) for image in (first, second)]
    return int(np.bitwise_count(words[0] ^ words[1]).sum())


def test_the_hash_survives_what_does_not_change_a_picture() -> None:
    image = gray(0)
    jpeg = cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 60])[1], cv2.IMREAD_GRAYSCALE)
    half = cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    brighter = np.clip(image * 1.1, 0, 255).astype(np.uint8)
    for same in (jpeg, half, brighter):
        assert distance(image, same) <= CONFIG.near_duplicate_distance
    for other in (gray(1), gray(0, 1), image[:, ::-1]):
        assert distance(image, other) > CONFIG.near_duplicate_distance


@given(st.integers(0, 40), st.integers(0, 60), st.integers(0, 20), st.integers(0, 2**32 - 1))
def test_near_pairs_are_those_of_a_plain_comparison(first: int, second: int, limit: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    base = generator.integers(0, 2**63, (4, 4)).astype(np.uint64)

    def some(count: int) -> np.ndarray:
        flips = np.uint64(1) << generator.integers(0, 63, (count, 4)).astype(np.uint64)
        return base[generator.integers(0, 4, count)] ^ (flips * generator.integers(0, 2, (count, 4)).astype(np.uint64))

    one, other = some(first), some(second)
    row, column, found = near_pairs(one, other, limit)
    plain = np.bitwise_count(one[:, None] ^ other[None]).sum(2)
    assert set(zip(row, column, strict=True)) == set(zip(*np.nonzero(plain <= limit), strict=True))
    assert (found == plain[row, column]).all()


def sides(inputs: TinyInputs) -> pd.DataFrame:
    return build_catalog(inputs.settings(), PROFILE).frame


def test_a_picture_on_both_sides_is_found(inputs: TinyInputs) -> None:
    frame = sides(inputs)
    assert near_duplicates(inputs.settings(), CONFIG).pairs.empty
    held = frame[frame.split == "validation"].iloc[0]
    trained = frame[frame.split == "train"].iloc[0]
    picture = cv2.imread(str(inputs.k_hairstyle / held.image_path))
    small = cv2.resize(picture, None, fx=0.9, fy=0.9, interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(inputs.k_hairstyle / trained.image_path), small, [cv2.IMWRITE_JPEG_QUALITY, 80])
    sides(inputs)
    found = near_duplicates(inputs.settings(), CONFIG)
    pair = next(found.pairs.itertuples())
    assert (pair.validation_image, pair.train_image) == (held.image_id, [trained.image_id])
    assert (pair.validation_person, pair.train_person) == (held.source, [trained.source])
    assert found.train + found.validation == 10


def test_one_person_under_two_names_is_found(inputs: TinyInputs) -> None:
    sides(inputs)
    clean = equal_identities(inputs.settings(), CONFIG)
    assert clean.people == {"InsightFace": 5}
    assert clean.pairs.empty
    first, second = inputs.sources[0], inputs.sources[3]
    for view, image_id in enumerate(name for name in inputs.image_ids if name.startswith(second)):
        np.save(next((inputs.training_face / image_id).rglob("*.npy")), embedding(0, 7 + view))
    frame = sides(inputs)
    (pair,) = equal_identities(inputs.settings(), CONFIG).pairs.itertuples()
    assert {pair.person, pair.other} == {first, second}
    assert pair.cosine > 0.9
    split = frame.groupby("source").split.first()
    assert pair.across_split == (split[first] != split[second])


def test_the_two_models_embeddings_are_never_compared(inputs: TinyInputs) -> None:
    first, second = inputs.sources[:2]
    for image_id in inputs.image_ids:
        if image_id.startswith((first, second)):
            (path,) = (inputs.training_face / image_id).rglob("*.json")
            model = "AdaFace" if image_id.startswith(second) else "InsightFace"
            path.write_text(json.dumps(json.loads(path.read_text()) | {"embedding_model": model}))
            np.save(next(path.parent.glob("*.npy")), embedding(0))
    sides(inputs)
    found = equal_identities(inputs.settings(), CONFIG)
    assert found.people == {"AdaFace": 1, "InsightFace": 4}
    assert found.pairs.empty


def test_blurred_faces_are_not_compared(tmp_path: Path) -> None:
    inputs = write_tiny_inputs(tmp_path, people=3, views=1, size=96, blurred_people=3)
    sides(inputs)
    assert equal_identities(inputs.settings(), CONFIG).people == {}


def test_the_summary_counts_every_accepted_image_once(inputs: TinyInputs) -> None:
    frame = sides(inputs)
    summary = summarise(inputs.settings().catalog_path)
    for group in ("mask_origin", "identity", "stage2", "split", "photo_size", "curl", "sex", "curl_class", "color"):
        assert sum(summary[group].values()) == frame.accepted.sum(), group
    for attribute in ("curl", "length", "has_bangs"):
        shares = [share for share in summary.shares if share.attribute == attribute]
        for side in ("train", "validation"):
            assert abs(sum(getattr(share, side) for share in shares) - 1) < 1e-4
            part = frame[frame.split == side][attribute].astype(str)
            for share in shares:
                assert abs((part == share.value).mean() - getattr(share, side)) < 1e-4
    assert 0.9 < summary.mask_iou["0.5"] <= 1
    assert Summary.from_json(json.loads(json.dumps(summary.as_json()))) == summary


def test_the_command_shows_the_summary(inputs: TinyInputs, monkeypatch: pytest.MonkeyPatch) -> None:
    image = next(inputs.k_hairstyle.rglob("*.jpg"))
    image.write_bytes(b"{}")
    sides(inputs)
    monkeypatch.setenv("HAIR_PIPELINE_TRAINING_ROOT", str(inputs.settings().training_root))
    monkeypatch.setenv("COLUMNS", "160")
    shown = CliRunner().invoke(app, ["catalog", "summary"])
    assert shown.exit_code == 0, shown.output
    assert "json_as_image" in shown.output
    assert "named like an image, but it is a JSON label" in shown.output
    assert "validation" in shown.output
    plain = CliRunner(charset="ascii").invoke(app, ["catalog", "summary"], env={"COLUMNS": "50"})  # needs ellipses
    assert plain.exit_code == 0, plain.output
    printed = CliRunner().invoke(app, ["catalog", "summary", "--json"])
    assert json.loads(printed.stdout)["counts"]["files"]["images_accepted"] == 9


def test_columns_can_be_read_alone(inputs: TinyInputs) -> None:
    frame = sides(inputs)
    part = read_catalog(inputs.settings().catalog_path, columns=["image_id", "split"])
    pd.testing.assert_frame_equal(part, frame[["image_id", "split"]])
