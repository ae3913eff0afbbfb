"""The hair patch encoder: a small ResNet or ViT from a texture patch to a unit vector.

Belongs here: the two architectures, their file format, and the pooling of patches to one style vector.
Does not belong here: the InfoNCE training and its sampler (`training`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from hair_pipeline.errors import PipelineError
from hair_pipeline.files import atomic_open, atomic_path
from hair_pipeline.profile import PatchEncoderConfig

PATCH_ENCODER_FILE = "style_patch_encoder.pt"
FORMAT = "hair-pipeline/patch-encoder/1"
_METADATA = "patch_encoder"
_VIT_CELLS = 8
"""The ViT cuts its input into 8 x 8 cells."""


class PatchEncoder(nn.Module):
    """Patches (B, 3, S, S) in [0, 1], any S -> unit vectors (B, E). Inputs are resized to `input_size` first.

    Args:
        architecture: "resnet" (four stages, GroupNorm, so that a vector does not depend on its batch) or "vit".
        width: channels of the first ResNet stage, or the ViT's embedding width.
        embedding_dim: E.
        input_size: side the patches are resized to, pixels.
    """

    def __init__(
        self, architecture: str = "resnet", width: int = 64, embedding_dim: int = 256, input_size: int = 128
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "architecture": architecture,
            "width": width,
            "embedding_dim": embedding_dim,
            "input_size": input_size,
        }
        if architecture == "resnet":
            self.trunk: nn.Module = _ResNet(width)
            features = 8 * width
        elif architecture == "vit":
            self.trunk = _ViT(width, input_size // _VIT_CELLS)
            features = width
        else:
            raise ValueError(f"architecture {architecture!r} is neither resnet nor vit")
        self.head = nn.Linear(features, embedding_dim)

    @classmethod
    def from_config(cls, config: PatchEncoderConfig) -> PatchEncoder:
        """A new encoder with a profile's values."""
        return cls(config.architecture, config.width, config.embedding_dim, config.input_size)

    @property
    def embedding_dim(self) -> int:
        """E, length of the vectors."""
        return int(self.config["embedding_dim"])

    def features(self, patches: Tensor) -> Tensor:
        """Pooled trunk features before the head, (B, F): what linear probes look at."""
        size = self.config["input_size"]
        if patches.shape[-1] != size or patches.shape[-2] != size:
            patches = F.interpolate(patches, size=(size, size), mode="bilinear", antialias=True)
        pooled: Tensor = self.trunk((patches - 0.5) / 0.25)
        return pooled

    def forward(self, patches: Tensor) -> Tensor:
        return F.normalize(self.head(self.features(patches)), dim=-1)

    def save(self, path: Path) -> None:
        """Write tensors and plain metadata: a `.pt` loads with `torch.load(weights_only=True)`, else safetensors."""
        state = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        if path.suffix == ".safetensors":
            with atomic_path(path) as temporary:
                # one entry: the order of several changes from call to call, and with it the file's hash
                save_file(state, temporary, {_METADATA: json.dumps({"format": FORMAT, "config": self.config})})
            return
        with atomic_open(path) as file:
            torch.save({"format": FORMAT, "config": self.config, "state_dict": state}, file)

    @classmethod
    def load(cls, path: Path) -> PatchEncoder:
        """Read what `save` wrote, in evaluation mode.

        Raises:
            PipelineError: missing, damaged, or not a patch encoder.
        """
        try:
            saved = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pt(path)
            if saved["format"] != FORMAT:
                raise ValueError(f"format {saved['format']!r}")
            encoder = cls(**saved["config"])
            encoder.load_state_dict(saved["state_dict"])
        except Exception as error:  # torch.load raises many types on damaged files
            raise PipelineError(
                f"is not a readable patch encoder ({type(error).__name__})",
                file=path,
                remedy="materialise patch_encoder, or give the file it exported",
            ) from error
        return encoder.eval()


def _read_pt(path: Path) -> dict[str, Any]:
    saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return saved


def _read_safetensors(path: Path) -> dict[str, Any]:
    about: dict[str, Any]
    with safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()[_METADATA])
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    return about | {"state_dict": state}


def pool_style(vectors: Tensor) -> Tensor:
    """Patch vectors (P, E) of one image -> its style vector (E,): the unit vector along their mean."""
    return F.normalize(vectors.mean(0), dim=-1)


class _Block(nn.Module):
    """Two 3x3 convolutions with a shortcut (He et al. 2016), GroupNorm instead of BatchNorm."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.GroupNorm(_groups(outputs), outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.GroupNorm(_groups(outputs), outputs)
        same = inputs == outputs and stride == 1
        self.shortcut: nn.Module = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class _ResNet(nn.Module):
    """Stem and four stages of one block each; average and deviation of the last feature map are pooled together.

    Texture is a matter of feature statistics, so the deviation over the patch is kept beside the mean.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 5, 2, 2, bias=False), nn.GroupNorm(_groups(width), width), nn.ReLU()
        )
        widths = [width, width, 2 * width, 4 * width, 4 * width]
        strides = [1, 2, 2, 1]
        pairs = zip(widths[:-1], widths[1:], strides, strict=True)
        self.stages = nn.Sequential(*(_Block(a, b, stride) for a, b, stride in pairs))

    def forward(self, x: Tensor) -> Tensor:
        maps = self.stages(self.stem(x)).flatten(2)
        return torch.cat([maps.mean(2), maps.std(2)], 1)


class _ViT(nn.Module):
    """A four-layer vision transformer on 8 x 8 cells, mean-pooled."""

    def __init__(self, width: int, cell: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, cell, cell)
        self.position = nn.Parameter(torch.randn(1, _VIT_CELLS**2, width) * 0.02)
        layer = nn.TransformerEncoderLayer(
            width, 4, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2) + self.position
        pooled: Tensor = self.norm(self.layers(tokens)).mean(1)
        return pooled


def _groups(channels: int) -> int:
    return next(groups for groups in (8, 4, 2, 1) if channels % groups == 0)
