"""Running the lineage without the UI: observe, then materialise what is missing or out of date, round by round.

Belongs here: choosing what to run, by Dagster's own data versions, and executing it with the configured executor in
the shared instance. Does not belong here: what a step does, or printing (the caller gets events).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import dagster as dg
from dagster._core.definitions.asset_checks.asset_check_evaluation import AssetCheckEvaluation
from dagster._core.definitions.asset_selection import AssetSelection
from dagster._core.definitions.assets.graph.asset_graph import AssetGraph
from dagster._core.definitions.assets.job.asset_job import IMPLICIT_ASSET_JOB_NAME
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.definitions.reconstruct import ReconstructableRepository
from dagster._core.execution.api import execute_run_iterator
from dagster._core.loader import LoadingContext
from dagster._core.storage.tags import ASSET_PARTITION_RANGE_END_TAG, ASSET_PARTITION_RANGE_START_TAG
from dagster._utils.error import SerializableErrorInfo

from hair_pipeline.orchestration.instance import PID_TAG, process_tag
from hair_pipeline.orchestration.partitions import MAX_SHARDS_PER_RUN, SHARDS

LAUNCHER_TAG = "hair_pipeline/launched_by"
GATE_ASSETS = frozenset({"exported_weights", "production_registry"})
"""Assets that may refuse to go on; a refusal is an outcome of the lineage, not a fault."""


DEFINITIONS_MODULE = "hair_pipeline.definitions"


@dataclass(frozen=True)
class Step:
    """What happened to one step of a run, for progress output."""

    assets: str
    kind: str  # "start" | "success" | "retry" | "failure"
    message: str = ""


@dataclass
class Outcome:
    """What a launch did."""

    runs: list[str] = field(default_factory=list)
    materialised: list[str] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    blocked_checks: set[str] = field(default_factory=set)

    @property
    def refusals(self) -> dict[str, str]:
        """Failures of the release gate alone."""
        return {name: why for name, why in self.failures.items() if name in GATE_ASSETS}

    @property
    def faults(self) -> dict[str, str]:
        """Failures that are faults."""
        return {name: why for name, why in self.failures.items() if name not in GATE_ASSETS}


@dataclass(frozen=True)
class Round:
    """One run: assets that are all partitioned, over a range of shards, or all not."""

    assets: tuple[dg.AssetKey, ...]
    shards: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stale:
    """An asset that is out of date: missing altogether or not, and for a partitioned one, in which shards."""

    missing: bool
    shards: tuple[str, ...] = ()


class _Loading(LoadingContext):
    """Dagster's batch loaders for one look at the instance."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self._instance = instance
        self._loaders: dict[type, Any] = {}

    @property
    def instance(self) -> dg.DagsterInstance:
        return self._instance

    @property
    def loaders(self) -> dict[type, Any]:
        return self._loaders


