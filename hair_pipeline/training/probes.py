"""What an encoder's vectors hold: linear probes for the curl class, and for the person it should not lean on.

Belongs here: probes on frozen vectors. Does not belong here: retrieval (`trainers.patch_encoder`) and training.
"""

from __future__ import annotations

import torch
from torch import Tensor

_RIDGE = 1e-2


def linear_probe(train: Tensor, labels: Tensor, test: Tensor, truth: Tensor) -> float | None:
    """Accuracy of a linear classifier: ridge regression onto one-hot classes, each class weighing the same.

    Args:
        train: (N, F) frozen features; labels: (N,) int64 classes >= 0.
        test: (M, F) of other people or images; truth: (M,).

    Returns:
        None where there is nothing to fit or to test, or a single class.
    """
    if not len(test) or len(labels.unique()) < 2:
        return None
    mean, deviation = train.mean(0), train.std(0).clamp(min=1e-6)
    x, y = (_with_bias(((part - mean) / deviation).double()) for part in (train, test))
    goal = torch.nn.functional.one_hot(labels).double()
    weight = (goal / goal.sum(0).clamp(min=1)).sum(1, keepdim=True)
    normal = x.T @ (weight * x) + _RIDGE * torch.eye(x.shape[1], dtype=x.dtype)
    solution = torch.linalg.solve(normal, x.T @ (weight * goal))
    return float(((y @ solution).argmax(1) == truth).float().mean())


def person_probe(vectors: Tensor, people: Tensor, images: Tensor) -> dict[str, float]:
    """How well the person can be told from a patch: fitted on all but one image of everyone, tested on that one.

    Person positives teach the encoder people, who differ in light and camera too; a style vector that is all person and
    no hair would show here as a high accuracy beside a poor curl probe.

    Args:
        vectors: (N, F).
        people, images: (N,) int64.

    Returns:
        `person_probe` and `person_chance` (one over the number of people); empty where nobody has two images.
    """
    held = torch.zeros(len(people), dtype=torch.bool)
    usable = torch.zeros(len(people), dtype=torch.bool)
    for person in people.unique():
        own = people == person
        numbers = images[own].unique()
        if len(numbers) > 1:
            usable |= own
            held |= own & (images == numbers[-1])
    if not bool(usable.any()):
        return {}
    classes = people[usable].unique()
    labels = torch.searchsorted(classes, people)
    fit, test = usable & ~held, usable & held
    accuracy = linear_probe(vectors[fit], labels[fit], vectors[test], labels[test])
    return {} if accuracy is None else {"person_probe": accuracy, "person_chance": 1 / len(classes)}


def _with_bias(x: Tensor) -> Tensor:
    return torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
