"""The sensors of the real definitions, tick by tick, against an instance whose events the tests write."""

import json
import uuid
from unittest import mock

import dagster as dg
import pandas as pd
import pytest
from dagster._core.definitions.data_version import (
    CODE_VERSION_TAG,
    DATA_VERSION_IS_USER_PROVIDED_TAG,
    DATA_VERSION_TAG,
    get_input_data_version_tag,
    get_input_event_pointer_tag,
)

from hair_pipeline.files import write_json
from hair_pipeline.inputs.folder_state import inputs_state
from hair_pipeline.orchestration.assets.inputs import INPUTS_STATE
from hair_pipeline.orchestration.automation import ATTEMPT_TAG
from hair_pipeline.orchestration.build import build_defs
from hair_pipeline.orchestration.instance import MACHINE_TAG
from hair_pipeline.orchestration.jobs import IMAGE_ASSETS
from hair_pipeline.orchestration.partitions import LEFT_OUT_TAG, SHARDS
from hair_pipeline.orchestration.resources import PipelineResource
from hair_pipeline.orchestration.staleness import NEVER_SEEN, ShardVersions
from hair_pipeline.release.registry_file import Registry
from hair_pipeline.settings import load_settings

JOBS = {
    "new_inputs": "observe_inputs_and_catalog",
    "process_new_shards": "process_shards",
    "encode_processed_shards": "encode_shards",
    "retrain_on_new_people": "retrain",
    "evaluate_new_checkpoint": "evaluate",
    "compare_evaluated_model": "compare",
    "export_approved_model": "release",
    "promote_signed_off_model": "release",
}
START, END = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"


