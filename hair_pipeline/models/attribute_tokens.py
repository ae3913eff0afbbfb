"""The sample base's stand-in for a text encoder: hair attributes to cross-attention tokens.

Belongs here: the attributes, their classes and their tokens. Does not belong here: style vectors (`style_projection`).
"""

from __future__ import annotations

from typing import Any

import pandas as pd
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from hair_pipeline.vocabulary import BANGS_CLASSES, COLOR, CURL_CLASSES, LENGTH

UNKNOWN = -1
ATTRIBUTES: dict[str, tuple[Any, ...]] = {
    "curl_class": CURL_CLASSES,
    "has_bangs": BANGS_CLASSES,
    "length": tuple(LENGTH.values()),
    "color": tuple(COLOR.values()),
}
"""Catalog column -> its classes; one token each."""


class AttributeTokens(ModelMixin, ConfigMixin):
    """One learned token per attribute and class; an unknown class is the zero token, which is also the empty prompt's.

    Args:
        token_dim: D, cross-attention width of the UNet.
        classes: number of classes of each attribute, in the order of `ATTRIBUTES`.
    """

    @register_to_config
    def __init__(self, token_dim: int, classes: tuple[int, ...] = tuple(map(len, ATTRIBUTES.values()))) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(count, token_dim) for count in classes)

    def table(self, place: int) -> Tensor:
        """(classes, D) tokens of one attribute."""
        weight: Tensor = self.tables[place].weight  # type: ignore[assignment]
        return weight

    def forward(self, classes: Tensor) -> Tensor:
        """(B, A) class numbers, -1 where unknown -> (B, A, D) tokens."""
        columns = []
        for table, column in zip(self.tables, classes.unbind(1), strict=True):
            known = (column >= 0)[:, None]
            columns.append(torch.where(known, table(column.clamp(min=0)), 0.0))
        return torch.stack(columns, 1)


def attribute_classes(rows: pd.DataFrame) -> Tensor:
    """Catalog rows -> (N, A) int64 class numbers, -1 where unknown. Bangs count only where a face is seen."""
    columns = []
    for name, classes in ATTRIBUTES.items():
        if name == "has_bangs":
            values = rows[name].where(rows.has_face.astype(bool))
            numbers = [UNKNOWN if pd.isna(value) else int(bool(value)) for value in values]
        else:
            numbers = [classes.index(value) if value in classes else UNKNOWN for value in rows[name]]
        columns.append(torch.tensor(numbers, dtype=torch.long))
    return torch.stack(columns, 1)
