"""The order of samples is a pure function of seed and position."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hair_pipeline.profile import PROFILE_NAMES, load_profile
from hair_pipeline.training.sampler import (
    Batches,
    Draw,
    EpochStream,
    MixedBatches,
    StreamBatches,
    WindowSampler,
    generator,
    share,
)


def take(batches: Batches, count: int, **place: int) -> list[list[Draw]]:
    """The first micro-batches of a process, with windows of three."""
    return list(islice(iter(WindowSampler(batches, 3, **place)), count))


@settings(deadline=None)  # a loaded machine is no fault
@given(size=st.integers(1, 40), seed=st.integers(0, 2**31), epoch=st.integers(0, 5))
def test_every_epoch_is_a_permutation(size: int, seed: int, epoch: int) -> None:
    stream = EpochStream(size, seed)
    assert sorted(stream[epoch * size + i] for i in range(size)) == list(range(size))


@settings(deadline=None)  # a loaded machine is no fault
@given(size=st.integers(1, 30), batch=st.integers(1, 50), seed=st.integers(0, 1000), start=st.integers(0, 4))
def test_resuming_continues_the_same_stream(size: int, batch: int, seed: int, start: int) -> None:
    batches = StreamBatches(size, batch, seed)
    assert take(batches, 3, start=start) == take(batches, 3 * start + 3)[3 * start :]


@settings(deadline=None)  # a loaded machine is no fault
@given(size=st.integers(1, 30), batch=st.integers(1, 6), world=st.integers(1, 5), seed=st.integers(0, 1000))
def test_processes_together_take_the_window_of_one(size: int, batch: int, world: int, seed: int) -> None:
    batches = StreamBatches(size, batch, seed)
    windows = 2
    single = take(batches, 3 * windows)
    sizes = [len(share(3, rank, world)) for rank in range(world)]
    ranks = [take(batches, windows * size, rank=rank, world=world) for rank, size in enumerate(sizes)]
    for window in range(windows):
        parts = [rank[window * n : (window + 1) * n] for rank, n in zip(ranks, sizes, strict=True)]
        together = [draws for part in parts for draws in part]
        assert together == single[3 * window : 3 * window + 3]


@pytest.mark.timeout(20)
def test_a_process_without_work_has_no_batch() -> None:
    """A loader looks ahead: if it were sent to look for a batch that never comes, it would look for ever."""
    assert list(WindowSampler(StreamBatches(5, 2, 0), 1, rank=0, world=2)) == []


@settings(deadline=None)  # a loaded machine is no fault
@given(first=st.integers(0, 20), second=st.integers(0, 20), fraction=st.floats(0, 1))
def test_mixed_batches_hold_one_kind_each(first: int, second: int, fraction: float) -> None:
    if first + second == 0:
        return
    batches = take(MixedBatches(first, second, fraction, 4, 0), 20)
    seconds = [all(draw.index >= first for draw in batch) for batch in batches]
    assert all(kind or all(draw.index < first for draw in batch) for kind, batch in zip(seconds, batches, strict=True))
    if first and second:
        assert abs(sum(seconds) - 20 * fraction) <= 1
    assert all(0 <= draw.index < first + second for batch in batches for draw in batch)
    assert [draw.position for batch in batches for draw in batch] == list(range(80))


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("name", PROFILE_NAMES)
def test_pixel_losses_are_shared_between_patches_and_images_as_batches_are(name: str, world: int) -> None:
    """In every profile, whoever takes the micro-batch, and after resuming: `turn` comes from its number alone."""
    config, images = load_profile(name).stage1, 1000
    assert 0 < config.patch_fraction < 1
    accumulation, steps = config.gradient_accumulation_steps, 400

    def batches(start: int, rank: int = 0) -> Iterator[list[Draw]]:
        mixed = MixedBatches(images, 1000, config.patch_fraction, config.batch_size, 0, accumulation)
        sampler = WindowSampler(mixed, accumulation, start=start, rank=rank, world=world)
        return islice(sampler, (steps - start) * len(sampler.own))

    everyone = [draws for rank in range(world) for draws in batches(0, rank)]
    resumed = [draws for rank in range(world) for draws in batches(steps // 2, rank)]
    assert [
        draws for draws in everyone if draws[0].position >= steps // 2 * accumulation * config.batch_size
    ] == resumed
    decoded = [draws for draws in everyone if draws[0].turn % config.losses.pixel_every == 0]
    assert len(decoded) == len(everyone) / config.losses.pixel_every
    of_patches = [sum(draws[0].index >= images for draws in some) / len(some) for some in (everyone, decoded)]
    assert of_patches == [config.patch_fraction] * 2


def test_where_each_step_has_both_kinds_a_turn_is_a_step() -> None:
    """So that the processes of a step wait for pixel losses together."""
    batches = MixedBatches(10, 10, 0.5, 2, 0, accumulation=4)
    assert [draw.turn for number in range(40) for draw in batches[number]] == [n // 8 for n in range(80)]
    alone = MixedBatches(10, 0, 0.5, 2, 0, accumulation=4)
    assert [draw.turn for number in range(40) for draw in alone[number]] == [n // 8 for n in range(80)]


def test_seeds_and_epochs_give_different_orders() -> None:
    orders = {tuple(EpochStream(20, seed)[epoch * 20 + i] for i in range(20)) for seed in (0, 1) for epoch in (0, 1)}
    assert len(orders) == 4


def test_an_empty_stream_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        EpochStream(0, 0)


def test_generators_of_different_numbers_differ() -> None:
    firsts = {generator(0, a, b).initial_seed() for a in range(10) for b in range(10)}
    assert len(firsts) == 100
