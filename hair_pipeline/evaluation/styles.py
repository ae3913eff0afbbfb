"""Style vectors of photos outside the processed shards, and the style encoder that travels with an export.

Belongs here: from a sample's hair to its vector, for customers and for exported versions. Does not belong here: the
vectors of training images (`training.style_vectors`) and the encoders' architectures (`models`).
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hair_pipeline import files
from hair_pipeline.errors import PipelineError
from hair_pipeline.inputs.samples import Sample
from hair_pipeline.models.gpus import best_device
from hair_pipeline.models.patch_encoder import PATCH_ENCODER_FILE, PatchEncoder, pool_style
from hair_pipeline.models.style_classifier import StyleClassifier
from hair_pipeline.processing.palette import palette
from hair_pipeline.processing.patches import cut_patches, largest_window
from hair_pipeline.profile import PatchConfig, Profile
from hair_pipeline.settings import Settings
from hair_pipeline.training.data import VectorTable
from hair_pipeline.training.images import shrink, to_tensor
from hair_pipeline.training.patches import encode_patches
from hair_pipeline.training.photos import hair_only
from hair_pipeline.training.runs import current
from hair_pipeline.training.style_vectors import ClipSource, combine

ENCODER_FILE = PATCH_ENCODER_FILE
CLASSIFIER_FILE = "style_classifier.safetensors"
CLIP_FOLDER = "style_clip"
CARD = "style_source.json"


class StyleSource(Protocol):
    """Gives the style vector (S,) float32 of a sample's hair, or None when there is too little hair."""

    def vector(self, sample: Sample) -> np.ndarray | None: ...


class PatchStyles:
    """The patch encoder on patches cut from the processed square, pooled; without one, on the largest square of hair.

    The same fallback as `training.style_vectors.PatchEncoderSource` has.
    """

    def __init__(self, encoder: PatchEncoder, patches: PatchConfig) -> None:
        self.encoder, self.patches = encoder.to(best_device()).eval(), patches

    def vector(self, sample: Sample) -> np.ndarray | None:
        found = cut_patches(sample.image, sample.hair_mask, sample.image_id, self.patches)
        images = [patch.image for patch in found]
        if not images:
            window = largest_window(sample.hair_mask, min(self.patches.sizes) // 2)
            if window is None:
                return None
            x, y, size = window
            images = [sample.image[y : y + size, x : x + size]]
        vector: np.ndarray = pool_style(encode_patches(self.encoder, images)).numpy()
        return vector


class WholeHairStyles:
    """A network on the hair-only picture (the style classifier or CLIP), normalised."""

    def __init__(self, network: StyleClassifier | ClipSource, side: int) -> None:
        self.network, self.side = network, side

    @torch.no_grad()
    def vector(self, sample: Sample) -> np.ndarray | None:
        if not sample.hair_mask.any():
            return None
        pixels = to_tensor(shrink(hair_only(sample), self.side))
        features: Tensor = self.network.features(pixels[None].to(best_device()))
        vector: np.ndarray = F.normalize(features, dim=-1)[0].cpu().numpy()
        return vector


class CombinedStyles:
    """Texture, whole and palette, as `training.style_vectors.CombinedSource` gives them."""

    def __init__(self, texture: PatchStyles, whole: WholeHairStyles) -> None:
        self.texture, self.whole = texture, whole

    def vector(self, sample: Sample) -> np.ndarray | None:
        whole, texture = self.whole.vector(sample), self.texture.vector(sample)
        if whole is None:
            return None
        parts = None if texture is None else torch.from_numpy(texture), torch.from_numpy(whole)
        colours = palette(sample.image, sample.hair_mask)
        vector: np.ndarray = combine(*parts, colours, self.texture.encoder.embedding_dim).numpy()
        return vector


class TableStyles:
    """The vectors of processed images, from the shards; others are embedded by `fallback`."""

    def __init__(self, table: VectorTable, fallback: StyleSource) -> None:
        self.table, self.fallback = table, fallback

    def vector(self, sample: Sample) -> np.ndarray | None:
        known = self.table.get(sample.image_id)
        return self.fallback.vector(sample) if known is None else known.numpy()


def current_styles(settings: Settings, profile: Profile) -> StyleSource:
    """The encoder that the profile's style vectors come from.

    Raises:
        PipelineError: it has not been trained, or its weights are missing.
    """
    if profile.style_vectors.source == "clip":
        clip = ClipSource(settings, profile)
        return WholeHairStyles(clip, clip.side)
    trained = current("patch-encoder", settings).final_dir / ENCODER_FILE
    classifier = current("style-classifier", settings).final_dir / "loss"
    return _open(profile.style_vectors.source, trained, classifier, profile.processing.patches)


def styles_version(settings: Settings, profile: Profile) -> str:
    """Content version of the weights that `current_styles` reads.

    Raises:
        PipelineError: as `current_styles`.
    """
    source = profile.style_vectors.source
    if source == "clip":
        return ClipSource(settings, profile).version
    trained = {"patch_encoder": ("patch-encoder",), "classifier": ("style-classifier",)}
    runs = trained.get(source, ("patch-encoder", "style-classifier"))
    return files.hash_bytes(source, *(current(run, settings).version for run in runs))


def _open(source: str, encoder: Path, classifier: Path, patches: PatchConfig) -> StyleSource:
    """The styles of a source other than clip; only the files it needs are read."""
    if source == "patch_encoder":
        return PatchStyles(PatchEncoder.load(encoder), patches)
    network = StyleClassifier.load(classifier).to(best_device())
    whole = WholeHairStyles(network, int(network.config["resolution"]))
    if source == "classifier":
        return whole
    return CombinedStyles(PatchStyles(PatchEncoder.load(encoder), patches), whole)


def export_styles(folder: Path, settings: Settings, profile: Profile) -> None:
    """Copy the style encoder into an exported version, and always the patch encoder; style_source.json says which."""
    shutil.copyfile(current("patch-encoder", settings).final_dir / ENCODER_FILE, folder / ENCODER_FILE)
    source = profile.style_vectors.source
    if source in ("classifier", "combined"):
        trained = current("style-classifier", settings).final_dir / "loss"
        StyleClassifier.load(trained).save(folder / CLASSIFIER_FILE)
    elif source == "clip":
        ClipSource(settings, profile).model.save_pretrained(folder / CLIP_FOLDER, safe_serialization=True)
    files.write_json(folder / CARD, {"source": source, "patches": profile.processing.patches.model_dump(mode="json")})


def exported_styles(folder: Path, settings: Settings, profile: Profile) -> StyleSource:
    """The style encoder of an exported version.

    Raises:
        PipelineError: a file is missing or damaged.
    """
    card = files.read_json(folder / CARD)
    if card["source"] in ("patch_encoder", "classifier", "combined"):
        patches = PatchConfig.model_validate(card["patches"])
        return _open(card["source"], folder / ENCODER_FILE, folder / CLASSIFIER_FILE, patches)
    if card["source"] == "clip":
        models = profile.models.model_copy(update={"clip": str((folder / CLIP_FOLDER).absolute())})
        clip = ClipSource(settings, profile.model_copy(update={"models": models}))
        return WholeHairStyles(clip, clip.side)
    raise PipelineError(
        f"the style source {card['source']!r} is not known", file=folder / CARD, remedy="export the version again"
    )
