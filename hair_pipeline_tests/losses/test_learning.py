"""Each loss alone moves the trained weights of the inpainting model, and lowers its own value."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hair_pipeline.losses import predictions
from hair_pipeline.losses.anchor import anchor
from hair_pipeline.losses.gram import patch_gram_loss
from hair_pipeline.losses.identity import identity_loss
from hair_pipeline.losses.lpips import masked_lpips
from hair_pipeline.losses.mask_l2 import mask_l2
from hair_pipeline.losses.style import style_loss
from hair_pipeline.models.base import decode
from hair_pipeline_tests.losses.nets import classifier, perceptual, picture, recogniser
from hair_pipeline_tests.models.inputs import Batch, make_batch, make_model, tiny_base

SIDE = 64
BOX = torch.tensor([[20.0, 24.0, 44.0, 56.0]])
HAIR = torch.zeros(1, 1, SIDE, SIDE)
HAIR[:, :, :40] = 1
WHOLE = torch.ones(1, 1, SIDE, SIDE)
TARGET = picture(1, 3, SIDE, SIDE, seed=1)

PIXEL_LOSSES: dict[str, Callable[[Tensor], Tensor | None]] = {
    "identity": lambda x: identity_loss(
        recogniser(), x, recogniser().embed(TARGET, BOX), BOX, torch.ones(1, dtype=torch.bool)
    ),
    "lpips": lambda x: masked_lpips(perceptual(), x, TARGET, HAIR),
    "gram": lambda x: patch_gram_loss(perceptual(), x, HAIR, TARGET, WHOLE),
    "style": lambda x: style_loss(classifier(), x, torch.tensor([2]), torch.tensor([1])),
}


def value(name: str, prediction: Tensor, batch: Batch, base, noise: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
    if name == "mask_l2":
        return mask_l2(prediction, noise, batch.mask)
    if name == "anchor":
        return anchor(prediction, torch.zeros_like(prediction), 1 - batch.mask)
    clean = predictions.to_clean("epsilon", prediction, batch.noisy, batch.t, base.noise_scheduler.alphas_cumprod)
    loss = PIXEL_LOSSES[name](decode(base.vae, clean))
    assert loss is not None
    return loss


@pytest.mark.parametrize("name", ["mask_l2", "anchor", *PIXEL_LOSSES])
def test_each_loss_alone_moves_the_weights_and_falls(name: str) -> None:
    base = tiny_base()
    base.vae.requires_grad_(False)
    model = make_model(base)
    batch = make_batch(size=1)
    batch.t[:] = 200
    noise = torch.randn_like(batch.noisy)
    before = {name: parameter.detach().clone() for name, parameter in model.named_trainable().items()}
    optimizer = torch.optim.AdamW(model.parameter_groups(3e-3, 0.0), weight_decay=0.0)
    values = []
    for step in range(15):
        optimizer.zero_grad()
        loss = value(name, batch.predict(model), batch, base, noise)
        loss.backward()
        if step == 0:
            moved = dict.fromkeys(("lora_", "_ip.", "style_projection"), 0.0)
            for key, parameter in model.named_trainable().items():
                for part in moved:
                    if part in key and parameter.grad is not None:
                        moved[part] += parameter.grad.abs().sum().item()
            assert all(total > 0 for total in moved.values()), moved
        optimizer.step()
        values.append(loss.item())
    after = model.named_trainable()
    assert any(not torch.equal(before[key], after[key]) for key in before)
    assert all(torch.isfinite(tensor).all() for tensor in after.values())
    assert values[-1] < values[0]
    assert all(parameter.grad is None for parameter in base.vae.parameters())
