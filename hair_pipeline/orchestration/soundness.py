"""Which assets nothing may be built on: their last blocking check failed, or was never brought to an end.

Dagster stops only the run in which a blocking check fails; whatever starts another run has to look here.

Belongs here: reading what the checks said. Does not belong here: the checks (`checks.py`).
"""

from __future__ import annotations

import dagster as dg
from dagster._core.definitions.assets.graph.asset_graph import AssetGraph
from dagster._core.storage.asset_check_execution_record import (
    AssetCheckExecutionRecord,
    AssetCheckExecutionRecordStatus,
)

_PLANNED = AssetCheckExecutionRecordStatus.PLANNED
_EVALUATED = {AssetCheckExecutionRecordStatus.SUCCEEDED, AssetCheckExecutionRecordStatus.FAILED}


def unsound(instance: dg.DagsterInstance, graph: AssetGraph) -> dict[dg.AssetKey, str]:
    """Assets that nothing may be built on, with the reason."""
    keys = [key for key in graph.asset_check_keys if graph.get(key).blocking]
    records = instance.event_log_storage.get_latest_asset_check_execution_by_key(keys)
    faults = {key.asset_key: _fault(instance, record) for key, record in records.items()}
    return {asset: fault for asset, fault in faults.items() if fault is not None}


def _fault(instance: dg.DagsterInstance, record: AssetCheckExecutionRecord) -> str | None:
    if record.status == _PLANNED:
        run = instance.get_run_by_id(record.run_id)
        if run is not None and not run.is_finished:
            return None
        made = instance.get_latest_materialization_event(record.key.asset_key)
        if made is not None and made.run_id == record.run_id:
            return f"the blocking check {record.key.name} did not come to an end"
        earlier = instance.event_log_storage.get_asset_check_execution_history(record.key, 1, status=_EVALUATED)
        return _fault(instance, earlier[0]) if earlier else None
    evaluation = record.evaluation
    if evaluation is None or evaluation.passed or evaluation.severity != dg.AssetCheckSeverity.ERROR:
        return None
    return failed_check(record.key.name, evaluation.description)


def failed_check(name: str, description: str | None) -> str:
    """What is said of an asset whose blocking check failed."""
    return f"the blocking check {name} did not pass: {description or 'see the UI'}"
