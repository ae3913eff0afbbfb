"""Export: from Stage 2's adapters to the files that the try-on service loads, each with its SHA-256.

Belongs here: which files a version consists of. Does not belong here: whether it goes into production (`registry`).

A version is the folder `checkpoints/versions/<version>/`:
    model_index.json, unet/, vae/, scheduler/, ...   a complete pipeline; unet/ is the UNet with the LoRA merged, in
                                                     fp32 and, as the variant "fp16", in half precision
    adapters/                                        LoRA, IP-Adapter and style projection in diffusers format
    style_patch_encoder.pt                           photo's hair -> style vector
    hair_pipeline.json, README.md                    how to call it; the model card
`checkpoints/unet_hair_inpainting.safetensors` (fp16: `unet_hair_inpainting.fp16.safetensors`; with config.json),
`checkpoints/style_patch_encoder.pt` and `checkpoints/adapters/` are the files of the version exported last;
`versions/<version>.json` holds each version's hashes, and its card as it was written first.

A version is weights and the settings its pictures were judged with. What the registry promised stays as it is: damaged
files of a registered version are made again only where that gives the registered content.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from hair_pipeline import files
from hair_pipeline.errors import PipelineError
from hair_pipeline.evaluation.contenders import VERSION_DIGITS
from hair_pipeline.evaluation.picture_settings import PictureSettings, require_judged
from hair_pipeline.evaluation.registered import damaged_files
from hair_pipeline.evaluation.styles import ENCODER_FILE, export_styles
from hair_pipeline.evaluation.verdicts import VerdictRecord, require_approval, require_evaluation
from hair_pipeline.models.base import load_base
from hair_pipeline.models.patch_encoder import PatchEncoder
from hair_pipeline.models.pipeline import HairInpaintPipeline
from hair_pipeline.models.weights import base_reference
from hair_pipeline.profile import Profile
from hair_pipeline.release.model_card import model_card
from hair_pipeline.release.registry import CARD_FILE, EXPORTED, Registry
from hair_pipeline.settings import Settings
from hair_pipeline.training.runs import TrainResult, current, environment, fresh_folder

UNET_FILE, HALF_UNET_FILE = "unet_hair_inpainting.safetensors", "unet_hair_inpainting.fp16.safetensors"
CARD_TEXT = "README.md"
WEIGHTS = "diffusion_pytorch_model{}.safetensors"


@dataclass(frozen=True)
class ExportResult:
    """An exported version.

    Attributes:
        version: 12 hex digits of the content of Stage 2's weights.
        folder: checkpoints/versions/<version>.
        files: every file of the folder. hashes: path relative to the folder -> SHA-256.
        numbers: for the UI. data_version: content hash over all files.
    """

    version: str
    folder: Path
    files: list[Path]
    hashes: dict[str, str]
    numbers: dict[str, float]
    data_version: str


def export_weights(settings: Settings, profile: Profile) -> ExportResult:
    """Write the current Stage 2 model as a version. A version that stands there unchanged is not written again.

    Raises:
        PipelineError: the evaluation of this model or the A/B verdict on it, read from disk, is missing; its pictures
            were drawn with other settings than the profile's; the version is registered with other settings, or its
            damaged files cannot be made again; or a part is missing.
        ReleaseRefused: the evaluation is incomplete, or the verdict is not approve.
    """
    stage2 = current("stage2", settings)
    version = stage2.version[:VERSION_DIGITS]
    require_evaluation(settings, version)
    verdict = require_approval(settings, version)
    wanted = PictureSettings.of(profile)
    require_judged(wanted, verdict.settings, version, settings.training_root / verdict.path)
    folder = settings.checkpoints / "versions" / version
    hashes = _standing(settings, version, wanted)
    if hashes is None:
        with fresh_folder(folder) as temporary:
            _write_version(temporary, version, stage2, verdict, settings, profile)
            _keep_promise(temporary, settings, version, wanted)
        hashes = _hashes(folder)
        texts = {name: (folder / name).read_text(encoding="utf-8") for name in (CARD_FILE, CARD_TEXT)}
        files.write_json(_manifest(settings, version), {"files": hashes, "texts": texts})
    paths = [folder / name for name in hashes]
    _publish(folder, settings)
    files.write_json(
        settings.checkpoints / EXPORTED,
        {
            "version": version,
            "folder": folder.relative_to(settings.training_root).as_posix(),
            "files": hashes,
            "verdict": verdict.as_json(),
        },
    )
    numbers = {"files": float(len(paths)), "megabytes": sum(path.stat().st_size for path in paths) / 1e6}
    data_version = files.hash_bytes(*(part for item in sorted(hashes.items()) for part in item))
    return ExportResult(version, folder, paths, hashes, numbers, data_version)


@dataclass(frozen=True)
class Reloaded:
    """What an exported version came to when it was loaded again.

    Attributes:
        version: its name. files: how many it has. parameters: of the UNet.
        damaged: files that are gone or whose SHA-256 is another. not_finite: weights with a value that is no number.
    """

    version: str
    files: int
    parameters: int
    damaged: list[str]
    not_finite: list[str]


def reload_exported(settings: Settings) -> Reloaded:
    """Load the version exported last from its files alone, as the server does.

    Raises:
        PipelineError: nothing is exported.
        OSError, ValueError: a file is missing or cannot be loaded.
    """
    exported = files.read_json(settings.checkpoints / EXPORTED)
    folder = files.confined_in_folder(settings.training_root, exported["folder"])
    hashes: dict[str, str] = exported["files"]
    damaged = damaged_files(folder, hashes)
    not_finite: list[str] = []
    parameters = 0
    if not damaged:
        unet = HairInpaintPipeline.from_pretrained(folder).unet.state_dict()
        parameters = sum(value.numel() for value in unet.values())
        encoder = PatchEncoder.load(folder / ENCODER_FILE).state_dict()
        for part, state in (("unet", unet), ("style encoder", encoder)):
            not_finite += [f"{part}: {name}" for name, value in state.items() if not value.isfinite().all()]
    return Reloaded(exported["version"], len(hashes), parameters, damaged, not_finite)


def _manifest(settings: Settings, version: str) -> Path:
    return settings.checkpoints / "versions" / f"{version}.json"


def _hashes(folder: Path) -> dict[str, str]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): files.hash_file(path) for path in paths}


def _registered(settings: Settings, version: str) -> dict[str, str] | None:
    """The hashes that the registry promised, if it knows the version."""
    record = Registry(settings.registry_path, settings.training_root).list().get(version)
    return None if record is None else record["files"]


def _standing(settings: Settings, version: str, wanted: PictureSettings) -> dict[str, str] | None:
    """The hashes of this version, if it was exported before with these settings and every file is as it was.

    Raises:
        PipelineError: it is registered with other settings.
    """
    manifest = _manifest(settings, version)
    registered = _registered(settings, version)
    known = registered or (_read_manifest(manifest)["files"] if manifest.exists() else None)
    folder = settings.checkpoints / "versions" / version
    if known is None or any(not _intact(folder / name, digest) for name, digest in known.items()):
        return None
    if registered is not None:
        _require_registered(folder, version, wanted)
    return None if wanted.differences(_card_settings(folder)) else known


def _card_settings(folder: Path) -> PictureSettings:
    return PictureSettings.of_card(files.read_json(folder / CARD_FILE))


def _require_registered(folder: Path, version: str, wanted: PictureSettings) -> None:
    if found := wanted.differences(_card_settings(folder)):
        raise PipelineError(
            f"version {version} is registered with other settings: {'; '.join(found)} as registered",
            file=folder,
            remedy="set the registered ones in the profile; for others train another model: its version is another",
        )


def _intact(path: Path, digest: str) -> bool:
    return path.is_file() and files.hash_file(path) == digest


def _read_manifest(path: Path) -> dict[str, dict[str, str]]:
    """{"files": hashes, "texts": content of the card's files}; earlier manifests have the hashes alone."""
    content = files.read_json(path)
    return content if isinstance(content.get("files"), dict) else {"files": content, "texts": {}}


def _keep_promise(made: Path, settings: Settings, version: str, wanted: PictureSettings) -> None:
    """Give a registered version that was made again in the folder `made` the content that is registered.

    The card is taken over as it was written first: it names the commit and the verdict of that day. A file that comes
    out otherwise today (another library wrote it) is taken from the old folder, if it is whole there.

    Raises:
        PipelineError: a damaged file comes out otherwise, or it is registered with other settings.
    """
    registered = _registered(settings, version)
    if registered is None:
        return
    manifest = _manifest(settings, version)
    for name, text in (_read_manifest(manifest)["texts"] if manifest.exists() else {}).items():
        files.write_bytes(made / name, text.encode())
    old = settings.checkpoints / "versions" / version
    lost = []
    for name, digest in registered.items():
        if _intact(made / name, digest):
            continue
        if _intact(old / name, digest):
            shutil.copyfile(old / name, made / name)
        else:
            lost.append(name)
    if lost:
        raise PipelineError(
            f"version {version} is registered, and its damaged files cannot be made again as they were: "
            f"{', '.join(lost)}",
            file=old,
            remedy="restore them from a backup; without one, train another model: its version is another",
        )
    for name in _hashes(made).keys() - registered.keys():
        (made / name).unlink()
    _require_registered(made, version, wanted)


def _write_version(
    folder: Path, version: str, stage2: TrainResult, verdict: VerdictRecord, settings: Settings, profile: Profile
) -> None:
    reference = base_reference(settings, profile)
    pipeline = HairInpaintPipeline.from_adapters(
        load_base(reference, settings.models_dir), stage2.final_dir, profile.evaluation.scheduler
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    _write_half(folder / "unet")
    shutil.copytree(stage2.final_dir, folder / "adapters", dirs_exist_ok=True)
    export_styles(folder, settings, profile)
    _forget_places(folder)
    card: dict[str, Any] = {
        "version": version,
        "resolution": profile.stage2.resolution,
        "style_source": profile.style_vectors.source,
        "scheduler": profile.evaluation.scheduler,
        "steps": profile.evaluation.steps,
        "guidance_scale": profile.evaluation.guidance_scale,
        "size": profile.processing.size,
        "bald": profile.processing.bald.model_dump(mode="json"),
        "base": profile.models.base,
        "stage2_run": stage2.run_id,
        "trained_on": stage2.data_version,
        "verdict": verdict.as_json(),
        "environment": environment(),
    }
    files.write_json(folder / CARD_FILE, card)
    metrics = settings.reports / "eval" / version / "metrics.json"
    evaluated = json.loads(metrics.read_text(encoding="utf-8"))["metrics"] if metrics.exists() else {}
    files.write_bytes(folder / CARD_TEXT, model_card(card, evaluated, profile).encode())


def _forget_places(folder: Path) -> None:
    """Take out of the configs where on this machine their networks were loaded from."""
    for path in folder.rglob("*.json"):
        content = files.read_json(path)
        if isinstance(content, dict) and content.pop("_name_or_path", None) is not None:
            files.write_json(path, content)


def _write_half(folder: Path) -> None:
    """Beside a saved network, the same in half precision: diffusers' variant "fp16".

    Raises:
        PipelineError: a weight is too large for half precision.
    """
    state = load_file(folder / WEIGHTS.format(""))
    half = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    for name, value in half.items():
        if not value.isfinite().all():
            raise PipelineError(
                f"the weight {name} does not fit into half precision", file=folder, remedy="train with a lower rate"
            )
    with files.atomic_path(folder / WEIGHTS.format(".fp16")) as path:
        save_file(half, path, metadata={"format": "pt"})


def _publish(folder: Path, settings: Settings) -> None:
    """Copy the version's UNet, its config, the style encoder and the light adapters to the checkpoints folder."""
    copies = {
        folder / "unet" / WEIGHTS.format(""): UNET_FILE,
        folder / "unet" / WEIGHTS.format(".fp16"): HALF_UNET_FILE,
        folder / "unet" / "config.json": "config.json",
        folder / ENCODER_FILE: ENCODER_FILE,
        folder / CARD_TEXT: CARD_TEXT,
    }
    light = folder / "adapters"
    copies |= {path: f"adapters/{path.relative_to(light)}" for path in light.rglob("*") if path.is_file()}
    for source, name in copies.items():
        if source.exists():
            with files.atomic_path(settings.checkpoints / name) as path:
                shutil.copyfile(source, path)
