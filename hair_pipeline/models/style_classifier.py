"""The style classifiers: curl class and bangs from a whole image; one for the loss, another for evaluation.

Belongs here: the two architectures and their file format. Does not belong here: their training, or cross-entropy.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from hair_pipeline.errors import PipelineError
from hair_pipeline.files import atomic_path, write_json
from hair_pipeline.vocabulary import BANGS_CLASSES, CURL_CLASSES

Variant = Literal["loss", "evaluation"]
HEADS = {"curl": len(CURL_CLASSES), "bangs": len(BANGS_CLASSES)}


class StyleClassifier(nn.Module):
    """Images (B, 3, H, W) in [-1, 1], any size -> {"curl": (B, 3), "bangs": (B, 2)} logits.

    The images are resized to `resolution` inside. The two variants differ in kind, so that a model trained
    against the one is not judged by the same eyes:
    `loss` is residual (He et al. 2016) with SiLU, strided from the first layer on, and pooled by halves;
    `evaluation` is a plain ReLU network that begins at full size, pools by average and maximum, and sees finer strands.

    Args:
        variant: which of the two.
        width: channels of the first stage.
        resolution: side of the square the images are resized to, pixels.
    """

    def __init__(self, variant: Variant, width: int = 32, resolution: int = 256) -> None:
        super().__init__()
        self.config: dict[str, Any] = {"variant": variant, "width": width, "resolution": resolution}
        if variant == "loss":
            self.trunk: nn.Module = _ResidualTrunk(width)
        elif variant == "evaluation":
            self.trunk = _PlainTrunk(width)
        else:
            raise ValueError(f"variant {variant!r} is neither loss nor evaluation")
        self.heads = nn.ModuleDict({name: nn.Linear(8 * width, classes) for name, classes in HEADS.items()})

    @property
    def feature_dim(self) -> int:
        """Length of `features`."""
        return 8 * int(self.config["width"])

    def features(self, images: Tensor) -> Tensor:
        """Pooled features (B, feature_dim) before the heads: a style vector of source `classifier`."""
        size = self.config["resolution"]
        if images.shape[-2:] != (size, size):
            images = F.interpolate(images, size=(size, size), mode="bilinear", antialias=images.shape[-1] > size)
        pooled: Tensor = self.trunk(images)
        return pooled

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.features(images)
        return {name: head(features) for name, head in self.heads.items()}

    def save(self, path: Path, extra: dict[str, Any] | None = None) -> None:
        """Write `<path>.safetensors` and, last, `<path>.json` (architecture and `extra`); a suffix is dropped."""
        state = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        with atomic_path(path.with_suffix(".safetensors")) as temporary:
            save_file(state, temporary)
        write_json(path.with_suffix(".json"), {"config": self.config, "extra": extra or {}})

    @classmethod
    def load(cls, path: Path) -> StyleClassifier:
        """Read what `save` wrote, in evaluation mode.

        Raises:
            PipelineError: a file is missing, damaged, or not a style classifier.
        """
        try:
            config = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["config"]
            classifier = cls(**config)
            classifier.load_state_dict(load_file(path.with_suffix(".safetensors")))
        except Exception as error:  # safetensors raises its own types
            raise PipelineError(
                f"is not a readable style classifier ({type(error).__name__}: {error})",
                file=path,
                remedy="materialise style_classifier",
            ) from error
        return classifier.eval()


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs))


class _PlainTrunk(nn.Module):
    """Seven 3x3 convolutions, the first at full size, where straight and wavy strands still differ."""

    def __init__(self, width: int) -> None:
        super().__init__()
        w = width
        plan = [(3, w, 1), (w, w, 2), (w, 2 * w, 1), (2 * w, 2 * w, 2), (2 * w, 4 * w, 1), (4 * w, 4 * w, 2)]
        plan += [(4 * w, 4 * w, 1)]
        self.layers = nn.Sequential(*(nn.Sequential(_conv(*step), nn.ReLU()) for step in plan))

    def forward(self, x: Tensor) -> Tensor:
        maps = self.layers(x)
        return torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], 1)


class _ResidualTrunk(nn.Module):
    """A strided stem and three stages of one residual block, pooled over the upper and the lower half."""

    def __init__(self, width: int) -> None:
        super().__init__()
        w = width
        layers: list[nn.Module] = [_conv(3, 2 * w, 2), nn.SiLU(), _ResidualBlock(2 * w)]
        layers += [_conv(2 * w, 3 * w, 2), nn.SiLU(), _ResidualBlock(3 * w)]
        layers += [_conv(3 * w, 4 * w, 2), nn.SiLU(), _ResidualBlock(4 * w)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(self.layers(x), (2, 1)).flatten(1)


class _ResidualBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _conv(channels, channels)
        self.second = _conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x + self.second(F.silu(self.first(x))))
