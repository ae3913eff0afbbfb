"""A script for torchrun: two processes train, the second one fails at the fourth step."""

from __future__ import annotations

import sys
from pathlib import Path

from torch.distributed.elastic.multiprocessing.errors import record

from hair_pipeline.errors import PipelineError
from hair_pipeline.training import loop, processes
from hair_pipeline.training.task import Batch, StepLosses
from hair_pipeline_tests.training.tiny_tasks import CONFIG, Line


class Dying(Line):
    def losses(self, batch: Batch, step: int) -> StepLosses:
        if step == 3 and processes.rank() == 1:
            raise PipelineError("the disk of process 1 is on fire", remedy="call someone")
        return super().losses(batch, step)


@record
def main() -> None:
    processes.connect()
    loop.run(Dying(), CONFIG, Path(sys.argv[1]))


if __name__ == "__main__":
    main()
