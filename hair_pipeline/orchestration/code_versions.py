"""Code versions that change with the profile: an asset becomes stale when the values it depends on change.

Belongs here: which profile values concern which asset. Does not belong here: the code's own version, which stands at
the asset.
"""

from __future__ import annotations

from collections.abc import Mapping

import dagster as dg
from pydantic import BaseModel

from hair_pipeline.files import hash_bytes
from hair_pipeline.profile import STAGE_MODELS, Profile
from hair_pipeline.training.runs import WITHOUT_EFFECT

PICTURES = tuple(f"evaluation.{name}" for name in ("steps", "scheduler", "guidance_scale", "max_images", "seed"))
"""What decides which pictures are judged; not how many are drawn at once."""

CONCERNS: Mapping[str, tuple[str, ...]] = {
    "catalog": ("inputs", "processing.size"),
    "identity_embeddings": ("inputs",),
    "bald_images": ("processing.size", "processing.image_format", "processing.bald"),
    "hair_only_images": ("processing.size", "processing.image_format", "processing.hair_only"),
    "hair_patches": ("processing.size", "processing.image_format", "processing.patches"),
    "latents": (
        "processing",
        "models.base",
        "stage1.resolution",
        "stage1.patch_resolution",
        "stage2.resolution",
        "stage2.mask_variants",
    ),
    "style_vectors": ("style_vectors", "models.clip"),
    "patch_encoder": ("patch_encoder",),
    "style_classifier": ("classifier", "models.base"),
    "stage1_checkpoint": (*STAGE_MODELS, "stage1"),
    "stage2_checkpoint": (*STAGE_MODELS, "models.recogniser", "stage2"),
    "eval_report": ("models", *PICTURES, "evaluation.grid_rows", "evaluation.leakage_images"),
    "ab_verdict": (
        *("models", *PICTURES, "ab_test"),
        *("inputs.min_face_confidence", "inputs.max_identity_yaw"),  # customers' faces are in no catalog
    ),
    "exported_weights": (),
    "production_registry": ("release",),
}
"""Asset -> profile values (dotted) that change what it writes."""


def _value(profile: Profile, dotted: str) -> object:
    """A value, or the plain values of a section but for those that change no result."""
    value: object = profile
    for name in dotted.split("."):
        value = getattr(value, name)
    return value.model_dump(exclude=set(WITHOUT_EFFECT)) if isinstance(value, BaseModel) else value


def with_profile(spec: dg.AssetSpec, profile: Profile) -> dg.AssetSpec:
    """The spec with a code version made of the code's own version and a hash of the values that concern it."""
    dotted = CONCERNS.get(spec.key.to_user_string())
    if dotted is None or spec.code_version is None:
        return spec
    values = hash_bytes(*(repr(_value(profile, name)) for name in dotted))
    return spec.replace_attributes(code_version=f"{spec.code_version}-{values[:8]}")
