"""How many cores this process may use; in a container that is seldom how many the machine has."""

from __future__ import annotations


def cpu_count() -> int:
    """Cores by affinity and by the container's limit of processor time (cgroups), rounded up; at least 1.

    `LOKY_MAX_CPU_COUNT` in the environment lowers it.
    """
    import joblib  # a quarter of a second

    return int(joblib.cpu_count())
