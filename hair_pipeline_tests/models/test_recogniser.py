"""Recognisers: the same numbers through insightface and torch, gradients, alignment."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import insightface
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hair_pipeline.errors import PipelineError
from hair_pipeline.models.recogniser import (
    BOX_IN_TEMPLATE,
    CROP,
    TEMPLATE,
    FaceRecogniser,
    SmallFaceNet,
    align,
    align_landmarks,
    export_onnx,
    load_recogniser,
    recogniser_path,
)
from hair_pipeline.profile import load_profile
from hair_pipeline.settings import Settings


@pytest.fixture(scope="module")
def small_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    net = SmallFaceNet(512)
    net(torch.randn(16, 3, CROP, CROP))  # so that the running statistics are not trivial
    path = tmp_path_factory.mktemp("onnx") / "small.onnx"
    export_onnx(net, path)
    assert net.training
    return path


def compare_with_insightface(path: Path) -> FaceRecogniser:
    """Ours and insightface's own embedding of random crops are equal; the gradient at the image is not zero."""
    crops = np.random.default_rng(0).integers(0, 256, (3, CROP, CROP, 3), dtype=np.uint8)
    theirs = insightface.model_zoo.get_model(str(path), providers=["CPUExecutionProvider"])
    assert type(theirs).__name__ == "ArcFaceONNX"
    expected = theirs.get_feat([crop[:, :, ::-1] for crop in crops])  # it takes BGR
    expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)

    ours = load_recogniser(path)
    images = (torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 127.5 - 1).requires_grad_()
    found = ours.embed_aligned(images)
    assert np.abs(found.detach().numpy() - expected).max() < 1e-5
    found[:, 0].sum().backward()
    assert images.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in ours.parameters())
    return ours


def test_exported_small_net(small_onnx: Path) -> None:
    assert compare_with_insightface(small_onnx).dim == 512


def test_of_an_insightface_pack_the_recogniser_is_taken(small_onnx: Path, tmp_path: Path) -> None:
    """Beside it a pack holds landmarks and attributes: other sizes of input, or a few numbers as output."""
    pack = tmp_path / "models" / "buffalo_l"
    attributes = SmallFaceNet(3)
    attributes(torch.randn(16, 3, CROP, CROP))
    export_onnx(attributes, pack / "1_attributes.onnx")
    paths = Settings(models_dir=tmp_path / "models", sample_models_dir=tmp_path)
    profile = load_profile("sample")
    profile = profile.model_copy(update={"models": profile.models.model_copy(update={"recogniser": "buffalo_l"})})
    with pytest.raises(PipelineError, match="holds no face recogniser"):
        recogniser_path(paths, profile)
    shutil.copy(small_onnx, pack / "2_recognition.onnx")
    assert recogniser_path(paths, profile) == pack / "2_recognition.onnx"
    (pack / "0_damaged.onnx").write_bytes(b"\xff" * 100)
    with pytest.raises(PipelineError, match=r"0_damaged\.onnx: is not a readable ONNX"):
        recogniser_path(paths, profile)


def test_real_recogniser(weights_dir: Path) -> None:
    path = weights_dir / "mobilefacenet.onnx"
    if not path.exists():
        pytest.skip(f"{path} is absent")
    assert compare_with_insightface(path).dim == 192


def test_real_recogniser_knows_a_face_again(weights_dir: Path) -> None:
    """The portrait of skimage, darkened and shifted, is the same person; another place in the picture is not."""
    path = weights_dir / "mobilefacenet.onnx"
    skimage_data = pytest.importorskip("skimage.data")
    photo = torch.from_numpy(skimage_data.astronaut()).permute(2, 0, 1)[None].float() / 127.5 - 1
    recogniser = load_recogniser(path)
    face = torch.tensor([[175.0, 62.0, 275.0, 200.0]])
    with torch.no_grad():
        first = recogniser.embed(photo, face)
        second = recogniser.embed(photo * 0.8 - 0.1, face + torch.tensor([[4.0, -3.0, 4.0, -3.0]]))
        other = recogniser.embed(photo, torch.tensor([[20.0, 300.0, 120.0, 438.0]]))
    assert (first * second).sum() > 0.7
    assert (first * other).sum() < 0.4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_alignment_is_as_exact_under_autocast(dtype: torch.dtype) -> None:
    """In bfloat16 the sampling grid would be off by more than a pixel."""
    images = torch.rand(2, 3, 512, 512).mul(2).sub(1).to(dtype)
    boxes = torch.tensor([[180.0, 200.0, 330.0, 410.0], [333.0, 217.0, 452.0, 391.0]])
    landmarks = torch.tensor(TEMPLATE) * 1.7 + torch.tensor([[[210.0, 240.0]], [[301.0, 95.0]]])
    expected = align(images.float(), boxes), align_landmarks(images.float(), landmarks)
    with torch.autocast("cpu", torch.bfloat16):
        found = align(images, boxes), align_landmarks(images, landmarks)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_stays_in_evaluation_mode(small_onnx: Path) -> None:
    recogniser = load_recogniser(small_onnx)
    recogniser.train()
    assert not any(module.training for module in recogniser.modules())


