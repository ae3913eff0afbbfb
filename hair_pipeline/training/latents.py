"""Caching VAE latents of one shard: photos with bald variants, hair-only images and patches.

Belongs here: what is encoded and how it is laid out on disk. Does not belong here: reading it (`latent_store`).

`processed/latents/<shard>.safetensors` holds float16 latents and uint8 masks, rows by kind; `<shard>.parquet` tells
whose row is whose. Layout (n rows of the kind, V mask variants, R the pixel side, h = R / VAE factor):
    photo.latents (n, C, h, h); photo.bald (n, V, C, h, h), variant 0 is the bald image asset;
    photo.repaint (n, V, h, h) of 0 and 1; photo.hair, photo.face (n, h, h) covered share x 255;
    photo.hair_pixels (n, R * R / 8) packed bits; photo.box (n, 4) float32, face box in pixels at R; photo.side R;
    hair_only.latents, .hair, .hair_pixels likewise; hair_only.empty (C, h, h), the latents of plain mid-gray;
    patch.latents (n, C, p, p); patch.empty (C, p, p); patch.side.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from hair_pipeline.files import (
    UnreadableImage,
    atomic_path,
    decode_image,
    find_image,
    hash_bytes,
    hash_file,
    read_image,
)
from hair_pipeline.inputs.catalog import read_catalog
from hair_pipeline.inputs.samples import Sample, load_sample
from hair_pipeline.models.base import decode, encode, load_base, refuse_uneven_sides
from hair_pipeline.models.gpus import best_device
from hair_pipeline.models.masks import resize_mask
from hair_pipeline.models.weights import base_reference
from hair_pipeline.processing.bald import make_bald, repaint_mask, vary_mask
from hair_pipeline.processing.report import ShardReport, reusable, save
from hair_pipeline.profile import Profile
from hair_pipeline.settings import Settings
from hair_pipeline.training.fingerprints import asset_versions, base_version
from hair_pipeline.training.images import BACKGROUND, on_background, shrink, to_image, to_tensor
from hair_pipeline.training.pictures import picture_grid, write_picture

log = logging.getLogger(__name__)

LATENT_ASSET = "latents"
SIDE_OF_KIND = {"photo": "stage2.resolution", "hair_only": "stage1.resolution", "patch": "stage1.patch_resolution"}
"""Kind of latents -> the value of the profile that is its pixel side, by its name in `sides_of_latents`."""
_BATCH = 16
_LAYOUT = "3"


def encode_shard(shard: str, settings: Settings, profile: Profile) -> ShardReport:
    """Encode one shard; an unchanged shard is not encoded again.

    Raises:
        PipelineError: the base model or the catalog is missing, its VAE cannot take a resolution, or the result cannot
            be written.
    """
    folder = settings.processed / LATENT_ASSET
    manifest = folder / f"{shard}.json"
    fingerprint = _fingerprint(shard, settings, profile, base_version(settings, profile, "vae"))
    done = reusable(manifest, fingerprint)
    if done is not None:
        return done

    vae = load_base(base_reference(settings, profile), settings.models_dir).vae
    refuse_uneven_sides(vae, sides_of_latents(profile))
    device = best_device()
    encoder = _Encoder(vae.to(device).requires_grad_(False))
    rows = read_catalog(settings.catalog_path, shard)
    index: list[dict[str, Any]] = []
    skipped: dict[str, int] = {}
    failed: dict[str, str] = {}
    tensors: dict[str, Tensor] = {}
    photos = _Rows(profile.stage2.resolution)
    hair_only = _Rows(profile.stage1.resolution)
    items: list[Any] = list(rows.itertuples())
    for row in tqdm(items, desc=f"latents {shard}", unit="image", mininterval=1.0):
        try:
            if row.stage2:
                photos.add(_photo(row, settings, profile, encoder))
                index.append(_entry(row, "photo", len(photos) - 1))
            else:
                skipped[str(row.stage2_reason)] = skipped.get(str(row.stage2_reason), 0) + 1
            hair_only.add(_hair_only(row, shard, settings, profile.stage1.resolution, encoder))
            index.append(_entry(row, "hair_only", len(hair_only) - 1))
        except UnreadableImage as error:
            failed[row.image_id] = str(error)
    tensors |= photos.stacked("photo") | hair_only.stacked("hair_only")
    tensors["photo.side"] = torch.tensor(photos.side)
    tensors["hair_only.side"] = torch.tensor(hair_only.side)
    tensors["hair_only.empty"] = encoder.empty(hair_only.side)
    tensors |= _patches(shard, settings, profile, encoder, rows, index, failed)

    data_path = folder / f"{shard}.safetensors"
    with atomic_path(data_path) as path:
        save_file(tensors, path)
    table = pd.DataFrame(index, columns=["image_id", "person", "kind", "row", "split", "stage2"])
    with atomic_path(folder / f"{shard}.parquet") as path:
        table.to_parquet(path, index=False)
    counts = table.kind.value_counts()
    report = ShardReport(
        asset=LATENT_ASSET,
        shard=shard,
        fingerprint=fingerprint,
        written=len(table),
        skipped=skipped,
        failed=failed,
        data_version=hash_bytes(hash_file(data_path), hash_file(folder / f"{shard}.parquet"))[:16],
        numbers={kind: float(counts.get(kind, 0)) for kind in ("photo", "hair_only", "patch")}
        | {"megabytes": data_path.stat().st_size / 1e6, "latent_std": latent_std(tensors)},
        preview=_preview(tensors, table, encoder, folder / f"{shard}.jpg"),
    )
    save(report, manifest)
    return report


def sides_of_latents(profile: Profile) -> dict[str, int]:
    """The profile's values that are sides of images to encode, pixels."""
    return {
        "stage1.resolution": profile.stage1.resolution,
        "stage1.patch_resolution": min(profile.stage1.patch_resolution, profile.stage1.resolution),
        "stage2.resolution": profile.stage2.resolution,
    }


