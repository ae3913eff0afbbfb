"""A second run opens only what changed, comes to the same bytes, and goes on where a killed one stopped."""

import errno
import os
import shutil
import zipfile
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hair_pipeline.errors import PipelineError
from hair_pipeline.inputs import catalog, fingerprint, reader, remembered
from hair_pipeline.inputs.catalog import build_catalog
from hair_pipeline.inputs.columns import EXAMINED
from hair_pipeline.inputs.examine import Examiner, Task
from hair_pipeline.inputs.fingerprint import fingerprint_folder
from hair_pipeline.inputs.inventory import list_files
from hair_pipeline.inputs.remembered import ExaminedRows
from hair_pipeline.profile import InputsConfig, Profile
from hair_pipeline.sample.faults import make_zip
from hair_pipeline_tests.inputs.tiny_inputs import TinyInputs, write_tiny_inputs

PROFILE = Profile(name="test")


@pytest.fixture
def inputs(tmp_path: Path) -> TinyInputs:
    return write_tiny_inputs(tmp_path / "inputs", people=4, views=2, size=64)


@pytest.fixture
def examined(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The images examined, as they are."""
    seen: list[str] = []
    examine = Examiner.examine

    def noted(self: Examiner, task: Task) -> list[dict[str, object]]:
        seen.extend(candidate.image for candidate in task.candidates)
        return examine(self, task)

    monkeypatch.setattr(Examiner, "examine", noted)
    return seen


def fresh(inputs: TinyInputs, tmp_path: Path) -> bytes:
    """The catalog built from nothing, with the same assignments."""
    settings = inputs.settings(training_root=tmp_path / "fresh")
    shutil.rmtree(settings.training_root, ignore_errors=True)
    settings.processed.mkdir(parents=True)
    shutil.copy(inputs.settings().processed / "assignments.json", settings.processed)
    build_catalog(settings, PROFILE)
    return settings.catalog_path.read_bytes()


def test_only_what_changed_is_examined(inputs: TinyInputs, examined: list[str], tmp_path: Path) -> None:
    settings = inputs.settings()
    build_catalog(settings, PROFILE)
    assert len(examined) == 8
    examined.clear()
    assert build_catalog(settings, PROFILE).unchanged
    assert examined == []
    image = next(inputs.k_hairstyle.rglob(f"{inputs.image_ids[3]}.jpg"))
    image.write_bytes(image.read_bytes()[:300])
    shutil.rmtree(inputs.training_face / inputs.image_ids[5])
    result = build_catalog(settings, PROFILE)
    assert sorted(Path(path).stem for path in examined) == [inputs.image_ids[3], inputs.image_ids[5]]
    assert result.summary["rejected"] == {"truncated_image": 1}
    assert settings.catalog_path.read_bytes() == fresh(inputs, tmp_path)


def test_a_touched_file_is_examined_again_to_the_same_catalog(inputs: TinyInputs, examined: list[str]) -> None:
    first = build_catalog(inputs.settings(), PROFILE)
    examined.clear()
    os.utime(next(inputs.k_hairstyle.rglob(f"{inputs.image_ids[0]}.jpg")), (1, 1))
    again = build_catalog(inputs.settings(), PROFILE)
    assert len(examined) == 1
    assert again.data_version == first.data_version


def test_other_settings_remember_nothing(inputs: TinyInputs, examined: list[str]) -> None:
    build_catalog(inputs.settings(), PROFILE)
    strict = Profile(name="test", inputs=InputsConfig(min_face_confidence=0.99))
    result = build_catalog(inputs.settings(), strict)
    assert len(examined) == 16
    assert result.summary["face"]["low_confidence"] == 8


def test_a_lost_catalog_is_written_again_without_examining(inputs: TinyInputs, examined: list[str]) -> None:
    first = build_catalog(inputs.settings(), PROFILE)
    inputs.settings().catalog_path.unlink()
    examined.clear()
    assert build_catalog(inputs.settings(), PROFILE).data_version == first.data_version
    assert examined == []


def test_a_run_that_was_stopped_goes_on(
    inputs: TinyInputs, examined: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remembered, "PART_ROWS", 2)
    chunks = catalog.map_chunks

    def stopping(function, items, **options):  # type: ignore[no-untyped-def]
        yield from chunks(function, items[:6], **{**options, "chunk": 2})
        raise KeyboardInterrupt

    monkeypatch.setattr(catalog, "map_chunks", stopping)
    with pytest.raises(KeyboardInterrupt):
        build_catalog(inputs.settings(), PROFILE)
    monkeypatch.setattr(catalog, "map_chunks", chunks)
    assert len(examined) == 6
    assert build_catalog(inputs.settings(), PROFILE).summary["files"]["images_accepted"] == 8
    assert len(examined) == 8


def test_damaged_memories_are_made_again(inputs: TinyInputs) -> None:
    first = build_catalog(inputs.settings(), PROFILE)
    for path in (inputs.settings().processed / "catalog_cache").rglob("*"):
        if path.is_file():
            path.write_bytes(b"noise")
    assert build_catalog(inputs.settings(), PROFILE).data_version == first.data_version


def test_a_memory_damaged_where_it_is_read_last_is_named(inputs: TinyInputs) -> None:
    settings = inputs.settings()
    build_catalog(settings, PROFILE)
    settings.catalog_path.unlink()
    (part,) = (settings.processed / "catalog_cache").rglob("part-*.parquet")
    hashes = pq.read_metadata(part).row_group(0).column(EXAMINED.get_field_index("content_hash"))
    data = bytearray(part.read_bytes())
    data[hashes.data_page_offset : hashes.data_page_offset + 64] = bytes(64)
    part.write_bytes(data)
    with pytest.raises(PipelineError, match="delete it and run the same command again") as found:
        build_catalog(settings, PROFILE)
    assert found.value.file == str(part)
    part.unlink()
    assert build_catalog(settings, PROFILE).frame.accepted.all()


def test_people_under_two_names_become_one(inputs: TinyInputs) -> None:
    build_catalog(inputs.settings(), PROFILE)
    first, second = inputs.sources[:2]
    joined = Profile(name="test", inputs=InputsConfig(same_person={second: first}))
    frame = build_catalog(inputs.settings(), joined).frame
    assert set(frame.source) == {first, *inputs.sources[2:]}
    assert frame[frame.source == first].split.nunique() == 1


def spell(inputs: TinyInputs, source: str, name: str) -> None:
    """Give a person's photos, under another spelling of the name and with other numbers, to Validation too."""
    for folder in sorted(inputs.k_hairstyle.glob(f"Training/**/*.{source}")):
        copy = Path(str(folder).replace("/Training/", "/Validation/").replace(source, name))
        copy.mkdir(parents=True)
        for path in folder.iterdir():
            data = path.read_bytes()
            if path.suffix == ".json":
                data = data.replace(f"{source}-0".encode(), f"{name}-1".encode()).replace(
                    source.encode(), name.encode()
                )
            renamed = path.name.replace(f"{source}-0", f"{name}-1").replace(f"{source}_0", f"{name}_1")
            (copy / renamed).write_bytes(data)


def test_a_person_in_two_spellings_is_one(inputs: TinyInputs) -> None:
    source = inputs.sources[0]
    spell(inputs, source, source.lower())
    frame = build_catalog(inputs.settings(), PROFILE).frame
    assert set(frame.source) == set(inputs.sources)
    assert (frame.source == source).sum() == 4
    assert frame[frame.source == source].split.nunique() == 1


def test_another_spelling_moves_nobody(inputs: TinyInputs, tmp_path: Path) -> None:
    source = inputs.sources[0]
    lower = source.lower()
    spell(inputs, source, lower)
    (inputs.k_hairstyle / "Training").rename(tmp_path / "later")
    shutil.copytree(tmp_path / "later", inputs.k_hairstyle / "Training", ignore=shutil.ignore_patterns(f"*{source}"))
    before = build_catalog(inputs.settings(), PROFILE).frame
    assert lower in set(before.source)
    shutil.copytree(tmp_path / "later", inputs.k_hairstyle / "Training", dirs_exist_ok=True)
    profile = Profile(name="test", inputs=InputsConfig(shard_size=2, same_person={source: inputs.sources[1]}))
    grown = build_catalog(inputs.settings(), PROFILE).frame
    assert set(grown.source) == {lower, *inputs.sources[1:]}
    assert (grown.source == lower).sum() == 4
    places = [frame.groupby("source")[["shard", "split"]].agg(set) for frame in (before, grown)]
    assert places[0].equals(places[1])
    assert set(build_catalog(inputs.settings(), profile).frame.source) == set(inputs.sources[1:])


def batch(signatures: list[int]) -> pa.RecordBatch:
    rows = [{"image_id": str(number), "accepted": True} for number in signatures]
    made = pa.RecordBatch.from_pylist(rows, schema=EXAMINED)
    made = made.append_column("signature", pa.array(signatures, pa.uint64()))
    return made.append_column("unsettled", pa.array([False] * len(signatures)))


def test_rows_come_back_in_the_order_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered, "PART_ROWS", 4)
    rows = ExaminedRows(tmp_path, "key")
    rows.add(batch([number, number]) for number in range(1, 40))
    wanted = np.array([33, 2, 17, 5, 39], np.uint64)
    for kept in (rows, ExaminedRows(tmp_path, "key")):
        assert not kept.missing(wanted).any()
        assert kept.missing(np.array([0, 40], np.uint64)).all()
        found = kept.rows(wanted).column("image_id").to_pylist()
        assert found == [str(number) for number in (33, 33, 2, 2, 17, 17, 5, 5, 39, 39)]


