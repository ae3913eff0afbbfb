"""The Celery worker: holds the model in memory and redraws hair.

Start it with `celery -A tasks worker --pool solo`. It loads the version that the registry says is in production when it
starts, and keeps it until it is restarted; every answer names it. Requests carry what they always carried: a photo
with training_face's outputs (embedding, masks, bounding box) beside it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import threading
import time
from pathlib import Path
from typing import Any

from celery import Celery
from celery.signals import worker_init, worker_shutdown
from celeryconfig import BEAT_SECONDS, HEARTBEAT

from hair_pipeline import files
from hair_pipeline.errors import PipelineError
from hair_pipeline.inputs.upright import encode_picture
from hair_pipeline.release.serving import TryOn, load, read_request
from hair_pipeline.settings import load_settings

PHOTOS = Path(os.environ["SERVING_PHOTOS"]).resolve()
"""The folder that photos are read from, shared by API and worker."""
RESULTS = "results"
"""The folder inside it that pictures are written to: a request can never overwrite a photo."""

app = Celery("hair-try-on")
app.config_from_object("celeryconfig")
log = logging.getLogger(__name__)
model: TryOn
stopped = threading.Event()


@worker_init.connect
def load_model(**_: Any) -> None:
    """Once per worker, before it takes requests; a worker that cannot load the model does not start."""
    global model
    fall_silent()  # a worker that was killed could not
    model = load("production")
    threading.Thread(target=beat, daemon=True).start()


def beat() -> None:
    """Say every second which version this worker serves: beside the queue, so that waiting requests delay no answer."""
    while not stopped.wait(BEAT_SECONDS):
        try:
            app.backend.set(HEARTBEAT, json.dumps({"version": model.version, "at": time.time()}))
        except Exception:  # the result store is away; each has its own errors
            log.exception("the heartbeat cannot be written")
    fall_silent()


@worker_shutdown.connect
def end(**_: Any) -> None:
    """Let the heartbeat end; should the process end before it, it is stale soon."""
    stopped.set()


def fall_silent() -> None:
    with contextlib.suppress(FileNotFoundError):  # of a result store of files
        app.backend.delete(HEARTBEAT)


@app.task(name="try_on")
def try_on(person: str, style: str, result: str) -> dict[str, str]:
    """Put the hair of the photo `style` on the person of the photo `person`; write the PNG `results/<result>`.

    The photos are paths inside SERVING_PHOTOS; training_face's outputs stand beside them. What is wrong with a request
    comes back as {"error": ...}, without the server's paths.
    """
    try:
        redraw(person, style, result)
    except PipelineError as error:
        what = error.what if error.file is None else f"{Path(error.file).name}: {error.what}"
        return {"error": without_paths(what)}
    return {"version": model.version, "result": f"{RESULTS}/{result}"}


def redraw(person: str, style: str, result: str) -> None:
    settings = load_settings()
    inputs = settings.profile_values.inputs
    target = files.confined(PHOTOS / RESULTS, result)
    requests = [
        read_request(files.confined(PHOTOS, name), None, None, settings, inputs, "a mask") for name in (person, style)
    ]
    picture = model.redraw(*requests)
    files.write_bytes(target, encode_picture(picture, ".png", requests[0].icc_profile))


def without_paths(text: str) -> str:
    """A message for clients: of each path of this server its last part alone."""
    for folder in (PHOTOS, load_settings().training_face_root):
        text = text.replace(f"{folder}/", "")  # whatever letters its name has
    return re.sub(r"(?<![\w.])(?:/[^/\s,;:()'\"]+)+/", "", text)
