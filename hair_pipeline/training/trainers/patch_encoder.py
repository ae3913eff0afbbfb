"""InfoNCE training of the hair patch encoder, with person positives and curl positives as separate terms.

Belongs here: the contrastive terms, and retrieval on held-out people. Does not belong here: the encoder (`models`) and
batches (`patches`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from pytorch_metric_learning.losses import SupConLoss
from torch import Tensor
from torch.utils.data import default_collate

from hair_pipeline.errors import PipelineError
from hair_pipeline.inputs.members import Members
from hair_pipeline.models.patch_encoder import PATCH_ENCODER_FILE, PatchEncoder, pool_style
from hair_pipeline.models.weights import STAND_IN_PATCH_ENCODER, find_weight
from hair_pipeline.profile import PatchEncoderConfig
from hair_pipeline.settings import Settings
from hair_pipeline.training.context import Context, Finished, seed_everything
from hair_pipeline.training.patches import UNKNOWN, BalancedBatches, PatchDataset, PatchStore
from hair_pipeline.training.photos import in_batches
from hair_pipeline.training.pictures import picture_grid, write_picture
from hair_pipeline.training.probes import linear_probe, person_probe
from hair_pipeline.training.sampler import Batches
from hair_pipeline.training.task import Batch, LoopConfig, StepLosses, Task

MAX_QUERIES = 256
MAX_GALLERY = 1024
GALLERY_PEOPLE = 100
GALLERY_IMAGES = 5
"""Of more people than these the gallery holds so many images of each: the person's probe needs several."""
_NEIGHBOURS = 9


def run(context: Context) -> Finished:
    """Train the patch encoder on the texture bank."""
    config = context.profile.patch_encoder
    settings = context.settings
    store = PatchStore(settings.processed / "hair_patches", Members.read(settings.catalog_path))
    train_rows, held_out_rows = (np.flatnonzero(store.table.split == split) for split in ("train", "validation"))
    seed_everything(config.seed)
    encoder = initial_encoder(config, settings)

    def save(folder: Path) -> None:
        encoder.save(folder / PATCH_ENCODER_FILE)

    if not len(train_rows):
        note = "not trained: no training image has hair enough for a patch; no image will have a style vector"
        return Finished(save, {"train_patches": 0.0, "held_out_patches": float(len(held_out_rows))}, {"encoder": note})

    task = PatchTask(encoder, store, train_rows, held_out_rows, config)
    result = context.loop(task, loop_config(config))
    notes = {} if result.end else {"retrieval": "no held-out patch with a curl label, or none to compare it with"}
    probes = task.probes()
    if "person_probe" not in probes:
        notes["person_probe"] = (
            "not measured: it needs held-out patches, and two people to train on with two labelled images each"
        )
    notes |= never_applied(config, result.terms)
    metrics = result.end | {f"{name}_start": value for name, value in result.start.items()} | probes
    metrics |= {"train_patches": float(len(train_rows)), "held_out_patches": float(len(held_out_rows))}
    return Finished(save, metrics, notes, result.pictures)


def never_applied(config: PatchEncoderConfig, terms: list[str]) -> dict[str, str]:
    """Notes about terms that have a weight and that no batch of the run could serve."""
    why = {
        "person": (config.person_weight, "no batch had patches of two people"),
        "curl": (config.curl_weight, "no batch had two people of one curl class beside another class"),
    }
    missing = {name: reason for name, (weight, reason) in why.items() if weight > 0 and name not in terms}
    notes = {f"{name}_term": f"never applied: {reason}" for name, reason in missing.items()}
    return notes if terms else notes | {"encoder": "not trained: neither term ever applied, it is as it started"}


def initial_encoder(config: PatchEncoderConfig, settings: Settings) -> PatchEncoder:
    """The encoder that training starts from: a new one, or the sample models' (`config.start`).

    Raises:
        PipelineError: the sample models' is missing, unreadable or built differently.
    """
    new = PatchEncoder.from_config(config)
    if config.start == "random":
        return new
    path = find_weight(STAND_IN_PATCH_ENCODER, settings)
    encoder = PatchEncoder.load(path)
    if encoder.config != new.config:
        raise PipelineError(
            f"the patch encoder to start from is {encoder.config}, the profile asks for {new.config}",
            file=path,
            remedy="give the profile's patch_encoder section these values, or set patch_encoder.start to random",
        )
    return encoder.train()