def _fingerprint(shard: str, settings: Settings, profile: Profile, vae: str) -> str:
    columns = ["image_id", "source", "split", "stage2", "content_hash"]
    facts = read_catalog(settings.catalog_path, shard, columns).sort_values("image_id")[columns].to_csv(index=False)
    assets = [asset_versions(settings, name, [shard]) for name in ("bald_images", "hair_only_images", "hair_patches")]
    stages = profile.stage1, profile.stage2
    numbers = (*(stage.resolution for stage in stages), stages[0].patch_resolution, stages[1].mask_variants, _LAYOUT)
    return hash_bytes(facts, *assets, vae, repr(numbers), profile.processing.model_dump_json())


def _entry(row: Any, kind: str, number: int) -> dict[str, Any]:
    return {
        "image_id": row.image_id,
        "person": row.source,
        "kind": kind,
        "row": number,
        "split": row.split,
        "stage2": bool(row.stage2),
    }


class _Rows:
    """Rows of one kind, collected and stacked."""

    def __init__(self, side: int) -> None:
        self.side = side
        self._rows: list[dict[str, Tensor]] = []

    def add(self, row: dict[str, Tensor]) -> None:
        self._rows.append(row)

    def __len__(self) -> int:
        return len(self._rows)

    def stacked(self, kind: str) -> dict[str, Tensor]:
        if not self._rows:
            return {}
        return {f"{kind}.{name}": torch.stack([row[name] for row in self._rows]) for name in self._rows[0]}


class _Encoder:
    """The VAE, from RGB images to float16 latents on the CPU."""

    def __init__(self, vae: AutoencoderKL) -> None:
        self.vae = vae
        self.device = next(vae.parameters()).device

    @torch.no_grad()
    def __call__(self, images: Iterable[np.ndarray]) -> Tensor:
        """(H, W, 3) uint8 each -> (n, C, h, w) float16."""
        batch = torch.stack([to_tensor(image) for image in images]).to(self.device)
        latents: Tensor = encode(self.vae, batch)
        return latents.to(torch.float16).cpu().contiguous()  # attention in a VAE leaves them channels-last

    @torch.no_grad()
    def decode(self, latents: Tensor) -> list[np.ndarray]:
        """(n, C, h, w) -> (H, W, 3) uint8 each."""
        return [to_image(image) for image in decode(self.vae, latents.float().to(self.device)).cpu()]

    def empty(self, side: int) -> Tensor:
        return self([np.full((side, side, 3), BACKGROUND, np.uint8)])[0]


def latent_std(tensors: dict[str, Tensor]) -> float:
    """Standard deviation of the hair-only latents (about 1 when the VAE's scaling factor is right), 0 without any."""
    return float(tensors["hair_only.latents"].float().std()) if "hair_only.latents" in tensors else 0.0


def _photo(row: Any, settings: Settings, profile: Profile, encoder: _Encoder) -> dict[str, Tensor]:
    size, side = profile.processing.size, profile.stage2.resolution
    sample = load_sample(row, settings, size)
    balds, repaints = _bald_variants(sample, row.shard, settings, profile)
    latents = encoder([shrink(image, side) for image in (sample.image, *balds)])
    cells = latents.shape[-2:]
    repaint = torch.cat([resize_mask(torch.from_numpy(mask)[None, None], cells, "any")[0] for mask in repaints])
    box = torch.zeros(4) if sample.box is None else torch.from_numpy(np.asarray(sample.box, np.float32)) * (side / size)
    return {
        "latents": latents[0],
        "bald": latents[1:],
        "repaint": repaint.to(torch.uint8),
        "hair": _share(sample.hair_mask, cells),
        "face": _share(sample.face_mask, cells),
        "hair_pixels": _packed(sample.hair_mask, side),
        "box": box.float(),
    }


