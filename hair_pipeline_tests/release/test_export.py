"""From an approved model to serving: refusals, round trips, byte-identity outside the mask."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image, ImageCms
from safetensors.torch import load_file

from hair_pipeline.errors import PipelineError, ReleaseRefused
from hair_pipeline.evaluation.ab_test import run_ab_test
from hair_pipeline.evaluation.contenders import ModelContender, resolve
from hair_pipeline.evaluation.fingerprints import drawn_by
from hair_pipeline.evaluation.picture_settings import PictureSettings
from hair_pipeline.evaluation.report import evaluate
from hair_pipeline.files import encode_image, hash_file, read_image, write_bytes
from hair_pipeline.inputs.head_crop import head_crop
from hair_pipeline.models.base import load_base
from hair_pipeline.models.inpainter import FINETUNED_FILE, HairInpainter, predict
from hair_pipeline.models.patch_encoder import PatchEncoder
from hair_pipeline.models.pipeline import HairInpaintPipeline
from hair_pipeline.models.style_projection import StyleProjection
from hair_pipeline.models.weights import base_reference
from hair_pipeline.processing.bald import make_bald
from hair_pipeline.processing.fringe import with_forehead
from hair_pipeline.release import export
from hair_pipeline.release.export import export_weights, reload_exported
from hair_pipeline.release.registry import Registry, record_candidate
from hair_pipeline.release.serving import load, try_on_files
from hair_pipeline_tests.evaluation.tiny_world import World, cases_of, make_world, write_stage2
from hair_pipeline_tests.inputs.tiny_inputs import (
    draw_person,
    embedding,
    lay,
    place,
    write_face,
    write_rgb,
    write_tagged,
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("release"), people=5, customers=6)


def other_settings(world: World) -> World:
    """The same world with a profile that draws otherwise."""
    profile = world.profile
    sampler = profile.evaluation.model_copy(update={"steps": 1, "guidance_scale": 15.0})
    bald = profile.processing.bald.model_copy(update={"growth": 0.2})
    processing = profile.processing.model_copy(update={"bald": bald})
    return replace(world, profile=profile.model_copy(update={"evaluation": sampler, "processing": processing}))


def judge(world: World, verdict: str, old: str = "untrained") -> None:
    """Evaluate, run the A/B test, then let it say `verdict`."""
    settings = world.settings
    evaluate(settings, world.profile)
    result = run_ab_test(world.inputs.customers, old, "current", settings.reports / "ab", settings, world.profile)
    path = result.folder / "verdict.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"verdict": verdict}))


def test_export_refuses_without_an_approving_verdict_on_this_model(world: World) -> None:
    with pytest.raises(PipelineError, match="has not been evaluated"):
        export_weights(world.settings, world.profile)
    report = evaluate(world.settings, world.profile)
    with pytest.raises(PipelineError, match="no A/B test"):
        export_weights(world.settings, world.profile)
    metrics = json.loads((report.folder / "metrics.json").read_text())
    for name, change, why in (
        (
            "identity_raw_stand_in",
            {"value": None, "n": 0, "reason": "no reliable face"},
            "identity_raw.*no reliable face",
        ),
        ("identity_stand_in", {"value": 0.69, "passed": True}, r"identity is 0\.69, must be at least 0\.7 "),
        ("leakage_swap", {"value": 0.06, "passed": True}, r"leakage_swap is 0\.06, must be at most 0\.05 "),
        ("untouched_changed", {"value": 0.01, "passed": True}, r"untouched_changed is 0\.01, must be at most 0\.0 "),
    ):
        spoilt = metrics | {"metrics": metrics["metrics"] | {name: metrics["metrics"][name] | change}}
        (report.folder / "metrics.json").write_text(json.dumps(spoilt))
        with pytest.raises(ReleaseRefused, match=why):
            export_weights(world.settings, world.profile)
    (report.folder / "metrics.json").write_text(json.dumps(metrics))
    for verdict in ("reject", "inconclusive"):
        judge(world, verdict)
        with pytest.raises(ReleaseRefused, match=verdict):
            export_weights(world.settings, world.profile)
    judge(world, "approve")
    pointer = world.settings.reports / "ab" / "current.json"
    content = json.loads(pointer.read_text())
    path = world.settings.reports / "ab" / content["folder"] / "verdict.json"
    verdict_file = json.loads(path.read_text())
    path.write_text(json.dumps(verdict_file | {"new": {"label": "x", "version": "somethingelse"}}))
    with pytest.raises(PipelineError, match="judged version somethingelse") as told:
        export_weights(world.settings, world.profile)
    assert not isinstance(told.value, ReleaseRefused)
    path.write_text("{")
    with pytest.raises(PipelineError, match="not JSON") as told:
        export_weights(world.settings, world.profile)
    assert not isinstance(told.value, ReleaseRefused)
    assert not (world.settings.checkpoints / "unet_hair_inpainting.safetensors").exists()
    path.write_text(json.dumps(verdict_file))


@pytest.fixture(scope="module")
def exported(world: World) -> World:
    judge(world, "approve")
    export_weights(world.settings, world.profile)
    return world


def test_export_writes_what_others_load(exported: World) -> None:
    result = export_weights(exported.settings, exported.profile)  # again: unchanged
    checkpoints = exported.settings.checkpoints
    assert {p.relative_to(result.folder).as_posix(): hash_file(p) for p in result.files} == result.hashes
    stock = UNet2DConditionModel.from_pretrained(result.folder, subfolder="unet").state_dict()
    single = load_file(checkpoints / "unet_hair_inpainting.safetensors")
    assert stock.keys() == single.keys()
    assert all(torch.equal(stock[name], single[name]) for name in stock)
    half = UNet2DConditionModel.from_pretrained(
        result.folder, subfolder="unet", variant="fp16", torch_dtype=torch.float16
    ).state_dict()
    assert all(half[name].dtype == torch.float16 for name in half)
    assert all(torch.allclose(half[name].float(), stock[name], rtol=1e-3, atol=1e-6) for name in stock)
    assert load_file(checkpoints / "unet_hair_inpainting.fp16.safetensors").keys() == single.keys()
    assert json.loads((checkpoints / "config.json").read_text())["in_channels"] == 9
    PatchEncoder.load(checkpoints / "style_patch_encoder.pt")
    torch.load(checkpoints / "style_patch_encoder.pt", weights_only=True)
    assert (checkpoints / "adapters" / "pytorch_lora_weights.safetensors").exists()
    assert (checkpoints / "adapters" / "ip_adapter.safetensors").exists()
    StyleProjection.from_pretrained(checkpoints / "adapters" / "style_projection")
    card = (checkpoints / "README.md").read_text()
    for word in ("K-Hairstyle", "research use", "insightface", "non-commercial", FINETUNED_FILE, result.version):
        assert word in card


def test_the_exported_version_is_loaded_again_and_damage_is_named(exported: World) -> None:
    found = reload_exported(exported.settings)
    assert (found.damaged, found.not_finite) == ([], [])
    assert found.parameters > 10_000
    folder = exported.settings.checkpoints / "versions" / found.version
    weights = folder / "style_patch_encoder.pt"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-10])
    assert reload_exported(exported.settings).damaged == ["style_patch_encoder.pt"]
    weights.write_bytes(whole)


def test_a_version_once_exported_is_never_rewritten(exported: World) -> None:
    """Another model is exported in between; going back finds the first one's files as they were."""
    settings, profile = exported.settings, exported.profile
    first = export_weights(settings, profile)
    write_stage2(settings, profile, seed=1)
    judge(exported, "approve")
    second = export_weights(settings, profile)
    assert second.version != first.version
    assert write_stage2(settings, profile, seed=0) == first.version
    judge(exported, "approve")
    again = export_weights(settings, profile)
    assert again.hashes == first.hashes
    assert {p.relative_to(first.folder).as_posix(): hash_file(p) for p in first.files} == first.hashes


