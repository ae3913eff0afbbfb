"""The catalog's summary as tables for a terminal.

Belongs here: layout and the reasons' meanings beside the numbers. Does not belong here: counting (`summary`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby

from rich.table import Table

from hair_pipeline.inputs.reasons import Described, FaceReason, IdentityReason, Reason
from hair_pipeline.inputs.summary import Share, Summary

_TITLES: dict[str, tuple[str, type[Described] | None]] = {
    "files": ("Files", None),
    "rejected": ("Rejected rows, by reason", Reason),
    "people": ("People", None),
    "mask_origin": ("Accepted images, by origin of the hair mask", None),
    "mask_agreement": ("training_face's hair mask against polygon1", None),
    "identity": ("Accepted images, by identity", IdentityReason),
    "face": ("Accepted images, by training_face face", FaceReason),
    "stage2": ("Accepted images, by eligibility for Stage 2", FaceReason),
    "split": ("Accepted images, by side of the split", None),
    "shards": ("Shards", None),
    "photo_size": ("Accepted images, by size of the photo", None),
    "patches_from": ("Where patches are cut from", None),
    "label_problems": ("Label values that were not understood", None),
}
_MEANINGS = {
    "reliable": "may be used for the identity loss and metric",
    "eligible": "takes part in Stage 2",
    "usable": "face and masks can be used",
    "training_face": "the sheet's mask quadrant",
    "polygon": "polygon1 of the label",
    "in_training_and_validation": "stand in both of the release's halves, which are not used",
    "found": "images, labels and others; a zip stands for its entries",
    "faces_without_image": "outputs of training_face whose name is no image's",
    "unread": "there, and not readable this time: tried again by the next run",
}
_MAX_ROWS = 40


def summary_tables(summary: Summary, *, attributes: bool = True) -> Iterator[Table]:
    """Tables to print, one per group; with `attributes` one more that compares train and validation."""
    for group, (title, reasons) in _TITLES.items():
        counts = summary.counts.get(group)
        if counts:
            yield _counts_table(title, counts, reasons)
    if summary.mask_iou:
        table = Table(
            "quantile", "IoU", title="Agreement of training_face's hair mask with polygon1", title_justify="left"
        )
        for level, iou in summary.mask_iou.items():
            table.add_row(level, f"{iou:.3f}")
        yield table
    if attributes:
        yield _shares_table(summary)


def _counts_table(title: str, counts: Mapping[str, int], reasons: type[Described] | None) -> Table:
    table = Table("", "count", "", title=title, title_justify="left", show_header=False)
    table.columns[1].justify = "right"
    known = {member.value: member.description for member in reasons} if reasons else {}
    for name, count in list(counts.items())[:_MAX_ROWS]:
        table.add_row(name, f"{count:,}", known.get(name) or _MEANINGS.get(name, ""))
    if len(counts) > _MAX_ROWS:
        table.add_row("...", "", f"{len(counts) - _MAX_ROWS} more, see --json")
    return table


def _shares_table(summary: Summary) -> Table:
    table = Table("attribute", "value", "images", "train", "validation", "difference", title_justify="left")
    table.title = "Accepted images, by attribute: share in train and in validation"
    for column in table.columns[2:]:
        column.justify = "right"
    for attribute, shares in groupby(summary.shares, key=lambda share: share.attribute):
        counts = summary.counts[attribute]
        for place, share in enumerate(sorted(shares, key=lambda share: -counts.get(share.value, 0))):
            table.add_row(attribute if place == 0 else "", *_share_cells(share, counts.get(share.value, 0)))
        table.add_section()
    return table


def _share_cells(share: Share, count: int) -> tuple[str, ...]:
    return share.value, f"{count:,}", f"{share.train:.1%}", f"{share.validation:.1%}", f"{share.difference:+.1%}"
