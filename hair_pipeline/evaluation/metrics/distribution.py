"""Distances between the sets of real and generated pictures: FID and KID, through torch-fidelity.

Belongs here: feature extraction for sets and the two distances with their intervals. Does not belong here: which
region is looked at (`regions`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from scipy import special  # type: ignore[import-untyped]
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kernel_poly, mmd2

from hair_pipeline.evaluation.statistics import Estimate, missing, too_few

MIN_IMAGES = 4
"""Below it neither distance is computed."""
TRUSTED_IMAGES = 2000
"""Below it the Frechet distance is mostly bias: about 87 at N = 100 and 17 at N = 2,000 for equal distributions."""
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

    Unit: squared feature distance. Direction: lower is better. Source: Heusel et al. 2017; torch-fidelity.
    """
    statistics = [fid_features_to_statistics(torch.from_numpy(features)) for features in _in_span(real, made)]
    return float(fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID])


def _in_span(real: np.ndarray, made: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both sets in an orthonormal basis of their common span: the same distance, quickly, where 2N < D."""
    together = np.concatenate([real, made])
    if len(together) >= together.shape[1]:
        return real, made
    basis = np.linalg.qr(together.T)[0]
    return real @ basis, made @ basis


def kernel_distance(real: np.ndarray, made: np.ndarray) -> float:
    """Unbiased squared MMD with the cubic kernel of paired features (N, D); with Inception features this is KID.

    A photo is not compared with the picture that was made of it: two independent sets have no such pairs, and that they
    are alike would take about 2/N of their likeness off the distance, far below 0 for few pictures.

    Unit: squared MMD. Direction: lower is better, around 0 for equal distributions. Source: Binkowski et al. 2018;
    torch-fidelity's kernel and u-statistic, on 100 subsets of 1,000 pairs, or on all pairs where there are no more.
    """
    rng = np.random.default_rng(0)
    if len(real) <= KID_SUBSET:
        return _paired_mmd(real, made)
    subsets = [rng.choice(len(real), KID_SUBSET, replace=False) for _ in range(KID_SUBSETS)]
    return float(np.mean([_paired_mmd(real[pairs], made[pairs]) for pairs in subsets]))


def _paired_mmd(real: np.ndarray, made: np.ndarray) -> float:
    kernels = kernel_poly(real, real), kernel_poly(real, made), kernel_poly(made, made)
    return float(mmd2(*kernels, mmd_est="u-statistic"))


def set_distance(
    distance: Callable[[np.ndarray, np.ndarray], float], real: np.ndarray, made: np.ndarray, people: Sequence[str]
) -> Estimate:
    """A distance between paired sets (equal N on both sides) with a 95% interval over people.

    The interval is a grouped jackknife (persons left out in at most `JACKKNIFE_GROUPS` groups, t quantile): a
    bootstrap repeats images, which both distances take for a difference.

    Args:
        distance: `frechet_distance` or `kernel_distance`. real, made: (N, D). people: N persons.
    """
    n = len(real)
    index = np.unique(np.asarray(people, str), return_inverse=True)[1]
    if n < MIN_IMAGES:
        return missing(f"{n} images; at least {MIN_IMAGES} are needed")
    if not (np.isfinite(real).all() and np.isfinite(made).all()):
        return missing("the extractor returned values that are not finite")
    estimate = _over_people(lambda kept: distance(real[kept], made[kept]), index)
    if distance is frechet_distance and estimate.ci_low is not None:
        return replace(estimate, ci_low=max(0.0, estimate.ci_low))
    return estimate


def set_difference(
    distance: Callable[[np.ndarray, np.ndarray], float],
    real: np.ndarray,
    made: np.ndarray,
    baseline: np.ndarray,
    people: Sequence[str],
) -> Estimate:
    """Distance of `made` minus distance of `baseline`, both to the same real set; interval as of `set_distance`.

    Args:
        distance: `frechet_distance` or `kernel_distance`. real, made, baseline: (N, D). people: N persons.
    """
    if len(real) < MIN_IMAGES:
        return missing(f"{len(real)} images; at least {MIN_IMAGES} are needed")
    if not all(np.isfinite(features).all() for features in (real, made, baseline)):
        return missing("the extractor returned values that are not finite")
    index = np.unique(np.asarray(people, str), return_inverse=True)[1]
    return _over_people(lambda kept: distance(real[kept], made[kept]) - distance(real[kept], baseline[kept]), index)


def _over_people(statistic: Callable[[np.ndarray], float], person: np.ndarray) -> Estimate:
    """A statistic of the images kept, by a bool mask (N,), with the grouped jackknife's interval over persons."""
    n, people = len(person), len(np.unique(person))
    value = statistic(np.ones(n, bool))
    if (reason := too_few(people)) is not None:
        return Estimate(value, n=n, people=people, reason=reason)
    groups = min(people, JACKKNIFE_GROUPS)
    left_out = [statistic(person % groups != g) for g in range(groups)]
    error = np.sqrt((groups - 1) / groups * np.sum((np.array(left_out) - np.mean(left_out)) ** 2))
    reach = float(-special.stdtrit(groups - 1, 0.025) * error)
    return Estimate(value, value - reach, value + reach, n, people)