def test_what_is_exported_is_what_was_judged(exported: World) -> None:
    """Steps, guidance and hair removal of the profile at export time are those of the A/B test, or nothing is."""
    settings, other = exported.settings, other_settings(exported)
    before = export_weights(settings, exported.profile)
    with pytest.raises(
        PipelineError, match=r"steps is 1, not 2; guidance_scale is 15.0, not .*bald.*growth 0.2"
    ) as said:
        export_weights(settings, other.profile)
    assert "A/B test again" in said.value.remedy
    assert export_weights(settings, exported.profile).hashes == before.hashes
    judge(other, "approve")
    card = json.loads((export_weights(settings, other.profile).folder / "hair_pipeline.json").read_text())
    assert (card["steps"], card["guidance_scale"], card["bald"]["growth"]) == (1, 15.0, 0.2)
    judge(exported, "approve")
    assert export_weights(settings, exported.profile).hashes["vae/config.json"] == before.hashes["vae/config.json"]


def test_a_verdict_that_names_no_settings_is_no_ground_for_an_export(exported: World) -> None:
    ab = exported.settings.reports / "ab"
    path = ab / json.loads((ab / "current.json").read_text())["folder"] / "verdict.json"
    whole = path.read_text()
    content = json.loads(whole)
    del content["new"]["settings"]
    path.write_text(json.dumps(content))
    with pytest.raises(PipelineError, match="does not say with which settings"):
        export_weights(exported.settings, exported.profile)
    path.write_text(whole)


