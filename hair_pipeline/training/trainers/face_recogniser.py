"""The stand-in face recogniser: a small network trained with an angular margin in training_face's embedding space.

Belongs here: its task and its measured quality. Does not belong here: architecture, alignment and export (`models`).
"""

from __future__ import annotations

from collections.abc import Mapping
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
from hair_pipeline.inputs.catalog import read_catalog
from hair_pipeline.inputs.members import Members
from hair_pipeline.inputs.training_face import EMBEDDING_DIM
from hair_pipeline.models.recogniser import CROP, SmallFaceNet, align, export_onnx
from hair_pipeline.models.weights import STAND_IN_RECOGNISER
from hair_pipeline.training.context import Context, Finished, base_training, network_loop, seed_everything
from hair_pipeline.training.data import VectorTable, read_reliable_identities
from hair_pipeline.training.decoded import base_vae, decoded_photos
from hair_pipeline.training.images import to_image, to_tensor
from hair_pipeline.training.photos import PhotoStore, augment, split_rows
from hair_pipeline.training.sampler import Batches, Draw, StreamBatches, generator
from hair_pipeline.training.task import Batch, LoopConfig, StepLosses, Task

_MARGIN, _SCALE = 0.3, 24.0
"""Of the additive angular margin (Deng et al. 2019): radians, and the factor of the logits."""
_COSINE_WEIGHT = 4.0
_DISTURB = 0.6
"""Probability of each disturbance of a training crop."""
_DECODED = 0.5
"""Probability that a training crop comes from the decoded photo."""
_READ_SIDE = 512
"""Photos are read at this side before the faces are cut out."""


def run(context: Context) -> Finished:
    """Fit the recogniser; without a reliable face nothing is trained and no ONNX is written, which the notes say."""
    config = base_training(context)
    settings = context.settings
    folder = settings.processed / "identity_embeddings"
    members = Members.read(settings.catalog_path)
    if not members.tables(folder):
        raise PipelineError("there are no identity embeddings", file=folder, remedy="materialise identity_embeddings")
    identities = read_reliable_identities(folder, members)
    catalog = read_catalog(settings.catalog_path)
    known = catalog[catalog.image_id.isin(identities.ids)]
    train_rows, held_out_rows = split_rows(known, "train"), split_rows(known, "validation")
    if train_rows.source.nunique() < 2:
        return _nothing_to_learn(len(train_rows))

    seed_everything(config.seed)
    small = PhotoStore(train_rows, settings, config.resolution)
    decoded = decoded_photos(base_vae(context), small, context.run_dir / "train_decoded.safetensors")
    train = Faces(PhotoStore(train_rows, settings, _READ_SIDE), identities, config.seed, decoded)
    held_out = Faces(PhotoStore(held_out_rows, settings, _READ_SIDE), identities, None) if len(held_out_rows) else None
    network = SmallFaceNet(EMBEDDING_DIM)
    task = RecogniserTask(network, train, held_out, config.recogniser.learning_rate)
    result = context.loop(task, network_loop(config.recogniser, config.seed))
    metrics = result.end | {"faces": float(len(train)), "people": float(train_rows.source.nunique())}
    metrics["seconds"] = result.seconds
    notes = {"stand_in": "a small network trained on rendered people; not a general face recogniser"}
    if held_out is None:
        notes["held_out_cosine"] = "no held-out image has a reliable face"

    def save(final: Path) -> None:
        export_onnx(network.cpu(), final / STAND_IN_RECOGNISER)

    return Finished(save, metrics, notes)


def _nothing_to_learn(faces: int) -> Finished:
    notes = {
        "recogniser": f"not trained: {faces} reliable face(s) of fewer than two training people; identity loss and "
        "identity metrics are not available"
    }

    def save(final: Path) -> None:
        final.mkdir(exist_ok=True)

    return Finished(save, {"faces": float(faces)}, notes)