class Lineage:
    """The asset graph and what of it is out of date in an instance."""

    def __init__(
        self, instance: dg.DagsterInstance, selection: str | None = None, module: str = DEFINITIONS_MODULE
    ) -> None:
        self.instance = instance
        self.repository = ReconstructableRepository.for_module(module, "defs")
        self.graph: AssetGraph = self.repository.get_definition().asset_graph
        chosen = (
            AssetSelection.from_string(selection).resolve(self.graph) if selection else self.graph.get_all_asset_keys()
        )
        self.selected = frozenset(chosen)
        self.order = [key for key in self.graph.toposorted_asset_keys if key in self.selected]

    def made_by(self, step: str) -> list[str]:
        """The selected assets that a step makes: most steps make one of their own name, `image_parts` several."""
        keys = [key for key in self.order if self.graph.get(key).is_materializable]
        names = {key.to_user_string(): self.graph.assets_def_for_key(key).node_def.name for key in keys}
        return [asset for asset, name in names.items() if name == step] or [step]

    @property
    def sources(self) -> list[dg.AssetKey]:
        """The observable inputs."""
        return [key for key in self.graph.toposorted_asset_keys if self.graph.get(key).is_observable]

    def out_of_date(self) -> dict[dg.AssetKey, Stale]:
        """Selected assets that are missing or stale, with the shards concerned."""
        resolver = CachingStaleStatusResolver(self.instance, self.graph, _Loading(self.instance))
        stale: dict[dg.AssetKey, Stale] = {}
        for key in self.order:
            node = self.graph.get(key)
            if not node.is_materializable:
                continue
            if node.is_partitioned:
                statuses = {shard: resolver.get_status(key, shard) for shard in self.shards}
                shards = tuple(shard for shard, status in statuses.items() if status != StaleStatus.FRESH)
                if shards or not statuses:
                    stale[key] = Stale(all(status == StaleStatus.MISSING for status in statuses.values()), shards)
            elif (status := resolver.get_status(key)) != StaleStatus.FRESH:
                stale[key] = Stale(status == StaleStatus.MISSING)
        return stale

    @property
    def shards(self) -> tuple[str, ...]:
        """The registered shards, in order of registration."""
        return tuple(self.instance.get_dynamic_partitions(str(SHARDS.name)))

    def next_round(self, stale: Mapping[dg.AssetKey, Stale], done: frozenset[dg.AssetKey]) -> Round | None:
        """The largest set of out-of-date assets of one kind (partitioned or not) that can run now.

        An asset waits while anything upstream of it is still to run, since that may leave its inputs as they are. Only
        one that is missing anyway may run in the same round as its upstream.

        Args:
            stale: result of `out_of_date`.
            done: assets already run or failed in this launch; they and what waits for them are left alone.
        """
        chosen: list[dg.AssetKey] = []
        unsettled: set[dg.AssetKey] = set()
        for key in self.order:
            node = self.graph.get(key)
            upstream = unsettled.intersection(node.parent_keys)
            if key in done or (key not in stale and not upstream):
                continue
            unsettled.add(key)
            if key not in stale or (upstream and not (stale[key].missing and upstream <= set(chosen))):
                continue
            same_kind = not chosen or node.is_partitioned == self.graph.get(chosen[0]).is_partitioned
            if same_kind and (stale[key].shards or not node.is_partitioned):
                chosen.append(key)
        if not chosen:
            return None
        concerned = {shard for key in chosen for shard in stale[key].shards}
        return Round(tuple(chosen), tuple(shard for shard in self.shards if shard in concerned))


def _ignore(_: Step) -> None:
    """Progress that nobody looks at."""


def launch(
    instance: dg.DagsterInstance,
    *,
    selection: str | None = None,
    force: bool = False,
    launched_by: str = "hair-pipeline run",
    on_step: Callable[[Step], None] = _ignore,
    module: str = DEFINITIONS_MODULE,
) -> Outcome:
    """Observe the inputs, then materialise everything selected that is missing or out of date.

    Args:
        instance: where runs and materialisations are recorded.
        selection: Dagster's selection syntax, e.g. `group:processed` or `+eval_report`; all assets if None.
        force: also materialise what is up to date.
        launched_by: recorded as a run tag.
        on_step: called as steps start and end.
        module: the module that holds `defs`; child processes load it again by this name.

    Raises:
        KeyboardInterrupt: the process was interrupted; the running steps have been ended.
    """
    lineage = Lineage(instance, selection, module)
    outcome = Outcome()
    _execute(lineage, Round(tuple(lineage.sources)), launched_by, on_step, outcome)
    done: set[dg.AssetKey] = set()
    forced = set(lineage.order) if force else set()
    while True:
        stale = lineage.out_of_date()
        if force:
            stale = _with_forced(lineage, stale, forced - done)
        blocked = _with_descendants(lineage.graph, _not_made(outcome, done))
        round_ = lineage.next_round(stale, frozenset(done | blocked))
        if round_ is None:
            return outcome
        for part in _split(round_, lineage.shards):
            _execute(lineage, part, launched_by, on_step, outcome)
        done.update(round_.assets)


def _not_made(outcome: Outcome, done: set[dg.AssetKey]) -> set[dg.AssetKey]:
    """Assets that failed, or were skipped behind one that did."""
    failed = {dg.AssetKey.from_user_string(name) for name in outcome.failures}
    return failed | {key for key in done if key.to_user_string() not in outcome.materialised}


