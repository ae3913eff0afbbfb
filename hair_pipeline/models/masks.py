"""Masks at the resolution of latents and feature maps.

Belongs here: the rules by which a pixel mask becomes a coarser one. Does not belong here: growing or drawing
pixel masks (`processing`).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Rule = Literal["area", "any", "all"]


def resize_mask(mask: Tensor, size: tuple[int, int] | torch.Size, rule: Rule = "area") -> Tensor:
    """Resize masks by area averaging.

    Args:
        mask: (B, 1, H, W), bool or float in [0, 1].
        size: (h, w).
        rule: "area" gives the covered share of every cell in [0, 1]; "any" 1 where a cell is touched at all;
            "all" 1 where a cell is covered wholly. A repaint mask takes "any" (no old hair is left behind), the
            locked face "all".

    Returns:
        (B, 1, h, w) float32.
    """
    share = F.adaptive_avg_pool2d(mask.float(), (size[0], size[1]))
    if rule == "any":
        return (share > 1e-6).float()
    if rule == "all":
        return (share > 1 - 1e-6).float()
    return share.clamp(0, 1)


def erode(mask: Tensor, pixels: int) -> Tensor:
    """Minimum over a (2 pixels + 1) window; outside the image counts as covered. (B, 1, H, W) float -> same."""
    if pixels <= 0:
        return mask
    return -F.max_pool2d(-mask, 2 * pixels + 1, stride=1, padding=pixels)
