"""Training of the two style classifiers: one for the style loss, one, built and seeded differently, for evaluation.

Belongs here: their task and their held-out accuracy. Does not belong here: the architectures (`models`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from hair_pipeline.errors import PipelineError
from hair_pipeline.inputs.catalog import read_catalog
from hair_pipeline.models.base import refuse_uneven_sides
from hair_pipeline.models.style_classifier import HEADS, StyleClassifier
from hair_pipeline.models.weights import STAND_IN_CLASSIFIER, find_weight
from hair_pipeline.profile import ClassifierConfig
from hair_pipeline.training.context import Context, Finished, seed_everything
from hair_pipeline.training.decoded import base_vae, decoded_photos
from hair_pipeline.training.photos import LabelledImages, PhotoStore, in_batches, masked_cross_entropy, split_rows
from hair_pipeline.training.sampler import Batches, StreamBatches
from hair_pipeline.training.task import Batch, LoopConfig, StepLosses, Task

VARIANTS = ("evaluation", "loss")
MAX_HELD_OUT = 512
"""So many held-out photos tell an accuracy to two points; all of a full release would take hours at every validation.
All of them can be passed through the VAE, too.
"""
_PHOTOS_FIRST = 0.5
"""Share of a new network's training in which it sees photos only. Strands of photos are the easier lesson: learnt
together with decoded ones, hardly either is learnt.
"""


def run(context: Context) -> Finished:
    """Train both classifiers on photos and hair-only images, as they are and as the base's VAE gives them back."""
    config = context.profile.classifier
    vae = base_vae(context)
    refuse_uneven_sides(vae, {"classifier.resolution": config.resolution})
    catalog = read_catalog(context.settings.catalog_path)
    train = PhotoStore(split_rows(catalog, "train"), context.settings, config.resolution)
    held_out_rows = spread_over_people(split_rows(catalog, "validation"), MAX_HELD_OUT)
    held_out = PhotoStore(held_out_rows, context.settings, config.resolution) if len(held_out_rows) else None
    decoded = decoded_photos(vae, train, context.run_dir / "train_decoded.safetensors")
    held_out_decoded = (
        {} if held_out is None else decoded_photos(vae, held_out, context.run_dir / "validation_decoded.safetensors")
    )
    metrics: dict[str, float] = {}
    notes: dict[str, str] = {}
    models: dict[str, StyleClassifier] = {}
    for number, variant in enumerate(VARIANTS):
        seed = config.seed + 1000 * number
        seed_everything(seed)
        model = _new(variant, config, context)
        task = ClassifierTask(variant, model, (train, decoded), (held_out, held_out_decoded), config, seed)
        loop = LoopConfig(
            steps=config.steps,
            batch_size=config.batch_size,
            checkpoint_every=max(100, config.steps // 10),
            validate_every=max(100, config.steps // 10),
            ema_decay=0.98,
            weight_decay=1e-4,
            workers=config.workers,
            seed=seed,
        )
        result = context.loop(task, loop)
        models[variant] = model
        metrics |= {f"{variant}_{name}": value for name, value in result.end.items()}
    for head in HEADS:
        labels = LabelledImages(train, 0, train=False).labels[head]
        classes = int((torch.bincount(labels[labels >= 0], minlength=HEADS[head]) > 0).sum())
        if classes < 2:
            notes[head] = f"the training images hold {classes} {head} class(es): the classifier cannot tell them apart"
        if not any(name.startswith(f"evaluation_{head}") for name in metrics):
            notes[f"{head}_accuracy"] = f"no held-out image has a {head} label"

    def save(folder: Path) -> None:
        for variant, model in models.items():
            model.save(folder / variant, {"metrics": metrics, "notes": notes})

    return Finished(save, metrics, notes)


def spread_over_people(rows: pd.DataFrame, most: int) -> pd.DataFrame:
    """At most so many rows in their order, evenly spread over the people."""
    if len(rows) <= most:
        return rows
    by_person = np.argsort(rows.source.to_numpy(str), kind="stable")
    chosen = by_person[np.linspace(0, len(rows) - 1, most).astype(int)]
    return rows.iloc[np.sort(chosen)].reset_index(drop=True)


def _new(variant: str, config: ClassifierConfig, context: Context) -> StyleClassifier:
    if config.start == "random":
        return StyleClassifier(variant, config.width, config.resolution)  # type: ignore[arg-type]
    folder = find_weight(STAND_IN_CLASSIFIER, context.settings)
    model = StyleClassifier.load(folder / variant)
    wanted = {"variant": variant, "width": config.width, "resolution": config.resolution}
    if model.config != wanted:
        raise PipelineError(
            f"the classifier to start from is {model.config}, the profile asks for {wanted}",
            file=folder / variant,
            remedy="set classifier.width and classifier.resolution to its values, or classifier.start to random",
        )
    return model.train()


class ClassifierTask(Task):
    """Class-balanced cross-entropy over curl and bangs; images without a label do not count for that head.

    Args:
        train, held_out: photos, and some of them as the base's VAE gives them back.
    """

    def __init__(
        self,
        name: str,
        model: StyleClassifier,
        train: tuple[PhotoStore, dict[int, np.ndarray]],
        held_out: tuple[PhotoStore | None, dict[int, np.ndarray]],
        config: ClassifierConfig,
        seed: int,
    ) -> None:
        photos, decoded = train
        first = int(_PHOTOS_FIRST * config.steps * config.batch_size) if config.start == "random" else 0
        self.images = LabelledImages(photos, seed, train=True, decoded=decoded, decoded_from=first)
        super().__init__(name, model, self.images)
        held_out_photos, held_out_decoded = held_out
        self.held_out = (
            {}
            if held_out_photos is None
            else {
                "": LabelledImages(held_out_photos, seed, train=False),
                "decoded_": LabelledImages(held_out_photos, seed, train=False, decoded=held_out_decoded),
            }
        )
        self.learning_rate = config.learning_rate
        self.weights = {head: self.images.class_weights(head, classes) for head, classes in HEADS.items()}

    def batches(self, config: LoopConfig) -> Batches:
        return StreamBatches(len(self.images), config.batch_size, config.seed)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.network.parameters()), "lr": self.learning_rate}]

    def losses(self, batch: Batch, step: int) -> StepLosses:
        del step
        logits: dict[str, Tensor] = self.prepared(batch["image"])
        terms = {
            head: masked_cross_entropy(logits[head].float(), batch[head], self.weights[head].to(self.device))
            for head in HEADS
        }
        return StepLosses({head: value for head, value in terms.items() if value is not None})

    def validate(self, step: int) -> dict[str, float]:
        del step
        return {
            prefix + name: value
            for prefix, images in self.held_out.items()
            for name, value in accuracies(self.network, images, self.device).items()
        }


def accuracies(model: torch.nn.Module, images: LabelledImages, device: torch.device) -> dict[str, float]:
    """Accuracy per head, over photos and hair-only images: `<head>_accuracy`, `<head>_photo_accuracy`."""
    right: dict[str, list[Tensor]] = {}
    for batch in in_batches(images, len(images), torch.utils.data.default_collate):
        logits = model(batch["image"].to(device))
        for head in logits:
            known = batch[head] >= 0
            hit = (logits[head].argmax(1).cpu() == batch[head])[known]
            right.setdefault(f"{head}_accuracy", []).append(hit)
            right.setdefault(f"{head}_photo_accuracy", []).append(hit[~batch["hair_only"][known]])
    joined = {name: torch.cat(parts).float() for name, parts in right.items()}
    return {name: float(values.mean()) for name, values in joined.items() if len(values)}
