"""The processed assets, executed over several shards in one run: versions, partial failure, people who come and go."""

import errno
import json
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.definitions.data_version import DATA_VERSION_TAG

from hair_pipeline.inputs import reader
from hair_pipeline.orchestration import resources
from hair_pipeline.orchestration.build import build_defs
from hair_pipeline.orchestration.partitions import LEFT_OUT_TAG, SHARDS
from hair_pipeline.orchestration.rounds import Lineage, range_tags
from hair_pipeline.processing import shards as processing
from hair_pipeline.processing.report import ShardReport
from hair_pipeline.settings import load_settings
from hair_pipeline.training.runs import RunPlan
from hair_pipeline_tests.inputs.tiny_inputs import TinyInputs, write_tiny_inputs

PARTS = ("identity_embeddings", "bald_images", "hair_only_images", "hair_patches")


@pytest.fixture
def inputs(tmp_path, monkeypatch) -> TinyInputs:
    made = write_tiny_inputs(tmp_path, people=3, views=2, size=128)
    profile = tmp_path / "profile.yaml"
    profile.write_text("name: tiny\ninputs: {shard_size: 2, validation_fraction: 0.3}\nprocessing: {size: 128}\n")
    monkeypatch.setenv("HAIR_PIPELINE_PROFILE", str(profile))
    for field in ("k_hairstyle_root", "training_face_root", "training_root"):
        monkeypatch.setenv(f"HAIR_PIPELINE_{field.upper()}", str(getattr(made.settings(), field)))
    return made


@pytest.fixture
def instance():
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def run(instance, *names, shards=(), tags=None):
    job = build_defs(settings=load_settings()).get_repository_def().get_job("__ASSET_JOB")
    return job.get_subset(asset_selection={dg.AssetKey(name) for name in names}).execute_in_process(
        instance=instance, tags=range_tags(shards) | (tags or {}), raise_on_error=False
    )


def out_of_date(instance) -> dict[str, tuple[str, ...]]:
    graph = build_defs(settings=load_settings()).get_repository_def().asset_graph
    stale = Lineage(instance, graph, [dg.AssetKey(name) for name in PARTS]).out_of_date()
    return {key.to_user_string(): found.shards for key, found in stale.items()}


def version(instance, asset: str, shard: str) -> str:
    found = instance.event_log_storage.get_latest_tags_by_partition(
        dg.AssetKey(asset), dg.DagsterEventType.ASSET_MATERIALIZATION, [DATA_VERSION_TAG]
    )
    return found[shard][DATA_VERSION_TAG]


def test_each_shard_has_its_own_version_and_new_people_touch_only_theirs(inputs, instance):
    assert run(instance, "catalog").success
    shards = instance.get_dynamic_partitions(SHARDS.name)
    assert len(shards) == 3
    assert out_of_date(instance) == dict.fromkeys(PARTS, tuple(shards))
    assert run(instance, *PARTS, shards=shards).success
    for asset in PARTS:
        for shard in shards:
            manifest = json.loads((load_settings().processed / asset / f"{shard}.json").read_text())
            assert version(instance, asset, shard) == manifest["data_version"]
    assert out_of_date(instance) == {}
    write_tiny_inputs(inputs.root, people=4, views=2, size=128)
    assert run(instance, "catalog").success
    (new,) = set(instance.get_dynamic_partitions(SHARDS.name)) - set(shards)
    assert out_of_date(instance) == dict.fromkeys(PARTS, (new,))


def test_a_broken_shard_fails_alone_and_the_others_show_what_they_came_to(inputs, instance):
    assert run(instance, "catalog").success
    shards = instance.get_dynamic_partitions(SHARDS.name)
    for photo in inputs.k_hairstyle.rglob(f"{inputs.sources[1]}-*.jpg"):
        photo.write_bytes(b"no picture any more")
    done = run(instance, "bald_images", shards=shards)
    assert not done.success
    (failure,) = [event for event in done.all_events if event.is_step_failure]
    assert "1 of 3 shards failed" in failure.step_failure_data.user_failure_data.description
    statuses = instance.get_status_by_partition(dg.AssetKey("bald_images"), shards, SHARDS)
    assert sorted(status.value for status in statuses.values()) == ["FAILED", "MATERIALIZED", "MATERIALIZED"]
    (broken,) = [shard for shard, status in statuses.items() if status.value == "FAILED"]
    assert out_of_date(instance)["bald_images"] == (broken,)
    record = instance.fetch_materializations(dg.AssetKey("bald_images"), limit=1).records[0]
    metadata = record.asset_materialization.metadata
    assert metadata["written"].value == 2
    assert metadata["preview"].value.startswith("![preview](data:image/jpeg;base64,")


def break_shards(monkeypatch, broken: dict[str, Exception]) -> None:
    """Let `bald_images` raise these errors, and make nothing of the other shards."""

    def make(shard, settings, profile, assets):
        if shard in broken:
            raise broken[shard]
        return {name: ShardReport(name, shard, "", 1, {}, {}, data_version="1") for name in assets}

    monkeypatch.setattr(processing, "make_image_parts", make)


