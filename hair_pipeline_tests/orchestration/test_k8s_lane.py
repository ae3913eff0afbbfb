"""The executor `k8s`: the jobs that dagster-k8s itself makes of our steps on the cluster of deploy/kubernetes."""

from unittest import mock

import dagster as dg
import pytest
import yaml
from dagster._core.definitions.assets.job.asset_job import IMPLICIT_ASSET_JOB_NAME
from dagster._core.definitions.reconstruct import ReconstructableRepository
from dagster._core.execution.api import create_execution_plan
from dagster._core.execution.context.system import PlanData, PlanOrchestrationContext
from dagster._core.execution.context_creation_job import create_context_free_log_manager
from dagster._core.execution.retries import RetryMode
from dagster._core.executor.init import InitExecutorContext
from dagster._core.executor.step_delegating.step_handler.base import StepHandlerContext
from dagster._grpc.types import ExecuteStepArgs

from hair_pipeline.orchestration.compute_tags import gpus
from hair_pipeline.orchestration.executors import build_executor
from hair_pipeline.orchestration.launch import DEFINITIONS_MODULE
from hair_pipeline.settings import PROJECT_ROOT
from hair_pipeline_tests.orchestration.test_definitions import ON_GPU

pytest.importorskip("dagster_k8s", reason="needs the extra `k8s`: uv sync --extra k8s")
kubernetes_client = pytest.importorskip("kubernetes.client")
kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="needs the extra `dev`")

LAUNCHER = yaml.safe_load((PROJECT_ROOT / "deploy" / "kubernetes" / "dagster.yaml").read_text())["run_launcher"]
DATA = {"/data/inputs", "/data/training"}


@pytest.fixture(scope="module")
def jobs() -> dict[str, dict]:
    """Step -> the Kubernetes job, as the API would get it."""
    repository = ReconstructableRepository.for_module(DEFINITIONS_MODULE, "defs")
    job = repository.get_reconstructable_job(IMPLICIT_ASSET_JOB_NAME)
    overrides = {"run_launcher": LAUNCHER, "telemetry": {"enabled": False}}
    with (
        mock.patch("kubernetes.config.load_incluster_config"),
        dg.DagsterInstance.local_temp(overrides=overrides) as instance,
    ):
        definition = build_executor("k8s")
        configuration = {"retries": {"enabled": {}}, "job_image": "hair-pipeline:cuda"}
        executor = definition.executor_creation_fn(InitExecutorContext(job, definition, configuration, instance))
        plan = create_execution_plan(job)
        run = instance.create_run_for_job(job.get_definition(), execution_plan=plan)
        return {step.key: rendered(step, plan, job, run, instance, executor) for step in plan.steps}


def rendered(step, plan, job, run, instance, executor) -> dict:
    context = PlanOrchestrationContext(
        plan_data=PlanData(
            job=job,
            dagster_run=run,
            instance=instance,
            execution_plan=plan,
            raise_on_error=True,
            retry_mode=RetryMode.DISABLED,
        ),
        log_manager=create_context_free_log_manager(instance, run),
        executor=executor,
        output_capture=None,
    )
    arguments = ExecuteStepArgs(
        job_origin=job.get_python_origin(),
        run_id=run.run_id,
        step_keys_to_execute=[step.key],
        instance_ref=None,
        print_serialized_events=False,
    )
    handler = executor._step_handler
    api = mock.MagicMock()
    handler._api_client.batch_api = api
    list(handler.launch_step(StepHandlerContext(instance, context, [step], arguments, run)))
    body = api.create_namespaced_job.call_args.kwargs["body"]
    return kubernetes_client.ApiClient().sanitize_for_serialization(body)


def limits(job: dict) -> dict:
    (container,) = job["spec"]["template"]["spec"]["containers"]
    return container.get("resources", {}).get("limits", {})


def test_gpu_steps_have_the_limit_and_no_other_step(jobs):
    assert {step for step, job in jobs.items() if limits(job).get("nvidia.com/gpu") == "1"} == ON_GPU
    assert {step for step, job in jobs.items() if "nvidia.com/gpu" in limits(job)} == ON_GPU
    assert len(jobs) > len(ON_GPU) + 5


def test_gpu_steps_may_stand_on_tainted_nodes_and_have_shared_memory_for_the_data_loaders(jobs):
    for step, job in jobs.items():
        pod = job["spec"]["template"]["spec"]
        taints = [toleration["key"] for toleration in pod.get("tolerations") or []]
        mounts = {mount["mountPath"] for container in pod["containers"] for mount in container["volumeMounts"]}
        assert (taints == ["nvidia.com/gpu"]) == (step in ON_GPU)
        assert mounts == (DATA | {"/dev/shm"} if step in ON_GPU else DATA)


def test_the_jobs_are_what_kubernetes_accepts(jobs):
    for job in jobs.values():
        kubernetes_validate.validate(job, "1.36", strict=True)


def test_training_on_several_cards_asks_for_all_of_them():
    tags = gpus(4)["op_tags"]
    assert tags["dagster-k8s/config"]["container_config"]["resources"]["limits"] == {"nvidia.com/gpu": "4"}
    assert tags["dagster-ray/config"]["num_gpus"] == 4
