"""Running the lineage without the UI: observe, then materialise what is missing or out of date, round by round.

Belongs here: executing rounds with the configured executor in the shared instance. Does not belong here: what is out
of date (`rounds.py`), what a step does, or printing (the caller gets events).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import dagster as dg
from dagster._core.definitions.asset_checks.asset_check_evaluation import AssetCheckEvaluation
from dagster._core.definitions.asset_selection import AssetSelection
from dagster._core.definitions.assets.graph.asset_graph import AssetGraph
from dagster._core.definitions.assets.job.asset_job import IMPLICIT_ASSET_JOB_NAME
from dagster._core.definitions.reconstruct import ReconstructableRepository
from dagster._core.execution.api import execute_run_iterator
from dagster._utils.error import SerializableErrorInfo

from hair_pipeline.errors import PipelineError
from hair_pipeline.orchestration.instance import PID_TAG
from hair_pipeline.orchestration.resources import REFUSED
from hair_pipeline.orchestration.rounds import Lineage, Piece, Round, Stale, split
from hair_pipeline.orchestration.soundness import failed_check
from hair_pipeline.orchestration.waiting import pools_watched
from hair_pipeline.orchestration.whereabouts import process_tag

LAUNCHER_TAG = "hair_pipeline/launched_by"
CATALOG = dg.AssetKey("catalog")
"""Registers the shards."""
DEFINITIONS_MODULE = "hair_pipeline.definitions"
PRELOAD_TORCH = "HAIR_PIPELINE_PRELOAD_TORCH"
"""Set in the environment for the fork server when the whole lineage is launched: half a dozen steps need torch."""
_GPU_DEVICES = (Path("/dev/nvidiactl"), Path("/dev/kfd"), Path("/dev/dxg"))
"""Of NVIDIA, AMD and WSL. Where there is a GPU, some library may touch it when imported, and a fork may not use it."""


@dataclass(frozen=True)
class Step:
    """What happened to one step of a run, for progress output."""

    assets: str
    kind: str  # "wait" | "start" | "success" | "retry" | "failure"
    message: str = ""


@dataclass
class Outcome:
    """What a launch did."""

    runs: list[str] = field(default_factory=list)
    materialised: list[str] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    warnings: list[str] = field(default_factory=list)
    blocked_checks: set[str] = field(default_factory=set)
    unsound: set[dg.AssetKey] = field(default_factory=set)
    tried: set[Piece] = field(default_factory=set)
    made: set[Piece] = field(default_factory=set)
    if_nothing: str = "Everything was up to date; nothing was done again."
    upstream_left: list[str] = field(default_factory=list)
    """Assets that are out of date and were not selected, of those that what was selected is made from."""

    @property
    def broken(self) -> set[Piece]:
        """What was tried and not made or observed, or does not hold what its blocking check asks."""
        return (self.tried - self.made) | {(key, None) for key in self.unsound}

    @property
    def refusals(self) -> dict[str, str]:
        """Failures that are the release gate's no: an outcome of the lineage."""
        return {name: why for name, why in self.failures.items() if name in self.refused}

    @property
    def faults(self) -> dict[str, str]:
        """Failures that are faults."""
        return {name: why for name, why in self.failures.items() if name not in self.refused}


def _ignore(_: Step) -> None:
    """Progress that nobody looks at."""


def launch(
    instance: dg.DagsterInstance,
    *,
    selection: str | None = None,
    shards: Collection[str] | None = None,
    only_failed: bool = False,
    force: bool = False,
    launched_by: str = "hair-pipeline run",
    on_step: Callable[[Step], None] = _ignore,
    module: str = DEFINITIONS_MODULE,
) -> Outcome:
    """Observe the inputs, then materialise everything selected that is missing or out of date.

    Args:
        instance: where runs and materialisations are recorded.
        selection: Dagster's selection syntax, e.g. `group:processed` or `+key:eval_report`; all assets if None. What is
            out of date upstream of it is not made, but named in the outcome.
        shards: only these, of the assets that have shards; the inputs are not looked at again.
        only_failed: only the shards whose last run failed.
        force: also materialise what is up to date.
        launched_by: recorded as a run tag.
        on_step: called as steps start and end.
        module: the module that holds `defs`; child processes load it again by this name.

    Raises:
        KeyboardInterrupt: the process was interrupted; the running steps have been ended.
        PipelineError: a selection that names nothing, or shards of assets that have none; a shard that is not
            registered, or no shard at all is.
    """
    repository = ReconstructableRepository.for_module(module, "defs")
    graph = repository.get_definition().asset_graph
    selected = None if selection is None else _resolve(selection, graph)
    lineage = Lineage(instance, graph, selected, shards)
    if shards is not None or only_failed:
        _refuse_without_sharded_assets(lineage)
    _refuse_unknown_shards(lineage)
    _refuse_without_shards(lineage, only_failed=only_failed)
    if selection is None and shards is None and lineage.out_of_date():
        _expect_torch()
    outcome = Outcome()
    if only_failed:
        lineage = Lineage(instance, graph, selected, lineage.failed_shards())
        force = True
        outcome.if_nothing = "No shard's last run failed; nothing was done."
    execute = partial(_execute, lineage, repository, launched_by, on_step)
    if lineage.only_shards is None:
        execute(Round(tuple(lineage.sources)), outcome)
        if not lineage.materialisable:
            seen = ", ".join(key.to_user_string() for key in lineage.sources)
            outcome.if_nothing = f"Looked at {seen}; nothing that is made here was selected."
    while True:
        stale = lineage.out_of_date()
        if force:
            stale = _with_forced(lineage, stale)
        _refuse_unsound(lineage, lineage.without(stale, outcome.tried), outcome)
        left = lineage.without(stale, outcome.tried | lineage.held_back(outcome.broken))
        round_ = lineage.next_round(left, frozenset(stale.keys() - left.keys()))
        if round_ is None:
            outcome.upstream_left = _upstream_left(lineage)
            return outcome
        for part in split(round_, lineage.registered):
            execute(part, outcome)


