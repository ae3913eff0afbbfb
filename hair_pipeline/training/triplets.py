"""Does a perceptual trunk rank distortions of hair as it should? Share of triplets in the right order.

Belongs here: the distortions and their order. Does not belong here: the distance (`models.perceptual`) and the
rendering of people (`sample.recipe`).
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch

from hair_pipeline.models.perceptual import PerceptualNet
from hair_pipeline.sample.recipe import CurlTriplet
from hair_pipeline.training.images import shrink, to_tensor

_BLUR = (0.8, 1.6, 3.2)
_NOISE = (6.0, 14.0, 32.0)
"""Standard deviations, in pixels and in gray values, from slight to strong."""
_SIDE = 256


@torch.no_grad()
def ranked_rightly(network: PerceptualNet, triplets: Sequence[CurlTriplet]) -> dict[str, float]:
    """The share of triplets (reference, nearer, farther) whose distances in the hair stand in that order.

    Blur and noise of three strengths give three pairs each per person; hair grown anew must be nearer than hair of
    another curl.

    Returns:
        `triplets_blur`, `triplets_noise`, `triplets_curl` and, over all of them, `triplets`.
    """
    right: dict[str, list[bool]] = {"blur": [], "noise": [], "curl": []}
    for number, triplet in enumerate(triplets):
        reference = shrink(triplet.reference, _SIDE)
        hair = shrink(triplet.hair.astype(np.float32), _SIDE) >= 0.5
        random = np.random.default_rng(number)
        blurred = [cv2.GaussianBlur(reference, (0, 0), sigma) for sigma in _BLUR]
        grain = random.standard_normal(reference.shape)
        noisy = [np.clip(reference + level * grain, 0, 255).astype(np.uint8) for level in _NOISE]
        for kind, images in (("blur", blurred), ("noise", noisy)):
            near, middle, far = _distances(network, reference, images, hair)
            right[kind] += [near < middle, middle < far, near < far]
        regrown, wrong = _distances(network, reference, [triplet.regrown, triplet.wrong], hair)
        right["curl"].append(regrown < wrong)
    shares = {f"triplets_{kind}": float(np.mean(hits)) for kind, hits in right.items()}
    return shares | {"triplets": float(np.mean([hit for hits in right.values() for hit in hits]))}


def _distances(
    network: PerceptualNet, reference: np.ndarray, images: Sequence[np.ndarray], hair: np.ndarray
) -> list[float]:
    batch = torch.stack([to_tensor(shrink(image, _SIDE)) for image in images])
    mask = torch.from_numpy(hair)[None, None].expand(len(images), -1, -1, -1)
    values: list[float] = network.distance(to_tensor(reference)[None].expand_as(batch), batch, mask).tolist()
    return values
