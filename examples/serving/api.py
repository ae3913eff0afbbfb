"""The API: takes requests, hands them to the worker, and says which version is served.

Start it with `uvicorn api:app`. It loads no model and no torch.
"""

from __future__ import annotations

from celery import Celery
from celery.exceptions import TimeoutError as NoAnswer
from celery.result import AsyncResult
from fastapi import FastAPI, HTTPException
from kombu.exceptions import OperationalError
from pydantic import BaseModel, Field

REQUEST_SECONDS, HEALTH_SECONDS = 120, 8

worker = Celery("hair-try-on")
worker.config_from_object("celeryconfig")
app = FastAPI(title="Hair try-on")


class TryOnRequest(BaseModel):
    """Photos in the shared folder, each with training_face's outputs beside it."""

    person: str = Field(description="the photo to change, a path inside SERVING_PHOTOS")
    style: str = Field(description="a photo of the hairstyle to put on")
    result: str = Field(description="the PNG to write, inside SERVING_PHOTOS/results", pattern=r"\.png$")


def hand_over(task: str, *arguments: str, **options: float) -> AsyncResult:
    """Put a request into the queue; 503 where the broker cannot be reached."""
    try:
        return worker.send_task(task, arguments, **options)
    except OperationalError as error:
        raise HTTPException(503, f"the queue cannot be reached: {error}") from error


@app.post("/try-on")
def try_on(request: TryOnRequest) -> dict[str, str]:
    """Redraw the hair; answers when the result is written, with the version that drew it."""
    task = hand_over("try_on", request.person, request.style, request.result)
    try:
        answer: dict[str, str] = task.get(timeout=REQUEST_SECONDS)
    except NoAnswer:
        raise HTTPException(504, "the worker did not answer in time") from None
    except Exception as error:  # the worker's own errors arrive under their names
        raise HTTPException(422, str(error)) from error
    return answer


@app.get("/health")
def health() -> dict[str, str]:
    """Which version the worker serves: the health check of a deployment (release.health_url)."""
    task = hand_over("version", expires=HEALTH_SECONDS)
    try:
        return {"version": task.get(timeout=HEALTH_SECONDS)}
    except NoAnswer:
        raise HTTPException(503, "no worker answers") from None
