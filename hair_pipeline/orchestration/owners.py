"""Whom to ask about an asset: an owner per group, shown in the UI and named in alerts.

Belongs here: the owners. Does not belong here: who may do what; Dagster itself has no users.
"""

from __future__ import annotations

from collections.abc import Mapping

import dagster as dg

OWNERS: Mapping[str, str] = {
    "inputs": "team:data-engineering",
    "processed": "team:data-engineering",
    "base": "team:ml-engineering",
    "texture": "team:ml-engineering",
    "training": "team:ml-engineering",
    "evaluation": "team:ml-engineering",
    "release": "team:operations",
}


def with_owner(spec: dg.AssetSpec) -> dg.AssetSpec:
    """The spec with its group's owner."""
    return spec.replace_attributes(owners=[OWNERS[str(spec.group_name)]])
