"""The GPU pool across runs: two real runs, each in a process of its own, never have a GPU step at the same time."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hair_pipeline.settings import PROJECT_ROOT


def instance_folder(root: Path) -> Path:
    """A DAGSTER_HOME with this project's configuration."""
    home = root / "dagster"
    home.mkdir()
    configuration = (PROJECT_ROOT / "dagster.yaml").read_text()
    (home / "dagster.yaml").write_text(configuration.replace("data/dagster", str(home)))
    return home


def start_run(home: Path, journal: Path, name: str, **environment: str) -> subprocess.Popen:
    """A run of the lineage `lanes` in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "hair_pipeline_tests.orchestration.lanes", str(home)],
        cwd=PROJECT_ROOT,
        env={**os.environ, "HAIR_PIPELINE_TEST_JOURNAL": str(journal), "HAIR_PIPELINE_TEST_RUN": name, **environment},
        stderr=subprocess.PIPE,
        text=True,
    )


def lines(journal: Path) -> list[dict]:
    return [json.loads(line) for line in journal.read_text().splitlines()]


def overlap(a: dict, b: dict) -> float:
    """Seconds during which both ran."""
    return max(0.0, min(a["end"], b["end"]) - max(a["start"], b["start"]))


@pytest.mark.slow
def test_two_runs_at_once_never_use_the_gpu_together(tmp_path):
    home, journal = instance_folder(tmp_path), tmp_path / "journal"
    runs = [start_run(home, journal, name) for name in ("first", "second")]
    for run in runs:
        _, errors = run.communicate(timeout=200)
        assert run.returncode == 0, errors
    on_gpu = [line for line in lines(journal) if line["name"].startswith("on_gpu")]
    assert sorted(line["run"] for line in on_gpu) == ["first", "first", "second", "second"]
    assert len({line["pid"] for line in on_gpu}) == 4
    assert sum(overlap(a, b) for a, b in itertools.combinations(on_gpu, 2)) == 0
