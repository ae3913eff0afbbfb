"""Versions of what a training reads: processed assets, weights, the catalog.

Belongs here: content hashes of inputs. Does not belong here: a run's id (`runs`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from hair_pipeline.errors import PipelineError
from hair_pipeline.files import hash_bytes, hash_file
from hair_pipeline.inputs.catalog import read_catalog
from hair_pipeline.inputs.members import read_shards, shard_files
from hair_pipeline.models.weights import base_files, base_reference
from hair_pipeline.profile import Profile
from hair_pipeline.settings import Settings

_TRAINED_ON = (
    *("image_id", "source", "split", "content_hash"),
    *("curl_class", "has_bangs", "length", "color", "has_face", "mask_origin", "stage2"),
)
"""Of the catalog: which photos, and what is read from it about each. The latter also follows profile values, such as
`inputs.min_face_confidence`, with the same files."""


def asset_versions(settings: Settings, asset: str, shards: Sequence[str] | None = None) -> str:
    """The content version of a processed asset: a hash over its shards' data versions (from their manifests).

    Args:
        shards: these, of which one without manifest counts as absent; None takes those of the catalog's that have
            been made, which is what trainings read (`inputs.members`).
    """
    folder = settings.processed / asset
    if shards is None:
        shards = [path.stem for path in shard_files(folder, read_shards(settings.catalog_path), ".json")]
    versions = []
    for name in shards:
        try:
            versions.append(f"{name}={json.loads((folder / f'{name}.json').read_text())['data_version']}")
        except FileNotFoundError:
            versions.append(f"{name}=absent")
        except (ValueError, KeyError, TypeError) as error:
            raise PipelineError(
                f"damaged manifest ({error})", file=folder / f"{name}.json", remedy=f"materialise {asset} again"
            ) from error
    return hash_bytes(asset, *versions)[:16]


def catalog_version(settings: Settings) -> str:
    """The content version of the accepted images: their ids, files, people and split, labels and masks."""
    columns = list(_TRAINED_ON)
    catalog = read_catalog(settings.catalog_path, columns=["accepted", *columns])
    return hash_bytes(catalog[catalog.accepted].sort_values("image_id")[columns].to_csv(index=False))[:16]


def base_version(settings: Settings, profile: Profile, part: str | None = None) -> str:
    """Content version of what is loaded of the base a profile asks for, or of `part` of it; of one on the hub, its
    commit.

    Raises:
        PipelineError: there is no such base.
    """
    from hair_pipeline.models.base import hub_commit

    reference = base_reference(settings, profile)
    if isinstance(reference, str):
        return hub_commit(reference)
    loaded = [path for path in base_files(reference) if part in (None, path.parent.name)]
    return content_version(reference if part is None else reference / part, sorted(loaded))


def weights_version(path: Path) -> str:
    """Content version of a folder or file of weights.

    Raises:
        PipelineError: there is none.
    """
    if path.is_dir():
        return content_version(path, sorted(file for file in path.rglob("*") if file.is_file()))
    if path.is_file():
        return hash_file(path)[:16]
    raise PipelineError("there are no weights", file=path, remedy="put them there, or correct the profile")


def content_version(folder: Path, paths: Sequence[Path]) -> str:
    """Hash of files below a folder and of their names."""
    return hash_bytes(*(text for path in paths for text in (path.relative_to(folder).as_posix(), hash_file(path))))[:16]
