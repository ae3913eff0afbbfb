"""The probe reads what is there, on other people, and nothing where there is nothing."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hair_pipeline.files import encode_image, write_bytes
from hair_pipeline.inputs.columns import SCHEMA
from hair_pipeline.processing.leakage import Leakage, _stored, bald_features, choose_rows, mask_features, probe
from hair_pipeline.settings import Settings

PEOPLE, VIEWS = 24, 4


def made(strength: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Noise images of people of two classes; a bright square says the class as far as `strength` goes."""
    random = np.random.default_rng(0)
    features, labels, people = [], [], []
    for person in range(PEOPLE):
        own = random.integers(0, 120, (48, 48, 3))
        for _ in range(VIEWS):
            image = own + random.integers(0, 60, own.shape)
            image[10:20, 10:20] += int(strength * (person % 2))
            features.append(bald_features(image.astype(np.uint8)))
            labels.append(("long", "short")[person % 2])
            people.append(f"CP{person}")
    return np.array(features), np.array(labels, object), np.array(people, object)


def test_a_probe_finds_what_is_there() -> None:
    score = probe(*made(60))
    assert score is not None
    assert score.accuracy > 0.9
    assert score.low > score.chance == 0.5
    assert (score.people, score.images) == (PEOPLE, PEOPLE * VIEWS)


def test_persons_looks_alone_tell_nothing() -> None:
    """Every person looks unlike the others: a probe that saw the same people in training would tell all of them."""
    score = probe(*made(0))
    assert score is not None
    assert score.low < score.chance
    assert score.accuracy < 0.75


def test_too_few_people_measure_nothing() -> None:
    features, labels, people = made(60)
    assert probe(features[: 5 * VIEWS], labels[: 5 * VIEWS], people[: 5 * VIEWS]) is None
    assert probe(features, np.full(len(labels), "one", object), people) is None
    labels[:] = None
    assert probe(features, labels, people) is None


def test_telling_is_what_is_surely_read_more_often_than_by_chance() -> None:
    strong, weak = probe(*made(60)), probe(*made(0))
    assert strong is not None
    assert weak is not None
    for mask in (strong, weak):
        assert Leakage({"curl": strong}, {"curl": mask}).telling() == ["curl"]
        assert Leakage({"curl": weak}, {"curl": mask}).telling() == []
    hardly = replace(strong, low=strong.chance + 0.05)
    assert Leakage({"curl": hardly}, {"curl": weak}).telling() == []


def test_mask_features_are_coverage() -> None:
    mask = np.zeros((64, 64), bool)
    mask[:32] = True
    assert mask_features(mask).reshape(32, 32).mean(axis=1).tolist() == [1] * 16 + [0] * 16


def catalog(root: Path, people: list[str], views: int) -> Settings:
    """Settings with a catalog of images that only have names."""
    settings = Settings(training_root=root)
    always = {"accepted": True, "stage2": True, "has_face": True, "identity_reliable": True, "face_blurred": False}
    rows = [{"image_id": f"{name}-{view:03d}", "source": name} | always for name in people for view in range(views)]
    settings.processed.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), settings.catalog_path)
    return settings


def test_images_are_chosen_from_all_people(tmp_path: Path) -> None:
    people = [f"{prefix}{number:03d}" for prefix in ("AP", "CP", "DS", "MN") for number in range(50)]
    settings = catalog(tmp_path, people, views=2)
    chosen = choose_rows(settings, images=60)
    assert len(chosen) == chosen.source.nunique() == 60
    assert chosen.source.str[:2].value_counts().between(8, 22).all()
    assert chosen.source.nunique() == len(set(chosen.source) & set(choose_rows(settings, images=80).source))
    assert len(choose_rows(settings, images=450)) == 400


def test_a_name_with_brackets_finds_its_bald_image(tmp_path: Path) -> None:
    settings = Settings(training_root=tmp_path)
    folder = settings.processed / "bald_images" / "shard_0000"
    write_bytes(folder / "A [1].png", encode_image(np.full((8, 8, 3), 7, np.uint8), ".png"))
    row = SimpleNamespace(shard="shard_0000", image_id="A [1]")
    assert (_stored(row, settings) == 7).all()