def _bald_variants(
    sample: Sample, shard: str, settings: Settings, profile: Profile
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Bald images and repaint masks: the asset's, then the mask grown at random, so that it tells no style.

    The random ones are made at the training resolution; each list's pictures may differ in size.
    """
    config, side = profile.processing.bald, profile.stage2.resolution
    stored = find_image(settings.processed / "bald_images" / shard, sample.image_id)
    if stored is None:
        raise UnreadableImage("its bald image is missing")
    balds = [read_image(stored)]
    repaints = [repaint_mask(sample.hair_mask, sample.face_mask, config, box=sample.box)]
    image = shrink(sample.image, side)
    hair, face = (shrink(mask.astype(np.float32), side) >= 0.5 for mask in (sample.hair_mask, sample.face_mask))
    scale = side / sample.image.shape[0]
    box = None if sample.box is None else sample.box * scale
    window = None if sample.window is None else _within(sample.window, scale)
    for variant in range(1, profile.stage2.mask_variants):
        varied = vary_mask(hair, face, int(hash_bytes(sample.image_id, str(variant))[:8], 16))
        bald, repaint = make_bald(image, varied, face, config, box=box, window=window)
        balds.append(bald)
        repaints.append(repaint)
    return balds, repaints


def _within(window: tuple[slice, slice], scale: float) -> tuple[slice, slice]:
    """The pixels of a smaller square that lie wholly inside a window."""
    rows, columns = (slice(math.ceil(part.start * scale), int(part.stop * scale)) for part in window)
    return rows, columns


def _hair_only(row: Any, shard: str, settings: Settings, side: int, encoder: _Encoder) -> dict[str, Tensor]:
    path = find_image(settings.processed / "hair_only_images" / shard, row.image_id)
    if path is None:
        raise UnreadableImage("its hair-only image is missing")
    rgba = read_image(path, alpha=True)
    latents = encoder([shrink(on_background(rgba), side)])[0]
    hair = rgba[..., 3] > 127
    return {"latents": latents, "hair": _share(hair, latents.shape[-2:]), "hair_pixels": _packed(hair, side)}


def _patches(
    shard: str,
    settings: Settings,
    profile: Profile,
    encoder: _Encoder,
    rows: pd.DataFrame,
    index: list[dict[str, Any]],
    failed: dict[str, str],
) -> dict[str, Tensor]:
    """Latents of the shard's largest patches, all brought to one side."""
    path = settings.processed / "hair_patches" / f"{shard}.parquet"
    side = min(profile.stage1.patch_resolution, profile.stage1.resolution)
    result = {"patch.side": torch.tensor(side), "patch.empty": encoder.empty(side)}
    if not path.exists():
        return result
    table = pq.read_table(path, columns=["image_id", "size", "image"]).to_pandas()
    if table.empty:
        return result
    table = table[table["size"] == table.groupby("image_id")["size"].transform("max")]
    by_id = {row.image_id: row for row in rows.itertuples()}
    latents: list[Tensor] = []
    chunk: list[np.ndarray] = []
    for image_id, data in tqdm(
        list(zip(table["image_id"], table["image"], strict=True)),
        desc=f"patch latents {shard}",
        unit="patch",
        mininterval=1.0,
    ):
        if image_id not in by_id:
            continue
        try:
            chunk.append(shrink(decode_image(data), side))
        except UnreadableImage as error:
            failed[f"{image_id} (patch)"] = str(error)
            continue
        index.append(_entry(by_id[image_id], "patch", sum(map(len, latents)) + len(chunk) - 1))
        if len(chunk) == _BATCH:
            latents.append(encoder(chunk))
            chunk = []
    if chunk:
        latents.append(encoder(chunk))
    return result | ({"patch.latents": torch.cat(latents)} if latents else {})


def _share(mask: np.ndarray, cells: torch.Size) -> Tensor:
    """Covered share of every latent cell, 0-255 uint8; 255 only where the cell is covered wholly."""
    share = resize_mask(torch.from_numpy(mask)[None, None], cells, "area")[0, 0]
    return (share * 255).floor().to(torch.uint8)


def _packed(mask: np.ndarray, side: int) -> Tensor:
    share = shrink(mask.astype(np.float32), side)
    return torch.from_numpy(np.packbits(share >= 0.5))


def _preview(tensors: dict[str, Tensor], table: pd.DataFrame, encoder: _Encoder, path: Path) -> Path | None:
    """Decoded latents of four images: photo, bald image and hair where there is a photo, else the hair alone."""
    kind = "photo" if "photo.latents" in tensors else "hair_only"
    chosen = table[table.kind == kind].iloc[:4]
    if chosen.empty:
        return None
    hair = table[table.kind == "hair_only"].set_index("image_id").row
    grid = []
    rows: list[Any] = list(chosen.itertuples())
    for row in rows:
        latents = [tensors["photo.latents"][row.row], tensors["photo.bald"][row.row, 0]] if kind == "photo" else []
        if row.image_id in hair.index:
            latents.append(tensors["hair_only.latents"][hair[row.image_id]])
        grid.append(encoder.decode(torch.stack(latents)))
    return write_picture(path, picture_grid(grid))
