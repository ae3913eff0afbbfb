"""What a launch runs and what it leaves alone: by data version, through failures, over a lineage like the real one."""

import dagster as dg
import pytest

from hair_pipeline.orchestration.launch import Outcome, Round, _split, launch
from hair_pipeline_tests.orchestration.small_lineage import World

EVERYTHING = [
    "catalog",
    "base",
    ("patches", "s0", "s1"),
    "encoder",
    ("vectors", "s0", "s1"),
    "stage",
    "report",
]


@pytest.fixture
def instance(tmp_path):
    World.reset()
    with dg.DagsterInstance.local_temp(str(tmp_path), overrides={"telemetry": {"enabled": False}}) as instance:
        yield instance


def run(instance, **options) -> Outcome:
    World.ran.clear()
    return launch(instance, module="hair_pipeline_tests.orchestration.small_lineage", **options)


def test_first_launch_runs_everything_once_and_the_second_nothing(instance):
    outcome = run(instance)
    assert sorted(map(str, World.ran)) == sorted(map(str, EVERYTHING))
    assert not outcome.failures
    assert not run(instance).materialised
    assert World.ran == []


def test_a_change_that_leaves_the_data_as_they_are_stops_where_it_stops_mattering(instance):
    run(instance)
    World.source_version = "2"
    run(instance)
    assert sorted(map(str, World.ran)) == sorted(map(str, ["catalog", ("patches", "s0", "s1"), "base"]))


def test_new_people_make_a_new_shard_and_downstream_follows(instance):
    run(instance)
    World.source_version, World.shards = "2", ("s0", "s1", "s2")
    run(instance)
    assert ("vectors", "s2") in World.ran
    assert World.ran[-1] == "stage"  # its data came out the same, so the report stays
    assert not run(instance).materialised


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


def test_a_blocking_check_stops_everything_downstream(instance):
    World.catalog_is_bad = True
    outcome = run(instance)
    assert "sound" in outcome.failures["catalog"]
    assert ("patches", "s0", "s1") not in World.ran


def test_force_runs_a_selection_that_is_up_to_date(instance):
    run(instance)
    run(instance, selection="key:encoder", force=True)
    assert World.ran == ["encoder"]


def test_a_refusal_of_the_release_gate_is_not_a_fault():
    outcome = Outcome(failures={"exported_weights": "the verdict is reject"})
    assert outcome.faults == {}
    assert outcome.refusals == {"exported_weights": "the verdict is reject"}


def test_runs_take_unbroken_ranges_of_bounded_length():
    registered = tuple(f"s{n:03}" for n in range(130))
    wanted = registered[:120] + registered[125:]
    parts = list(_split(Round((dg.AssetKey("patches"),), wanted), registered))
    assert [len(part.shards) for part in parts] == [50, 50, 20, 5]
    assert tuple(shard for part in parts for shard in part.shards) == wanted
