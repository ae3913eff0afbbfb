"""K-Hairstyle's Korean attribute values and their English names: the only place where the originals stand.

Belongs here: the tables, both ways, and the project's own grouping of curls and bangs into classes.
Does not belong here: parsing of labels (`inputs.labels`).
"""

from __future__ import annotations

SEX = {"남": "male", "여": "female"}
LENGTH = {
    "남자": "mens",
    "여숏": "womens_short",
    "단발": "bob",
    "중발": "medium",
    "장발": "long",
}
CURL = {"X": "none", "C": "C", "CC": "CC", "CS": "CS", "S": "S", "SS": "SS", "S3": "S3", "SC": "SC", "J": "J"}
BANGS = {
    "해당없음": "none",
    "풀뱅": "full",
    "시스루": "see_through",
    "처피뱅": "choppy",
    "살짝 넘긴스타일": "swept",
    "페이스라인에 통합": "along_face_line",
    "기타(남자 내림머리)": "mens_down",
}
HAIR_LOSS = {"탈모아님": "none", "초기탈모": "early", "부분탈모": "partial", "탈모": "loss"}
SIDE = {"원블럭": "one_block", "투블럭": "two_block", "해당없음": "none"}
PARTING = {"가르마없음": "none"} | {f"{n}:{10 - n}": f"{n}:{10 - n}" for n in range(1, 10)}
COLOR = {
    "블랙": "black",
    "자연갈색": "natural_brown",
    "황갈색": "yellow_brown",
    "적갈색": "red_brown",
    "애쉬브라운": "ash_brown",
    "핑크브라운": "pink_brown",
    "옴브레": "ombre",
    "투톤": "two_tone",
    "기타": "other",
}
EXCEPTIONAL = {
    "해당없음": "none",
    "묶음머리": "tied",
    "넘긴머리": "swept",
    "악성곱슬머리": "very_curly",
    "땋은머리": "braided",
    "기타악세사리": "accessories",
    "군인머리(반삭)": "buzz",
    "기타": "other",
}
HAIR_WIDTH = {"굵음": "thick", "보통": "medium", "얇음": "thin"}
NATURAL_CURL = {"생머리": "straight", "반곱슬": "wavy", "곱슬": "curly", "강곱슬": "very_curly"}
DAMAGE = {"버진": "virgin", "건강모": "healthy", "손상모": "damaged", "극손상모": "very_damaged"}
VERTICAL = {"상": "high", "중": "mid", "하": "low"}
BASE_STYLE_TYPE = {"단": "short", "장": "long"}
BEFORE_AFTER = {"before": "before", "after": "after", "none": "none"}
BASE_STYLE = {
    "가르마": "parted",
    "기타남자스타일": "other_mens",
    "기타레이어드": "other_layered",
    "기타여자스타일": "other_womens",
    "남자일반숏": "mens_short",
    "댄디": "dandy",
    "루프": "loop",
    "리젠트": "regent",
    "리프": "leaf",
    "미스티": "misty",
    "바디": "body",
    "베이비": "baby",
    "보니": "bonnie",
    "보브": "bob",
    "빌드": "build",
    "소프트투블럭댄디": "soft_two_block_dandy",
    "숏단발": "short_bob",
    "쉐도우": "shadow",
    "쉼표": "comma",
    "스핀스왈로": "spin_swallow",
    "시스루댄디": "see_through_dandy",
    "애즈": "as",
    "에어": "air",
    "여자일반숏": "womens_short",
    "원랭스": "one_length",
    "원블럭댄디": "one_block_dandy",
    "테슬": "tassel",
    "포마드": "pomade",
    "플리츠": "pleats",
    "허쉬": "hush",
    "히피": "hippie",
}
"""The 31 base styles; the release numbers them 0001-0031 in this order."""

ATTRIBUTES: dict[str, tuple[str, dict[str, str]]] = {
    "sex": ("sex", SEX),
    "base_style": ("basestyle", BASE_STYLE),
    "base_style_type": ("basestyle-type", BASE_STYLE_TYPE),
    "length": ("length", LENGTH),
    "curl": ("curl", CURL),
    "bangs": ("bang", BANGS),
    "hair_loss": ("loss", HAIR_LOSS),
    "side": ("side", SIDE),
    "parting": ("partition", PARTING),
    "color": ("color", COLOR),
    "exceptional": ("exceptional", EXCEPTIONAL),
    "hair_width": ("hair-width", HAIR_WIDTH),
    "natural_curl": ("natural-curl", NATURAL_CURL),
    "damage": ("damage", DAMAGE),
    "vertical": ("vertical", VERTICAL),
    "before_after": ("before-after", BEFORE_AFTER),
}
"""English column name -> (label key, Korean-to-English table)."""

CURL_CLASSES = ("straight", "wavy", "curly")
CURL_CLASS = {
    "none": "straight",
    "J": "straight",
    "C": "straight",
    "CC": "wavy",
    "CS": "wavy",
    "SC": "wavy",
    "S": "wavy",
    "SS": "curly",
    "S3": "curly",
}
"""Curl -> texture class. The grouping is this project's own: J and C bend only the ends of straight hair."""

BANGS_CLASSES = ("no_bangs", "bangs")
HAS_BANGS = {
    "none": False,
    "swept": False,
    "along_face_line": False,
    "full": True,
    "see_through": True,
    "choppy": True,
    "mens_down": True,
}
"""Bangs -> does hair cover the forehead? The grouping is this project's own."""


def korean(attribute: str, english: str) -> str:
    """The Korean label value of an English one, for writers of labels.

    Raises:
        KeyError: no such attribute or value.
    """
    _, table = ATTRIBUTES[attribute]
    return {value: key for key, value in table.items()}[english]
