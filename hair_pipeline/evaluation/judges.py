"""The frozen networks that judge pictures: found, loaded and named, or missing with a reason.

Belongs here: which judge the profile asks for, whether it is a stand-in, whether the loss used it too. Does not
belong here: the metrics themselves.
"""

from __future__ import annotations

import filecmp
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import torch

from hair_pipeline.errors import PipelineError
from hair_pipeline.files import hash_bytes
from hair_pipeline.models.feature_extractor import load_feature_extractor
from hair_pipeline.models.gpus import best_device
from hair_pipeline.models.perceptual import load_perceptual
from hair_pipeline.models.recogniser import load_recogniser, recogniser_path
from hair_pipeline.models.style_classifier import StyleClassifier
from hair_pipeline.models.weights import INCEPTION_FILE, STAND_IN_PERCEPTUAL, find_weight
from hair_pipeline.profile import Profile
from hair_pipeline.settings import Settings
from hair_pipeline.training.fingerprints import weights_version
from hair_pipeline.training.runs import current

log = logging.getLogger(__name__)
T = TypeVar("T")
SAME_AS_LOSS = "The judge is the recogniser that the identity loss trained against."


@dataclass(frozen=True)
class Judge(Generic[T]):
    """One judge.

    Attributes:
        network: None when it is not available; then `reason` says why.
        name: what metrics.json and the report call it.
        stand_in: a small network in place of the published one.
        note: a sentence for the report.
    """

    network: T | None
    name: str
    stand_in: bool = False
    reason: str = ""
    note: str = ""


@dataclass(frozen=True)
class Judges:
    """All judges of a report, on `device`. `second` is the loss's own recogniser where `recogniser` is another one."""

    recogniser: Judge[Any]
    second: Judge[Any]
    perceptual: Judge[Any]
    classifier: Judge[Any]
    extractor: Judge[Any]
    device: torch.device


def load_judges(settings: Settings, profile: Profile, *, sets: bool = True) -> Judges:
    """Load what the profile names. What is missing becomes a judge without a network, never an error.

    Args:
        sets: also load the feature extractor for distances between sets.
    """
    device = best_device()
    no_sets: Judge[Any] = Judge(None, "none", reason="distances between sets were not asked for")
    return Judges(
        recogniser=_or_reason(_recogniser, settings, profile, device),
        second=_or_reason(_second_recogniser, settings, profile, device),
        perceptual=_or_reason(_perceptual, settings, profile, device),
        classifier=_or_reason(_classifier, settings, profile, device),
        extractor=_or_reason(_extractor, settings, profile, device) if sets else no_sets,
        device=device,
    )


def judges_version(settings: Settings, profile: Profile) -> str:
    """Changes whenever a judge does: by the content of its weights, or by their absence."""
    trunk = profile.models.perceptual
    inception = settings.models_dir / INCEPTION_FILE
    versions: tuple[Callable[[], str], ...] = (
        lambda: _recogniser_version(settings, profile, "evaluation"),
        lambda: _recogniser_version(settings, profile, "loss"),
        lambda: weights_version(find_weight(f"lpips_{trunk}.safetensors", settings)),
        lambda: weights_version(find_weight(STAND_IN_PERCEPTUAL, settings)),
        lambda: weights_version(inception),
        lambda: current("style-classifier", settings).version,
    )
    return hash_bytes(profile.models.model_dump_json(), *(_or_absent(version) for version in versions))


def _recogniser_version(settings: Settings, profile: Profile, which: Literal["loss", "evaluation"]) -> str:
    path = recogniser_path(settings, profile, which=which)
    return "absent" if path is None else weights_version(path)


def _or_absent(version: Callable[[], str]) -> str:
    try:
        return version()
    except PipelineError:
        return "absent"


def _or_reason(load: Any, settings: Settings, profile: Profile, device: torch.device) -> Judge[Any]:
    try:
        judge: Judge[Any] = load(settings, profile, device)
    except PipelineError as error:
        where = f"{error.file}: " if error.file else ""
        log.warning("a judge is not available: %s", error.message)
        return Judge(None, "none", reason=f"{where}{error.what}")
    return judge


def _recogniser(settings: Settings, profile: Profile, device: torch.device) -> Judge[Any]:
    """The configured evaluation recogniser; without one, the loss's own, which the note says."""
    own = profile.models.evaluation_recogniser is not None
    path = recogniser_path(settings, profile, which="evaluation" if own else "loss")
    if path is None:
        return Judge(None, "none", reason="no face recogniser is available (see the log of face-recogniser)")
    other = "The judge is not the recogniser that the identity loss trained against."
    if own and _same(path, recogniser_path(settings, profile, which="loss")):
        own = False
    return _recogniser_judge(path, settings, device, other if own else SAME_AS_LOSS)


def _second_recogniser(settings: Settings, profile: Profile, device: torch.device) -> Judge[Any]:
    """The loss's own recogniser, beside another one that judges."""
    path = recogniser_path(settings, profile, which="loss")
    if profile.models.evaluation_recogniser is None or path is None:
        return Judge(None, "none", reason="no second recogniser is configured (models.evaluation_recogniser)")
    if _same(path, recogniser_path(settings, profile, which="evaluation")):
        return Judge(None, "none", reason="models.evaluation_recogniser is the loss's own recogniser")
    return _recogniser_judge(path, settings, device, "The identity loss trained against this recogniser.")


def _same(path: Path, other: Path | None) -> bool:
    """Whether two recognisers are one: the same file, or a copy (a pack may hold the ONNX that also lies alone)."""
    return other is not None and filecmp.cmp(path, other, shallow=False)


def _recogniser_judge(path: Path, settings: Settings, device: torch.device, note: str) -> Judge[Any]:
    stand_in = path.is_relative_to(settings.sample_models_dir)
    name = f"stand-in {path.stem}" if stand_in else path.stem
    return Judge(load_recogniser(path).to(device).eval(), name, stand_in, note=note)


def _perceptual(settings: Settings, profile: Profile, device: torch.device) -> Judge[Any]:
    network = load_perceptual(profile.models.perceptual, settings)
    note = "The same network is used by the perceptual loss."
    return Judge(network.to(device).eval(), network.name, network.is_stand_in, note=note)


def _classifier(settings: Settings, profile: Profile, device: torch.device) -> Judge[Any]:
    del profile
    result = current("style-classifier", settings)
    network = StyleClassifier.load(result.final_dir / "evaluation.safetensors")
    return Judge(network.to(device), f"evaluation style classifier {result.version[:12]}")


def _extractor(settings: Settings, profile: Profile, device: torch.device) -> Judge[Any]:
    extractor, stand_in = load_feature_extractor(profile.models.inception, settings)
    return Judge(extractor.to(device).eval(), extractor.get_name(), stand_in)
