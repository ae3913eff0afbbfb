"""Face recognisers: an ArcFace-style ONNX as a frozen, differentiable torch module, with alignment inside.

Belongs here: loading, the differentiable warp to the recogniser's template, and the small network that stands in
for a downloaded one, with its ONNX export. Does not belong here: training it, the identity loss, thresholds.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Literal

import onnx
import torch
from onnx2torch import convert
from torch import Tensor, nn
from torch.nn import functional as F

from hair_pipeline.errors import PipelineError
from hair_pipeline.files import atomic_path
from hair_pipeline.models.weights import STAND_IN_RECOGNISER, find_weight
from hair_pipeline.profile import Profile
from hair_pipeline.settings import Settings

log = logging.getLogger(__name__)

CROP = 112
"""Side of the recogniser's input, pixels."""

BOX_IN_TEMPLATE = (16.0, 8.0, 96.0, 118.0)
"""Where a detector's face box (x1, y1, x2, y2) lies when the eyes and mouth are on the ArcFace template's points.

From the template (insightface `arcface_dst`: eyes at y = 51.6, mouth at 92.3) and the usual position of eyes and
mouth in a RetinaFace or SCRFD box (0.40 and 0.77 of its height).
"""


TEMPLATE = ((38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041))
"""The ArcFace template (insightface `arcface_dst`): eyes, nose, mouth corners; x, y in pixels of a 112 x 112 crop."""


def recogniser_path(settings: Settings, profile: Profile, which: Literal["loss", "evaluation"] = "loss") -> Path | None:
    """The ONNX file a profile asks for; of an insightface pack (a folder), its recogniser.

    For evaluation that is `models.evaluation_recogniser`, or, where none is configured, the loss's own.

    Returns:
        None where the stand-in is asked for and is not there; logged.

    Raises:
        PipelineError: a named file or folder is missing, or the folder holds no recogniser.
    """
    name = profile.models.recogniser
    if which == "evaluation":
        name = profile.models.evaluation_recogniser or name
    if name != "stand_in":
        named = find_weight(name, settings)
        return recogniser_of_pack(named) if named.is_dir() else named
    path = settings.sample_models_dir / STAND_IN_RECOGNISER
    if path.is_file():
        return path
    log.warning("no face recogniser: the stand-in is missing (%s)", path)
    return None


def recogniser_of_pack(folder: Path) -> Path:
    """The recogniser among an insightface pack's ONNX files: the one that takes 3 x 112 x 112 and gives a long vector.

    (A pack's attribute and landmark networks take other sizes or give a few numbers.)

    Raises:
        PipelineError: there is none, or a file is damaged.
    """
    for path in sorted(folder.glob("*.onnx")):
        graph = _read_graph(path)
        shape = [d.dim_value for d in graph.input[0].type.tensor_type.shape.dim]
        output = [d.dim_value for d in graph.output[0].type.tensor_type.shape.dim]
        if shape[1:] == [3, CROP, CROP] and len(output) == 2 and output[1] >= 64:
            return path
    raise PipelineError(
        "holds no face recogniser (an ONNX with input N x 3 x 112 x 112)",
        file=folder,
        remedy="give an insightface pack such as buffalo_l, or one ONNX file",
    )


def _read_graph(path: Path) -> onnx.GraphProto:
    """The graph of an ONNX file."""
    try:
        return onnx.load(path, load_external_data=False).graph
    except Exception as error:  # protobuf raises several types
        raise PipelineError(
            f"is not a readable ONNX file ({error})", file=path, remedy="unpack the insightface pack again"
        ) from error


def load_recogniser(path: Path) -> FaceRecogniser:
    """Load an ArcFace-style ONNX: input (N, 3, 112, 112) RGB, (x - 127.5) / 127.5, output (N, D).

    Raises:
        PipelineError: missing, damaged, or of another input size.
    """
    try:
        network = convert(path)
        with torch.no_grad():
            dim = int(network.eval()(torch.zeros(2, 3, CROP, CROP)).shape[1])
    except Exception as error:  # onnx, protobuf and onnx2torch raise many types
        raise PipelineError(
            f"is not a usable face recogniser ({type(error).__name__}: {error})",
            file=path,
            remedy="give an ArcFace ONNX with input (N, 3, 112, 112) and one output (N, D)",
        ) from error
    return FaceRecogniser(network, dim, path.stem)


