"""Time and memory of the catalog at K-Hairstyle's real size: 451,000 labels of 4,347 people, with every known fault.

    uv run python benchmarks/catalog.py [--people 4347] [--views 104] [--photo-size 64] [--folder DIR] [--keep]

Writes a tree in both real formats (real-size labels; small photos, sheets and embeddings as hard links to a few
originals), builds its catalog from cold, again with nothing changed, again with one person added, and prints a table.
The folder (about 6 GB, 1.5 million names) is deleted afterwards.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import unicodedata
import zipfile
from pathlib import Path

import cv2
import numpy as np

from hair_pipeline.vocabulary import ATTRIBUTES, BASE_STYLE

STYLES = list(BASE_STYLE)
PREFIXES = ("AP", "CP", "DS", "DSS", "JS", "JSS", "MN")
MAX_LINKS = 30_000
OTHER_KEYS = {f"exif-or-rating-{number:03d}": ("nan", "1/60", 3, "", None)[number % 5] for number in range(100)}

# One in so many images or people; the comments say how many that makes among 451,000.
JSON_AS_IMAGE, NO_IMAGE, NO_LABEL, TRUNCATED = 28, 220, 220, 300  # 16,000, 2,000, 2,000, 1,500
BAD_LABEL, NO_POLYGON, NO_SIZE, MOJIBAKE, NFD = 4_500, 100, 20, 100, 50
BOTH_HALVES, ZIPPED = 11, 100  # 400 people, 43 people
FACE_SHARE, BLURRED = 0.45, 0.6
BAD_SHEET, BAD_EMBEDDING, TWO_FACES, DOUBLED, DATED = 400, 600, 20, 7, 20


class Writer:
    """Writes the tree; the same arguments give the same tree."""

    def __init__(self, root: Path, size: int) -> None:
        self.root, self.size = root, size
        self.random = random.Random(0)
        self.pool = root / "pool"
        self.pool.mkdir(parents=True)
        self.files = 0
        self.links: dict[Path, int] = {}
        self.folders: set[str] = set()
        self.points = self._outline(220)
        self.photos = [self._pooled(f"photo{number}.jpg", self._photo(number)) for number in range(256)]
        whole = self.photos[0].read_bytes()
        self.truncated = self._pooled("truncated.jpg", whole[: len(whole) * 2 // 3])
        self.sheet = self._pooled("sheet.png", self._sheet(good=True))
        self.bad_sheet = self._pooled("bad.png", self._sheet(good=False))
        self.bad_embedding = self._pooled("bad.npy", _npy(np.full(512, np.nan, np.float32)))
        self.faces = {model: self._pooled(f"{model}.json", self._face(model)) for model in ("InsightFace", "AdaFace")}

    def _pooled(self, name: str, data: bytes) -> Path:
        (self.pool / name).write_bytes(data)
        return self.pool / name

    def _outline(self, count: int) -> list[tuple[float, float]]:
        angles = np.linspace(0, 2 * np.pi, count, endpoint=False)
        radius = self.size * (0.3 + 0.03 * np.sin(9 * angles))
        return [
            (round(self.size / 2 + float(r * np.cos(a)), 6), round(self.size / 2 + float(r * np.sin(a)), 6))
            for a, r in zip(angles, radius, strict=True)
        ]

    def _mask(self) -> np.ndarray:
        mask = np.zeros((self.size, self.size), np.uint8)
        cv2.fillPoly(mask, [np.round(np.array(self.points)).astype(np.int32)], 1)
        return mask.astype(bool)

    def _photo(self, number: int) -> bytes:
        small = np.random.default_rng(number).integers(0, 255, (8, 8, 3), dtype=np.uint8)
        photo = cv2.resize(small, (self.size, self.size), interpolation=cv2.INTER_CUBIC)
        return bytes(cv2.imencode(".jpg", photo, [cv2.IMWRITE_JPEG_QUALITY, 92])[1])

    def _sheet(self, *, good: bool) -> bytes:
        quadrant = np.full((self.size, self.size, 3), 128, np.uint8)
        quadrant[self._mask()] = 0
        middle, fifth = self.size // 2, self.size // 5
        quadrant[middle - fifth : middle + fifth, middle - fifth : middle + fifth] = 255
        if not good:
            quadrant[:] = np.linspace(0, 255, self.size).astype(np.uint8)[:, None, None]
        plain = cv2.imdecode(np.frombuffer(self._photo(1), np.uint8), cv2.IMREAD_COLOR)
        assert plain is not None
        return bytes(cv2.imencode(".png", np.vstack([np.hstack([plain, quadrant]), np.hstack([plain, plain])]))[1])

    def _face(self, model: str) -> bytes:
        yaw = 12.0 if model == "InsightFace" else 61.0
        box = [self.size * share for share in (0.3, 0.3, 0.7, 0.75)]
        values = {"face_id": 1, "yaw": yaw, "pitch": 3.5, "roll": 2.0, "bbox": box, "confidence": 0.82}
        names = {"embedding_path": "face_01_yaw_18.npy", "visualization_path": "face_01_yaw_18.png"}
        return json.dumps(values | names | {"embedding_model": model, "embedding_dim": 512}).encode()

    def person(self, number: int, views: int) -> None:
        source = f"{PREFIXES[number % 7]}{100_000 + number}"
        style = STYLES[number % 31]
        inner = f"0002.mqset/{number % 31 + 1:04d}.{style}/{number + 1:04d}.{source}"
        vector = np.random.default_rng([1, number]).normal(size=512)
        embedding = self._pooled(f"{source}.npy", _npy((vector / np.linalg.norm(vector)).astype(np.float32)))
        zipped = number % ZIPPED == 50
        label_zip, image_zip = io.BytesIO(), io.BytesIO()
        with zipfile.ZipFile(label_zip, "w", zipfile.ZIP_DEFLATED) as labels, zipfile.ZipFile(image_zip, "w") as images:
            for view in range(1, views + 1):
                held = number % 12 == 7 or (number % BOTH_HALVES == 0 and view % 3 == 0)
                half = f"k_hairstyle/{'Validation' if held else 'Training'}/mqset"
                stem = f"{source}-{view:03d}"
                label, photo, name = self._one(number, view, views, source, style, stem)
                if label is not None and zipped:
                    labels.writestr(f"{source}/{stem.replace('-', '_')}.json".encode().decode("cp437"), label)
                    self.files += 1
                elif label is not None:
                    self._write(f"{half}/labels/{inner}", f"{stem.replace('-', '_')}.json", label)
                if photo is not None and zipped:
                    images.writestr(f"{source}/{name}", photo.read_bytes())
                    self.files += 1
                elif photo is not None:
                    self._link(photo, f"{half}/images/{inner}", name)
                if self.random.random() < FACE_SHARE:
                    self._face_files(stem, embedding)
        if zipped:
            outer = io.BytesIO()
            with zipfile.ZipFile(outer, "w") as archive:
                archive.writestr(f"{number + 1:04d}.{source}.zip", label_zip.getvalue())
            folder = self.root / "k_hairstyle/Training/mqset"
            for kind, data in (("labels", outer), ("images", image_zip)):
                (folder / kind).mkdir(parents=True, exist_ok=True)
                (folder / kind / f"{number + 1:04d}.{source}.zip").write_bytes(data.getvalue())

    def _one(
        self, number: int, view: int, views: int, source: str, style: str, stem: str
    ) -> tuple[bytes | None, Path | None, str]:
        """Label bytes, photo and the photo's name; either may be missing."""
        at = number * views + view
        name = stem + (".JPG" if at % 16 == 0 else ".jpeg" if at % 97 == 0 else ".jpg")
        label = None if at % NO_LABEL == 3 else self._label(at, source, style, name)
        photo = self.truncated if at % TRUNCATED == 5 else self.photos[at % len(self.photos)]
        if at % JSON_AS_IMAGE == 7:
            photo = (
                self._pooled("label.jpg", label or b"{}")
                if not (self.pool / "label.jpg").exists()
                else self.pool / "label.jpg"
            )
        return label, None if at % NO_IMAGE == 9 else photo, name

    def _label(self, at: int, source: str, style: str, name: str) -> bytes:
        if at % BAD_LABEL == 11:
            return b'{"source": "\xff'
        shift = at % 13 / 10
        ring = ", ".join(f'{{"x": {x + shift:.6f}, "y": {y:.6f}}}' for x, y in self.points)
        blurred = self.random.random() < BLURRED * FACE_SHARE
        values: dict[str, object] = {key: list(table)[at % len(table)] for key, table in ATTRIBUTES.values()}
        values |= {"id": name, "source": source, "filename": name, "path": f"x/{style}", "basestyle": style}
        values |= {"width": self.size, "height": self.size, "front": at % 2 == 0, "horizontal": str(at % 360)}
        values |= {"age": str(20 + at % 50), "rgb": "[38.0, 30.0, 28.0]", **OTHER_KEYS}
        values["polygon1"] = "[]" if at % NO_POLYGON == 1 else f"[[{ring}]]"
        values["polygon2"] = '[[{"x": 1, "y": 1}, {"x": 9, "y": 1}, {"x": 9, "y": 9}]]' if blurred else "[]"
        if at % NO_SIZE == 2:
            del values["width"], values["height"]
        text = json.dumps(values, ensure_ascii=False)
        if at % NFD == 4:
            text = unicodedata.normalize("NFD", text)
        data = text.encode()
        return data.decode("latin-1").encode() if at % MOJIBAKE == 6 else data

    def _face_files(self, stem: str, embedding: Path) -> None:
        at = self.files
        folder = f"training_face/{stem}" + (f"/{stem}" if at % DOUBLED == 0 else "")
        suffix = "_20250101" if at % DATED == 0 else ""
        model = "AdaFace" if at % 3 == 0 else "InsightFace"
        for face in ("face_01", "face_02")[: 2 if at % TWO_FACES == 0 else 1]:
            base = f"{face}_yaw_18{suffix}"
            self._link(self.faces[model], f"{folder}/{face}", f"{base}.json")
            self._link(self.bad_sheet if at % BAD_SHEET == 0 else self.sheet, f"{folder}/{face}", f"{base}.png")
            self._link(self.bad_embedding if at % BAD_EMBEDDING == 0 else embedding, f"{folder}/{face}", f"{base}.npy")

    def _write(self, folder: str, name: str, data: bytes) -> None:
        self._make(folder)
        with open(f"{self.root}/{folder}/{name}", "wb") as file:  # noqa: PTH123
            file.write(data)
        self.files += 1

    def _link(self, original: Path, folder: str, name: str) -> None:
        """Hard links: the content is there once, the names as often as needed."""
        self._make(folder)
        used = self.links[original] = self.links.get(original, 0) + 1
        source = original
        if used >= MAX_LINKS:
            source = original.with_suffix(f".{used // MAX_LINKS}{original.suffix}")
            if not source.exists():
                shutil.copy(original, source)
        os.link(source, f"{self.root}/{folder}/{name}")
        self.files += 1

    def _make(self, folder: str) -> None:
        if folder not in self.folders:
            os.makedirs(f"{self.root}/{folder}", exist_ok=True)  # noqa: PTH103
            self.folders.add(folder)
            if len(self.folders) > 50_000:
                self.folders.clear()


