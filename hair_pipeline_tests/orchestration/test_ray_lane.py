"""The executor `ray` on a real Ray cluster of this machine with one pretended GPU, in a process of its own."""

import json
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from hair_pipeline.settings import PROJECT_ROOT
from hair_pipeline_tests.orchestration.test_definitions import ON_GPU
from hair_pipeline_tests.orchestration.test_lineage import (
    GATE,
    Lineage,
    expected_assets,
    materialised_assets,
)
from hair_pipeline_tests.orchestration.test_local_lane import instance_folder, lines, overlap, start_run

pytest.importorskip("dagster_ray", reason="needs the extra `ray`: uv sync --extra ray")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
"""A cluster lets nobody in without its token."""
INSTALLED_HERE = {
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # under `uv run`, Ray would run steps in a copy of the checkout
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # as `uv run ray start` does
    "PYTHONPATH": str(PROJECT_ROOT),  # for this folder of tests
}


class Cluster:
    """The cluster's process, its address, and the jobs it was given."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "hair_pipeline_tests.orchestration.ray_cluster", str(port)],
            cwd=PROJECT_ROOT,
            env=os.environ | TOKEN | INSTALLED_HERE,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(folder / "ray.log").open("w"),
            text=True,
        )
        self.access = {"RAY_ADDRESS": self._answer(), **TOKEN}

    def _answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def gpus_of_steps(self) -> dict[str, float]:
        """Step -> the GPUs that its job asked for and got; the jobs so far."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        jobs = json.loads(self._answer())
        assert {job["status"] for job in jobs} == {"SUCCEEDED"}
        steps = {job["metadata"]["dagster/op"]: float(job["entrypoint_num_gpus"] or 0) for job in jobs}
        return {step: gpus for step, gpus in steps.items() if not step.startswith("on_")}

    def stop(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    started = Cluster(tmp_path_factory.mktemp("ray"))
    yield started
    started.stop()


def test_gpu_steps_get_the_card_and_no_other_step_sees_one(tmp_path, cluster):
    journal = tmp_path / "journal"
    run = start_run(
        instance_folder(tmp_path),
        journal,
        "only",
        **cluster.access,
        HAIR_PIPELINE_TEST_EXECUTOR="ray",
        HAIR_PIPELINE_PROFILE="rtx24gb",
    )
    _, errors = run.communicate(timeout=300)
    assert run.returncode == 0, errors
    steps = lines(journal)
    assert {line["name"]: line["visible"] for line in steps} == {
        "on_gpu_0": "0",
        "on_gpu_1": "0",
        "on_cpu": "",
        "unmarked": "",
    }
    assert {line["profile"] for line in steps} == {"rtx24gb"}
    first, second = (line for line in steps if line["name"].startswith("on_gpu"))
    assert overlap(first, second) == 0


def test_the_whole_lineage_runs_on_the_cluster(tmp_path, cluster):
    lineage = Lineage(tmp_path)
    done = lineage.command("run", patience=1100, HAIR_PIPELINE_EXECUTOR="ray", **cluster.access)
    assert done.returncode == 0, done.stdout + done.stderr
    with dg.DagsterInstance.from_config(str(lineage.home)) as instance:
        assert materialised_assets(instance) == expected_assets(lineage)
    steps = cluster.gpus_of_steps()
    assert set(steps) >= ON_GPU - GATE | {"catalog", "image_parts", "identity_embeddings", "k_hairstyle_images"}
    assert {step for step, gpus in steps.items() if gpus == 1} - GATE == ON_GPU - GATE
    assert set(steps.values()) == {0, 1}
