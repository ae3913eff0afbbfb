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


_ENLARGED = 8
"""The least factor at which the squares that `for_every_level` writes do not meet."""


def for_every_level(mask: Tensor) -> Tensor:
    """A mask that diffusers' IP-Adapter resamples to the area averages at every level of a UNet.

    It resamples bicubically without antialiasing or clamping: an ordinary mask comes out between -0.1 and 1.1, and
    reaches cells that it does not touch. But of each cell it reads no more than the 4 x 4 pixels at the centre. In the
    enlarged mask the squares of different levels lie apart, and each holds its own level's average.

    Args:
        mask: (B, 1, h, w) float, at the latents' size; levels are halvings, as far as both sides are even.

    Returns:
        (B, 1, 8 h, 8 w), for `ip_adapter_masks`.
    """
    height, width = mask.shape[-2:]
    enlarged = mask.repeat_interleave(_ENLARGED, 2).repeat_interleave(_ENLARGED, 3)
    level, cell = mask, _ENLARGED
    while height % 2 == 0 and width % 2 == 0:
        level, cell, height, width = F.avg_pool2d(level, 2), 2 * cell, height // 2, width // 2
        cells = enlarged.view(len(mask), 1, height, cell, width, cell)
        centre = slice(cell // 2 - 2, cell // 2 + 2)
        cells[:, :, :, centre, :, centre] = level[:, :, :, None, :, None]
    return enlarged


def erode(mask: Tensor, pixels: int) -> Tensor:
    """Minimum over a (2 pixels + 1) window; outside the image counts as covered. (B, 1, H, W) float -> same."""
    if pixels <= 0:
        return mask
    return -F.max_pool2d(-mask, 2 * pixels + 1, stride=1, padding=pixels)
