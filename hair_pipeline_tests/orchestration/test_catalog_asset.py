"""The asset `catalog` and its checks, executed: metadata people look at, and warnings that name what was found."""

import time
from concurrent.futures import ThreadPoolExecutor

import cv2
import dagster as dg
import pytest
from dagster._core.definitions.observe import observe
from sqlalchemy.exc import IntegrityError

from hair_pipeline.errors import PipelineError
from hair_pipeline.inputs import catalog as catalog_module
from hair_pipeline.orchestration.assets.inputs import (
    catalog,
    customer_photos,
    k_hairstyle_images,
    training_face_outputs,
)
from hair_pipeline.orchestration.checks import (
    identities_are_reliable,
    masks_agree,
    no_near_duplicate_across_the_split,
    no_person_under_two_names,
    split_is_person_disjoint,
)
from hair_pipeline.orchestration.partitions import SHARDS, register_shards
from hair_pipeline.orchestration.resources import PipelineResource
from hair_pipeline_tests.inputs.tiny_inputs import TinyInputs, write_tiny_inputs

CHECKS = [
    split_is_person_disjoint,
    masks_agree,
    identities_are_reliable,
    no_near_duplicate_across_the_split,
    no_person_under_two_names,
]


@pytest.fixture
def inputs(tmp_path, monkeypatch) -> TinyInputs:
    made = write_tiny_inputs(tmp_path, people=4, views=2, size=128)
    settings = made.settings()
    for field in ("k_hairstyle_root", "training_face_root", "training_root"):
        monkeypatch.setenv(f"HAIR_PIPELINE_{field.upper()}", str(getattr(settings, field)))
    return made


def materialise() -> tuple[dict[str, dg.MetadataValue], dict[str, dg.AssetCheckEvaluation]]:
    with dg.DagsterInstance.ephemeral() as instance:
        done = dg.materialize(
            [k_hairstyle_images, training_face_outputs, catalog, *CHECKS],
            resources={"pipeline": PipelineResource()},
            instance=instance,
        )
    (event,) = done.get_asset_materialization_events()
    metadata = event.step_materialization_data.materialization.metadata
    return dict(metadata), {found.check_name: found for found in done.get_asset_check_evaluations()}


def test_the_catalog_shows_what_became_of_the_files_and_its_checks_pass(inputs):
    metadata, checks = materialise()
    assert metadata["images"].value == 8
    shares = metadata["train_against_validation"].records
    assert {"attribute", "value", "train", "validation", "difference"} == set(shares[0].data)
    assert {record.data["attribute"] for record in shares} >= {"curl", "length", "sex"}
    assert sum(record.data["count"] for record in metadata["by_identity"].records) == 8
    assert {name for name, check in checks.items() if not check.passed} == set()
    assert len(checks) == len(CHECKS)


def test_a_catalog_of_other_inputs_is_not_replaced_by_the_sample_s(inputs, monkeypatch):
    materialise()
    before = inputs.settings().catalog_path.read_bytes()
    for name in ("K_HAIRSTYLE_ROOT", "TRAINING_FACE_ROOT"):
        monkeypatch.delenv(f"HAIR_PIPELINE_{name}")
    with dg.DagsterInstance.ephemeral() as instance:
        done = dg.materialize(
            [catalog], resources={"pipeline": PipelineResource()}, instance=instance, raise_on_error=False
        )
    (failure,) = done.get_step_failure_events()
    assert "made of" in failure.step_failure_data.user_failure_data.description
    assert inputs.settings().catalog_path.read_bytes() == before


def customers_version() -> str:
    with dg.DagsterInstance.ephemeral() as instance:
        done = observe([customer_photos], resources={"pipeline": PipelineResource()}, instance=instance)
    (event,) = done.get_asset_observation_events()
    return event.asset_observation_data.asset_observation.tags["dagster/data_version"]


def test_customer_photos_have_another_version_when_one_has_come(inputs, monkeypatch):
    assert customers_version() == "none"
    monkeypatch.setenv("HAIR_PIPELINE_CUSTOMERS_ROOT", str(inputs.root / "people"))
    with pytest.raises(dg.Failure, match="people"):  # a drive that is away for a while is no change
        customers_version()
    (inputs.root / "people").mkdir()
    (inputs.root / "people" / "a.jpg").write_bytes(b"1")
    before = customers_version()
    assert before == customers_version() != "none"
    (inputs.root / "people" / "b.jpg").write_bytes(b"2")
    assert customers_version() != before


def test_a_picture_on_both_sides_is_named(inputs):
    first, second = (next(inputs.k_hairstyle.rglob(f"{source}-001.jpg")) for source in inputs.sources[:2])
    for source in inputs.sources[2:]:
        other = next(inputs.k_hairstyle.rglob(f"{source}-001.jpg"))
        cv2.imwrite(str(other), cv2.imread(str(first)), [cv2.IMWRITE_JPEG_QUALITY, 80])
    cv2.imwrite(str(second), cv2.imread(str(first)), [cv2.IMWRITE_JPEG_QUALITY, 80])
    _, checks = materialise()
    found = checks["no_near_duplicate_across_the_split"]
    assert not found.passed
    assert found.severity == dg.AssetCheckSeverity.WARN
    assert found.metadata["near_duplicates"].value >= 1
    assert "-001" in found.metadata["nearest"].records[0].data["validation_image"]


def test_of_two_catalog_steps_one_waits_for_the_other(inputs, monkeypatch):
    at_work, together = [], []

    def build(settings, profile):
        at_work.append(settings)
        together.append(len(at_work))
        time.sleep(0.3)
        at_work.pop()
        raise PipelineError("that is all")

    def step(_: int) -> None:
        with dg.DagsterInstance.ephemeral() as instance:
            resources = {"pipeline": PipelineResource()}
            dg.materialize([catalog], resources=resources, instance=instance, raise_on_error=False)

    monkeypatch.setattr(catalog_module, "build_catalog", build)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(step, range(2)))
    assert together == [1, 1]


def test_shards_that_another_process_registers_in_the_same_moment_are_no_fault(tmp_path, monkeypatch):
    with dg.instance_for_test(temp_dir=str(tmp_path)) as instance:
        add = instance.add_dynamic_partitions

        def too_late(name: str, shards: list[str]) -> None:
            monkeypatch.setattr(instance, "add_dynamic_partitions", add)
            add(name, ["s1"])
            raise IntegrityError("INSERT", None, Exception("UNIQUE constraint failed"))

        instance.add_dynamic_partitions(str(SHARDS.name), ["s0", "gone"])
        monkeypatch.setattr(instance, "add_dynamic_partitions", too_late)
        assert register_shards(instance, ["s0", "s1", "s2"]) == ["s2"]
        assert set(instance.get_dynamic_partitions(str(SHARDS.name))) == {"s0", "s1", "s2"}
