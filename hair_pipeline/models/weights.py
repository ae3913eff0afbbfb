"""Finding a named weight file or folder: the models folder first, then the sample models.

Belongs here: where to look, what to say when nothing is there, and whether a file is whole. Does not belong here:
reading the weights.
"""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

from hair_pipeline.errors import PipelineError
from hair_pipeline.profile import Profile
from hair_pipeline.settings import Settings

_WEIGHT_SUFFIXES = (".safetensors", ".onnx", ".pth")
STAND_IN_BASE = "inpainting"
STAND_IN_VAE = "inpainting_vae"
ATTRIBUTE_TOKENS = "attribute_tokens"
_NETWORKS = ("vae", "unet", "scheduler")
_TEXT_SUFFIXES = (".json", ".txt", ".model")
TEXT_PARTS = ("text_encoder", "tokenizer")
"""Folders of a base that encode the prompt, of which only the empty one is used."""
PARTS = "vae/, unet/, scheduler/, text_encoder/ and tokenizer/"
STAND_IN_RECOGNISER = "face_recogniser.onnx"
STAND_IN_PERCEPTUAL = "perceptual_alex.safetensors"
STAND_IN_CLASSIFIER = "style_classifier"
STAND_IN_PATCH_ENCODER = "style_patch_encoder.safetensors"
INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"

_BUNDLE = "data/sample_models of a checkout (or train them anew: hair-pipeline sample-models)"
SOURCES = {
    INCEPTION_FILE: "https://github.com/toshas/torch-fidelity/releases/tag/v0.2.0",
    "w600k_r50.onnx": "insightface's buffalo_l pack (https://github.com/deepinsight/insightface/releases)",
    "lpips_vgg.safetensors": "the package lpips (docs/ml-engineer.md, Weights, has the lines that write the file)",
    "lpips_alex.safetensors": "the package lpips (docs/ml-engineer.md, Weights, has the lines that write the file)",
    STAND_IN_BASE: _BUNDLE,
    STAND_IN_RECOGNISER: _BUNDLE,
    STAND_IN_PERCEPTUAL: _BUNDLE,
    STAND_IN_CLASSIFIER: _BUNDLE,
    STAND_IN_PATCH_ENCODER: _BUNDLE,
}
"""Where a weight comes from, for the message shown when it is missing."""


def find_weight(name: str, settings: Settings) -> Path:
    """The file or folder called `name` (or an absolute path): in `models_dir`, or else among the sample models.

    Raises:
        PipelineError: it is nowhere; the message names it and where to get it.
    """
    for folder in (settings.models_dir, settings.sample_models_dir):
        path = folder / name
        if path.exists():
            return path
    raise PipelineError(
        f"the weights {name!r} are missing, here and in {settings.sample_models_dir}",
        file=settings.models_dir / name,
        remedy=f"get them from {SOURCES.get(name, 'their publisher')} and put them there, "
        "or set HAIR_PIPELINE_MODELS_DIR to the folder that has them",
    )


def base_reference(settings: Settings, profile: Profile) -> str | Path:
    """The base a profile asks for: its folder, or its hub id where no folder has it.

    `stand_in` is the one in data/sample_models; others may lie in the models folder, see `base_source`.

    Raises:
        PipelineError: it is not there, and it cannot be a hub id.
    """
    if profile.models.base == "stand_in":
        return find_weight(STAND_IN_BASE, settings)
    source, local = base_source(profile.models.base, settings.models_dir)
    return Path(source) if local else source


def base_source(reference: str, models_dir: Path | None) -> tuple[str, bool]:
    """Where a base is: (its folder, True) if a folder in `models_dir` or `reference` has it, else (hub id, False).

    Raises:
        PipelineError: there is no such folder, and it cannot be a hub id.
    """
    in_models = [] if models_dir is None else [models_dir / reference, models_dir / Path(reference).name]
    for folder in (*in_models, Path(reference)):
        if (folder / "unet").is_dir():
            return str(folder), True
    if Path(reference).is_absolute() or reference.count("/") != 1:
        raise PipelineError(
            f"no such base model (a folder with {PARTS})",
            file=reference,
            remedy="correct models.base in the profile, or restore data/sample_models",
        )
    return reference, False


def base_files(folder: Path) -> list[Path]:
    """The files of a base that are loaded: of each part its configuration, and its weights in one form.

    Not among them are what a download leaves beside them (`.cache`, README), the safety checker, single-file
    checkpoints, and the same weights once more in half precision, without averaging (`non_ema`) or as `.bin`.
    """
    parts = [folder / name for name in (*_NETWORKS, *TEXT_PARTS, ATTRIBUTE_TOKENS) if (folder / name).is_dir()]
    return [path for part in parts for path in _loaded(part)]


def _loaded(part: Path) -> list[Path]:
    files = sorted(path for path in part.iterdir() if path.is_file() and not path.name.startswith("."))
    pickled = [path for path in files if path.suffix == ".bin"]
    weights = _of_variant(files, variant(part)) or pickled
    return [path for path in files if path.suffix in _TEXT_SUFFIXES] + weights


def variant(part: Path) -> str | None:
    """`fp16` where a folder has a part's weights in that variant and not as they are; None is the latter."""
    files = sorted(part.glob("*.safetensors"))
    return "fp16" if _of_variant(files, "fp16") and not _of_variant(files, None) else None


def _of_variant(files: list[Path], wanted: str | None) -> list[Path]:
    """Of the files the weights in a variant, shards too: `model.fp16.safetensors`; None: those without any."""
    safe = [path for path in files if path.suffix == ".safetensors"]
    return [path for path in safe if (f".{wanted}" in path.stem if wanted else "." not in path.stem)]


def damage(path: Path) -> str:
    """What is wrong with a weight file, or with the first such file below a folder, as far as its size and header tell.

    Returns:
        A fault with the file's name, empty if there is none.
    """
    if path.is_dir():
        weights = sorted(file for file in path.rglob("*") if file.suffix in _WEIGHT_SUFFIXES)
        faults = filter(None, [*map(damage, weights), *map(_lost_shard, sorted(path.rglob("*.index*.json")))])
        return next(faults, "" if weights else f"{path} holds no weights")
    if path.stat().st_size == 0:
        return f"{path} is empty"
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="np"):
                pass
        except SafetensorError as error:
            return f"{path} is damaged or was not copied in full ({error})"
    return ""


def _lost_shard(index: Path) -> str:
    """What an index of shards names and is not there; nothing where none is: then it is of a variant left out."""
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
        return f"{index} is damaged ({type(error).__name__})"
    lost = sorted(name for name in names if not (index.parent / str(name)).is_file())
    return f"{index.parent / lost[0]} is missing, which {index.name} names" if 0 < len(lost) < len(names) else ""


def missing_text_parts(folder: Path) -> list[str]:
    """What a base lacks to encode the empty prompt; nothing where it has attribute tokens in place of prompts."""
    if (folder / ATTRIBUTE_TOKENS).is_dir():
        return []
    return [f"{part}/" for part in TEXT_PARTS if not (folder / part).is_dir()]