def test_an_exported_version_is_compared_as_it_serves(exported: World) -> None:
    """Under whatever profile the test runs: steps, guidance and hair removal are those of the version's card."""
    settings, other = exported.settings, other_settings(exported)
    folder = str(export_weights(settings, exported.profile).folder)
    own, elsewhere = (resolve(folder, settings, world.profile) for world in (exported, other))
    assert elsewhere.settings == own.settings
    cases = [case for world in (exported, other) for case in cases_of(world)[:1]]
    assert not np.array_equal(cases[0].bald, cases[1].bald)
    first, second = own.draw(cases[:1])[0], elsewhere.draw(cases[1:])[0]
    assert np.array_equal(first.final, second.final)  # type: ignore[union-attr]
    sent = replace(cases[1], bald=np.zeros_like(cases[1].bald))  # by the customer: it stays
    third = elsewhere.draw([sent])[0]
    assert not np.array_equal(third.final, second.final)  # type: ignore[union-attr]


def test_the_side_of_the_squares_that_were_judged_is_said_not_the_versions_own(exported: World) -> None:
    folder = str(export_weights(exported.settings, exported.profile).folder)
    processing = exported.profile.processing.model_copy(update={"size": 96})
    smaller = resolve(folder, exported.settings, exported.profile.model_copy(update={"processing": processing}))
    assert smaller.settings is not None
    own = PictureSettings.of(exported.profile)
    assert own.differences(smaller.settings) == ["size is 128, not 96"]


def test_the_exported_version_draws_what_stage2_draws(exported: World) -> None:
    settings, profile = exported.settings, exported.profile
    case = cases_of(exported)[0]
    folder = export_weights(settings, profile).folder
    drawn = [resolve(spec, settings, profile).draw([case])[0] for spec in ("current", str(folder))]
    first, second = (d.raw.astype(int) for d in drawn)  # type: ignore[union-attr]
    assert np.abs(first - second).max() <= 1


