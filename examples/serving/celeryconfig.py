"""Broker and result store of API and worker, from the environment: Redis in production.

SERVING_BROKER is a URL such as redis://localhost:6379/0, or a folder: then files in it are the queue, which needs no
server and serves one machine.
"""

import os
from pathlib import Path

_broker = os.environ.get("SERVING_BROKER", "redis://localhost:6379/0")

if "://" in _broker:
    broker_url = result_backend = _broker
else:
    _queue, _results = (Path(_broker).resolve() / name for name in ("queue", "results"))
    for _folder in (_queue, _results):
        _folder.mkdir(parents=True, exist_ok=True)
    broker_url = "filesystem://"
    broker_transport_options = {
        "data_folder_in": str(_queue),
        "data_folder_out": str(_queue),
        "control_folder": str(_queue / "control"),
    }
    result_backend = f"file://{_results}"

HEARTBEAT = b"hair-try-on-worker"
"""Under this name in the result store the worker says which version it serves, every BEAT_SECONDS."""
BEAT_SECONDS, STALE_SECONDS = 1.0, 5.0

task_serializer = result_serializer = "json"
accept_content = ["json"]
task_acks_late = True  # a request is not lost when the worker is restarted
worker_prefetch_multiplier = 1
broker_connection_retry_on_startup = True
result_expires = 3600
