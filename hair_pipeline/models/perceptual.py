"""Perceptual networks: LPIPS (Zhang et al. 2018) from local weights, and its distance inside a mask.

Belongs here: loading without any download, feature maps, the masked distance.
Does not belong here: the losses built on them (`losses`), the training of the stand-in trunk.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Literal

import torch
from lpips import LPIPS
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hair_pipeline.errors import PipelineError
from hair_pipeline.files import atomic_path
from hair_pipeline.models.masks import erode, resize_mask
from hair_pipeline.models.weights import STAND_IN_PERCEPTUAL, find_weight
from hair_pipeline.settings import Settings

Kind = Literal["stand_in", "vgg", "alex"]

MIN_MASK_SHARE = 0.002
"""A mask that covers less of the image (after erosion) is too small to compare."""

SCALING = {
    "scaling_layer.shift": torch.tensor([-0.030, -0.088, -0.188])[None, :, None, None],
    "scaling_layer.scale": torch.tensor([0.458, 0.448, 0.450])[None, :, None, None],
}
"""ImageNet's mean and deviation for inputs in [-1, 1]: constants of LPIPS that some files leave out."""

ALEXNET_SLICES = {0: "slice1", 3: "slice2", 6: "slice3", 8: "slice4", 10: "slice5"}
"""Convolution in torchvision's `alexnet().features` -> slice of LPIPS's trunk that holds it."""

ALEXNET_WIDTHS = (64, 192, 384, 256, 256)


def load_perceptual(kind: Kind, settings: Settings) -> PerceptualNet:
    """LPIPS with the trunk `vgg` or `alex` from `lpips_<kind>.safetensors`, or the trained stand-in.

    Raises:
        PipelineError: the weights are missing or belong to another network.
    """
    if kind == "stand_in":
        return read_perceptual(find_weight(STAND_IN_PERCEPTUAL, settings), "alex", "stand-in alex", is_stand_in=True)
    return read_perceptual(find_weight(f"lpips_{kind}.safetensors", settings), kind, f"lpips-{kind}")


def read_perceptual(
    path: Path, trunk: Literal["vgg", "alex"], name: str, *, is_stand_in: bool = False
) -> PerceptualNet:
    """A complete state dict of `lpips.LPIPS(net=trunk)` (the duplicate `lins.*` keys may be left out)."""
    with torch.device("meta"):
        network = untrained_lpips(trunk)
    try:
        missing, unexpected = network.load_state_dict(SCALING | load_file(path), strict=False, assign=True)
    except RuntimeError as error:  # other shapes
        reason = str(error).splitlines()[1].strip()
        raise PipelineError(
            f"is not a state dict of LPIPS {trunk}: {reason}", file=path, remedy="fetch it again"
        ) from error
    except Exception as error:  # safetensors raises its own types
        raise PipelineError(f"cannot be read ({error})", file=path, remedy="fetch it again") from error
    missing = [key for key in missing if not key.startswith("lins.")]  # the same modules as lin0 ... lin4
    if missing or unexpected:
        raise PipelineError(
            f"is not a state dict of LPIPS {trunk}: {(missing + unexpected)[0]}", file=path, remedy="fetch it again"
        )
    return PerceptualNet(network, name, is_stand_in)


