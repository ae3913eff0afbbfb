"""Zips read in place: names restored, nested zips, limits on hostile ones, and nothing but `ArchiveError` on noise."""

import io
import json
import shutil
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hair_pipeline.inputs import archives
from hair_pipeline.inputs.archives import ArchiveError, list_entries, read_entry
from hair_pipeline.inputs.catalog import build_catalog
from hair_pipeline.inputs.inventory import list_files
from hair_pipeline.inputs.reader import in_archive, read_bytes, split_location
from hair_pipeline.inputs.reasons import Reason
from hair_pipeline.inputs.samples import load_photo
from hair_pipeline.profile import Profile
from hair_pipeline.sample.faults import make_zip
from hair_pipeline_tests.inputs.tiny_inputs import write_tiny_inputs

PROFILE = Profile(name="test")


def entries(path: Path) -> dict[str, Reason | None]:
    return {entry.name: entry.problem and entry.problem[0] for entry in list_entries(path)}


def test_names_without_the_utf8_flag_are_restored(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(make_zip({"0001.가르마/CP1-001.jpg": b"one"}))
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() != ["0001.가르마/CP1-001.jpg"], "the test's zip is not mangled"
    assert entries(path) == {"0001.가르마/CP1-001.jpg": None}
    assert read_bytes(tmp_path, "a.zip!/0001.가르마/CP1-001.jpg") == b"one"


def test_names_in_cp949_and_with_backslashes_are_restored(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("0001.가르마\\x.jpg".encode("cp949").decode("cp437"), b"x")
    data = (tmp_path / "a.zip").read_bytes()
    mangled = "0001.가르마\\x.jpg".encode("cp949").decode("cp437").encode()
    korean = "0001.가르마\\x.jpg".encode("cp949")
    if mangled in data:  # Python marks the name as UTF-8: put the tool's own bytes and no flag in its place
        (tmp_path / "a.zip").write_bytes(_rename(data, mangled, korean))
    assert entries(tmp_path / "a.zip") == {"0001.가르마/x.jpg": None}
    assert read_entry(tmp_path / "a.zip", ["0001.가르마/x.jpg"]) == b"x"


def _rename(data: bytes, old: bytes, new: bytes) -> bytes:
    """A one-entry zip with another name's bytes, and without the UTF-8 flag."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        content = archive.read(archive.namelist()[0])

    class Named(zipfile.ZipInfo):
        def _encodeFilenameFlags(self) -> tuple[bytes, int]:
            return new, 0

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(Named("x"), content)
    return buffer.getvalue()


def test_nested_zips_are_read_in_memory(tmp_path: Path) -> None:
    inner = make_zip({"CP1_001.json": b"{}"})
    (tmp_path / "labels.zip").write_bytes(make_zip({"CP1.zip": make_zip({"deep.zip": inner})}))
    name = "CP1.zip!/deep.zip!/CP1_001.json"
    assert entries(tmp_path / "labels.zip") == {name: None}
    assert read_bytes(tmp_path, f"labels.zip!/{name}") == b"{}"
    assert [path.name for path in tmp_path.iterdir()] == ["labels.zip"]
    too_deep = make_zip({"CP1.zip": (tmp_path / "labels.zip").read_bytes()})
    (tmp_path / "deeper.zip").write_bytes(make_zip({"more.zip": too_deep}))
    assert set(entries(tmp_path / "deeper.zip").values()) == {Reason.SUSPICIOUS_ARCHIVE}


@pytest.mark.parametrize("name", ["../x.jpg", "a/../../x.jpg", "/etc/x.jpg", "C:/x.jpg", "a\\..\\..\\x.jpg"])
def test_names_that_climb_out_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.zip").write_bytes(make_zip({name: b"x"}))
    assert list(entries(tmp_path / "a.zip").values()) == [Reason.PATH_OUTSIDE_ROOT]
    with pytest.raises(OSError):  # noqa: PT011 (either not found or refused)
        read_entry(tmp_path / "a.zip", [name])


def test_a_folder_whose_name_ends_like_an_archives_is_a_bad_name(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(make_zip({"wow!/x.jpg": b"x"}))
    assert list(entries(tmp_path / "a.zip").values()) == [Reason.BAD_FILE_NAME]
    with pytest.raises(OSError, match="stands for an archive's entries"):
        read_entry(tmp_path / "a.zip", ["wow!/x.jpg"])


def test_bombs_are_refused_before_they_are_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.zip").write_bytes(make_zip({"x.jpg": bytes(2**22)}))
    assert entries(tmp_path / "a.zip") == {"x.jpg": Reason.SUSPICIOUS_ARCHIVE}
    with pytest.raises(ArchiveError, match="unpack to"):
        read_entry(tmp_path / "a.zip", ["x.jpg"])
    monkeypatch.setattr(archives, "MAX_ENTRY_BYTES", 1000)
    (tmp_path / "b.zip").write_bytes(make_zip({"x.jpg": bytes(range(256)) * 8}))
    assert entries(tmp_path / "b.zip") == {"x.jpg": Reason.SUSPICIOUS_ARCHIVE}


def test_an_entry_that_lies_about_its_size_or_content(tmp_path: Path) -> None:
    data = bytearray(make_zip({"x.jpg": b"hello" * 100}))
    at = data.index(b"x.jpg") + len(b"x.jpg")
    data[at + 2] ^= 0xFF
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(ArchiveError) as caught:
        read_entry(tmp_path / "a.zip", ["x.jpg"])
    assert caught.value.reason == Reason.UNREADABLE_ARCHIVE


def test_a_name_that_comes_twice_counts_once(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("x.jpg", b"first")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("x.jpg", b"second")
    problems = [entry.problem and entry.problem[0] for entry in list_entries(tmp_path / "a.zip")]
    assert problems == [None, Reason.DUPLICATE_ENTRY]
    assert read_entry(tmp_path / "a.zip", ["x.jpg"]) == b"first"


@given(st.binary(max_size=400), st.integers(0, 200), st.booleans())
def test_any_bytes_are_listed_or_refused(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes, position: int, whole: bool
) -> None:
    data = bytearray(make_zip({"a/x.jpg": b"hello", "n.zip": make_zip({"y.json": b"{}"})}))
    data = bytearray(noise) if whole else data
    data[position : position + len(noise)] = noise
    path = tmp_path_factory.getbasetemp() / f"noise{hash(bytes(data))}.zip"
    path.write_bytes(data)
    try:
        for entry in list_entries(path):
            if entry.problem is None:
                read_entry(path, entry.name.split("!/"))
    except (ArchiveError, FileNotFoundError):
        pass
    finally:
        path.unlink()


@given(st.text("a!/.zipZIP", max_size=30))
def test_every_path_splits_and_joins(path: str) -> None:
    file, chain = split_location(path)
    assert "!/".join([file, *chain]) == path
    assert bool(chain) == in_archive(path)
    assert all(part.lower().endswith(".zip") for part in [file, *chain][:-1])


def test_a_folder_named_like_an_archive_is_not_taken_for_one(tmp_path: Path) -> None:
    (tmp_path / "a.zip!").mkdir()
    (tmp_path / "a.zip!" / "x.jpg").write_bytes(b"x")
    assert [(path, reason) for path, reason, _ in list_files(tmp_path).rejected] == [
        ("a.zip!/x.jpg", Reason.BAD_FILE_NAME)
    ]


def test_a_zip_without_files_is_counted(tmp_path: Path) -> None:
    (tmp_path / "empty.zip").write_bytes(make_zip({}))
    (tmp_path / "outer.zip").write_bytes(make_zip({"inner.zip": make_zip({}), "x.jpg": b"x"}))
    for _ in range(2):
        found = list_files(tmp_path, tmp_path / ".kept.parquet")
        assert [(path, reason) for path, reason, _ in found.rejected if path[0] != "."] == [
            ("empty.zip", Reason.EMPTY_ARCHIVE),
            ("outer.zip!/inner.zip", Reason.EMPTY_ARCHIVE),
        ]


def test_the_whole_release_in_zips_gives_the_same_catalog(tmp_path: Path) -> None:
    inputs = write_tiny_inputs(tmp_path / "inputs", people=3, views=2, size=96)
    plain = build_catalog(inputs.settings(), PROFILE).frame
    folder = tmp_path / "zipped" / "Training" / "mqset"
    images: dict[str, bytes] = {}
    labels: dict[str, dict[str, bytes]] = {}
    for path in sorted(inputs.k_hairstyle.rglob("*.*")):
        inner = "/".join(path.parts[-4:])
        if path.suffix == ".jpg":
            images[inner] = path.read_bytes()
        elif path.suffix == ".json":
            labels.setdefault(path.parent.name, {})[path.name] = path.read_bytes()
    for kind, data in (
        ("images", make_zip(images)),
        ("labels", make_zip({f"{name}.zip": make_zip(content) for name, content in labels.items()})),
    ):
        (folder / kind).mkdir(parents=True)
        (folder / kind / f"{kind}.zip").write_bytes(data)
    settings = inputs.settings(k_hairstyle_root=tmp_path / "zipped", training_root=tmp_path / "out")
    result = build_catalog(settings, PROFILE)
    frame = result.frame
    assert frame.accepted.all()
    columns = ["image_id", "source", "base_style", "curl", "mask_iou", "content_hash", "shard", "split"]
    assert json.loads(frame[columns].to_json()) == json.loads(plain[columns].to_json())
    assert frame.label_path.str.count("!/").eq(2).all()
    for row in frame.itertuples():
        assert load_photo(row, settings).hair_mask.any()
    assert result.summary["files"] == {"found": 12, "images_accepted": 6, "rows_rejected": 0, "archives_read": 2}


def test_an_unchanged_zip_is_not_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "a.zip").write_bytes(make_zip({"x.jpg": b"x", "../y.jpg": b"y"}))
    (tmp_path / "root" / "empty.zip").write_bytes(make_zip({}))
    first = list_files(tmp_path / "root", tmp_path / "kept.parquet")
    monkeypatch.setattr("hair_pipeline.inputs.inventory.list_entries", lambda path: pytest.fail("opened"))
    assert list_files(tmp_path / "root", tmp_path / "kept.parquet") == first
    monkeypatch.undo()
    shutil.copy(tmp_path / "root" / "a.zip", tmp_path / "root" / "b.zip")
    assert len(list_files(tmp_path / "root", tmp_path / "kept.parquet").images) == 2
