"""Schedules: what happens at set times, once switched on.

Belongs here: schedules. Does not belong here: what follows from a change (`sensors.py`).
"""

import dagster as dg

from hair_pipeline.errors import PipelineError
from hair_pipeline.orchestration.automation import busy
from hair_pipeline.orchestration.instance import MACHINE_TAG
from hair_pipeline.orchestration.jobs import TRAINING_WAITS_FOR, inputs_job, training_job, training_tags
from hair_pipeline.orchestration.soundness import unsound
from hair_pipeline.orchestration.whereabouts import this_machine
from hair_pipeline.profile import AutomationConfig, Profile


def build_schedules(profile: Profile) -> list[dg.ScheduleDefinition]:
    """All schedules, at the profile's times.

    Raises:
        PipelineError: a time is no cron that Dagster takes.
    """
    try:
        return _schedules(profile.automation)
    except dg.DagsterInvalidDefinitionError as error:
        raise PipelineError(
            f"automation.observe_cron or automation.retrain_cron of the profile: {error}",
            remedy="give five fields: minute, hour, day, month, weekday, e.g. 0 3 * * 0",
        ) from error


def _schedules(times: AutomationConfig) -> list[dg.ScheduleDefinition]:
    return [
        dg.ScheduleDefinition(
            name="observe_inputs_daily",
            job=inputs_job,
            cron_schedule=times.observe_cron,
            execution_fn=_observe,
            description="Looks at the inputs in full, which the sensor `new_inputs` does not: finds files overwritten "
            "in place. An unchanged catalog is not built again.",
        ),
        dg.ScheduleDefinition(
            name="retrain_weekly",
            job=training_job,
            cron_schedule=times.retrain_cron,
            execution_fn=_retrain,
            description="Trains again on whatever there is by then. A training whose data and settings are as they "
            "were is not repeated.",
        ),
    ]


def _observe(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    assert context.repository_def is not None
    under_way = busy(context.instance, context.repository_def, ["catalog"])
    return under_way or dg.RunRequest(tags={MACHINE_TAG: this_machine()})


def _retrain(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    assert context.repository_def is not None
    tags = training_tags(context.instance)
    if not tags:
        return dg.SkipReason("there are no processed shards yet: materialise the catalog and the group processed")
    if (fault := unsound(context.instance, context.repository_def.asset_graph).get(dg.AssetKey("catalog"))) is not None:
        return dg.SkipReason(f"catalog: {fault}")
    under_way = busy(context.instance, context.repository_def, TRAINING_WAITS_FOR)
    return under_way or dg.RunRequest(tags=tags | {MACHINE_TAG: this_machine()})
