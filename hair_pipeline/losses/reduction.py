"""How per-sample values become one scalar.

Belongs here: the weighted mean all pixel losses share. Does not belong here: the weights themselves (`schedule`).
"""

from __future__ import annotations

from torch import Tensor


def weighted_mean(values: Tensor, sample_weight: Tensor | None) -> Tensor:
    """Mean of values (B,) times weights (B,) over B: a small weight lowers the loss, it is not normalised away."""
    return (values if sample_weight is None else values * sample_weight.to(values.dtype)).mean()
