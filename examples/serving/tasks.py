"""The Celery worker: holds the model in memory and redraws hair.

Start it with `celery -A tasks worker --pool solo`. It loads the version that the registry says is in production when it
starts, and keeps it until it is restarted; every answer names it. Requests carry what they always carried: a photo
with training_face's outputs (embedding, masks, bounding box) beside it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from celery import Celery
from celery.signals import worker_init

from hair_pipeline import files
from hair_pipeline.inputs.upright import encode_picture
from hair_pipeline.release.serving import TryOn, load, read_request
from hair_pipeline.settings import load_settings

PHOTOS = Path(os.environ["SERVING_PHOTOS"]).resolve()
"""The folder that photos are read from, shared by API and worker."""
RESULTS = "results"
"""The folder inside it that pictures are written to: a request can never overwrite a photo."""

app = Celery("hair-try-on")
app.config_from_object("celeryconfig")
model: TryOn


@worker_init.connect
def load_model(**_: Any) -> None:
    """Once per worker, before it takes requests; a worker that cannot load the model does not start."""
    global model
    model = load("production")


@app.task(name="version")
def version() -> str:
    """The version this worker serves."""
    return model.version


@app.task(name="try_on")
def try_on(person: str, style: str, result: str) -> dict[str, str]:
    """Put the hair of the photo `style` on the person of the photo `person`; write the PNG `results/<result>`.

    The photos are paths inside SERVING_PHOTOS; training_face's outputs stand beside them.
    """
    settings = load_settings()
    inputs = settings.profile_values.inputs
    requests = [
        read_request(files.confined(PHOTOS, name), None, None, settings, inputs, "a mask") for name in (person, style)
    ]
    picture = model.redraw(*requests)
    files.write_bytes(
        files.confined(PHOTOS / RESULTS, result), encode_picture(picture, ".png", requests[0].icc_profile)
    )
    return {"version": model.version, "result": f"{RESULTS}/{result}"}
