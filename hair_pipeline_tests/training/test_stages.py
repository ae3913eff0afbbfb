"""The step of the stages: each loss trains, the face is locked, the conditions are dropped, few images suffice."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import default_collate

from hair_pipeline.errors import PipelineError
from hair_pipeline.inputs.members import Members
from hair_pipeline.profile import Profile
from hair_pipeline.settings import Settings
from hair_pipeline.training import loop
from hair_pipeline.training.context import Context
from hair_pipeline.training.data import SOURCE_VERSION, face_lock, read_style_vectors
from hair_pipeline.training.latent_store import LatentStore
from hair_pipeline.training.pixel_losses import Judges
from hair_pipeline.training.sampler import Draw
from hair_pipeline.training.stages import StageTask
from hair_pipeline.training.task import Batch, LoopConfig
from hair_pipeline.training.trainers.stage import open_sources
from hair_pipeline.training.validation import compare, fixed_batches, hair_l2
from hair_pipeline_tests.training.tiny_stage import (
    SIDE,
    TERMS,
    only,
    random_judges,
    stage_config,
    tiny_stage,
    write_processed,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processed")
    write_processed(folder)
    return folder


@pytest.fixture(scope="module")
def judges() -> Judges:
    return random_judges()


@pytest.mark.parametrize(
    ("stage", "value", "kinds"),
    [
        ("stage2", "resolution", ("photo",)),
        ("stage1", "resolution", ("hair_only", "patch")),
        ("stage1", "patch_resolution", ("hair_only", "patch")),
    ],
)
def test_latents_of_another_size_than_the_profile_s_are_refused(
    data: Path, tmp_path: Path, stage: str, value: str, kinds: tuple[str, ...]
) -> None:
    processed = tmp_path / "training" / "processed"
    shutil.copytree(data, processed)
    catalog = pd.read_parquet(processed / "catalog.parquet").assign(curl_class=None, has_bangs=None, has_face=True)
    catalog.to_parquet(processed / "catalog.parquet")
    same = Profile(name="tiny", stage1=stage_config(), stage2=stage_config())
    context = Context(Settings(training_root=tmp_path / "training"), same, tmp_path)
    assert len(open_sources(context, kinds).latents.index)
    other = getattr(same, stage).model_copy(update={value: SIDE // 2})
    changed = replace(context, profile=same.model_copy(update={stage: other}))
    with pytest.raises(PipelineError, match=rf"latents of {SIDE} pixels, but {stage}\..*{SIDE // 2}\n.*key:latents"):
        open_sources(changed, kinds)


def first_batch(task: StageTask, size: int = 4) -> Batch:
    return default_collate([task.data[Draw(i % len(task.data), i)] for i in range(size)])


@pytest.mark.parametrize("term", TERMS)
def test_each_loss_alone_moves_the_trainable_weights(data: Path, judges: Judges, term: str, tmp_path: Path) -> None:
    config = stage_config(losses=only(term), max_steps=2, gradient_accumulation_steps=1, drop_style=0, drop_both=0)
    task = tiny_stage(data, config, judges=judges)
    before = {name: tensor.clone() for name, tensor in task.state().items()}
    frozen = {name: p.clone() for name, p in task.network.named_parameters() if not p.requires_grad}
    result = loop.run(task, LoopConfig.of_stage(config, len(task.data)), tmp_path)
    assert result.last_losses.keys() == {term}
    moved = {name for name, tensor in task.state().items() if not torch.equal(tensor, before[name])}
    assert any(".lora_B" in name for name in moved)
    assert any("style_projection" in name for name in moved)
    assert all(torch.equal(p, frozen[name]) for name, p in task.network.named_parameters() if name in frozen)


@pytest.mark.parametrize("term", [*TERMS, "anchor", "context"])
def test_each_loss_alone_falls_over_fifty_steps_on_one_batch(data: Path, judges: Judges, term: str) -> None:
    task = tiny_stage(data, stage_config(losses=only(term), drop_style=0, drop_identity=0, drop_both=0), judges=judges)
    batch = first_batch(task, 1)
    batch["t"][:] = 200
    optimizer = torch.optim.AdamW(task.parameter_groups(), weight_decay=0.0)  # nothing but the loss pulls
    values = []
    for step in range(50):
        losses = task.losses(batch, step)
        assert losses.raw.keys() == {term}
        optimizer.zero_grad()
        losses.raw[term].backward()
        optimizer.step()
        values.append(losses.raw[term].item())
    assert values[-1] < values[0]
    parts = dict.fromkeys((".lora_", "_ip.", "style_projection"), 0.0)
    for name, parameter in task.model.named_trainable().items():
        for part in parts:
            if part in name and parameter.grad is not None:
                parts[part] += float(parameter.grad.abs().sum())
    assert all(total > 0 for total in parts.values()), parts
    assert all(parameter.grad is None for parameter in task.vae.parameters())


def test_the_anchor_is_the_base_and_lets_the_locked_face_be(data: Path) -> None:
    task = tiny_stage(data, stage_config(losses=only("anchor")))
    batch = first_batch(task)
    batch["style_present"][:], batch["identity_present"][:] = False, False
    untrained = task.losses(batch, 0).raw["anchor"]
    assert untrained.item() == pytest.approx(0, abs=1e-8)
    with torch.no_grad():
        task.model.style_projection.null.add_(1)  # learned tokens are the model's, not the base's
    losses = task.losses(batch, 0)
    assert losses.raw["anchor"].item() > 1e-4
    assert losses.probe is not None
    (gradient,) = torch.autograd.grad(losses.raw["anchor"], losses.probe)
    kept = ((batch["mask"] == 1) | (batch["face"] == 1)).expand_as(gradient)
    assert bool((gradient[kept] == 0).all())
    assert bool((gradient[~kept] != 0).any())


@pytest.mark.parametrize("term", ["mask_l2", "anchor", "context"])
def test_latent_losses_are_gated_too(data: Path, term: str) -> None:
    losses = only(term)
    gated = losses.model_copy(update={term: getattr(losses, term).model_copy(update={"max_t": 0.5})})
    values = []
    for config in (losses, gated):
        task = tiny_stage(data, stage_config(losses=config))
        with torch.no_grad():
            task.model.style_projection.null.add_(1)
        for t in (100, 900):
            batch = first_batch(task)
            batch["style_present"][:], batch["identity_present"][:] = False, False
            batch["t"][:] = t
            values.append(task.losses(batch, 0).raw[term].item())
    low, high, gated_low, gated_high = values
    assert high > 0
    assert (gated_low, gated_high) == (low, 0)


def test_the_masked_loss_has_no_gradient_in_the_face_or_outside_the_mask(data: Path) -> None:
    task = tiny_stage(data, stage_config())
    batch = first_batch(task)
    batch["mask"] = torch.ones_like(batch["mask"])  # even where the repaint mask covers the face
    losses = task.losses(batch, 0)
    assert losses.probe is not None
    (gradient,) = torch.autograd.grad(losses.raw["mask_l2"], losses.probe)
    face = (batch["face"] == 1).expand_as(gradient)
    assert bool(face.any())
    assert bool((gradient[face] == 0).all())
    assert bool((gradient[~face] != 0).any())


def test_the_locked_face_is_encoded_without_the_hair_around_it(data: Path) -> None:
    batch = first_batch(tiny_stage(data, stage_config()))
    locked = face_lock(batch).expand_as(batch["latents"])
    assert 0 < locked.float().mean() < 1
    assert torch.equal(batch["latents"][locked], batch["masked_latents"][locked])
    assert not (batch["latents"] == batch["masked_latents"])[~locked].any()


def test_blended_pixel_losses_have_no_gradient_in_the_locked_face(data: Path, judges: Judges) -> None:
    task = tiny_stage(data, stage_config(losses=only("lpips", "gram", "style")), judges=judges)
    batch = first_batch(task)
    losses = task.losses(batch, 0)
    assert losses.probe is not None
    total = losses.total()
    assert total is not None
    (gradient,) = torch.autograd.grad(total, losses.probe)
    locked = ((batch["face"] == 1) & (batch["mask"] == 0)).expand_as(gradient)
    assert bool((gradient[locked] == 0).all())
    assert bool((gradient[~locked] != 0).any())


def test_unreliable_faces_take_no_part_in_the_identity_loss(tmp_path: Path, judges: Judges) -> None:
    write_processed(tmp_path, reliable=False)
    task = tiny_stage(tmp_path, stage_config(losses=only("identity", "mask_l2")), judges=judges)
    batch = first_batch(task)
    assert not batch["reliable"].any()
    assert not batch["identity_present"].any()
    assert "identity" not in task.losses(batch, 0).raw


def test_pixel_losses_are_gated(data: Path, judges: Judges) -> None:
    losses = only("mask_l2", "lpips", pixel_every=2, pixel_max_t=0.3, pixel_batch=1)
    task = tiny_stage(data, stage_config(losses=losses), judges=judges)
    batch = first_batch(task)
    batch["t"] = torch.tensor([100, 200, 500, 900])
    assert task.losses(batch, 0).numbers["pixel_samples"] == 1
    batch["turn"] = [1] * 4
    assert "lpips" not in task.losses(batch, 0).raw
    batch["turn"] = [2] * 4
    assert "lpips" in task.losses(batch, 1).raw
    batch["t"][:] = 900
    assert "lpips" not in task.losses(batch, 0).raw


def test_ramps_scale_the_weights(data: Path) -> None:
    losses = only("mask_l2").model_copy(
        update={"mask_l2": only("mask_l2").mask_l2.model_copy(update={"ramp_steps": 4})}
    )
    task = tiny_stage(data, stage_config(losses=losses))
    batch = first_batch(task)
    assert [task.losses(batch, step).weights["mask_l2"] for step in (0, 1, 4, 9)] == [0, 0.25, 1, 1]


def test_dropout_shares_are_as_configured(data: Path) -> None:
    task = tiny_stage(data, stage_config(drop_style=0.2, drop_identity=0.1, drop_both=0.1))
    samples = [task.data[Draw(0, position)] for position in range(1500)]
    style = torch.stack([sample["style_present"] for sample in samples])
    identity = torch.stack([sample["identity_present"] for sample in samples])
    shares = [(~style & identity), (style & ~identity), (~style & ~identity)]
    assert [float(share.float().mean()) for share in shares] == pytest.approx([0.2, 0.1, 0.1], abs=0.03)


def test_without_a_style_vector_no_style_is_asked_for(tmp_path: Path) -> None:
    write_processed(tmp_path)
    path = tmp_path / "style_vectors" / "shard_0000.parquet"
    table = pd.read_parquet(path)
    pq.write_table(pa.Table.from_pandas(table[table.person != "p1"]), path)
    task = tiny_stage(tmp_path, stage_config(drop_style=0, drop_both=0))
    samples = [task.data[Draw(i, i)] for i in range(4)]  # two views of p0, then two of p1
    assert [bool(sample["style_present"]) for sample in samples] == [True, True, False, False]
    assert [(int(sample["curl"]), int(sample["bangs"])) for sample in samples] == [(0, 0), (0, 1), (-1, -1), (-1, -1)]


def test_a_sample_depends_on_its_draw_alone(data: Path) -> None:
    task = tiny_stage(data, stage_config())
    a, b, c = (task.data[Draw(1, position)] for position in (5, 5, 6))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["noise"], c["noise"])


def test_validation_is_the_same_every_time(data: Path) -> None:
    task = tiny_stage(data, stage_config())
    with torch.no_grad():
        values = {hair_l2(task.predict, task.held_out, task.scheduler, task.device) for _ in range(2)}
    assert len(values) == 1
    times = torch.cat([batch["t"] for batch in fixed_batches(task.held_out, 4)])
    assert len(times) == 8
    assert float(times.float().std()) > 150


@torch.no_grad()
def test_images_compared_one_by_one_have_the_distances_of_a_batch(judges: Judges) -> None:
    assert judges.perceptual is not None
    images, masks = torch.rand(2, 3, 3, 64, 64) * 2 - 1, torch.ones(3, 1, 64, 64)
    masks[1] = 0  # too little to compare
    found = torch.cat(compare(judges.perceptual, *images, masks))
    assert torch.allclose(found, judges.perceptual.distance(*images, masks), atol=1e-6, equal_nan=True)
    assert found.isnan().tolist() == [False, True, False]


def test_stage1_sees_no_face_and_mixes_patches_in(data: Path) -> None:
    task = tiny_stage(data, stage_config(), "stage1")
    sequence = task.batches(LoopConfig.of_stage(stage_config(), 12))
    batches = [task.collate([task.data[draw] for draw in sequence[number]]) for number in range(4)]
    assert all(not batch["identity_present"].any() and not batch["face"].any() for batch in batches)
    assert [bool((batch["mask"] == 1).all()) for batch in batches] == [False, True, False, True]
    assert [batch["turn"] for batch in batches] == [[0, 0], [0, 0], [1, 1], [1, 1]]


def test_the_style_of_a_patch_is_not_judged(data: Path) -> None:
    """The classifier has seen whole heads only; on patches it is at chance."""
    task = tiny_stage(data, stage_config(drop_style=0, drop_both=0), "stage1")
    samples = [task.data[Draw(index, index)] for index in range(len(task.data))]
    assert all(bool(sample["style_present"]) for sample in samples)
    labels = [(int(sample["curl"]), int(sample["bangs"])) for sample in samples]
    assert all(min(label) >= 0 for label in labels[: task.images])
    assert labels[task.images :] == [(-1, -1)] * (len(labels) - task.images)


@pytest.mark.parametrize("name", ["stage1", "stage2"])
def test_two_people_with_one_view_and_a_batch_larger_than_the_data(tmp_path: Path, name: str) -> None:
    write_processed(tmp_path / "data", people=2, views=1)
    config = stage_config(batch_size=8, max_steps=2)
    task = tiny_stage(tmp_path / "data", config, name)
    result = loop.run(task, LoopConfig.of_stage(config, len(task.data)), tmp_path / "run")
    assert result.steps == 2
    assert "hair_l2" in result.end
    assert result.pictures[0].stat().st_size <= 20_000


def test_no_held_out_image_gives_no_number(tmp_path: Path) -> None:
    write_processed(tmp_path / "data")
    catalog = tmp_path / "data" / "catalog.parquet"
    pd.read_parquet(catalog).assign(split="train").to_parquet(catalog)
    config = stage_config(max_steps=1)
    task = tiny_stage(tmp_path / "data", config)
    result = loop.run(task, LoopConfig.of_stage(config, len(task.data)), tmp_path / "run")
    assert result.start == result.end == {}
    assert result.pictures == []


def test_no_photo_for_stage2_is_one_clear_message(tmp_path: Path) -> None:
    write_processed(tmp_path)
    index = tmp_path / "latents" / "shard_0000.parquet"
    table = pd.read_parquet(index)
    table[table.kind != "photo"].to_parquet(index)
    with pytest.raises(PipelineError, match="no training image"):
        tiny_stage(tmp_path, stage_config())


def test_latents_are_read_alike_from_memory_and_from_disk(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members = Members.read(data / "catalog.parquet")
    a = LatentStore(data / "latents", members)
    monkeypatch.setattr("hair_pipeline.training.latent_store.PRELOAD_BYTES", 0)
    b = LatentStore(data / "latents", members)
    for name in ("photo.latents", "photo.bald", "photo.hair", "photo.box"):
        assert torch.equal(a.read("shard_0000", name, 2), b.read("shard_0000", name, 2))
    assert torch.equal(a.constant("shard_0000", "patch.empty"), b.constant("shard_0000", "patch.empty"))


@pytest.mark.parametrize("changed", ["length", "version"])
def test_style_vectors_of_two_networks_are_refused(changed: str, tmp_path: Path) -> None:
    """As after another `style_vectors.source` or encoder, when only some shards were made again."""
    write_processed(tmp_path)
    folder, catalog = tmp_path / "style_vectors", pd.read_parquet(tmp_path / "catalog.parquet")
    catalog.assign(shard=catalog.shard.where(catalog.source != "p1", "shard_0001")).to_parquet(
        tmp_path / "catalog.parquet"
    )
    table = pq.read_table(folder / "shard_0000.parquet")
    pq.write_table(table.replace_schema_metadata({SOURCE_VERSION: "one"}), folder / "shard_0000.parquet")
    vectors = [vector[:5] if changed == "length" else vector for vector in table["vector"].to_pylist()]
    other = table.set_column(table.column_names.index("vector"), "vector", pa.array(vectors))
    version = "two" if changed == "version" else "one"
    pq.write_table(other.replace_schema_metadata({SOURCE_VERSION: version}), folder / "shard_0001.parquet")
    with pytest.raises(PipelineError, match=r"shard_0001(.*)another network(.*)\n(.*)style_vectors again"):
        read_style_vectors(folder, Members.read(tmp_path / "catalog.parquet"))
