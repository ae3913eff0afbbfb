"""Files: old content or new, never a part; hostile paths and images refused."""

import errno
import os
import struct
import zlib
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError

from hair_pipeline import files
from hair_pipeline.errors import PipelineError
from hair_pipeline.files import (
    UnreadableImage,
    atomic_open,
    atomic_path,
    confined,
    confined_in_folder,
    decode_image,
    encode_image,
    find_image,
    hash_bytes,
    refuse_if_full,
    remove,
    write_bytes,
    write_json,
)

Usage = namedtuple("Usage", "total used free")


def _full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_that_fills_up_keeps_the_old_file_and_leaves_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "kept.json"
    write_json(path, {"kept": True})
    monkeypatch.setattr(files.os, "fsync", _full_disk)
    with pytest.raises(PipelineError, match=r"kept\.json: no space left on the device\n  -> free some disk space"):
        write_bytes(path, b"new")
    with pytest.raises(PipelineError, match="no space left"), atomic_path(path) as temporary:
        temporary.write_bytes(b"new")
    assert path.read_text().startswith('{\n  "kept": true')
    assert list(tmp_path.iterdir()) == [path]


def _as_safetensors_says_it() -> None:
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def _as_torch_says_it() -> None:
    try:
        _full_disk()
    finally:
        raise RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 704 vs 598")


@pytest.mark.parametrize("say", [_as_safetensors_says_it, _as_torch_says_it])
def test_a_full_disk_is_told_in_the_same_words_whatever_library_writes(tmp_path: Path, say: Callable[[], None]):
    for write in (atomic_open, atomic_path):
        with pytest.raises(PipelineError, match="weights: no space left on the device"), write(tmp_path / "weights"):
            say()
        with pytest.raises(ValueError, match="of another kind"), write(tmp_path / "weights"):
            raise ValueError("of another kind")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("umask", [0o077, 0o022, 0o002])
def test_files_get_the_permissions_that_the_umask_leaves(tmp_path: Path, umask: int):
    before = os.umask(umask)
    try:
        write_bytes(tmp_path / "a", b"private")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o666 & ~umask


def test_an_exception_while_writing_leaves_no_part(tmp_path: Path):
    def write_half() -> None:
        with atomic_open(tmp_path / "a") as file:
            file.write(b"half")
            raise KeyError

    with pytest.raises(KeyError):
        write_half()
    assert list(tmp_path.iterdir()) == []


def test_an_error_in_a_librarys_own_words_is_explained_by_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cause = RuntimeError("disk I/O error")
    refuse_if_full(tmp_path, tmp_path / "missing", cause=cause)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: Usage(100, 100, 0))
    with pytest.raises(PipelineError, match="no space left on the device") as caught:
        refuse_if_full(tmp_path, cause=cause)
    assert caught.value.__cause__ is cause


@pytest.mark.parametrize("hostile", ["../outside", "/etc/passwd", "a/../../outside", "link/x"])
def test_paths_stay_in_their_root(tmp_path: Path, hostile: str):
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(tmp_path)
    with pytest.raises(PipelineError, match="climbs out of its root"):
        confined(root, hostile)


def test_a_folder_of_the_root_may_be_a_link_but_nothing_climbs_out_of_it(tmp_path: Path):
    root, disk = tmp_path / "root", tmp_path / "disk"
    (disk / "versions").mkdir(parents=True)
    root.mkdir()
    (root / "checkpoints").symlink_to(disk)
    (disk / "out").symlink_to(tmp_path)
    assert confined_in_folder(root, "checkpoints/versions") == (disk / "versions").resolve()
    assert confined_in_folder(root, "plain/folder") == (root / "plain" / "folder").resolve()
    for hostile in ("checkpoints/../x", "checkpoints/out/x", "../disk/versions", str(disk / "versions"), "..", "/"):
        with pytest.raises(PipelineError, match="climbs out of its root"):
            confined_in_folder(root, hostile)


