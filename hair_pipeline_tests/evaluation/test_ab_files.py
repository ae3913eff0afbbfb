"""What verdict.json and the A/B page say of a test beside its numbers."""

from dataclasses import dataclass
from typing import Any

from hair_pipeline.evaluation.ab_files import Photos, provenance
from hair_pipeline.evaluation.ab_page import rule_text
from hair_pipeline.evaluation.picture_settings import PictureSettings
from hair_pipeline.profile import AbTestConfig, Profile

PHOTOS = Photos("customers", "0" * 64, {}, 0)


@dataclass
class Drawn:
    """A contender that has drawn."""

    label: str
    settings: PictureSettings | None
    version: str = "v"

    def draw(self, cases: Any) -> Any:
        raise AssertionError("nothing is drawn any more")


def test_each_model_is_named_with_the_settings_it_drew_with() -> None:
    profile = Profile(name="test")
    own = PictureSettings.of(profile).model_copy(update={"scheduler": "dpm++", "steps": 6, "guidance_scale": 1.7})
    said = provenance(Drawn("new", PictureSettings.of(profile)), Drawn("old", own), PHOTOS, profile)
    assert said["New"] == "new (v): ddim, 30 steps, guidance 2.0, 512 x 512 pixels"
    assert said["Old"] == "old (v): dpm++, 6 steps, guidance 1.7, 512 x 512 pixels"
    assert provenance(Drawn("a", own), Drawn("b", None), PHOTOS, profile)["Old"] == "b (v): finished pictures"


def test_the_rule_names_every_condition_of_an_approval() -> None:
    assert "a usable picture of every photo. Reject" in rule_text(AbTestConfig())
