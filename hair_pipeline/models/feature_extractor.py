"""Feature extractors of Fréchet and kernel distances: Inception from local weights, or the named substitute.

Belongs here: finding Inception's weights, and the extractor on the stand-in perceptual trunk, registered with
torch-fidelity under its own name; what that gives must never be called FID. Does not belong here: the distances.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor

from hair_pipeline.errors import PipelineError
from hair_pipeline.models.perceptual import read_perceptual
from hair_pipeline.models.weights import INCEPTION_FILE, SOURCES, STAND_IN_PERCEPTUAL, find_weight
from hair_pipeline.settings import Settings

log = logging.getLogger(__name__)

NAME = "hair-stand-in"
FEATURES = "pooled"
SIDE = 128
LAYERS = (1, 4)


class StandInExtractor(FeatureExtractorBase):
    """Means over space of the stand-in trunk's second and last feature maps: texture and shape, (B, 448) float32.

    Args:
        feature_extractor_weights_path: the stand-in written by `models.perceptual.save_stand_in`.
    """

    def __init__(
        self, name: str, features_list: list[str], feature_extractor_weights_path: str | Path, **_: Any
    ) -> None:
        super().__init__(name, features_list)
        self.net = read_perceptual(Path(feature_extractor_weights_path), "alex", NAME, is_stand_in=True)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return (FEATURES,)

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:  # noqa: ARG004 - one layer serves all metrics
        return FEATURES

    @staticmethod
    def can_be_compiled() -> bool:
        return True

    @staticmethod
    def get_dummy_input_for_compile() -> Tensor:
        return torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8)

    def forward(self, input: Tensor) -> tuple[Tensor]:
        """uint8 RGB (B, 3, H, W), any size -> ((B, 448) float32,)."""
        images = F.interpolate(input.float(), size=(SIDE, SIDE), mode="bilinear", antialias=True) / 127.5 - 1
        maps = self.net.features(images)
        return (torch.cat([maps[layer].mean((2, 3)) for layer in LAYERS], 1),)


def register() -> str:
    """Make the extractor known to torch-fidelity (once) and return its name."""
    if NAME not in FEATURE_EXTRACTORS_REGISTRY:
        register_feature_extractor(NAME, StandInExtractor)
    return NAME


def load_feature_extractor(
    kind: Literal["stand_in", "inception-v3-compat"], settings: Settings
) -> tuple[FeatureExtractorBase, bool]:
    """The extractor a profile asks for, and whether it is the stand-in.

    Where Inception is asked for and its weights are not in the models folder, the stand-in takes its place (logged).

    Raises:
        PipelineError: Inception's file is damaged, or the stand-in perceptual trunk has not been trained.
    """
    if kind == "inception-v3-compat":
        path = settings.models_dir / INCEPTION_FILE
        if path.is_file():
            return _inception(path), False
        log.warning("%s is absent: %s takes its place, and its distance is not FID", path, NAME)
    extractor = StandInExtractor(register(), [FEATURES], find_weight(STAND_IN_PERCEPTUAL, settings))
    return extractor.eval().requires_grad_(False), True


def _inception(path: Path) -> FeatureExtractorBase:
    """torch-fidelity's Inception; it unpickles freely, so the file is first shown to hold tensors only."""
    try:
        torch.load(path, map_location="cpu", weights_only=True)
        extractor = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path)
        )
    except Exception as error:  # torch.load raises many types
        raise PipelineError(
            f"is not Inception's state dict ({type(error).__name__})",
            file=path,
            remedy=f"fetch it again from {SOURCES[INCEPTION_FILE]}",
        ) from error
    return extractor.eval()
