"""Property tests run without a deadline, since machines differ, and the same cases every time; one thread a worker."""

import os

import pytest
from hypothesis import settings
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

from hair_pipeline.cores import cpu_count

if "PYTEST_XDIST_WORKER" in os.environ:  # as many workers as the tests may use cores: more threads would only wait
    os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=80)
settings.load_profile("repeatable")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests come first, so that no worker is left alone with one at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores, since many tests wait; more than five would wait for the longest file."""
    return min(cpu_count() + 1, 5)


class WholeFixtures(LoadFileScheduling):
    """A file goes to one worker, and so do all that use the same fixture of the session: it is made once, not twice."""

    FILES = {
        "trained": ("training/test_decoded", "training/test_killed", "training/test_runs", "training/test_trainers"),
        "world": (
            *("evaluation/test_blind_review", "evaluation/test_fingerprints"),
            *("evaluation/test_reports", "evaluation/test_resume"),
        ),
    }

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        name = file.removeprefix("hair_pipeline_tests/").removesuffix(".py")
        return next((fixture for fixture, files in self.FILES.items() if name in files), file)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadFileScheduling | None:
    return WholeFixtures(config, log) if config.getvalue("dist") == "loadfile" else None
