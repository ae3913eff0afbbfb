"""Where things are on this machine: roots, profile name and executor, read from HAIR_PIPELINE_* variables.

Belongs here: paths and the environment. Does not belong here: how to process or train (`profile`).
"""

from __future__ import annotations

import difflib
import os
import shlex
from collections.abc import Collection
from functools import cached_property
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from hair_pipeline.errors import PipelineError
from hair_pipeline.profile import PROFILE_NAMES, Profile, load_profile


def _project_root() -> Path:
    """The checkout this package stands in, or the current folder when it is installed elsewhere."""
    checkout = Path(__file__).resolve().parents[1]
    return checkout if (checkout / "pyproject.toml").exists() else Path.cwd()


PROJECT_ROOT = _project_root()
PREFIX = "HAIR_PIPELINE_"
_INTERNAL = tuple(PREFIX + name for name in ("ERROR_FILE", "PRELOAD_TORCH", "VERSION", "TEST_"))
"""What processes of the pipeline, and its tests, tell each other."""
SAMPLE_ROOT = PROJECT_ROOT / "data" / "sample"
SAMPLE_MODELS_ROOT = PROJECT_ROOT / "data" / "sample_models"
SAMPLE_MODELS_WORK = PROJECT_ROOT / "data" / "sample_models_work"


READ_FOLDERS = ("k_hairstyle_root", "training_face_root", "customers_root", "models_dir")
"""Settings that name folders which are only read."""


class Settings(BaseSettings):
    """The machine's side of the configuration; every field is an environment variable HAIR_PIPELINE_<FIELD>."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, frozen=True, extra="ignore", hide_input_in_errors=True
    )

    profile: str = Field(default="sample", description="sample, rtx24gb, h100, or the path of a profile file (.yaml)")
    k_hairstyle_root: Path = Field(default=SAMPLE_ROOT / "k_hairstyle", description="K-Hairstyle copy, read-only")
    training_face_root: Path = Field(
        default=SAMPLE_ROOT / "training_face", description="training_face outputs, read-only"
    )
    training_root: Path = Field(
        default=PROJECT_ROOT / "data" / "training", description="everything the pipeline writes"
    )
    customers_root: Path | None = Field(default=None, description="customer photos for the A/B test")
    models_dir: Path = Field(
        default=PROJECT_ROOT / "data" / "models", description="local weights, looked in before the hub"
    )
    sample_models_dir: Path = Field(
        default=SAMPLE_MODELS_ROOT, description="the small networks that stand in for downloads"
    )
    executor: Literal["local", "ray", "k8s"] = "local"
    training_processes: int = Field(
        default=1,
        ge=1,
        description="processes of Stage 1 and Stage 2 on one machine: as many as it has GPUs to train on",
    )
    torchrun_options: str = Field(
        default="", description="of torchrun, for several machines: --nnodes, --rdzv-backend, --rdzv-endpoint"
    )

    alert_webhook: str | None = Field(
        default=None, pattern="^https?://", description='URL that gets {"text": ...} by POST when a run fails'
    )
    dagster_url: str = Field(
        default="http://127.0.0.1:3000",
        pattern="^https?://",
        description="where people see the UI; for links in alerts",
    )

    reports_url: str | None = Field(
        default=None,
        pattern="^https?://",
        description="where a web server shows <training root>/reports; for links in the UI, which cannot open files",
    )

    @field_validator(
        "k_hairstyle_root",
        "training_face_root",
        "training_root",
        "customers_root",
        "models_dir",
        "sample_models_dir",
        mode="after",
    )
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        return None if path is None else path.expanduser().absolute()

    @field_validator("profile", mode="after")
    @classmethod
    def _known_profile(cls, profile: str) -> str:
        if profile in PROFILE_NAMES:
            return profile
        path = Path(profile).expanduser()
        if path.suffix in (".yaml", ".yml") and path.is_file():
            return str(path.absolute())
        raise ValueError(f"neither one of {', '.join(PROFILE_NAMES)} nor a profile file (.yaml)")

    @field_validator("torchrun_options", mode="after")
    @classmethod
    def _words(cls, options: str) -> str:
        try:
            shlex.split(options)
        except ValueError as error:
            raise ValueError(f"it cannot be split into words as a shell does: {error}") from error
        return options

    @cached_property
    def profile_values(self) -> Profile:
        """The values of the chosen profile."""
        return load_profile(self.profile)

    @property
    def customers(self) -> Path | None:
        """The customers' photos: as configured, else the sample's when the inputs are the sample, else None."""
        if self.customers_root is None and self.k_hairstyle_root == SAMPLE_ROOT / "k_hairstyle":
            return SAMPLE_ROOT / "customers"
        return self.customers_root

    @property
    def processed(self) -> Path:
        return self.training_root / "processed"

    @property
    def catalog_path(self) -> Path:
        return self.processed / "catalog.parquet"

    @property
    def checkpoints(self) -> Path:
        return self.training_root / "checkpoints"

    @property
    def runs(self) -> Path:
        return self.training_root / "runs"

    @property
    def reports(self) -> Path:
        return self.training_root / "reports"

    @property
    def registry_path(self) -> Path:
        return self.training_root / "registry" / "registry.json"


def require_folders(settings: Settings, fields: Collection[str] = READ_FOLDERS) -> None:
    """Refuse a folder to read that was set by hand and is none, before any work is done.

    Defaults may be missing: they are made, or not needed.

    Raises:
        PipelineError: naming the variable.
    """
    for field in fields:
        folder = getattr(settings, field)
        if field in settings.model_fields_set and folder is not None and not folder.is_dir():
            variable = PREFIX + field.upper()
            raise PipelineError(f"{variable}: no such folder", file=folder, remedy=f"correct {variable}, or unset it")


def unknown_variables() -> dict[str, str]:
    """Variables HAIR_PIPELINE_* of the environment that nothing reads, with what to say about each."""
    known = [PREFIX + name.upper() for name in Settings.model_fields]
    unknown = {}
    for name in sorted(os.environ):
        if name.startswith(PREFIX) and name not in known and not name.startswith(_INTERNAL):
            nearest = difflib.get_close_matches(name, known, n=1)
            unknown[name] = f"{name} is no setting and is ignored" + (f"; is {nearest[0]} meant?" if nearest else "")
    return unknown


def load_settings() -> Settings:
    """Read the settings from the environment.

    Raises:
        PipelineError: a variable holds a value that is not allowed; the message names it.
    """
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][0])
        variable = PREFIX + field.upper()
        value = _without_secret(str(first["input"])) if field == "alert_webhook" else repr(first["input"])
        raise PipelineError(
            f"{variable}={value} is not allowed: {first['msg']}",
            remedy=f"set {variable} to an allowed value or unset it",
        ) from error


def _without_secret(url: str) -> str:
    """Scheme and host of a webhook: whoever knows the rest can post to it."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "..."
    return f"{parts.scheme}://{parts.hostname}/..." if parts.scheme and parts.hostname else "..."