def loop_config(config: PatchEncoderConfig) -> LoopConfig:
    """The loop's values for a profile's."""
    return LoopConfig(
        steps=config.steps,
        batch_size=config.people_per_batch * config.patches_per_person,
        checkpoint_every=max(100, config.steps // 20),
        validate_every=max(200, config.steps // 5),
        ema_decay=0.98 if config.steps < 2000 else 0.999,
        weight_decay=config.weight_decay,
        workers=config.workers,
        seed=config.seed,
    )


class PatchTask(Task):
    """Two supervised contrastive terms (Khosla et al. 2020, L_out) over one batch of patches."""

    def __init__(
        self,
        encoder: PatchEncoder,
        store: PatchStore,
        train: np.ndarray,
        held_out: np.ndarray,
        config: PatchEncoderConfig,
    ) -> None:
        self.train_data = PatchDataset(store, train, config.input_size, config.seed)
        super().__init__("patch-encoder", encoder, self.train_data)
        self.config = config
        self.contrastive = SupConLoss(temperature=config.temperature)
        labelled = held_out[store.table.curl.to_numpy()[held_out] != UNKNOWN]
        gallery = np.concatenate([train, held_out])
        gallery = gallery[store.table.curl.to_numpy()[gallery] != UNKNOWN]
        self.queries = PatchDataset(store, _spread(labelled, MAX_QUERIES), config.input_size, None)
        self.gallery = PatchDataset(store, choose_gallery(store.table, gallery), config.input_size, None)
        self.validated: tuple[Tensor, Tensor] | None = None
        """Vectors of queries and gallery as `validate` last found them."""

    def batches(self, config: LoopConfig) -> Batches:
        people, patches = self.config.people_per_batch, self.config.patches_per_person
        return BalancedBatches(self.train_data, people, patches, config.seed)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.network.parameters()), "lr": self.config.learning_rate}]

    def losses(self, batch: Batch, step: int) -> StepLosses:
        del step
        vectors: Tensor = self.prepared(batch["image"]).float()
        masks = pair_masks(batch["person"], batch["image_number"], batch["curl"])
        weights = {"person": self.config.person_weight, "curl": self.config.curl_weight}
        raw = {}
        for term, (positives, negatives) in masks.items():
            if weights[term] > 0 and bool(positives.any()) and bool(negatives.any()):
                pairs = (*torch.where(positives), *torch.where(negatives))
                raw[term] = self.contrastive(vectors, indices_tuple=pairs)
        return StepLosses(raw, weights, {f"positives/{term}": float(p.sum()) for term, (p, _) in masks.items()})

    def validate(self, step: int) -> dict[str, float]:
        del step
        if not len(self.queries) or not len(self.gallery):
            return {}
        self.validated = queries, gallery = self._embed(self.queries), self._embed(self.gallery)
        patches = curl_retrieval(queries, self.queries, gallery, self.gallery)
        images = curl_retrieval(*pooled(queries, self.queries), *pooled(gallery, self.gallery))
        return patches | {f"style_vector_{name}": value for name, value in images.items()}

    @torch.no_grad()
    def probes(self) -> dict[str, float]:
        """What the trained vectors hold: curl by a linear probe on held-out people, and the person; see `probes`."""
        if not len(self.queries) or not len(self.gallery):
            return {}
        queries, gallery = self._embed(self.queries), self._embed(self.gallery)
        others = ~torch.isin(self.gallery.people, self.queries.people)
        curl = linear_probe(gallery[others], self.gallery.curls[others], queries, self.queries.curls)
        found = {} if curl is None else {"curl_linear_probe": curl}
        return found | person_probe(gallery[others], self.gallery.people[others], self.gallery.images[others])

    def _embed(self, data: PatchDataset) -> Tensor:
        parts = [
            self.network(batch["image"].to(self.device)).cpu() for batch in in_batches(data, len(data), default_collate)
        ]
        return torch.cat(parts)

    def pictures(self, folder: Path) -> list[Path]:
        """Held-out patches (left) with their nearest patches of other people, by the vectors of the last `validate`."""
        if self.validated is None:
            return []
        queries, gallery = self.validated
        rows = torch.linspace(0, len(queries) - 1, min(6, len(queries))).long()
        similarity = queries[rows] @ gallery.T
        similarity[self.queries.people[rows][:, None] == self.gallery.people] = -2
        nearest = similarity.topk(min(6, similarity.shape[1]), dim=1).indices
        store = self.train_data.store
        grid = [
            [store.image(int(self.queries.rows[row])), *(store.image(int(self.gallery.rows[n])) for n in found)]
            for row, found in zip(rows.tolist(), nearest.tolist(), strict=True)
        ]
        return [write_picture(folder / "nearest_patches.jpg", picture_grid(grid, 80))]


