"""How sensors ask for runs: level-triggered, one at a time, a bounded number of tries.

Each automation looks at how things are now, says what it wants in one text (`Wish.wanted`: from which state to which),
and asks for it unless something that makes the same assets is under way. The text stands in the runs' tags, so that
tries are counted without any memory of its own: a daemon that is killed and started again counts the same.

- An update that lands while a run is under way is seen at the next look, since it is the state that is compared.
- A run key is used once and for ever, also after a failure; so the number of the try is part of it.
- The state wanted *from* is part of it too (the storage id of what was made last), so that a change back to an earlier
  state is a new wish.

Belongs here: that rule. Does not belong here: what each automation wants (`sensors.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import dagster as dg
from dagster._core.definitions.data_version import (
    extract_data_provenance_from_entry,
    extract_data_version_from_entry,
)
from dagster._core.storage.tags import MAX_RETRIES_TAG

from hair_pipeline.files import hash_bytes
from hair_pipeline.orchestration.instance import MACHINE_TAG, free_dead_runs
from hair_pipeline.orchestration.whereabouts import this_machine

AUTOMATION_TAG = "hair_pipeline/automation"
WANTED_TAG = "hair_pipeline/wanted"
ATTEMPT_TAG = "hair_pipeline/attempt"
UNDER_WAY = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


@dataclass(frozen=True)
class Wish:
    """What an automation wants now.

    Attributes:
        automation: its name.
        wanted: from which state to which; the same text is asked for until a run succeeds or the tries are used up.
        requests: the runs that would bring it.
    """

    automation: str
    wanted: str
    requests: Sequence[dg.RunRequest]


def ask(instance: dg.DagsterInstance, wish: Wish, attempts: int) -> list[dg.RunRequest] | dg.SkipReason:
    """The runs to request now, or why none is.

    Args:
        wish: nothing that makes its assets may be under way (`assets_under_way`).
        attempts: runs that may fail before a person has to look.
    """
    tags = {AUTOMATION_TAG: wish.automation, WANTED_TAG: wish.wanted}
    runs = [
        run
        for run in instance.get_runs(dg.RunsFilter(tags=tags))
        if run.status != dg.DagsterRunStatus.NOT_STARTED  # created by a daemon that was killed: it submits it itself
    ]
    for status, what in (
        (dg.DagsterRunStatus.CANCELED, "was cancelled; launch the job by hand to go on"),
        (dg.DagsterRunStatus.SUCCESS, "has answered this; nothing has changed since"),
    ):
        if (run := next((run for run in runs if run.status == status), None)) is not None:
            return dg.SkipReason(f"run {run.run_id[:8]} {what}")
    tried = {run.tags[ATTEMPT_TAG] for run in runs}
    if len(tried) >= attempts:
        return dg.SkipReason(
            f"{len(tried)} tries have failed, the last in run {runs[0].run_id[:8]}: mend the cause and launch the "
            "job by hand, or wait for other data"
        )
    attempt = str(len(tried))
    return [
        _marked(request, tags | {ATTEMPT_TAG: attempt}, f"{wish.automation}/{wish.wanted}/{attempt}/{number}")
        for number, request in enumerate(wish.requests)
    ]


def _marked(request: dg.RunRequest, tags: Mapping[str, str], run_key: str) -> dg.RunRequest:
    """The request with more tags and a run key; Dagster itself is not to try the run again as well."""
    tags = {**request.tags, **tags, MACHINE_TAG: this_machine(), MAX_RETRIES_TAG: "0"}
    return request._replace(run_key=run_key, tags=tags)


def assets_under_way(instance: dg.DagsterInstance, repository: dg.RepositoryDefinition) -> dict[dg.AssetKey, str]:
    """Asset -> a run that is making it now or is queued for it, whoever launched it."""
    making: dict[dg.AssetKey, str] = {}
    for run in instance.get_runs(dg.RunsFilter(statuses=UNDER_WAY)):
        keys: Iterable[dg.AssetKey] = run.asset_selection or ()
        if not keys and repository.has_job(run.job_name):
            keys = repository.get_job(run.job_name).asset_layer.executable_asset_keys
        making |= dict.fromkeys(keys, run.run_id)
    return making


def busy(
    instance: dg.DagsterInstance, repository: dg.RepositoryDefinition, names: Sequence[str]
) -> dg.SkipReason | None:
    """Which run is making one of these assets, in words; None when none is.

    Runs of a machine that went down are marked as failed first: here is where their processes would run.
    """
    free_dead_runs(instance)
    under_way = assets_under_way(instance, repository)
    for name in names:
        if (run := under_way.get(dg.AssetKey(name))) is not None:
            return dg.SkipReason(f"run {run[:8]} is making {name}")
    return None


@dataclass(frozen=True)
class LastMade:
    """What the last materialisation of an asset says.

    Attributes:
        storage_id: of the event; 0 when there is none.
        data_version: of the asset.
        made_from: input -> its data version then.
        metadata: of the event.
    """

    storage_id: int = 0
    data_version: str | None = None
    made_from: Mapping[str, str] | None = None
    metadata: Mapping[str, dg.MetadataValue] | None = None


def last_made(instance: dg.DagsterInstance, names: Sequence[str]) -> dict[str, LastMade]:
    """For each asset what its last materialisation says."""
    found = dict.fromkeys(names, LastMade())
    for record in instance.get_asset_records([dg.AssetKey(name) for name in names]):
        entry = record.asset_entry
        event = entry.last_materialization_record
        if event is None or event.asset_materialization is None:
            continue
        version = extract_data_version_from_entry(event.event_log_entry)
        provenance = extract_data_provenance_from_entry(event.event_log_entry)
        inputs = provenance.input_data_versions if provenance else {}
        found[entry.asset_key.to_user_string()] = LastMade(
            event.storage_id,
            version.value if version else None,
            {key.to_user_string(): value.value for key, value in inputs.items()},
            event.asset_materialization.metadata,
        )
    return found


def short(*parts: object) -> str:
    """A short hash of what makes up a wish."""
    return hash_bytes(*map(str, parts))[:16]
