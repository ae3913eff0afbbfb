"""A command like `hair-pipeline train NAME`, with the real loop, that learns the smallest task there is, slowly.

HAIR_PIPELINE_TEST_FOLDER is the run's folder, in which a file `hurry` ends the slowness;
HAIR_PIPELINE_TEST_DYING_RANK the process that fails at the fourth step.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import replace
from pathlib import Path

from hair_pipeline.cli import _pipes_session, _tell_parent
from hair_pipeline.errors import PipelineError
from hair_pipeline.training import loop, processes
from hair_pipeline.training.task import Batch, StepLosses
from hair_pipeline_tests.training.tiny_tasks import CONFIG, Line

STEPS = 40
HURRY = "hurry"
"""A file in the run's folder: nothing is going to stop the training any more, so it need not last."""


class Slow(Line):
    def losses(self, batch: Batch, step: int) -> StepLosses:
        if not (Path(os.environ["HAIR_PIPELINE_TEST_FOLDER"]) / HURRY).exists():
            time.sleep(float(os.environ.get("HAIR_PIPELINE_TEST_SECONDS", "0.1")))
        if step == 3 and str(processes.rank()) == os.environ.get("HAIR_PIPELINE_TEST_DYING_RANK"):
            raise PipelineError("the disk of process 1 is on fire", remedy="call someone")
        return super().losses(batch, step)


def main() -> None:
    folder = Path(os.environ["HAIR_PIPELINE_TEST_FOLDER"])
    try:
        with _pipes_session():
            processes.connect()
            if processes.is_main():
                (folder / "pid").write_text(str(os.getpid()))
            loop.run(
                Slow(dropout=0.0), replace(CONFIG, steps=STEPS, checkpoint_every=1000, validate_every=1000), folder
            )
    except Exception as error:
        _tell_parent(error)
        raise


if __name__ == "__main__":
    sys.exit(main())
