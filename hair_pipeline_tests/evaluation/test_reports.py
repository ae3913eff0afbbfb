"""The validation report and the A/B test on a tiny world: files, schema, reasons, self-contained pages."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from hair_pipeline.errors import PipelineError
from hair_pipeline.evaluation.ab_test import run_ab_test
from hair_pipeline.evaluation.cases import Case, plan_validation
from hair_pipeline.evaluation.contenders import Drawing, ModelContender, PictureContender, resolve
from hair_pipeline.evaluation.judges import SAME_AS_LOSS, load_judges
from hair_pipeline.evaluation.metrics.definitions import METRICS
from hair_pipeline.evaluation.report import evaluate
from hair_pipeline.evaluation.report_tables import worst_cases
from hair_pipeline.evaluation.schema import MetricEntry, MetricsFile, VerdictFile
from hair_pipeline.files import read_image
from hair_pipeline.inputs.catalog import read_catalog
from hair_pipeline.inputs.members import Members
from hair_pipeline.models.recogniser import SmallFaceNet, export_onnx
from hair_pipeline.training.data import read_style_vectors
from hair_pipeline_tests.evaluation.tiny_world import World, cases_of, make_world, write_stage2
from hair_pipeline_tests.inputs.tiny_inputs import write_rgb

ENTRY = {"value", "ci_low", "ci_high", "n", "people", "reason", "direction", "threshold", "passed", "extractor"}


def assert_self_contained(page: Path) -> str:
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"(src|href|url)\s*[=(]\s*[\"']?\s*(https?:|//|file:)", text, re.IGNORECASE)
    assert "<script" not in text
    assert text.count("data:image/jpeg;base64,") >= 4
    return text


def test_report_files_schema_and_reuse(world: World) -> None:
    result = evaluate(world.settings, world.profile)
    assert result.folder == world.settings.reports / "eval" / result.version
    data = json.loads((result.folder / "metrics.json").read_text())
    assert len(data["metrics"]) == len(METRICS)
    for entry in data["metrics"].values():
        assert set(entry) >= ENTRY
        assert (entry["value"] is None) == (entry["reason"] is not None and entry["n"] == 0)
        if entry["ci_low"] is not None:
            assert entry["ci_low"] <= entry["value"] <= entry["ci_high"]
    assert data["metrics"]["untouched_changed"]["value"] == 0
    assert data["metrics"]["untouched_changed"]["passed"] is True
    assert {"lpips_hair_stand_in", "identity_raw_stand_in"} <= set(data["metrics"])
    assert not {"lpips_hair", "identity_raw", "frechet_ring"} & set(data["metrics"])
    table = pd.read_parquet(result.folder / "per_image.parquet")
    assert set(table["model"]) == {"model", "base"}
    assert {"lpips_hair_stand_in", "identity_raw_stand_in", "halo"} <= set(table.columns)
    assert not {"lpips_hair", "identity_raw"} & set(table.columns)
    own = table[(table.model == "model") & ~table.transfer]
    assert len(own) == data["images"]
    assert (table[table.transfer].style_from != table[table.transfer].image_id).all()
    swapped = table[(table.model == "model") & table.leakage_swap.notna()]
    assert len(swapped) == swapped.person.nunique() == world.profile.evaluation.leakage_images
    text = assert_self_contained(result.report_path)
    shown = re.findall(r"<b>(.+?)</b>", text.partition("<h2>Own style")[2])[: world.profile.evaluation.grid_rows]
    assert own.set_index("image_id").person[shown].nunique() == world.profile.evaluation.grid_rows
    assert "stand-in" in text
    assert "Fréchet distance" in text
    assert ">FID in" not in text
    assert result.preview.stat().st_size <= 20_000
    again = evaluate(world.settings, world.profile)
    assert again.reused
    assert again.data_version == result.data_version
    assert again.numbers == result.numbers


def test_the_same_seed_gives_the_same_picture_in_any_batch(world: World) -> None:
    cases = cases_of(world)
    contender = resolve("current", world.settings, world.profile)
    together = contender.draw(cases[:3])
    alone = contender.draw(cases[1:2])
    assert not isinstance(together[1], str)
    assert not isinstance(alone[0], str)
    difference = np.abs(together[1].final.astype(int) - alone[0].final.astype(int))
    assert difference.max() <= 2  # rounding of batched arithmetic


def test_blurred_faces_give_null_identity_with_a_reason_and_no_verdict(tmp_path: Path) -> None:
    world = make_world(tmp_path, people=6, customers=0, blurred_people=6)
    result = evaluate(world.settings, world.profile)
    assert result.numbers["identity_raw_stand_in"] is None
    data = json.loads((result.folder / "metrics.json").read_text())
    assert "reliable" in data["metrics"]["identity_raw_stand_in"]["reason"]
    verdict = run_ab_test(None, "untrained", "current", world.settings.reports / "ab", world.settings, world.profile)
    assert verdict.verdict == "inconclusive"
    assert "identity" in verdict.reasons[0]
    assert verdict.numbers["improvement"] is None
    text = assert_self_contained(verdict.report_path)
    assert "held-out validation people" in text
    assert "Not measured" in text


def test_a_missing_judge_is_null_with_the_files_name(tmp_path: Path) -> None:
    world = make_world(tmp_path, people=5, customers=0)
    (world.settings.sample_models_dir / "perceptual_alex.safetensors").unlink()
    result = evaluate(world.settings, world.profile)
    assert result.numbers["lpips_hair"] is None
    data = json.loads((result.folder / "metrics.json").read_text())
    assert "perceptual_alex.safetensors" in data["metrics"]["lpips_hair"]["reason"]
    verdict = run_ab_test(None, "untrained", "current", tmp_path / "ab", world.settings, world.profile)
    assert verdict.verdict == "inconclusive"


def test_ab_of_customers_writes_everything_and_is_reused(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "customers"
    shutil.copytree(world.inputs.customers, folder)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 no image")
    result = run_ab_test(folder, "untrained", "current", tmp_path / "out", world.settings, world.profile)
    data = json.loads((tmp_path / "out" / "verdict.json").read_text())
    assert data["verdict"] == result.verdict
    assert "broken.jpg" in data["left_out"]
    assert data["new"]["version"] == result.version
    table = pd.read_parquet(tmp_path / "out" / "per_image.parquet")
    pairs = table.pivot_table(index="image_id", columns="model", values="seed")
    assert (pairs["old"] == pairs["new"]).all()
    assert len(pairs) == 6
    assert "broken.jpg" in assert_self_contained(result.report_path)
    stamp = result.report_path.stat().st_mtime_ns
    again = run_ab_test(folder, "untrained", "current", tmp_path / "out", world.settings, world.profile)
    assert again == result
    assert result.report_path.stat().st_mtime_ns == stamp


def test_another_look_at_the_same_models_is_counted_and_warned_of(world: World) -> None:
    ab_folder = world.settings.reports / ".." / "reports" / "ab"  # the managed folder all the same
    shutil.rmtree(world.settings.reports / "ab", ignore_errors=True)
    for looks in (0, 1):
        rule = world.profile.ab_test.model_copy(update={"seed": looks})
        profile = world.profile.model_copy(update={"ab_test": rule})
        result = run_ab_test(world.inputs.customers, "untrained", "current", ab_folder, world.settings, profile)
        assert json.loads((result.folder / "verdict.json").read_text())["earlier_verdicts"] == looks
        assert f"{looks} earlier verdict" in result.report_path.read_text()
        assert any("1 earlier test has a verdict" in reason for reason in result.reasons) == bool(looks)
        assert result.folder.name == result.id
        (result.folder.parent / "damaged").mkdir(exist_ok=True)
        (result.folder.parent / "damaged" / "verdict.json").write_text("{")
    assert json.loads((world.settings.reports / "ab" / "current.json").read_text())["id"] == result.id
    shutil.rmtree(world.settings.reports / "ab")


def test_pictures_of_another_system_can_be_compared(world: World, tmp_path: Path) -> None:
    """The originals themselves, as pictures, beat any model; one is missing and is named."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    photos = sorted(world.inputs.customers.glob("*.jpg"))
    for photo in photos[1:]:
        write_rgb(folder / f"{photo.stem}.png", read_image(photo))
    result = run_ab_test(
        world.inputs.customers, "current", str(folder), tmp_path / "out", world.settings, world.profile
    )
    assert photos[0].stem in json.loads((tmp_path / "out" / "verdict.json").read_text())["left_out"]
    assert result.numbers["hair_gain"] == pytest.approx(1, abs=1e-6)
    assert result.numbers["halo_new"] == 0
    assert result.verdict == "approve"


