"""Loss 5: a style classifier must see the requested curl and bangs in the output.

Belongs here: the cross-entropy over the labels that are known. Does not belong here: the classifier (`models`).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from hair_pipeline.losses.reduction import weighted_mean
from hair_pipeline.models.style_classifier import StyleClassifier

UNKNOWN = -1
"""A label that is not known; it does not take part."""


def style_loss(
    classifier: StyleClassifier,
    output: Tensor,
    curl: Tensor,
    bangs: Tensor,
    sample_weight: Tensor | None = None,
) -> Tensor | None:
    """Cross-entropy of curl class and bangs, each over the samples whose label is known, averaged over the two.

    Args:
        classifier: frozen; gradients flow to the image.
        output: (B, 3, H, W) in [-1, 1].
        curl: (B,) int64 class of `vocabulary.CURL_CLASSES`, or UNKNOWN (-1).
        bangs: (B,) int64 class of `vocabulary.BANGS_CLASSES`, or UNKNOWN.
        sample_weight: (B,).

    Returns:
        Scalar, or None when no label is known.
    """
    labels = {"curl": curl, "bangs": bangs}
    known = {name: torch.nonzero(label != UNKNOWN).flatten() for name, label in labels.items()}
    if not any(len(rows) for rows in known.values()):
        return None
    logits = classifier(output.float())
    terms = [
        weighted_mean(
            F.cross_entropy(logits[name][rows], labels[name][rows], reduction="none"),
            None if sample_weight is None else sample_weight[rows],
        )
        for name, rows in known.items()
        if len(rows)
    ]
    return torch.stack(terms).mean()