def test_useless_rows_are_cleared_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered, "PART_ROWS", 4)
    rows = ExaminedRows(tmp_path, "key")
    rows.add(batch([number]) for number in range(1, 101))
    ExaminedRows(tmp_path, "other").add([batch([1])])
    kept = np.array([90, 10, 50], np.uint64)
    rows.tidy(kept)
    assert rows.rows(kept).column("image_id").to_pylist() == ["90", "10", "50"]
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.parquet")] == [
        "key/part-000025.parquet"
    ]


def break_reading(monkeypatch: pytest.MonkeyPatch, path: str, error: int) -> None:
    """Reading the file ends with an error, as on a drive that is away."""
    read = reader._read

    def failing(root: Path, name: str, limit: int) -> bytes:
        if name.endswith(path):
            raise OSError(error, os.strerror(error), f"{root}/{name}")
        return read(root, name, limit)

    monkeypatch.setattr(reader, "_read", failing)


@pytest.mark.parametrize("suffix", [".jpg", ".json", "face_01_yaw_4.json", "face_01_yaw_4.png", "face_01_yaw_4.npy"])
@pytest.mark.parametrize("error", [errno.EIO, errno.EACCES, errno.ESTALE])
def test_what_could_not_be_read_is_tried_again(
    inputs: TinyInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, error: int
) -> None:
    stem = inputs.image_ids[3]
    settings = inputs.settings()
    with monkeypatch.context() as broken:
        name = stem.replace("-", "_") if suffix == ".json" else stem
        break_reading(broken, f"{name}/face_01/{suffix}" if suffix.startswith("face") else f"{name}{suffix}", error)
        first = build_catalog(settings, PROFILE)
        assert not build_catalog(settings, PROFILE).unchanged
    result = build_catalog(settings, PROFILE)
    assert (result.summary["identity"], result.summary["stage2"]) == ({"reliable": 8}, {"eligible": 8})
    assert result.summary != first.summary
    assert first.summary["files"]["unread"] == 1
    assert settings.catalog_path.read_bytes() == fresh(inputs, tmp_path)
    assert build_catalog(settings, PROFILE).unchanged


