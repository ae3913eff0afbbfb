"""The order of samples is a pure function of seed and position."""

from __future__ import annotations

from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hair_pipeline.training.sampler import Draw, EpochStream, MixedBatches, StreamBatches, generator


def take(sampler: object, count: int) -> list[list[Draw]]:
    return list(islice(iter(sampler), count))  # type: ignore[call-overload]


@given(size=st.integers(1, 40), seed=st.integers(0, 2**31), epoch=st.integers(0, 5))
def test_every_epoch_is_a_permutation(size: int, seed: int, epoch: int) -> None:
    stream = EpochStream(size, seed)
    assert sorted(stream[epoch * size + i] for i in range(size)) == list(range(size))


@given(size=st.integers(1, 30), batch=st.integers(1, 50), seed=st.integers(0, 1000), start=st.integers(0, 20))
def test_resuming_continues_the_same_stream(size: int, batch: int, seed: int, start: int) -> None:
    whole = take(StreamBatches(size, batch, seed), start + 3)
    assert take(StreamBatches(size, batch, seed, start=start), 3) == whole[start:]


@given(size=st.integers(1, 30), batch=st.integers(1, 6), world=st.integers(1, 4), seed=st.integers(0, 1000))
def test_ranks_together_see_the_global_batch(size: int, batch: int, world: int, seed: int) -> None:
    single = take(StreamBatches(size, batch * world, seed), 3)
    ranks = [take(StreamBatches(size, batch, seed, rank=rank, world=world), 3) for rank in range(world)]
    for n in range(3):
        together = sorted((draw for rank in ranks for draw in rank[n]), key=lambda draw: draw.position)
        assert together == single[n]


@given(
    first=st.integers(0, 20),
    second=st.integers(0, 20),
    fraction=st.floats(0, 1),
    start=st.integers(0, 10),
)
def test_mixed_batches_hold_one_kind_each(first: int, second: int, fraction: float, start: int) -> None:
    if first + second == 0:
        return
    batches = take(MixedBatches(first, second, fraction, 4, 0), 20)
    seconds = [all(draw.index >= first for draw in batch) for batch in batches]
    assert all(kind or all(draw.index < first for draw in batch) for kind, batch in zip(seconds, batches, strict=True))
    if first and second:
        assert abs(sum(seconds) - 20 * fraction) <= 1
    assert take(MixedBatches(first, second, fraction, 4, 0, start=start), 5) == batches[start : start + 5]
    assert all(0 <= draw.index < first + second for batch in batches for draw in batch)


def test_seeds_and_epochs_give_different_orders() -> None:
    orders = {tuple(EpochStream(20, seed)[epoch * 20 + i] for i in range(20)) for seed in (0, 1) for epoch in (0, 1)}
    assert len(orders) == 4


def test_an_empty_stream_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        EpochStream(0, 0)


def test_generators_of_different_numbers_differ() -> None:
    firsts = {generator(0, a, b).initial_seed() for a in range(10) for b in range(10)}
    assert len(firsts) == 100
