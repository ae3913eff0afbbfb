"""The steps' output goes to one file, which holds that of the last command."""

import os
from pathlib import Path

from hair_pipeline.orchestration.terminal import output_to


def test_the_log_holds_the_last_command_alone(tmp_path: Path):
    log = tmp_path / "last_run.log"
    for text in (b"the first command", b"the second"):
        with output_to(log):
            os.write(1, text)
            os.write(2, b" and its errors")
    assert log.read_bytes() == b"the second and its errors"
