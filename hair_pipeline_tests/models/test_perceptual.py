"""Perceptual networks: the published numbers, masks, the stand-in, the feature extractor."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_fidelity import calculate_metrics

from hair_pipeline.errors import PipelineError
from hair_pipeline.models import feature_extractor
from hair_pipeline.models.perceptual import PerceptualNet, load_perceptual, read_perceptual, save_stand_in

PUBLISHED = {"alex": (0.7219, 0.1376), "vgg": (0.5686, 0.4217)}
"""LPIPS of upstream's example images ex_p0 and ex_p1 against ex_ref."""


@pytest.fixture(scope="module")
def stand_in_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("base") / "perceptual_alex.safetensors"
    save_stand_in(torchvision.models.alexnet(weights=None).features.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def net(stand_in_file: Path) -> PerceptualNet:
    return read_perceptual(stand_in_file, "alex", "stand-in alex", is_stand_in=True)


@pytest.mark.parametrize("kind", ["alex", "vgg"])
def test_published_numbers(kind: str, weights_dir: Path) -> None:
    names = ("ex_ref.png", "ex_p0.png", "ex_p1.png")
    if not all((weights_dir / name).exists() for name in names):
        pytest.skip(f"LPIPS's example images {', '.join(names)} are not in {weights_dir}")
    images = [cv2.cvtColor(cv2.imread(str(weights_dir / name)), cv2.COLOR_BGR2RGB) for name in names]
    ref, p0, p1 = (torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1 for image in images)
    network = load_perceptual(kind, SimpleNamespace(models_dir=weights_dir, sample_models_dir=weights_dir))
    for picture, number in zip((p0, p1), PUBLISHED[kind], strict=True):
        assert network.distance(picture, ref).item() == pytest.approx(number, abs=1e-3)


@pytest.mark.parametrize("kind", ["alex", "vgg"])
def test_equals_lpips_own_computation(kind: str, weights_dir: Path) -> None:
    network = load_perceptual(kind, SimpleNamespace(models_dir=weights_dir, sample_models_dir=weights_dir))
    assert not network.is_stand_in
    x, y = torch.rand(2, 2, 3, 64, 80) * 2 - 1
    with torch.no_grad():
        expected = network.network(x, y).flatten()
        assert torch.allclose(network.distance(x, y), expected, atol=1e-5)
        assert torch.allclose(network.distance(x, y, torch.ones(2, 1, 64, 80)), expected, atol=1e-5)


def test_loads_without_download_and_names_what_is_missing(stand_in_file: Path, tmp_path: Path) -> None:
    folders = SimpleNamespace(models_dir=tmp_path, sample_models_dir=stand_in_file.parent)
    network = load_perceptual("stand_in", folders)
    assert network.is_stand_in
    assert "stand-in" in network.name
    with pytest.raises(PipelineError, match=r"lpips_vgg\.safetensors"):
        load_perceptual("vgg", folders)
    with pytest.raises(PipelineError, match="LPIPS vgg"):
        read_perceptual(stand_in_file, "vgg", "wrong trunk")
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    with pytest.raises(PipelineError, match="cannot be read"):
        read_perceptual(tmp_path / "broken.safetensors", "vgg", "broken")


def test_stays_in_evaluation_mode(net: PerceptualNet) -> None:
    net.train()
    x, y = torch.rand(2, 1, 3, 64, 64) * 2 - 1
    assert torch.equal(net.distance(x, y), net.distance(x, y))  # no dropout


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 1000), top=st.integers(0, 20), left=st.integers(0, 20), size=st.integers(24, 40))
def test_pixels_outside_the_mask_have_no_influence(
    net: PerceptualNet, seed: int, top: int, left: int, size: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, y, other = torch.rand(3, 1, 3, 64, 64, generator=generator) * 2 - 1
    mask = torch.zeros(1, 1, 64, 64)
    mask[:, :, top : top + size, left : left + size] = 1
    with torch.no_grad():
        expected = net.distance(x, y, mask)
        assert torch.equal(net.distance(torch.where(mask > 0, x, other), y, mask), expected)
        assert net.distance(x, torch.where(mask > 0, x, y), mask).item() == 0
        assert expected.item() > 0


def test_masked_distance_is_an_average_not_a_sum(net: PerceptualNet) -> None:
    x, y = torch.rand(2, 1, 3, 128, 128) * 2 - 1
    small, large = torch.zeros(2, 1, 1, 128, 128)
    small[:, :, 40:88, 40:88] = 1
    large[:, :, 8:120, 8:120] = 1
    with torch.no_grad():
        ratio = net.distance(x, y, small) / net.distance(x, y, large)
    assert 0.6 < ratio.item() < 1.6


def test_mask_too_small_gives_nan_and_no_gradient(net: PerceptualNet) -> None:
    x = (torch.rand(2, 3, 64, 64) * 2 - 1).requires_grad_()
    mask = torch.zeros(2, 1, 64, 64)
    mask[0, :, 10:50, 10:50] = 1
    mask[1, :, 10:12, 10:12] = 1
    distance = net.distance(x, torch.zeros_like(x), mask)
    assert distance.isnan().tolist() == [False, True]
    distance[0].backward()
    assert torch.isfinite(x.grad).all()
    assert x.grad[0].abs().sum() > 0
    assert x.grad[1].abs().sum() == 0


def test_gradient_is_finite_on_flat_images(net: PerceptualNet) -> None:
    x = torch.zeros(1, 3, 64, 64, requires_grad=True)
    net.distance(x, torch.ones(1, 3, 64, 64)).sum().backward()
    assert torch.isfinite(x.grad).all()


class Pictures(torch.utils.data.Dataset):
    def __init__(self, seed: int, count: int = 12) -> None:
        self.images = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, 3, 48, 48), np.uint8))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.images[index]


def test_stand_in_extractor_works_in_torch_fidelity(stand_in_file: Path, tmp_path: Path) -> None:
    folders = SimpleNamespace(models_dir=tmp_path, sample_models_dir=stand_in_file.parent)
    extractor, stand_in = feature_extractor.load_feature_extractor("inception-v3-compat", folders)
    assert stand_in
    assert extractor.get_name() == feature_extractor.NAME
    metrics = calculate_metrics(
        input1=Pictures(0),
        input2=Pictures(0),
        fid=True,
        cuda=False,
        verbose=False,
        cache=False,
        feature_extractor=feature_extractor.register(),
        feature_extractor_weights_path=str(stand_in_file),
        batch_size=4,
        save_cpu_ram=True,
    )
    assert abs(metrics["frechet_inception_distance"]) < 1e-2


def test_damaged_inception_is_named(stand_in_file: Path, tmp_path: Path) -> None:
    (tmp_path / feature_extractor.INCEPTION_FILE).write_bytes(b"no")
    folders = SimpleNamespace(models_dir=tmp_path, sample_models_dir=stand_in_file.parent)
    with pytest.raises(PipelineError, match="inception"):
        feature_extractor.load_feature_extractor("inception-v3-compat", folders)
