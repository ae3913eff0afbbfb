"""The registry with two writers at once, and with one that is killed."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from hair_pipeline.errors import PipelineError
from hair_pipeline.release.registry_file import Registry
from hair_pipeline_tests.release.tiny_registry import make_version, signed


def _promote(root: str, version: str, barrier: object, results: object) -> None:
    registry = Registry(Path(root) / "registry" / "registry.json")
    expected = registry.production()
    barrier.wait()  # type: ignore[attr-defined]
    try:
        registry.promote(version, replacing=expected)
        results.put((version, "won"))  # type: ignore[attr-defined]
    except PipelineError as error:
        results.put((version, error.what))  # type: ignore[attr-defined]


def test_two_concurrent_promotions_have_one_winner_and_one_clear_error(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    for trial in range(5):
        root = tmp_path / str(trial)
        for version in ("a", "b"):
            signed(root, version)
        barrier, results = context.Barrier(2), context.Queue()
        processes = [context.Process(target=_promote, args=(str(root), v, barrier, results)) for v in ("a", "b")]
        for process in processes:
            process.start()
        outcome = dict(results.get(timeout=20) for _ in processes)
        for process in processes:
            process.join()
        winners = [version for version, said in outcome.items() if said == "won"]
        assert len(winners) == 1
        assert Registry(root / "registry" / "registry.json").production() == winners[0]
        (loser,) = set(outcome) - set(winners)
        assert f"production changed from None to {winners[0]}" in outcome[loser]


WRITER = """
import sys
from pathlib import Path
from hair_pipeline.release.registry_file import Registry
registry = Registry(Path(sys.argv[1]))
print("ready", flush=True)
for number in range(100000):
    registry.sign_off("a", f"reviewer {number % 50}", "approve", "x" * 2000)
"""

PROMOTER = """
import sys
from pathlib import Path
from hair_pipeline.release.registry_file import Registry
registry = Registry(Path(sys.argv[1]))
print("ready", flush=True)
for number in range(100000):
    registry.promote("b")
    registry.rollback("again")
"""


def killed(code: str, path: Path, seconds: float) -> None:
    """Run code on a registry and kill it without warning after so many seconds."""
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, env=os.environ)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_a_kill_between_promotion_and_rollback_leaves_one_or_the_other(tmp_path: Path) -> None:
    """Whatever the moment: production is the old or the new version, and fits what the history says last."""
    registry = signed(tmp_path, "a")
    signed(tmp_path, "b")
    registry.promote("a")
    seen = set()
    for trial in range(25):
        if registry.production() == "b":
            registry.rollback("between two trials")
        killed(PROMOTER, registry.path, 0.001 + 0.0037 * trial)
        state = json.loads(registry.path.read_text(encoding="utf-8"))
        assert (state["production"], state["previous"]) in (("a", []), ("b", ["a"]))
        assert state["history"][-1]["version"] == state["production"]
        seen.add(state["production"])
    assert seen == {"a", "b"}


def test_a_kill_at_any_moment_leaves_a_whole_registry(tmp_path: Path) -> None:
    registry = make_version(tmp_path, "a")
    seen = 0
    for trial in range(8):
        killed(WRITER, registry.path, 0.01 + 0.013 * trial)
        state = json.loads(registry.path.read_text(encoding="utf-8"))
        entries = len(state["versions"]["a"]["sign_offs"])
        assert entries >= seen
        assert len(state["history"]) == entries + 1
        seen = entries
    assert seen > 0
    registry.sign_off("a", "Kim", "approve")  # the lock is free, leftovers are cleared away
    assert not list(registry.path.parent.glob("*.tmp"))
    assert not list(registry.path.parent.glob(".*.tmp"))
