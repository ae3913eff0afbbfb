"""Conversions between noise, velocity and clean latents.

Belongs here: the algebra of x_t = sqrt(abar) x_0 + sqrt(1 - abar) eps (Ho et al. 2020; v: Salimans & Ho 2022).
Does not belong here: schedules of abar (the scheduler's) and losses.
"""

from __future__ import annotations

from torch import Tensor

MIN_ALPHA = 1e-4
"""Under a zero-terminal-SNR schedule abar reaches 0, where x_0 cannot be had from eps; it is clamped here."""


def target(prediction_type: str, clean: Tensor, noise: Tensor, t: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """What a network of this prediction type should predict. All (B, C, h, w); t (B,)."""
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "sample":
        return clean
    signal, sigma = coefficients(t, alphas_cumprod, clean)
    if prediction_type == "v_prediction":
        return signal * noise - sigma * clean
    raise ValueError(f"prediction type {prediction_type!r} is not epsilon, v_prediction or sample")


def to_clean(prediction_type: str, prediction: Tensor, noisy: Tensor, t: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """The clean latents x_0 that a prediction implies, (B, C, h, w) float32; differentiable."""
    prediction, noisy = prediction.float(), noisy.float()
    signal, sigma = coefficients(t, alphas_cumprod, noisy)
    if prediction_type == "epsilon":
        return (noisy - sigma * prediction) / signal.clamp(min=MIN_ALPHA**0.5)
    if prediction_type == "v_prediction":
        return signal * noisy - sigma * prediction
    if prediction_type == "sample":
        return prediction
    raise ValueError(f"prediction type {prediction_type!r} is not epsilon, v_prediction or sample")


def coefficients(t: Tensor, alphas_cumprod: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """(sqrt(abar_t), sqrt(1 - abar_t)), each (B, 1, 1, 1) float32 on the device of `like`."""
    alpha = alphas_cumprod.to(like.device)[t.to(like.device)].float()[:, None, None, None]
    return alpha.sqrt(), (1 - alpha).clamp(min=0).sqrt()


def add_noise(clean: Tensor, noise: Tensor, t: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """x_t of clean latents, (B, C, h, w)."""
    signal, sigma = coefficients(t, alphas_cumprod, clean)
    noisy: Tensor = signal * clean + sigma * noise
    return noisy
