"""The whole lineage, for real: `hair-pipeline run` in a process of its own on tiny inputs in both real formats, each
step in another process, looked at afterwards through the real webserver's GraphQL."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import dagster as dg
import pytest

from hair_pipeline.orchestration.build import build_defs
from hair_pipeline.orchestration.instance import dagster_home
from hair_pipeline.settings import Settings
from hair_pipeline_tests.inputs.tiny_inputs import write_tiny_inputs
from hair_pipeline_tests.orchestration.test_definitions import GROUPS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]  # two minutes on two free cores

PROFILE = Path(__file__).with_name("tiny_profile.yaml")
MATERIALISED = {
    key.to_user_string()
    for key in build_defs(settings=Settings(profile="sample")).resolve_asset_graph().materializable_asset_keys
}
GATE = {"exported_weights", "production_registry"}


class Lineage:
    """Tiny inputs and the command that runs on them."""

    def __init__(self, root: Path) -> None:
        self.inputs = write_tiny_inputs(root, people=5, views=3, back_view=True, blurred_people=1, customers=3)
        self.settings = self.inputs.settings(profile=str(PROFILE))
        self.settings.models_dir.mkdir()
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("HAIR_PIPELINE_", "DAGSTER"))},
            "HAIR_PIPELINE_PROFILE": str(PROFILE),
            "HAIR_PIPELINE_K_HAIRSTYLE_ROOT": str(self.settings.k_hairstyle_root),
            "HAIR_PIPELINE_TRAINING_FACE_ROOT": str(self.settings.training_face_root),
            "HAIR_PIPELINE_TRAINING_ROOT": str(self.settings.training_root),
            "HAIR_PIPELINE_CUSTOMERS_ROOT": str(self.settings.customers_root),
            "HAIR_PIPELINE_MODELS_DIR": str(self.settings.models_dir),
        }

    def command(self, *arguments: str, patience: float = 1100, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "hair_pipeline.cli", *arguments],
            env=self.environment | environment,
            cwd=self.inputs.root,
            capture_output=True,
            text=True,
            timeout=patience,
            check=False,
        )

    @property
    def home(self) -> Path:
        return dagster_home(self.settings)


def snapshot(*folders: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path): (path.stat().st_size, path.stat().st_mtime_ns)
        for folder in folders
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def lineage(tmp_path_factory):
    return Lineage(tmp_path_factory.mktemp("lineage"))


@pytest.fixture(scope="module")
def first(lineage):
    """The first run, and what the inputs looked like before it."""
    before = snapshot(lineage.settings.k_hairstyle_root, lineage.settings.training_face_root)
    done = lineage.command("run")
    assert done.returncode == 0, done.stdout + done.stderr
    after = snapshot(lineage.settings.k_hairstyle_root, lineage.settings.training_face_root)
    return done, before, after


def verdict(lineage: Lineage) -> str:
    return json.loads((lineage.settings.reports / "ab" / "current.json").read_text())["verdict"]


def expected_assets(lineage: Lineage) -> set[str]:
    """All assets; without `approve` the release gate stops the last two."""
    return MATERIALISED if verdict(lineage) == "approve" else MATERIALISED - GATE


def test_every_asset_is_materialised_in_a_process_of_its_own(lineage, first):
    with dg.DagsterInstance.from_config(str(lineage.home)) as instance:
        materialised = materialised_assets(instance)
        steps = steps_by_process(instance)
        assert instance.event_log_storage.get_concurrency_info("gpu").slot_count == 1
    assert materialised == expected_assets(lineage)
    made_together = {"bald_images", "hair_only_images", "hair_patches"}
    assert materialised - made_together | {"image_parts"} <= set().union(*steps.values())
    assert all(len(names) == 1 for names in steps.values())


def materialised_assets(instance: dg.DagsterInstance) -> set[str]:
    return {
        key.to_user_string()
        for key in instance.all_asset_keys()
        if instance.get_latest_materialization_event(key) is not None
    }


def steps_by_process(instance: dg.DagsterInstance) -> dict[tuple[str, str], set[str]]:
    """(run, process id) -> the steps whose output that process wrote."""
    steps: dict[tuple[str, str], set[str]] = {}
    for run in instance.get_runs():
        for entry in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.LOGS_CAPTURED):
            process = entry.dagster_event.message.rsplit("pid: ", 1)[-1]
            steps.setdefault((run.run_id, process), set()).update(entry.dagster_event.logs_captured_data.step_keys)
    return steps


def test_inputs_are_left_as_they_are_and_nothing_is_written_elsewhere(lineage, first):
    _, before, after = first
    assert before == after
    written = {path.name for path in lineage.inputs.root.iterdir()}
    assert written <= {"k_hairstyle", "training_face", "customers", "training", "models"}


def test_the_last_lines_name_the_report_and_the_next_step(lineage, first):
    done, *_ = first
    assert "Eval report:" in done.stdout
    assert "dagster dev" in done.stdout
    report = next(line for line in done.stdout.splitlines() if line.startswith("Eval report:")).split()[2]
    assert Path(report).stat().st_size > 10_000
    if verdict(lineage) == "approve":
        assert "registry sign-off" in done.stdout
    else:
        assert "release gate:" in done.stdout


def test_running_again_does_nothing_again(lineage, first):
    processed = snapshot(lineage.settings.processed, lineage.settings.runs)
    done = lineage.command("run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert snapshot(lineage.settings.processed, lineage.settings.runs) == processed
    if verdict(lineage) == "approve":
        assert "nothing was done again" in done.stdout


def test_the_webserver_serves_the_lineage(lineage, first):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "dagster_webserver",
            "-m",
            "hair_pipeline.definitions",
            "-h",
            "127.0.0.1",
            "-p",
            str(port),
        ],
        env={**lineage.environment, "DAGSTER_HOME": str(lineage.home)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        answer = ask(port, "{ assetNodes { assetKey { path } groupName assetMaterializations(limit: 1) { runId } } }")
    finally:
        server.terminate()
        server.wait(timeout=30)
    nodes = answer["data"]["assetNodes"]
    groups = {}
    for node in nodes:
        groups.setdefault(node["groupName"], set()).add("/".join(node["assetKey"]["path"]))
    assert groups == GROUPS
    served = {"/".join(node["assetKey"]["path"]) for node in nodes if node["assetMaterializations"]}
    assert served == expected_assets(lineage)


def ask(port: int, query: str, patience: float = 90.0) -> dict:
    """A GraphQL answer from the webserver, as soon as it is up."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/graphql",
        data=json.dumps({"query": query}).encode(),
        headers={"Content-Type": "application/json"},
    )
    deadline = time.monotonic() + patience
    while True:
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return json.load(response)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
