"""The API: takes requests, hands them to the worker, and says which version is served.

Start it with `uvicorn api:app`. It loads no model and no torch.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from celery import Celery
from celery.result import AsyncResult, denied_join_result
from celeryconfig import HEARTBEAT, STALE_SECONDS
from fastapi import FastAPI, HTTPException
from kombu.exceptions import OperationalError
from pydantic import BaseModel, Field

REQUEST_SECONDS, POLL_SECONDS = 120, 0.2
QUEUE, HEARTBEATS = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
"""What speaks to the broker runs in one thread, as Celery's clients ask for; the health check waits for none of it."""

log = logging.getLogger("uvicorn.error")
worker = Celery("hair-try-on")
worker.config_from_object("celeryconfig")
app = FastAPI(title="Hair try-on")


class TryOnRequest(BaseModel):
    """Photos in the shared folder, each with training_face's outputs beside it."""

    person: str = Field(description="the photo to change, a path inside SERVING_PHOTOS")
    style: str = Field(description="a photo of the hairstyle to put on")
    result: str = Field(description="the PNG to write, inside SERVING_PHOTOS/results", pattern=r"\.png$")


async def apart(thread: ThreadPoolExecutor, call: Callable[..., Any], *arguments: Any) -> Any:
    """What a blocking call returns; requests go on meanwhile."""
    return await asyncio.get_running_loop().run_in_executor(thread, call, *arguments)


def hand_over(task: str, *arguments: str) -> AsyncResult:
    """Put a request into the queue, for as long as somebody waits for it; 503 where the broker cannot be reached."""
    try:
        with denied_join_result():  # else Celery subscribes to the answer in Redis, and nobody reads what comes
            return worker.send_task(task, arguments, expires=REQUEST_SECONDS)
    except OperationalError as error:
        log.error("the queue cannot be reached: %s", error)
        raise HTTPException(503, "the queue cannot be reached") from error


async def answer_of(task: AsyncResult) -> dict[str, str]:
    """Wait for the worker without holding a thread: any number of requests may wait."""
    while not await apart(QUEUE, task.ready):
        await asyncio.sleep(POLL_SECONDS)
    answer: dict[str, str] = task.get()
    return answer


def forget(task: AsyncResult) -> None:
    """Drop the answer, which nobody else reads."""
    with contextlib.suppress(Exception):  # there is none yet, or the result store is away: it expires
        task.forget()


@app.post("/try-on")
async def try_on(request: TryOnRequest) -> dict[str, str]:
    """Redraw the hair; answers when the result is written, with the version that drew it."""
    task = await apart(QUEUE, hand_over, "try_on", request.person, request.style, request.result)
    try:
        async with asyncio.timeout(REQUEST_SECONDS):
            answer = await answer_of(task)
    except TimeoutError:
        raise HTTPException(504, "the worker did not answer in time") from None
    except Exception as error:  # the worker's own errors arrive under their names; they may name its files
        log.exception("the worker failed")
        raise HTTPException(500, "the worker failed; its log says why") from error
    finally:
        await apart(QUEUE, forget, task)
    if "error" in answer:
        raise HTTPException(422, answer["error"])
    return answer


def heartbeat() -> dict[str, Any]:
    """What the worker said last; empty where it says nothing."""
    try:
        said: dict[str, Any] = json.loads(worker.backend.get(HEARTBEAT) or "{}")
    except ValueError:  # it is being written
        return {}
    return said


@app.get("/health")
async def health() -> dict[str, str]:
    """Which version the worker serves: the health check of a deployment (release.health_url).

    Read from what the worker says every second, not through the queue: requests that wait delay no answer.
    """
    try:
        said = await apart(HEARTBEATS, heartbeat)
    except Exception as error:  # each result store has its own
        log.error("the result store cannot be read: %s", error)
        raise HTTPException(503, "the result store cannot be reached") from error
    if time.time() - said.get("at", 0.0) > STALE_SECONDS:
        raise HTTPException(503, "no worker answers")
    return {"version": said["version"]}
