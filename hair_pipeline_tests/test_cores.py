"""The number of cores is what this process may use, not what the machine has."""

from __future__ import annotations

import os
import subprocess
import sys

COUNT = "from hair_pipeline.cores import cpu_count; print(cpu_count())"


def counted(environment: dict[str, str], before: str = "") -> int:
    done = subprocess.run(
        [sys.executable, "-c", before + COUNT], env=os.environ | environment, capture_output=True, check=True
    )
    return int(done.stdout)


def test_affinity_counts() -> None:
    assert counted({}, before="import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});") == 1


def test_the_variable_lowers_it() -> None:
    assert counted({"LOKY_MAX_CPU_COUNT": "1"}) == 1
