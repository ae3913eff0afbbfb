"""The label parser: every form formats.md names is read, and nothing else than `BadLabel` is ever raised."""

import contextlib
import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hair_pipeline.inputs.labels import (
    BadLabel,
    base_style_of_folder,
    clean_text,
    parse_label,
    parse_names,
    parse_outlines,
)
from hair_pipeline.inputs.reasons import Reason
from hair_pipeline.vocabulary import ATTRIBUTES
from hair_pipeline_tests.inputs.tiny_inputs import draw_person, label

TEXT = st.text(st.characters(exclude_categories=()), max_size=12)
JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=()), max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
KEYS = st.sampled_from(
    [key for key, _ in ATTRIBUTES.values()] + ["polygon1", "polygon2", "rgb", "age", "width", "front"]
)


def encoded(**changes: object) -> bytes:
    values = {"filename": "CP000001-001.jpg", "source": "CP000001"} | changes
    return json.dumps(values, ensure_ascii=False).encode()


def test_a_written_label_is_read_back() -> None:
    picture = draw_person(1, size=64)
    read = parse_label(json.dumps(label("CP000007", "CP000007-003.jpg", 1, picture), ensure_ascii=False).encode())
    assert (read.filename, read.source, read.width, read.height) == ("CP000007-003.jpg", "CP000007", 64, 64)
    assert (read.attributes["curl"], read.attributes["bangs"], read.attributes["length"]) == ("S", "full", "bob")
    assert (read.curl_class, read.has_bangs, read.front, read.age) == ("wavy", True, True, 21)
    assert read.hair
    assert not read.blurred
    assert not read.face_blurred
    assert not read.problems


@given(st.binary(max_size=200))
def test_any_bytes_give_a_label_or_bad_label(data: bytes) -> None:
    for parse in (parse_label, parse_names):
        with contextlib.suppress(BadLabel):
            parse(data)


@given(st.dictionaries(KEYS | st.text(max_size=10), JSON_VALUES, max_size=8))
def test_any_values_are_survived(values: dict[str, object]) -> None:
    data = json.dumps({"filename": "CP000001-001.jpg"} | values).encode()
    try:
        read = parse_label(data)
    except BadLabel:
        return
    "; ".join(read.problems).encode()
    for column, value in read.attributes.items():
        assert value is None or value in ATTRIBUTES[column][1].values()


@given(st.sampled_from([(c, k, w, e) for c, (k, t) in ATTRIBUTES.items() for w, e in t.items()]), st.data())
def test_every_korean_word_survives_its_manglings(case: tuple[str, str, str, str], data: st.DataObject) -> None:
    column, key, word, english = case
    nfd, spaced = unicodedata.normalize("NFD", word), f" {word}\n"
    mangled = data.draw(
        st.sampled_from([word, nfd, spaced, word.encode().decode("latin-1"), nfd.encode().decode("latin-1")])
    )
    assert parse_label(encoded(**{key: mangled})).attributes[column] == english


@pytest.mark.parametrize("missing", ["nan", "none", "", " ", "NaN", None, [], {}])
def test_missing_values(missing: object) -> None:
    assert clean_text(missing) is None
    keys = ("width", "height", "front", "horizontal", "age", "curl", "rgb")
    read = parse_label(encoded(**dict.fromkeys(keys, missing), polygon1=missing if missing != {} else None))
    assert (read.attributes["curl"], read.rgb, read.age, read.hair) == (None, None, None, [])
    assert (read.width, read.height, read.front, read.horizontal) == (None, None, None, None)
    assert not read.problems


@pytest.mark.parametrize(
    "polygon",
    [
        '[[{"x":1,"y":2},{"x":3',
        {"x": 10, "y": 10, "w": 40, "h": 40},
        [{"x": 10, "w": 40}],
        [[[1, 1], [5, 5]]],
        [[[1, 1], [5, 1], [5, 5]], [{"x": None}] * 3],
    ],
)
def test_a_polygon_that_cannot_be_read_still_says_that_the_face_is_blurred(polygon: object) -> None:
    for parse in (parse_label, parse_outlines):
        read = parse(encoded(polygon2=polygon))
        assert read.face_blurred
        assert not read.blur_is_outlined
        assert [problem.split(":")[0] for problem in read.problems] == ["polygon2"]


