"""Resources: what steps need from outside, read in the step's own process.

Belongs here: Dagster resources. Does not belong here: the settings themselves (`hair_pipeline.settings`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg
from dagster._core.errors import DagsterExecutionInterruptedError

from hair_pipeline.errors import PipelineError, ReleaseRefused, is_transient
from hair_pipeline.profile import Profile
from hair_pipeline.settings import Settings, load_settings

RETRIES = dg.RetryPolicy(max_retries=3, delay=30, backoff=dg.Backoff.EXPONENTIAL)
"""How often a step is tried again after a fault that passes by itself: after 30, 90 and 210 seconds."""

REFUSED = "refused_by_the_release_gate"
"""Metadata of a step's failure: the release gate said no, nothing is broken."""


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
    """Tell faults that pass by themselves from those that do not, and show what a `PipelineError` says.

    A transient fault (`errors.is_transient`), or the loss of the step's machine, makes Dagster try the step again, as
    `RETRIES` says; what is done stays done. Any other is final at once: trying again mends no input.
    """
    try:
        yield
    except DagsterExecutionInterruptedError as error:
        if _machine_was_taken_away():
            raise try_again() from error
        raise
    except Exception as error:
        if is_transient(error):
            raise try_again() from error
        if isinstance(error, PipelineError):
            metadata = {REFUSED: True} if isinstance(error, ReleaseRefused) else None
            raise dg.Failure(description=error.message, metadata=metadata, allow_retries=False) from error
        raise


def _machine_was_taken_away() -> bool:
    """Whether a step that was told to end is to be tried again: on a cluster, when it was not its run that was ended.

    There a node that is drained, or a pod that is deleted, ends the step with the same signal as a cancellation. On
    one machine the signal comes from the run alone.
    """
    try:
        context = dg.OpExecutionContext.get()
    except dg.DagsterInvariantViolationError:  # outside of a step
        return False
    run = context.instance.get_run_by_id(context.run_id)
    ending = run is None or run.is_finished or run.status == dg.DagsterRunStatus.CANCELING
    return load_settings().executor != "local" and not ending


def try_again() -> dg.RetryRequested:
    """The exception that asks Dagster to run the present step once more."""
    try:
        attempt = dg.OpExecutionContext.get().retry_number + 1
    except dg.DagsterInvariantViolationError:  # outside of a step
        attempt = 1
    return dg.RetryRequested(RETRIES.max_retries, RETRIES.calculate_delay(attempt))