def test_only_what_could_not_be_read_is_tried_again(
    inputs: TinyInputs, examined: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        break_reading(broken, f"{inputs.image_ids[3]}.jpg", errno.ENOENT)
        build_catalog(inputs.settings(), PROFILE)
    examined.clear()
    assert build_catalog(inputs.settings(), PROFILE).summary["files"]["images_accepted"] == 8
    assert [Path(path).stem for path in examined] == [inputs.image_ids[3]]


def test_a_link_that_leads_nowhere_is_remembered(inputs: TinyInputs) -> None:
    image = next(inputs.k_hairstyle.rglob(f"{inputs.image_ids[3]}.jpg"))
    image.unlink()
    image.symlink_to("nowhere.jpg")
    assert build_catalog(inputs.settings(), PROFILE).summary["rejected"] == {"unreadable_image": 1}
    assert build_catalog(inputs.settings(), PROFILE).unchanged


def test_a_zip_that_could_not_be_read_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, kept = tmp_path / "root", tmp_path / "kept.parquet"
    root.mkdir()
    (root / "a.zip").write_bytes(make_zip({"b.zip": make_zip({"x.jpg": b"x"})}))

    def failing(*_: object) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(zipfile.ZipExtFile, "read", failing)
        assert [path for path, _, _ in list_files(root, kept).rejected] == ["a.zip"]
    assert list_files(root, kept).images == ["a.zip!/b.zip!/x.jpg"]


def test_a_fingerprint_does_not_remember_what_it_could_not_read(
    inputs: TinyInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "kept.parquet"
    whole = fingerprint_folder(inputs.root)
    unreadable, opened = next(inputs.k_hairstyle.rglob("*.json")), reader.open_regular

    def failing(path: str) -> BinaryIO:
        if path == str(unreadable):
            raise OSError(errno.EIO, "Input/output error")
        return opened(path)

    with monkeypatch.context() as broken:
        broken.setattr(fingerprint, "open_regular", failing)
        assert fingerprint_folder(inputs.root, kept) != whole
    assert fingerprint_folder(inputs.root, kept) == whole


def test_a_fingerprint_does_not_open_a_pipe(inputs: TinyInputs) -> None:
    whole = fingerprint_folder(inputs.root)
    os.mkfifo(inputs.training_face / inputs.image_ids[0] / "face_01" / "pipe.json")
    assert fingerprint_folder(inputs.root) != whole


def test_a_fingerprint_opens_only_what_changed(
    inputs: TinyInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "kept.parquet"
    first = fingerprint_folder(inputs.root, kept)
    assert first == fingerprint_folder(inputs.root)
    opened: list[str] = []
    read = fingerprint._ContentReader.__call__
    monkeypatch.setattr(
        fingerprint._ContentReader, "__call__", lambda self, path: (opened.append(path), read(self, path))[1]
    )
    assert fingerprint_folder(inputs.root, kept) == first
    assert opened == []
    label = next(inputs.k_hairstyle.rglob("*.json"))
    label.write_bytes(label.read_bytes() + b" ")
    assert fingerprint_folder(inputs.root, kept) != first
    assert opened == [label.relative_to(inputs.root).as_posix()]


def test_a_fingerprint_sees_a_mended_hole(inputs: TinyInputs) -> None:
    path = next(inputs.k_hairstyle.rglob("*.jpg")).with_name("hole.jpg")
    content = np.random.default_rng(0).bytes(80_000)
    path.write_bytes(content[:27_000] + bytes(4_000) + content[31_000:])
    os.utime(path, ns=(1, 1))
    before = fingerprint_folder(inputs.root)
    path.write_bytes(content)
    os.utime(path, ns=(1, 1))
    assert fingerprint_folder(inputs.root) != before


def test_an_image_in_a_zip_whose_damage_was_mended_is_accepted(inputs: TinyInputs, tmp_path: Path) -> None:
    """The zip's directory says the same before and after."""
    archive = tmp_path / "zipped" / "Training.zip"
    archive.parent.mkdir()
    with zipfile.ZipFile(archive, "w") as stored:
        for path in filter(Path.is_file, inputs.k_hairstyle.rglob("*.*")):
            stored.write(path, path.relative_to(inputs.k_hairstyle))
    whole, photo = archive.read_bytes(), next(inputs.k_hairstyle.rglob("*.jpg")).read_bytes()
    at = whole.index(photo[-300:-240])
    settings = inputs.settings(k_hairstyle_root=archive.parent)
    archive.write_bytes(whole[:at] + bytes(60) + whole[at + 60 :])
    assert list(build_catalog(settings, PROFILE).frame.reason.dropna()) == ["unreadable_image"]
    archive.write_bytes(whole)
    assert build_catalog(settings, PROFILE).frame.accepted.all()
