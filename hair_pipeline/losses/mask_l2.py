"""Loss 1: mean squared error of the prediction inside a mask.

Belongs here: the masked mean. Does not belong here: which mask (hair, minus the locked face) and which weights.
"""

from __future__ import annotations

from torch import Tensor


def mask_l2(prediction: Tensor, target: Tensor, weight_mask: Tensor, sample_weight: Tensor | None = None) -> Tensor:
    """Per sample: sum over masked elements / (mask area x channels); then the mean over samples.

    The gradient is exactly 0 wherever the mask is 0, whatever stands there (also when it is not finite).

    Args:
        prediction, target: (B, C, h, w).
        weight_mask: (B, 1, h, w), >= 0; for the locked face multiply by (1 - face mask) beforehand.
        sample_weight: (B,) >= 0, e.g. min-SNR weights; applied per sample.

    Returns:
        Scalar; samples with an empty mask count as 0.
    """
    weight_mask = weight_mask.float()
    difference = (prediction.float() - target.float()).masked_fill(weight_mask == 0, 0.0)
    area = weight_mask.sum((1, 2, 3)) * prediction.shape[1]
    per_sample = (difference.square() * weight_mask).sum((1, 2, 3)) / area.clamp(min=1e-6)
    if sample_weight is not None:
        per_sample = per_sample * sample_weight
    return per_sample.mean()
