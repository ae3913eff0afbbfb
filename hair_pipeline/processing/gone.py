"""Outputs of shards that the catalog has no more, since their people left the inputs or joined another shard.

Belongs here: finding them and removing them. Does not belong here: when that is safe (`orchestration.leftovers`), and
what is read in the meantime (`inputs.members`).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import Path

from hair_pipeline.files import remove
from hair_pipeline.processing.own_files import images_in, leftovers_in
from hair_pipeline.settings import Settings

ASSETS = ("identity_embeddings", "bald_images", "hair_only_images", "hair_patches", "style_vectors", "latents")
_OUTPUT = re.compile(
    r"(?P<shard>shard_\d{4,})(\.json|\.parquet|\.safetensors|(\.preview|\.steps)?\.jpg)?"
    r"|\.(?P<hidden>shard_\d{4,})\.(\w+\.journal|[\w.]+\.tmp(\.\w+)?)"
)
"""Table, tensors, manifest, pictures and folder of images; journals and temporary files."""


def gone_outputs(settings: Settings, shards: Collection[str]) -> dict[tuple[str, str], list[Path]]:
    """Asset and shard -> what lies on the disk of it, for every shard but those of the catalog; manifests first."""
    found: dict[tuple[str, str], list[Path]] = {}
    for asset in ASSETS:
        folder = settings.processed / asset
        for path in sorted(folder.iterdir(), key=lambda path: path.suffix != ".json") if folder.is_dir() else ():
            named = _OUTPUT.fullmatch(path.name)
            shard = named and (named["shard"] or named["hidden"])
            if shard and shard not in shards and _is_ours(path):
                found.setdefault((asset, shard), []).append(path)
    return found


def remove_outputs(paths: Iterable[Path]) -> None:
    """Delete outputs, the manifest first: what a kill leaves is made again should the shard come back.

    Raises:
        PipelineError: one cannot be deleted.
    """
    for path in paths:
        if not _is_images(path):
            remove(path)
            continue
        for own in (*images_in(path), *leftovers_in(path)):
            remove(own)
        if not any(path.iterdir()):
            remove(path)


def _is_images(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".")


def _is_ours(path: Path) -> bool:
    """Not a folder that holds nothing but what others left there."""
    return not _is_images(path) or bool(images_in(path) or leftovers_in(path)) or not any(path.iterdir())
