"""What a launch runs and what it leaves alone: by data version, through failures, over a lineage like the real one."""

import re

import dagster as dg
import pytest
from dagster._core.definitions import data_version
from dagster._core.execution.context import data_version_cache

from hair_pipeline.errors import PipelineError, ReleaseRefused
from hair_pipeline.orchestration.launch import Outcome, launch
from hair_pipeline.orchestration.partitions import SHARDS, named_shards
from hair_pipeline.orchestration.rounds import Round, split
from hair_pipeline_tests.orchestration.small_lineage import World

EVERYTHING = [
    "catalog",
    "base",
    ("patches", "s0", "s1"),
    ("parts", "s0", "s1"),
    "encoder",
    ("vectors", "s0", "s1"),
    "stage",
    "report",
]


@pytest.fixture
def instance():
    World.reset()
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


@pytest.fixture
def instance_on_disk(tmp_path):
    """As real launches have it; what is recorded takes three times as long."""
    World.reset()
    with dg.DagsterInstance.local_temp(str(tmp_path), overrides={"telemetry": {"enabled": False}}) as instance:
        yield instance


def run(instance, **options) -> Outcome:
    World.ran.clear()
    return launch(instance, module="hair_pipeline_tests.orchestration.small_lineage", **options)


def test_first_launch_runs_everything_once_and_the_second_nothing(instance_on_disk):
    outcome = run(instance_on_disk)
    assert sorted(map(str, World.ran)) == sorted(map(str, EVERYTHING))
    assert not outcome.failures
    assert not run(instance_on_disk).materialised
    assert World.ran == []


def test_a_change_that_leaves_the_data_as_they_are_stops_where_it_stops_mattering(instance):
    run(instance)
    World.source_version = "2"
    run(instance)
    assert sorted(World.ran) == ["base", "catalog"]


def test_new_people_make_a_new_shard_and_only_it_is_processed(instance):
    run(instance)
    World.source_version, World.shards = "2", ("s0", "s1", "s2")
    run(instance)
    # the encoder's and the stage's data come out the same, so the old vectors and the report stay
    assert World.ran == ["catalog", "base", ("patches", "s2"), "encoder", ("parts", "s2"), ("vectors", "s2"), "stage"]
    assert not run(instance).materialised


def test_a_changed_shard_keeps_its_own_data_version_whatever_it_is_made_with(instance_on_disk):
    run(instance_on_disk)
    World.source_version, World.rows = "2", {"s1": "2"}
    run(instance_on_disk)
    assert World.ran == ["catalog", "base", ("patches", "s1"), "encoder", ("parts", "s1"), ("vectors", "s1"), "stage"]
    run(instance_on_disk, selection="key:patches", shards=["s0", "s1"], force=True)
    assert World.ran == [("patches", "s0", "s1")]
    assert not run(instance_on_disk).materialised


def test_more_shards_than_dagster_looks_at_are_not_too_many_to_notice_a_change(instance, monkeypatch):
    for module in (data_version, data_version_cache):
        monkeypatch.setattr(module, "SKIP_PARTITION_DATA_VERSION_DEPENDENCY_THRESHOLD", 4)  # of its 100
    World.shards = tuple(f"s{number}" for number in range(5))
    run(instance)
    World.source_version, World.rows = "2", {"s3": "2"}
    run(instance)
    assert World.ran == [
        "catalog",
        "base",
        ("patches", "s3"),
        "encoder",
        ("parts", "s3"),
        ("vectors", "s3"),
        "stage",
    ]
    assert not run(instance).materialised


def test_other_weights_under_the_same_name_make_anew_what_reads_them(instance):
    run(instance)
    World.weights_version = "2"
    run(instance)
    assert World.ran == ["encoder", ("parts", "s0", "s1")]
    assert not run(instance).materialised


def test_only_failed_shards_are_done_again_and_their_siblings_count(instance):
    World.shards, World.broken_shards = ("s0", "s1", "s2"), frozenset({"s1"})
    outcome = run(instance, selection="key:catalog or key:patches")
    assert outcome.failures == {"patches": "some shards failed"}
    statuses = instance.get_status_by_partition(dg.AssetKey("patches"), World.shards, SHARDS)
    assert [statuses[shard].value for shard in World.shards] == ["MATERIALIZED", "FAILED", "MATERIALIZED"]
    World.broken_shards = frozenset()
    assert not run(instance, selection="key:patches", only_failed=True).failures
    assert World.ran == [("patches", "s1")]
    assert not run(instance, selection="key:patches", only_failed=True).runs


def test_a_broken_shard_holds_back_only_what_is_made_of_it(instance):
    World.shards, World.broken_shards = ("s0", "s1", "s2"), frozenset({"s1"})
    outcome = run(instance)
    assert World.ran == ["catalog", "base", ("patches", "s0", "s1", "s2"), ("parts", "s0"), ("parts", "s2")]
    assert outcome.failures == {"patches": "some shards failed"}
    run(instance)
    assert World.ran == [("patches", "s1")]
    World.broken_shards = frozenset()
    assert not run(instance).failures
    assert World.ran[0] == ("patches", "s1")
    assert World.ran[-2:] == ["stage", "report"]


def test_shards_are_named_by_lists_and_ranges_and_unknown_ones_refused(instance):
    instance.add_dynamic_partitions(SHARDS.name, ["s0", "s1", "s2", "s3"])
    assert named_shards(instance, "s3, s0...s2") == ["s3", "s0", "s1", "s2"]
    with pytest.raises(PipelineError, match="no such shard: s9"):
        run(instance, shards=named_shards(instance, "s0...s9"))


