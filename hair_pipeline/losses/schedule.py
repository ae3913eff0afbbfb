"""Weights over time: ramps over training steps, gates and min-SNR weights over diffusion timesteps.

Belongs here: functions from steps and timesteps to weights. Does not belong here: the losses they scale.
"""

from __future__ import annotations

import torch
from torch import Tensor


def ramp(step: int, ramp_steps: int) -> float:
    """A weight's share at an optimizer step: grows linearly from 0 at step 0 to 1 at `ramp_steps`; 1 if that is 0."""
    return 1.0 if ramp_steps <= 0 else min(1.0, max(0.0, step / ramp_steps))


def pixel_gate(t: Tensor, train_steps: int, max_t: float) -> Tensor:
    """(1 - t/T)^2 where t < max_t T, else 0: the predicted clean image is only worth looking at at low noise.

    Args:
        t: (B,) timesteps in [0, T).
        train_steps: T.
        max_t: share of T.

    Returns:
        (B,) float32 in [0, 1].
    """
    share = t.float() / train_steps
    return torch.where(share < max_t, (1 - share) ** 2, torch.zeros_like(share))


def signal_to_noise(alphas_cumprod: Tensor, t: Tensor) -> Tensor:
    """abar_t / (1 - abar_t), (B,)."""
    alpha = alphas_cumprod.to(t.device)[t].float()
    return alpha / (1 - alpha).clamp(min=1e-8)


def min_snr_weight(alphas_cumprod: Tensor, t: Tensor, gamma: float, prediction_type: str = "epsilon") -> Tensor:
    """Min-SNR weights (Hang et al. 2023, section 3.4) for the squared error of what the network predicts.

    epsilon: min(SNR, gamma) / SNR; v_prediction: min(SNR, gamma) / (SNR + 1); sample: min(SNR, gamma).
    Apply them per sample, before the mean over the batch.

    Returns:
        (B,) float32.
    """
    snr = signal_to_noise(alphas_cumprod, t)
    clipped = snr.clamp(max=gamma)
    if prediction_type == "epsilon":
        return torch.where(snr > 0, clipped / snr.clamp(min=1e-8), torch.ones_like(snr))
    if prediction_type == "v_prediction":
        return clipped / (snr + 1)
    if prediction_type == "sample":
        return clipped
    raise ValueError(f"prediction type {prediction_type!r} is not epsilon, v_prediction or sample")
