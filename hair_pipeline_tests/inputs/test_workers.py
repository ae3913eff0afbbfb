"""Work spread over processes: in order, and ended whatever happens to the one who asked for it."""

import multiprocessing
import operator
import os
import signal
import time
from functools import partial
from pathlib import Path

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


def _note_and_wait(folder: Path, item: int) -> None:
    (folder / str(os.getpid())).touch()
    if item:
        time.sleep(0.01)


def _work_for_ever(folder: Path) -> None:
    for _ in map_in_processes(partial(_note_and_wait, folder), range(1_000_000), description="test", workers=2):
        pass


def _alive(pid: int) -> bool:
    """Whether a process runs (a zombie has ended)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_workers_end_when_who_asked_for_the_work_is_killed(tmp_path: Path):
    child = multiprocessing.get_context("spawn").Process(target=_work_for_ever, args=(tmp_path,))
    child.start()
    deadline = time.monotonic() + 120
    while len(list(tmp_path.iterdir())) < 2:
        assert child.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    workers = [int(path.name) for path in tmp_path.iterdir()]
    deadline = time.monotonic() + 60
    while (left := [pid for pid in workers if _alive(pid)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left
