"""hair-pipeline: from K-Hairstyle photos and training_face outputs to a released hair inpainting model.

The floors, top to bottom, each importing only those below it: `orchestration` (Dagster), `release`,
`evaluation`, `training`, `losses`, `models` (torch), `processing`, `inputs`, `sample` (no torch), and the
plain foundations `settings`, `profile`, `vocabulary`, `files`, `errors`.
"""

__version__ = "0.1.0"
