"""From drawn pictures to rows of numbers.

Belongs here: which metric applies to which case. Does not belong here: the metrics' formulas (`metrics`), drawing
(`contenders`), and what the rows say together (`results`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from hair_pipeline.cores import cpu_count
from hair_pipeline.evaluation.cases import Case
from hair_pipeline.evaluation.contenders import Drawing
from hair_pipeline.evaluation.judges import Judges
from hair_pipeline.evaluation.metrics import distribution, learned, pixels, seam
from hair_pipeline.evaluation.regions import boundary_ring, masked_crop

STAND_IN_SIDE, INCEPTION_SIDE = 128, 299
NAN = float("nan")


@dataclass
class Measurements:
    """What one model's pictures gave.

    Attributes:
        rows: one dict per picture, columns of per_image.parquet.
        features: of own-style pictures, (n, D) each: `<region>_real` and `<region>_made`, with `<region>_people`
            (n,), for the regions ring and image.
        distances: between these sets, by metric, once they were asked for.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    features: dict[str, np.ndarray] = field(default_factory=dict)
    distances: dict[str, distribution.SetDistance] = field(default_factory=dict)

    def frame(self) -> pd.DataFrame:
        return pd.DataFrame(self.rows)


def measure(cases: Sequence[Case], drawn: Mapping[str, Sequence[Drawing]], judges: Judges) -> dict[str, Measurements]:
    """Measure a batch of pictures that one or several models drew.

    Args:
        drawn: model -> one drawing per case.
    """
    real = _look_at_photos(cases, judges)
    return {name: _measure_one(cases, drawings, judges, real) for name, drawings in drawn.items()}


@dataclass(frozen=True)
class _Photos:
    """What the judges see in the photos themselves, the same for every model.

    Attributes:
        boxes: place in the batch -> face box, for reliable faces.
        faces: column suffix -> embeddings of these faces.
        curl: class seen in each photo, or None. own: places of own-style cases.
        regions: region -> (places, features).
        borders: of each photo's repaint mask.
    """

    boxes: dict[int, np.ndarray]
    faces: dict[str, np.ndarray]
    curl: np.ndarray | None
    regions: dict[str, tuple[list[int], np.ndarray]]
    borders: list[seam.Border]


def _look_at_photos(cases: Sequence[Case], judges: Judges) -> _Photos:
    boxes = {i: case.sample.box for i, case in enumerate(cases) if case.judged_identity and case.sample.box is not None}
    photos = [cases[i].sample.image for i in boxes]
    faces = {
        suffix: learned.face_embeddings(network, photos, list(boxes.values()), judges.device)
        for suffix, network in _recognisers(judges).items()
        if boxes
    }
    classifier = judges.classifier.network
    curl = None
    if classifier is not None:
        curl = learned.predicted_classes(classifier, [c.sample.image for c in cases], judges.device)["curl"]
    regions = {}
    if judges.extractor.network is not None:
        for region in ("ring", "image"):
            places = [i for i, case in enumerate(cases) if not case.transfer and _mask_of(region, case).any()]
            if places:
                crops = [_crop(region, cases[i], cases[i].sample.image, judges) for i in places]
                regions[region] = places, distribution.extract(judges.extractor.network, crops, judges.device)
    with _threads() as pool:
        borders = list(pool.map(lambda case: seam.Border(case.sample.image, case.repaint_mask), cases))
    return _Photos(boxes, faces, curl, regions, borders)


def _threads() -> ThreadPoolExecutor:
    """One per core: numpy, scipy and OpenCV let go of the interpreter."""
    return ThreadPoolExecutor(cpu_count())


def _recognisers(judges: Judges) -> dict[str, Any]:
    """Column suffix -> recogniser, of those that are there."""
    known = {"": judges.recogniser.network, "_second": judges.second.network}
    return {suffix: network for suffix, network in known.items() if network is not None}


def _mask_of(region: str, case: Case) -> np.ndarray:
    if region == "image":
        return np.ones_like(case.sample.hair_mask)
    return boundary_ring(case.sample.hair_mask, case.sample.face_mask)


def _crop(region: str, case: Case, picture: np.ndarray, judges: Judges) -> np.ndarray:
    side = STAND_IN_SIDE if judges.extractor.stand_in else INCEPTION_SIDE
    return masked_crop(picture, _mask_of(region, case), side)


