"""Loss 4: local Gram matrices of the output's hair must look like the reference hair's (after Gatys et al. 2016).

Belongs here: masked local Gram matrices and their distance. Does not belong here: the perceptual trunk (`models`).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from hair_pipeline.losses.reduction import weighted_mean
from hair_pipeline.models.masks import erode, resize_mask
from hair_pipeline.models.perceptual import PerceptualNet, erosion, large_enough

LAYERS = (0, 1, 2)
"""Feature maps used: the first three, where local texture is; the later ones see shape."""

MIN_WINDOW_SHARE = 0.5
"""A window takes part when at least this share of it lies in the eroded mask."""


def patch_gram_loss(
    net: PerceptualNet,
    output: Tensor,
    mask: Tensor,
    reference: Tensor,
    reference_mask: Tensor,
    grid: int = 4,
    sample_weight: Tensor | None = None,
    maps: tuple[list[Tensor], list[Tensor]] | None = None,
) -> Tensor | None:
    """Every local Gram matrix of the output against the reference's nearest one, per layer.

    Both images are cut into grid x grid windows; in each, the unit-length features inside the mask give a Gram
    matrix (their mean outer product, so its scale does not depend on the window's or the mask's size). Shine and
    curl vary over a head, so a window is compared with the reference window that resembles it most (the choice
    carries no gradient), not with the whole. The distance is the squared Frobenius norm of the difference.

    Args:
        output: (B, 3, H, W) in [-1, 1], with gradient.
        mask: (B, 1, H, W) of the output's hair; pixels outside have no influence at all.
        reference: (B, 3, H', W'), hair of the wanted texture: an image with its mask, or a patch.
        reference_mask: (B, 1, H', W'), all ones for a patch.
        grid: windows along one side of the output; the reference is cut into windows of about the same pixel size.
        sample_weight: (B,).
        maps: `net.masked_features` of output and reference, where another loss has them already.

    Returns:
        Scalar, or None when no sample has hair enough in both images.
    """
    valid = torch.nonzero(large_enough(mask) & large_enough(reference_mask)).flatten()
    if len(valid) == 0:
        return None
    reference_grid = max(1, round(grid * reference.shape[-1] / output.shape[-1]))
    if maps is None:
        with torch.no_grad():
            reference_maps = net.masked_features(reference, reference_mask)
        maps = (net.masked_features(output, mask), reference_maps)
    ours = local_grams([layer[valid] for layer in maps[0]], mask[valid], grid)
    with torch.no_grad():
        reference_grams = local_grams([layer[valid] for layer in maps[1]], reference_mask[valid], reference_grid)
    terms, rows = [], []
    for sample in range(len(valid)):
        distances = [
            _nearest(a[sample], u[sample], b[sample], w[sample])
            for (a, u), (b, w) in zip(ours, reference_grams, strict=True)
        ]
        found = [distance for distance in distances if distance is not None]
        if found:
            terms.append(torch.stack(found).mean())
            rows.append(valid[sample])
    if not terms:
        return None
    return weighted_mean(torch.stack(terms), None if sample_weight is None else sample_weight[torch.stack(rows)])


def local_grams(maps: list[Tensor], mask: Tensor, grid: int) -> list[tuple[Tensor, Tensor]]:
    """Per layer: Gram matrices (B, grid^2, C, C) and the share of each window inside the eroded mask (B, grid^2).

    A layer whose map is smaller than the grid takes a coarser one. Features outside the mask have weight 0; `maps` are
    those of `PerceptualNet.masked_features`, for which pixels there have no influence either.
    """
    weight = erode(mask.float(), erosion(mask))
    grams = []
    for layer in LAYERS:
        features = F.normalize(maps[layer], dim=1, eps=1e-8)
        cells = max(1, min(grid, min(features.shape[-2:]) // 2))
        share = resize_mask(weight, features.shape[-2:])
        height, width = (side // cells for side in features.shape[-2:])
        features, share = (x[..., : cells * height, : cells * width] for x in (features, share))
        windows = _windows(features, cells)  # (B, cells^2, C, n)
        weights = _windows(share, cells)  # (B, cells^2, 1, n)
        total = weights.sum(-1, keepdim=True)
        gram = (windows * weights) @ windows.transpose(-1, -2) / total.clamp(min=1e-6)
        grams.append((gram, total.flatten(1) / (height * width)))
    return grams


def _windows(x: Tensor, cells: int) -> Tensor:
    """(B, C, cells h, cells w) -> (B, cells^2, C, h w)."""
    batch, channels, height, width = x.shape
    x = x.reshape(batch, channels, cells, height // cells, cells, width // cells)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(batch, cells * cells, channels, -1)


def _nearest(grams: Tensor, shares: Tensor, reference: Tensor, reference_shares: Tensor) -> Tensor | None:
    """Mean squared Frobenius distance from each covered window to the nearest covered reference window."""
    grams = grams[shares >= _least(shares)].flatten(1)
    reference = reference[reference_shares >= _least(reference_shares)].flatten(1)
    if len(grams) == 0 or len(reference) == 0:
        return None
    with torch.no_grad():
        nearest = torch.cdist(grams, reference, compute_mode="use_mm_for_euclid_dist").argmin(1)
    return (grams - reference[nearest]).square().sum(1).mean()


def _least(shares: Tensor) -> float:
    """The share a window needs: MIN_WINDOW_SHARE, or that of the best-covered window where none has so much."""
    return max(1e-3, min(MIN_WINDOW_SHARE, float(shares.max())))
