"""Which sample comes when: a pure function of seed and position, so that resuming needs no more than a step number.

Belongs here: the order of samples and each sample's random numbers. Does not belong here: reading samples (`data`).
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Sampler


@dataclass(frozen=True, slots=True)
class Draw:
    """One sample to load.

    Attributes:
        index: which one.
        position: its position in the endless stream, the seed of its random numbers.
        turn: how many optimizer steps its kind of micro-batch has had before, see `MixedBatches`.
    """

    index: int
    position: int
    turn: int = 0


def generator(seed: int, *numbers: int) -> torch.Generator:
    """A torch generator seeded by all the numbers together (mixed by numpy's SeedSequence)."""
    state = np.random.SeedSequence([seed, *numbers]).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 31 ^ int(state[1]))


class EpochStream:
    """The endless concatenation of one permutation per epoch.

    Args:
        size: number of samples, at least 1.
        seed: the order of epoch e is a function of `seed` and e alone.
    """

    def __init__(self, size: int, seed: int) -> None:
        if size < 1:
            raise ValueError("a stream needs at least one sample")
        self.size = size
        self.seed = seed
        self._epoch = -1
        self._order: list[int] = []

    def __getitem__(self, position: int) -> int:
        epoch, offset = divmod(position, self.size)
        if epoch != self._epoch:
            self._order = torch.randperm(self.size, generator=generator(self.seed, 1, epoch)).tolist()
            self._epoch = epoch
        return self._order[offset]


class Batches(ABC):
    """The endless sequence of a training's micro-batches: number n holds the same draws whoever asks, and when."""

    @abstractmethod
    def __getitem__(self, number: int) -> list[Draw]:
        """Micro-batch `number`, from 0."""


class StreamBatches(Batches):
    """Batches from an `EpochStream`; a batch may span two epochs, so batches larger than the data work.

    Args:
        size: number of samples.
        batch_size: samples per batch.
        seed: seed of the order.
    """

    def __init__(self, size: int, batch_size: int, seed: int) -> None:
        self.stream = EpochStream(size, seed)
        self.batch_size = batch_size

    def __getitem__(self, number: int) -> list[Draw]:
        positions = range(number * self.batch_size, (number + 1) * self.batch_size)
        return [Draw(self.stream[position], position) for position in positions]


def second_share(first_size: int, second_size: int, fraction: float) -> float:
    """The share of batches of the second kind that `MixedBatches` really has: an empty kind has none."""
    return 0.0 if second_size == 0 else 1.0 if first_size == 0 else fraction


class MixedBatches(Batches):
    """Batches that are wholly of the first kind or wholly of the second, in a fixed proportion.

    Indices of the second kind are offset by `first_size`. The n-th batch is of the second kind when
    floor((n + 1) f) > floor(n f), which spreads them evenly. An empty kind leaves all batches to the other.

    What is done at every k-th step is done at every k-th turn of a kind: of as many batches of its own as a step has.
    Steps counted over both kinds would keep time with the mixture, and one kind might never have its turn.

    Args:
        first_size, second_size: number of samples of each kind; at least one must be positive.
        fraction: share f of batches of the second kind, in [0, 1].
        batch_size, seed: as in `StreamBatches`.
        accumulation: micro-batches per optimizer step.
    """

    def __init__(
        self, first_size: int, second_size: int, fraction: float, batch_size: int, seed: int, accumulation: int = 1
    ) -> None:
        self.fraction = second_share(first_size, second_size, fraction)
        self.streams = [
            EpochStream(size, seed + kind) if size else None for kind, size in enumerate((first_size, second_size))
        ]
        self.offset = first_size
        self.batch_size = batch_size
        self.per_turn = [max(1, int(accumulation * share)) for share in (1 - self.fraction, self.fraction)]

    def __getitem__(self, number: int) -> list[Draw]:
        second_before = int(number * self.fraction)
        second = int((number + 1) * self.fraction) > second_before
        own_number = second_before if second else number - second_before
        stream = self.streams[second]
        assert stream is not None
        first, own_first, turn = (
            number * self.batch_size,
            own_number * self.batch_size,
            own_number // self.per_turn[second],
        )
        return [Draw(stream[own_first + i] + second * self.offset, first + i, turn) for i in range(self.batch_size)]


def share(accumulation: int, rank: int, world: int) -> range:
    """Which micro-batches of a window of `accumulation` a process takes: an unbroken run, as even as can be."""
    return range(rank * accumulation // world, (rank + 1) * accumulation // world)


class WindowSampler(Sampler[list[Draw]]):
    """One process's micro-batches from optimizer step `start` on, window after window.

    Whatever the number of processes, a window holds the same micro-batches; they only are dealt out differently. A
    process for which there is none in a window has none at all: for it the sampler is empty, for the others endless.

    Args:
        batches: the sequence.
        accumulation: micro-batches per optimizer step, of all processes together.
        start: optimizer steps already done.
        rank, world: number of this process, and how many there are.
    """

    def __init__(self, batches: Batches, accumulation: int, *, start: int = 0, rank: int = 0, world: int = 1) -> None:
        self.batches = batches
        self.accumulation = accumulation
        self.start = start
        self.own = share(accumulation, rank, world)

    def __iter__(self) -> Iterator[list[Draw]]:
        if not self.own:
            return
        for step in itertools.count(self.start):
            for place in self.own:
                yield self.batches[step * self.accumulation + place]
