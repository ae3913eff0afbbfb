"""The recipe of data/sample_models: who is rendered for it, and the profile it is trained with.

Belongs here: its numbers and its renderings. Does not belong here: training (`training.sample_models` runs it).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from hair_pipeline.profile import Profile, load_profile
from hair_pipeline.sample.people import Person, make_people, make_views
from hair_pipeline.sample.render import build_model, render
from hair_pipeline.sample.write import write_sample

RECIPE_FILE = Path(__file__).with_name("recipe.yaml")


@dataclass(frozen=True)
class Rendering:
    """So many people and photos of each; another seed renders other people than the sample's (seed 0).

    Attributes:
        faces: photos to learn faces from (`write_sample`).
    """

    people: int
    views: int
    seed: int
    faces: bool = False

    def write(self, folder: Path) -> None:
        """Render into `folder`; nothing is done where that was done before."""
        write_sample(folder, people=self.people, views=self.views, customers=0, seed=self.seed, faces=self.faces)


PEOPLE = Rendering(people=320, views=5, seed=7)
"""For the inpainting base, the perceptual trunk and the patch encoder: people from all sides."""
FACES = Rendering(people=900, views=3, seed=8, faces=True)
"""For what must know a face whatever its hair, or a hairstyle whoever wears it: many people, each with several."""


def recipe_profile() -> Profile:
    """The values of `recipe.yaml`."""
    return load_profile(RECIPE_FILE)


@dataclass(frozen=True)
class CurlTriplet:
    """One person from one side, three times: as is, the hair grown anew, the hair grown with another curl.

    Attributes:
        reference, regrown, wrong: uint8 RGB (512, 512, 3). hair: bool (512, 512), the reference's hair.
    """

    reference: np.ndarray
    regrown: np.ndarray
    wrong: np.ndarray
    hair: np.ndarray


_OTHER_CURL = {"straight": "S3", "wavy": "S3", "curly": "none"}


def curl_triplets(count: int, seed: int = 9) -> list[CurlTriplet]:
    """Triplets of `count` people whom nobody was trained on; the wrong curl is straight for curly hair, else curly."""
    triplets = []
    for person in make_people(count, seed):
        view = make_views(person, 1)[0]
        wrong = replace(person.hair, curl=_OTHER_CURL[person.hair.curl_class])
        own, regrown, other = (
            render(build_model(somebody), view, blur_face=False)
            for somebody in (person, _regrown(person), replace(person, hair=wrong))
        )
        triplets.append(CurlTriplet(own.image, regrown.image, other.image, own.hair))
    return triplets


def _regrown(person: Person) -> Person:
    """The same hairstyle, strand by strand another."""
    return replace(person, seed=person.seed + 1)
