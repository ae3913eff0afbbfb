"""The registry's commands as an operator types them."""

import csv
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hair_pipeline.cli import app
from hair_pipeline.errors import PipelineError
from hair_pipeline.evaluation.blind_review import COLUMNS
from hair_pipeline.release.registry_file import Registry
from hair_pipeline_tests.release.tiny_registry import make_version


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A training root with two approved versions, and a profile whose deployment writes a config."""
    profile = tmp_path / "profile.yaml"
    served = tmp_path / "server.json"
    profile.write_text(json.dumps({"name": "test", "release": {"server_config": str(served)}}))
    monkeypatch.setenv("HAIR_PIPELINE_TRAINING_ROOT", str(tmp_path))
    monkeypatch.setenv("HAIR_PIPELINE_PROFILE", str(profile))
    for version in ("a", "b"):
        make_version(tmp_path, version)
    return tmp_path


def hair_pipeline(*words: str) -> str:
    result = CliRunner().invoke(app, ["registry", *words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def served(root: Path) -> str:
    version: str = json.loads((root / "server.json").read_text())["version"]
    return version


def test_from_the_blind_sheet_to_production_and_back(root: Path) -> None:
    key, sheet = root / "key.json", root / "sheet.csv"
    cases = [{"case": number, "photo": f"p{number}", "new_side": "left"} for number in range(1, 21)]
    key.write_text(json.dumps({"review": "bcdf", "id": "t1", "version": "a", "cases": cases}))
    command = ("import-review", "a", "--sheet", str(sheet), "--key", str(key), "--reviewer", "Kim")
    for better, decision in (
        ("equal", "a: inconclusive by Kim (20 photos); nothing was signed off"),
        ("left", "a: approve by Kim (20 photos)"),
    ):
        with sheet.open("w", newline="") as file:
            rows = [("bcdf", case["case"], case["photo"], better, "no", "no", "nice") for case in cases]
            csv.writer(file).writerows([COLUMNS, *rows])
        assert decision in hair_pipeline(*command)
    assert "production: a (before: nothing)" in hair_pipeline("promote", "a")
    assert served(root) == "a"
    hair_pipeline("sign-off", "b", "--reviewer", "Kim", "--decision", "approve")
    assert "production: b (before: a)" in hair_pipeline("promote", "b")
    assert served(root) == "b"
    assert "production: a" in hair_pipeline("rollback", "--reason", "halo")
    assert served(root) == "a"
    (root / "server.json").unlink()
    assert "wrote" in hair_pipeline("deploy")
    assert served(root) == "a"
    hair_pipeline("promote", "b")
    hair_pipeline("sign-off", "a", "--reviewer", "Lee", "--decision", "reject")
    assert isinstance(CliRunner().invoke(app, ["registry", "rollback"]).exception, PipelineError)
    assert "production: a" in hair_pipeline("rollback", "--force")
    events = [event["event"] for event in json.loads(hair_pipeline("show", "a"))["history"]]
    assert events == [
        "registered",
        "sign_off",
        "promoted",
        "deployed",
        "rolled_back",
        "deployed",
        "deployed",
        "sign_off",
        "rolled_back",
        "deployed",
    ]


def test_a_sign_off_names_the_next_step_or_what_stands_against_it(root: Path) -> None:
    def approved_by(reviewer: str) -> str:
        return hair_pipeline("sign-off", "a", "--reviewer", reviewer, "--decision", "approve")

    assert "next: uv run hair-pipeline registry promote a" in approved_by("Kim")
    hair_pipeline("sign-off", "a", "--reviewer", "Lee", "--decision", "reject")
    assert "cannot be promoted yet: rejected by Lee" in (told := approved_by("Kim"))
    assert "next:" not in told
    approved_by("Lee")
    hair_pipeline("promote", "a")
    assert approved_by("Lee") == "a: approve by Lee\n"


def test_names_that_the_terminal_does_not_know_fail_no_command(root: Path) -> None:
    words = ["sign-off", "a", "--reviewer", "김", "--decision", "approve"]
    terminal = CliRunner(charset="latin-1")
    assert "a: approve by ?" in terminal.invoke(app, ["registry", *words], catch_exceptions=False).output
    shown = terminal.invoke(app, ["registry", "show", "a"], catch_exceptions=False).output
    assert json.loads(shown)["sign_offs"][-1]["reviewer"] == "김"


def at_a_terminal() -> None:
    """Before a command starts: heed the signals that are ignored by what is started under `nohup` or by a script."""
    for sign in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(sign, signal.SIG_DFL)


@pytest.mark.parametrize("sign", ["HUP", "TERM"])
def test_a_lost_connection_takes_a_promotion_back(root: Path, sign: str) -> None:
    for version in ("a", "b"):
        hair_pipeline("sign-off", version, "--reviewer", "Kim", "--decision", "approve")
    hair_pipeline("promote", "a")
    lose = f'test "$HAIR_PIPELINE_VERSION" = a || {{ kill -{sign} $PPID; sleep 30; }}'
    release = {"server_config": str(root / "server.json"), "restart_commands": [["sh", "-c", lose]]}
    (root / "profile.yaml").write_text(json.dumps({"name": "test", "release": release}))
    command = [sys.executable, "-m", "hair_pipeline.cli", "registry", "promote", "b"]
    ended = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=25, preexec_fn=at_a_terminal)
    assert "the promotion of b was taken back, in production: a; the server went back too" in ended.stderr
    assert Registry(root / "registry" / "registry.json").production() == served(root) == "a"
