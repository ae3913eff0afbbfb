"""The drawing of a training's losses."""

import base64
import json
import math
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from hair_pipeline.orchestration.curves import MAX_POINTS, drawn, read_losses, thinned
from hair_pipeline.orchestration.metadata import MAX_THUMBNAIL_BYTES, loss_curves

SVG = "{http://www.w3.org/2000/svg}"
FINITE = st.floats(-1e6, 1e6)


def write(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines))


def test_the_losses_of_a_run_become_one_picture(tmp_path):
    lines = [
        json.dumps({"step": i, "loss/l2": 1 / (i + 1), "loss/lpips": 0.5, "learning_rate": 1}) for i in range(5000)
    ]
    write(tmp_path / "part" / "losses.jsonl", [*lines, '{"step": 5000, "loss/l2'])
    found = loss_curves(tmp_path)
    data = found["losses"].value.split("base64,")[1].rstrip(")")
    assert len(data) < MAX_THUMBNAIL_BYTES
    picture = ElementTree.fromstring(base64.b64decode(data))
    texts = [text.text for text in picture.iter(f"{SVG}text")]
    assert [text.split(":")[0] for text in texts] == ["l2", "lpips"]
    (falling, flat) = picture.iter(f"{SVG}polyline")
    heights = [float(point.split(",")[1]) for point in falling.get("points").split()]
    assert heights == sorted(heights)  # downwards
    assert len({point.split(",")[1] for point in flat.get("points").split()}) == 1


def test_a_run_without_losses_has_no_picture(tmp_path):
    assert loss_curves(tmp_path) == {}
    write(tmp_path / "losses.jsonl", [json.dumps({"step": 0, "loss/l2": None}), '{"loss/l2": NaN}', "torn"])
    assert read_losses(tmp_path / "losses.jsonl") == {}
    assert loss_curves(tmp_path) == {}


@given(st.lists(FINITE, min_size=1, max_size=600))
def test_any_curve_stays_in_its_frame_and_keeps_its_mean(values):
    points = list(enumerate(values))
    thin = thinned(points)
    assert len(thin) <= MAX_POINTS
    assert min(values) - 1e-6 <= min(loss for _, loss in thin) <= max(loss for _, loss in thin) <= max(values) + 1e-6
    picture = ElementTree.fromstring(drawn({"<a & b>": points}))
    for line in picture.iter(f"{SVG}polyline"):
        for point in line.get("points").split():
            x, y = map(float, point.split(","))
            assert 0 <= x <= 250
            assert 20 <= y <= 130
            assert math.isfinite(x + y)
