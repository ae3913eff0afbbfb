"""A handful of photos as a user may bring them: two people, one view, blurred faces, landscape format, large."""

from pathlib import Path

import numpy as np
import pytest

from hair_pipeline.files import read_image
from hair_pipeline.inputs.catalog import build_catalog
from hair_pipeline.inputs.samples import load_sample
from hair_pipeline.processing.shards import (
    cut_hair_patches,
    gather_identity_embeddings,
    make_bald_images,
    make_hair_only_images,
)
from hair_pipeline.profile import load_profile
from hair_pipeline_tests.inputs import tiny_inputs
from hair_pipeline_tests.inputs.tiny_inputs import TinyPicture, draw_person, write_tiny_inputs


def landscape(person: int, view: int = 0, **options: object) -> TinyPicture:
    """A square person between two wide borders: 4:3."""
    square = draw_person(person, view, **options)  # type: ignore[arg-type]
    border = square.photo.shape[0] // 6
    sides = ((0, 0), (border, border))
    x1, y1, x2, y2 = square.box
    return TinyPicture(
        np.pad(square.photo, (*sides, (0, 0)), mode="edge"),
        np.pad(square.hair_mask, sides),
        np.pad(square.face_mask, sides),
        (x1 + border, y1, x2 + border, y2),
    )


def test_two_people_with_blurred_faces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny_inputs, "draw_person", landscape)
    inputs = write_tiny_inputs(tmp_path, people=2, views=1, size=1536, blurred_people=2)
    settings, profile = inputs.settings(), load_profile("rtx24gb")
    frame = build_catalog(settings, profile).frame
    assert sorted(frame.split) == ["train", "validation"]
    assert frame.stage2.all()
    assert set(frame.identity_reason) == {"blurred_face"}
    assert (frame.width == 2048).all()
    assert (frame.scale == 0.25).all()
    assert (frame.offset_y == 64).all()
    assert gather_identity_embeddings("shard_0000", settings, profile).numbers["reliable"] == 0
    make_bald_images("shard_0000", settings, profile)
    make_hair_only_images("shard_0000", settings, profile)
    patches = cut_hair_patches("shard_0000", settings, profile)
    assert patches.numbers["patches_128"] >= 8
    for row in frame.itertuples():
        sample = load_sample(row, settings)
        assert sample.image.shape == (512, 512, 3)
        assert sample.box is not None
        assert not sample.hair_mask[:64].any()
        bald = read_image(settings.processed / "bald_images" / "shard_0000" / f"{row.image_id}.jpg")
        assert np.abs(bald[:60].astype(int) - 128).max() <= 3
