"""What makes a report or a verdict stale: content hashes of everything that decides its numbers.

Belongs here: one text per thing that pictures are made or measured with. Does not belong here: the photos, whose
content `ab_test` and `report` know.
"""

from __future__ import annotations

from hair_pipeline.evaluation.contenders import Contender, ModelContender
from hair_pipeline.evaluation.judges import judges_version
from hair_pipeline.evaluation.schema import SCHEMA
from hair_pipeline.evaluation.styles import styles_version
from hair_pipeline.files import hash_bytes
from hair_pipeline.profile import Profile
from hair_pipeline.settings import Settings
from hair_pipeline.training.fingerprints import asset_versions, base_version, weights_version

READING = {"min_face_confidence", "max_identity_yaw"}
"""Values of `inputs` by which a photo's face and identity are read; the others decide which photos there are."""

WITHOUT_EFFECT = {"batch_size"}
"""Values of `evaluation` that change no picture: memory that was short is no reason to draw everything again."""

REPORT_ONLY = {"grid_rows", "leakage_images"}
"""Values of `evaluation` that no A/B test reads."""


def measured_with(settings: Settings, profile: Profile) -> str:
    """Changes whenever photos may be read, or pictures asked for and measured, otherwise: settings and judges."""
    return hash_bytes(
        str(SCHEMA),
        judges_version(settings, profile),
        profile.evaluation.model_dump_json(exclude=WITHOUT_EFFECT | REPORT_ONLY),
        profile.processing.model_dump_json(),
        profile.inputs.model_dump_json(include=READING),
    )


def current_model(version: str, settings: Settings, profile: Profile) -> str:
    """Changes whenever Stage 2's adapters of this version may draw otherwise: base, style encoder, size."""
    base, styles = base_version(settings, profile), styles_version(settings, profile)
    return hash_bytes(version, base, styles, str(profile.stage2.resolution))


def drawn_by(contender: Contender, settings: Settings, profile: Profile) -> str:
    """Changes whenever the contender's pictures may."""
    if not isinstance(contender, ModelContender):
        return contender.version
    if contender.folder is not None:
        return hash_bytes(contender.version, weights_version(contender.folder))
    if contender.styles is None:
        return hash_bytes(contender.version, str(contender.resolution))
    return current_model(contender.version, settings, profile)


def held_out_vectors(settings: Settings) -> str:
    """Changes whenever a processed photo's style vector or identity does."""
    return hash_bytes(*(asset_versions(settings, asset) for asset in ("style_vectors", "identity_embeddings")))
