"""What the fork server of the local executor loads once, so that a step starts in a fraction of a second.

Belongs here: imports that nearly every step needs, none of which starts threads or touches a GPU; and torch with all
that evaluation needs, which takes seconds, where `PRELOAD_TORCH` says that many steps are to come that need it; and
that steps end with their run (`orphans`). Does not belong here: the decision (`launch`).
"""

from __future__ import annotations

import importlib
import os

import cv2  # noqa: F401
import pandas  # noqa: F401
import pyarrow.parquet  # noqa: F401
from dagster._core.definitions.reconstruct import ReconstructableRepository

from hair_pipeline.orchestration.launch import DEFINITIONS_MODULE, PRELOAD_TORCH
from hair_pipeline.orchestration.orphans import end_steps_with_their_run

end_steps_with_their_run()

# Dagster keeps the repository it builds from a pointer; forked steps find it there instead of building it again.
ReconstructableRepository.for_module(DEFINITIONS_MODULE, "defs").get_definition()

if PRELOAD_TORCH in os.environ:
    importlib.import_module("hair_pipeline.evaluation.ab_test")