def test_a_zero_byte_is_no_path(tmp_path: Path):
    with pytest.raises(PipelineError, match="is no path"):
        confined(tmp_path, "a\0b")


@given(
    st.lists(
        st.from_regex(r"[a-z가-힣0-9._ -]{1,12}", fullmatch=True).filter(lambda part: part not in (".", "..")),
        min_size=1,
        max_size=4,
    )
)
def test_ordinary_paths_are_joined(parts: list[str]):
    assert confined(Path("/root-that-is-not"), "/".join(parts)) == Path("/root-that-is-not", *parts)


def _png_header(width: int, height: int) -> bytes:
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    header = struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    return b"\x89PNG\r\n\x1a\n" + header + struct.pack(">I", 10) + b"IDAT" + bytes(14)


def test_a_decompression_bomb_is_refused_by_its_header():
    with pytest.raises(UnreadableImage, match="exceeds the limit"):
        decode_image(_png_header(60_000, 60_000))


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_no_image_and_no_crash(data: bytes):
    with pytest.raises(UnreadableImage):
        decode_image(data)


@given(st.integers(20, 400))
def test_a_truncated_jpeg_is_refused(cut: int):
    data = encode_image(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8), ".jpg")
    with pytest.raises(UnreadableImage):
        decode_image(data[:-cut])


@pytest.mark.parametrize("channels", [(), (3,), (4,)])
def test_sixteen_bits_are_scaled_to_eight(channels: tuple[int, ...]):
    values = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8, *[1 for _ in channels])
    done, data = cv2.imencode(".png", np.broadcast_to(values, (8, 8, *channels)).copy())
    assert done
    image = decode_image(data.tobytes(), alpha=True)
    assert image.dtype == np.uint8
    assert np.array_equal(image[..., 0], np.rint(values.reshape(8, 8) / 257))


@pytest.mark.parametrize("extension", [".png", ".webp"])
def test_lossless_formats_keep_every_byte_under_alpha_zero_too(extension: str):
    image = np.random.default_rng(0).integers(0, 255, (16, 16, 4), dtype=np.uint8)
    image[:8, :, 3] = 0
    assert np.array_equal(decode_image(encode_image(image, extension), alpha=True), image)


def test_hashes_tell_how_the_parts_are_divided():
    assert hash_bytes("ab", "c") != hash_bytes("a", "bc")
    assert hash_bytes("ab") == hash_bytes(b"ab")


def test_json_has_no_nan(tmp_path: Path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"value": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_an_image_is_found_by_its_whole_name(tmp_path: Path) -> None:
    for name in ("[a] 1.png", "b.jpg.png", "c.txt"):
        (tmp_path / name).write_bytes(b"")
    assert find_image(tmp_path, "[a] 1") == tmp_path / "[a] 1.png"
    assert find_image(tmp_path, "b") is None
    assert find_image(tmp_path, "b.jpg") == tmp_path / "b.jpg.png"
    assert find_image(tmp_path, "c") is None


def test_what_is_removed_may_be_a_file_a_folder_a_link_or_gone(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    (kept / "below").mkdir(parents=True)
    folder, link = tmp_path / "folder", tmp_path / "link"
    (folder / "below").mkdir(parents=True)
    link.symlink_to(kept)
    for path in (folder, link, tmp_path / "nothing"):
        remove(path)
    assert list(tmp_path.iterdir()) == [kept]
    assert (kept / "below").is_dir()


@pytest.mark.parametrize("function", ["unlink", "rmtree"])
def test_what_cannot_be_removed_is_explained(function: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    path = tmp_path / "it"
    path.mkdir() if function == "rmtree" else path.touch()
    monkeypatch.setattr(*((Path, "unlink") if function == "unlink" else (files.shutil, "rmtree")), refuse)
    with pytest.raises(PipelineError, match="cannot be written to"):
        remove(path)
