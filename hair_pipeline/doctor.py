"""`hair-pipeline doctor`: is everything there that the configured run needs, and if not, what to do.

Belongs here: quick looks at inputs, weights, GPU, disk and versions. Does not belong here: reading the inputs in full
(that is the catalog's work).
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Literal

from hair_pipeline.cores import cpu_count
from hair_pipeline.errors import PipelineError
from hair_pipeline.profile import Profile
from hair_pipeline.settings import SAMPLE_ROOT, Settings, require_folders, unknown_variables

NEEDED_FREE_GIB = 10
_MARKS = {"ok": "ok   ", "note": "note ", "error": "ERROR"}
_BASE_WEIGHTS = ("vae/*.safetensors", "unet/*.safetensors")
_PACKAGES = ("torch", "diffusers", "peft", "accelerate", "dagster", "insightface", "lpips", "torch-fidelity")


@dataclass(frozen=True)
class Finding:
    """One thing looked at."""

    level: Literal["ok", "note", "error"]
    what: str
    remedy: str = ""

    @property
    def line(self) -> str:
        """How it is shown."""
        return f"{_MARKS[self.level]} {self.what}" + (f"\n      -> {self.remedy}" if self.remedy else "")


def examine(settings: Settings) -> list[Finding]:
    """Look at everything; the order is that of a user's questions."""
    profile = settings.profile_values
    return [
        Finding("ok", f"profile {profile.name}"),
        _executor(settings),
        *(Finding("note", warning, "correct or unset it") for warning in unknown_variables().values()),
        *_schedules(profile),
        *_versions(),
        *_gpu(profile),
        *_inputs(settings),
        *_origin(settings),
        _writable(settings.training_root),
        *_models_dir(settings),
        *_weights(settings, profile),
    ]


def _executor(settings: Settings) -> Finding:
    from hair_pipeline.orchestration.executors import build_executor

    try:
        build_executor(settings.executor)
    except PipelineError as error:
        return Finding("error", error.what, error.remedy)
    return Finding("ok", f"executor {settings.executor}")


def _schedules(profile: Profile) -> Iterator[Finding]:
    from hair_pipeline.orchestration.schedules import build_schedules

    try:
        build_schedules(profile)
    except PipelineError as error:
        yield Finding("error", error.what, error.remedy)


def _versions() -> Iterator[Finding]:
    packages = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
    yield Finding("ok", f"Python {platform.python_version()}, {packages}")


def _gpu(profile: Profile) -> Iterator[Finding]:
    from hair_pipeline.models.gpus import gpus_in_words

    if gpus := gpus_in_words():
        for index, gpu in enumerate(gpus):
            yield Finding("ok", f"GPU {index}: {gpu}")
    elif profile.stage1.precision == profile.stage2.precision == "fp32":
        yield Finding("note", f"no GPU; the profile {profile.name} trains in fp32, on {cpu_count()} CPU cores")
    else:
        yield Finding(
            "error",
            f"no GPU, but the profile {profile.name} needs one",
            "install a CUDA driver, or set HAIR_PIPELINE_PROFILE=sample",
        )


def _inputs(settings: Settings) -> Iterator[Finding]:
    roots = {
        "HAIR_PIPELINE_K_HAIRSTYLE_ROOT": (settings.k_hairstyle_root, "*.[jJzZ][pPiI]*[gGpP]", "JPEG and no zip"),
        "HAIR_PIPELINE_TRAINING_FACE_ROOT": (settings.training_face_root, "*.npy", "embedding (.npy)"),
    }
    for variable, (root, pattern, sought) in roots.items():
        if not root.is_dir():
            yield _no_folder(variable, root, f"set {variable} to the folder")
        elif next(root.rglob(pattern), None) is None:
            yield Finding("error", f"{variable}: no {sought} below {root}", "check that this is the right folder")
        else:
            some = sum(1 for _ in islice(root.rglob(pattern), 1000))
            yield Finding("ok", f"{variable}: {'1000 or more' if some == 1000 else some} files below {root}")
    yield _customers(settings)


def _customers(settings: Settings) -> Finding:
    from hair_pipeline.evaluation.customers import BALD_ENDING, SUFFIXES

    customers, variable = settings.customers, "HAIR_PIPELINE_CUSTOMERS_ROOT"
    if customers is None:
        return Finding(
            "note",
            "no customer photos: the A/B test will use held-out people",
            "set HAIR_PIPELINE_CUSTOMERS_ROOT to a folder of about 100 photos with their training_face outputs",
        )
    if not customers.is_dir():
        return _no_folder(variable, customers, f"set {variable} to a folder of photos, or unset it")
    try:
        pictures = [path for path in customers.iterdir() if path.suffix.lower() in SUFFIXES]
    except OSError as error:
        return Finding("error", f"{variable}: {customers} cannot be read ({error.strerror})", "check its rights")
    photos = sum(not path.stem.endswith(BALD_ENDING) for path in pictures)
    if not photos:
        return Finding(
            "error",
            f"{variable}: no photo right in {customers}",
            "put <id>.jpg and training_face's <id>/face_01/ there, or set it to the folder that holds them",
        )
    needed = settings.profile_values.ab_test.min_people
    if photos < needed:
        return Finding(
            "note",
            f"{variable}: {photos} photos in {customers}: no A/B test approves with fewer than {needed} people",
            "add photos of other people",
        )
    return Finding("ok", f"{variable}: {photos} photos in {customers}")