class FaceRecogniser(nn.Module):
    """A frozen recogniser; gradients flow to the images, not to the weights.

    Attributes:
        dim: D, length of the embeddings.
        name: the file's name without suffix; embeddings of different names are not comparable.
    """

    def __init__(self, network: nn.Module, dim: int, name: str) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.dim = dim
        self.name = name

    def train(self, mode: bool = True) -> FaceRecogniser:  # noqa: ARG002 - always in evaluation mode
        """Stays in evaluation mode: batch statistics must not change the embedding."""
        return super().train(False)

    def embed(self, images: Tensor, boxes: Tensor, landmarks: Tensor | None = None) -> Tensor:
        """Unit embeddings of the faces in the boxes.

        Args:
            images: (B, 3, H, W) in [-1, 1].
            boxes: (B, 4), x1, y1, x2, y2 in pixels of these images.
            landmarks: (B, 5, 2) pixels as in `align_landmarks`, where there are any: they align better than a box.

        Returns:
            (B, D).
        """
        crops = align(images, boxes) if landmarks is None else align_landmarks(images, landmarks)
        return self.embed_aligned(crops)

    def embed_aligned(self, crops: Tensor) -> Tensor:
        """Unit embeddings (B, D) of aligned crops (B, 3, 112, 112) in [-1, 1]."""
        return F.normalize(self.network(crops.float()), dim=-1)


def align(images: Tensor, boxes: Tensor, size: int = CROP) -> Tensor:
    """Cut the faces out in the framing of the ArcFace template, differentiably; outside the image is black.

    Args:
        images: (B, 3, H, W) in [-1, 1].
        boxes: (B, 4), x1, y1, x2, y2 in pixels.
        size: side of the crops.

    Returns:
        (B, 3, size, size) float32. The scale follows the box's height: its width changes with the head's yaw.
    """
    height, width = images.shape[-2:]
    centre_x, centre_y, side = crop_square(boxes.float()).unbind(-1)
    theta = centre_x.new_zeros(len(images), 2, 3)
    theta[:, 0, 0] = side / width
    theta[:, 1, 1] = side / height
    theta[:, 0, 2] = 2 * centre_x / width - 1
    theta[:, 1, 2] = 2 * centre_y / height - 1
    return _warp(images, theta, size)


def crop_square(boxes: Tensor) -> Tensor:
    """The square that `align` cuts out for each box: (B, 4) -> (B, 3), centre x, centre y and side in pixels."""
    x1, y1, x2, y2 = BOX_IN_TEMPLATE
    pixels = (boxes[:, 3] - boxes[:, 1]) / (y2 - y1)  # image pixels per template pixel
    centre_x = (boxes[:, 0] + boxes[:, 2]) / 2 + (CROP / 2 - (x1 + x2) / 2) * pixels
    centre_y = (boxes[:, 1] + boxes[:, 3]) / 2 + (CROP / 2 - (y1 + y2) / 2) * pixels
    return torch.stack([centre_x, centre_y, CROP * pixels], 1)


def align_landmarks(images: Tensor, landmarks: Tensor, size: int = CROP) -> Tensor:
    """Cut the faces out by five landmarks, differentiably in the images; outside the image is black.

    The transform is the similarity (rotation, scale, shift) that brings the landmarks closest to `TEMPLATE` in the
    least-squares sense (Umeyama 1991), as insightface's `norm_crop` does.

    Args:
        images: (B, 3, H, W) in [-1, 1].
        landmarks: (B, 5, 2), pixels: left eye, right eye, nose, left and right mouth corner, left as seen.
        size: side of the crops.

    Returns:
        (B, 3, size, size) float32.
    """
    height, width = images.shape[-2:]
    points = landmarks.float()
    template = points.new_tensor(TEMPLATE)
    centre, goal = points.mean(1, keepdim=True), template.mean(0)
    from_template, to_points = template - goal, points - centre
    # A similarity of the plane is a multiplication by one complex number: the least-squares one, template -> image.
    norm = from_template.square().sum()
    real = (from_template * to_points).sum((1, 2)) / norm
    turned = torch.stack([-from_template[:, 1], from_template[:, 0]], 1)
    imaginary = (turned * to_points).sum((1, 2)) / norm
    matrix = torch.stack([torch.stack([real, -imaginary], 1), torch.stack([imaginary, real], 1)], 1)  # (B, 2, 2)
    middle = centre[:, 0] + (matrix * (points.new_tensor([CROP / 2, CROP / 2]) - 0.5 - goal)).sum(2) + 0.5
    scale = points.new_tensor([2 / width, 2 / height])
    theta = torch.cat([matrix * (CROP / 2) * scale[:, None], (middle * scale - 1)[..., None]], 2)
    return _warp(images, theta, size)