@pytest.mark.parametrize(
    ("text", "said"), [("s3...s0", "ends before it begins.*\n.*s0...s3"), ("", "names no"), (" , ", "no shard")]
)
def test_shards_that_name_nothing_are_refused(instance, text, said):
    instance.add_dynamic_partitions(SHARDS.name, ["s0", "s1", "s2", "s3"])
    with pytest.raises(PipelineError, match=said):
        named_shards(instance, text)


@pytest.mark.parametrize("options", [{"shards": ["s0"]}, {"only_failed": True}])
def test_shards_of_assets_without_shards_are_refused(instance, options):
    instance.add_dynamic_partitions(SHARDS.name, ["s0"])
    with pytest.raises(PipelineError, match=r"nothing that is selected has any: encoder, stage\n"):
        run(instance, selection="key:stage or key:encoder", **options)


def test_what_was_done_is_said_where_nothing_was_made(instance):
    outcome = run(instance, selection="source")
    assert outcome.if_nothing == "Looked at source, weights; nothing that is made here was selected."
    run(instance)
    assert "up to date" in run(instance).if_nothing
    assert "No shard's last run failed" in run(instance, only_failed=True).if_nothing


def test_what_is_out_of_date_upstream_of_a_selection_is_named(instance):
    run(instance)
    World.source_version, World.shards = "2", ("s1",)  # the people of s0 left
    assert run(instance, selection="key:patches or key:parts").upstream_left == ["catalog"]
    assert World.ran == []
    assert run(instance, selection="key:catalog or key:patches").upstream_left == []


@pytest.mark.parametrize(
    ("selection", "why"),
    [("group:nope", "selects nothing"), ("patchs", "does not exist"), ("key:patches and (", "not valid"), ("", "not")],
)
def test_a_selection_of_nothing_is_refused_with_what_there_is(instance, selection, why):
    with pytest.raises(PipelineError, match=f"(?s)the selection {re.escape(repr(selection))} .*{why}.*patches"):
        run(instance, selection=selection)


def test_with_all_upstream_is_all_of_it(instance):
    assert not run(instance, selection="+key:vectors").failures
    assert {made if isinstance(made, str) else made[0] for made in World.ran} == {
        "catalog", "base", "patches", "encoder", "vectors"
    }  # fmt: skip


@pytest.mark.parametrize("options", [{"selection": "key:patches or key:parts"}, {"only_failed": True}])
def test_shards_that_do_not_exist_yet_are_not_up_to_date(instance, options):
    with pytest.raises(PipelineError, match=r"no shards yet.*patches, parts.*\n.*group:inputs"):
        run(instance, **options)


def test_a_failure_stops_what_depends_on_it_and_is_tried_again(instance):
    World.failing = frozenset({"encoder"})
    outcome = run(instance)
    assert outcome.failures == {"encoder": "as told"}
    assert outcome.faults == outcome.failures
    assert ("vectors", "s0", "s1") not in World.ran
    assert run(instance).failures == {"encoder": "as told"}
    assert World.ran == ["encoder"]
    World.failing = frozenset()
    assert not run(instance).failures
    assert World.ran == ["encoder", ("vectors", "s0", "s1"), "stage", "report"]


def test_nothing_is_built_on_inputs_that_cannot_be_looked_at(instance):
    World.failing = frozenset({"source"})
    assert run(instance).failures == {"source": "as told"}
    assert World.ran == []


def test_a_blocking_check_stops_everything_downstream(instance):
    World.catalog_is_bad = True
    for _ in range(2):
        outcome = run(instance)
        assert "check sound did not pass" in outcome.failures["catalog"]
        assert World.ran == ["catalog"]
    outcome = run(instance, selection="key:patches")
    assert "check sound did not pass" in outcome.failures["catalog"]
    assert World.ran == []
    World.catalog_is_bad = False
    assert not run(instance).failures
    assert sorted(map(str, World.ran)) == sorted(map(str, EVERYTHING))


def test_a_blocking_check_that_breaks_stops_everything_downstream(instance):
    World.check_breaks = True
    for _ in range(2):
        assert "did not come to an end" in run(instance).failures["catalog"]
        assert World.ran == ["catalog"]
    World.check_breaks = False
    assert not run(instance).failures
    assert not run(instance).materialised


def test_a_failed_blocking_check_is_no_fault_of_a_launch_that_builds_nothing_on_it(instance):
    run(instance)
    World.source_version, World.catalog_is_bad = "2", True
    run(instance, selection="key:catalog")
    assert not run(instance, selection="key:source").failures


def test_force_runs_a_selection_that_is_up_to_date(instance):
    run(instance)
    run(instance, selection="key:encoder", force=True)
    assert World.ran == ["encoder"]


@pytest.mark.parametrize(
    ("error", "is_fault"),
    [(ReleaseRefused("the verdict is reject"), False), (PipelineError("verdict.json is not JSON"), True)],
)
def test_only_the_no_of_the_release_gate_is_no_fault(instance, error, is_fault):
    World.report_fails = error
    outcome = run(instance)
    assert outcome.failures == {"report": error.message}
    assert (outcome.faults if is_fault else outcome.refusals) == outcome.failures
    assert not (outcome.refusals if is_fault else outcome.faults)


def test_runs_take_unbroken_ranges_of_bounded_length():
    registered = tuple(f"s{n:03}" for n in range(130))
    wanted = registered[:120] + registered[125:]
    parts = list(split(Round((dg.AssetKey("patches"),), wanted), registered))
    assert [len(part.shards) for part in parts] == [50, 50, 20, 5]
    assert tuple(shard for part in parts for shard in part.shards) == wanted
