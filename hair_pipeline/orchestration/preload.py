"""What the fork server of the local executor loads once, so that a step starts in a fraction of a second.

Belongs here: imports that nearly every step needs, none of which starts threads or touches a GPU. Does not belong
here: torch, which would have to be loaded before the first step even where nothing trains.
"""

from __future__ import annotations

import cv2  # noqa: F401
import pandas  # noqa: F401
import pyarrow.parquet  # noqa: F401
from dagster._core.definitions.reconstruct import ReconstructableRepository

from hair_pipeline.orchestration.launch import DEFINITIONS_MODULE

# Dagster keeps the repository it builds from a pointer; forked steps find it there instead of building it again.
ReconstructableRepository.for_module(DEFINITIONS_MODULE, "defs").get_definition()