@pytest.mark.parametrize("spec", ["production", "no-such-version"])
def test_specs_that_name_nothing_are_explained(world: World, spec: str) -> None:
    with pytest.raises(PipelineError, match=r"in production yet|neither a folder nor a registered version"):
        resolve(spec, world.settings, world.profile)


def test_an_empty_folder_is_no_contender(world: World, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="neither an exported version"):
        resolve(str(tmp_path), world.settings, world.profile)


def test_values_that_are_not_finite_are_left_out_not_measured(world: World, tmp_path: Path) -> None:
    contender = resolve("current", world.settings, world.profile)
    assert isinstance(contender, ModelContender)
    with torch.no_grad():
        contender.pipeline.unet.conv_out.bias.fill_(float("nan"))
    drawn = contender.draw(cases_of(world)[:1])
    assert drawn == ["the model returned values that are not finite"]
    assert not list(tmp_path.iterdir())


def test_two_people_give_a_report_without_intervals_and_no_verdict(tmp_path: Path) -> None:
    """The smallest possible input: one held-out person, nobody to borrow a style from."""
    world = make_world(tmp_path, people=2, customers=0, blurred_people=2)
    result = evaluate(world.settings, world.profile)
    data = json.loads((result.folder / "metrics.json").read_text())
    assert data["people"] == 1
    assert "no other held-out person" in data["metrics"]["curl_accuracy_transfer"]["reason"]
    assert data["metrics"]["halo"]["ci_low"] is None
    assert "too few people" in assert_self_contained(result.report_path)
    verdict = run_ab_test(None, "untrained", "current", tmp_path / "ab", world.settings, world.profile)
    assert verdict.verdict == "inconclusive"