@torch.no_grad()
def test_the_merged_unet_equals_the_lora_on_its_base(exported: World) -> None:
    """In fp32 to 1e-4, with the light files that were published; what the LoRA does is larger by far."""
    settings = exported.settings
    base = load_base(base_reference(settings, exported.profile), settings.models_dir)
    light = HairInpainter.from_adapters(base, settings.checkpoints / "adapters").eval()
    merged = HairInpaintPipeline.from_pretrained(export_weights(settings, exported.profile).folder).unet
    torch.manual_seed(0)
    tokens = light.style_projection(torch.randn(2, 16))
    inputs = (
        torch.randn(2, 4, 32, 32),
        torch.tensor([10, 700]),
        (torch.rand(2, 1, 32, 32) > 0.5).float(),
        torch.randn(2, 4, 32, 32),
        tokens,
        torch.nn.functional.normalize(torch.randn(2, 512), dim=1),
        torch.rand(2, 1, 32, 32),
    )
    first, second = (predict(unet, *inputs) for unet in (light.unet, merged))
    assert (first - second).abs().max() < 1e-4
    light.unet.disable_adapters()
    assert (predict(light.unet, *inputs) - first).abs().max() > 1e-2


def test_candidate_waits_for_a_person_then_goes_into_production(exported: World) -> None:
    settings, profile = exported.settings, exported.profile
    waiting = record_candidate(settings, profile)
    assert waiting.state == "awaiting sign-off"
    assert f"registry sign-off {waiting.version} --reviewer NAME --decision approve" in waiting.message
    registry = Registry(settings.registry_path)
    assert registry.production() is None
    registry.sign_off(waiting.version, "Kim", "reject", "halo at the ears")
    with pytest.raises(ReleaseRefused, match="rejected by Kim"):
        record_candidate(settings, profile)
    registry.sign_off(waiting.version, "Kim", "approve")
    assert record_candidate(settings, profile).state == "promoted"
    assert registry.production() == waiting.version
    assert record_candidate(settings, profile).state == "promoted"
    judge(exported, "reject")  # the verdict is read again, whatever was recorded
    with pytest.raises(ReleaseRefused, match="reject"):
        record_candidate(settings, profile)
    judge(exported, "approve")


