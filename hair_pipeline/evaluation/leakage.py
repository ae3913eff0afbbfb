"""Whether a model's result still depends on the hair that was there before.

Belongs here: the swap test (another person's hair under the same mask must give the same result) and the test
whether the old curl shows through in transfers. Does not belong here: what bald images give away by themselves.
"""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pandas as pd

from hair_pipeline.evaluation.cases import Case
from hair_pipeline.evaluation.contenders import Drawing
from hair_pipeline.evaluation.regions import bounding_box
from hair_pipeline.evaluation.statistics import Estimate, mean_by_person, missing
from hair_pipeline.processing.bald import fill
from hair_pipeline.profile import BaldConfig


def swap_hair(case: Case, config: BaldConfig) -> Case:
    """The same case from a photo in which the reference's hair stands in the place of the person's own.

    Mask, style, identity and seed stay; the bald image is made anew from the changed photo. So whatever differs in
    the result comes from the old hair.

    Args:
        case: a transfer; its reference lends the hair.
    """
    sample, donor = case.sample, case.reference
    x, y, width, height = bounding_box(sample.hair_mask)
    u, v, donor_width, donor_height = bounding_box(donor.hair_mask)
    colour = donor.image[donor.hair_mask].mean(0).round().astype(np.uint8)
    hair = np.where(donor.hair_mask[..., None], donor.image, colour)[v : v + donor_height, u : u + donor_width]
    image = sample.image.copy()
    region = image[y : y + height, x : x + width]
    inside = sample.hair_mask[y : y + height, x : x + width]
    region[inside] = cv2.resize(hair, (width, height), interpolation=cv2.INTER_AREA)[inside]
    swapped = replace(sample, image=image)
    return replace(case, sample=swapped, bald=fill(image, case.repaint_mask, config))


def swap_difference(case: Case, before: Drawing, after: Drawing) -> float:
    """Mean absolute difference between two finished pictures in the repainted region.

    Unit: gray levels, 0 to 255. Direction: lower is better; 0 is a result that does not know the old hair.

    Args:
        before: of the photo as it is. after: of the photo with the hair swapped.
    """
    inside = case.repaint_mask
    return float(np.abs(before.final[inside].astype(np.int16) - after.final[inside]).mean())


def old_curl_excess(frame: pd.DataFrame) -> Estimate:
    """How much more often a transfer shows the person's old curl than it does for other people.

    For every transfer that asks for another class than the photo's own: 1 if the evaluation classifier sees the old
    class in the result, minus the share of other people's results, asked for the same class, in which it sees that
    class. What the asked style or the classifier's habits explain so falls out; 0 is chance.

    Args:
        frame: rows of one model with transfer, person, own_curl, curl_asked, curl_seen.

    Returns:
        Mean over images (share of images, -1 to 1; lower is better) with its interval over people.
    """
    rows = frame[frame["transfer"]].dropna(subset=["own_curl", "curl_asked", "curl_seen"])
    rows = rows[rows["own_curl"] != rows["curl_asked"]]
    if rows.empty:
        return missing("no transfer asks for another curl class than the photo's own")
    people = rows["person"].to_numpy(str)
    own, asked, seen = (rows[name].to_numpy(int) for name in ("own_curl", "curl_asked", "curl_seen"))
    values = np.full(len(rows), np.nan)
    for i in range(len(rows)):
        others = (people != people[i]) & (asked == asked[i]) & (own != own[i])
        if others.any():
            values[i] = float(seen[i] == own[i]) - float((seen[others] == own[i]).mean())
    return mean_by_person(
        values,
        people,
        why_empty="no other person with another curl class was asked for the same one: chance is not known",
    )
