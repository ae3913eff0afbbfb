"""Where a catalog came from, kept beside it: the embedded sample never takes the place of other inputs.

Inputs may move to another path at any time; what is refused is the sample alone, which unset variables mean.

Belongs here: that record, and the refusal. Does not belong here: what is in the inputs (`fingerprint`, `catalog`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hair_pipeline.errors import PipelineError
from hair_pipeline.files import read_json, write_json
from hair_pipeline.inputs.catalog import read_catalog
from hair_pipeline.settings import PREFIX, SAMPLE_ROOT, Settings

ROOTS = ("k_hairstyle_root", "training_face_root")


def record_origin(settings: Settings) -> None:
    """Note of which roots the catalog was made."""
    origin = {}
    for name in ROOTS:
        root: Path = getattr(settings, name)
        origin[name] = {"path": str(root), "sample": _is_sample(root)}
    write_json(_record(settings), origin)


def refuse_sample_in_place_of_others(settings: Settings) -> None:
    """Keep a catalog of other inputs from being made anew of the embedded sample.

    Raises:
        PipelineError: an input root is the sample's, and the training root's catalog was made of another.
    """
    path = _record(settings)
    for name in ROOTS:
        root: Path = getattr(settings, name)
        if not _is_sample(root):
            continue
        made_of = _made_of(name, settings)
        if made_of is not None and not made_of["sample"]:
            variable = PREFIX + name.upper()
            raise PipelineError(
                f"the inputs would be the embedded sample ({root}), and this training root holds what was made of "
                f"{made_of['path']}",
                file=settings.training_root,
                remedy=f"for your own inputs set {variable} and use `hair-pipeline run`; for the sample set "
                f"HAIR_PIPELINE_TRAINING_ROOT to another folder, or delete {path} and "
                f"{settings.catalog_path} if it may take their place here",
            )


def _made_of(name: str, settings: Settings) -> dict[str, Any] | None:
    """A root that the catalog was made of: path, and whether that is the sample. None where there is no catalog.

    Of a catalog without a record, the sample's photos must be here.
    """
    path = _record(settings)
    if path.exists():
        remedy = "delete it; the next catalog writes it again"
        origin = read_json(path, remedy=remedy)
        try:
            return {"path": origin[name]["path"], "sample": bool(origin[name]["sample"])}
        except (KeyError, TypeError) as error:
            raise PipelineError("says not of which inputs the catalog was made", file=path, remedy=remedy) from error
    if not settings.catalog_path.exists():
        return None
    rows = read_catalog(settings.catalog_path, columns=["accepted", "image_path"])
    photos = rows.image_path[rows.accepted]
    return {"path": "other inputs", "sample": photos.empty or (settings.k_hairstyle_root / photos.iloc[0]).exists()}


def _record(settings: Settings) -> Path:
    return settings.processed / "inputs.json"


def _is_sample(root: Path) -> bool:
    return root.resolve().is_relative_to(SAMPLE_ROOT.resolve())
