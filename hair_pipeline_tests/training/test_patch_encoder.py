"""Pairs of the contrastive terms, balanced batches, retrieval, and labels that are missing."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hair_pipeline.errors import PipelineError
from hair_pipeline.models.patch_encoder import PatchEncoder
from hair_pipeline.models.weights import STAND_IN_PATCH_ENCODER
from hair_pipeline.profile import PatchEncoderConfig
from hair_pipeline.settings import Settings
from hair_pipeline.training.patches import UNKNOWN, BalancedBatches, equalise
from hair_pipeline.training.photos import NO_LABEL, augment, masked_cross_entropy
from hair_pipeline.training.probes import person_probe
from hair_pipeline.training.sampler import generator
from hair_pipeline.training.trainers.patch_encoder import (
    GALLERY_IMAGES,
    GALLERY_PEOPLE,
    MAX_GALLERY,
    choose_gallery,
    curl_retrieval,
    initial_encoder,
    never_applied,
    pair_masks,
    pooled,
)

Rows = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2), st.integers(-1, 2)), min_size=2, max_size=24)


@given(rows=Rows)
def test_no_same_person_pair_is_a_negative_and_no_positive_is_one(rows: list[tuple[int, int, int]]) -> None:
    person = torch.tensor([p for p, _, _ in rows])
    image = torch.tensor([3 * p + i for p, i, _ in rows])
    curl = torch.tensor([c for _, _, c in rows])
    same_person = person[:, None] == person
    for term, (positives, negatives) in pair_masks(person, image, curl).items():
        assert not (positives & negatives).any()
        assert not (negatives & same_person).any()
        assert not positives.diagonal().any()
        assert torch.equal(positives, positives.T)
        if term == "curl":
            assert not (positives & same_person).any()
        else:
            assert not (positives & ~same_person).any()


def test_person_positives_are_across_images_where_there_are_any() -> None:
    person, image = torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 1, 2])
    positives, negatives = pair_masks(person, image, torch.tensor([0, 0, 0, 1]))["person"]
    assert positives.nonzero().tolist() == [[0, 2], [1, 2], [2, 0], [2, 1]]
    assert negatives.nonzero().tolist() == [[0, 3], [1, 3], [2, 3], [3, 0], [3, 1], [3, 2]]


def test_one_view_per_person_and_one_class_still_teach_something() -> None:
    masks = pair_masks(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 1, 1]), torch.tensor([2, 2, 2, 2]))
    assert masks["person"][0].any()
    assert masks["person"][1].any()
    assert not masks["curl"][1].any()


def patches_of(people: list[int], images: list[int], curls: list[int]) -> Any:
    return SimpleNamespace(people=torch.tensor(people), images=torch.tensor(images), curls=torch.tensor(curls))


def test_batches_are_balanced_over_curl_and_repeatable() -> None:
    people = [p for p in range(12) for _ in range(4)]
    data = patches_of(people, [2 * p + k % 2 for p in range(12) for k in range(4)], [0 if p < 8 else 1 for p in people])
    batches = list(islice(BalancedBatches(data, 4, 3, seed=0), 20))
    for batch in batches:
        assert len(batch) == 12
        curls = [int(data.curls[draw.index]) for draw in batch]
        assert curls.count(0) == curls.count(1) == 6
        for start in range(0, 12, 3):
            assert len({int(data.people[draw.index]) for draw in batch[start : start + 3]}) == 1
            assert len({int(data.images[draw.index]) for draw in batch[start : start + 3]}) == 2
    again = BalancedBatches(data, 4, 3, seed=0)
    assert [again[number] for number in (7, 5)] == [batches[7], batches[5]]


@pytest.mark.parametrize("people", [2, 3, 6])
def test_no_class_is_left_out_where_people_are_no_multiple_of_the_classes(people: int) -> None:
    data = patches_of(list(range(40)), list(range(40)), [place % 4 - 1 for place in range(40)])
    batches = islice(BalancedBatches(data, people, 1, seed=0), 400)
    drawn = np.bincount([int(data.curls[draw.index]) + 1 for batch in batches for draw in batch], minlength=4)
    assert drawn.min() > 0.85 * drawn.mean()


def test_batches_work_with_less_than_asked_for() -> None:
    batch = next(iter(BalancedBatches(patches_of([0, 1], [0, 1], [UNKNOWN, 1]), 16, 4, seed=0)))
    assert len(batch) == 8
    assert {draw.index for draw in batch} == {0, 1}


def test_retrieval_excludes_the_same_person() -> None:
    vectors = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.01], [0.9, 0.1], [0.0, 1.0]]), dim=1)
    data = patches_of([0, 0, 1, 2], [0, 0, 1, 2], [0, 1, 0, 2])
    numbers = curl_retrieval(vectors[:1], patches_of([0], [0], [0]), vectors, data)
    assert numbers["curl_r_at_1"] == 1  # the nearest of another person, not the person's own second patch
    assert curl_retrieval(vectors[:1], patches_of([0], [0], [0]), vectors[:2], patches_of([0, 0], [0, 0], [0, 1])) == {}


def test_patches_are_pooled_to_their_images_style_vectors() -> None:
    vectors = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    styles, labels = pooled(vectors, patches_of([4, 5, 5], [7, 9, 9], [0, 2, 2]))
    assert torch.equal(styles, torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    assert (labels.people.tolist(), labels.images.tolist(), labels.curls.tolist()) == ([4, 5], [7, 9], [0, 2])


def patch_table(people: int, images: int, patches: int) -> pd.DataFrame:
    number = np.arange(people * images * patches)
    return pd.DataFrame({"person_number": number // (images * patches), "image_number": number // patches})


def test_a_gallery_of_many_people_still_tells_their_images_apart() -> None:
    table = patch_table(people=1500, images=8, patches=4)
    chosen = table.iloc[choose_gallery(table, np.arange(len(table)))]
    assert len(chosen) <= MAX_GALLERY
    assert chosen.person_number.nunique() == GALLERY_PEOPLE
    assert set(chosen.groupby("person_number").image_number.nunique()) == {GALLERY_IMAGES}
    people, images = (torch.tensor(chosen[name].to_numpy()) for name in ("person_number", "image_number"))
    assert person_probe(torch.randn(len(chosen), 4), people, images)["person_chance"] == 1 / GALLERY_PEOPLE


def test_a_gallery_of_few_people_is_spread_over_all_their_patches() -> None:
    table = patch_table(people=60, images=6, patches=6)
    rows = np.arange(len(table))
    assert np.array_equal(choose_gallery(table, rows), rows[np.linspace(0, len(rows) - 1, MAX_GALLERY).astype(int)])
    assert np.array_equal(choose_gallery(table, rows[:90]), rows[:90])


def test_a_term_that_never_applied_is_noted() -> None:
    config = PatchEncoderConfig()
    assert never_applied(config, ["curl", "person"]) == {}
    assert set(never_applied(config, ["person"])) == {"curl_term"}
    assert never_applied(config.model_copy(update={"curl_weight": 0.0}), ["person"]) == {}
    assert "not trained" in never_applied(config, [])["encoder"]


def test_missing_labels_do_not_count() -> None:
    logits = torch.randn(4, 3, requires_grad=True)
    labels = torch.tensor([0, NO_LABEL, 2, NO_LABEL])
    loss = masked_cross_entropy(logits, labels)
    assert loss is not None
    (gradient,) = torch.autograd.grad(loss, logits)
    assert bool((gradient[labels < 0] == 0).all())
    assert masked_cross_entropy(logits, torch.full((4,), NO_LABEL)) is None


@given(seed=st.integers(0, 1000))
def test_augmentation_depends_on_its_generator_alone(seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    a, b = (equalise(augment(image, chance), chance) for chance in (generator(seed, 1), generator(seed, 1)))
    assert np.array_equal(a, b)
    assert a.shape == image.shape
    assert a.dtype == np.uint8


def test_the_shipped_encoder_is_the_start_or_refused(tmp_path: Path) -> None:
    shipped = PatchEncoder(width=8, embedding_dim=16, input_size=32)
    shipped.save(tmp_path / STAND_IN_PATCH_ENCODER)
    settings = Settings(sample_models_dir=tmp_path, models_dir=tmp_path / "none")
    values = PatchEncoderConfig(start="stand_in", width=8, embedding_dim=16, input_size=32)

    content = (tmp_path / STAND_IN_PATCH_ENCODER).read_bytes()
    for _ in range(5):
        shipped.save(tmp_path / STAND_IN_PATCH_ENCODER)
        assert (tmp_path / STAND_IN_PATCH_ENCODER).read_bytes() == content
    start = initial_encoder(values, settings)
    assert start.training
    assert all(torch.equal(value, shipped.state_dict()[name]) for name, value in start.state_dict().items())
    with pytest.raises(PipelineError, match="the profile asks for"):
        initial_encoder(values.model_copy(update={"width": 12}), settings)
    (tmp_path / STAND_IN_PATCH_ENCODER).write_bytes(b"damaged")
    with pytest.raises(PipelineError, match="not a readable patch encoder"):
        initial_encoder(values, settings)
    (tmp_path / STAND_IN_PATCH_ENCODER).unlink()
    with pytest.raises(PipelineError, match="missing"):
        initial_encoder(values, settings)