def _measure_one(cases: Sequence[Case], drawings: Sequence[Drawing], judges: Judges, real: _Photos) -> Measurements:
    with _threads() as pool:
        rows = list(pool.map(_pixel_row, cases, drawings, real.borders))
    _add_identity(rows, drawings, judges, real)
    _add_lpips(rows, cases, drawings, judges)
    _add_classes(rows, drawings, judges, real)
    features = {}
    for region, (places, values) in real.regions.items():
        crops = [_crop(region, cases[i], drawings[i].final, judges) for i in places]
        features[f"{region}_real"] = values
        features[f"{region}_made"] = distribution.extract(judges.extractor.network, crops, judges.device)
        features[f"{region}_people"] = np.array([cases[i].sample.person for i in places])
    return Measurements(rows, features)


def _pixel_row(case: Case, drawing: Drawing, border: seam.Border) -> dict[str, Any]:
    sample = case.sample
    row: dict[str, Any] = {
        "case": case.key,
        "image_id": sample.image_id,
        "person": sample.person,
        "style_from": case.reference.image_id,
        "transfer": case.transfer,
        "seed": case.seed,
        "identity_raw": NAN,
        "identity": NAN,
        "identity_second_raw": NAN,
        "identity_second": NAN,
        "lpips_hair": NAN,
        "psnr_hair": NAN,
        "ssim_hair": NAN,
        "own_curl": case.own_curl,
        "curl_asked": case.curl,
        "curl_seen": None,
        "bangs_asked": case.bangs,
        "bangs_seen": None,
        "curl_seen_real": None,
        "leakage_swap": NAN,
        "halo": border.halo(drawing.final),
        "rim_sharpness": seam.rim_sharpness(sample.image, drawing.final, case.repaint_mask, sample.hair_mask),
        "untouched_changed": seam.untouched_share_changed(sample.image, drawing.final, case.repaint_mask),
    }
    if not case.transfer:
        row["psnr_hair"] = pixels.psnr(sample.image, drawing.final, sample.hair_mask)
        row["ssim_hair"] = pixels.ssim(pixels.similarity_map(sample.image, drawing.final), sample.hair_mask)
    model_own = drawing.final if drawing.raw is None else drawing.raw
    background = ~(case.repaint_mask | sample.face_mask)
    row["psnr_background"] = pixels.psnr(sample.image, model_own, background)
    row["ssim_background"] = pixels.ssim(pixels.similarity_map(sample.image, model_own), background)
    return row


def _add_identity(rows: list[dict[str, Any]], drawings: Sequence[Drawing], judges: Judges, real: _Photos) -> None:
    """The cosine of every reliable face, by each recogniser; embeddings of different ones never meet."""
    if not real.boxes:
        return
    places = {i: place for place, i in enumerate(real.boxes)}
    for suffix, network in _recognisers(judges).items():
        columns: dict[str, list[np.ndarray | None]] = {
            f"identity{suffix}_raw": [d.raw for d in drawings],
            f"identity{suffix}": [d.final for d in drawings],
        }
        for column, pictures in columns.items():
            chosen = {i: picture for i in real.boxes if (picture := pictures[i]) is not None}
            if not chosen:
                continue
            boxes = [real.boxes[i] for i in chosen]
            output = learned.face_embeddings(network, list(chosen.values()), boxes, judges.device)
            values = learned.identity_similarity(real.faces[suffix][[places[i] for i in chosen]], output)
            for i, value in zip(chosen, values, strict=True):
                rows[i][column] = float(value)


def _add_lpips(rows: list[dict[str, Any]], cases: Sequence[Case], drawings: Sequence[Drawing], judges: Judges) -> None:
    own = [i for i, case in enumerate(cases) if not case.transfer]
    if judges.perceptual.network is None or not own:
        return
    values = learned.hair_lpips(
        judges.perceptual.network,
        [cases[i].sample.image for i in own],
        [drawings[i].final for i in own],
        [cases[i].sample.hair_mask for i in own],
        judges.device,
    )
    for i, value in zip(own, values, strict=True):
        rows[i]["lpips_hair"] = float(value)


def _add_classes(rows: list[dict[str, Any]], drawings: Sequence[Drawing], judges: Judges, real: _Photos) -> None:
    if judges.classifier.network is None or real.curl is None:
        return
    seen = learned.predicted_classes(judges.classifier.network, [d.final for d in drawings], judges.device)
    for i, row in enumerate(rows):
        row["curl_seen"], row["bangs_seen"] = int(seen["curl"][i]), int(seen["bangs"][i])
        row["curl_seen_real"] = int(real.curl[i])