def untrained_lpips(trunk: Literal["vgg", "alex"]) -> LPIPS:
    """LPIPS without a download: its weights are random, or absent under `torch.device("meta")`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision: "pretrained" is deprecated
        return LPIPS(pretrained=False, net=trunk, pnet_rand=True, verbose=False)


def save_stand_in(alexnet_features: dict[str, Tensor], path: Path) -> None:
    """Write a stand-in: a trained trunk under uniform heads, as a full state dict of `lpips.LPIPS(net="alex")`.

    With every head at 1/5 the distance is the mean over the five layers of the squared difference between unit
    feature vectors; it is not calibrated on human judgments, and is named a stand-in wherever it is reported.

    Args:
        alexnet_features: state dict of `torchvision.models.alexnet().features` ("0.weight", "0.bias", "3.weight" ...).
    """
    state = dict(SCALING)
    for index, part in ALEXNET_SLICES.items():
        for kind in ("weight", "bias"):
            value = alexnet_features[f"{index}.{kind}"]
            state[f"net.{part}.{index}.{kind}"] = value.detach().float().cpu().contiguous().clone()
    for layer, width in enumerate(ALEXNET_WIDTHS):
        state[f"lin{layer}.model.1.weight"] = torch.full((1, width, 1, 1), 1 / len(ALEXNET_WIDTHS))
    with atomic_path(path) as temporary:
        save_file(state, temporary)


class PerceptualNet(nn.Module):
    """A frozen LPIPS network.

    Attributes:
        name: what a report calls it.
        is_stand_in: whether it is the small trained substitute, whose distance must not be called LPIPS.
    """

    def __init__(self, network: LPIPS, name: str, is_stand_in: bool) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.name = name
        self.is_stand_in = is_stand_in

    def train(self, mode: bool = True) -> PerceptualNet:  # noqa: ARG002 - always in evaluation mode
        """Stays in evaluation mode: LPIPS's heads have dropout."""
        return super().train(False)

    def features(self, images: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) in [-1, 1] -> the five ReLU feature maps, each (B, C_l, h_l, w_l)."""
        return list(self.network.net(self.network.scaling_layer(images.float())))

    def masked_features(self, images: Tensor, mask: Tensor) -> list[Tensor]:
        """`features` of the images with everything outside the mask (B, 1, H, W) at mid-gray."""
        return self.features(images * mask.to(images.dtype))

    def distance(
        self,
        x: Tensor,
        y: Tensor,
        mask: Tensor | None = None,
        maps: tuple[list[Tensor], list[Tensor]] | None = None,
    ) -> Tensor:
        """LPIPS distance, within a mask if one is given.

        Pixels outside the mask have no influence: they are set to mid-gray in both images, and the feature
        differences of every layer are averaged with the eroded mask, area-resized to that layer, as weight.

        Args:
            x, y: (B, 3, H, W) in [-1, 1].
            mask: (B, 1, H, W), bool or {0, 1}.
            maps: `masked_features` of x and y, where they have been computed already.

        Returns:
            (B,); NaN for a sample whose eroded mask covers less than MIN_MASK_SHARE of the image (no gradient).
        """
        if mask is not None:
            maps = maps or (self.masked_features(x, mask), self.masked_features(y, mask))
            weight = erode(mask.float(), erosion(mask))
        maps = maps or (self.features(x), self.features(y))
        total = x.new_zeros(len(x))
        for head, a, b in zip(self.network.lins, *maps, strict=True):
            difference = head((_unit(a) - _unit(b)) ** 2)
            if mask is None:
                total = total + difference.mean((1, 2, 3))
            else:
                share = resize_mask(weight, difference.shape[-2:])
                total = total + (difference * share).sum((1, 2, 3)) / share.sum((1, 2, 3)).clamp(min=1e-6)
        return total if mask is None else total.masked_fill(~large_enough(mask), torch.nan)


def erosion(mask: Tensor) -> int:
    """How far a mask is eroded before features are compared inside it: 1 pixel per 128 of the image's side."""
    return max(1, mask.shape[-1] // 128)


def large_enough(mask: Tensor) -> Tensor:
    """(B, 1, H, W) -> (B,) bool: whether the eroded mask covers at least MIN_MASK_SHARE of the image."""
    return erode(mask.float(), erosion(mask)).mean((1, 2, 3)) >= MIN_MASK_SHARE


def _unit(features: Tensor) -> Tensor:
    """Unit length over channels, as `lpips.normalize_tensor`, but with a finite gradient where all are zero."""
    return features / ((features**2).sum(1, keepdim=True) + 1e-20).sqrt().add(1e-10)