def test_the_page_shows_confusions_worst_cases_seams_and_earlier_versions(tmp_path: Path) -> None:
    world = make_world(tmp_path, people=6, customers=0)
    first = evaluate(world.settings, world.profile)
    text = first.report_path.read_text()
    assert "No earlier version has been evaluated" in text
    for heading in ("Asked for and seen", "Seams, enlarged", "Worst cases"):
        assert heading in text
    data = json.loads((first.folder / "metrics.json").read_text())
    for name in ("curl_accuracy", "curl_accuracy_transfer"):
        counts = np.array(data["confusion"][name])
        assert counts.shape == (3, 3)
        assert counts.sum() == data["metrics"][name]["n"]
        assert counts.trace() / counts.sum() == pytest.approx(data["metrics"][name]["value"])
    table = pd.read_parquet(first.folder / "per_image.parquet")
    swapped = table[table.transfer]["leakage_swap"].dropna()
    assert len(swapped) == data["metrics"]["leakage_swap"]["n"] > 0
    assert (swapped == 0).all()
    assert data["metrics"]["psnr_hair"]["n"] == data["images"]
    assert "identity_second_raw" in data["metrics"]
    assert "no second recogniser" in data["metrics"]["identity_second_raw"]["reason"]
    write_stage2(world.settings, world.profile, seed=1)
    second = evaluate(world.settings, world.profile)
    text = assert_self_contained(second.report_path)
    assert first.version[:8] in text
    assert 'aria-label="trend over versions"' in text


def test_worst_cases_are_the_worst_and_perfect_ones_are_no_cases() -> None:
    rows = []
    for number in range(30):
        row = dict.fromkeys(("identity_raw", "identity", "identity_second_raw", "identity_second"), float("nan"))
        row |= dict.fromkeys(("lpips_hair", "psnr_hair", "ssim_hair", "psnr_background", "ssim_background"), 0.0)
        row |= dict.fromkeys(("curl_asked", "curl_seen", "curl_seen_real", "bangs_asked", "bangs_seen"), 1)
        row |= {"case": str(number), "transfer": False, "lpips_hair": number / 10, "rim_sharpness": -float(number)}
        row |= {"halo": 0.0, "untouched_changed": 0.0, "leakage_swap": float("nan"), "curl_seen": int(number != 3)}
        rows.append(row)
    tables = {table.metric: table for table in worst_cases(pd.DataFrame(rows))}
    assert tables["lpips_hair"].keys == [str(number) for number in range(29, 9, -1)]
    assert tables["rim_sharpness"].values[:2] == [-29.0, -28.0]
    assert tables["curl_accuracy"].keys == ["3"]
    assert not {"halo", "untouched_changed", "bangs_accuracy", "identity", "leakage_swap"} & set(tables)


def test_a_second_recogniser_judges_and_the_losss_own_stands_beside_it(tmp_path: Path) -> None:
    world = make_world(tmp_path, people=5, customers=0)
    torch.manual_seed(7)
    network = SmallFaceNet(128)
    network(torch.randn(16, 3, 112, 112))
    pack = world.settings.models_dir / "some_pack"
    export_onnx(network, pack / "w_other.onnx")
    models = world.profile.models.model_copy(update={"evaluation_recogniser": "some_pack"})
    result = evaluate(world.settings, world.profile.model_copy(update={"models": models}))
    metrics = json.loads((result.folder / "metrics.json").read_text())["metrics"]
    judge, second = metrics["identity_raw"], metrics["identity_second_raw_stand_in"]
    assert judge["extractor"] == "w_other"
    assert "not the recogniser that the identity loss" in judge["note"]
    assert second["extractor"] == "stand-in face_recogniser"
    assert judge["n"] == second["n"] > 0
    assert judge["value"] != second["value"]
    assert "flatters the model" not in result.report_path.read_text()


