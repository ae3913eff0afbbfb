"""Style vectors of one shard: what stands for a hairstyle in the UNet's cross-attention.

Belongs here: embedding by the frozen patch encoder, the style classifier or CLIP. Does not belong here: their training
and the projection to tokens (`models`).
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from hair_pipeline.errors import PipelineError
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
from hair_pipeline.models.gpus import best_device
from hair_pipeline.models.patch_encoder import PATCH_ENCODER_FILE, PatchEncoder, pool_style
from hair_pipeline.models.style_classifier import StyleClassifier
from hair_pipeline.processing.palette import PALETTE_DIM, palette
from hair_pipeline.processing.patches import largest_window
from hair_pipeline.processing.report import ShardReport, reusable, save
from hair_pipeline.profile import PatchConfig, Profile
from hair_pipeline.settings import Settings
from hair_pipeline.training.data import SOURCE_VERSION
from hair_pipeline.training.fingerprints import asset_versions, content_version, weights_version
from hair_pipeline.training.images import on_background, shrink, to_tensor
from hair_pipeline.training.patches import encode_patches
from hair_pipeline.training.runs import current

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
    rows = read_catalog(settings.catalog_path, shard, ["image_id", "source"]).sort_values("image_id")
    source = open_source(settings, profile)
    fingerprint = hash_bytes(
        source.version,
        *(asset_versions(settings, name, [shard]) for name in source.assets),
        rows[["image_id", "source"]].to_csv(index=False),
    )
    done = reusable(manifest, fingerprint)
    if done is not None:
        return done

    embedded = source.embed(shard, rows)
    vectors = embedded.vectors
    found = [image_id for image_id in rows.image_id if image_id in vectors]
    people = dict(zip(rows.image_id, rows.source, strict=True))
    matrix = torch.stack([vectors[i] for i in found]).numpy() if found else np.zeros((0, source.dim), np.float32)
    table = pa.table(
        {
            "image_id": pa.array(found, pa.string()),
            "person": pa.array([people[i] for i in found], pa.string()),
            "source": pa.array([source.name] * len(found), pa.string()),
            "patches": pa.array([embedded.patches.get(i, 0) for i in found], pa.int32()),
            "window": pa.array([embedded.windows.get(i) for i in found], pa.int32()),
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(matrix.ravel(), pa.float32()), source.dim),
        }
    )
    path = folder / f"{shard}.parquet"
    with atomic_path(path) as temporary:
        pq.write_table(table.replace_schema_metadata({SOURCE_VERSION: source.version}), temporary)
    missing = len(rows) - len(found) - len(embedded.failed)
    report = ShardReport(
        asset=STYLE_ASSET,
        shard=shard,
        fingerprint=fingerprint,
        written=len(found),
        skipped={source.missing: missing} if missing > 0 else {},
        failed=embedded.failed,
        data_version=hash_file(path)[:16],
        numbers={"dim": float(source.dim), "from_one_window": float(len(embedded.windows))}
        | _spread_numbers(matrix, [people[i] for i in found]),
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


@dataclass(frozen=True)
class Embedded:
    """The vectors of a shard's images.

    Attributes:
        vectors: image id -> vector. failed: image id -> why there is none.
        patches: image id -> how many patches its vector is the mean of.
        windows: image id -> side, in pixels, of the one window its vector is taken from for want of a patch.
    """

    vectors: dict[str, Tensor]
    failed: dict[str, str]
    patches: dict[str, int] = field(default_factory=dict)
    windows: dict[str, int] = field(default_factory=dict)


class StyleSource(ABC):
    """A frozen network that gives a vector per image.

    Attributes:
        name: value of `style_vectors.source`.
        assets: the processed assets it reads.
        version: content version of its weights.
        dim: length of its vectors.
        missing: reason for images without a vector.
    """

    name: str
    assets: tuple[str, ...]
    version: str
    dim: int
    missing: str

    @abstractmethod
    def embed(self, shard: str, rows: pd.DataFrame) -> Embedded:
        """The vectors of a shard's images (rows of the catalog)."""


def open_source(settings: Settings, profile: Profile) -> StyleSource:
    """The source a profile chooses.

    Raises:
        PipelineError: its network is not there.
    """
    match profile.style_vectors.source:
        case "patch_encoder":
            return PatchEncoderSource(settings, profile.processing.patches)
        case "classifier":
            return ClassifierSource(settings)
        case "combined":
            return CombinedSource(settings, profile.processing.patches)
        case "clip":
            return ClipSource(settings, profile)