@pytest.mark.parametrize("polygon", ["[]", "", None, [], "nan", "none", "[[]]"])
def test_no_polygon_says_that_the_face_is_not_blurred(polygon: object) -> None:
    read = parse_label(encoded(polygon2=polygon))
    assert not read.face_blurred
    assert read.blur_is_outlined


def test_none_is_a_value_of_before_after_only() -> None:
    read = parse_label(encoded(**{"before-after": "none", "bang": "none"}))
    assert read.attributes["before_after"] == "none"
    assert read.attributes["bangs"] is None


def test_surrogates_can_be_stored() -> None:
    read = parse_label(encoded(rgb='"\\ud800"', polygon1='"\\ud800"', color="\\ud800"))
    assert len(read.problems) == 3
    "; ".join(read.problems).encode()


def test_unknown_values_are_reported() -> None:
    read = parse_label(encoded(curl="Q9", color="초록", polygon1="[[1]"))
    assert read.attributes["curl"] is None
    assert [problem.split(":")[0] for problem in read.problems] == ["curl", "color", "polygon1"]


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("width", "5l2", "5l2"),
        ("height", -3, "-3"),
        ("width", True, "True"),
        ("front", "maybe", "maybe"),
        ("horizontal", "ca. 90", "ca. 90"),
        ("horizontal", "inf", "inf"),
        ("age", "스물", "스물"),
        ("age", "\x00", "?"),
        ("curl", ["S"], "['S']"),
        ("length", {"a": 1}, "{'a': 1}"),
        ("sex", True, "True"),
    ],
)
def test_a_value_that_is_not_understood_is_reported(key: str, value: object, shown: str) -> None:
    assert parse_label(encoded(**{key: value})).problems == (f"{key}: {shown}",)


def test_a_size_that_is_not_understood_is_reported_with_the_outlines_too() -> None:
    assert parse_outlines(encoded(width="5l2", height="nan")).problems == ("width: 5l2",)


@pytest.mark.parametrize(
    "filename", ["../../etc/passwd.jpg", "/etc/passwd.jpg", "a/../../b.jpg", "C:\\x.jpg", "..\\x.jpg"]
)
def test_a_filename_that_climbs_out_is_refused(filename: str) -> None:
    with pytest.raises(BadLabel) as caught:
        parse_label(encoded(filename=filename))
    assert caught.value.reason == Reason.PATH_OUTSIDE_ROOT


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"[1, 2]", Reason.NOT_A_LABEL),
        (b"{}", Reason.NOT_A_LABEL),
        (b'{"a": 1}', Reason.NOT_A_LABEL),
        (b"{", Reason.UNREADABLE_LABEL),
        (b"\xff\xfe{", Reason.UNREADABLE_LABEL),
        (b"[" * 100_000, Reason.UNREADABLE_LABEL),
        (b"", Reason.UNREADABLE_LABEL),
    ],
)
def test_what_is_not_a_label(data: bytes, reason: Reason) -> None:
    with pytest.raises(BadLabel) as caught:
        parse_label(data)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("value", "expected"),
    [([1, 2, 3], (1, 2, 3)), ("[1.5, 2, 3]", (1.5, 2, 3)), ("(1, 2, 3)", (1, 2, 3)), ("[1, 2]", None), ("blue", None)],
)
def test_rgb_forms(value: object, expected: tuple[float, ...] | None) -> None:
    assert parse_label(encoded(rgb=value)).rgb == expected


def test_a_byte_order_mark_is_tolerated() -> None:
    assert parse_label(b"\xef\xbb\xbf" + encoded()).source == "CP000001"


def test_base_style_of_folder() -> None:
    assert base_style_of_folder("0001.가르마") == "parted"
    assert base_style_of_folder(unicodedata.normalize("NFD", "0001.가르마")) == "parted"
    assert base_style_of_folder("0031.???") == "hippie"
    assert base_style_of_folder("0032.x") is None
    assert base_style_of_folder("images") is None
