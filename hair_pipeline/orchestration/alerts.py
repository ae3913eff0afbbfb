"""Telling people that a run failed: in the log, and to a webhook if one is configured.

Belongs here: the alert. Does not belong here: what failed and why, which the failing step says itself.
"""

import http.client
import json
import time
import urllib.request

import dagster as dg

from hair_pipeline.errors import PipelineError, is_transient
from hair_pipeline.orchestration.launch import root_message
from hair_pipeline.settings import load_settings

SECONDS_TO_ANSWER = 10.0
WAITS = (1.0, 3.0, 9.0)
"""Seconds before the alert is sent again. Dagster tells of a failure once, and gives a sensor a minute for that."""


@dg.run_failure_sensor(
    default_status=dg.DefaultSensorStatus.RUNNING,
    monitor_all_code_locations=True,  # runs of `hair-pipeline run` belong to none
    description='Logs every failed run and, if HAIR_PIPELINE_ALERT_WEBHOOK is set, posts {"text": ...} there, as Slack '
    "and Mattermost want it.",
)
def run_failed(context: dg.RunFailureSensorContext) -> None:
    settings = load_settings()
    text = alert_text(context, settings.dagster_url)
    context.log.error(text)
    if settings.alert_webhook:
        post(settings.alert_webhook, text)


def alert_text(context: dg.RunFailureSensorContext, url: str) -> str:
    """What failed, why, and where to look: a line per failed step."""
    run = context.dagster_run
    lines = [f"run {run.run_id[:8]} of {run.job_name} failed: {url.rstrip('/')}/runs/{run.run_id}"]
    for event in context.get_step_failure_events():
        data = event.step_failure_data
        said = data.user_failure_data.description if data.user_failure_data else None
        lines.append(f"- {event.step_key}: {said or root_message(data.error) or event.message}")
    if len(lines) == 1:
        lines.append(f"- {context.failure_event.message}")
    return "\n".join(lines)


def post(webhook: str, text: str) -> None:
    """Send the text, again if the webhook is briefly away.

    Raises:
        PipelineError: the webhook does not take it; the sensor's tick shows that.
    """
    for wait in (*WAITS, None):
        try:
            _post_once(webhook, text)
            return
        except (ValueError, http.client.InvalidURL) as error:
            raise PipelineError(
                f"the alert could not be sent: the webhook is no URL ({type(error).__name__})",
                remedy="mend HAIR_PIPELINE_ALERT_WEBHOOK",
            ) from None  # the error says the URL, whose path is a secret
        except OSError as error:
            if wait is None or not is_transient(error):
                raise PipelineError(
                    f"the alert could not be sent ({error})", remedy="check HAIR_PIPELINE_ALERT_WEBHOOK and the network"
                ) from error
            time.sleep(wait)


def _post_once(webhook: str, text: str) -> None:
    request = urllib.request.Request(
        webhook, data=json.dumps({"text": text}).encode(), headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=SECONDS_TO_ANSWER):
        pass