def _npy(vector: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, vector)
    return buffer.getvalue()


def step(root: Path, what: str) -> dict[str, object]:
    """One measured step, run in a process of its own."""
    code = f"import sys; sys.argv = ['catalog.py']; from catalog import run; run({str(root)!r}, {what!r})"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    environment |= {
        "HAIR_PIPELINE_K_HAIRSTYLE_ROOT": str(root / "k_hairstyle"),
        "HAIR_PIPELINE_TRAINING_FACE_ROOT": str(root / "training_face"),
        "HAIR_PIPELINE_TRAINING_ROOT": str(root / "training"),
        "HAIR_PIPELINE_PROFILE": "rtx24gb",
    }
    done = subprocess.run([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def run(root: str, what: str) -> None:
    """Inside the measured process: do it, and print seconds, peak memory and results as JSON."""
    from hair_pipeline.inputs.audit import equal_identities, near_duplicates
    from hair_pipeline.inputs.catalog import build_catalog
    from hair_pipeline.inputs.fingerprint import fingerprint_folder
    from hair_pipeline.inputs.perceptual_hash import near_pairs
    from hair_pipeline.settings import load_settings

    settings = load_settings()
    found: dict[str, object] = {}
    memory = Memory()
    memory.start()
    start = time.monotonic()
    if what == "catalog":
        result = build_catalog(settings, settings.profile_values)
        found = {"files": result.summary["files"], "rejected": result.summary["rejected"]}
        found |= {"unchanged": result.unchanged, "people": result.summary["people"]}
        found |= {"identity": result.summary["identity"], "stage2": result.summary["stage2"]}
    elif what == "fingerprint":
        for name in ("k_hairstyle", "training_face"):
            cache = settings.processed / "catalog_cache" / f"{name}_fingerprint.parquet"
            fingerprint_folder(Path(root) / name, cache)
    elif what == "identities":
        found = {"people": equal_identities(settings, settings.profile_values.inputs).people}
    elif what == "duplicates":
        audit = near_duplicates(settings, settings.profile_values.inputs)
        generator = np.random.default_rng(0)  # the tree's photos are few: as many distinct hashes in their place
        counts = (audit.validation, audit.train)
        first, second = (generator.integers(0, 2**63, (count, 4)).astype(np.uint64) for count in counts)
        near_pairs(first, second, settings.profile_values.inputs.near_duplicate_distance)
    seconds = time.monotonic() - start
    times = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu = sum(used.ru_utime + used.ru_stime for used in times)
    parent = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(found | {"seconds": seconds, "cpu": cpu, "parent": parent, "together": max(parent, memory.peak)}))


class Memory(threading.Thread):
    """Watches how much memory this process and its workers hold together, in MiB, ten times a second.

    What `getrusage` says of children is of no use here: a new process begins with its parent's peak.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0.0

    def run(self) -> None:
        own = os.getpid()
        page = resource.getpagesize()
        while True:
            pages = 0
            for process in (str(own), *Path(f"/proc/{own}/task/{own}/children").read_text().split()):
                try:
                    pages += int(Path(f"/proc/{process}/statm").read_text().split()[1])
                except OSError:
                    continue  # it has ended
            self.peak = max(self.peak, pages * page / 2**20)
            time.sleep(0.1)


COLUMNS = ("seconds", "cpu", "together", "parent")


def report(rows: list[tuple[str, dict[str, object]]]) -> None:
    """The table."""
    print("\n| step | seconds | CPU seconds | peak memory of all processes, MiB | of the parent |")
    print("|---|---|---|---|---|")
    for name, row in rows:
        seconds, cpu, together, parent = (float(str(row[key])) for key in COLUMNS)
        print(f"| {name} | {seconds:.1f} | {cpu:.1f} | {together:.0f} | {parent:.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, default=4347)
    parser.add_argument("--views", type=int, default=104, help="photos per person")
    parser.add_argument("--photo-size", type=int, default=64, help="side of the photos, pixels; sheets are twice that")
    parser.add_argument("--folder", type=Path, default=None, help="where the tree is written (a new folder in it)")
    parser.add_argument("--keep", action="store_true", help="do not delete the tree")
    arguments = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="catalog-benchmark-", dir=arguments.folder))
    try:
        start = time.monotonic()
        writer = Writer(root, arguments.photo_size)
        for number in range(arguments.people):
            writer.person(number, arguments.views)
        seconds = time.monotonic() - start
        print(f"{writer.files} files of {arguments.people} people written to {root} in {seconds:.0f} s", flush=True)
        rows = [("catalog, from cold", step(root, "catalog")), ("catalog, nothing changed", step(root, "catalog"))]
        print(json.dumps(rows[0][1], indent=1), flush=True)
        assert rows[1][1]["unchanged"], "something was done again"
        writer.person(arguments.people, arguments.views)
        rows.append(("catalog, one person more", step(root, "catalog")))
        rows += [("observing the inputs, first", step(root, "fingerprint"))]
        rows += [("observing the inputs, nothing changed", step(root, "fingerprint"))]
        rows += [("audit: equal identities", step(root, "identities"))]
        rows += [("audit: near-duplicates", step(root, "duplicates"))]
        report(rows)
    finally:
        if not arguments.keep:
            shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