@settings(deadline=None, max_examples=25)
@given(
    x=st.floats(-20, 150),
    y=st.floats(-20, 150),
    height=st.floats(20, 200),
    sides=st.sampled_from([(160, 160), (128, 200)]),
)
def test_alignment_puts_the_box_where_the_template_has_it(
    x: float, y: float, height: float, sides: tuple[int, int]
) -> None:
    """On an image whose pixels are their own coordinates, the crop shows where every pixel came from."""
    rows, columns = torch.meshgrid(torch.arange(sides[0]) + 0.5, torch.arange(sides[1]) + 0.5, indexing="ij")
    image = torch.stack([columns, rows, torch.ones_like(rows)])[None] / 100
    x1, y1, x2, y2 = BOX_IN_TEMPLATE
    width = height * (x2 - x1) / (y2 - y1)
    crop = align(image, torch.tensor([[x, y, x + width, y + height]]))[0] * 100
    scale = height / (y2 - y1)
    for u in (8, 56, 104):
        for v in (8, 56, 104):
            source_x = x + (u + 0.5 - x1) * scale
            source_y = y + (v + 0.5 - y1) * scale
            if 1 < source_x < sides[1] - 1 and 1 < source_y < sides[0] - 1:
                assert abs(crop[0, v, u].item() - source_x) < 0.05
                assert abs(crop[1, v, u].item() - source_y) < 0.05
            elif source_x < -1 or source_y < -1 or source_x > sides[1] + 1 or source_y > sides[0] + 1:
                assert crop[2, v, u].item() == pytest.approx(-100)  # black


def test_embedding_has_gradient_only_inside_the_crop(small_onnx: Path) -> None:
    recogniser = load_recogniser(small_onnx)
    images = torch.rand(1, 3, 200, 200).requires_grad_()
    recogniser.embed(images, torch.tensor([[60.0, 60.0, 110.0, 130.0]])).sum().backward()
    touched = images.grad.abs().sum((0, 1)) > 0
    assert touched[60:130, 60:110].float().mean() > 0.9
    assert not touched[:40].any()
    assert not touched[:, 150:].any()


@pytest.mark.parametrize("content", [b"", b"not onnx"])
def test_damaged_recogniser_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "face.onnx"
    path.write_bytes(content)
    with pytest.raises(PipelineError, match=r"face\.onnx"):
        load_recogniser(path)


@pytest.mark.parametrize(("angle", "scale"), [(0.0, 1.0), (0.3, 0.7), (-0.5, 1.6)])
def test_landmarks_are_brought_onto_the_template(angle: float, scale: float) -> None:
    """On an image whose pixels are their own coordinates, the crop at the template's points shows the landmarks."""
    rows, columns = torch.meshgrid(torch.arange(320) + 0.0, torch.arange(320) + 0.0, indexing="ij")
    image = torch.stack([columns, rows, torch.ones_like(rows)])[None] / 100
    template = torch.tensor(TEMPLATE)
    turn = scale * torch.tensor(
        [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=torch.float32
    )
    landmarks = (template - 56) @ turn.T + torch.tensor([160.0, 150.0])
    crop = align_landmarks(image, landmarks[None])[0] * 100
    for (u, v), (x, y) in zip(template.round().long().tolist(), landmarks.tolist(), strict=True):
        assert abs(crop[0, v, u].item() - x) < 1.2 * scale
        assert abs(crop[1, v, u].item() - y) < 1.2 * scale
    centre = (torch.tensor([56.0, 56.0]) - 56) @ turn.T + torch.tensor([160.0, 150.0])
    assert abs(crop[0, 56, 56].item() - centre[0].item()) < 0.05
    assert abs(crop[1, 56, 56].item() - centre[1].item()) < 0.05


def test_landmarks_take_the_place_of_the_box(small_onnx: Path) -> None:
    recogniser = load_recogniser(small_onnx)
    image = torch.rand(1, 3, 160, 160, requires_grad=True)
    landmarks = torch.tensor(TEMPLATE)[None] + 20
    nothing = torch.zeros(1, 4)
    embedding = recogniser.embed(image, nothing, landmarks)
    assert torch.allclose(embedding, recogniser.embed_aligned(image[..., 20:132, 20:132]), atol=1e-4)
    embedding.sum().backward()
    assert image.grad is not None
    assert bool((image.grad[..., :18, :] == 0).all())
