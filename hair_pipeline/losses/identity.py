"""Loss 2: the output's face must be recognised as the original's.

Belongs here: the cosine distance over reliable faces. Does not belong here: alignment and networks (`models`).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from hair_pipeline.losses.reduction import weighted_mean
from hair_pipeline.models.recogniser import FaceRecogniser


def identity_loss(
    recogniser: FaceRecogniser,
    output: Tensor,
    reference_embedding: Tensor,
    boxes: Tensor,
    reliable: Tensor,
    sample_weight: Tensor | None = None,
) -> Tensor | None:
    """1 - cos(recogniser(output), reference), averaged over the samples whose identity is reliable.

    Compute it on the decoded output *before* the original's face is pasted back; afterwards it is near zero by
    construction.

    Args:
        output: (B, 3, H, W) in [-1, 1], with gradient.
        reference_embedding: (B, D) of the original, by the same recogniser.
        boxes: (B, 4), x1, y1, x2, y2 of the original's face in pixels of `output`.
        reliable: (B,) bool; False for blurred or missing faces, whose rows may hold anything.
        sample_weight: (B,).

    Returns:
        Scalar in [0, 2] (times the weights), or None when no sample is reliable.
    """
    chosen = torch.nonzero(reliable).flatten()
    if len(chosen) == 0:
        return None
    embedding = recogniser.embed(output[chosen], boxes[chosen])
    distance = 1 - F.cosine_similarity(embedding, reference_embedding[chosen].float().detach(), dim=-1)
    return weighted_mean(distance, None if sample_weight is None else sample_weight[chosen])
