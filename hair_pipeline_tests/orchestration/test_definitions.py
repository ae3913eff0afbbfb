"""The code location: what it holds, what its assets ask of a machine, and that it loads without the heavy libraries."""

import subprocess
import sys

import dagster as dg
import pytest

from hair_pipeline.orchestration.build import ASSETS, build_defs
from hair_pipeline.orchestration.compute_tags import CPU, GPU
from hair_pipeline.orchestration.executors import forwarded
from hair_pipeline.settings import Settings

GROUPS = {
    "inputs": {"k_hairstyle_images", "training_face_outputs", "customer_photos", "catalog", "catalog_shards"},
    "processed": {
        "identity_embeddings",
        "bald_images",
        "hair_only_images",
        "hair_patches",
        "style_vectors",
        "latents",
    },
    "texture": {"patch_encoder", "style_classifier"},
    "training": {"stage1_checkpoint", "stage2_checkpoint"},
    "evaluation": {"eval_report", "ab_verdict"},
    "release": {"exported_weights", "production_registry"},
    "base": {"inpainting_base", "face_recogniser", "perceptual_trunk"},
}
ON_GPU = {
    "style_vectors",
    "latents",
    "patch_encoder",
    "style_classifier",
    "stage1_checkpoint",
    "stage2_checkpoint",
    "eval_report",
    "ab_verdict",
    "exported_weights",
}


@pytest.mark.parametrize("profile", ["sample", "rtx24gb", "h100"])
def test_every_asset_of_the_design_stands_in_its_group(profile):
    graph = build_defs(settings=Settings(profile=profile)).resolve_asset_graph()
    found = {}
    for key in graph.get_all_asset_keys():
        found.setdefault(graph.get(key).group_name, set()).add(key.to_user_string())
    assert found == GROUPS


@pytest.mark.parametrize("profile", ["sample", "rtx24gb", "h100"])
def test_the_base_group_comes_from_outside(profile):
    graph = build_defs(settings=Settings(profile=profile)).resolve_asset_graph()
    assert not any(
        graph.get(key).is_materializable for key in graph.get_all_asset_keys() if graph.get(key).group_name == "base"
    )


def test_what_comes_from_outside_is_observed_daily_and_what_reads_it_depends_on_it():
    definitions = build_defs()
    graph = definitions.resolve_asset_graph()
    outside = {dg.AssetKey(name) for name in GROUPS["base"] | {"customer_photos"}}
    assert all(graph.get(key).is_observable for key in outside)
    job = definitions.resolve_job_def("observe_inputs_and_catalog")
    assert outside <= set(job.asset_layer.executable_asset_keys)
    for name, readers in {
        "inpainting_base": {"latents", "style_classifier", "stage1_checkpoint", "stage2_checkpoint"},
        "customer_photos": {"ab_verdict"},
    }.items():
        assert {child.to_user_string() for child in graph.get(dg.AssetKey(name)).child_keys} == readers


def test_observing_weights_imports_no_torch():
    script = (
        "import sys, hair_pipeline.models.outside;"
        "print(sorted({'torch', 'diffusers', 'onnxruntime'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_step_carries_its_accelerator_mark_and_pool():
    repository = build_defs().get_repository_def()
    for assets in repository.assets_defs_by_key.values():
        if not assets.is_executable or not assets.is_materializable:
            continue
        name = min(key.to_user_string() for key in assets.keys)
        mark = GPU if name in ON_GPU else CPU
        assert assets.op.pool == mark["pool"], name
        assert assets.op.tags["hair_pipeline/accelerator"] == mark["pool"], name


def test_every_asset_and_check_explains_itself():
    definitions = build_defs()
    graph = definitions.resolve_asset_graph()
    assert all(graph.get(key).description for key in graph.get_all_asset_keys())
    for key in graph.asset_check_keys:
        assert "On failure" in graph.get(key).description or "nothing is" in graph.get(key).description, key


def test_every_asset_has_an_owner_a_kind_and_if_it_is_made_here_a_code_version():
    graph = build_defs().resolve_asset_graph()
    for node in graph.asset_nodes:
        assert node.owners, node.key
        assert node.kinds, node.key
        assert node.code_version or not node.is_materializable, node.key


def test_the_launchpad_explains_the_run_config():
    steps = [asset for asset in ASSETS if isinstance(asset, dg.AssetsDefinition)]
    stage2 = next(step for step in steps if "stage2_checkpoint" in str(step.keys))
    fields = stage2.op.config_schema.config_type.fields
    assert set(fields) == {"start_over", "keep_going"}
    assert all(len(field.description) > 50 for field in fields.values())


def test_a_change_of_the_profile_changes_the_code_versions_it_concerns(tmp_path):
    changed = tmp_path / "changed.yaml"
    changed.write_text("name: changed\nprocessing: {bald: {method: gray}}\n")
    plain = tmp_path / "plain.yaml"
    plain.write_text("name: plain\n")
    versions = [
        {
            key.to_user_string(): graph.get(key).code_version
            for graph in [build_defs(settings=Settings(profile=str(path))).resolve_asset_graph()]
            for key in graph.get_all_asset_keys()
        }
        for path in (plain, changed)
    ]
    assert {name for name in versions[0] if versions[0][name] != versions[1][name]} == {"bald_images", "latents"}


def test_loading_definitions_imports_no_heavy_library():
    script = (
        "import sys, hair_pipeline.definitions;"
        "print(sorted({'torch', 'diffusers', 'ray', 'transformers', 'lpips', 'insightface'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_steps_on_other_machines_get_what_the_pipeline_works_on_and_no_secret():
    needed = ["DAGSTER_HOME", "DAGSTER_PG_HOST", "HAIR_PIPELINE_PROFILE", "HF_HOME", "OMP_NUM_THREADS"]
    secrets = ["DAGSTER_PG_PASSWORD", "DAGSTER_POSTGRES_URL", "HAIR_PIPELINE_ALERT_WEBHOOK", "HF_TOKEN"]
    assert forwarded([*secrets, *needed, "PATH", "RAY_AUTH_TOKEN"]) == needed
