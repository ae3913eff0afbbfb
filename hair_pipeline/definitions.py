"""The code location that `workspace.yaml` names. Loading it imports neither torch, diffusers nor ray.

Belongs here: `defs`. Does not belong here: anything else; see `orchestration.build`.
"""

from __future__ import annotations

from hair_pipeline.orchestration.build import build_defs

defs = build_defs()
