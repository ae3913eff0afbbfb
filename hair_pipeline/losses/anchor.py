"""Optional: outside the mask the model keeps predicting what the base predicts (after H-Adapter).

Belongs here: the anchor. Does not belong here: computing the base's prediction (`HairInpainter.base_prediction`).
"""

from __future__ import annotations

from torch import Tensor

from hair_pipeline.losses.mask_l2 import mask_l2


def anchor(prediction: Tensor, base_prediction: Tensor, region: Tensor, sample_weight: Tensor | None = None) -> Tensor:
    """Mean squared difference from the base's prediction in a region.

    Args:
        prediction, base_prediction: (B, C, h, w); the second carries no gradient.
        region: (B, 1, h, w) in [0, 1]: what is neither repainted nor locked.
        sample_weight: (B,) >= 0, e.g. the term's gate.

    Returns:
        Scalar.
    """
    return mask_l2(prediction, base_prediction.detach(), region, sample_weight)
