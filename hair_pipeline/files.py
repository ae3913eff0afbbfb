"""Reading and writing files safely: atomic writes, content hashes, confined paths, bounded image decoding.

Belongs here: what every floor needs to touch the disk without leaving half a file or trusting a hostile one.
Does not belong here: anything that knows about hair, labels or models.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import logging
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, BinaryIO

import cv2
import numpy as np
from PIL import Image

from hair_pipeline.errors import PipelineError
from hair_pipeline.webp import encode_webp

log = logging.getLogger(__name__)

_FULL_BYTES = 1 << 20
_FAST_PNG = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP]
"""One fixed filter and the fastest compression: half the time of OpenCV's default, the same size on photos."""
IMAGE_EXTENSIONS = (".jpg", ".webp", ".png")
"""Of the images that the pipeline writes."""
MAX_IMAGE_PIXELS = 64_000_000
"""Decoding is refused above this many pixels (the raw K-Hairstyle set has 12.2 million per photo)."""


@contextlib.contextmanager
def atomic_open(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path`; on success fsync it and rename it to `path`.

    A reader sees the old file or the new one, never a part. On any exception the temporary file is removed
    and `path` is left as it was.

    Raises:
        PipelineError: the folder cannot be written or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        opened = temporary.open("xb")  # with the permissions that the umask leaves
    except OSError as error:
        raise _explain_write_error(error, path) from error
    try:
        with opened as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _explain_write_error(error, path) from error
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        _refuse_where_full(error, path)
        raise


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Like `atomic_open`, for libraries that want a path to write to: yields a temporary path, renamed on success.

    The temporary name keeps `path`'s suffix, since some writers choose the format by it.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        _discard(temporary)
        raise _explain_write_error(error, path) from error
    except BaseException as error:
        _discard(temporary)
        _refuse_where_full(error, path)
        raise


def _discard(temporary: Path) -> None:
    with contextlib.suppress(OSError):  # the folder itself may be what is wrong
        temporary.unlink(missing_ok=True)


def says_full(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, says that the disk is full.

    safetensors wraps the system's error in one of its own, torch raises another while it handles it.
    """
    while error is not None:
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left on device" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _refuse_where_full(error: BaseException, path: Path) -> None:
    if not isinstance(error, PipelineError) and says_full(error):
        raise _explain_write_error(OSError(errno.ENOSPC, str(error)), path) from error


def _explain_write_error(error: OSError, path: Path) -> PipelineError:
    if error.errno == errno.ENOSPC:
        return PipelineError(
            "no space left on the device", file=path, remedy="free some disk space and run the same command again"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return PipelineError(
            "the folder cannot be written to",
            file=path,
            remedy="give this user write access or set HAIR_PIPELINE_TRAINING_ROOT to another folder",
        )
    return PipelineError(f"cannot be written ({error})", file=path, remedy="check the disk and the path")


def refuse_if_full(*folders: Path, cause: Exception) -> None:
    """Explain `cause` by a full disk under one of the folders, if there is one.

    For errors of libraries that say it in their own words (SQLite: "disk I/O error"), or not at all.

    Raises:
        PipelineError: naming the folder; returns if all have space left.
    """
    for folder in folders:
        if folder.exists() and shutil.disk_usage(folder).free < _FULL_BYTES:
            raise _explain_write_error(OSError(errno.ENOSPC, str(cause)), folder) from cause


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically."""
    with atomic_open(path) as file:
        file.write(data)


def make_folder(path: Path) -> None:
    """Make a folder and those above it.

    Raises:
        PipelineError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _explain_write_error(error, path) from error


def remove(path: Path) -> None:
    """Delete a file, or a folder with all that is in it; one that is gone already is no fault.

    Raises:
        PipelineError: it cannot be deleted.
    """
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise _explain_write_error(error, path) from error


@contextlib.contextmanager
def one_at_a_time(path: Path, instead: PipelineError | None = None) -> Iterator[None]:
    """Hold the lock of a file, made if absent: of two processes, also on a shared disk, one waits for the other.

    Args:
        path: of the file.
        instead: raised instead of waiting.

    Raises:
        PipelineError: the file cannot be made, or `instead`.
    """
    make_folder(path.parent)
    try:
        lock = path.open("a")
    except OSError as error:
        raise _explain_write_error(error, path) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if instead is not None:
                raise instead from error
            log.warning("waiting for another process that holds %s", path)
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:  # a disk that knows no locks: there is nothing to wait for
            log.warning("%s cannot be locked (%s)", path, error.strerror)
        yield


def is_locked(file: IO[Any]) -> bool:
    """Does another process hold the lock of an open file?"""
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def write_unsynced(path: Path, data: bytes) -> None:
    """Write `data` to a temporary name and rename it to `path`, without waiting for the disk.

    A reader, and a process killed at any moment, leaves the old file or the new one. A machine that loses power may
    leave a torn one: whoever calls this checks the content later, or calls `sync_files` before it says "finished".

    Raises:
        PipelineError: the folder cannot be written or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _explain_write_error(error, path) from error


def sync_files(paths: Iterable[Path]) -> None:
    """Wait until files are on the disk: many at a time, which takes a third of the time of one after another."""

    with ThreadPoolExecutor(16) as pool:
        for _ in pool.map(sync_path, paths):
            pass


def sync_path(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as readable UTF-8 JSON, atomically. NaN is refused: JSON has none."""
    text = json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False)
    write_bytes(path, (text + "\n").encode())


def read_json(path: Path, *, remedy: str = "delete it and materialise again") -> Any:
    """Read a JSON file.

    Args:
        remedy: what to do about a file that is not JSON.

    Raises:
        PipelineError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise PipelineError("no such file", file=path, remedy="materialise the asset that writes it") from error
    except (ValueError, UnicodeDecodeError) as error:
        raise PipelineError(f"is not JSON ({error})", file=path, remedy=remedy) from error


def hash_bytes(*parts: bytes | str) -> str:
    """SHA-256 (hex) over the parts, each preceded by its length so that no two lists collide."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


def hash_file(path: Path) -> str:
    """SHA-256 (hex) of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_files(paths: Iterable[Path], root: Path) -> str:
    """One SHA-256 (hex) over the names (relative to `root`) and contents of `paths`, in sorted order."""
    return hash_bytes(
        *(part for path in sorted(paths) for part in (path.relative_to(root).as_posix(), hash_file(path)))
    )


def confined(root: Path, relative: str | Path) -> Path:
    """`root / relative`, refused when it climbs out of `root` (also through symbolic links).

    Raises:
        PipelineError: the path leaves the root, or is none.
    """
    if "\0" in str(relative) or not _is_text(str(relative)):
        raise PipelineError(f"{str(relative)!r} is no path", file=root, remedy="mend or remove the entry")
    base = root.resolve()
    path = (base / relative).resolve()
    if not path.is_relative_to(base):
        raise PipelineError(
            f"the path {str(relative)!r} climbs out of its root", file=root, remedy="mend or remove the entry"
        )
    return path


def _is_text(text: str) -> bool:
    """Can it be written as UTF-8? Names that the operating system gave can, by the bytes that they stand for."""
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return True


def confined_in_folder(root: Path, relative: str | Path) -> Path:
    """As `confined`, but the folder of `root` that the path begins with may be a link to elsewhere.

    An operator may so keep `checkpoints/` on another disk; within that folder nothing may climb out.
    """
    first, *rest = Path(relative).parts or ("",)
    if not rest or first == ".." or Path(first).is_absolute():
        return confined(root, relative)
    return confined(root / first, Path(*rest))


class UnreadableImage(Exception):
    """The bytes are not an image that may be decoded; the message says why."""


def decode_image(data: bytes, *, alpha: bool = False, max_pixels: int = MAX_IMAGE_PIXELS) -> np.ndarray:
    """Decode image bytes without applying EXIF rotation; the size is checked from the header first.

    Args:
        data: an encoded JPEG, PNG or WebP.
        alpha: keep the alpha channel.
        max_pixels: refuse larger images before decoding.

    Returns:
        uint8 array (H, W, 3) in RGB, or (H, W, 4) in RGBA when `alpha`.

    Raises:
        UnreadableImage: not an image, truncated, or larger than `max_pixels`.
    """
    try:
        with Image.open(io.BytesIO(data)) as header:
            width, height = header.size
    except Image.DecompressionBombError as error:
        raise UnreadableImage(f"exceeds the limit of {max_pixels} pixels") from error
    except Exception as error:  # Pillow raises many types on hostile headers
        raise UnreadableImage(f"not an image ({type(error).__name__})") from error
    if width * height > max_pixels:
        raise UnreadableImage(f"{width}x{height} exceeds the limit of {max_pixels} pixels")
    if data[:2] == b"\xff\xd8" and not is_whole_jpeg(data):
        raise UnreadableImage("truncated JPEG: it has no end marker")
    flags = cv2.IMREAD_UNCHANGED if alpha else cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise UnreadableImage(f"cannot be decoded ({error.err})") from error
    if image is None:
        raise UnreadableImage("cannot be decoded")
    if not alpha:
        return image
    if image.dtype == np.uint16:
        image = np.rint(image / 257).astype(np.uint8)
    if image.ndim == 2:
        return cv2.cvtColor(image, cv2.COLOR_GRAY2RGBA)
    return cv2.cvtColor(image, cv2.COLOR_BGRA2RGBA if image.shape[2] == 4 else cv2.COLOR_BGR2RGBA)


def is_whole_jpeg(data: bytes) -> bool:
    """Does a JPEG have its end marker? Some cameras write data of their own behind it.

    One that has it may lack data all the same: the catalog looks closer (`inputs.jpeg`).
    """
    return b"\xff\xd9" in data[-1024:] or data.find(b"\xff\xd9", _scan_of_jpeg(data)) >= 0


def _scan_of_jpeg(data: bytes) -> int:
    """Where a JPEG's image data start, else its length. A thumbnail in the segments before has an end marker too."""
    place = 2
    while data[place : place + 1] == b"\xff" and place + 4 <= len(data):
        marker = data[place + 1]
        if marker == 0xDA:
            return place
        place += 1 if marker == 0xFF else 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return len(data)


def read_image(path: Path, *, alpha: bool = False) -> np.ndarray:
    """Read an image file as RGB (or RGBA) uint8. See `decode_image`.

    Raises:
        UnreadableImage: not an image, or it cannot be read.
    """
    try:
        return decode_image(path.read_bytes(), alpha=alpha)
    except OSError as error:
        raise UnreadableImage(f"cannot be read ({error.strerror})") from error


def find_image(folder: Path, stem: str) -> Path | None:
    """The image of that name without its extension, whatever its format."""
    paths = (folder / f"{stem}{extension}" for extension in IMAGE_EXTENSIONS)
    return next((path for path in paths if path.exists()), None)


def encode_image(image: np.ndarray, extension: str, quality: int = 95) -> bytes:
    """Encode an RGB or RGBA uint8 array.

    Args:
        image: (H, W, 3) RGB or (H, W, 4) RGBA, uint8.
        extension: ".jpg", ".png" or ".webp" (WebP is lossless and keeps RGB under alpha 0 exactly).
        quality: JPEG quality, 1-100.
    """
    if extension == ".webp":
        return encode_webp(image)
    code = cv2.COLOR_RGBA2BGRA if image.shape[2] == 4 else cv2.COLOR_RGB2BGR
    options = [cv2.IMWRITE_JPEG_QUALITY, quality] if extension in (".jpg", ".jpeg") else _FAST_PNG
    done, data = cv2.imencode(extension, cv2.cvtColor(image, code), options)
    if not done:
        raise ValueError(f"OpenCV cannot encode {extension}")
    return data.tobytes()