class PatchEncoderSource(StyleSource):
    """The mean direction of an image's patch vectors.

    Hair too thin for a patch gives the vector of the largest square inside it, enlarged, if that has at least half the
    smallest patch's side: so whoever has little hair takes part too.
    """

    name = "patch_encoder"
    assets = ("hair_patches", "hair_only_images")
    missing = "no_patches"

    def __init__(self, settings: Settings, patches: PatchConfig) -> None:
        result = current("patch-encoder", settings)
        path = result.final_dir / PATCH_ENCODER_FILE
        self.folder = settings.processed / "hair_patches"
        self.hair_only = settings.processed / "hair_only_images"
        self.smallest = min(patches.sizes) // 2
        self.version = hash_bytes(weights_version(path), str(self.smallest))
        self.encoder = PatchEncoder.load(path).to(best_device())
        self.dim = self.encoder.embedding_dim

    def embed(self, shard: str, rows: pd.DataFrame) -> Embedded:
        vectors, counts, failed = self._of_patches(shard)
        windows: dict[str, int] = {}
        for image_id in rows.image_id:
            window = None if image_id in vectors else self._window(shard, image_id)
            if window is not None:
                vectors[image_id] = pool_style(encode_patches(self.encoder, [window]))
                windows[image_id] = window.shape[0]
        failed = {image_id: reason for image_id, reason in failed.items() if image_id not in vectors}
        return Embedded(vectors, failed, counts, windows)

    def _of_patches(self, shard: str) -> tuple[dict[str, Tensor], dict[str, int], dict[str, str]]:
        """Vectors by image id, number of patches by image id, and what failed by image id."""
        path = self.folder / f"{shard}.parquet"
        if not path.exists():
            raise PipelineError(
                "the shard's patches are missing", file=path, remedy="materialise the asset hair_patches"
            )
        table = pq.read_table(path, columns=["image_id", "image"]).to_pandas()
        encoded: dict[str, list[Tensor]] = {}
        failed: dict[str, str] = {}
        starts = range(0, len(table), _BATCH)
        for start in tqdm(starts, desc=f"style vectors {shard}", unit="batch", mininterval=1.0):
            ids, images = [], []
            for row in table.iloc[start : start + _BATCH].itertuples():
                try:
                    images.append(decode_image(row.image))
                    ids.append(row.image_id)
                except UnreadableImage as error:
                    failed[row.image_id] = str(error)
            if images:
                for image_id, vector in zip(ids, encode_patches(self.encoder, images), strict=True):
                    encoded.setdefault(image_id, []).append(vector)
        vectors = {image_id: pool_style(torch.stack(parts)) for image_id, parts in encoded.items()}
        return vectors, {image_id: len(parts) for image_id, parts in encoded.items()}, failed

    def _window(self, shard: str, image_id: str) -> np.ndarray | None:
        """The largest square inside the hair of a hair-only image, (S, S, 3) uint8."""
        path = find_image(self.hair_only / shard, image_id)
        rgba = None if path is None else read_image(path, alpha=True)
        found = None if rgba is None else largest_window(rgba[..., 3] > 127, self.smallest)
        if rgba is None or found is None:
            return None
        x, y, side = found
        return rgba[y : y + side, x : x + side, :3]


class _HairOnlySource(StyleSource):
    """A network on whole hair-only images."""

    assets = ("hair_only_images",)
    missing = "no_hair_only_image"
    side = 256

    def __init__(self, settings: Settings) -> None:
        self.folder = settings.processed / "hair_only_images"

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) in [-1, 1] -> (B, dim)."""

    @torch.no_grad()
    def embed(self, shard: str, rows: pd.DataFrame) -> Embedded:
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
            vectors[image_id] = F.normalize(self.features(to_tensor(image)[None].to(best_device())), dim=-1)[0].cpu()
        return Embedded(vectors, failed)


class ClassifierSource(_HairOnlySource):
    """Features of the style classifier (the one of the loss)."""

    name = "classifier"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        path = current("style-classifier", settings).final_dir / "loss"
        self.classifier = StyleClassifier.load(path).to(best_device())
        self.version = weights_version(path.with_suffix(".safetensors"))
        self.dim = self.classifier.feature_dim
        self.side = int(self.classifier.config["resolution"])

    def features(self, images: Tensor) -> Tensor:
        return self.classifier.features(images)


def combine(texture: Tensor | None, whole: Tensor, colours: np.ndarray, texture_dim: int) -> Tensor:
    """A unit vector of three parts: texture (D1,), whole (D2,) and palette; without a patch the texture is zero."""
    texture = whole.new_zeros(texture_dim) if texture is None else F.normalize(texture, dim=-1)
    return F.normalize(torch.cat([texture, F.normalize(whole, dim=-1), torch.from_numpy(colours)]), dim=-1)


class CombinedSource(StyleSource):
    """The patch encoder's vector, the classifier's and the palette: texture, bangs and outline, colour.

    Neither network is trained to know colour, which tells people apart but not hairstyles.
    """

    name = "combined"
    assets = PatchEncoderSource.assets
    missing = "no_hair_only_image"

    def __init__(self, settings: Settings, patches: PatchConfig) -> None:
        self.texture = PatchEncoderSource(settings, patches)
        self.whole = ClassifierSource(settings)
        self.version = hash_bytes(self.texture.version, self.whole.version, f"palette {PALETTE_DIM}")
        self.dim = self.texture.dim + self.whole.dim + PALETTE_DIM

    def embed(self, shard: str, rows: pd.DataFrame) -> Embedded:
        texture, whole = self.texture.embed(shard, rows), self.whole.embed(shard, rows)
        vectors = {
            image_id: combine(texture.vectors.get(image_id), vector, self._palette(shard, image_id), self.texture.dim)
            for image_id, vector in whole.vectors.items()
        }
        failed = {name: why for name, why in (texture.failed | whole.failed).items() if name not in vectors}
        return Embedded(vectors, failed, texture.patches, texture.windows)

    def _palette(self, shard: str, image_id: str) -> np.ndarray:
        path = find_image(self.whole.folder / shard, image_id)
        assert path is not None  # the whole's vector was made of it
        rgba = read_image(path, alpha=True)
        return palette(rgba[..., :3], rgba[..., 3] > 127)


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
        self.model.to(best_device()).eval()
        self.version = content_version(folder, sorted([folder / "config.json", *folder.glob("*.safetensors*")]))
        self.dim = int(self.model.config.projection_dim)
        self.side = int(self.model.config.image_size)

    def features(self, images: Tensor) -> Tensor:
        mean = images.new_tensor(self._MEAN)[None, :, None, None]
        std = images.new_tensor(self._STD)[None, :, None, None]
        embeddings: Tensor = self.model(((images + 1) / 2 - mean) / std).image_embeds
        return embeddings
