"""Telling the server that another version is in production: the configured command, with a time limit.

Belongs here: running `release.deploy_command`. Does not belong here: deciding what is deployed (`registry`).
"""

from __future__ import annotations

import logging
import os
import subprocess

from hair_pipeline.errors import PipelineError
from hair_pipeline.profile import ReleaseConfig

log = logging.getLogger(__name__)


def deploy(version: str, config: ReleaseConfig) -> bool:
    """Run the profile's deploy command, if there is one; `HAIR_PIPELINE_VERSION` holds the version.

    The command is a list of words and runs without a shell.

    Returns:
        Whether there was a command to run.

    Raises:
        PipelineError: it cannot be started, fails, or takes longer than `deploy_timeout`.
    """
    if not config.deploy_command:
        return False
    words = list(config.deploy_command)
    remedy = "correct release.deploy_command in the profile, or mend the server; then promote again"
    try:
        done = subprocess.run(
            words,
            env=os.environ | {"HAIR_PIPELINE_VERSION": version},
            timeout=config.deploy_timeout,
            capture_output=True,
            text=True,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise PipelineError(
            f"the deploy command did not end within {config.deploy_timeout:g} s", file=words[0], remedy=remedy
        ) from error
    except OSError as error:
        raise PipelineError(
            f"the deploy command cannot be started ({error.strerror})", file=words[0], remedy=remedy
        ) from error
    if done.returncode != 0:
        tail = "\n".join((done.stderr or done.stdout).strip().splitlines()[-5:])
        raise PipelineError(
            f"the deploy command failed with exit status {done.returncode}: {tail}", file=words[0], remedy=remedy
        )
    log.info("deployed %s", version)
    return True
