"""The code location that `workspace.yaml` names. Loading it imports neither torch, diffusers nor ray."""

from __future__ import annotations

from hair_pipeline.orchestration.build import build_defs

defs = build_defs()
