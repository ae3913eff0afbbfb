"""Style vectors of one shard: what stands for a hairstyle in the UNet's cross-attention.

Belongs here: embedding by the frozen patch encoder, the style classifier or CLIP. Does not belong here: their training
and the projection to tokens (`models`).
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from hair_pipeline.errors import PipelineError
from hair_pipeline.files import UnreadableImage, atomic_path, decode_image, hash_bytes, hash_file, read_image
from hair_pipeline.inputs.catalog import read_catalog
from hair_pipeline.models.patch_encoder import PatchEncoder, pool_style
from hair_pipeline.models.style_classifier import StyleClassifier
from hair_pipeline.processing.report import ShardReport, reusable, save
from hair_pipeline.profile import Profile
from hair_pipeline.settings import Settings
from hair_pipeline.training.fingerprints import asset_versions, weights_version
from hair_pipeline.training.images import find_image, on_background, shrink, to_tensor
from hair_pipeline.training.patches import patch_tensor
from hair_pipeline.training.runs import current
from hair_pipeline.training.trainers.patch_encoder import FILE as PATCH_ENCODER_FILE

log = logging.getLogger(__name__)

STYLE_ASSET = "style_vectors"
_BATCH = 64


def embed_shard(shard: str, settings: Settings, profile: Profile) -> ShardReport:
    """Write `processed/style_vectors/<shard>.parquet`; an unchanged shard is not embedded again.

    Raises:
        PipelineError: the network of the chosen source is missing, or the result cannot be written.
    """
    folder = settings.processed / STYLE_ASSET
    manifest = folder / f"{shard}.json"
    catalog = read_catalog(settings.catalog_path)
    rows = catalog[catalog.accepted & (catalog.shard == shard)].sort_values("image_id")
    source = open_source(settings, profile)
    fingerprint = hash_bytes(
        source.version,
        asset_versions(settings, source.asset, [shard]),
        rows[["image_id", "source"]].to_csv(index=False),
    )
    done = reusable(manifest, fingerprint)
    if done is not None:
        return done

    vectors, counts, failed = source.embed(shard, rows)
    found = [image_id for image_id in rows.image_id if image_id in vectors]
    people = dict(zip(rows.image_id, rows.source, strict=True))
    matrix = torch.stack([vectors[i] for i in found]).numpy() if found else np.zeros((0, source.dim), np.float32)
    table = pa.table(
        {
            "image_id": pa.array(found, pa.string()),
            "person": pa.array([people[i] for i in found], pa.string()),
            "source": pa.array([source.name] * len(found), pa.string()),
            "patches": pa.array([counts.get(i, 0) for i in found], pa.int32()),
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(matrix.ravel(), pa.float32()), source.dim),
        }
    )
    path = folder / f"{shard}.parquet"
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary)
    missing = len(rows) - len(found) - len(failed)
    report = ShardReport(
        asset=STYLE_ASSET,
        shard=shard,
        fingerprint=fingerprint,
        written=len(found),
        skipped={source.missing: missing} if missing > 0 else {},
        failed=failed,
        data_version=hash_file(path)[:16],
        numbers={"dim": float(source.dim)} | _spread_numbers(matrix, [people[i] for i in found]),
        preview=None,
    )
    save(report, manifest)
    return report


def _spread_numbers(matrix: np.ndarray, people: list[str]) -> dict[str, float]:
    """Mean cosine between views of one person and between people: how much the vectors tell apart."""
    if len(matrix) < 2:
        return {}
    unit = matrix / np.linalg.norm(matrix, axis=1, keepdims=True).clip(1e-8)
    cosine = unit @ unit.T
    names = np.array(people)
    same = (names[:, None] == names) & ~np.eye(len(names), dtype=bool)
    other = names[:, None] != names
    numbers = {}
    if same.any():
        numbers["cosine_same_person"] = float(cosine[same].mean())
    if other.any():
        numbers["cosine_other_people"] = float(cosine[other].mean())
    return numbers


class StyleSource(ABC):
    """A frozen network that gives a vector per image.

    Attributes:
        name: value of `style_vectors.source`.
        asset: the processed asset it reads.
        version: content version of its weights.
        dim: length of its vectors.
        missing: reason for images without a vector.
    """

    name: str
    asset: str
    version: str
    dim: int
    missing: str

    @abstractmethod
    def embed(self, shard: str, rows: pd.DataFrame) -> tuple[dict[str, Tensor], dict[str, int], dict[str, str]]:
        """Vectors by image id, number of patches by image id, and what failed by image id."""


def open_source(settings: Settings, profile: Profile) -> StyleSource:
    """The source a profile chooses.

    Raises:
        PipelineError: its network is not there.
    """
    match profile.style_vectors.source:
        case "patch_encoder":
            return PatchEncoderSource(settings)
        case "classifier":
            return ClassifierSource(settings)
        case "combined":
            return CombinedSource(settings)
        case "clip":
            return ClipSource(settings, profile)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class PatchEncoderSource(StyleSource):
    """The mean direction of an image's patch vectors."""

    name = "patch_encoder"
    asset = "hair_patches"
    missing = "no_patches"

    def __init__(self, settings: Settings) -> None:
        result = current("patch-encoder", settings)
        path = result.final_dir / PATCH_ENCODER_FILE
        self.folder = settings.processed / "hair_patches"
        self.version = weights_version(path)
        self.encoder = PatchEncoder.load(path).to(_device())
        self.dim = self.encoder.embedding_dim

    @torch.no_grad()
    def embed(self, shard: str, rows: pd.DataFrame) -> tuple[dict[str, Tensor], dict[str, int], dict[str, str]]:
        del rows
        path = self.folder / f"{shard}.parquet"
        if not path.exists():
            raise PipelineError(
                "the shard's patches are missing", file=path, remedy="materialise the asset hair_patches"
            )
        table = pq.read_table(path, columns=["image_id", "image"]).to_pandas()
        ids: list[str] = []
        parts: list[Tensor] = []
        failed: dict[str, str] = {}
        side = self.encoder.config["input_size"]
        starts = range(0, len(table), _BATCH)
        for start in tqdm(starts, desc=f"style vectors {shard}", unit="batch", mininterval=1.0):
            images = []
            for row in table.iloc[start : start + _BATCH].itertuples():
                try:
                    images.append(patch_tensor(shrink(decode_image(row.image), side)))
                    ids.append(row.image_id)
                except UnreadableImage as error:
                    failed[row.image_id] = str(error)
            if images:
                parts.append(self.encoder(torch.stack(images).to(_device())).cpu())
        if not parts:
            return {}, {}, failed
        stacked = torch.cat(parts)
        places: dict[str, list[int]] = {}
        for place, image_id in enumerate(ids):
            places.setdefault(image_id, []).append(place)
        vectors = {image_id: pool_style(stacked[where]) for image_id, where in places.items()}
        failed = {image_id: reason for image_id, reason in failed.items() if image_id not in vectors}
        return vectors, {image_id: len(where) for image_id, where in places.items()}, failed


