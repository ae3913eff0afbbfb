"""The shipped bundle: as its card says, and good enough on people nobody was trained on."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch_fidelity

from hair_pipeline.models.base import decode, encode, load_base
from hair_pipeline.models.feature_extractor import NAME, register
from hair_pipeline.models.patch_encoder import PatchEncoder
from hair_pipeline.models.recogniser import load_recogniser
from hair_pipeline.models.style_classifier import StyleClassifier
from hair_pipeline.models.weights import STAND_IN_PATCH_ENCODER
from hair_pipeline.profile import load_profile
from hair_pipeline.sample.people import Person, View, make_people, make_views
from hair_pipeline.sample.render import Photo, build_model, render
from hair_pipeline.settings import SAMPLE_MODELS_ROOT
from hair_pipeline.vocabulary import CURL_CLASSES
from hair_pipeline_tests.models.bundle import check_bundle

SEED = 23
"""Of people that neither the recipe nor the sample renders."""


def test_the_bundle_is_what_its_card_says() -> None:
    check_bundle(SAMPLE_MODELS_ROOT)


@pytest.fixture(scope="module")
def strangers() -> list[tuple[Person, View, Photo]]:
    found = []
    for person in make_people(30, SEED):
        model = build_model(person)
        found += [(person, view, render(model, view, blur_face=False)) for view in make_views(person, 2)]
    return found


def pixels(photos: list[tuple[Person, View, Photo]], side: int) -> torch.Tensor:
    stack = torch.from_numpy(np.stack([photo.image for _, _, photo in photos])).permute(0, 3, 1, 2).float()
    small = torch.nn.functional.interpolate(stack, size=(side, side), mode="area")
    return small / 127.5 - 1


@pytest.mark.slow
def test_the_vae_keeps_strangers_at_28_decibels(strangers: list[tuple[Person, View, Photo]]) -> None:
    vae = load_base(SAMPLE_MODELS_ROOT / "inpainting").vae
    images = pixels(strangers[:32], 128)
    with torch.no_grad():
        error = ((decode(vae, encode(vae, images)).clamp(-1, 1) - images) / 2).square().mean((1, 2, 3))
    assert float((-10 * error.log10()).mean()) >= 28


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "least_curl", "least_bangs"), [("loss", 0.85, 0.95), ("evaluation", 0.85, 0.95)])
def test_the_classifiers_see_curl_and_bangs_of_strangers(
    strangers: list[tuple[Person, View, Photo]], variant: str, least_curl: float, least_bangs: float
) -> None:
    """Floors under what the card says of held-out people; by chance it would be 1/3 and 1/2."""
    classifier = StyleClassifier.load(SAMPLE_MODELS_ROOT / "style_classifier" / variant)
    with torch.no_grad():
        seen = classifier(pixels(strangers, 128))
    curl = torch.tensor([CURL_CLASSES.index(person.hair.curl_class) for person, _, _ in strangers])
    bangs = torch.tensor([int(person.hair.has_bangs) for person, _, _ in strangers])
    assert float((seen["curl"].argmax(1) == curl).float().mean()) >= least_curl
    assert float((seen["bangs"].argmax(1) == bangs).float().mean()) >= least_bangs


@pytest.mark.slow
def test_the_recogniser_tells_strangers_apart(strangers: list[tuple[Person, View, Photo]]) -> None:
    recogniser = load_recogniser(SAMPLE_MODELS_ROOT / "face_recogniser.onnx")
    boxes = torch.tensor([photo.box for _, _, photo in strangers])
    with torch.no_grad():
        vectors = recogniser.embed(pixels(strangers, 512), boxes)
    cosine = vectors @ vectors.T
    people = torch.arange(len(strangers)) // 2
    same = (people[:, None] == people) & ~torch.eye(len(people), dtype=torch.bool)
    other = people[:, None] != people
    assert float((cosine[same][:, None] > cosine[other]).float().mean()) >= 0.99


def test_the_feature_extractor_has_its_own_name_in_torch_fidelity() -> None:
    assert register() == NAME
    torch.manual_seed(0)
    noise = torch.randint(0, 256, (12, 3, 64, 64), dtype=torch.uint8)

    class Images(torch.utils.data.Dataset):
        def __init__(self, images: torch.Tensor) -> None:
            self.images = images

        def __len__(self) -> int:
            return len(self.images)

        def __getitem__(self, index: int) -> torch.Tensor:
            return self.images[index]

    measured = torch_fidelity.calculate_metrics(
        input1=Images(noise[:6]),
        input2=Images(noise[6:] // 4),
        feature_extractor=NAME,
        feature_extractor_weights_path=str(SAMPLE_MODELS_ROOT / "perceptual_alex.safetensors"),
        fid=True,
        cuda=False,
        verbose=False,
    )
    assert measured["frechet_inception_distance"] > 0


def test_quality_on_the_card_reaches_the_targets() -> None:
    quality = json.loads((SAMPLE_MODELS_ROOT / "card.json").read_text())["quality"]
    assert quality["inpainting-vae"]["psnr"] >= 28
    assert quality["face-recogniser"]["held_out_auc"] >= 0.99
    assert quality["perceptual-trunk"]["triplets"] >= 0.9


def test_the_patch_encoder_is_the_profiles() -> None:
    encoder = PatchEncoder.load(SAMPLE_MODELS_ROOT / STAND_IN_PATCH_ENCODER)
    assert encoder.config == PatchEncoder.from_config(load_profile("sample").patch_encoder).config
    card = json.loads((SAMPLE_MODELS_ROOT / "card.json").read_text())
    assert card["quality"]["patch-encoder"]["style_vector_curl_r_at_1"] >= 0.85
