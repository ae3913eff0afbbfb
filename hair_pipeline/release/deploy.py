"""Telling the server that another version is in production: its config file, its restart, its health.

Belongs here: the three steps of `profile.release`, each with a time limit. Does not belong here: deciding what is
deployed, and going back when a step fails (`registry`).
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import json
import logging
import os
import signal
import subprocess
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, StrictUndefined, TemplateError

from hair_pipeline import files
from hair_pipeline.errors import PipelineError
from hair_pipeline.profile import ReleaseConfig

log = logging.getLogger(__name__)

REMEDY = "correct release.{} in the profile, or mend the server; then promote again"
POLL_SECONDS = 0.5
MAX_ANSWER_BYTES = 1_000_000
MAX_TAIL_BYTES = 4_000
"""Of a command's output, kept in the registry's history."""


def deploy(version: str | None, folder: Path | None, config: ReleaseConfig) -> list[str]:
    """Write the server's config, run the restart commands, then wait until the server is healthy.

    Args:
        version: now in production; None when nothing is any more.
        folder: the version's exported folder. config: what is to be done; all of it is optional.

    Returns:
        What was done, in words; empty when nothing is configured.

    Raises:
        PipelineError: a step failed, or took longer than its limit.
    """
    done = []
    if config.server_config is not None:
        write_server_config(version, folder, config)
        done.append(f"wrote {config.server_config}")
    for command in config.restart_commands:
        _run(command, version, config.restart_timeout, "restart_commands")
        done.append(f"ran {' '.join(command)}")
    if version is not None and (config.health_url or config.health_command):
        _wait_until_healthy(version, config)
        done.append("the server is healthy")
    for line in done:
        log.info("deploying %s: %s", version, line)
    return done


def deploys(config: ReleaseConfig) -> bool:
    """Whether a deployment does anything at all."""
    return bool(config.server_config or config.restart_commands or config.health_url or config.health_command)


def write_server_config(version: str | None, folder: Path | None, config: ReleaseConfig) -> None:
    """Write `server_config` from `server_template`, atomically; JSON with the same names where there is none.

    A template sees `version` and `folder` (absolute); the same version always gives the same file.

    Raises:
        PipelineError: the template cannot be read or rendered, or the file cannot be written.
    """
    assert config.server_config is not None
    values = {"version": version, "folder": None if folder is None else str(folder.absolute())}
    if config.server_template is None:
        files.write_json(config.server_config, values)
        return
    try:
        template = Environment(undefined=StrictUndefined, keep_trailing_newline=True).from_string(
            config.server_template.read_text(encoding="utf-8")
        )
        text = template.render(**values)
    except OSError as error:
        raise PipelineError(
            f"the template cannot be read ({error.strerror})",
            file=config.server_template,
            remedy=REMEDY.format("server_template"),
        ) from error
    except (TemplateError, UnicodeDecodeError) as error:
        raise PipelineError(
            f"the template cannot be rendered ({error})",
            file=config.server_template,
            remedy="it may use {{ version }} and {{ folder }}",
        ) from error
    files.write_bytes(config.server_config, text.encode())


def _run(words: Sequence[str], version: str | None, timeout: float, option: str) -> None:
    """Run a command without a shell; `HAIR_PIPELINE_VERSION` holds the version.

    Its output goes to a file, so that a server it leaves running in the background does not keep it waiting.
    """
    remedy = REMEDY.format(option)
    with tempfile.TemporaryFile() as output:
        try:
            process = subprocess.Popen(
                list(words),
                env=os.environ | {"HAIR_PIPELINE_VERSION": version or ""},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that what it started ends with it when it takes too long
            )
        except OSError as error:
            raise PipelineError(f"cannot be started ({error.strerror})", file=words[0], remedy=remedy) from error
        try:
            status = process.wait(timeout)
        except subprocess.TimeoutExpired as error:
            _kill(process)
            raise PipelineError(
                f"{' '.join(words)} did not end within {timeout:g} s", file=words[0], remedy=remedy
            ) from error
        except BaseException:
            _kill(process)
            raise
        output.seek(max(0, output.seek(0, os.SEEK_END) - MAX_TAIL_BYTES))
        tail = "\n".join(output.read().decode(errors="replace").strip().splitlines()[-5:])
    if status != 0:
        raise PipelineError(
            f"{' '.join(words)} failed with exit status {status}{': ' if tail else ''}{tail}",
            file=words[0],
            remedy=remedy,
        )


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a command and all it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _wait_until_healthy(version: str, config: ReleaseConfig) -> None:
    """Ask again and again until the server answers well, or `health_timeout` is over."""
    deadline = time.monotonic() + config.health_timeout
    while True:
        problem = _problem(version, config, max(1.0, deadline - time.monotonic()))
        if problem is None:
            return
        if time.monotonic() >= deadline:
            raise PipelineError(
                f"the server is not healthy after {config.health_timeout:g} s: {problem}",
                file=config.health_url or config.health_command[0],
                remedy="look at the server's log; then promote again",
            )
        time.sleep(POLL_SECONDS)


def _problem(version: str, config: ReleaseConfig, seconds: float) -> str | None:
    """What is wrong now, or None."""
    if config.health_command:
        try:
            _run(config.health_command, version, seconds, "health_command")
        except PipelineError as error:
            return error.what
    return None if config.health_url is None else _url_problem(config.health_url, version, seconds)


def _url_problem(url: str, version: str, seconds: float) -> str | None:
    try:
        proxies = urllib.request.ProxyHandler({} if _on_this_machine(url) else None)
        with urllib.request.build_opener(proxies).open(url, timeout=min(seconds, 10.0)) as answer:
            body = _read(answer, time.monotonic() + seconds)
    except (OSError, ValueError, http.client.HTTPException) as error:  # URLError and timeouts are OSErrors
        return f"{url}: {error or type(error).__name__}"
    try:
        said = json.loads(body)
    except ValueError:
        return None
    serving = said.get("version") if isinstance(said, dict) else None
    return None if serving in (None, version) else f"{url} serves version {serving}, not {version}"


def _read(answer: http.client.HTTPResponse, deadline: float) -> bytes:
    """An answer's body, at most `MAX_ANSWER_BYTES`.

    Raises:
        TimeoutError: it trickles in beyond the deadline.
    """
    body = b""
    while len(body) < MAX_ANSWER_BYTES and (part := answer.read1(MAX_ANSWER_BYTES - len(body))):
        body += part
        if time.monotonic() > deadline:
            raise TimeoutError("the answer did not end in time")
    return body


def _on_this_machine(url: str) -> bool:
    """Whether the URL is one of a loopback address, which no proxy can reach."""
    host = urllib.parse.urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
