"""Every trainer for a few steps on tiny inputs in the real formats: what it leaves, reuse, and few or poor images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from hair_pipeline.errors import PipelineError
from hair_pipeline.inputs.members import Members
from hair_pipeline.models.base import load_base
from hair_pipeline.models.inpainter import HairInpainter
from hair_pipeline.models.patch_encoder import PatchEncoder
from hair_pipeline.models.style_classifier import StyleClassifier
from hair_pipeline.models.weights import base_reference
from hair_pipeline.profile import LossesConfig, LossTerm, ModelsConfig, Profile, StageConfig
from hair_pipeline.settings import Settings
from hair_pipeline.training import entry
from hair_pipeline.training.context import Context
from hair_pipeline.training.data import read_style_vectors
from hair_pipeline.training.entry import current, train
from hair_pipeline.training.latents import encode_shard
from hair_pipeline.training.style_vectors import embed_shard
from hair_pipeline.training.task import LoopConfig
from hair_pipeline.training.trainers import patch_encoder, stage1, style_classifier
from hair_pipeline.training.trainers.stage import open_judges
from hair_pipeline_tests.inputs.tiny_inputs import write_tiny_inputs
from hair_pipeline_tests.training.tiny_training import Trained, tiny_profile, train_all


def test_every_trainer_leaves_a_result_that_is_current(trained: Trained) -> None:
    for name, result in trained.results.items():
        again = current(name, trained.settings)
        assert again.version == result.version
        assert again.final_dir.is_dir()
        assert len(result.run_id) == 12
        assert all(np.isfinite(number) for number in result.metrics.values())
        assert {"config.json", "environment.json", "result.json"} <= {path.name for path in result.run_dir.iterdir()}
        environment = json.loads((result.run_dir / "environment.json").read_text())
        assert environment["packages"]["torch"] == torch.__version__.split("+")[0]
        assert environment["data_version"] == result.data_version


def test_a_finished_run_is_reused(trained: Trained) -> None:
    for name, result in trained.results.items():
        again = train(name, trained.settings, trained.profile)
        assert again.reused
        assert again.version == result.version


def test_a_changed_value_is_another_run(trained: Trained) -> None:
    classifier = trained.profile.classifier.model_copy(update={"steps": 2})
    result = train("style-classifier", trained.settings, trained.profile.model_copy(update={"classifier": classifier}))
    assert not result.reused
    assert result.run_id != trained.results["style-classifier"].run_id
    train("style-classifier", trained.settings, trained.profile)  # the first is current again
    assert current("style-classifier", trained.settings).run_id == trained.results["style-classifier"].run_id


def test_final_folders_hold_what_others_read(trained: Trained) -> None:
    results = trained.results
    PatchEncoder.load(results["patch-encoder"].final_dir / "style_patch_encoder.pt")
    for variant in ("loss", "evaluation"):
        StyleClassifier.load(results["style-classifier"].final_dir / variant)
    for stage in ("stage1", "stage2"):
        base = load_base(base_reference(trained.settings, trained.profile))
        HairInpainter.from_adapters(base, results[stage].final_dir)
        assert {"val_hair_l2_start", "val_hair_l2_end", "val_hair_l2_drop"} <= results[stage].metrics.keys()


def test_stage2_starts_from_stage1(trained: Trained) -> None:
    card = json.loads((trained.results["stage2"].final_dir / "adapters.json").read_text())
    timed = {"seconds", "time_data_share", "time_other_share"}
    assert timed <= trained.results["stage2"].metrics.keys()
    assert not timed & card["extra"]["metrics"].keys()  # they would make another version of the same weights
    assert card["extra"]["stage"] == "stage2"


def test_style_vectors_are_unit_and_unchanged_shards_are_reused(trained: Trained) -> None:
    members = Members.read(trained.settings.catalog_path)
    table = read_style_vectors(trained.settings.processed / "style_vectors", members)
    assert len(table.ids) > 0
    assert table.vectors.norm(dim=1) == pytest.approx(torch.ones(len(table.ids)), abs=1e-4)
    assert encode_shard(trained.shards[0], trained.settings, trained.profile).reused
    assert embed_shard(trained.shards[0], trained.settings, trained.profile).reused


def test_style_vectors_from_the_classifier_and_without_a_clip_folder(trained: Trained) -> None:
    source = trained.profile.style_vectors
    profile = trained.profile.model_copy(update={"style_vectors": source.model_copy(update={"source": "classifier"})})
    try:
        report = embed_shard(trained.shards[0], trained.settings, profile)
        assert report.numbers["dim"] == 8 * 4
        profile = trained.profile.model_copy(update={"style_vectors": source.model_copy(update={"source": "clip"})})
        with pytest.raises(PipelineError, match="CLIP folder"):
            embed_shard(trained.shards[0], trained.settings, profile)
    finally:
        embed_shard(trained.shards[0], trained.settings, trained.profile)


def test_latent_rows_belong_to_their_images(trained: Trained) -> None:
    index = pd.read_parquet(trained.settings.processed / "latents" / f"{trained.shards[0]}.parquet")
    assert set(index.kind) <= {"photo", "hair_only", "patch"}
    for _, rows in index.groupby("kind"):
        assert sorted(rows.row) == list(range(len(rows)))


def test_an_unknown_trainer_and_a_missing_run_are_named(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="no trainer 'nothing'"):
        train("nothing", trained.settings, trained.profile)
    with pytest.raises(PipelineError, match="has not been trained"):
        current("stage1", trained.settings.model_copy(update={"training_root": tmp_path}))


def test_two_blurred_people_with_one_view_train_everything_but_the_recogniser(tmp_path: Path) -> None:
    inputs = write_tiny_inputs(tmp_path, 2, 1, blurred_people=2)
    settings = inputs.settings()
    done = train_all(settings, tiny_profile())
    assert "not trained" in done.results["face-recogniser"].notes["recogniser"]
    assert not (done.results["face-recogniser"].final_dir / "face_recogniser.onnx").exists()
    assert "identity_loss" in done.results["stage2"].notes


def test_stage1_which_sees_no_faces_does_not_miss_the_identity_loss(tmp_path: Path) -> None:
    """Its weight is the default of real profiles; the recogniser they name is not looked for."""
    off = LossTerm(weight=0.0)
    stage = StageConfig(losses=LossesConfig(lpips=off, gram=off, style=off))
    profile = Profile(name="real", stage1=stage, models=ModelsConfig(recogniser="elsewhere.onnx"))
    settings, notes = Settings(training_root=tmp_path), dict[str, str]()
    assert open_judges(Context(settings, profile, tmp_path), stage, notes, identities=None).recogniser is None
    assert "identity_loss" not in notes
    assert entry._judges(settings, profile, "stage1") == {}


def test_an_encoder_with_a_single_person_to_train_on_says_that_it_was_not_trained(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = Members.read(trained.settings.catalog_path).by_shard
    first = min(person for own in members.values() for person in own.person)
    held_out = Members(
        {
            shard: own.assign(split=np.where(own.person == first, "train", "validation"))
            for shard, own in members.items()
        }
    )
    monkeypatch.setattr(patch_encoder.Members, "read", lambda _: held_out)
    done = patch_encoder.run(Context(trained.settings, trained.profile, tmp_path))
    assert "not trained" in done.notes["encoder"]
    assert {"person_term", "curl_term", "person_probe"} <= done.notes.keys()
    assert not {"person_term", "curl_term"} & trained.results["patch-encoder"].notes.keys()


def test_a_side_the_vae_cannot_give_back_is_refused_before_any_work(trained: Trained, tmp_path: Path) -> None:
    uneven = {  # which a profile's file may not hold, but a VAE of a larger factor makes of an allowed side too
        section: getattr(trained.profile, section).model_copy(update={"resolution": 66})
        for section in ("stage1", "classifier")
    }
    profile = trained.profile.model_copy(update=uneven)
    context = Context(trained.settings, profile, tmp_path)
    message = r"stage1\.resolution = 66 is no multiple of \d+.*\n.*set stage1\.resolution to 64 or"
    with pytest.raises(PipelineError, match=message):
        encode_shard(trained.shards[0], trained.settings, profile)
    with pytest.raises(PipelineError, match=message):
        stage1.run(context)
    with pytest.raises(PipelineError, match=r"classifier\.resolution = 66"):
        style_classifier.run(context)


def test_classifiers_are_validated_on_so_many_photos_at_most(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Seen(Exception):
        pass

    def loop(context: Context, task: style_classifier.ClassifierTask, config: LoopConfig) -> None:
        assert [len(images.store) for images in task.held_out.values()] == [1, 1]
        raise Seen

    monkeypatch.setattr(style_classifier, "MAX_HELD_OUT", 1)
    monkeypatch.setattr(Context, "loop", loop)
    with pytest.raises(Seen):
        style_classifier.run(Context(trained.settings, trained.profile, tmp_path))


def test_held_out_photos_are_spread_over_the_people() -> None:
    people = ["b"] * 6 + ["a"] * 30 + ["c"] * 6 + ["a"] * 6
    rows = pd.DataFrame({"source": people, "image_id": range(48)})
    chosen = style_classifier.spread_over_people(rows, 12)
    assert chosen.source.value_counts().to_dict() == {"a": 9, "b": 1, "c": 2}
    assert chosen.image_id.is_monotonic_increasing
    assert style_classifier.spread_over_people(rows, 48) is rows
