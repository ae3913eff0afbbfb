"""Reading the cached latents of all shards: a table of what there is, tensors in memory or lazily from disk.

Belongs here: access to `processed/latents`. Does not belong here: writing it (`latents`) and what a training sample
is made of (`data`).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from hair_pipeline.errors import PipelineError
from hair_pipeline.inputs.members import Members

KINDS = ("photo", "hair_only", "patch")
PRELOAD_BYTES = 1 << 30
"""Shards are held in memory when all of them together are smaller than this."""


class LatentStore:
    """All latents of a training root.

    Attributes:
        index: one row per sample: shard, kind (`KINDS`), row, image_id, person, split.

    Args:
        folder: `processed/latents`.
        members: the catalog's images; latents of others are left out.

    Raises:
        PipelineError: there are no latents, or an index is damaged.
    """

    def __init__(self, folder: Path, members: Members) -> None:
        paths = members.tables(folder)
        tables = []
        for path in paths:
            try:
                tables.append(members.among(pd.read_parquet(path), path.stem).assign(shard=path.stem))
            except (OSError, ValueError) as error:
                raise PipelineError(
                    f"damaged index of latents ({error})", file=path, remedy="materialise the asset latents again"
                ) from error
        if not tables or all(table.empty for table in tables):
            raise PipelineError("there are no latents to train on", file=folder, remedy="materialise the asset latents")
        self.index = pd.concat([table for table in tables if not table.empty], ignore_index=True)
        self.folder = folder
        self._in_memory = sum(path.with_suffix(".safetensors").stat().st_size for path in paths) < PRELOAD_BYTES
        self._shards: dict[str, dict[str, Tensor]] = {}

    def rows(self, kind: str, split: str) -> pd.DataFrame:
        """The samples of one kind and split, in a fixed order."""
        chosen = self.index[(self.index.kind == kind) & (self.index.split == split)]
        return chosen.sort_values(["image_id", "row"], kind="stable").reset_index(drop=True)

    def read(self, shard: str, name: str, row: int) -> Tensor:
        """One row of one tensor of a shard."""
        return self._tensors(shard)[name][row] if self._in_memory else self._lazy(shard, name, row)

    def constant(self, shard: str, name: str) -> Tensor:
        """A whole tensor of a shard, such as the latents of an empty image."""
        if self._in_memory:
            return self._tensors(shard)[name]
        with safe_open(self.folder / f"{shard}.safetensors", framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor

    def sides(self, kind: str) -> dict[str, int]:
        """Shard -> pixel side of the images of one kind, as they were encoded."""
        return {shard: int(self.constant(shard, f"{kind}.side")) for shard in sorted(set(self.index.shard))}

    def _tensors(self, shard: str) -> dict[str, Tensor]:
        if shard not in self._shards:
            self._shards[shard] = load_file(self.folder / f"{shard}.safetensors")
        return self._shards[shard]

    def _lazy(self, shard: str, name: str, row: int) -> Tensor:
        # opened per read: memory-mapped, cheap, and safe in forked loader processes
        with safe_open(self.folder / f"{shard}.safetensors", framework="pt") as file:
            tensor: Tensor = file.get_slice(name)[row : row + 1][0]
        return tensor


def unpack_mask(packed: Tensor, side: int) -> Tensor:
    """A bit-packed square mask (side * side / 8 bytes) as float (1, side, side) of 0 and 1."""
    bits = np.unpackbits(packed.numpy(), count=side * side)
    return torch.from_numpy(bits.reshape(1, side, side)).float()