class Faces(Dataset[Batch]):
    """Aligned faces: crop (3, 112, 112) in [-1, 1], embedding (512,), person number.

    Args:
        store: photos with boxes.
        identities: the embeddings to reach.
        seed: of the augmentation; None leaves the crops as they are.
        decoded: photos by index as the base's VAE gives them back, of any size; half of the samples show these.
    """

    def __init__(
        self,
        store: PhotoStore,
        identities: VectorTable,
        seed: int | None,
        decoded: Mapping[int, np.ndarray] | None = None,
    ) -> None:
        self.store = store
        self.decoded = decoded or {}
        self.identities = identities
        self.seed = seed
        self.people = pd.factorize(store.rows.source, sort=True)[0]
        self._crops: dict[tuple[int, bool], tuple[np.ndarray, np.ndarray]] = {}

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, draw: Draw) -> Batch:
        if self.seed is None:
            return self.unchanged(draw.index)
        chance = generator(self.seed, 7, draw.position)
        decoded = draw.index in self.decoded and bool(torch.rand((), generator=chance) < _DECODED)
        image, face = self._crop(draw.index, decoded=decoded)
        image = disturb(image, face, chance)
        return self._sample(draw.index, augment(image, chance, degrees=5, jitter=0.15, flip=False))

    def unchanged(self, index: int) -> Batch:
        """A sample without augmentation."""
        return self._sample(index, self._crop(index)[0])

    def _sample(self, index: int, image: np.ndarray) -> Batch:
        embedding = self.identities.get(self.store.rows.image_id[index])
        assert embedding is not None
        return {"crop": to_tensor(image), "embedding": embedding, "person": torch.tensor(int(self.people[index]))}

    def _crop(self, index: int, *, decoded: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """The aligned face (112, 112, 3) uint8 and its face mask (112, 112) float32 in [0, 1]."""
        if (index, decoded) not in self._crops:
            sample = self.store[index]
            assert sample.box is not None
            box = torch.from_numpy(np.asarray(sample.box, np.float32))[None]
            mask = torch.from_numpy(sample.face_mask)[None, None].float()
            image = sample.image
            if decoded:
                image = cv2.resize(self.decoded[index], image.shape[1::-1], interpolation=cv2.INTER_CUBIC)
            self._crops[index, decoded] = (
                to_image(align(to_tensor(image)[None], box, CROP)[0]),
                align(mask, box, CROP)[0, 0].clamp(0, 1).numpy(),
            )
        return self._crops[index, decoded]


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
    """An additive angular margin between people (ArcFace), whose class centres are training_face's embeddings.

    The centres are given and not learned, so that the network's vectors can be set beside training_face's; a plain
    cosine term pulls every face to its own person's.
    """

    def __init__(self, network: SmallFaceNet, train: Faces, held_out: Faces | None, learning_rate: float) -> None:
        super().__init__("recogniser", network, train)
        self.train_data = train
        self.held_out = held_out
        self.learning_rate = learning_rate
        self.centres = person_centres(train)

    def batches(self, config: LoopConfig) -> Batches:
        return StreamBatches(len(self.train_data), config.batch_size, config.seed)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.network.parameters()), "lr": self.learning_rate}]

    def move(self, device: torch.device) -> None:
        super().move(device)
        self.centres = self.centres.to(device)

    def losses(self, batch: Batch, step: int) -> StepLosses:
        del step
        found = F.normalize(self.prepared(batch["crop"]).float(), dim=-1)
        cosine = (found @ self.centres.T).clamp(-1 + 1e-6, 1 - 1e-6)
        own = F.one_hot(batch["person"], len(self.centres)).bool()
        with_margin = torch.where(own, (cosine.acos() + _MARGIN).cos(), cosine)
        raw = {
            "margin": F.cross_entropy(_SCALE * with_margin, batch["person"]),
            "cosine": (1 - cosine[own]).mean(),
        }
        return StepLosses(raw, {"cosine": _COSINE_WEIGHT})

    def validate(self, step: int) -> dict[str, float]:
        if step == 0:
            return {}
        numbers = {f"train_{name}": value for name, value in self._quality(self.train_data).items()}
        if self.held_out is not None:
            numbers |= {f"held_out_{name}": value for name, value in self._quality(self.held_out).items()}
        return numbers

    def _quality(self, faces: Faces) -> dict[str, float]:
        """Mean cosine to the wanted embeddings, and how well pairs of one person are told from pairs of two."""
        places = np.linspace(0, len(faces) - 1, min(len(faces), 256)).astype(int).tolist()
        samples = [faces.unchanged(place) for place in places]
        crops = torch.stack([sample["crop"] for sample in samples]).to(self.device)
        found = torch.cat([F.normalize(self.network(part), dim=-1).cpu() for part in crops.split(64)])
        wanted = F.normalize(torch.stack([sample["embedding"] for sample in samples]), dim=-1)
        people = torch.stack([sample["person"] for sample in samples])
        return {"cosine": float((found * wanted).sum(1).mean())} | verification(found, people)


def person_centres(faces: Faces) -> Tensor:
    """(people, D) unit vectors: the mean of each person's embeddings."""
    sums = torch.zeros(int(faces.people.max()) + 1, EMBEDDING_DIM)
    for image_id, person in zip(faces.store.rows.image_id, faces.people, strict=True):
        embedding = faces.identities.get(image_id)
        assert embedding is not None
        sums[int(person)] += F.normalize(embedding, dim=-1)
    return F.normalize(sums, dim=-1)


def verification(vectors: Tensor, people: Tensor) -> dict[str, float]:
    """Pairs of unit vectors (N, D) of people (N,): mean cosines, and the area under the ROC curve (Mann-Whitney)."""
    first, second = torch.triu_indices(len(people), len(people), offset=1)
    cosine = (vectors @ vectors.T)[first, second]
    same = people[first] == people[second]
    if not bool(same.any()) or bool(same.all()):
        return {}
    own, other = cosine[same], cosine[~same].sort().values
    ranks = torch.searchsorted(other, own, side="left") + torch.searchsorted(other, own, side="right")
    return {
        "same_person": float(own.mean()),
        "other_people": float(other.mean()),
        "auc": float((ranks.float() / (2 * len(other))).mean()),
        "pairs_same_person": float(len(own)),
    }
