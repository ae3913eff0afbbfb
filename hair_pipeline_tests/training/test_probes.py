"""The probes find what is there, and nothing where there is nothing."""

from __future__ import annotations

import torch

from hair_pipeline.training.probes import linear_probe, person_probe


def test_linear_probe_finds_a_linear_rule_and_no_rule_in_noise() -> None:
    chance = torch.Generator().manual_seed(0)
    train, test = torch.randn(300, 8, generator=chance), torch.randn(300, 8, generator=chance)
    rule = lambda x: x[:, :3].argmax(1)  # noqa: E731
    found = linear_probe(train, rule(train), test, rule(test))
    assert found is not None
    assert found > 0.85
    noise = linear_probe(train, torch.randint(3, (300,), generator=chance), test, rule(test))
    assert noise is not None
    assert noise < 0.5
    assert linear_probe(train, torch.zeros(300, dtype=torch.long), test, rule(test)) is None
    assert linear_probe(train, rule(train), test[:0], rule(test[:0])) is None


def test_person_probe_tests_on_another_image() -> None:
    chance = torch.Generator().manual_seed(0)
    people = torch.arange(10).repeat_interleave(8)
    images = torch.arange(40).repeat_interleave(2)
    own = torch.randn(10, 16, generator=chance)[people]
    assert person_probe(own + 0.1 * torch.randn(80, 16, generator=chance), people, images)["person_probe"] > 0.9
    per_image = torch.randn(40, 16, generator=chance)[images]  # knows the picture, not the person
    found = person_probe(per_image, people, images)
    assert found["person_probe"] < 0.5
    assert found["person_chance"] == 0.1
    assert person_probe(own, people, people) == {}