def test_a_copy_of_the_losss_recogniser_is_no_other_judge(tmp_path: Path) -> None:
    """The loss takes it from an insightface pack; beside it the same ONNX lies alone."""
    world = make_world(tmp_path, people=2, customers=0)
    folder = world.settings.models_dir
    network = SmallFaceNet(128)
    network(torch.randn(16, 3, 112, 112))  # so that the running statistics are not trivial
    export_onnx(network, folder / "alone.onnx")
    (folder / "pack").mkdir()
    shutil.copy(folder / "alone.onnx", folder / "pack" / "w600k_r50.onnx")
    changed = {"recogniser": "pack", "evaluation_recogniser": "alone.onnx"}
    models = world.profile.models.model_copy(update=changed)
    judges = load_judges(world.settings, world.profile.model_copy(update={"models": models}), sets=False)
    assert judges.recogniser.name == "alone"
    assert judges.recogniser.note == SAME_AS_LOSS
    assert judges.second.network is None
    assert "the loss's own" in judges.second.reason


def test_a_model_without_finite_values_is_an_error_in_the_report_and_no_approval_in_the_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(tmp_path, people=5, customers=6)
    draw = ModelContender.draw

    def broken(self: ModelContender, cases: list[Case]) -> list[Drawing | str]:
        drawings = draw(self, cases)
        if self.label.startswith("Stage 2"):
            drawings[0] = "the model returned values that are not finite"
        return drawings

    monkeypatch.setattr(ModelContender, "draw", broken)
    with pytest.raises(PipelineError, match=r"not finite.*photo"):
        evaluate(world.settings, world.profile)
    assert not list(world.settings.reports.glob("eval/*/metrics.json"))
    result = run_ab_test(world.inputs.customers, "untrained", "current", tmp_path / "ab", world.settings, world.profile)
    data = json.loads((result.folder / "verdict.json").read_text())
    assert data["failures"] == 2
    assert sum(name.startswith("new model: ") for name in data["left_out"]) == 2
    assert result.verdict != "approve"


def test_photos_that_vanished_are_left_out_and_without_any_there_is_no_report(tmp_path: Path) -> None:
    world = make_world(tmp_path, people=5, customers=0)
    evaluation = world.profile.evaluation.model_copy(update={"batch_size": 1})
    profile = world.profile.model_copy(update={"evaluation": evaluation})
    catalog = read_catalog(world.settings.catalog_path)
    members = Members.read(world.settings.catalog_path)
    styles = read_style_vectors(world.settings.processed / "style_vectors", members)
    held_out = plan_validation(catalog, styles, None).rows
    first, *others = [world.settings.k_hairstyle_root / path for path in held_out["image_path"]]
    first.unlink()
    result = evaluate(world.settings, profile)
    data = json.loads((result.folder / "metrics.json").read_text())
    assert held_out["image_id"][0] in data["left_out"]
    assert data["images"] == len(held_out) - 1
    assert data["metrics"]["halo"]["n"] > 0
    shutil.rmtree(result.folder)
    for path in others:
        path.unlink()
    with pytest.raises(PipelineError, match="no held-out photo can be read"):
        evaluate(world.settings, profile)


def test_pictures_of_another_shape_are_refused_and_names_may_be_decomposed(world: World, tmp_path: Path) -> None:
    case = cases_of(world)[0]
    size = case.sample.image.shape[0]
    window = slice(0, size), slice(size // 6, size - size // 6)  # a photo of 2:3
    case = replace(case, sample=replace(case.sample, image_id="Zo\u00eb", window=window), framing=None)
    width = window[1].stop - window[1].start
    for shape, fits in (((size * 2, width * 2), True), ((size, size), True), ((width, size), False)):
        folder = tmp_path / f"{shape[0]}x{shape[1]}"
        folder.mkdir()
        write_rgb(folder / "Zoe\u0308.png", np.zeros((*shape, 3), np.uint8))
        (drawn,) = PictureContender(folder).draw([case])
        assert isinstance(drawn, Drawing) == fits
        assert fits or "another shape" in str(drawn)


def test_a_folder_called_production_does_not_hide_the_registry(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "production").mkdir()
    write_rgb(tmp_path / "production" / "a.png", np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(PipelineError, match="no version is in production"):
        resolve("production", world.settings, world.profile)
    assert isinstance(resolve("./production", world.settings, world.profile), PictureContender)


def test_the_documented_schema_names_every_field() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "reports.md").read_text(encoding="utf-8")
    for kind in (MetricsFile, MetricEntry, VerdictFile):
        for name, field in kind.model_fields.items():
            assert f"`{field.alias or name}`" in text, (kind, name)
    for metric in METRICS:
        assert f"`{metric.name}`" in text
