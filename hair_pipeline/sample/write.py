"""The sample on disk: K-Hairstyle photos and labels, training_face outputs and customers of rendered people.

Belongs here: `write_sample`, folders, the process pool, idempotence. Does not belong here: the two formats' details
(`labels`, `face_output`), drawing (`render`) and broken files (`faults`).
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from hair_pipeline.errors import PipelineError
from hair_pipeline.files import encode_image, hash_files, read_json, write_bytes, write_json
from hair_pipeline.pools import image_pool
from hair_pipeline.sample.face_output import write_face_output
from hair_pipeline.sample.faults import write_faults
from hair_pipeline.sample.labels import make_label, style_folder
from hair_pipeline.sample.people import FACING, FRONT, Person, make_people, make_views, with_other_hair
from hair_pipeline.sample.render import build_model, render

FOLDERS = ("k_hairstyle", "training_face", "customers")
SET = "0002.mqset"
"""K-Hairstyle's name of the 512-pixel set."""
JPEG_QUALITY = 93


@dataclass(frozen=True)
class SampleSummary:
    """What a sample holds.

    Attributes:
        images: photos under k_hairstyle (without those of faults). faces: photos with a training_face output.
        blurred: photos whose face is blurred. faults: broken cases written. seconds: time spent.
        reused: the sample was there already and nothing was written.
    """

    out: Path
    people: int
    images: int
    faces: int
    blurred: int
    customers: int
    faults: int
    seconds: float
    reused: bool


@dataclass(frozen=True)
class _Task:
    person: Person
    index: int
    views: int
    out: Path
    customer: bool
    hairdresser: int | None


@dataclass(frozen=True)
class _Done:
    images: int
    faces: int
    blurred: int


def renderer_version() -> str:
    """Hash of the renderer's source: another renderer writes another sample."""
    here = Path(__file__).parent
    return hash_files((path for path in here.glob("*.py") if path.name != "recipe.py"), here)[:16]


def write_sample(
    out: Path,
    *,
    people: int = 60,
    views: int = 4,
    customers: int = 100,
    seed: int = 0,
    faults: bool = False,
    faces: bool = False,
    workers: int = 2,
) -> SampleSummary:
    """Render people and write `<out>/k_hairstyle`, `<out>/training_face` and `<out>/customers`.

    The same arguments give the same bytes. When `<out>/sample.json` says that they were written already, nothing is
    done. A sample written with other arguments is replaced.

    Args:
        people, views: photos are people x views. customers: photos of further people, seen from the front.
        faces: a sample to learn faces from: every view of a person shows another hairstyle, within 45 degrees of the
            front, and no face is blurred.
        faults: also write every known fault of the formats and `<out>/faults.json` with what to expect.
        workers: processes; 1 renders in this one.

    Raises:
        PipelineError: the arguments make no sense, `out` holds something that is not a sample, or cannot be written.
    """
    if people < 1 or views < 1 or customers < 0:
        raise PipelineError(
            f"people = {people}, views = {views}, customers = {customers} make no sample",
            remedy="ask for at least one person and one view",
        )
    start = time.monotonic()
    wanted = {
        "people": people,
        "views": views,
        "customers": customers,
        "seed": seed,
        "faults": faults,
        "faces": faces,
        "renderer": renderer_version(),
    }
    card = out / "sample.json"
    found = read_json(card) if card.exists() else None
    if found is not None and found.get("arguments") == wanted and found.get("complete"):
        counts = found["counts"]
        return SampleSummary(out, people, **counts, seconds=time.monotonic() - start, reused=True)
    _clear(out, known=found is not None)
    write_json(card, {"arguments": wanted, "complete": False})
    everybody = make_people(people + customers, seed)
    hairdresser = seed if faces else None
    tasks = [_Task(p, i, views, out, i >= people, hairdresser) for i, p in enumerate(everybody)]
    done = []
    total = people * views + customers
    with tqdm(total=total, desc="rendering people", unit="photo") as bar:
        for result in _map(_write_person, tasks, workers):
            done.append(result)
            bar.update(result.images)
    counts = {
        "images": people * views,
        "faces": sum(d.faces for d in done[:people]),
        "blurred": sum(d.blurred for d in done[:people]),
        "customers": customers,
        "faults": write_faults(out, seed) if faults else 0,
    }
    write_json(card, {"arguments": wanted, "complete": True, "counts": counts})
    return SampleSummary(out, people, **counts, seconds=time.monotonic() - start, reused=False)


def _clear(out: Path, *, known: bool) -> None:
    """Remove an older sample; refuse to touch folders that no sample.json vouches for."""
    for name in FOLDERS:
        folder = out / name
        if not folder.exists():
            continue
        if not known and any(folder.iterdir()):
            raise PipelineError(
                "is not empty and was not written by this command",
                file=folder,
                remedy="choose another --out folder, or move this one away",
            )
        try:
            shutil.rmtree(folder)
        except OSError as error:
            raise PipelineError(
                f"the older sample cannot be removed ({error.strerror})", file=folder, remedy="remove it by hand"
            ) from error


def _map(work: Callable[[_Task], _Done], tasks: list[_Task], workers: int) -> Iterator[_Done]:
    """Results in the order of the tasks."""
    if workers <= 1 or len(tasks) == 1:
        yield from map(work, tasks)
        return
    with image_pool(min(workers, len(tasks))) as pool:
        yield from pool.map(work, tasks)


def _write_person(task: _Task) -> _Done:
    person = task.person
    model = build_model(person)
    faces = blurred = 0
    learns_faces = task.hairdresser is not None
    ranges = FRONT if task.customer else FACING if learns_faces else None
    views = make_views(person, task.views, ranges)
    for place, view in enumerate(views):
        if task.hairdresser is not None and place:
            person = with_other_hair(task.person, task.index * task.views + place, task.hairdresser)
            model = build_model(person)
        photo = render(model, view, blur_face=False if task.customer or learns_faces else None)
        faces += photo.box is not None
        blurred += photo.blur is not None
        if task.customer:
            stem = f"customer_{task.index:04d}"
            folder = task.out / "customers"
            write_bytes(folder / f"{stem}.jpg", encode_image(photo.image, ".jpg", JPEG_QUALITY))
            write_face_output(folder, stem, person, view, photo)
            break
        held_out = task.index % 12 == 7 or (task.index == 2 and place % 2 == 1)
        stem = f"{person.source}-{view.number:03d}"
        extension = ".JPG" if view.seed % 16 == 0 else ".jpg"
        part = "Validation" if held_out else "Training"
        relative = f"{SET}/{style_folder(person)}/{task.index + 1:04d}.{person.source}"
        label = make_label(person, view, photo, stem + extension, relative)
        images = task.out / "k_hairstyle" / part / "mqset" / "images" / relative
        labels = task.out / "k_hairstyle" / part / "mqset" / "labels" / relative
        write_bytes(images / (stem + extension), encode_image(photo.image, ".jpg", JPEG_QUALITY))
        name = f"{person.source}_{view.number:03d}.json"
        write_bytes(labels / name, json.dumps(label, ensure_ascii=False).encode())
        if photo.box is not None:
            write_face_output(task.out / "training_face", stem, person, view, photo)
    return _Done(1 if task.customer else len(views), faces, blurred)
