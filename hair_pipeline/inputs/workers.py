"""Per-image work in a process pool: results in order, bounded memory.

Belongs here: how work is spread over cores. Does not belong here: the work.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing.util import Finalize
from typing import TypeVar

from tqdm import tqdm

from hair_pipeline.cores import cpu_count
from hair_pipeline.pools import image_pool

Item = TypeVar("Item")
Result = TypeVar("Result")


_BEFORE_QUEUES = 100
"""Exit priority above that of multiprocessing's queues (10)."""


def map_in_processes(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    description: str,
    chunk: int = 16,
    workers: int | None = None,
) -> Iterator[Result]:
    """Yield `function(item)` for every item, in order, computed by a spawned process pool with a progress bar.

    At most a few chunks per worker are in flight, so memory does not grow with the number of items. Few items (less
    than four chunks), or one core, run in this process: starting workers would take longer.

    Args:
        function: picklable (module level, or a `functools.partial` of one).
        items: picklable.
        description: of the progress bar.
        chunk: items per task.
        workers: processes; by default one per core.
    """
    each = partial(_run_chunk, function)
    for results in map_chunks(each, items, description=description, chunk=chunk, workers=workers):
        yield from results


def map_chunks(
    function: Callable[[Sequence[Item]], Result],
    items: Sequence[Item],
    *,
    description: str,
    chunk: int,
    workers: int | None = None,
    unit: str = "image",
) -> Iterator[Result]:
    """Yield `function(chunk)` for consecutive chunks of the items, in order; otherwise as `map_in_processes`."""
    workers = 1 if len(items) < 4 * chunk else min(workers or cpu_count(), len(items) // chunk)
    chunks = (items[start : start + chunk] for start in range(0, len(items), chunk))
    with tqdm(total=len(items), desc=description, unit=unit, disable=None, leave=False) as bar:
        if workers == 1:
            for part in chunks:
                yield function(part)
                bar.update(len(part))
            return
        with _pool(workers) as pool:
            for size, result in _in_flight(pool, function, chunks, 3 * workers):
                yield result
                bar.update(size)


class _Kept:
    """The pool that `kept_pool` keeps; made when first used."""

    def __init__(self) -> None:
        self.pool: ProcessPoolExecutor | None = None


_kept: _Kept | None = None


@contextmanager
def kept_pool() -> Iterator[None]:
    """Inside, all calls share one pool of a process per core: starting the processes takes seconds."""
    global _kept
    outer, _kept = _kept, _Kept()
    try:
        yield
    finally:
        if _kept.pool is not None:
            _kept.pool.shutdown(wait=False, cancel_futures=True)
        _kept = outer


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """The kept pool, or one of `workers` processes for this call."""
    if _kept is not None:
        _kept.pool = _kept.pool or image_pool(cpu_count())
        try:
            yield _kept.pool
        except BrokenExecutor:
            _kept.pool = None  # one of its processes was killed: the next call starts others
            raise
        return
    with image_pool(workers) as pool:
        # A consumer that fails leaves this generator suspended. A child process then ends by joining its own
        # children, which wait for work for ever: so the pool is ended before that, and before its queues are.
        ending = Finalize(None, pool.shutdown, kwargs={"cancel_futures": True}, exitpriority=_BEFORE_QUEUES)
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        finally:
            ending.cancel()


def _in_flight(
    pool: ProcessPoolExecutor,
    function: Callable[[Sequence[Item]], Result],
    chunks: Iterable[Sequence[Item]],
    limit: int,
) -> Iterator[tuple[int, Result]]:
    waiting: deque[tuple[int, Future[Result]]] = deque()
    try:
        for part in chunks:
            waiting.append((len(part), pool.submit(function, part)))
            if len(waiting) >= limit:
                size, future = waiting.popleft()
                yield size, future.result()
        while waiting:
            size, future = waiting.popleft()
            yield size, future.result()
    finally:
        for _, future in waiting:
            future.cancel()


def _run_chunk(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    return [function(item) for item in items]