def _resolve(selection: str, graph: AssetGraph) -> AbstractSet[dg.AssetKey]:
    """The assets that a selection names.

    Raises:
        PipelineError: it cannot be read, names an asset that does not exist, or selects nothing.
    """
    try:
        selected = AssetSelection.from_string(selection).resolve(graph)
    except dg.DagsterError as error:
        wrong = (
            "names an asset that does not exist" if isinstance(error, dg.DagsterInvalidSubsetError) else "is not valid"
        )
        raise PipelineError(f"the selection {selection!r} {wrong}", remedy=_what_exists(graph)) from error
    if not selected:
        raise PipelineError(f"the selection {selection!r} selects nothing", remedy=_what_exists(graph))
    return selected


def _what_exists(graph: AssetGraph) -> str:
    nodes = [node for node in graph.asset_nodes if node.is_materializable]
    groups = ", ".join(sorted({f"group:{node.group_name}" for node in nodes}))
    assets = ", ".join(sorted(f"key:{node.key.to_user_string()}" for node in nodes))
    return (
        f"choose of {groups}; or of the assets {assets}; `+key:NAME` takes all upstream too, `key:NAME+` all "
        "downstream; join them with `and`, `or`, `not`"
    )


def _expect_torch() -> None:
    """Let the fork server load torch, unless there is a GPU."""
    if not any(device.exists() for device in _GPU_DEVICES):
        os.environ.setdefault(PRELOAD_TORCH, "1")


def _refuse_unsound(lineage: Lineage, wanted: Collection[dg.AssetKey], outcome: Outcome) -> None:
    """Count as failed what a blocking check of an earlier run found fault with, where something would be built on it.

    What is selected itself is made again first, which checks it again.
    """
    for key, fault in lineage.unsound().items():
        if key not in wanted and any(needed in wanted for needed, _ in lineage.held_back({(key, None)})):
            outcome.failures.setdefault(key.to_user_string(), fault)
            outcome.unsound.add(key)


def _with_forced(lineage: Lineage, stale: Mapping[dg.AssetKey, Stale]) -> dict[dg.AssetKey, Stale]:
    added = {
        key: Stale(False, lineage.shards if lineage.graph.get(key).is_partitioned else ())
        for key in lineage.materialisable
    }
    return {**stale, **added}


def _upstream_left(lineage: Lineage) -> list[str]:
    """What a selection left out of date of its own inputs. Not of a backfill, which looks at its shards alone."""
    if lineage.only_shards is not None:
        return []
    upstream = AssetSelection.keys(*lineage.materialisable).upstream().resolve(lineage.graph)
    left_out = upstream - lineage.selected
    return [key.to_user_string() for key in Lineage(lineage.instance, lineage.graph, left_out).out_of_date()]


def _refuse_without_sharded_assets(lineage: Lineage) -> None:
    if not any(lineage.graph.get(key).is_partitioned for key in lineage.materialisable):
        selected = ", ".join(sorted(key.to_user_string() for key in lineage.selected))
        raise PipelineError(
            f"shards are asked for, and nothing that is selected has any: {selected}",
            remedy="leave --shards and --failed out, or select assets of group:processed",
        )


def _refuse_unknown_shards(lineage: Lineage) -> None:
    unknown = sorted(set(lineage.only_shards or ()) - set(lineage.registered))
    if unknown:
        registered = lineage.registered
        known = f"{registered[0]} to {registered[-1]}" if registered else "none yet: materialise the asset catalog"
        raise PipelineError(f"no such shard: {', '.join(unknown)}", remedy=f"name registered shards ({known})")


def _refuse_without_shards(lineage: Lineage, *, only_failed: bool) -> None:
    """Say that there is nothing to work on yet, where the catalog is not going to register shards first."""
    registers = CATALOG in lineage.order and not only_failed
    if lineage.registered or registers:
        return
    nodes = {key.to_user_string(): lineage.graph.get(key) for key in lineage.materialisable}
    waiting = [name for name, node in nodes.items() if node.is_partitioned]
    if waiting:
        raise PipelineError(
            f"no shards yet, so nothing to make of {', '.join(waiting)}",
            remedy='run `hair-pipeline run --select "group:inputs"` first: the catalog registers the shards',
        )