def _with_forced(
    lineage: Lineage, stale: Mapping[dg.AssetKey, Stale], forced: set[dg.AssetKey]
) -> dict[dg.AssetKey, Stale]:
    added = {
        key: Stale(False, lineage.shards if lineage.graph.get(key).is_partitioned else ())
        for key in forced
        if lineage.graph.get(key).is_materializable
    }
    return {**stale, **added}


def _with_descendants(graph: AssetGraph, keys: set[dg.AssetKey]) -> set[dg.AssetKey]:
    found = set(keys)
    for key in graph.toposorted_asset_keys:
        if found.intersection(graph.get(key).parent_keys):
            found.add(key)
    return found


def _split(round_: Round, registered: tuple[str, ...]) -> Iterator[Round]:
    """Runs of at most MAX_SHARDS_PER_RUN shards, each an unbroken range, since a run takes its shards as a range."""
    if not round_.shards:
        yield round_
    start = 0
    positions = [registered.index(shard) for shard in round_.shards]
    for end in range(1, len(positions) + 1):
        full = end - start == MAX_SHARDS_PER_RUN
        if end == len(positions) or full or positions[end] != positions[end - 1] + 1:
            yield Round(round_.assets, round_.shards[start:end])
            start = end


def _execute(
    lineage: Lineage,
    round_: Round,
    launched_by: str,
    on_step: Callable[[Step], None],
    outcome: Outcome,
) -> None:
    instance, job = lineage.instance, lineage.repository.get_reconstructable_job(IMPLICIT_ASSET_JOB_NAME)
    # A daemon that is running too must not take up again what this command runs.
    tags = {LAUNCHER_TAG: launched_by, PID_TAG: process_tag() or "", "dagster/max_retries": "0"}
    if round_.shards:
        tags |= {ASSET_PARTITION_RANGE_START_TAG: round_.shards[0], ASSET_PARTITION_RANGE_END_TAG: round_.shards[-1]}
    subset = job.get_subset(asset_selection=frozenset(round_.assets))
    run = instance.create_run_for_job(
        subset.get_definition(),
        run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        tags=tags,
        asset_selection=frozenset(round_.assets),
        job_code_origin=job.get_python_origin(),
    )
    outcome.runs.append(run.run_id)
    interrupted = False
    for event in execute_run_iterator(subset, run, instance):
        interrupted = interrupted or _is_interruption(event)
        _record(event, lineage, on_step, outcome)
    if interrupted:
        raise KeyboardInterrupt


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
    name = (event.step_key or "").split("[")[0]
    if event.is_step_start:
        on_step(Step(name, "start"))
    elif event.is_step_success:
        on_step(Step(name, "success"))
    elif event.event_type == dg.DagsterEventType.ASSET_CHECK_EVALUATION:
        _record_check(event.asset_check_evaluation_data, outcome)
    elif event.is_step_failure and name not in outcome.blocked_checks:
        message = _failure_message(event)
        outcome.failures |= dict.fromkeys(lineage.made_by(name), message)
        on_step(Step(name, "failure", message))
    elif event.is_step_up_for_retry:
        on_step(Step(name, "retry", root_message(event.step_retry_data.error)))
    elif event.is_step_materialization and event.asset_key:
        outcome.materialised.append(event.asset_key.to_user_string())
    elif event.is_run_failure and not outcome.failures:
        outcome.failures["run"] = event.message or "the run failed"


def _record_check(evaluation: AssetCheckEvaluation, outcome: Outcome) -> None:
    """Note a failed check; one of severity ERROR stops what is downstream of its asset."""
    if evaluation.passed:
        return
    asset, check = evaluation.asset_key.to_user_string(), evaluation.check_name
    outcome.warnings.append(f"{asset}: check {check} did not pass")
    if evaluation.severity == dg.AssetCheckSeverity.ERROR and evaluation.blocking:
        outcome.failures[asset] = f"the blocking check {check} did not pass: {evaluation.description or 'see the UI'}"
        outcome.blocked_checks.add(f"{asset}_{check}")


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