def test_a_registered_version_is_made_again_as_it_was_or_not_at_all(
    exported: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, profile = exported.settings, exported.profile
    result = export_weights(settings, profile)
    record_candidate(settings, profile)
    monkeypatch.setattr(export, "environment", lambda: {"git_commit": "a later one"})
    for name in ("hair_pipeline.json", "README.md", "vae/config.json", "style_patch_encoder.pt"):
        (result.folder / name).unlink()
    assert export_weights(settings, profile).hashes == result.hashes
    assert Registry(settings.registry_path).damaged_files(result.version) == []
    record_candidate(settings, profile)

    other = other_settings(exported)
    judge(other, "approve")
    for damaged in ("nothing", "vae/config.json"):
        (result.folder / damaged).unlink(missing_ok=True)
        with pytest.raises(PipelineError, match="registered with other settings: steps is 1, not 2"):
            export_weights(settings, other.profile)
    judge(exported, "approve")

    monkeypatch.setattr(export, "_forget_places", lambda _: None)  # as if another library wrote it
    with pytest.raises(PipelineError, match=r"cannot be made again as they were: vae/config\.json") as said:
        export_weights(settings, profile)
    assert "backup" in said.value.remedy
    assert (result.folder / "hair_pipeline.json").exists()
    monkeypatch.undo()
    assert export_weights(settings, profile).hashes == result.hashes


def test_a_registered_version_with_a_changed_weight_is_not_loaded(exported: World, tmp_path: Path) -> None:
    settings, profile = exported.settings, exported.profile
    result = export_weights(settings, profile)
    record_candidate(settings, profile)
    copy = tmp_path / result.version
    shutil.copytree(result.folder, copy)
    before = drawn_by(resolve(str(copy), settings, profile), settings, profile)
    for folder in (result.folder, copy):
        weights = next((folder / "unet").glob("*.safetensors"))
        data = weights.read_bytes()
        weights.write_bytes(data[:-64] + bytes(64))
    for spec in (result.version, str(result.folder)):
        with pytest.raises(PipelineError, match=rf"gone or changed since they were registered: unet/{weights.name}"):
            load(spec, settings, profile)
    assert drawn_by(resolve(str(copy), settings, profile), settings, profile) != before
    (result.folder / "unet" / weights.name).write_bytes(data)
    load(result.version, settings, profile)


def test_checkpoints_and_reports_may_be_links_to_another_disk(exported: World, tmp_path: Path) -> None:
    result = export_weights(exported.settings, exported.profile)
    for folder in exported.settings.training_root.iterdir():
        if folder.name != "registry":
            (tmp_path / folder.name).symlink_to(folder)
    settings = exported.settings.model_copy(update={"training_root": tmp_path})
    assert export_weights(settings, exported.profile).hashes == result.hashes
    assert record_candidate(settings, exported.profile).state == "awaiting sign-off"
    registry = Registry(settings.registry_path)
    registry.sign_off(result.version, "Kim", "approve")
    assert record_candidate(settings, exported.profile).state == "promoted"
    assert load("production", settings, exported.profile).version == result.version
    assert reload_exported(settings).damaged == []


def test_no_path_of_this_machine_is_exported(exported: World) -> None:
    folder = export_weights(exported.settings, exported.profile).folder
    texts = [path.read_text() for pattern in ("*.json", "*.md") for path in folder.rglob(pattern)]
    assert len(texts) > 5
    assert not any(str(exported.settings.training_root.parent) in text for text in texts)


def test_production_is_not_compared_with_itself(exported: World, tmp_path: Path) -> None:
    settings, profile = exported.settings, exported.profile
    record_candidate(settings, profile)
    registry = Registry(settings.registry_path)
    if registry.production() is None:
        version = next(iter(registry.list()))
        registry.sign_off(version, "Kim", "approve")
        registry.promote(version)
    run_ab_test(exported.inputs.customers, "production", "current", tmp_path / "ab", settings, profile)
    data = json.loads((tmp_path / "ab" / "verdict.json").read_text())
    assert data["old"]["label"] == "untrained base"


def test_damaged_exports_and_another_style_source_are_explained(exported: World, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(export_weights(exported.settings, exported.profile).folder, folder)
    weights = next((folder / "unet").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(PipelineError, match=f"{re.escape(str(weights))} is damaged"):
        load(folder, exported.settings, exported.profile)
    shutil.rmtree(folder / "unet")
    with pytest.raises(PipelineError, match="cannot be loaded"):
        load(folder, exported.settings, exported.profile)
    person = draw_person(1, size=128)
    pointer = exported.settings.runs / "stage2" / "current.json"
    before = pointer.read_bytes()
    write_stage2(exported.settings, exported.profile, seed=9, style_dim=24)
    try_on = load("current", exported.settings, exported.profile)
    pointer.write_bytes(before)
    with pytest.raises(PipelineError, match=r"style_vectors\.source = 'patch_encoder' gives .*16 .* with 24"):
        try_on.style_of(person.photo, person.hair_mask)


@pytest.mark.parametrize(("width", "height"), [(300, 200), (90, 140)])
def test_try_on_changes_nothing_outside_the_mask(exported: World, width: int, height: int) -> None:
    person = draw_person(1, size=128)
    canvas = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    hair, face = np.zeros((height, width), bool), np.zeros((height, width), bool)
    h, w = min(height, 128), min(width, 128)
    top, left = height - h, 0  # in the corner: the crop reaches the photo's edge
    canvas[top:, left : left + w] = person.photo[:h, :w]
    hair[top:, left : left + w], face[top:, left : left + w] = person.hair_mask[:h, :w], person.face_mask[:h, :w]
    folder = export_weights(exported.settings, exported.profile).folder
    try_on = load(folder, exported.settings, exported.profile)
    style = try_on.style_of(canvas, hair)
    before = canvas.copy()
    result = try_on(canvas, hair, face, embedding(1), style)
    repaint = make_bald(canvas, hair, face, exported.profile.processing.bald)[1]
    assert result.shape == canvas.shape
    assert np.array_equal(canvas, before)
    changed = (result != canvas).any(2)
    crop = head_crop(hair, face)
    grown = np.zeros_like(changed)
    grown[crop.window] = True
    assert not changed[~grown].any()
    assert not changed[~repaint].any()
    assert changed[hair].mean() > 0.5


def test_try_on_files_finds_outputs_takes_masks_and_explains(exported: World, tmp_path: Path) -> None:
    settings, profile = exported.settings, exported.profile
    folder = str(export_weights(settings, profile).folder)
    person, other = draw_person(0, size=160), draw_person(1, size=128)
    write_rgb(tmp_path / "anna.png", person.photo)
    write_face(tmp_path / "anna", person, embedding(0))
    write_rgb(tmp_path / "style.jpg", other.photo)
    out = tmp_path / "result.png"
    with pytest.raises(PipelineError, match=r"no hair mask.*style") as missing:
        try_on_files(folder, tmp_path / "anna.png", tmp_path / "style.jpg", out, None, settings, profile)
    assert "--style-mask" in missing.value.message
    mask = np.repeat(other.hair_mask[..., None], 3, 2).astype(np.uint8) * 255
    write_bytes(tmp_path / "mask.png", encode_image(mask, ".png"))
    written = try_on_files(
        folder,
        tmp_path / "anna.png",
        tmp_path / "style.jpg",
        out,
        None,
        settings,
        profile,
        style_mask=tmp_path / "mask.png",
    )
    result = read_image(written)
    masks = with_forehead(person.hair_mask, person.face_mask, np.array(person.box, np.float32))
    repaint = make_bald(person.photo, *masks, profile.processing.bald)[1]
    assert np.array_equal(result[~repaint], person.photo[~repaint])
    with pytest.raises(PipelineError, match="the mask is 128x128, the photo 160x160"):
        try_on_files(
            folder,
            tmp_path / "anna.png",
            tmp_path / "style.jpg",
            out,
            None,
            settings,
            profile,
            hair_mask=tmp_path / "mask.png",
        )
    with pytest.raises(PipelineError, match=r"\.gif"):
        try_on_files(folder, tmp_path / "anna.png", tmp_path / "style.jpg", tmp_path / "x.gif", None, settings, profile)


def test_a_phone_photo_comes_back_upright_with_its_colours(exported: World, tmp_path: Path) -> None:
    settings, profile = exported.settings, exported.profile
    person = place(draw_person(0, size=96), 160, 220, 40, 60)
    colours = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    write_tagged(tmp_path / "anna.png", lay(person, 6).photo, 6, colours)
    write_face(tmp_path / "anna", person, embedding(0))
    model = str(export_weights(settings, profile).folder)
    photo, out = tmp_path / "anna.png", tmp_path / "result.png"
    with Image.open(try_on_files(model, photo, photo, out, None, settings, profile)) as written:
        assert written.size == (160, 220)
        assert written.info["icc_profile"] == colours
        assert not written.getexif()
        result = np.asarray(written)
    masks = with_forehead(person.hair_mask, person.face_mask, np.array(person.box, np.float32))
    repaint = make_bald(person.photo, *masks, profile.processing.bald)[1]
    assert np.array_equal(result[~repaint], person.photo[~repaint])


def test_serving_a_folder_of_pictures_or_nothing_is_refused(exported: World, tmp_path: Path) -> None:
    write_rgb(tmp_path / "a.png", draw_person(0, size=64).photo)
    with pytest.raises(PipelineError, match="not a model"):
        load(tmp_path, exported.settings, exported.profile)
    assert isinstance(resolve("current", exported.settings, exported.profile), ModelContender)
