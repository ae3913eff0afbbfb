"""The stand-in face recogniser: a small network fitted to training_face's reliable InsightFace embeddings.

Belongs here: its task and its measured quality. Does not belong here: architecture, alignment and export (`models`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from hair_pipeline.errors import PipelineError
from hair_pipeline.files import write_json
from hair_pipeline.inputs.catalog import read_catalog
from hair_pipeline.models.recogniser import CROP, SmallFaceNet, align, export_onnx
from hair_pipeline.models.weights import STAND_IN_RECOGNISER
from hair_pipeline.training.context import Context, Finished, seed_everything
from hair_pipeline.training.data import IDENTITY_DIM, VectorTable, read_reliable_identities
from hair_pipeline.training.images import to_image, to_tensor
from hair_pipeline.training.photos import PhotoStore, augment, split_rows
from hair_pipeline.training.sampler import Batches, Draw, StreamBatches, generator
from hair_pipeline.training.task import Batch, LoopConfig, StepLosses, Task

_LEARNING_RATE = 2e-3
_MARGIN = 0.2
_MARGIN_WEIGHT = 0.5
_DISTURB = 0.6
"""Probability of each disturbance of a training crop."""
_READ_SIDE = 256
"""Photos are read at this side before the faces are cut out."""
_CARD = "face_recogniser.json"


def run(context: Context) -> Finished:
    """Fit the recogniser; without a reliable face nothing is trained and no ONNX is written, which the notes say."""
    config = context.profile.base_training
    if config is None:
        raise PipelineError("this profile trains no stand-ins", remedy="use the profile sample, or set base_training")
    settings = context.settings
    folder = settings.processed / "identity_embeddings"
    if not any(folder.glob("*.parquet")):
        raise PipelineError("there are no identity embeddings", file=folder, remedy="materialise identity_embeddings")
    identities = read_reliable_identities(folder)
    catalog = read_catalog(settings.catalog_path)
    known = catalog[catalog.image_id.isin(identities.ids)]
    train_rows, held_out_rows = split_rows(known, "train"), split_rows(known, "validation")
    if train_rows.source.nunique() < 2:
        return _nothing_to_learn(len(train_rows))

    seed_everything(config.seed)
    train = Faces(PhotoStore(train_rows, settings, _READ_SIDE), identities, config.seed)
    held_out = Faces(PhotoStore(held_out_rows, settings, _READ_SIDE), identities, None) if len(held_out_rows) else None
    network = SmallFaceNet(IDENTITY_DIM)
    task = RecogniserTask(network, train, held_out)
    loop = LoopConfig(
        steps=config.recogniser_steps,
        batch_size=32,
        checkpoint_every=100,
        validate_every=config.recogniser_steps,
        ema_decay=0.97,
        weight_decay=1e-4,
        seed=config.seed,
    )
    result = context.loop(task, loop)
    metrics = result.end | {"faces": float(len(train)), "people": float(train_rows.source.nunique())}
    notes = {"stand_in": "a small network fitted to the inputs' own embeddings; not a general face recogniser"}
    if held_out is None:
        notes["held_out_cosine"] = "no held-out image has a reliable face"

    def save(final: Path) -> None:
        export_onnx(network.cpu(), final / STAND_IN_RECOGNISER)
        card = {"steps": result.steps, "seed": config.seed, "metrics": metrics, "notes": notes, "trained": True}
        write_json(final / _CARD, card)

    return Finished(save, metrics, notes)


def _nothing_to_learn(faces: int) -> Finished:
    notes = {
        "recogniser": f"not trained: {faces} reliable face(s) of fewer than two training people; identity loss and "
        "identity metrics are not available"
    }

    def save(final: Path) -> None:
        write_json(final / _CARD, {"trained": False, "notes": notes})

    return Finished(save, {"faces": float(faces)}, notes)


class Faces(Dataset[Batch]):
    """Aligned faces: crop (3, 112, 112) in [-1, 1], embedding (512,), person number.

    Args:
        store: photos with boxes.
        identities: the embeddings to reach.
        seed: of the augmentation; None leaves the crops as they are.
    """

    def __init__(self, store: PhotoStore, identities: VectorTable, seed: int | None) -> None:
        self.store = store
        self.identities = identities
        self.seed = seed
        self.people = pd.factorize(store.rows.source, sort=True)[0]
        self._crops: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, draw: Draw) -> Batch:
        image, face = self._crop(draw.index)
        if self.seed is not None:
            chance = generator(self.seed, 7, draw.position)
            image = disturb(image, face, chance)
            image = augment(image, chance, degrees=5, jitter=0.15, flip=False)
        embedding = self.identities.get(self.store.rows.image_id[draw.index])
        assert embedding is not None
        return {
            "crop": to_tensor(image),
            "embedding": embedding,
            "person": torch.tensor(int(self.people[draw.index])),
        }

    def _crop(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """The aligned face (112, 112, 3) uint8 and its face mask (112, 112) float32 in [0, 1]."""
        if index not in self._crops:
            sample = self.store[index]
            assert sample.box is not None
            box = torch.from_numpy(np.asarray(sample.box, np.float32))[None]
            mask = torch.from_numpy(sample.face_mask)[None, None].float()
            self._crops[index] = (
                to_image(align(to_tensor(sample.image)[None], box, CROP)[0]),
                align(mask, box, CROP)[0, 0].clamp(0, 1).numpy(),
            )
        return self._crops[index]


def disturb(image: np.ndarray, face: np.ndarray, chance: torch.Generator) -> np.ndarray:
    """Make a crop look like what the recogniser will judge: another hair and background, and a decoder's blur.

    Without this a network fitted to a hundred photos knows people by their hair, and takes a reconstruction of the
    same face for somebody else.

    Args:
        image: (H, W, 3) uint8. face: (H, W) float32 in [0, 1], what must stay. chance: decides everything.
    """
    height, width = face.shape
    other_hair, blurred, size = torch.rand(3, generator=chance).tolist()
    if other_hair < _DISTURB:
        blobs = torch.randint(0, 256, (5, 5, 3), generator=chance).numpy().astype(np.uint8)
        surroundings = cv2.resize(blobs, (width, height), interpolation=cv2.INTER_CUBIC)
        image = (face[..., None] * image + (1 - face[..., None]) * surroundings).round().astype(np.uint8)
    if blurred < _DISTURB:
        side = int(24 + 40 * size)
        small = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
        image = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
    return image


class RecogniserTask(Task):
    """1 - cos to the wanted embedding, and a margin against the embeddings of other people in the batch."""

    def __init__(self, network: SmallFaceNet, train: Faces, held_out: Faces | None) -> None:
        super().__init__("recogniser", network, train)
        self.train_data = train
        self.held_out = held_out

    def batches(self, config: LoopConfig) -> Batches:
        return StreamBatches(len(self.train_data), config.batch_size, config.seed)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.network.parameters()), "lr": _LEARNING_RATE}]

    def losses(self, batch: Batch, step: int) -> StepLosses:
        del step
        found = F.normalize(self.prepared(batch["crop"]).float(), dim=-1)
        cosine = found @ F.normalize(batch["embedding"], dim=-1).T
        own = cosine.diagonal()
        other = batch["person"][:, None] != batch["person"]
        raw = {"cosine": (1 - own).mean()}
        if bool(other.any()):
            raw["margin"] = F.relu(cosine - own[:, None] + _MARGIN)[other].mean()
        return StepLosses(raw, {"cosine": 1.0, "margin": _MARGIN_WEIGHT})

    def validate(self, step: int) -> dict[str, float]:
        if step == 0:
            return {}
        numbers = {f"train_{name}": value for name, value in self._quality(self.train_data).items()}
        if self.held_out is not None:
            numbers |= {f"held_out_{name}": value for name, value in self._quality(self.held_out).items()}
        return numbers

    def _quality(self, faces: Faces) -> dict[str, float]:
        """Mean cosine to the wanted embeddings; between views of one person; between people."""
        samples = [faces[Draw(i, i)] for i in range(min(len(faces), 256))]
        crops = torch.stack([sample["crop"] for sample in samples]).to(self.device)
        found = F.normalize(self.network(crops), dim=-1).cpu()
        wanted = F.normalize(torch.stack([sample["embedding"] for sample in samples]), dim=-1)
        people = torch.stack([sample["person"] for sample in samples])
        numbers = {"cosine": float((found * wanted).sum(1).mean())}
        between: Tensor = found @ found.T
        same = (people[:, None] == people) & ~torch.eye(len(people), dtype=torch.bool)
        if bool(same.any()):
            numbers["same_person"] = float(between[same].mean())
        if bool((people[:, None] != people).any()):
            numbers["other_people"] = float(between[people[:, None] != people].mean())
        return numbers
