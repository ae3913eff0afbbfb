"""What a model is asked to draw: one photo, one style reference, one seed.

Belongs here: the cases of the validation report, and their loading in batches. Does not belong here: drawing
(`contenders`) and from a customer's photo to its case (`customers`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from hair_pipeline.files import UnreadableImage, hash_bytes
from hair_pipeline.inputs.head_crop import Framing
from hair_pipeline.inputs.samples import Sample, load_sample
from hair_pipeline.processing.bald import make_bald
from hair_pipeline.processing.fringe import with_forehead
from hair_pipeline.profile import Profile
from hair_pipeline.settings import Settings
from hair_pipeline.training.data import VectorTable
from hair_pipeline.vocabulary import CURL_CLASSES


@dataclass(frozen=True)
class Case:
    """One picture to draw.

    Attributes:
        sample: the photo with its masks. reference: whose hair is asked for (the sample itself, or another person).
        identity: training_face's embedding (512,) to condition on, None when there is none that can be trusted.
        curl, bangs: class indices of the reference, None when its label lacks them.
        own_curl: class index of the photo's own hair, None when its label lacks it.
        framing: how the sample was cut from its photo; None for a processed square, which shows all of it.
        bald: the photo without hair. repaint_mask: where it was removed and is drawn anew, bool (S, S).
        seed: of the noise.
    """

    sample: Sample
    reference: Sample
    identity: np.ndarray | None
    curl: int | None
    bangs: int | None
    bald: np.ndarray
    repaint_mask: np.ndarray
    seed: int
    own_curl: int | None = None
    framing: Framing | None = None

    @property
    def key(self) -> str:
        """Tells the cases of one report apart."""
        return f"{self.sample.image_id}|{self.reference.image_id}"

    @property
    def transfer(self) -> bool:
        """Whether another person's style is asked for."""
        return self.reference.person != self.sample.person

    @property
    def judged_identity(self) -> bool:
        """Whether identity may be measured: a trusted embedding (so a reliable face) and its box."""
        return self.identity is not None and self.sample.box is not None


def make_case(
    sample: Sample,
    reference: Sample,
    identity: np.ndarray | None,
    classes: tuple[int | None, int | None],
    profile: Profile,
    *,
    own_curl: int | None = None,
    framing: Framing | None = None,
) -> Case:
    """Remove the sample's hair and fix its seed, which depends on photo, reference and profile alone.

    For another person's style the forehead is repainted too: a fringe may come or go.
    """
    masks = sample.hair_mask, sample.face_mask
    if reference.person != sample.person:
        masks = with_forehead(*masks, sample.box)
    bald, repaint = make_bald(sample.image, *masks, profile.processing.bald, box=sample.box, window=sample.window)
    seed = int(hash_bytes(sample.image_id, reference.image_id, str(profile.evaluation.seed))[:8], 16)
    return Case(sample, reference, identity, *classes, bald, repaint, seed, own_curl, framing)


@dataclass(frozen=True)
class ValidationPlan:
    """The validation images and whose style each is to receive.

    Attributes:
        rows: Stage 2 eligible validation images, catalog rows in id order.
        donors: index of the style's row for the transfer of each row; None where nobody else can lend one.
        left_out: image id -> why an eligible image is not evaluated.
    """

    rows: pd.DataFrame
    donors: list[int | None]
    left_out: dict[str, str]


def plan_validation(catalog: pd.DataFrame, styles: VectorTable, limit: int | None) -> ValidationPlan:
    """Choose the images and pair each with a style of another held-out person, of another curl class if possible.

    Args:
        styles: only images with a style vector are taken.
        limit: at most this many images, spread over people; None takes all.
    """
    eligible = catalog[(catalog["split"] == "validation") & (catalog["stage2"].eq(True))]
    known = eligible["image_id"].isin(set(styles.ids))
    left_out = dict.fromkeys(eligible.loc[~known, "image_id"], "no style vector: too little hair")
    eligible = eligible[known].sort_values("image_id")
    if limit is not None:
        eligible = eligible.iloc[spread_over_people(eligible["source"], limit)]
    rows = eligible.reset_index(drop=True)
    return ValidationPlan(rows, _donors(rows), left_out)


def spread_over_people(people: pd.Series, count: int) -> list[int]:
    """Places of at most `count` rows, in order: one of every person before a second of any.

    A place that is not among them never will be when rows are appended.
    """
    turn = people.groupby(people).cumcount().to_numpy()
    return sorted(np.argsort(turn, kind="stable")[:count].tolist())


def _donors(rows: pd.DataFrame) -> list[int | None]:
    """For every row another person's: another curl class first, then the nearest head turn; ties by a hash of both.

    The time grows with the square of the rows, at a fraction of a millisecond for a row of 20,000.
    """
    people, curls = (pd.factorize(rows[name])[0] for name in ("source", "curl_class"))
    yaw = pd.to_numeric(rows["yaw"]).fillna(0.0).to_numpy(float)
    marks = np.array([int(hash_bytes(str(name))[:16], 16) for name in rows["image_id"]], np.uint64)
    found: list[int | None] = []
    for index in range(len(rows)):
        rank = np.round(np.abs(yaw - yaw[index]) / 15) + 1000 * (curls == curls[index])
        rank[people == people[index]] = np.inf
        if not np.isfinite(rank).any():
            found.append(None)
            continue
        best = np.flatnonzero(rank == rank.min())
        found.append(int(best[np.argmin(marks[best] ^ marks[index])]))
    return found


def classes_of(row: Any) -> tuple[int | None, int | None]:
    """(curl class index, bangs index) of a catalog row, None where the label lacks them."""
    curl, bangs = row["curl_class"], row["has_bangs"]
    return (
        CURL_CLASSES.index(curl) if isinstance(curl, str) and curl in CURL_CLASSES else None,
        None if pd.isna(bangs) else int(bool(bangs)),
    )


def load_cases(
    plan: ValidationPlan,
    pairs: Sequence[tuple[int, int]],
    identities: VectorTable,
    settings: Settings,
    profile: Profile,
    left_out: dict[str, str],
) -> Iterator[list[Case]]:
    """Load (row, reference row) pairs batch by batch; never more than a batch is held.

    Args:
        left_out: receives image id -> reason for photos that cannot be read any more.
    """
    size = profile.evaluation.batch_size
    for start in range(0, len(pairs), size):
        batch = []
        for index, donor in pairs[start : start + size]:
            row, reference_row = plan.rows.iloc[index], plan.rows.iloc[donor]
            try:
                sample = load_sample(row, settings, profile.processing.size)
                reference = sample if donor == index else load_sample(reference_row, settings, profile.processing.size)
            except UnreadableImage as error:
                left_out[str(row["image_id"])] = str(error)
                continue
            vector = identities.get(sample.image_id)
            identity = None if vector is None else vector.numpy()
            own_curl = classes_of(row)[0]
            batch.append(make_case(sample, reference, identity, classes_of(reference_row), profile, own_curl=own_curl))
        yield batch