def _execute(
    lineage: Lineage,
    repository: ReconstructableRepository,
    launched_by: str,
    on_step: Callable[[Step], None],
    round_: Round,
    outcome: Outcome,
) -> None:
    instance, job = lineage.instance, repository.get_reconstructable_job(IMPLICIT_ASSET_JOB_NAME)
    # A daemon that is running too must not take up again what this command runs.
    tags = {LAUNCHER_TAG: launched_by, PID_TAG: process_tag() or "", "dagster/max_retries": "0", **round_.tags}
    subset = job.get_subset(asset_selection=frozenset(round_.assets))
    run = instance.create_run_for_job(
        subset.get_definition(),
        run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        tags=tags,
        asset_selection=frozenset(round_.assets),
        job_code_origin=job.get_python_origin(),
    )
    outcome.runs.append(run.run_id)
    interrupted, before = False, len(outcome.tried)
    with pools_watched(instance, run.run_id, lambda step, reason: on_step(Step(step, "wait", reason))):
        for event in execute_run_iterator(subset, run, instance):
            interrupted = interrupted or _is_interruption(event)
            if event.is_step_start:
                made = set(lineage.made_by(_step(event)))
                outcome.tried |= {piece for piece in lineage.pieces(round_) if piece[0].to_user_string() in made}
            _record(event, lineage, on_step, outcome)
    if interrupted:
        raise KeyboardInterrupt
    if outcome.tried - outcome.made:  # a step that fails does not pass on what it made before
        outcome.made |= lineage.made(round_)
    if len(outcome.tried) == before:  # not even one step could start
        outcome.tried |= lineage.pieces(round_)


def _step(event: dg.DagsterEvent) -> str:
    return (event.step_key or "").split("[")[0]


def _is_interruption(event: dg.DagsterEvent) -> bool:
    """Dagster turns an interrupt into a failure of the running step or run; tell it from a fault."""
    error = None
    if event.is_step_failure:
        error = event.step_failure_data.error
    elif event.is_run_failure:
        error = event.job_failure_data.error
    while error is not None:
        if error.cls_name in ("DagsterExecutionInterruptedError", "KeyboardInterrupt"):
            return True
        error = error.cause
    return event.event_type == dg.DagsterEventType.PIPELINE_CANCELED


def _record(event: dg.DagsterEvent, lineage: Lineage, on_step: Callable[[Step], None], outcome: Outcome) -> None:
    name = _step(event)
    if event.is_step_start:
        on_step(Step(name, "start"))
    elif event.is_step_success:
        on_step(Step(name, "success"))
    elif event.event_type == dg.DagsterEventType.ASSET_CHECK_EVALUATION:
        _record_check(event.asset_check_evaluation_data, outcome)
    elif event.is_step_failure and name not in outcome.blocked_checks:
        message, assets = _failure_message(event), lineage.made_by(name)
        outcome.failures |= dict.fromkeys(assets, message)
        if _is_refusal(event):
            outcome.refused |= set(assets)
        on_step(Step(name, "failure", message))
    elif event.is_step_up_for_retry:
        on_step(Step(name, "retry", root_message(event.step_retry_data.error)))
    elif event.is_step_materialization and event.asset_key:
        outcome.materialised.append(event.asset_key.to_user_string())
        outcome.made.add((event.asset_key, event.partition))
    elif event.event_type == dg.DagsterEventType.ASSET_OBSERVATION and event.asset_key:
        outcome.made.add((event.asset_key, event.partition))
    elif event.is_run_failure and not outcome.failures:
        outcome.failures["run"] = event.message or "the run failed"


def _record_check(evaluation: AssetCheckEvaluation, outcome: Outcome) -> None:
    """Note a failed check; one of severity ERROR stops what is downstream of its asset."""
    if evaluation.passed:
        return
    asset, check = evaluation.asset_key.to_user_string(), evaluation.check_name
    reason = f" ({evaluation.description})" if evaluation.description else ""
    outcome.warnings.append(f"{asset}: {check} did not pass{reason}")
    if evaluation.severity == dg.AssetCheckSeverity.ERROR and evaluation.blocking:
        outcome.failures[asset] = failed_check(check, evaluation.description)
        outcome.blocked_checks.add(f"{asset}_{check}")
        outcome.unsound.add(evaluation.asset_key)


def _is_refusal(event: dg.DagsterEvent) -> bool:
    told = event.step_failure_data.user_failure_data
    return told is not None and REFUSED in (told.metadata or {})


def _failure_message(event: dg.DagsterEvent) -> str:
    data = event.step_failure_data
    if data.user_failure_data and data.user_failure_data.description:
        return str(data.user_failure_data.description)
    return root_message(data.error) or str(event.message)


def root_message(error: SerializableErrorInfo | None) -> str:
    """What the first of a chain of errors says."""
    while error is not None and error.cause is not None:
        error = error.cause
    return error.message.strip() if error is not None else ""
