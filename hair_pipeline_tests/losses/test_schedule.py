"""Ramps, gates, min-SNR weights and the conversions between kinds of prediction."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from hair_pipeline.losses import predictions, schedule

SCHEDULER = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
ALPHAS = SCHEDULER.alphas_cumprod
KINDS = ("epsilon", "v_prediction", "sample")


def test_ramp() -> None:
    assert [schedule.ramp(step, 4) for step in (0, 1, 2, 4, 100)] == [0, 0.25, 0.5, 1, 1]
    assert schedule.ramp(0, 0) == 1


def test_pixel_gate() -> None:
    gate = schedule.pixel_gate(torch.tensor([0, 100, 349, 350, 999]), 1000, 0.35)
    assert gate.tolist() == pytest.approx([1, 0.81, 0.651**2, 0, 0])


@settings(deadline=None)
@given(t=st.lists(st.integers(0, 999), min_size=1, max_size=8), gamma=st.floats(0.5, 20))
def test_min_snr_weights_are_per_sample_and_agree_between_kinds(t: list[int], gamma: float) -> None:
    """The same weight on x_0's error, whatever the network predicts (Hang et al. 2023)."""
    steps = torch.tensor(t)
    snr = schedule.signal_to_noise(ALPHAS, steps)
    weights = {kind: schedule.min_snr_weight(ALPHAS, steps, gamma, kind) for kind in KINDS}
    assert weights["epsilon"].shape == (len(t),)
    assert torch.allclose(weights["epsilon"], snr.clamp(max=gamma) / snr)
    # |eps error|^2 = SNR |x0 error|^2 and |v error|^2 = (SNR + 1) |x0 error|^2
    assert torch.allclose(weights["epsilon"] * snr, weights["sample"], rtol=1e-4)
    assert torch.allclose(weights["v_prediction"] * (snr + 1), weights["sample"], rtol=1e-4)


def test_unknown_kinds_are_refused() -> None:
    t, x = torch.tensor([1]), torch.zeros(1, 4, 2, 2)
    for call in (
        lambda: schedule.min_snr_weight(ALPHAS, t, 5.0, "flow"),
        lambda: predictions.target("flow", x, x, t, ALPHAS),
        lambda: predictions.to_clean("flow", x, x, t, ALPHAS),
    ):
        with pytest.raises(ValueError, match="flow"):
            call()


@pytest.mark.parametrize("kind", KINDS)
def test_conversions_invert_the_target(kind: str) -> None:
    clean, noise = torch.randn(2, 5, 4, 3, 3)
    t = torch.tensor([0, 10, 300, 700, 999])
    noisy = predictions.add_noise(clean, noise, t, ALPHAS)
    assert torch.allclose(noisy, SCHEDULER.add_noise(clean, noise, t), atol=1e-6)
    target = predictions.target(kind, clean, noise, t, ALPHAS)
    if kind == "v_prediction":
        assert torch.allclose(target, SCHEDULER.get_velocity(clean, noise, t), atol=1e-6)
    assert torch.allclose(predictions.to_clean(kind, target, noisy, t, ALPHAS), clean, atol=1e-3)


def test_clean_latents_are_finite_at_zero_terminal_snr() -> None:
    alphas = ALPHAS.clone()
    alphas[-1] = 0
    x = torch.randn(1, 4, 2, 2, requires_grad=True)
    clean = predictions.to_clean("epsilon", x, torch.randn(1, 4, 2, 2), torch.tensor([999]), alphas)
    clean.sum().backward()
    assert torch.isfinite(clean).all()
    assert torch.isfinite(x.grad).all()
