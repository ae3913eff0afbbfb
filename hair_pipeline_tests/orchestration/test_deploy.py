"""The folder deploy/: Kubernetes accepts its manifests (schemas of kubernetes-validate), and its parts fit together."""

from pathlib import Path

import pytest
import yaml

from hair_pipeline.orchestration.compute_tags import CPU_POOL, GPU_POOL
from hair_pipeline.profile import load_profile
from hair_pipeline.settings import PROJECT_ROOT, Settings

kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="needs the extra `dev`")

FOLDER = PROJECT_ROOT / "deploy" / "kubernetes"
VERSIONS = ["1.31", "1.36"]


def resources() -> list[dict]:
    names = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["resources"]
    return [document for name in names for document in yaml.safe_load_all((FOLDER / name).read_text())]


def named(kind: str) -> dict[str, dict]:
    return {resource["metadata"]["name"]: resource for resource in resources() if resource["kind"] == kind}


def pods() -> dict[str, dict]:
    workloads = named("Deployment") | named("StatefulSet")
    return {name: workload["spec"]["template"]["spec"] for name, workload in workloads.items()}


def variables(path: Path) -> dict[str, str]:
    return dict(line.split("=", 1) for line in path.read_text().splitlines() if line and not line.startswith("#"))


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_accepts_every_manifest(version):
    for resource in resources():
        kubernetes_validate.validate(resource, version, strict=True)
    assert set(pods()) == {"dagster-code", "dagster-webserver", "dagster-daemon", "dagster-postgres"}


def test_every_manifest_is_listed():
    listed = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["resources"]
    others = {"kustomization.yaml", "dagster.yaml", "workspace.yaml", "copy.yaml"}
    assert set(listed) == {path.name for path in FOLDER.glob("*.yaml")} - others


def test_what_the_pods_mount_and_read_exists():
    kustomization = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
    maps = {generator["name"] for generator in kustomization["configMapGenerator"]}
    secrets = {generator["name"] for generator in kustomization["secretGenerator"]}
    claims = set(named("PersistentVolumeClaim"))
    for name, pod in pods().items():
        volumes = pod.get("volumes", [])
        assert {volume["configMap"]["name"] for volume in volumes if "configMap" in volume} <= maps
        mounted = {volume["persistentVolumeClaim"]["claimName"] for volume in volumes if "configMap" not in volume}
        assert mounted <= claims
        for container in pod["containers"]:
            for source in container.get("envFrom", []):
                assert source.get("configMapRef", {}).get("name", "dagster-instance") in maps
                assert source.get("secretRef", {}).get("name", "dagster-postgres") in secrets
            known = {volume["name"] for volume in volumes} | {"data"}
            assert {mount["name"] for mount in container["volumeMounts"]} <= known
        assert pod["securityContext"]["runAsNonRoot"], name
    launcher = yaml.safe_load((FOLDER / "dagster.yaml").read_text())["run_launcher"]["config"]
    assert {volume["persistent_volume_claim"]["claim_name"] for volume in launcher["volumes"]} == claims
    assert set(launcher["env_config_maps"] + [launcher["instance_config_map"]]) == maps
    assert set(launcher["env_secrets"]) == secrets
    assert launcher["service_account_name"] in named("ServiceAccount")
    assert launcher["dagster_home"] == "/opt/dagster"


