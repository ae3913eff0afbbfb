"""Work spread over processes: in order, and ended whatever happens to the one who asked for it."""

import multiprocessing
import operator
from functools import partial

import pytest

from hair_pipeline.inputs.workers import map_in_processes

DOUBLE = partial(operator.mul, 2)


def _fail_while_consuming() -> None:
    results = map_in_processes(DOUBLE, range(64), description="test", chunk=2, workers=2)
    next(results)
    raise OSError("the disk is full")


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_order(workers: int):
    results = map_in_processes(DOUBLE, range(50), description="test", chunk=4, workers=workers)
    assert list(results) == [2 * number for number in range(50)]


def test_a_child_process_whose_consumer_fails_ends():
    child = multiprocessing.get_context("spawn").Process(target=_fail_while_consuming)
    child.start()
    child.join(120)
    hung = child.is_alive()
    child.kill()
    assert not hung
    assert child.exitcode == 1


def test_a_failure_in_a_worker_reaches_the_consumer():
    with pytest.raises(ZeroDivisionError):
        list(map_in_processes(partial(operator.floordiv, 1), range(32), description="test", chunk=2, workers=2))
