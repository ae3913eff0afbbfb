"""The probe reads what is there, on other people, and nothing where there is nothing."""

import numpy as np

from hair_pipeline.processing.leakage import Leakage, bald_features, mask_features, probe

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


def test_telling_needs_more_than_chance_and_the_mask() -> None:
    strong, weak = probe(*made(60)), probe(*made(0))
    assert strong is not None
    assert weak is not None
    assert Leakage({"curl": strong}, {"curl": weak}).telling() == ["curl"]
    assert Leakage({"curl": strong}, {"curl": strong}).telling() == []
    assert Leakage({"curl": weak}, {"curl": weak}).telling() == []


def test_mask_features_are_coverage() -> None:
    mask = np.zeros((64, 64), bool)
    mask[:32] = True
    assert mask_features(mask).reshape(32, 32).mean(axis=1).tolist() == [1] * 16 + [0] * 16
