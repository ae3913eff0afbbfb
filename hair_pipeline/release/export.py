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
`versions/<version>.json` holds each version's hashes.
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
from hair_pipeline.evaluation.styles import ENCODER_FILE, export_styles
from hair_pipeline.evaluation.verdicts import VerdictRecord, require_approval, require_evaluation
from hair_pipeline.models.base import base_reference, load_base
from hair_pipeline.models.patch_encoder import PatchEncoder
from hair_pipeline.models.pipeline import HairInpaintPipeline
from hair_pipeline.profile import Profile
from hair_pipeline.release.model_card import model_card
from hair_pipeline.release.registry import EXPORTED
from hair_pipeline.settings import Settings
from hair_pipeline.training.runs import TrainResult, current, environment, fresh_folder

UNET_FILE, HALF_UNET_FILE = "unet_hair_inpainting.safetensors", "unet_hair_inpainting.fp16.safetensors"
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
        PipelineError: the evaluation of this model is missing or incomplete; the A/B verdict on it, read from disk,
            is not approve; or a part is missing.
    """
    stage2 = current("stage2", settings)
    version = stage2.version[:VERSION_DIGITS]
    require_evaluation(settings, version)
    verdict = require_approval(settings, version)
    folder = settings.checkpoints / "versions" / version
    record = _unchanged(settings, version)
    if record is None:
        with fresh_folder(folder) as temporary:
            _write_version(temporary, version, stage2, verdict, settings, profile)
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    hashes = record or {path.relative_to(folder).as_posix(): files.hash_file(path) for path in paths}
    files.write_json(_manifest(settings, version), hashes)
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
    folder = files.confined(settings.training_root, exported["folder"])
    hashes: dict[str, str] = exported["files"]
    damaged = [n for n, h in hashes.items() if not (folder / n).is_file() or files.hash_file(folder / n) != h]
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


def _unchanged(settings: Settings, version: str) -> dict[str, str] | None:
    """The hashes of this version, if it was exported before and every file is as it was.

    A version is never written twice: what the registry promised stays as it is.
    """
    path = _manifest(settings, version)
    if not path.exists():
        return None
    folder = settings.checkpoints / "versions" / version
    hashes: dict[str, str] = files.read_json(path)
    same = all((folder / name).is_file() and files.hash_file(folder / name) == h for name, h in hashes.items())
    return hashes if same else None


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
    card: dict[str, Any] = {
        "version": version,
        "resolution": profile.stage2.resolution,
        "style_source": profile.style_vectors.source,
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
    files.write_json(folder / "hair_pipeline.json", card)
    metrics = settings.reports / "eval" / version / "metrics.json"
    evaluated = json.loads(metrics.read_text(encoding="utf-8"))["metrics"] if metrics.exists() else {}
    files.write_bytes(folder / "README.md", model_card(card, evaluated, profile).encode())


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
        folder / "README.md": "README.md",
    }
    light = folder / "adapters"
    copies |= {path: f"adapters/{path.relative_to(light)}" for path in light.rglob("*") if path.is_file()}
    for source, name in copies.items():
        if source.exists():
            with files.atomic_path(settings.checkpoints / name) as path:
                shutil.copyfile(source, path)
