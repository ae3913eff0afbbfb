"""Resources: what steps need from outside, read in the step's own process.

Belongs here: Dagster resources. Does not belong here: the settings themselves (`hair_pipeline.settings`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from hair_pipeline.errors import PipelineError
from hair_pipeline.profile import Profile
from hair_pipeline.settings import Settings, load_settings


class PipelineResource(dg.ConfigurableResource):
    """The pipeline's settings and profile, from the HAIR_PIPELINE_* variables of the step's process."""

    @property
    def settings(self) -> Settings:
        with explained():
            return load_settings()

    @property
    def profile(self) -> Profile:
        with explained():
            return load_settings().profile_values


@contextmanager
def explained() -> Iterator[None]:
    """Turn a `PipelineError` into a `dg.Failure` that shows its message and is not retried: retrying mends no input."""
    try:
        yield
    except PipelineError as error:
        raise dg.Failure(description=error.message, allow_retries=False) from error
