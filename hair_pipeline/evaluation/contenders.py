"""What can be compared: the untrained base, a checkpoint, an exported folder, or pictures some other system made.

Belongs here: resolving a SPEC and drawing a batch of cases. Does not belong here: cases (`cases`) and measuring.

SPEC is one of
    untrained    the base without the stages: no style, no identity, no adapters
    current      Stage 2's current adapters on their base
    production   the version that the registry says is in production; or the name of any registered version
    FOLDER       an exported version (model_index.json), or pictures `<image_id>.jpg|.jpeg|.png`
The words and the registered versions come first: say `./production` for a folder of that name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from diffusers.utils import logging

from hair_pipeline import files
from hair_pipeline.errors import PipelineError
from hair_pipeline.evaluation.cases import Case
from hair_pipeline.evaluation.picture_settings import PictureSettings, drawn_with
from hair_pipeline.evaluation.registered import read_registry, require_intact
from hair_pipeline.evaluation.styles import StyleSource, TableStyles, current_styles, exported_styles
from hair_pipeline.inputs.geometry import letterbox, same_framing
from hair_pipeline.inputs.k_hairstyle import image_id_of
from hair_pipeline.inputs.samples import Sample
from hair_pipeline.inputs.upright import read_upright
from hair_pipeline.models.base import load_base
from hair_pipeline.models.gpus import best_device
from hair_pipeline.models.pipeline import HairInpaintPipeline
from hair_pipeline.models.weights import base_reference, damage
from hair_pipeline.processing.bald import make_bald
from hair_pipeline.profile import BaldConfig, ProcessingConfig, Profile
from hair_pipeline.settings import Settings
from hair_pipeline.training.data import VectorTable
from hair_pipeline.training.fingerprints import base_version
from hair_pipeline.training.runs import current

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")
NOT_FINITE = "the model returned values that are not finite"
VERSION_DIGITS = 12
"""A version is named by this many hex digits of its content hash."""


@dataclass(frozen=True)
class Drawing:
    """A finished picture and, where known, what the model drew before paste-back; uint8 RGB (S, S, 3)."""

    final: np.ndarray
    raw: np.ndarray | None


class Contender(Protocol):
    """Something that turns cases into pictures.

    Attributes:
        label: for people. version: content hash or name, for provenance.
        settings: what it draws with; None for finished pictures.
    """

    label: str
    version: str
    settings: PictureSettings | None

    def draw(self, cases: Sequence[Case]) -> list[Drawing | str]:
        """One drawing per case, or the reason why there is none."""
        ...


class ModelContender:
    """A pipeline of this project.

    Args:
        pipeline: a `HairInpaintPipeline`. styles: where its style vectors come from; None for a model that takes none.
        resolution: side at which it generates. profile: what it draws with.
        folder, card: of an exported version, the card being its hair_pipeline.json.
        prepared: how its cases come: their side, which stays and is said, and a hair removal that it replaces.
    """

    def __init__(
        self,
        label: str,
        version: str,
        pipeline: Any,
        styles: StyleSource | None,
        resolution: int,
        profile: Profile,
        folder: Path | None = None,
        card: dict[str, Any] | None = None,
        prepared: ProcessingConfig | None = None,
    ) -> None:
        self.label, self.version = label, version
        self.pipeline, self.styles, self.resolution, self.profile = pipeline, styles, resolution, profile
        self.folder, self.prepared = folder, prepared
        own = PictureSettings.of(profile) if card is None else PictureSettings.of_card(card)
        self.settings: PictureSettings | None = own
        if prepared is not None:
            self.settings = own.model_copy(update={"size": prepared.size})
        self.pipeline.set_progress_bar_config(disable=True)

    def draw(self, cases: Sequence[Case]) -> list[Drawing | str]:
        if not cases:
            return []
        if self.prepared is not None and self.prepared.bald != self.profile.processing.bald:
            cases = [self._with_own_removal(case) for case in cases]
        styles, style_present = _stack(
            [None if self.styles is None else self.styles.vector(case.reference) for case in cases]
        )
        identity, identity_present = _stack([case.identity for case in cases])
        config = self.profile.evaluation
        output = self.pipeline(
            images=[case.sample.image for case in cases],
            hair_masks=[case.sample.hair_mask for case in cases],
            face_masks=[case.sample.face_mask for case in cases],
            style=styles,
            identity=identity,
            style_present=style_present,
            identity_present=identity_present,
            resolution=self.resolution,
            num_inference_steps=config.steps,
            guidance_scale=config.guidance_scale if self.pipeline.config.conditioned else 1.0,
            generator=[torch.Generator().manual_seed(case.seed) for case in cases],
            repaint_masks=[case.repaint_mask for case in cases],
            bald_images=[case.bald for case in cases],
        )
        drawn = zip(output.images, output.raw, output.finite, strict=True)
        return [Drawing(final, raw) if finite else NOT_FINITE for final, raw, finite in drawn]

    def _with_own_removal(self, case: Case) -> Case:
        """The case with the hair removed as this version removes it; a bald image that a customer sent stays."""
        assert self.prepared is not None
        if not np.array_equal(_removed(case, self.prepared.bald)[0], case.bald):
            return case
        bald, repaint = _removed(case, self.profile.processing.bald)
        return replace(case, bald=bald, repaint_mask=repaint)


def _removed(case: Case, config: BaldConfig) -> tuple[np.ndarray, np.ndarray]:
    sample = case.sample
    return make_bald(sample.image, sample.hair_mask, sample.face_mask, config, box=sample.box, window=sample.window)


def _stack(vectors: list[np.ndarray | None]) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Vectors, some of which may be missing -> ((B, D) with zero rows, (B,) bool), or (None, None) if all are."""
    known = next((vector for vector in vectors if vector is not None), None)
    if known is None:
        return None, None
    rows = [np.zeros_like(known) if vector is None else vector for vector in vectors]
    present = torch.tensor([vector is not None for vector in vectors])
    return torch.from_numpy(np.stack(rows)).float(), present


