"""A deployment's own steps: commands, time limits, the server's health."""

import json
import socketserver
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from pydantic import ValidationError

from hair_pipeline.errors import PipelineError
from hair_pipeline.profile import ReleaseConfig
from hair_pipeline.release.deploy import deploy
from hair_pipeline_tests.release.tiny_registry import python


def test_a_command_that_takes_too_long_ends_with_what_it_started(tmp_path: Path) -> None:
    left = tmp_path / "left"
    code = f"import subprocess, time; subprocess.Popen(['sh', '-c', 'sleep 3; touch {left}']); time.sleep(30)"
    with pytest.raises(PipelineError, match="did not end within"):
        deploy("a", None, ReleaseConfig(restart_commands=(python(code),), restart_timeout=2.0))
    time.sleep(3)
    assert not left.exists()


def test_a_command_s_output_is_kept_in_part(tmp_path: Path) -> None:
    code = "import sys; sys.exit('x' * 1_000_000 + ' the end')"
    with pytest.raises(PipelineError, match="the end") as error:
        deploy("a", None, ReleaseConfig(restart_commands=(python(code),)))
    assert len(error.value.what) < 10_000


def test_health_asks_the_server_which_version_it_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # never asked for a server of this machine
    monkeypatch.delenv("no_proxy", raising=False)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"version": "a"}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        config = ReleaseConfig(health_url=f"http://127.0.0.1:{server.server_port}/health", health_timeout=0.2)
        assert deploy("a", tmp_path, config) == ["the server is healthy"]
        with pytest.raises(PipelineError, match="serves version a, not b"):
            deploy("b", tmp_path, config)
    finally:
        server.shutdown()
        server.server_close()


def test_an_answer_that_trickles_in_is_not_waited_for() -> None:
    class Trickle(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.request.recv(10_000)
            self.wfile.write(b"HTTP/1.0 200 OK\r\nContent-Length: 400\r\n\r\n")
            for _ in range(400):
                try:
                    self.wfile.write(b" ")
                except OSError:
                    return
                time.sleep(0.1)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Trickle) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/health"
        with pytest.raises(PipelineError, match="did not end in time"):
            deploy("a", None, ReleaseConfig(health_url=url, health_timeout=0.5))
        server.shutdown()


def test_a_template_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="server_config"):
        ReleaseConfig(server_template=tmp_path / "server.j2")


def test_an_empty_command_is_refused() -> None:
    with pytest.raises(ValidationError):
        ReleaseConfig.model_validate({"restart_commands": [[]]})
