"""The API: takes requests, hands them to the worker, and says which version is served.

Start it with `uvicorn api:app`. It loads no model and no torch.
"""

from __future__ import annotations

import json
import logging
import time

from celery import Celery
from celery.exceptions import TimeoutError as NoAnswer
from celery.result import AsyncResult
from celeryconfig import HEARTBEAT, STALE_SECONDS
from fastapi import FastAPI, HTTPException
from kombu.exceptions import OperationalError
from pydantic import BaseModel, Field

REQUEST_SECONDS = 120

log = logging.getLogger("uvicorn.error")
worker = Celery("hair-try-on")
worker.config_from_object("celeryconfig")
app = FastAPI(title="Hair try-on")


class TryOnRequest(BaseModel):
    """Photos in the shared folder, each with training_face's outputs beside it."""

    person: str = Field(description="the photo to change, a path inside SERVING_PHOTOS")
    style: str = Field(description="a photo of the hairstyle to put on")
    result: str = Field(description="the PNG to write, inside SERVING_PHOTOS/results", pattern=r"\.png$")


def hand_over(task: str, *arguments: str) -> AsyncResult:
    """Put a request into the queue; 503 where the broker cannot be reached."""
    try:
        return worker.send_task(task, arguments)
    except OperationalError as error:
        log.error("the queue cannot be reached: %s", error)
        raise HTTPException(503, "the queue cannot be reached") from error


@app.post("/try-on")
def try_on(request: TryOnRequest) -> dict[str, str]:
    """Redraw the hair; answers when the result is written, with the version that drew it."""
    task = hand_over("try_on", request.person, request.style, request.result)
    try:
        answer: dict[str, str] = task.get(timeout=REQUEST_SECONDS)
    except NoAnswer:
        raise HTTPException(504, "the worker did not answer in time") from None
    except Exception as error:  # the worker's own errors arrive under their names; they may name its files
        log.exception("the worker failed")
        raise HTTPException(500, "the worker failed; its log says why") from error
    if "error" in answer:
        raise HTTPException(422, answer["error"])
    return answer


@app.get("/health")
def health() -> dict[str, str]:
    """Which version the worker serves: the health check of a deployment (release.health_url).

    Read from what the worker says every second, not through the queue: requests that wait delay no answer.
    """
    try:
        said = json.loads(worker.backend.get(HEARTBEAT) or "{}")
    except ValueError:  # it is being written
        said = {}
    except Exception as error:  # each result store has its own
        log.error("the result store cannot be read: %s", error)
        raise HTTPException(503, "the result store cannot be reached") from error
    if time.time() - said.get("at", 0.0) > STALE_SECONDS:
        raise HTTPException(503, "no worker answers")
    return {"version": said["version"]}