class PictureContender:
    """A folder of finished pictures, named by image id, of the whole photo: in its own framing, at any size, or at the
    processed square's. What is measured of them is cut out as the case's sample was.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings: PictureSettings | None = None
        self.label = f"pictures in {folder.name}"
        self.pictures = {image_id_of(path.name): path for path in sorted(folder.iterdir()) if _is_picture(path)}
        self.version = files.hash_files(self.pictures.values(), folder)[:VERSION_DIGITS]

    def draw(self, cases: Sequence[Case]) -> list[Drawing | str]:
        return [self._read(case) for case in cases]

    def _read(self, case: Case) -> Drawing | str:
        path = self.pictures.get(case.sample.image_id)
        if path is None:
            return f"no picture {case.sample.image_id}.png or .jpg in {self.folder}"
        try:
            picture = files.read_image(path) if case.framing is None else read_upright(path).image
        except files.UnreadableImage as error:
            return f"{path.name}: {error}"
        if case.framing is not None:
            shown = case.framing.cut(picture)
            if shown is None:
                size = f"{picture.shape[1]}x{picture.shape[0]}"
                return f"{path.name} is {size}, the photo {case.framing.width}x{case.framing.height}"
            picture = shown
        height, width = picture.shape[:2]
        size = case.sample.image.shape[0]
        photo_height, photo_width = case.sample.image[case.sample.window or ()].shape[:2]
        fits = case.framing is not None or (width, height) == (size, size)
        if not fits and not same_framing(width, height, photo_width, photo_height):
            return f"{path.name} is {width}x{height}, of another shape than the photo: cropped or rotated?"
        return Drawing(letterbox(width, height, size).image(picture), None)


def _is_picture(path: Path) -> bool:
    """By its name, and a file: not a folder, nor a link that leads nowhere."""
    return path.suffix.lower() in PICTURE_SUFFIXES and path.is_file()


def resolve(spec: str, settings: Settings, profile: Profile) -> Contender:
    """The contender a SPEC names.

    The files of a registered version are compared with their registered hashes first, by whichever SPEC it is named.

    Raises:
        PipelineError: it names nothing, what it names cannot be loaded, or a file of a registered version is damaged.
    """
    if spec == "untrained":
        return untrained(settings, profile)
    if spec == "current":
        return stage2_current(settings, profile)
    registry = read_registry(settings.registry_path)
    registered = spec == "production" or spec in registry["versions"]
    folder = Path(spec) if not registered and Path(spec).is_dir() else version_folder(spec, settings)
    version = folder.resolve().name
    if version in registry["versions"] and version_folder(version, settings) == folder.resolve():
        require_intact(registry, version, folder)
    if (folder / "model_index.json").exists():
        return exported(folder, settings, profile)
    if any(map(_is_picture, folder.iterdir())):
        return PictureContender(folder)
    raise PipelineError(
        "is neither an exported version (model_index.json) nor a folder of pictures (<image_id>.jpg or .png)",
        file=folder,
        remedy="say untrained, current, production, a registered version or such a folder",
    )


def opponent(new: Contender, settings: Settings, profile: Profile) -> str:
    """The SPEC a new model is compared with when "production" is asked for.

    That is the version in production, unless it is the new model itself: then the last version before it whose folder
    is still there (it may have been erased with somebody's photos), or `ab_test.first_opponent` where there is none.

    Raises:
        PipelineError: nothing is in production.
    """
    production = version_folder("production", settings).name
    if production != new.version:
        return "production"
    earlier: list[str] = read_registry(settings.registry_path)["previous"]
    there = [version for version in earlier if version != production and version_folder(version, settings).is_dir()]
    return there[-1] if there else profile.ab_test.first_opponent


def untrained(settings: Settings, profile: Profile) -> ModelContender:
    """The base as it is, without adapters: neither style nor identity is given."""
    reference = base_reference(settings, profile)
    base = load_base(reference, settings.models_dir)
    pipeline = _on_device(HairInpaintPipeline.from_base(base, profile.evaluation.scheduler))
    version = f"base {Path(str(reference)).name} {base_version(settings, profile)[:VERSION_DIGITS]}"
    return ModelContender("untrained base", version, pipeline, None, profile.stage2.resolution, profile)


def stage2_current(settings: Settings, profile: Profile, table: VectorTable | None = None) -> ModelContender:
    """Stage 2's current adapters on the profile's base.

    Args:
        table: style vectors of processed images, to be taken before embedding anew.

    Raises:
        PipelineError: Stage 2 has not been trained.
    """
    result = current("stage2", settings)
    base = load_base(base_reference(settings, profile), settings.models_dir)
    pipeline = _on_device(HairInpaintPipeline.from_adapters(base, result.final_dir, profile.evaluation.scheduler))
    version = result.version[:VERSION_DIGITS]
    styles = current_styles(settings, profile)
    if table is not None:
        styles = TableStyles(table, styles)
    styles = _FittingStyles(styles, int(pipeline.style_projection.config.style_dim), profile)
    return ModelContender(f"Stage 2 {version}", version, pipeline, styles, profile.stage2.resolution, profile)


def exported(folder: Path, settings: Settings, profile: Profile) -> ModelContender:
    """A version's exported folder: its own style encoder, and the settings it was judged with (hair_pipeline.json).

    Raises:
        PipelineError: a file is missing or damaged.
    """
    card = files.read_json(folder / "hair_pipeline.json")
    logging.disable_progress_bar()
    try:
        pipeline = _on_device(HairInpaintPipeline.from_pretrained(folder))
    except PipelineError:
        raise
    except Exception as error:  # diffusers and safetensors raise many types on missing and damaged files
        raise PipelineError(
            f"the exported version cannot be loaded: {damage(folder) or error}",
            file=folder,
            remedy="restore its files from a copy, or export and register a version again",
        ) from error
    styles = exported_styles(folder, settings, profile)
    version = card["version"]
    own, prepared = drawn_with(profile, card), profile.processing
    given = f"version {version}", version, pipeline, styles, card["resolution"], own
    return ModelContender(*given, folder=folder, card=card, prepared=prepared)


def version_folder(spec: str, settings: Settings) -> Path:
    """The folder of a registered version, or of the one in production, as the registry's file says.

    Raises:
        PipelineError: no such version, or nothing is in production.
    """
    path = settings.registry_path
    registry = read_registry(path)
    version = registry["production"] if spec == "production" else spec
    if version is None:
        raise PipelineError(
            "no version is in production yet",
            file=path,
            remedy="say untrained or current, or promote a version: uv run hair-pipeline registry --help",
        )
    if version not in registry["versions"]:
        known = ", ".join(registry["versions"]) or "none"
        raise PipelineError(
            f"{spec!r} is neither a folder nor a registered version (known: {known})",
            file=path,
            remedy="say untrained, current, production, a registered version or a folder",
        )
    return files.confined_in_folder(settings.training_root, registry["versions"][version]["folder"])


class _FittingStyles:
    """The vectors of a style source, refused when the model was trained with longer or shorter ones."""

    def __init__(self, styles: StyleSource, trained: int, profile: Profile) -> None:
        self.styles, self.trained, self.source = styles, trained, profile.style_vectors.source

    def vector(self, sample: Sample) -> np.ndarray | None:
        found = self.styles.vector(sample)
        if found is not None and len(found) != self.trained:
            raise PipelineError(
                f"style_vectors.source = {self.source!r} gives vectors of {len(found)} numbers, "
                f"and Stage 2 was trained with {self.trained}",
                remedy="set style_vectors.source to what it was trained with, or train it again: hair-pipeline run",
            )
        return found


def _on_device(pipeline: Any) -> Any:
    return pipeline.to(best_device())
