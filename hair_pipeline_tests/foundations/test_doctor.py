"""What `hair-pipeline doctor` says about weights and folders of a profile for real cards."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hair_pipeline.doctor import Finding, _executor, _inputs, _models_dir, _weights, _writable
from hair_pipeline.models.weights import INCEPTION_FILE
from hair_pipeline.profile import Profile, load_profile
from hair_pipeline.settings import Settings


def findings(models: Path, profile: Profile | None = None) -> dict[str, Finding]:
    """Role -> what is said of its weights."""
    found = _weights(Settings(models_dir=models), profile or load_profile("rtx24gb"))
    return {finding.what.removeprefix("weights for ").partition(":")[0]: finding for finding in found}


def test_what_is_missing_is_named_with_its_path_and_where_to_get_it(tmp_path: Path) -> None:
    found = findings(tmp_path)
    assert found["recogniser"].level == found["perceptual"].level == "error"
    assert str(tmp_path / "w600k_r50.onnx") in found["recogniser"].what
    assert "docs/ml-engineer.md" in found["perceptual"].remedy
    assert found["base"].level == "note"
    assert "will be downloaded" in found["base"].what
    assert found["inception"].level == "note"
    assert "not FID" in found["inception"].what
    assert str(tmp_path / INCEPTION_FILE) in found["inception"].what
    assert "torch-fidelity" in found["inception"].remedy


def test_empty_and_cut_weights_are_not_ok(tmp_path: Path) -> None:
    (tmp_path / "w600k_r50.onnx").touch()
    (tmp_path / INCEPTION_FILE).touch()
    lpips = tmp_path / "lpips_vgg.safetensors"
    save_file({"a": torch.zeros(100)}, lpips)
    assert findings(tmp_path)["perceptual"].level == "ok"
    lpips.write_bytes(lpips.read_bytes()[:-8])
    found = findings(tmp_path)
    assert [found[role].level for role in ("recogniser", "inception", "perceptual")] == ["error"] * 3
    assert f"{lpips} is damaged" in found["perceptual"].what


def test_a_base_without_its_networks_is_not_ok(tmp_path: Path) -> None:
    unet = tmp_path / "stable-diffusion-inpainting" / "unet"
    unet.mkdir(parents=True)
    assert findings(tmp_path)["base"].level == "error"
    for part in (unet, unet.with_name("vae")):
        part.mkdir(exist_ok=True)
        (part / "config.json").write_text("{}")
        save_file({"a": torch.zeros(1)}, part / "diffusion_pytorch_model.safetensors")
    assert "has no scheduler/scheduler_config.json" in findings(tmp_path)["base"].what
    scheduler = unet.with_name("scheduler") / "scheduler_config.json"
    scheduler.parent.mkdir()
    scheduler.write_text("{}")
    for part in ("text_encoder", "tokenizer"):
        assert f"has no {part}/" in findings(tmp_path)["base"].what
        unet.with_name(part).mkdir()
    assert findings(tmp_path)["base"].level == "ok"
    shards = [unet / f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = unet / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {path.stem: path.name for path in shards}}))
    assert findings(tmp_path)["base"].level == "ok"  # of shards that nobody downloaded
    save_file({"a": torch.zeros(1)}, shards[0])
    assert f"{shards[1]} is missing" in findings(tmp_path)["base"].what
    save_file({"a": torch.zeros(1)}, shards[1])
    assert findings(tmp_path)["base"].level == "ok"


def test_clip_is_looked_for_where_style_vectors_need_it(tmp_path: Path) -> None:
    assert "clip" not in findings(tmp_path)
    values = load_profile("rtx24gb").model_dump() | {"style_vectors": {"source": "clip"}}
    values["models"] |= {"clip": "clip-vit"}
    found = findings(tmp_path, Profile.model_validate(values))
    assert found["clip"].level == "error"
    assert str(tmp_path / "clip-vit") in found["clip"].what


def test_the_stand_ins_are_whole(tmp_path: Path) -> None:
    assert {finding.level for finding in findings(tmp_path, load_profile("sample")).values()} == {"ok"}


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_training_root_that_is_a_file_is_not_ok(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    assert "is not a folder" in _writable(tmp_path / name).what


@pytest.mark.parametrize(("engine", "module"), [("k8s", "dagster_k8s"), ("ray", "dagster_ray")])
def test_an_executor_without_its_extra_is_not_ok(monkeypatch: pytest.MonkeyPatch, engine: str, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    found = _executor(Settings(executor=engine))
    assert found.level == "error"
    assert f"uv sync --extra {engine}" in found.remedy
    assert _executor(Settings()).level == "ok"


def test_a_missing_sample_is_rendered_and_a_missing_folder_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("settings", "doctor"):
        monkeypatch.setattr(f"hair_pipeline.{module}.SAMPLE_ROOT", tmp_path / "sample")
    unset = Settings(k_hairstyle_root=tmp_path / "sample/k_hairstyle", training_face_root=tmp_path / "sample/faces")
    for found in _inputs(unset):
        assert found.level == "error"
        assert "hair-pipeline demo" in found.remedy
        assert "unset" not in found.remedy
    *_, customers = _inputs(unset.model_copy(update={"customers_root": tmp_path / "nobody"}))
    assert customers.remedy == "set HAIR_PIPELINE_CUSTOMERS_ROOT to a folder of photos, or unset it"


def test_an_input_folder_without_anything_in_it_is_said_in_words(tmp_path: Path) -> None:
    photos, faces, *_ = _inputs(Settings(k_hairstyle_root=tmp_path, training_face_root=tmp_path))
    assert photos.what == f"HAIR_PIPELINE_K_HAIRSTYLE_ROOT: no JPEG and no zip below {tmp_path}"
    assert faces.what == f"HAIR_PIPELINE_TRAINING_FACE_ROOT: no embedding (.npy) below {tmp_path}"


def test_customers_are_counted_before_the_training_not_after_it(tmp_path: Path) -> None:
    def said() -> Finding:
        *_, customers = _inputs(Settings(customers_root=tmp_path))
        return customers

    (tmp_path / "anna").mkdir()
    (tmp_path / "anna" / "anna.jpg").touch()
    assert said().level == "error"
    assert "no photo right in" in said().what
    for number in range(load_profile("sample").ab_test.min_people):
        (tmp_path / f"{number}_bald.png").touch()
        (tmp_path / f"{number}.JPG").touch()
        if number == 0:
            assert said().level == "note"
    assert said().level == "ok"


def test_a_models_folder_that_is_none_is_said(tmp_path: Path) -> None:
    assert not list(_models_dir(Settings(models_dir=tmp_path)))
    (finding,) = _models_dir(Settings(models_dir=tmp_path / "none"))
    assert finding.level == "error"
    assert "HAIR_PIPELINE_MODELS_DIR" in finding.what
