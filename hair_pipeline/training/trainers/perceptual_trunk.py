"""The stand-in perceptual trunk: AlexNet's features, trained to tell curl, bangs and colour apart.

Belongs here: its task. Does not belong here: LPIPS itself and its file format (`models.perceptual`).
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate
from torchvision.models import alexnet

from hair_pipeline.inputs.catalog import read_catalog
from hair_pipeline.models.perceptual import ALEXNET_SLICES, ALEXNET_WIDTHS, SCALING, save_stand_in
from hair_pipeline.models.weights import STAND_IN_PERCEPTUAL
from hair_pipeline.training.context import Context, Finished, base_training, network_loop, seed_everything
from hair_pipeline.training.photos import (
    COLORS,
    LabelledImages,
    PhotoStore,
    in_batches,
    masked_cross_entropy,
    split_rows,
)
from hair_pipeline.training.sampler import Batches, StreamBatches
from hair_pipeline.training.task import Batch, LoopConfig, StepLosses, Task
from hair_pipeline.vocabulary import BANGS_CLASSES, CURL_CLASSES

HEADS = {"curl": len(CURL_CLASSES), "bangs": len(BANGS_CLASSES), "color": len(COLORS)}


def run(context: Context) -> Finished:
    """Train the trunk on photos and hair-only images of the base resolution."""
    config = base_training(context)
    seed_everything(config.seed)
    catalog = read_catalog(context.settings.catalog_path)
    train = PhotoStore(split_rows(catalog, "train"), context.settings, config.resolution)
    held_out_rows = split_rows(catalog, "validation")
    held_out = PhotoStore(held_out_rows, context.settings, config.resolution) if len(held_out_rows) else None
    network = AttributeNet()
    task = TrunkTask(network, train, held_out, config.perceptual.learning_rate, config.seed)
    result = context.loop(task, network_loop(config.perceptual, config.seed))
    notes = {"stand_in": "distances made with it are not LPIPS: uniform heads, trained on these inputs"}

    def save(folder: Path) -> None:
        save_stand_in(network.features.state_dict(), folder / STAND_IN_PERCEPTUAL)

    metrics = result.end | {"images": float(len(train)), "seconds": result.seconds}
    return Finished(save, metrics, notes)


class AttributeNet(nn.Module):
    """AlexNet's convolutions, average-pooled at all five layers, under one linear head per attribute."""

    def __init__(self) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.features = alexnet(weights=None).features[:12]
        self.heads = nn.ModuleDict({name: nn.Linear(sum(ALEXNET_WIDTHS), classes) for name, classes in HEADS.items()})
        for module in self.features:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
            elif isinstance(module, nn.ReLU):
                module.inplace = False

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        x = (images - SCALING["scaling_layer.shift"].to(images)) / SCALING["scaling_layer.scale"].to(images)
        pooled = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index - 1 in ALEXNET_SLICES:
                pooled.append(x.mean((2, 3)))
        features = nn.functional.layer_norm(torch.cat(pooled, 1), [sum(ALEXNET_WIDTHS)])
        return {name: head(features) for name, head in self.heads.items()}


class TrunkTask(Task):
    """Cross-entropy over curl, bangs and colour."""

    def __init__(
        self,
        network: AttributeNet,
        train: PhotoStore,
        held_out: PhotoStore | None,
        learning_rate: float,
        seed: int,
    ) -> None:
        self.images = LabelledImages(train, seed, train=True)
        self.learning_rate = learning_rate
        super().__init__("trunk", network, self.images)
        self.held_out = None if held_out is None else LabelledImages(held_out, seed, train=False)

    def batches(self, config: LoopConfig) -> Batches:
        return StreamBatches(len(self.images), config.batch_size, config.seed)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.network.parameters()), "lr": self.learning_rate}]

    def losses(self, batch: Batch, step: int) -> StepLosses:
        del step
        logits = self.prepared(batch["image"])
        terms = {name: masked_cross_entropy(logits[name].float(), batch[name]) for name in HEADS}
        return StepLosses({name: value for name, value in terms.items() if value is not None})

    def validate(self, step: int) -> dict[str, float]:
        if step == 0 or self.held_out is None:
            return {}
        right: dict[str, list[Tensor]] = {name: [] for name in HEADS}
        for batch in in_batches(self.held_out, len(self.held_out), default_collate):
            logits = self.network(batch["image"].to(self.device))
            for name in HEADS:
                known = batch[name] >= 0
                right[name].append((logits[name].argmax(1).cpu() == batch[name])[known])
        joined = {name: torch.cat(parts).float() for name, parts in right.items()}
        return {f"{name}_accuracy": float(values.mean()) for name, values in joined.items() if len(values)}
