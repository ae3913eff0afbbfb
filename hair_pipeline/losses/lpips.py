"""Loss 3: perceptual distance inside the hair mask.

Belongs here: the reduction over valid samples. Does not belong here: the network and its masked distance
(`models.perceptual`).
"""

from __future__ import annotations

from torch import Tensor

from hair_pipeline.losses.reduction import weighted_mean
from hair_pipeline.models.perceptual import PerceptualNet, large_enough


def masked_lpips(
    net: PerceptualNet,
    output: Tensor,
    target: Tensor,
    mask: Tensor,
    sample_weight: Tensor | None = None,
    maps: tuple[list[Tensor], list[Tensor]] | None = None,
) -> Tensor | None:
    """LPIPS between output and target inside the mask; pixels outside have no influence at all.

    Args:
        output, target: (B, 3, H, W) in [-1, 1].
        mask: (B, 1, H, W), bool or {0, 1}.
        sample_weight: (B,).
        maps: `net.masked_features` of output and target, where another loss has them already.

    Returns:
        Scalar, or None when every mask is too small to compare.
    """
    valid = large_enough(mask)
    if not bool(valid.any()):
        return None
    if maps is not None:
        maps = ([layer[valid] for layer in maps[0]], [layer[valid] for layer in maps[1]])
    distance = net.distance(output[valid], target[valid], mask[valid], maps)
    return weighted_mean(distance, None if sample_weight is None else sample_weight[valid])