def test_a_fault_of_any_kind_in_one_shard_stops_no_other(inputs, instance, monkeypatch):
    assert run(instance, "catalog").success
    shards = instance.get_dynamic_partitions(SHARDS.name)
    break_shards(monkeypatch, {shards[0]: ValueError("a bug"), shards[1]: OSError(errno.EIO, "the share")})
    done = run(instance, "bald_images", shards=shards)
    (failure,) = [event for event in done.all_events if event.is_step_failure]
    said = failure.step_failure_data.user_failure_data.description
    assert f"{shards[0]}: ValueError: a bug; {shards[1]}: OSError: [Errno 5] the share" in said
    statuses = instance.get_status_by_partition(dg.AssetKey("bald_images"), shards, SHARDS)
    assert [statuses[shard].value for shard in shards] == ["FAILED", "FAILED", "MATERIALIZED"]


def test_shards_whose_faults_pass_by_themselves_are_tried_again(inputs, instance, monkeypatch):
    assert run(instance, "catalog").success
    shards = instance.get_dynamic_partitions(SHARDS.name)
    monkeypatch.setattr(resources, "RETRIES", dg.RetryPolicy(max_retries=1, delay=0))
    break_shards(monkeypatch, {shards[0]: OSError(errno.EIO, "the share")})
    done = run(instance, "bald_images", shards=shards)
    assert [event.event_type_value for event in done.all_events].count("STEP_UP_FOR_RETRY") == 1
    statuses = instance.get_status_by_partition(dg.AssetKey("bald_images"), shards, SHARDS)
    assert [statuses[shard].value for shard in shards] == ["FAILED", "MATERIALIZED", "MATERIALIZED"]


def test_a_shard_that_is_left_out_fails_nothing_and_is_made_later(inputs, instance, monkeypatch):
    assert run(instance, "catalog").success
    shards = instance.get_dynamic_partitions(SHARDS.name)
    break_shards(monkeypatch, {shards[1]: ValueError("its inputs are missing")})
    assert run(instance, "bald_images", shards=shards, tags={LEFT_OUT_TAG: shards[1]}).success
    assert out_of_date(instance)["bald_images"] == (shards[1],)
    break_shards(monkeypatch, {})
    assert run(instance, "bald_images", shards=[shards[1]]).success
    assert "bald_images" not in out_of_date(instance)


@pytest.fixture
def left(inputs, instance) -> str:
    """The shard of somebody who has left the inputs; the parts of all three shards are made."""
    assert run(instance, "catalog").success
    shards = instance.get_dynamic_partitions(SHARDS.name)
    assert run(instance, *PARTS, shards=shards).success
    move(inputs.k_hairstyle, inputs.root / "away", inputs.sources[2])
    return shards[2]


def move(start: Path, goal: Path, person: str) -> None:
    for folder in list(start.rglob(f"*.{person}")):
        new = goal / folder.relative_to(start)
        new.parent.mkdir(parents=True, exist_ok=True)
        folder.rename(new)


def removed_and_kept(instance) -> tuple[int, int]:
    """What a new catalog says of the shards that are gone."""
    assert run(instance, "catalog").success
    made = instance.get_latest_materialization_event(dg.AssetKey("catalog")).asset_materialization
    return made.metadata["gone_shards_removed"].value, made.metadata["gone_shards_kept"].value


def outputs_of(shard: str) -> list[Path]:
    return [path for asset in PARTS for path in (load_settings().processed / asset).rglob(f"*{shard}*")]


def test_outputs_of_people_who_left_are_removed_and_made_again_when_they_come_back(inputs, instance, left):
    before = outputs_of("shard_0000")
    assert removed_and_kept(instance) == (1, 0)
    assert outputs_of(left) == []
    assert outputs_of("shard_0000") == before
    assert out_of_date(instance) == {}
    assert removed_and_kept(instance) == (0, 0)
    move(inputs.root / "away", inputs.k_hairstyle, inputs.sources[2])
    assert run(instance, "catalog").success
    assert out_of_date(instance) == dict.fromkeys(PARTS, (left,))
    assert run(instance, *PARTS, shards=[left]).success
    assert out_of_date(instance) == {}


def test_nothing_is_removed_while_somebody_may_read_or_write_it(instance, left):
    root = load_settings().training_root
    with RunPlan("stage2", "tiny", {}, {}, "", "a", root, root / "runs" / "stage2").held():
        assert removed_and_kept(instance) == (0, 1)
    other = instance.add_run(dg.DagsterRun("other", status=dg.DagsterRunStatus.STARTED))
    assert removed_and_kept(instance) == (0, 1)
    assert outputs_of(left)
    instance.report_run_failed(other)
    assert removed_and_kept(instance) == (1, 0)


def test_nothing_is_removed_while_input_files_cannot_be_read(inputs, instance, left, monkeypatch):
    photo = next(inputs.k_hairstyle.rglob(f"{inputs.sources[0]}-001.jpg"))
    photo.touch()  # so that it is read again
    read = reader._read

    def failing(root: Path, name: str, limit: int) -> bytes:
        if name.endswith(photo.name):
            raise OSError(errno.EIO, "the share", f"{root}/{name}")
        return read(root, name, limit)

    monkeypatch.setattr(reader, "_read", failing)
    assert removed_and_kept(instance) == (0, 1)


def test_nothing_is_removed_when_most_of_it_is_gone(inputs, instance, left):
    manifest = load_settings().processed / "bald_images" / "shard_0000.json"
    for number in range(100, 102):
        manifest.with_name(f"shard_0{number}.json").write_bytes(b"{}")
    assert removed_and_kept(instance) == (0, 3)