def pair_masks(person: Tensor, image: Tensor, curl: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Positive and negative pairs of both terms; (B, B) bool each.

    person: positives are other images of the same person (other patches of the same image where no person of the batch
    has two images). curl: positives are other people of the same curl class. Negatives of both are people of another
    curl class ("other hair types"); a same-person pair never is one. Where a batch holds a single class or unknown
    ones, all other people are the person term's negatives, so that there is something to tell apart.
    """
    same_person = person[:, None] == person
    itself = torch.eye(len(person), dtype=torch.bool, device=person.device)
    same_image = image[:, None] == image
    known = (curl != UNKNOWN)[:, None] & (curl != UNKNOWN)
    same_curl = (curl[:, None] == curl) & known
    person_positives = same_person & ~same_image
    if not bool(person_positives.any()):
        person_positives = same_person & ~itself
    other_hair = ~same_person & known & ~same_curl
    person_negatives = other_hair if bool(other_hair.any()) else ~same_person
    return {"person": (person_positives, person_negatives), "curl": (same_curl & ~same_person, other_hair)}


class Labels(Protocol):
    """Person, image and curl class of each vector, (N,) int64."""

    people: Tensor
    images: Tensor
    curls: Tensor


@dataclass
class ImageLabels:
    """The labels of one vector per image."""

    people: Tensor
    images: Tensor
    curls: Tensor


def pooled(vectors: Tensor, data: Labels) -> tuple[Tensor, ImageLabels]:
    """The style vectors that patch vectors (N, E) give, one per image, with the images' labels."""
    images = data.images.unique()
    rows = [torch.nonzero(data.images == image).flatten() for image in images]
    firsts = torch.stack([row[0] for row in rows])
    styles = torch.stack([pool_style(vectors[row]) for row in rows])
    return styles, ImageLabels(data.people[firsts], images, data.curls[firsts])


def curl_retrieval(queries: Tensor, query_data: Labels, gallery: Tensor, data: Labels) -> dict[str, float]:
    """Curl R@1 and kNN accuracy of held-out vectors among those of other people; empty where there are none.

    `curl_chance` is the accuracy of always answering the gallery's most frequent class.
    """
    similarity = queries @ gallery.T
    similarity[query_data.people[:, None] == data.people] = -2
    usable = (similarity > -2).any(1)
    if not bool(usable.any()):
        return {}
    similarity, truth = similarity[usable], query_data.curls[usable]
    order = similarity.topk(min(_NEIGHBOURS, similarity.shape[1]), dim=1)
    votes = torch.nn.functional.one_hot(data.curls[order.indices].clamp(min=0), 3) * (order.values > -2)[..., None]
    weighted = (votes * order.values.clamp(min=-1).add(1)[..., None]).sum(1)
    frequent = torch.bincount(data.curls.clamp(min=0), minlength=3).argmax()
    return {
        "curl_r_at_1": float((data.curls[order.indices[:, 0]] == truth).float().mean()),
        "curl_knn": float((weighted.argmax(1) == truth).float().mean()),
        "curl_chance": float((truth == frequent).float().mean()),
    }


def choose_gallery(table: pd.DataFrame, rows: np.ndarray) -> np.ndarray:
    """At most `MAX_GALLERY` rows of a patch table, such that people have several images, and images several patches."""
    numbers = table[["person_number", "image_number"]].iloc[rows]
    people = numbers.person_number.unique()
    if len(rows) <= MAX_GALLERY or len(people) <= GALLERY_PEOPLE:
        return _spread(rows, MAX_GALLERY)
    of_people = numbers[numbers.person_number.isin(_spread(people, GALLERY_PEOPLE))]
    images = of_people.groupby("person_number").image_number.unique()
    kept = np.concatenate([_spread(own, GALLERY_IMAGES) for own in images])
    return _spread(rows[numbers.image_number.isin(kept).to_numpy()], MAX_GALLERY)


def _spread(rows: np.ndarray, most: int) -> np.ndarray:
    """At most so many of the rows, evenly spread."""
    if len(rows) <= most:
        return rows
    return rows[np.linspace(0, len(rows) - 1, most).astype(int)]
