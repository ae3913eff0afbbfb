"""Sensors: what follows what by itself, once switched on. All of them are off until then.

Each compares how things are with how they should be, and asks for the difference (`automation.py` has the rule):

    new_inputs                 input folders changed            -> observe_inputs_and_catalog
    process_new_shards         shards' rows are new or changed  -> process_shards
    encode_processed_shards    their parts are                  -> encode_shards
    retrain_on_new_people      enough people are new            -> retrain
    evaluate_new_checkpoint    the checkpoint is new            -> evaluate
    compare_evaluated_model    its evaluation is                -> compare
    export_approved_model      its verdict is `approve`         -> release
    promote_signed_off_model   a person signed it off           -> release (production_registry)

Belongs here: these comparisons. Does not belong here: what the runs do. Like the asset modules it does without
`from __future__ import annotations`: Dagster reads the real types of resources.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from hair_pipeline.files import read_json
from hair_pipeline.orchestration.automation import (
    Wish,
    ask,
    busy,
    last_made,
    short,
)
from hair_pipeline.orchestration.jobs import (
    IMAGE_ASSETS,
    TRAINING_WAITS_FOR,
    comparison_job,
    evaluation_job,
    inputs_job,
    latents_job,
    processed_job,
    release_job,
    training_job,
    training_tags,
)
from hair_pipeline.orchestration.resources import PipelineResource
from hair_pipeline.orchestration.rounds import Lineage, Round, Stale, split
from hair_pipeline.orchestration.soundness import unsound
from hair_pipeline.profile import Profile
from hair_pipeline.settings import Settings

PROCESSED = (*IMAGE_ASSETS, "latents")
STAGE = "stage2"
CHECKPOINT = "stage2_checkpoint"
MADE_FROM = {
    "eval_report": (CHECKPOINT,),
    "ab_verdict": (CHECKPOINT, "eval_report"),
    "exported_weights": (CHECKPOINT, "ab_verdict"),
}
"""What of an asset's inputs makes it follow. The others change with every new shard, which is no reason to evaluate the
same model again."""
MAX_LOOKS_UNSETTLED = 60
"""A folder that never comes to rest is not waited for longer than so many looks."""

Answer = Wish | dg.SkipReason


@dataclass(frozen=True)
class World:
    """What an automation looks at."""

    instance: dg.DagsterInstance
    repository: dg.RepositoryDefinition
    settings: Settings
    profile: Profile

    def lineage(self, names: Sequence[str]) -> Lineage:
        """The lineage with these assets selected."""
        return Lineage(self.instance, self.repository.asset_graph, [dg.AssetKey(name) for name in names])

    def fault(self, name: str) -> str | None:
        """Why nothing may be built on an asset; None when it is sound."""
        found = unsound(self.instance, self.repository.asset_graph).get(dg.AssetKey(name))
        return None if found is None else f"{name}: {found}"


def _sensor(
    name: str,
    job: UnresolvedAssetJobDefinition,
    waits_for: Sequence[str],
    profile: Profile,
    look: Callable[[World], Answer],
    description: str,
) -> dg.SensorDefinition:
    """A sensor that asks for what `look` wants, unless a run is making one of `waits_for`."""

    @dg.sensor(
        name=name,
        job=job,
        minimum_interval_seconds=profile.automation.interval_seconds,
        description=description,
    )
    def sensor(context: dg.SensorEvaluationContext, pipeline: PipelineResource) -> list[dg.RunRequest] | dg.SkipReason:
        assert context.repository_def is not None
        world = World(context.instance, context.repository_def, pipeline.settings, pipeline.profile)
        if (under_way := busy(world.instance, world.repository, waits_for)) is not None:
            return under_way
        wish = look(world)
        if isinstance(wish, dg.SkipReason):
            return wish
        return ask(context.instance, wish, world.profile.automation.attempts)

    return sensor


# Inputs.


def _new_inputs(profile: Profile) -> dg.SensorDefinition:
    @dg.sensor(
        name="new_inputs",
        job=inputs_job,
        minimum_interval_seconds=profile.automation.interval_seconds,
        description="Rebuilds the catalog, which registers shards, when photos, labels or training_face outputs have "
        "come or gone. Looks at the folders' times only; the schedule `observe_inputs_daily` looks at the files.",
    )
    def new_inputs(context: dg.SensorEvaluationContext, pipeline: PipelineResource) -> dg.SensorResult | dg.SkipReason:
        from hair_pipeline.inputs.folder_state import inputs_state
        from hair_pipeline.orchestration.assets.inputs import INPUTS_STATE

        assert context.repository_def is not None
        world = World(context.instance, context.repository_def, pipeline.settings, pipeline.profile)
        now = inputs_state(world.settings)
        catalog = last_made(world.instance, ["catalog"])["catalog"]
        built_from = (catalog.metadata or {}).get(INPUTS_STATE)
        if built_from is not None and built_from.value == now:
            return dg.SensorResult(skip_reason="the catalog is up to date with the input folders", cursor="{}")
        seen = json.loads(context.cursor or "{}")
        same = seen.get("same", 0) + 1 if seen.get("state") == now else 1
        looks = seen.get("looks", 0) + 1
        cursor = json.dumps({"state": now, "same": same, "looks": looks})
        if same < world.profile.automation.settle_looks and looks < MAX_LOOKS_UNSETTLED:
            return dg.SensorResult(skip_reason="the input folders are changing: waiting until they rest", cursor=cursor)
        if (under_way := busy(world.instance, world.repository, ["catalog"])) is not None:
            return dg.SensorResult(skip_reason=under_way, cursor=cursor)
        wish = Wish("new_inputs", short(catalog.storage_id, now), [dg.RunRequest()])
        answer = ask(world.instance, wish, world.profile.automation.attempts)
        if isinstance(answer, dg.SkipReason):
            return dg.SensorResult(skip_reason=answer, cursor=cursor)
        cursor = json.dumps({"state": now, "same": same, "looks": 0})  # the next change is waited for anew
        return dg.SensorResult(run_requests=answer, cursor=cursor)

    return new_inputs


# Shards.


def _shards_wanted(world: World, automation: str, assets: Sequence[str], upstream: Sequence[str]) -> Answer:
    """The shards in which one of `assets` is missing or out of date, and none of `upstream` is."""
    if (fault := world.fault("catalog")) is not None:
        return dg.SkipReason(fault)
    lineage = world.lineage([*upstream, *assets])
    stale = lineage.out_of_date()
    concerned = {shard for name in assets for shard in _stale_shards(stale, name)}
    waiting = {shard for name in upstream for shard in _stale_shards(stale, name)}
    shards = tuple(shard for shard in lineage.registered if shard in concerned - waiting)
    if not shards:
        ready = f"; {len(waiting)} wait for {upstream[0]}" if concerned else ""
        return dg.SkipReason(f"no shard is to be done{ready}")
    keys = tuple(dg.AssetKey(name) for name in assets)
    requests = [dg.RunRequest(tags=part.tags) for part in split(Round(keys, shards), lineage.registered)]
    made = last_made(world.instance, ["catalog", *upstream])
    codes = [lineage.graph.get(key).code_version for key in keys]
    wanted = short(*shards, *codes, *(made[name].storage_id for name in ("catalog", *upstream)))
    return Wish(automation, wanted, requests)


def _stale_shards(stale: Mapping[dg.AssetKey, Stale], name: str) -> tuple[str, ...]:
    found = stale.get(dg.AssetKey(name))
    return () if found is None else found.shards


def _process_new_shards(world: World) -> Answer:
    return _shards_wanted(world, "process_new_shards", IMAGE_ASSETS, ())


def _encode_processed_shards(world: World) -> Answer:
    return _shards_wanted(world, "encode_processed_shards", ("latents",), IMAGE_ASSETS)


# Training.


def _retrain(world: World) -> Answer:
    """Enough people stand in processed shards that the current checkpoint was not trained on."""
    from hair_pipeline.training.people import new_people

    if not world.settings.catalog_path.exists():
        return dg.SkipReason("there is no catalog yet")
    if (fault := world.fault("catalog")) is not None:
        return dg.SkipReason(fault)
    lineage = world.lineage(PROCESSED)
    stale = lineage.out_of_date()
    waiting = {shard for name in PROCESSED for shard in _stale_shards(stale, name)}
    ready = [shard for shard in lineage.registered if shard not in waiting]
    people = new_people(STAGE, world.settings, ready)
    enough = world.profile.automation.retrain_new_people
    if len(people) < enough:
        return dg.SkipReason(f"{len(people)} processed people are new to the checkpoint; {enough} would be enough")
    made = last_made(world.instance, [CHECKPOINT])[CHECKPOINT]
    request = dg.RunRequest(tags=training_tags(world.instance))
    return Wish("retrain_on_new_people", short(made.storage_id, *people), [request])


# Evaluation and release.


def _following(automation: str, asset: str) -> Callable[[World], Answer]:
    """`asset` was made from other versions of its `MADE_FROM` than there are now, and these are up to date."""

    def look(world: World) -> Answer:
        made = last_made(world.instance, [CHECKPOINT, *MADE_FROM])
        inputs = MADE_FROM[asset]
        for name in inputs:
            if made[name].data_version is None:
                return dg.SkipReason(f"there is no {name} yet")
            if any(
                (made[name].made_from or {}).get(other) != made[other].data_version for other in MADE_FROM.get(name, ())
            ):
                return dg.SkipReason(f"{name} is not up to date with the checkpoint yet")
        if all((made[asset].made_from or {}).get(name) == made[name].data_version for name in inputs):
            return dg.SkipReason(f"{asset} is up to date")
        wanted = short(made[asset].storage_id, *(made[name].data_version for name in inputs))
        return Wish(automation, wanted, [dg.RunRequest()])

    return look


def _export_approved(world: World) -> Answer:
    pointer = world.settings.reports / "ab" / "current.json"
    if pointer.exists() and (verdict := read_json(pointer)["verdict"]) != "approve":
        return dg.SkipReason(f"the verdict is {verdict}: nothing is exported")
    return _following("export_approved_model", "exported_weights")(world)


def _promote_signed_off(world: World) -> Answer:
    """The version exported last is signed off, and was not promoted since."""
    from hair_pipeline.release.registry_file import Registry

    registry = Registry(world.settings.registry_path)
    approved = [version for version, record in registry.list().items() if record["status"] == "approved"]
    pointer = world.settings.checkpoints / "exported.json"
    exported = read_json(pointer)["version"] if pointer.exists() else None
    if exported not in approved:
        return dg.SkipReason("no exported version waits with a person's approval")
    if (fault := world.fault("exported_weights")) is not None:
        return dg.SkipReason(fault)
    if registry.promoted_since_sign_off(exported):
        return dg.SkipReason(f"version {exported} was promoted before; sign it off again, or promote it by hand")
    wanted = short(exported, len(registry.show(exported)["history"]))
    request = dg.RunRequest(asset_selection=[dg.AssetKey("production_registry")])
    return Wish("promote_signed_off_model", wanted, [request])


def build_sensors(profile: Profile) -> list[dg.SensorDefinition]:
    """All sensors, with the profile's intervals."""
    return [
        _new_inputs(profile),
        _sensor(
            "process_new_shards",
            processed_job,
            ["catalog", *IMAGE_ASSETS],
            profile,
            _process_new_shards,
            "Processes shards whose rows are new or changed, up to 50 in a run; the other shards are left alone. A "
            "shard that failed is tried again alone.",
        ),
        _sensor(
            "encode_processed_shards",
            latents_job,
            ["catalog", *PROCESSED],
            profile,
            _encode_processed_shards,
            "Encodes processed shards for training.",
        ),
        _sensor(
            "retrain_on_new_people",
            training_job,
            TRAINING_WAITS_FOR,
            profile,
            _retrain,
            "Trains again when automation.retrain_new_people of the profile processed people are new since the "
            "checkpoint was trained; the first model as soon as there are so many.",
        ),
        _sensor(
            "evaluate_new_checkpoint",
            evaluation_job,
            [CHECKPOINT, "eval_report"],
            profile,
            _following("evaluate_new_checkpoint", "eval_report"),
            "Evaluates a new checkpoint.",
        ),
        _sensor(
            "compare_evaluated_model",
            comparison_job,
            [CHECKPOINT, "eval_report", "ab_verdict"],
            profile,
            _following("compare_evaluated_model", "ab_verdict"),
            "A/B test of an evaluated model against the one in production.",
        ),
        _sensor(
            "export_approved_model",
            release_job,
            [CHECKPOINT, "eval_report", "ab_verdict", "exported_weights", "production_registry"],
            profile,
            _export_approved,
            "Exports a model whose verdict is `approve` and registers it; it then waits for a person.",
        ),
        _sensor(
            "promote_signed_off_model",
            release_job,
            ["exported_weights", "production_registry"],
            profile,
            _promote_signed_off,
            "Promotes the exported model once a person has signed it off (`hair-pipeline registry sign-off`). A model "
            "that was rolled back is not promoted again.",
        ),
    ]
