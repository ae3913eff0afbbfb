"""Which settings decide what a model draws: judged, exported and compared with the same ones.

Belongs here: gathering them from a profile or from an exported version's card, and naming what differs. Does not
belong here: weights (a version's name is their content) and drawing (`contenders`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from hair_pipeline.errors import PipelineError
from hair_pipeline.profile import BaldConfig, Profile

JUDGE_AGAIN = "run the A/B test again with these settings (materialise ab_verdict), or set the judged ones"


class PictureSettings(BaseModel):
    """What decides a picture besides weights and photo."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    scheduler: Literal["ddim", "dpm++"] | None = Field(description="null in the card of an older version")
    steps: int
    guidance_scale: float
    resolution: int = Field(description="side at which is generated")
    size: int = Field(description="side of the processed square")
    bald: BaldConfig = Field(description="removal of the hair")
    style_source: str

    @classmethod
    def of(cls, profile: Profile) -> PictureSettings:
        """Those of a profile."""
        return cls(
            scheduler=profile.evaluation.scheduler,
            steps=profile.evaluation.steps,
            guidance_scale=profile.evaluation.guidance_scale,
            resolution=profile.stage2.resolution,
            size=profile.processing.size,
            bald=profile.processing.bald,
            style_source=profile.style_vectors.source,
        )

    @classmethod
    def of_card(cls, card: dict[str, Any]) -> PictureSettings:
        """Those of an exported version (hair_pipeline.json)."""
        return cls.model_validate({name: card.get(name) for name in cls.model_fields})

    @property
    def sampler(self) -> str:
        """How noise becomes a picture, in words."""
        return (
            f"{self.scheduler or 'sampler not recorded'}, {self.steps} steps, guidance {self.guidance_scale}, "
            f"{self.resolution} x {self.resolution} pixels"
        )

    def differences(self, other: PictureSettings) -> list[str]:
        """What differs, in words: `steps is 6, not 30`. A scheduler that one of them does not name is not compared."""
        mine, theirs = self.model_dump(mode="json"), other.model_dump(mode="json")
        return [
            f"{name} is {_text(mine[name])}, not {_text(theirs[name])}"
            for name in mine
            if mine[name] != theirs[name] and None not in (mine[name], theirs[name])
        ]


def drawn_with(profile: Profile, card: dict[str, Any]) -> Profile:
    """The profile with the sampler and hair removal that an exported version was judged with."""
    own = PictureSettings.of_card(card)
    sampler = {"steps": own.steps, "guidance_scale": own.guidance_scale}
    return profile.model_copy(
        update={
            "evaluation": profile.evaluation.model_copy(update=sampler),
            "processing": profile.processing.model_copy(update={"size": own.size, "bald": own.bald}),
        }
    )


def require_judged(wanted: PictureSettings, judged: PictureSettings | None, version: str, file: Path) -> None:
    """Refuse a model whose pictures would not be those that were judged.

    Args:
        wanted: what it would be released with. judged: of the verdict. file: verdict.json.

    Raises:
        PipelineError: they differ, or the verdict does not say.
    """
    if judged is None:
        raise PipelineError(
            f"the verdict on {version} does not say with which settings its pictures were drawn",
            file=file,
            remedy="run the A/B test again (materialise ab_verdict)",
        )
    if found := wanted.differences(judged):
        raise PipelineError(
            f"version {version} was judged with other settings: {'; '.join(found)} as judged",
            file=file,
            remedy=JUDGE_AGAIN,
        )


def _text(value: Any) -> str:
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