class _HairOnlySource(StyleSource):
    """A network on whole hair-only images."""

    asset = "hair_only_images"
    missing = "no_hair_only_image"
    side = 256

    def __init__(self, settings: Settings) -> None:
        self.folder = settings.processed / "hair_only_images"

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) in [-1, 1] -> (B, dim)."""

    @torch.no_grad()
    def embed(self, shard: str, rows: pd.DataFrame) -> tuple[dict[str, Tensor], dict[str, int], dict[str, str]]:
        vectors: dict[str, Tensor] = {}
        failed: dict[str, str] = {}
        for image_id in tqdm(list(rows.image_id), desc=f"style vectors {shard}", unit="image", mininterval=1.0):
            path = find_image(self.folder / shard, image_id)
            if path is None:
                continue
            try:
                image = shrink(on_background(read_image(path, alpha=True)), self.side)
            except UnreadableImage as error:
                failed[image_id] = str(error)
                continue
            vectors[image_id] = F.normalize(self.features(to_tensor(image)[None].to(_device())), dim=-1)[0].cpu()
        return vectors, {}, failed


class ClassifierSource(_HairOnlySource):
    """Features of the style classifier (the one of the loss)."""

    name = "classifier"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        path = current("style-classifier", settings).final_dir / "loss"
        self.classifier = StyleClassifier.load(path).to(_device())
        self.version = weights_version(path.with_suffix(".safetensors"))
        self.dim = self.classifier.feature_dim
        self.side = int(self.classifier.config["resolution"])

    def features(self, images: Tensor) -> Tensor:
        return self.classifier.features(images)


def combine(texture: Tensor | None, whole: Tensor, texture_dim: int) -> Tensor:
    """A unit vector of both halves (D1,) and (D2,); without a patch the texture's half is zero."""
    texture = whole.new_zeros(texture_dim) if texture is None else F.normalize(texture, dim=-1)
    return F.normalize(torch.cat([texture, F.normalize(whole, dim=-1)]), dim=-1)


