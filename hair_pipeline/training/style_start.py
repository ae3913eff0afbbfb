"""A start for the style projection: style vectors are first mapped to the base's own prompt tokens.

Belongs here: that fit, and how well it tells the attributes of held-out people. Does not belong here: what follows,
the stages' training. A base that has learnt what "curly" and "bangs" are need not learn it again from a few hundred
images: the projection only has to say it in the base's words.
"""

from __future__ import annotations

import logging
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from hair_pipeline.models.attribute_tokens import ATTRIBUTES, AttributeTokens, attribute_classes
from hair_pipeline.models.style_projection import StyleProjection
from hair_pipeline.models.weights import ATTRIBUTE_TOKENS
from hair_pipeline.training.data import VectorTable

log = logging.getLogger(__name__)

_STEPS = 400
_LEARNING_RATE = 3e-3
_NOISE = 0.3
"""Added to the style vectors, relative to the spread of their entries: there are far fewer people than weights."""


def start_from_prompts(
    projection: StyleProjection, base: Path | str, styles: VectorTable, catalog: pd.DataFrame
) -> dict[str, float]:
    """Fit the projection to the attribute tokens of a base, by least squares on the training images.

    Args:
        projection: changed in place, except for its null tokens.
        base: the base's folder; without attribute tokens in it (as in every published base) nothing is done.
        styles: style vectors by image id.
        catalog: labels and split by image id.

    Returns:
        For each attribute the share of held-out images whose nearest token is the right class; empty when nothing was
        fitted or nobody is held out.
    """
    folder = Path(base) / ATTRIBUTE_TOKENS
    fits = projection.config.mode == "replace" and projection.config.tokens == len(ATTRIBUTES)
    rows = catalog[catalog.accepted & catalog.image_id.isin(set(styles.ids))]
    train, held_out = (rows[rows.split == split] for split in ("train", "validation"))
    if not folder.is_dir() or not fits or train.empty:
        return {}
    device = projection.null.device
    tokens = AttributeTokens.from_pretrained(folder, local_files_only=True).float().requires_grad_(False).to(device)
    classes = attribute_classes(train).to(device)
    vectors, wanted, known = _vectors(styles, train).to(device), tokens(classes), (classes >= 0)[..., None].float()
    parameters = [parameter for name, parameter in projection.named_parameters() if name != "null"]
    optimizer = torch.optim.AdamW(parameters, lr=_LEARNING_RATE, weight_decay=0.01)
    spread = vectors.std(0, correction=0, keepdim=True)
    for step in range(_STEPS):
        for group in optimizer.param_groups:
            group["lr"] = _LEARNING_RATE * (1 - step / _STEPS)
        found = projection(vectors + _NOISE * spread * torch.randn_like(vectors))
        loss = ((found - wanted).square() * known).sum() / known.sum().clamp(min=1) / wanted.shape[-1]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    optimizer.zero_grad()
    if held_out.empty:
        return {}
    with torch.no_grad():
        found = projection(_vectors(styles, held_out).to(device))
        accuracies = _told_apart(found, tokens, attribute_classes(held_out).to(device))
    log.info("style vectors of held-out people tell %s", accuracies)
    return accuracies


def _vectors(styles: VectorTable, rows: pd.DataFrame) -> Tensor:
    found = [styles.get(image_id) for image_id in rows.image_id]
    return torch.stack([vector for vector in found if vector is not None])


def _told_apart(found: Tensor, tokens: AttributeTokens, classes: Tensor) -> dict[str, float]:
    """Tokens (N, A, D) against every class's own: the share whose nearest is the label's."""
    accuracies = {}
    for place, name in enumerate(ATTRIBUTES):
        known = classes[:, place] >= 0
        if bool(known.any()):
            table = F.normalize(tokens.table(place), dim=-1)
            nearest = (F.normalize(found[known, place], dim=-1) @ table.T).argmax(1)
            accuracies[f"style_{name}_accuracy"] = float((nearest == classes[known, place]).float().mean())
    return accuracies