def _no_folder(variable: str, root: Path, remedy: str) -> Finding:
    if root.is_relative_to(SAMPLE_ROOT):
        remedy = f"run `hair-pipeline demo`, or `hair-pipeline sample --out {SAMPLE_ROOT}`; or set {variable}"
    return Finding("error", f"{variable}: no such folder: {root}", remedy)


def _origin(settings: Settings) -> Iterator[Finding]:
    from hair_pipeline.inputs.origin import refuse_sample_in_place_of_others

    try:
        refuse_sample_in_place_of_others(settings)
    except PipelineError as error:
        yield Finding("error", f"{error.file}: {error.what}", error.remedy)


def _writable(root: Path) -> Finding:
    existing = next(path for path in (root, *root.parents) if path.exists())
    if not existing.is_dir():
        return Finding("error", f"{existing} is not a folder", "set HAIR_PIPELINE_TRAINING_ROOT to a folder")
    if not os.access(existing, os.W_OK):
        return Finding("error", f"cannot write to {existing}", "give write access or set HAIR_PIPELINE_TRAINING_ROOT")
    free = shutil.disk_usage(existing).free / 2**30
    if free < NEEDED_FREE_GIB:
        return Finding("error", f"only {free:.1f} GiB free at {existing}", f"free at least {NEEDED_FREE_GIB} GiB")
    return Finding("ok", f"training root {root}, {free:.0f} GiB free")


def _models_dir(settings: Settings) -> Iterator[Finding]:
    try:
        require_folders(settings, ["models_dir"])
    except PipelineError as error:
        yield Finding("error", f"{error.what}: {error.file}", error.remedy)


def _weights(settings: Settings, profile: Profile) -> Iterator[Finding]:
    from hair_pipeline.models import weights
    from hair_pipeline.models.recogniser import recogniser_of_pack

    perceptual = {"vgg": "lpips_vgg.safetensors", "alex": "lpips_alex.safetensors"}
    starts = {"random": None, "stand_in": "stand_in"}
    names = {
        "recogniser": (profile.models.recogniser, weights.STAND_IN_RECOGNISER),
        "perceptual": (perceptual.get(profile.models.perceptual, "stand_in"), weights.STAND_IN_PERCEPTUAL),
        "evaluation recogniser": (profile.models.evaluation_recogniser, weights.STAND_IN_RECOGNISER),
        "the patch encoder's start": (starts[profile.patch_encoder.start], weights.STAND_IN_PATCH_ENCODER),
        "the style classifiers' start": (starts[profile.classifier.start], weights.STAND_IN_CLASSIFIER),
    }
    yield _base(settings, profile)
    for role, (name, stand_in) in names.items():
        if name is None:
            continue
        try:
            path = weights.find_weight(stand_in if name == "stand_in" else name, settings)
            if path.is_dir() and role.endswith("recogniser"):
                path = recogniser_of_pack(path)
            yield _whole(role, path, is_stand_in=name == "stand_in")
        except PipelineError as error:
            yield _missing(role, error)
    if profile.models.inception == "inception-v3-compat":
        yield _inception(settings)
    if profile.style_vectors.source == "clip":
        yield _clip(settings, profile)


def _base(settings: Settings, profile: Profile) -> Finding:
    from hair_pipeline.models.weights import PARTS, base_reference, missing_text_parts

    try:
        reference = base_reference(settings, profile)
    except PipelineError as error:
        return _missing("base", error)
    if isinstance(reference, str):
        return Finding(
            "note",
            f"weights for base: {reference} will be downloaded from the hub, if its cache does not have it: "
            f"{settings.models_dir} has no such folder with {PARTS}",
        )
    files = ("vae/config.json", "unet/config.json", "scheduler/scheduler_config.json", *_BASE_WEIGHTS)
    missing = [wanted for wanted in files if next(reference.glob(wanted), None) is None]
    missing += missing_text_parts(reference)
    if missing:
        return Finding(
            "error", f"weights for base: {reference} has no {missing[0]}", "copy or download the folder again, in full"
        )
    return _whole("base", reference, is_stand_in=profile.models.base == "stand_in")


def _inception(settings: Settings) -> Finding:
    from hair_pipeline.models.weights import INCEPTION_FILE, SOURCES

    path = settings.models_dir / INCEPTION_FILE
    if path.is_file():
        return _whole("inception", path)
    return Finding(
        "note",
        f"weights for inception: {path} is missing: a small stand-in takes its place, and its distance is not FID",
        f"get it from {SOURCES[INCEPTION_FILE]}, or set models.inception to stand_in",
    )


def _clip(settings: Settings, profile: Profile) -> Finding:
    folder = settings.models_dir / (profile.models.clip or "")
    if profile.models.clip and (folder / "config.json").is_file():
        return _whole("clip", folder)
    return Finding(
        "error",
        f"weights for clip: style_vectors.source is clip, and {folder} has no config.json",
        "set models.clip to a CLIP folder (config.json and model.safetensors) below HAIR_PIPELINE_MODELS_DIR",
    )


def _missing(role: str, error: PipelineError) -> Finding:
    where = f"{error.file}: " if error.file else ""
    return Finding("error", f"weights for {role}: {where}{error.what}", error.remedy)


def _whole(role: str, path: Path, *, is_stand_in: bool = False) -> Finding:
    from hair_pipeline.models.weights import damage

    if fault := damage(path):
        return Finding("error", f"weights for {role}: {fault}", "copy or download them again")
    return Finding("ok", f"weights for {role}: {'a small stand-in, ' if is_stand_in else ''}{path}")
