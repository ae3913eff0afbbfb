"""The closed lists of reasons: why a file is left out, why a face or an identity is not used.

Belongs here: every reason a catalog or manifest may name, with its meaning. Does not belong here: the checks that
find them, and errors that stop a command (`errors`).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Self


class Described(StrEnum):
    """A string enumeration whose members carry a sentence for the reader."""

    description: str

    def __new__(cls, value: str, description: str) -> Self:
        member = str.__new__(cls, value)
        member._value_ = value
        member.description = description
        return member


class Reason(Described):
    """Why a file under the K-Hairstyle root is not an accepted image."""

    JSON_AS_IMAGE = "json_as_image", "named like an image, but it is a JSON label"
    NOT_AN_IMAGE = "not_an_image", "named like an image, but its first bytes are of no known image format"
    TRUNCATED_IMAGE = "truncated_image", "the image ends early, or data in it are gone"
    UNREADABLE_IMAGE = "unreadable_image", "the image cannot be read, or has too many pixels"
    IMAGE_WITHOUT_LABEL = "image_without_label", "no label names this image, or another file has it"
    LABEL_WITHOUT_IMAGE = "label_without_image", "the image this label names was not found"
    UNREADABLE_LABEL = "unreadable_label", "the label is not UTF-8 JSON"
    NOT_A_LABEL = "not_a_label", "JSON, but not a K-Hairstyle label"
    PATH_OUTSIDE_ROOT = "path_outside_root", "a label's filename, or an archive entry's name, climbs out of its folder"
    NO_SOURCE = "no_source", "neither the label nor the folder names a person"
    DUPLICATE_IMAGE = "duplicate_image", "another accepted image has the same name (e.g. Training and Validation)"
    DUPLICATE_LABEL = "duplicate_label", "another label names the same image"
    NO_HAIR_MASK = "no_hair_mask", "neither training_face nor polygon1 gives a usable hair mask"
    OTHER_SET = "other_set", "the same image is accepted from another of the release's sets (raw, hq, mq)"
    ARCHIVE = "archive", "an archive other than zip, or a part of one: unpack it"
    UNREADABLE_ARCHIVE = "unreadable_archive", "a zip, or an entry of it, that is damaged or encrypted"
    EMPTY_ARCHIVE = "empty_archive", "a zip without any file in it"
    SUSPICIOUS_ARCHIVE = "suspicious_archive", "a zip entry that unpacks to far too much, or is nested too deep"
    DUPLICATE_ENTRY = "duplicate_entry", "the zip holds this name more than once; the first entry counts"
    BAD_FILE_NAME = "bad_file_name", "the name is not UTF-8, too long, or has a folder ending in ! in an archive"
    UNREADABLE_FOLDER = "unreadable_folder", "the folder cannot be listed: what is in it, nobody knows"
    UNFORESEEN = "unforeseen", "examining it failed in a way that the program does not know; the detail says how"
    UNKNOWN_FILE = "unknown_file", "neither an image nor a label by its extension, or no regular file"


class FaceReason(Described):
    """Why an image has no usable training_face face, or no usable masks from it."""

    NO_OUTPUT = "no_output", "training_face wrote nothing for this image (most back views)"
    UNREADABLE_FOLDER = "unreadable_folder", "the folder of its output cannot be listed"
    BAD_JSON = "bad_json", "the face's JSON cannot be read or lacks a bounding box"
    BAD_BOX = "bad_box", "the bounding box is empty or outside the photo"
    LOW_CONFIDENCE = "low_confidence", "every face found is below the confidence limit"
    PATH_OUTSIDE_ROOT = "path_outside_root", "a path in the face's JSON climbs out of the training_face root"
    SHEET_MISSING = "sheet_missing", "the 2x2 sheet is missing"
    SHEET_UNREADABLE = "sheet_unreadable", "the 2x2 sheet is not a readable image"
    SHEET_WRONG_SIZE = "sheet_wrong_size", "the sheet is not twice the photo's size: made from another photo"
    SHEET_OTHER_VALUES = "sheet_other_values", "the sheet's mask quadrant holds values other than 0, 128 and 255"
    SHEET_EMPTY = "sheet_empty", "the sheet's mask quadrant is all gray: the parser found nothing"
    NO_FACE_MASK = "no_face_mask", "the sheet holds no face region (or hardly any)"
    NO_HAIR_IN_SHEET = "no_hair_in_sheet", "the sheet holds no hair region (or hardly any)"
    MASKS_DISAGREE = "masks_disagree", "the sheet's hair is not where polygon1 says; the outline drawn by hand is used"


class IdentityReason(Described):
    """Why an identity embedding is not relied on: no identity loss and no identity metric on this image."""

    NO_FACE = "no_face", "no usable training_face face"
    BLURRED_FACE = "blurred_face", "the release blurred this face (polygon2): the embedding describes a smear"
    LOW_CONFIDENCE = "low_confidence", "the face detector was not sure enough"
    UNKNOWN_POSE = "unknown_pose", "the face's yaw is missing"
    LARGE_YAW = "large_yaw", "the face is turned away beyond the limit"
    OTHER_MODEL = "other_model", "the embedding is not InsightFace's: it lives in another space"
    BAD_EMBEDDING = "bad_embedding", "the embedding is missing, of the wrong length or norm, or holds NaN"