def _warp(images: Tensor, theta: Tensor, size: int) -> Tensor:
    """Sample (B, 3, size, size) float32 at the places that theta (B, 2, 3) float32 gives, black outside the images.

    Never in half precision: bfloat16 knows a coordinate of a 512-pixel image to no better than a pixel.
    """
    with torch.autocast(images.device.type, enabled=False):
        grid = F.affine_grid(theta, [len(images), 3, size, size], align_corners=False)
        bright = images.float() + 1
        return F.grid_sample(bright, grid, mode="bilinear", padding_mode="zeros", align_corners=False) - 1


class SmallFaceNet(nn.Module):
    """Crops (B, 3, 112, 112) in [-1, 1] -> embeddings (B, dim), not normalised.

    At dim = 512 it has 0.45 M parameters and takes 57 million multiply-adds a face.

    Strided convolutions, a residual block and MobileFaceNet's global depthwise convolution (Chen et al.
    2018) instead of pooling, so that the place of every feature counts.
    """

    def __init__(self, dim: int = 512) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            _conv(3, 24, stride=2),
            _conv(24, 48, stride=2),
            _conv(48, 96, stride=2),
            _Residual(96),
            _conv(96, 160, stride=2),
            nn.Conv2d(160, 160, 7, groups=160, bias=False),
            nn.BatchNorm2d(160),
            nn.Flatten(),
            nn.Linear(160, dim, bias=False),
            nn.BatchNorm1d(dim),
        )

    def forward(self, crops: Tensor) -> Tensor:
        embeddings: Tensor = self.layers(crops)
        return embeddings


class IResNet50(nn.Sequential):
    """The layout of ArcFace's ResNet-50 (`w600k_r50.onnx`), for reckoning with it where the file is not at hand.

    Crops (B, 3, 112, 112) -> embeddings (B, 512). Layout after insightface `iresnet50` (Deng et al. 2019).
    """

    def __init__(self) -> None:
        layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.PReLU(64)]
        inputs = 64
        for channels, blocks in ((64, 3), (128, 4), (256, 14), (512, 3)):
            for index in range(blocks):
                layers.append(_PreActivated(inputs, channels, 2 if index == 0 else 1))
                inputs = channels
        super().__init__(
            *layers,
            nn.BatchNorm2d(512),
            nn.Flatten(),
            nn.Linear(512 * (CROP // 16) ** 2, 512),
            nn.BatchNorm1d(512),
        )


class _PreActivated(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.PReLU(outputs),
            nn.Conv2d(outputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        same = stride == 1 and inputs == outputs
        self.shortcut: nn.Module = (
            nn.Identity()
            if same
            else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.layers(x)


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(_conv(channels, channels), _conv(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


def export_onnx(network: nn.Module, path: Path) -> None:
    """Write a recogniser (B, 3, 112, 112) -> (B, D) as ONNX that insightface and `load_recogniser` read.

    Raises:
        PipelineError: the file cannot be written.
    """
    was_training = network.training
    network.eval()
    with warnings.catch_warnings(), atomic_path(path) as temporary:
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            network,
            (torch.zeros(1, 3, CROP, CROP, device=next(network.parameters()).device),),
            str(temporary),
            input_names=["face"],
            output_names=["embedding"],
            dynamic_axes={"face": {0: "n"}, "embedding": {0: "n"}},
            opset_version=17,
            dynamo=False,  # the newer exporter needs onnxscript
        )
        onnx.checker.check_model(str(temporary))
    network.train(was_training)