class CombinedSource(StyleSource):
    """The patch encoder's vector beside the classifier's: texture, and what only the whole shows (bangs, outline)."""

    name = "combined"
    asset = "hair_only_images"
    missing = "no_hair_only_image"

    def __init__(self, settings: Settings) -> None:
        self.texture = PatchEncoderSource(settings)
        self.whole = ClassifierSource(settings)
        patches = asset_versions(settings, self.texture.asset)
        self.version = hash_bytes(self.texture.version, self.whole.version, patches)
        self.dim = self.texture.dim + self.whole.dim

    def embed(self, shard: str, rows: pd.DataFrame) -> tuple[dict[str, Tensor], dict[str, int], dict[str, str]]:
        texture, counts, failed = self.texture.embed(shard, rows)
        whole, _, more = self.whole.embed(shard, rows)
        vectors = {
            image_id: combine(texture.get(image_id), vector, self.texture.dim) for image_id, vector in whole.items()
        }
        return vectors, counts, {name: why for name, why in (failed | more).items() if name not in vectors}


class ClipSource(_HairOnlySource):
    """Image embeddings of a local CLIP (transformers folder)."""

    name = "clip"
    _MEAN = (0.48145466, 0.4578275, 0.40821073)
    _STD = (0.26862954, 0.26130258, 0.27577711)

    def __init__(self, settings: Settings, profile: Profile) -> None:
        super().__init__(settings)
        name = profile.models.clip
        folder = settings.models_dir / name if name else None
        if folder is None or not (folder / "config.json").is_file():
            raise PipelineError(
                "style_vectors.source is clip, and there is no CLIP folder",
                file=folder or settings.models_dir,
                remedy="set models.clip to a folder with config.json and model.safetensors (such as "
                "openai/clip-vit-base-patch32, saved locally) below HAIR_PIPELINE_MODELS_DIR",
            )
        from transformers import CLIPVisionModelWithProjection

        try:
            self.model = CLIPVisionModelWithProjection.from_pretrained(
                folder, local_files_only=True, use_safetensors=True
            )
        except (OSError, ValueError) as error:
            raise PipelineError(f"CLIP cannot be loaded ({error})", file=folder, remedy="fetch it again") from error
        self.model.to(_device()).eval()
        self.version = weights_version(folder)
        self.dim = int(self.model.config.projection_dim)
        self.side = int(self.model.config.image_size)

    def features(self, images: Tensor) -> Tensor:
        mean = images.new_tensor(self._MEAN)[None, :, None, None]
        std = images.new_tensor(self._STD)[None, :, None, None]
        embeddings: Tensor = self.model(((images + 1) / 2 - mean) / std).image_embeds
        return embeddings
