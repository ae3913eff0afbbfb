"""Where the time of a training goes: computing, waiting for data, and the rest.

Belongs here: measuring. Does not belong here: deciding anything by it.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

_OUTSIDE = ("first lesson", "validate", "save")
"""Activities that are no part of a step."""


class Stopwatch:
    """Seconds by activity, since it was made.

    On a GPU the times are the host's. The loop reads the losses back once per window, so that what the device still
    has to do is waited for inside "compute"; data that is fetched while the device works still counts as waiting, so
    the share of "data" is an upper bound there.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._began = time.perf_counter()

    @contextmanager
    def measure(self, activity: str) -> Iterator[None]:
        """Add the time spent within to an activity."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[activity] += time.perf_counter() - began

    def shares(self) -> dict[str, float]:
        """Shares of the time spent in steps, i.e. without the first lesson, validating and saving.

        `data_share`: waiting for data and moving it to the device. `other_share`: everything outside forward,
        backward and optimizer, data included.
        """
        stepping = time.perf_counter() - self._began - sum(self.seconds[activity] for activity in _OUTSIDE)
        if stepping <= 0:
            return {}
        compute, data = self.seconds["compute"], self.seconds["data"]
        return {"data_share": data / stepping, "other_share": max(0.0, 1 - compute / stepping)}
