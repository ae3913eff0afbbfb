"""Identity, LPIPS, Gram and style: what they look at, what they skip."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hair_pipeline.losses.gram import patch_gram_loss
from hair_pipeline.losses.identity import identity_loss
from hair_pipeline.losses.lpips import masked_lpips
from hair_pipeline.losses.style import style_loss
from hair_pipeline_tests.losses.nets import classifier, perceptual, picture, recogniser

BOX = torch.tensor([[50.0, 60.0, 90.0, 115.0]])
YES = torch.ones(1, dtype=torch.bool)


def test_identity_changes_with_the_face_and_not_with_hair_outside_the_crop() -> None:
    image = picture(1, 3, 160, 160)
    reference = recogniser().embed(image, BOX)
    same = identity_loss(recogniser(), image, reference, BOX, YES)
    assert same is not None
    assert abs(same.item()) < 1e-5

    hair = image.clone()
    hair[:, :, :40] = picture(1, 3, 40, 160, seed=1)
    hair[:, :, :, 120:] = 0
    assert torch.equal(identity_loss(recogniser(), hair, reference, BOX, YES), same)

    face = image.clone()
    face[:, :, 70:110, 55:85] = picture(1, 3, 40, 32, seed=2)[..., :30]
    assert identity_loss(recogniser(), face, reference, BOX, YES).item() > 1e-3


def test_identity_skips_unreliable_faces() -> None:
    image = picture(2, 3, 160, 160).requires_grad_()
    boxes = BOX.expand(2, 4).clone()
    boxes[1] = float("nan")
    reference = torch.randn(2, 64)
    reference[1] = float("nan")
    reliable = torch.tensor([True, False])
    loss = identity_loss(recogniser(), image, reference, boxes, reliable)
    loss.backward()
    assert torch.isfinite(loss)
    assert image.grad[0].abs().sum() > 0
    assert (image.grad[1] == 0).all()
    assert identity_loss(recogniser(), image, reference, boxes, ~reliable & reliable) is None
    weighted = identity_loss(recogniser(), image, reference, boxes, reliable, torch.tensor([0.25, 9.0]))
    assert torch.allclose(weighted, loss * 0.25)


@settings(deadline=None, max_examples=8)
@given(seed=st.integers(0, 1000), top=st.integers(0, 24), left=st.integers(0, 24), size=st.integers(32, 40))
def test_lpips_and_gram_ignore_pixels_outside_the_mask(seed: int, top: int, left: int, size: int) -> None:
    image, target, other = (picture(1, 3, 64, 64, seed=seed + number) for number in range(3))
    mask = torch.zeros(1, 1, 64, 64)
    mask[:, :, top : top + size, left : left + size] = 1
    changed = torch.where(mask > 0, image, other)
    whole = torch.ones_like(mask)
    for loss in (
        lambda x: masked_lpips(perceptual(), x, target, mask),
        lambda x: patch_gram_loss(perceptual(), x, mask, target, whole),
        lambda x: patch_gram_loss(perceptual(), target, whole, x, mask),
    ):
        first, second = loss(image), loss(changed)
        assert first is not None
        assert first.item() > 0
        assert torch.equal(first, second)

    image.requires_grad_()
    (
        masked_lpips(perceptual(), image, target, mask) + patch_gram_loss(perceptual(), image, mask, target, whole)
    ).backward()
    assert (image.grad.masked_select(mask == 0) == 0).all()
    assert image.grad.abs().sum() > 0
    assert torch.isfinite(image.grad).all()


def test_too_small_masks_are_skipped() -> None:
    image, target = picture(2, 3, 64, 64), picture(2, 3, 64, 64, seed=1)
    tiny = torch.zeros(2, 1, 64, 64)
    tiny[:, :, 5:7, 5:7] = 1
    whole = torch.ones(2, 1, 64, 64)
    assert masked_lpips(perceptual(), image, target, tiny) is None
    assert patch_gram_loss(perceptual(), image, tiny, target, whole) is None
    assert patch_gram_loss(perceptual(), image, whole, target, tiny) is None
    mixed = torch.stack([whole[0], tiny[1]])
    alone = masked_lpips(perceptual(), image[:1], target[:1], whole[:1])
    assert torch.allclose(masked_lpips(perceptual(), image, target, mixed), alone, atol=1e-6)
    alone = patch_gram_loss(perceptual(), image[:1], whole[:1], target[:1], whole[:1])
    assert torch.allclose(patch_gram_loss(perceptual(), image, mixed, target, whole), alone, atol=1e-6)


def test_gram_is_about_texture_not_place() -> None:
    """Shifted stripes have the same texture; stripes in another direction have not."""
    rows = torch.arange(128)[:, None].expand(128, 128).float()

    def stripes(phase: torch.Tensor) -> torch.Tensor:
        return torch.sin(phase * 0.8).expand(1, 3, 128, 128)

    whole = torch.ones(1, 1, 128, 128)
    horizontal, shifted, vertical = stripes(rows), stripes(rows + 3), stripes(rows.T)
    same = patch_gram_loss(perceptual(), shifted, whole, horizontal, whole)
    other = patch_gram_loss(perceptual(), vertical, whole, horizontal, whole)
    zero = patch_gram_loss(perceptual(), horizontal, whole, horizontal, whole)
    assert zero.item() < 1e-8
    assert same.item() < 0.5 * other.item()


def test_gram_takes_a_patch_as_reference() -> None:
    image, patch = picture(1, 3, 128, 128), picture(1, 3, 64, 64, seed=1)
    mask = torch.zeros(1, 1, 128, 128)
    mask[:, :, :64] = 1
    assert patch_gram_loss(perceptual(), image, mask, patch, torch.ones(1, 1, 64, 64)).item() > 0


def test_style_uses_known_labels_only() -> None:
    image = picture(2, 3, 64, 64).requires_grad_()
    unknown = torch.tensor([-1, -1])
    curl = torch.tensor([2, -1])
    loss = style_loss(classifier(), image, curl, unknown)
    loss.backward()
    expected = torch.nn.functional.cross_entropy(classifier()(image[:1])["curl"], curl[:1])
    assert torch.allclose(loss, expected)
    assert image.grad[0].abs().sum() > 0
    assert (image.grad[1] == 0).all()
    assert style_loss(classifier(), image, unknown, unknown) is None
    both = style_loss(classifier(), image, curl, torch.tensor([0, 1]))
    assert both.item() > 0
