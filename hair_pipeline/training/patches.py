"""Hair patches for the patch encoder: reading the texture bank, augmentation, and batches balanced over curl.

Belongs here: `processed/hair_patches` as training data. Does not belong here: cutting patches (`processing`) and the
contrastive terms (`trainers.patch_encoder`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.utils.data import Dataset

from hair_pipeline.errors import PipelineError
from hair_pipeline.files import decode_image
from hair_pipeline.inputs.members import Members
from hair_pipeline.models.patch_encoder import PatchEncoder
from hair_pipeline.training.images import shrink
from hair_pipeline.training.photos import augment
from hair_pipeline.training.sampler import Batches, Draw, generator
from hair_pipeline.training.task import Batch
from hair_pipeline.vocabulary import CURL_CLASSES

PRELOAD_BYTES = 2 << 30
_OPEN_GROUPS = 32
UNKNOWN = -1
_EQUALISED = 0.6


class PatchStore:
    """All patches of a training root: their table in memory, their pictures in memory when they fit.

    Attributes:
        table: one row per patch: image_id, person, split, curl (class number or -1), person_number, image_number,
            size.

    Args:
        folder: `processed/hair_patches`.
        members: the catalog's images; patches of others are left out.

    Raises:
        PipelineError: no shard's patches have been made. (A store without any patch is fine: hair may be too short.)
    """

    def __init__(self, folder: Path, members: Members) -> None:
        self._paths = members.tables(folder)
        tables = []
        for number, path in enumerate(self._paths):
            file = pq.ParquetFile(path)
            table = file.read(columns=["image_id", "curl_class", "size"]).to_pandas()
            groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
            table["file"] = number
            table["group"] = np.repeat(np.arange(len(groups)), groups)
            table["place"] = np.concatenate([np.arange(n) for n in groups]) if groups else []
            tables.append(members.among(table, path.stem))
        if not tables:
            raise PipelineError(
                "the hair patches have not been cut", file=folder, remedy="materialise the asset hair_patches"
            )
        self.table = pd.concat([t for t in tables if not t.empty] or tables[:1], ignore_index=True)
        places = {name: number for number, name in enumerate(CURL_CLASSES)}
        self.table["curl"] = self.table.curl_class.map(places).fillna(UNKNOWN).astype(int)
        self.table["person_number"] = pd.factorize(self.table.person, sort=True)[0]
        self.table["image_number"] = pd.factorize(self.table.image_id, sort=True)[0]
        self._keep = None if sum(path.stat().st_size for path in self._paths) <= PRELOAD_BYTES else _OPEN_GROUPS
        self._groups: OrderedDict[tuple[int, int], list[bytes]] = OrderedDict()
        self._where = self.table[["file", "group", "place"]].to_numpy(np.int64)

    def image(self, row: int) -> np.ndarray:
        """The patch of a table row, (S, S, 3) uint8."""
        file, group, place = map(int, self._where[row])
        return decode_image(self._group(file, group)[place])

    def _group(self, file: int, group: int) -> list[bytes]:
        key = (file, group)
        if key not in self._groups:
            column = pq.ParquetFile(self._paths[file]).read_row_group(group, columns=["image"])["image"]
            self._groups[key] = column.to_pylist()
            if self._keep is not None and len(self._groups) > self._keep:
                self._groups.popitem(last=False)
        self._groups.move_to_end(key)
        return self._groups[key]


class PatchDataset(Dataset[Batch]):
    """Patches as (3, S, S) in [0, 1] with person, image and curl numbers.

    Args:
        store: the texture bank.
        rows: table rows of this data set.
        side: patches are resized to it.
        seed: of the augmentation; None leaves the patches as they are.
    """

    def __init__(self, store: PatchStore, rows: np.ndarray, side: int, seed: int | None) -> None:
        self.store = store
        self.rows = rows
        self.side = side
        self.seed = seed
        table = store.table.iloc[rows]
        self.people = torch.from_numpy(table.person_number.to_numpy(np.int64).copy())
        self.images = torch.from_numpy(table.image_number.to_numpy(np.int64).copy())
        self.curls = torch.from_numpy(table.curl.to_numpy(np.int64).copy())

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, draw: Draw) -> Batch:
        image = shrink(self.store.image(int(self.rows[draw.index])), self.side)
        if self.seed is not None:
            chance = generator(self.seed, 5, draw.position)
            image = equalise(augment(image, chance, degrees=15, jitter=0.3), chance)
        return {
            "image": patch_tensor(image),
            "person": self.people[draw.index],
            "image_number": self.images[draw.index],
            "curl": self.curls[draw.index],
        }


def equalise(image: np.ndarray, chance: torch.Generator) -> np.ndarray:
    """Bring brightness and contrast to fixed values in 60% of the cases; (S, S, 3) uint8 in and out.

    How light and how contrasty hair is, is the easy way to tell people apart; without this the encoder hardly looks at
    the strands (curl kNN of held-out people 0.55 instead of 0.77 on the sample). Hue and saturation stay: the style
    vector has to tell the colour.
    """
    if float(torch.rand((), generator=chance)) >= _EQUALISED:
        return image
    pixels = image.astype(np.float32)
    pixels = (pixels - pixels.mean()) / (pixels.std() + 2) * 45 + 128
    return np.clip(pixels, 0, 255).astype(np.uint8)


def patch_tensor(image: np.ndarray) -> Tensor:
    """(S, S, 3) uint8 -> (3, S, S) float32 in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float() / 255


