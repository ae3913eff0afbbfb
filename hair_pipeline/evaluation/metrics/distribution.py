"""Distances between the sets of real and generated pictures: FID and KID, of torch-fidelity's features.

Belongs here: feature extraction for sets and the two distances with their intervals. Does not belong here: which
region is looked at (`regions`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import special  # type: ignore[import-untyped]
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.metric_kid import kernel_poly, mmd2
from tqdm import tqdm

from hair_pipeline.evaluation.statistics import Estimate, missing, too_few

MIN_IMAGES = 4
"""Below it neither distance is computed."""
TRUSTED_IMAGES = 2000
"""Below it the Frechet distance is mostly bias: about 87 at N = 100 and 17 at N = 2,000 for equal distributions."""
KID_ALL = 5000
"""So many pairs are compared all at once: better than subsets, and quicker."""
KID_SUBSETS, KID_SUBSET = 100, 1000
JACKKNIFE_GROUPS = 10


@torch.no_grad()
def extract(extractor: FeatureExtractorBase, images: Sequence[np.ndarray], device: torch.device) -> np.ndarray:
    """Features of uint8 RGB images (H, W, 3) of one size; float64 (N, D)."""
    batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous().to(device)
    features: np.ndarray = extractor(batch)[0].double().flatten(1).cpu().numpy()
    return features


def frechet_distance(real: np.ndarray, made: np.ndarray) -> float:
    """Frechet distance of two Gaussians fitted to features (N, D); with Inception features this is FID.

    Unit: squared feature distance. Direction: lower is better. Source: Heusel et al. 2017. The trace of the root of the
    covariances' product is the sum of the singular values of `A @ B.T`, where `A.T @ A` and `B.T @ B` are the
    covariances: what torch-fidelity computes from the eigenvalues of a D x D matrix that is not symmetric.
    """
    gap = real.mean(axis=0) - made.mean(axis=0)
    one, other = _root(real), _root(made)
    shared = one @ other.T
    overlap = np.sqrt(np.linalg.eigvalsh(shared @ shared.T).clip(0)).sum()
    return float(gap @ gap + (one**2).sum() + (other**2).sum() - 2 * overlap)


def _root(features: np.ndarray) -> np.ndarray:
    """A matrix A of at most D rows, (min(N, D), D), with the features' covariance for `A.T @ A`."""
    centred = (features - features.mean(axis=0)) / np.sqrt(len(features) - 1)
    return np.asarray(np.linalg.qr(centred, mode="r")) if len(centred) > centred.shape[1] else centred


def kernel_distance(real: np.ndarray, made: np.ndarray) -> float:
    """Unbiased squared MMD with the cubic kernel of paired features (N, D); with Inception features this is KID.

    A photo is not compared with the picture that was made of it: two independent sets have no such pairs, and that they
    are alike would take about 2/N of their likeness off the distance, far below 0 for few pictures.

    Unit: squared MMD. Direction: lower is better, around 0 for equal distributions. Source: Binkowski et al. 2018;
    torch-fidelity's kernel and u-statistic, on all pairs, or on 100 subsets of 1,000 where there are more than
    `KID_ALL`.
    """
    if len(real) <= KID_ALL:
        return _paired_mmd(real, made)
    rng = np.random.default_rng(0)
    subsets = [rng.choice(len(real), KID_SUBSET, replace=False) for _ in range(KID_SUBSETS)]
    return float(np.mean([_paired_mmd(real[pairs], made[pairs]) for pairs in subsets]))


def _paired_mmd(real: np.ndarray, made: np.ndarray) -> float:
    kernels = kernel_poly(real, real), kernel_poly(real, made), kernel_poly(made, made)
    return float(mmd2(*kernels, mmd_est="u-statistic"))


@dataclass(frozen=True)
class SetDistance:
    """A distance between paired sets, kept with what it is without some people, for an interval.

    The interval is a grouped jackknife's (persons left out in at most `JACKKNIFE_GROUPS` groups, t quantile): a
    bootstrap repeats images, which both distances take for a difference.

    Attributes:
        values: of all images, then without each group of people; of all alone where people are too few.
        n, people: images on either side, and persons.
        reason: why there are no values; or, with one value, why there is no interval.
        lowest: no distance is below it.
    """

    values: np.ndarray
    n: int
    people: int
    reason: str | None = None
    lowest: float = -np.inf

    def __sub__(self, other: SetDistance) -> SetDistance:
        """The difference of two distances to the same real set: both leave out the same people."""
        if self.values.size == 0 or self.values.shape != other.values.shape or self.n != other.n:
            return SetDistance(np.zeros(0), 0, 0, "not drawn by both")
        return SetDistance(self.values - other.values, self.n, self.people, self.reason)

    def estimate(self) -> Estimate:
        """The distance with its 95% interval over people."""
        if self.values.size == 0:
            return missing(self.reason or "")
        value, left_out = float(self.values[0]), self.values[1:]
        if not len(left_out):
            return Estimate(value, n=self.n, people=self.people, reason=self.reason)
        groups = len(left_out)
        error = np.sqrt((groups - 1) / groups * np.sum((left_out - left_out.mean()) ** 2))
        reach = float(-special.stdtrit(groups - 1, 0.025) * error)
        return Estimate(value, max(self.lowest, value - reach), value + reach, self.n, self.people)


def set_distance(
    distance: Callable[[np.ndarray, np.ndarray], float], real: np.ndarray, made: np.ndarray, people: Sequence[str]
) -> SetDistance:
    """A distance between paired sets (equal N on both sides): minutes for thousands of images.

    Args:
        distance: `frechet_distance` or `kernel_distance`. real, made: (N, D). people: N persons.
    """
    n = len(real)
    if n < MIN_IMAGES:
        return SetDistance(np.zeros(0), 0, 0, f"{n} images; at least {MIN_IMAGES} are needed")
    if not (np.isfinite(real).all() and np.isfinite(made).all()):
        return SetDistance(np.zeros(0), 0, 0, "the extractor returned values that are not finite")
    person = np.unique(np.asarray(people, str), return_inverse=True)[1]
    persons = len(np.unique(person))
    reason = too_few(persons)
    groups = 0 if reason is not None else min(persons, JACKKNIFE_GROUPS)
    kept = [np.ones(n, bool), *(person % groups != group for group in range(groups))]
    bar = tqdm(kept, desc=distance.__name__.replace("_", " "), leave=False, delay=2)
    values = np.array([distance(real[part], made[part]) for part in bar])
    lowest = 0.0 if distance is frechet_distance else -np.inf
    return SetDistance(values, n, persons, reason, lowest)