class Daemon:
    """Ticks sensors, makes runs of what they request, and writes what runs would write."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self.instance = instance
        self.settings = load_settings()
        self.repository = build_defs(settings=self.settings).get_repository_def()
        self.graph = self.repository.asset_graph
        self.cursors: dict[str, str | None] = {}
        self.keys: set[str] = set()

    def tick(self, name: str) -> list[dg.DagsterRun]:
        """The runs a tick asks for, started; like the real daemon it never uses a run key twice."""
        self.skipped = ""
        with dg.build_sensor_context(
            instance=self.instance,
            repository_def=self.repository,
            cursor=self.cursors.get(name),
            resources={"pipeline": PipelineResource()},
        ) as context:
            done = self.repository.get_sensor_def(name).evaluate_tick(context)
        self.cursors[name] = done.cursor
        self.skipped = done.skip_message or ""
        fresh = [request for request in done.run_requests or [] if request.run_key not in self.keys]
        self.keys |= {str(request.run_key) for request in fresh}
        return [self._start(JOBS[name], request) for request in fresh]

    def _start(self, job: str, request: dg.RunRequest) -> dg.DagsterRun:
        run = dg.DagsterRun(
            job_name=job,
            run_id=str(uuid.uuid4()),
            tags=dict(request.tags),
            asset_selection=frozenset(request.asset_selection) if request.asset_selection else None,
            status=dg.DagsterRunStatus.STARTED,
        )
        return self.instance.add_run(run)

    def end(self, run: dg.DagsterRun, *, well: bool = True) -> None:
        kind = dg.DagsterEventType.PIPELINE_SUCCESS if well else dg.DagsterEventType.PIPELINE_FAILURE
        self.instance.report_dagster_event(dg.DagsterEvent(kind.value, run.job_name), run.run_id)

    def cancel(self, run: dg.DagsterRun) -> None:
        event = dg.DagsterEvent(dg.DagsterEventType.PIPELINE_CANCELED.value, run.job_name)
        self.instance.report_dagster_event(event, run.run_id)

    def make(self, asset: str, version: str, shard: str | None = None, **metadata: str) -> None:
        """Materialise an asset from its inputs as they are now."""
        key = dg.AssetKey(asset)
        tags = {DATA_VERSION_TAG: version, DATA_VERSION_IS_USER_PROVIDED_TAG: "true"}
        if (code := self.graph.get(key).code_version) is not None:
            tags[CODE_VERSION_TAG] = code
        for parent in self.graph.get(key).parent_keys:
            record = self._last(parent)
            tags[get_input_event_pointer_tag(parent)] = "NULL" if record is None else str(record.storage_id)
            tags[get_input_data_version_tag(parent)] = self._version(parent, shard)
        event = dg.AssetMaterialization(key, partition=shard, tags=tags, metadata=metadata)
        self.instance.report_runless_asset_event(event)

    def _version(self, key: dg.AssetKey, shard: str | None) -> str:
        if self.graph.get(key).is_partitioned:
            return ShardVersions(self.instance).of(key).get(str(shard), NEVER_SEEN)
        record = self._last(key)
        return NEVER_SEEN if record is None else record.asset_materialization.tags[DATA_VERSION_TAG]

    def _last(self, key: dg.AssetKey):
        made = self.instance.fetch_materializations(key, limit=1).records
        return next(iter(made or self.instance.fetch_observations(key, limit=1).records), None)

    def report_check(self, asset: str, check: str, *, passed: bool = False) -> None:
        found = dg.AssetCheckEvaluation(asset_key=dg.AssetKey(asset), check_name=check, passed=passed, metadata={})
        self.instance.report_runless_asset_event(found)

    def tick_weekly(self):
        """What the schedule of the weekly training says."""
        return self.tick_schedule("retrain_weekly")

    def tick_schedule(self, name: str):
        schedule = self.repository.get_schedule_def(name)
        instance = mock.patch.object(dg.ScheduleEvaluationContext, "instance", self.instance)  # else only from disk
        with dg.build_schedule_context(repository_def=self.repository) as context, instance:
            return schedule.evaluate_tick(context)

    def catalog(self, people: dict[str, str], versions: dict[str, str] | None = None) -> None:
        """Build a catalog: person -> shard; the first person is held out."""
        rows = [
            {"source": person, "shard": shard, "accepted": True, "split": "train" if number else "validation"}
            for number, (person, shard) in enumerate(people.items())
        ]
        self.settings.processed.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows).to_parquet(self.settings.catalog_path)
        shards = sorted(set(people.values()))
        known = self.instance.get_dynamic_partitions(SHARDS.name)
        self.instance.add_dynamic_partitions(SHARDS.name, [shard for shard in shards if shard not in known])
        for shard in shards:
            version = (versions or {}).get(shard, f"{sum(place == shard for place in people.values())} people")
            tags = {DATA_VERSION_TAG: version}
            observation = dg.AssetObservation("catalog_shards", partition=shard, tags=tags)
            self.instance.report_runless_asset_event(observation)
        self.make("catalog", str(sorted(people.items())), **{INPUTS_STATE: inputs_state(self.settings)})

    def process(self, *shards: str) -> None:
        """Make all processed assets of these shards."""
        for shard in shards:
            for asset in (*IMAGE_ASSETS, "latents"):
                self.make(asset, f"{asset} of {shard}", shard)

    def trained(self, people: list[str], version: str = "1") -> None:
        """A finished Stage 2."""
        folder = self.settings.runs / "stage2"
        write_json(folder / version / "people.json", {"people": people})
        names = {"name": "stage2", "run_id": version, "version": version, "data_version": "", "notes": {}}
        paths = {"run_dir": f"runs/stage2/{version}", "final_dir": f"runs/stage2/{version}/final"}
        write_json(folder / "current.json", names | paths | {"metrics": {}, "pictures": []})
        self.make("stage2_checkpoint", version)


@pytest.fixture
def daemon(tmp_path, monkeypatch):
    profile = tmp_path / "profile.yaml"
    profile.write_text("name: test\nautomation: {retrain_new_people: 2}\n")
    monkeypatch.setenv("HAIR_PIPELINE_PROFILE", str(profile))
    for name in ("k_hairstyle", "training_face", "training"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"HAIR_PIPELINE_{name.upper()}_ROOT", str(tmp_path / name))
    with dg.DagsterInstance.ephemeral() as instance:
        yield Daemon(instance)


# Inputs.


def test_a_changed_folder_builds_the_catalog_once_it_rests(daemon):
    for _ in range(2):
        runs = daemon.tick("new_inputs")
    assert len(runs) == 1
    assert not daemon.tick("new_inputs")
    assert "is making catalog" in daemon.skipped
    daemon.catalog({"a": "s0"})
    daemon.end(runs[0])
    assert not daemon.tick("new_inputs")
    assert "up to date" in daemon.skipped
    assert daemon.cursors["new_inputs"] == "{}"  # Dagster would keep the old one in place of an empty text
    (daemon.settings.k_hairstyle_root / "0001.new").mkdir()
    assert not daemon.tick("new_inputs")
    (daemon.settings.k_hairstyle_root / "0002.new").mkdir()
    assert not daemon.tick("new_inputs")
    assert "until they rest" in daemon.skipped
    assert len(daemon.tick("new_inputs")) == 1


def test_a_copy_that_takes_long_is_looked_at_now_and_then(daemon):
    """Folders that never rest are not waited for for ever, and not catalogued back to back either."""
    asked = []
    for look in range(1, 130):
        (daemon.settings.k_hairstyle_root / f"{look:04}").mkdir()
        for run in daemon.tick("new_inputs"):
            asked.append(look)
            daemon.catalog({"a": "s0"})
            daemon.end(run)
            (daemon.settings.k_hairstyle_root / f"{look:04}.more").mkdir()
    assert asked == [60, 120]


def test_photos_that_come_while_the_catalog_is_built_are_not_lost(daemon):
    daemon.tick("new_inputs")
    (run,) = daemon.tick("new_inputs")
    daemon.catalog({"a": "s0"})  # looked before the next line
    (daemon.settings.k_hairstyle_root / "late").mkdir()
    daemon.end(run)
    daemon.tick("new_inputs")
    assert len(daemon.tick("new_inputs")) == 1


def test_a_catalog_that_cannot_be_built_is_tried_a_bounded_number_of_times(daemon):
    daemon.tick("new_inputs")
    attempts = []
    for _ in range(6):
        for run in daemon.tick("new_inputs"):
            attempts.append(run.tags[ATTEMPT_TAG])
            daemon.end(run, well=False)
    assert attempts == ["0", "1", "2"]
    assert "3 tries have failed" in daemon.skipped
    (daemon.settings.k_hairstyle_root / "mended").mkdir()
    daemon.tick("new_inputs")
    assert len(daemon.tick("new_inputs")) == 1


# Shards.


def test_only_new_and_changed_shards_are_processed(daemon):
    daemon.catalog({"a": "s0", "b": "s1", "c": "s2"})
    (run,) = daemon.tick("process_new_shards")
    assert (run.tags[START], run.tags[END]) == ("s0", "s2")
    daemon.process("s0", "s1", "s2")
    daemon.end(run)
    daemon.catalog({"a": "s0", "b": "s1", "c": "s2"})  # the same again
    assert not daemon.tick("process_new_shards")
    daemon.catalog({"a": "s0", "b": "s1", "c": "s2"}, {"s1": "a photo replaced"})
    daemon.catalog({"a": "s0", "b": "s1", "c": "s2", "d": "s3"}, {"s1": "a photo replaced"})  # two in one tick
    runs = daemon.tick("process_new_shards")
    assert [(run.tags[START], run.tags[END]) for run in runs] == [("s1", "s1"), ("s3", "s3")]
    assert not daemon.tick("process_new_shards")


def test_a_shard_that_failed_is_tried_again_alone_and_its_siblings_go_on(daemon):
    daemon.catalog({"a": "s0", "b": "s1", "c": "s2"})
    (run,) = daemon.tick("process_new_shards")
    for asset in IMAGE_ASSETS:
        daemon.make(asset, "done", "s0")
        daemon.make(asset, "done", "s2")
    daemon.end(run, well=False)
    asked = []
    for _ in range(5):
        for run in daemon.tick("process_new_shards"):
            asked.append((run.tags[START], run.tags[END]))
            daemon.end(run, well=False)
    assert asked == [("s1", "s1")] * 3
    runs = daemon.tick("encode_processed_shards")
    assert [(run.tags[START], run.tags[END]) for run in runs] == [("s0", "s0"), ("s2", "s2")]
    daemon.catalog({"a": "s0", "b": "s1", "c": "s2"}, {"s1": "mended"})
    assert len(daemon.tick("process_new_shards")) == 1


def test_nothing_is_built_on_a_catalog_whose_blocking_check_failed(daemon):
    daemon.catalog({"a": "s0"})
    daemon.report_check("catalog", "split_is_person_disjoint")
    assert not daemon.tick("process_new_shards")
    assert "split_is_person_disjoint did not pass" in daemon.skipped
    daemon.process("s0")
    assert "split_is_person_disjoint did not pass" in daemon.tick_weekly().skip_message


# Training.


def test_training_waits_for_enough_processed_people(daemon):
    daemon.catalog({"a": "s0", "b": "s0", "c": "s1"})
    daemon.process("s0")
    assert not daemon.tick("retrain_on_new_people")
    assert "1 processed people are new" in daemon.skipped  # a is held out, c not processed
    daemon.process("s1")
    (run,) = daemon.tick("retrain_on_new_people")
    assert (run.tags[START], run.tags[END]) == ("s0", "s1")


def test_people_that_come_during_training_are_trained_on_next_and_only_once(daemon):
    people = {"a": "s0", "b": "s0", "c": "s0"}
    daemon.catalog(people)
    daemon.process("s0")
    (run,) = daemon.tick("retrain_on_new_people")
    people |= {"d": "s1", "e": "s1"}
    daemon.catalog(people)
    daemon.process("s1")
    assert not daemon.tick("retrain_on_new_people")
    assert "is making" in daemon.skipped
    daemon.trained(["b", "c"])
    daemon.end(run)
    (run,) = daemon.tick("retrain_on_new_people")
    daemon.trained(["b", "c", "d", "e"], "2")
    daemon.end(run)
    daemon.catalog(people)  # identical
    for shard in ("s0", "s1"):
        daemon.process(shard)
    assert not daemon.tick("retrain_on_new_people")
    assert "0 processed people are new" in daemon.skipped


def test_two_updates_in_one_tick_are_one_training(daemon):
    daemon.trained(["b"])
    daemon.catalog({"a": "s0", "b": "s0", "c": "s1", "d": "s1"})
    daemon.process("s0", "s1")
    daemon.catalog({"a": "s0", "b": "s0", "c": "s1", "d": "s1", "e": "s2"})
    daemon.process("s2")
    assert len(daemon.tick("retrain_on_new_people")) == 1
    assert not daemon.tick("retrain_on_new_people")


def test_failed_trainings_are_repeated_three_times_and_again_with_other_people(daemon):
    people = {"a": "s0", "b": "s0", "c": "s0"}
    daemon.catalog(people)
    daemon.process("s0")
    attempts = []
    for _ in range(6):
        for run in daemon.tick("retrain_on_new_people"):
            attempts.append(run.tags[ATTEMPT_TAG])
            daemon.end(run, well=False)
    assert attempts == ["0", "1", "2"]
    assert "3 tries have failed" in daemon.skipped
    daemon.catalog(people | {"d": "s1"})
    daemon.process("s1")
    assert len(daemon.tick("retrain_on_new_people")) == 1


def test_people_who_go_and_come_back_are_not_forgotten(daemon):
    daemon.catalog({"a": "s0", "b": "s0", "c": "s0"})
    daemon.process("s0")
    for version, people in (("1", ["b", "c"]), ("2", []), ("3", ["b", "c"])):
        if version != "2":
            (run,) = daemon.tick("retrain_on_new_people")
            daemon.end(run)
        daemon.trained(people, version)


def test_a_cancelled_training_waits_for_a_person(daemon):
    daemon.catalog({"a": "s0", "b": "s0", "c": "s0"})
    daemon.process("s0")
    (run,) = daemon.tick("retrain_on_new_people")
    daemon.cancel(run)
    assert not daemon.tick("retrain_on_new_people")
    assert "was cancelled" in daemon.skipped


def test_a_run_launched_by_hand_counts_as_under_way(daemon):
    daemon.catalog({"a": "s0", "b": "s0", "c": "s0"})
    daemon.process("s0")
    daemon._start("__ASSET_JOB", dg.RunRequest(asset_selection=[dg.AssetKey("stage1_checkpoint")]))
    assert not daemon.tick("retrain_on_new_people")
    assert "is making stage1_checkpoint" in daemon.skipped


# Evaluation and release.


def test_evaluation_and_comparison_follow_a_checkpoint_also_one_that_comes_meanwhile(daemon):
    assert not daemon.tick("evaluate_new_checkpoint")
    daemon.make("stage2_checkpoint", "1")
    (run,) = daemon.tick("evaluate_new_checkpoint")
    assert not daemon.tick("compare_evaluated_model")
    daemon.make("eval_report", "report 1")
    daemon.end(run)
    assert not daemon.tick("evaluate_new_checkpoint")
    (compared,) = daemon.tick("compare_evaluated_model")
    daemon.make("ab_verdict", "verdict 1")
    daemon.make("stage2_checkpoint", "2")
    daemon.end(compared)
    assert not daemon.tick("compare_evaluated_model")
    assert "not up to date" in daemon.skipped
    assert len(daemon.tick("evaluate_new_checkpoint")) == 1


def test_a_checkpoint_made_again_with_the_same_weights_is_not_evaluated_again(daemon):
    daemon.make("stage2_checkpoint", "1")
    daemon.make("eval_report", "report 1")
    daemon.make("stage2_checkpoint", "1")
    assert not daemon.tick("evaluate_new_checkpoint")


def test_only_an_approved_model_is_exported(daemon):
    for asset in ("stage2_checkpoint", "eval_report", "ab_verdict"):
        daemon.make(asset, "1")
    pointer = daemon.settings.reports / "ab" / "current.json"
    write_json(pointer, {"verdict": "reject"})
    assert not daemon.tick("export_approved_model")
    write_json(pointer, {"verdict": "approve"})
    assert len(daemon.tick("export_approved_model")) == 1


def test_a_sign_off_promotes_once_and_a_rollback_stays(daemon):
    registry = Registry(daemon.settings.registry_path)
    for version in ("old", "new"):
        folder = daemon.settings.checkpoints / version
        folder.mkdir(parents=True)
        registry.register(
            version, folder, {}, {"verdict": "approve", "id": "1", "against_version": "old", "against_first": True}
        )
        write_json(daemon.settings.checkpoints / "exported.json", {"version": version})
        assert not daemon.tick("promote_signed_off_model")
        registry.sign_off(version, "Kim", "approve")
        (run,) = daemon.tick("promote_signed_off_model")
        assert run.asset_selection == {dg.AssetKey("production_registry")}
        registry.promote(version)
        daemon.end(run)
        assert not daemon.tick("promote_signed_off_model")
    daemon.report_check("exported_weights", "export_makes_the_round_trip")
    registry.rollback("it blurs")
    assert json.loads(daemon.settings.registry_path.read_text())["production"] == "old"
    assert not daemon.tick("promote_signed_off_model")
    registry.sign_off("new", "Kim", "approve", "after all")
    assert not daemon.tick("promote_signed_off_model")
    assert "export_makes_the_round_trip did not pass" in daemon.skipped
    daemon.report_check("exported_weights", "export_makes_the_round_trip", passed=True)
    assert len(daemon.tick("promote_signed_off_model")) == 1


def test_everything_is_off_until_switched_on(daemon):
    stopped = {dg.DefaultSensorStatus.STOPPED, dg.DefaultScheduleStatus.STOPPED}
    watching_only = {"run_failed"}  # logs and posts, starts nothing
    starting = [sensor for sensor in daemon.repository.sensor_defs if sensor.name not in watching_only]
    assert len(starting) > 5
    assert {sensor.default_status for sensor in starting} <= stopped
    assert {schedule.default_status for schedule in daemon.repository.schedule_defs} <= stopped


def test_a_shard_that_cannot_be_processed_keeps_no_other_from_training(daemon):
    daemon.catalog({"a": "s0", "b": "s1", "c": "s2", "d": "s2", "e": "s3"})
    daemon.process("s0", "s2")
    (request,) = daemon.tick_weekly().run_requests
    (run,) = daemon.tick("retrain_on_new_people")
    for tags in (request.tags, run.tags):
        assert (tags[START], tags[END], tags[LEFT_OUT_TAG]) == ("s0", "s2", "s1")


def test_the_weekly_training_takes_all_shards_and_never_doubles(daemon):
    daemon.catalog({"a": "s0", "b": "s1"})
    assert "no processed shards" in daemon.tick_weekly().skip_message
    daemon.process("s0", "s1")
    (request,) = daemon.tick_weekly().run_requests
    assert (request.tags[START], request.tags[END]) == ("s0", "s1")
    daemon._start("retrain", request)
    assert "is making" in daemon.tick_weekly().skip_message


def test_the_daily_look_at_the_inputs_waits_for_a_catalog_that_is_being_built(daemon):
    (request,) = daemon.tick_schedule("observe_inputs_daily").run_requests
    assert MACHINE_TAG in request.tags
    daemon._start("observe_inputs_and_catalog", request)
    answer = daemon.tick_schedule("observe_inputs_daily")
    assert not answer.run_requests
    assert "is making catalog" in answer.skip_message


@pytest.mark.parametrize("job", ["process_shards", "encode_shards"])
def test_the_weekly_training_waits_while_shards_are_processed(daemon, job):
    daemon.catalog({"a": "s0", "b": "s1"})
    daemon.process("s0", "s1")
    run = daemon._start(job, dg.RunRequest())
    assert "is making" in daemon.tick_weekly().skip_message
    daemon.end(run)
    assert daemon.tick_weekly().run_requests