@torch.no_grad()
def encode_patches(encoder: PatchEncoder, images: Sequence[np.ndarray]) -> Tensor:
    """Patches of any size, uint8 RGB (S, S, 3) -> their vectors (n, E) on the CPU."""
    batch = torch.stack([patch_tensor(shrink(image, encoder.config["input_size"])) for image in images])
    vectors: Tensor = encoder(batch.to(next(encoder.parameters()).device)).cpu()
    return vectors


class BalancedBatches(Batches):
    """Batches of P people x K patches: people balanced over the curl classes, patches over a person's images.

    Batch n is a function of the seed and n alone. With fewer people or patches than asked for, what there is repeats.

    Args:
        data: the patches.
        people, patches: P and K.
        seed: of the choice.
    """

    def __init__(self, data: PatchDataset, people: int, patches: int, seed: int) -> None:
        self.people, self.patches, self.seed = people, patches, seed
        frame = pd.DataFrame({"person": data.people.numpy(), "image": data.images.numpy(), "curl": data.curls.numpy()})
        self._images: dict[int, list[np.ndarray]] = {
            int(str(person)): [group.index.to_numpy() for _, group in rows.groupby("image")]
            for person, rows in frame.groupby("person")
        }
        curl_of = frame.groupby("person").curl.max()
        self._classes = [sorted(map(int, group.index)) for _, group in curl_of.groupby(curl_of)]

    def __getitem__(self, number: int) -> list[Draw]:
        chance = np.random.default_rng([self.seed, 3, number])
        orders = [list(chance.permutation(people)) for people in self._classes]
        if self.people % len(orders):  # else the batch ends in the middle of a turn, always with the same classes
            chance.shuffle(orders)
        order = [int(person) for turn in _round_robin(orders) for person in turn]
        draws: list[Draw] = []
        for person in order[: self.people]:
            images = self._images[person]
            for turn in range(self.patches):
                if turn % len(images) == 0:
                    shuffled = chance.permutation(len(images))
                rows = images[shuffled[turn % len(images)]]
                draws.append(
                    Draw(int(rows[chance.integers(len(rows))]), number * self.people * self.patches + len(draws))
                )
        return draws


def _round_robin(lists: list[list[int]]) -> Iterator[list[int]]:
    """The first of each list, then the second of each, and so on."""
    for place in range(max(map(len, lists))):
        yield [items[place] for items in lists if place < len(items)]