def test_dagster_may_do_what_it_does_to_start_and_to_end_a_step():
    """The calls of dagster_k8s.client: ending a run deletes its jobs and then, by themselves, their pods."""
    allowed = {
        (resource, verb)
        for rule in named("Role")["dagster"]["rules"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    needed = {"jobs": {"create", "get", "list", "delete"}, "pods": {"get", "list", "delete"}, "pods/log": {"get"}}
    assert {(resource, verb) for resource, verbs in needed.items() for verb in verbs} <= allowed


@pytest.mark.parametrize("version", VERSIONS)
def test_the_volumes_can_be_filled_and_the_inputs_are_safe_from_everything_else(version):
    claims = named("PersistentVolumeClaim")
    assert all(claim["spec"]["accessModes"] == ["ReadWriteMany"] for claim in claims.values())
    copy = yaml.safe_load((FOLDER / "copy.yaml").read_text())
    kubernetes_validate.validate(copy, version, strict=True)
    assert {volume["persistentVolumeClaim"]["claimName"] for volume in copy["spec"]["volumes"]} == set(claims)
    assert not any(mount.get("readOnly") for mount in copy["spec"]["containers"][0]["volumeMounts"])
    assert copy["spec"]["securityContext"] == pods()["dagster-code"]["securityContext"]
    mounts = [mount for pod in pods().values() for box in pod["containers"] for mount in box["volumeMounts"]]
    launcher = yaml.safe_load((FOLDER / "dagster.yaml").read_text())["run_launcher"]["config"]
    assert {mount["readOnly"] for mount in mounts if mount["name"] == "inputs"} == {True}
    assert {mount["read_only"] for mount in launcher["volume_mounts"] if mount["name"] == "inputs"} == {True}


def test_the_guide_gives_both_pools_their_places():
    guide = (PROJECT_ROOT / "docs" / "scale-out.md").read_text().split("## Kubernetes")[1]
    for pool in (GPU_POOL, CPU_POOL):
        assert f"-- dagster instance concurrency set {pool} " in guide


def test_a_profile_on_the_training_volume_is_seen_by_every_pod_that_reads_it():
    """docs/scale-out.md puts one there."""
    for name in ("dagster-code", "dagster-webserver", "dagster-daemon"):
        (container,) = pods()[name]["containers"]
        assert "/data/training" in {mount["mountPath"] for mount in container["volumeMounts"]}


def test_the_settings_are_settings(monkeypatch):
    values = variables(FOLDER / "settings.env")
    prefix = "HAIR_PIPELINE_"
    own = {name.removeprefix(prefix).lower(): value for name, value in values.items() if name.startswith(prefix)}
    assert set(own) <= set(Settings.model_fields)
    assert Settings(**own).executor == "k8s"
    assert "alert_webhook" not in own
    roots = [value for name, value in own.items() if name.endswith(("root", "dir"))]
    launcher = yaml.safe_load((FOLDER / "dagster.yaml").read_text())["run_launcher"]["config"]
    mounts = tuple(mount["mount_path"] for mount in launcher["volume_mounts"])
    assert all(root.startswith(mounts) for root in roots)


def test_both_instances_differ_from_the_local_one_in_where_things_are_kept_alone():
    local, postgres, cluster = (
        yaml.safe_load(path.read_text())
        for path in (
            PROJECT_ROOT / "dagster.yaml",
            PROJECT_ROOT / "deploy" / "postgres" / "dagster.yaml",
            FOLDER / "dagster.yaml",
        )
    )
    assert local.pop("storage") != postgres.pop("storage")
    assert postgres == local
    for name in ("retention", "run_retries", "telemetry", "nux"):
        assert cluster[name] == local[name]
    assert cluster.keys() - local.keys() == {"storage", "run_launcher"}


@pytest.mark.parametrize("folder", ["kubernetes", "postgres"])
def test_dagster_reads_the_instances(folder, monkeypatch):
    pytest.importorskip("dagster_postgres", reason="needs the extra `postgres`")
    from dagster._core.instance.config import dagster_instance_config

    home = PROJECT_ROOT / "deploy" / folder
    values, _ = dagster_instance_config(str(home))
    assert "postgres" in values["storage"]
    for name in variables(FOLDER / "postgres.env.example"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", "postgresql://x:x@localhost:1/x")
    from dagster._core.instance.ref import InstanceRef

    reference = InstanceRef.from_dir(str(home))
    assert "Postgres" in reference.storage_data.class_name
    config = reference.storage_data.config_yaml
    assert "env:" in config


def test_no_file_of_passwords_goes_into_an_image_or_into_git():
    """`COPY . .` takes all that .dockerignore does not name."""
    secrets = [path.with_suffix("") for path in FOLDER.glob("*.env.example")]
    assert secrets
    ignored = (PROJECT_ROOT / ".dockerignore").read_text().splitlines()
    assert {"**/*.env", "**/.env*"} <= set(ignored)
    assert not [line for line in ignored if line.startswith("!") and "env" in line]
    assert all(path.suffix == ".env" for path in secrets)
    kept_from_git = (PROJECT_ROOT / ".gitignore").read_text().splitlines()
    assert {f"/{path.relative_to(PROJECT_ROOT)}" for path in secrets} <= set(kept_from_git)


def test_the_images_run_as_a_user_without_rights():
    stages = (PROJECT_ROOT / "deploy" / "Dockerfile").read_text().split("\nFROM ")
    assert [stage.split(" AS ")[1].splitlines()[0] for stage in stages[1:]] == ["base", "cpu", "cuda"]
    assert stages[1].index("USER pipeline") > stages[1].index("apt-get")
    assert all(stage.rfind("USER pipeline") >= stage.rfind("USER root") for stage in stages)


def test_the_image_for_gpus_can_compile_training_steps():
    """Triton calls a C compiler when a profile says `compile: true`."""
    cuda = (PROJECT_ROOT / "deploy" / "Dockerfile").read_text().split(" AS cuda\n")[1]
    assert load_profile("h100").stage1.compile
    assert {"gcc", "libc6-dev"} <= set(cuda.split())


def test_the_webhook_is_a_secret_of_the_pods_that_send_alerts_and_run_steps():
    assert "HAIR_PIPELINE_ALERT_WEBHOOK" in variables(FOLDER / "secrets.env.example")
    kustomization = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
    (name,) = [made["name"] for made in kustomization["secretGenerator"] if made["envs"] == ["secrets.env"]]
    (container,) = pods()["dagster-code"]["containers"]
    assert {"secretRef": {"name": name}} in container["envFrom"]
