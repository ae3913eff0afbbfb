"""The metrics with published networks on a real portrait; skipped where the weights are not there."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data
import torch

from hair_pipeline.evaluation.metrics.learned import face_embeddings, hair_lpips, identity_similarity
from hair_pipeline.models.perceptual import read_perceptual
from hair_pipeline.models.recogniser import load_recogniser
from hair_pipeline.processing.compositing import paste_back
from hair_pipeline_tests.inputs.tiny_inputs import draw_person

MODELS = Path(
    os.environ.get("HAIR_PIPELINE_MODELS_DIR", Path(__file__).resolve().parents[2].parent / "shared" / "weights")
)
CPU = torch.device("cpu")
BOX = np.array([177, 64, 270, 182], np.float32)


def weights(name: str) -> Path:
    path = MODELS / name
    if not path.exists():
        pytest.skip(f"{path} is not there (HAIR_PIPELINE_MODELS_DIR)")
    return path


@pytest.fixture(scope="module")
def portrait() -> np.ndarray:
    return np.asarray(skimage.data.astronaut())


@pytest.fixture(scope="module")
def hair(portrait: np.ndarray) -> np.ndarray:
    """Roughly: an ellipse around the head without the face."""
    mask = np.zeros(portrait.shape[:2], np.uint8)
    cv2.ellipse(mask, (222, 110), (95, 110), 0, 0, 360, 1, -1)
    cv2.ellipse(mask, (224, 130), (44, 62), 0, 0, 360, 0, -1)
    return mask > 0


def test_identity_of_a_real_face(portrait: np.ndarray, hair: np.ndarray) -> None:
    recogniser = load_recogniser(weights("mobilefacenet.onnx"))
    redrawn = paste_back(portrait, cv2.GaussianBlur(portrait, (0, 0), 12), hair, 8)
    stranger = draw_person(0)
    same, pasted = (face_embeddings(recogniser, [image], [BOX], CPU) for image in (portrait, redrawn))
    other = face_embeddings(recogniser, [stranger.photo], [np.array(stranger.box, np.float32)], CPU)
    assert identity_similarity(same, same)[0] == pytest.approx(1, abs=1e-6)
    assert identity_similarity(same, pasted)[0] > 0.95
    assert identity_similarity(same, other)[0] < 0.5


def test_lpips_of_real_hair_grows_with_blur(portrait: np.ndarray, hair: np.ndarray) -> None:
    network = read_perceptual(weights("lpips_vgg.safetensors"), "vgg", "lpips-vgg")
    blurred = [portrait] + [paste_back(portrait, cv2.GaussianBlur(portrait, (0, 0), s), hair, 0) for s in (2, 8)]
    values = hair_lpips(network, [portrait] * 3, blurred, [hair] * 3, CPU)
    assert values[0] == pytest.approx(0, abs=1e-6)
    assert values[0] < values[1] < values[2]
