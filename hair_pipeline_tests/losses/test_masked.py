"""Mask-aware L2 and the anchor: scale, per-sample weights, exact zeros in the gradient."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hair_pipeline.losses.anchor import anchor
from hair_pipeline.losses.mask_l2 import mask_l2


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), batch=st.integers(1, 4), channels=st.integers(1, 5), share=st.floats(0.05, 0.95))
def test_gradient_is_exactly_zero_in_the_face_and_not_in_the_hair(
    seed: int, batch: int, channels: int, share: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    prediction = torch.randn(batch, channels, 8, 8, generator=generator).requires_grad_()
    target = torch.randn(batch, channels, 8, 8, generator=generator)
    face = (torch.rand(batch, 1, 8, 8, generator=generator) < share).float()
    mask_l2(prediction, target, 1 - face).backward()
    inside = face.bool().expand_as(prediction)
    assert (prediction.grad[inside] == 0).all()
    assert (prediction.grad[~inside] != 0).all()


def test_not_finite_in_the_face_stays_out() -> None:
    prediction = torch.zeros(1, 4, 4, 4)
    prediction[..., 0, 0] = float("inf")
    prediction.requires_grad_()
    mask = torch.ones(1, 1, 4, 4)
    mask[..., 0, 0] = 0
    loss = mask_l2(prediction, torch.ones(1, 4, 4, 4), mask)
    loss.backward()
    assert loss.item() == 1.0
    assert torch.isfinite(prediction.grad).all()


@settings(deadline=None, max_examples=30)
@given(area=st.integers(1, 64), channels=st.integers(1, 8), error=st.floats(-3, 3))
def test_scale_depends_neither_on_area_nor_on_channels(area: int, channels: int, error: float) -> None:
    mask = torch.zeros(64)
    mask[:area] = 1
    prediction = torch.zeros(2, channels, 8, 8)
    loss = mask_l2(prediction, prediction + error, mask.reshape(1, 1, 8, 8).expand(2, -1, -1, -1))
    assert loss.item() == pytest.approx(error**2, rel=1e-5, abs=1e-7)


def test_whole_mask_is_the_mean_squared_error() -> None:
    a, b = torch.randn(2, 3, 4, 8, 8)
    assert torch.allclose(mask_l2(a, b, torch.ones(3, 1, 8, 8)), torch.nn.functional.mse_loss(a, b))


def test_sample_weights_are_per_sample() -> None:
    """Not the mean loss times the mean weight."""
    target = torch.zeros(2, 1, 2, 2)
    prediction = torch.tensor([1.0, 3.0])[:, None, None, None].expand(2, 1, 2, 2)
    mask = torch.ones(2, 1, 2, 2)
    assert mask_l2(prediction, target, mask, torch.tensor([1.0, 0.1])).item() == pytest.approx((1 + 0.9) / 2)


def test_empty_mask_gives_zero_not_nan() -> None:
    prediction = torch.randn(1, 4, 4, 4, requires_grad=True)
    loss = mask_l2(prediction, torch.zeros_like(prediction), torch.zeros(1, 1, 4, 4))
    loss.backward()
    assert loss.item() == 0
    assert (prediction.grad == 0).all()


def test_anchor_acts_in_its_region_only() -> None:
    prediction = torch.randn(1, 4, 4, 4, requires_grad=True)
    base = torch.randn(1, 4, 4, 4, requires_grad=True)
    region = torch.zeros(1, 1, 4, 4)
    region[..., 2:, :] = 1
    anchor(prediction, base, region).backward()
    assert (prediction.grad[..., :2, :] == 0).all()
    assert (prediction.grad[..., 2:, :] != 0).all()
    assert base.grad is None
