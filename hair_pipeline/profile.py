"""How to process, train and evaluate: typed values, read from `profiles/*.yaml`.

Belongs here: every number and choice that a profile may set, with its meaning and unit.
Does not belong here: paths and the environment (`settings`), and any code that uses the values.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hair_pipeline.errors import PipelineError

PROFILES_DIR = Path(__file__).parent / "profiles"
PROFILE_NAMES = ("sample", "rtx24gb", "h100")


class Values(BaseModel):
    """Base of all groups: unknown names are refused, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Seed = Annotated[int, Field(ge=0, lt=2**63)]
"""What numpy and torch both take."""


class InputsConfig(Values):
    """Reading and splitting of the inputs."""

    validation_fraction: float = Field(0.05, gt=0, lt=1, description="share of people held out")
    split_seed: Seed = 0
    shard_size: int = Field(1000, ge=1, description="images per shard; a person is never cut in two")
    image_set: Literal["auto", "rawset", "hqset", "mqset"] = Field(
        "auto",
        description="which of the release's sets the images are taken from where several are present; auto: the one "
        "training_face was run on, else the smallest. Patches are cut from the largest in any case",
    )
    same_person: dict[str, str] = Field(
        default_factory=dict, description="source -> the source it belongs to, for people who stand under two names"
    )
    near_duplicate_distance: int = Field(
        16, ge=0, le=64, description="bits of 256 up to which two perceptual hashes count as the same picture"
    )
    same_identity_cosine: float = Field(
        0.75, gt=0, le=1, description="cosine from which two people's mean embeddings count as one person's"
    )
    min_face_confidence: float = Field(0.5, ge=0, le=1, description="training_face faces below it are ignored")
    max_identity_yaw: float = Field(
        45.0, ge=0, le=180, description="degrees; beyond it training_face uses AdaFace, another space"
    )
    min_mask_iou: float = Field(0.5, ge=0, le=1, description="hair mask against polygon1: below it the two disagree")


class BaldConfig(Values):
    """Removal of the hair."""

    method: Literal["telea", "navier_stokes", "gaussian_blur", "gray"] = "telea"
    growth: float = Field(0.06, ge=0, description="how far the hair mask is grown, in face heights (or 0.3 of image)")
    hide_forehead: bool = Field(False, description="repaint the forehead above the brows too, fringe or not")
    hide_beside_jaw: bool = Field(False, description="repaint the columns beside the jaw too, long hair or short")
    inpaint_scale: float = Field(0.5, gt=0, le=1, description="Telea and Navier-Stokes run at this scale in the hole")


class HairOnlyConfig(Values):
    """The hair alone."""

    soft_alpha: bool = Field(False, description="alpha follows the strands at the hair's rim instead of the mask")


class PatchConfig(Values):
    """Texture patches."""

    sizes: tuple[Annotated[int, Field(ge=4)], ...] = Field((128, 64), min_length=1, description="sides, pixels")
    per_image: int = Field(8, ge=1, description="at most this many patches per size and image")
    seed: Seed = 0

    @model_validator(mode="after")
    def _each_size_once(self) -> PatchConfig:
        if len(set(self.sizes)) < len(self.sizes):
            raise ValueError("sizes: one stands twice, and so would its patches")
        return self


class ProcessingConfig(Values):
    """Images cut into parts."""

    size: int = Field(512, ge=64, description="side of every processed image, pixels")
    image_format: Literal["compact", "png"] = "compact"
    bald: BaldConfig = BaldConfig()
    hair_only: HairOnlyConfig = HairOnlyConfig()
    patches: PatchConfig = PatchConfig()


class ModelsConfig(Values):
    """Which networks are used. `stand_in` is the small network of data/sample_models."""

    base: str = Field("stand_in", description="stand_in, a diffusers folder or a hub id")
    recogniser: str = Field(
        "stand_in", description="stand_in, or an ONNX file or insightface pack (folder) in the models folder"
    )
    evaluation_recogniser: str | None = Field(
        None,
        description="another one (file or pack) that no loss sees: it judges, beside the loss's own",
    )
    perceptual: Literal["stand_in", "vgg", "alex"] = Field("stand_in", description="trunk of LPIPS and Gram")
    inception: Literal["stand_in", "inception-v3-compat"] = Field("stand_in", description="extractor of FID and KID")
    clip: str | None = Field(None, description="CLIP folder in the models folder, for style_vectors.source = clip")
    style_tokens: int = Field(4, ge=1, description="cross-attention tokens the style vector is projected to")
    style_mode: Literal["replace", "add"] = Field("replace", description="replace the text tokens or add to them")
    lora_rank: int = Field(64, ge=1)


STAGE_MODELS = tuple(f"models.{name}" for name in ("base", "perceptual", "style_tokens", "style_mode", "lora_rank"))
"""What both stages are trained with; Stage 2 also with `models.recogniser`. Not among it are the networks that judge in
the evaluation alone, and CLIP, whose style vectors are a training's data."""


class NetworkTraining(Values):
    """One network's training."""

    steps: int = Field(ge=1, description="optimizer steps")
    batch_size: int = Field(ge=1)
    learning_rate: float = Field(gt=0, description="peak; 5% warm-up, then cosine")
    ema_decay: float = Field(0.998, ge=0, lt=1)


class BaseTrainingConfig(Values):
    """Training of the networks of data/sample_models, by `hair_pipeline/sample/recipe.yaml`."""

    resolution: int = Field(128, ge=32, multiple_of=8, description="side of the images they are trained on, pixels")
    seed: Seed = 0
    vae: NetworkTraining
    unet: NetworkTraining
    recogniser: NetworkTraining
    perceptual: NetworkTraining


class PatchEncoderConfig(Values):
    """The hair patch encoder and its InfoNCE training."""

    start: Literal["random", "stand_in"] = Field("random", description="stand_in: from the one of data/sample_models")
    architecture: Literal["resnet", "vit"] = "resnet"
    width: int = Field(
        64, ge=4, multiple_of=4, description="channels of the first stage (resnet) or embedding width (vit)"
    )
    embedding_dim: int = Field(256, ge=2)
    input_size: int = Field(128, ge=16, multiple_of=8, description="patches are resized to this side")
    temperature: float = Field(0.1, gt=0)
    person_weight: float = Field(0.1, ge=0, description="weight of the same-person positives")
    curl_weight: float = Field(0.9, ge=0, description="weight of the same-curl positives (across people)")
    people_per_batch: int = Field(16, ge=2)
    patches_per_person: int = Field(4, ge=1)
    steps: int = Field(20000, ge=1)
    learning_rate: float = Field(3e-4, gt=0)
    weight_decay: float = Field(1e-4, ge=0)
    workers: int = Field(4, ge=0, description="data loading processes")
    seed: Seed = 0


class ClassifierConfig(Values):
    """The style classifiers (curl class and bangs): one for the loss, another, differently built, for evaluation."""

    start: Literal["random", "stand_in"] = Field("random", description="stand_in: from those of data/sample_models")
    resolution: int = Field(256, ge=32, description="pixels")
    width: int = Field(32, ge=1, description="channels of the first stage")
    steps: int = Field(5000, ge=1)
    batch_size: int = Field(32, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    workers: int = Field(4, ge=0, description="data loading processes")
    seed: Seed = 0


class StyleVectorConfig(Values):
    """Where style vectors come from."""

    source: Literal["patch_encoder", "classifier", "combined", "clip"] = Field(
        "combined",
        description="combined: the patch encoder's texture, the classifier's view of the whole, and the colours",
    )


class LossTerm(Values):
    """Weight and schedule of one loss."""

    weight: float = Field(0.0, ge=0)
    ramp_steps: int = Field(0, ge=0, description="the weight grows linearly from 0 over this many optimizer steps")
    max_t: float | None = Field(
        None,
        gt=0,
        le=1,
        description="only where t < max_t * T; left out: pixel_max_t for losses on pixels, everywhere for the others",
    )


class LossesConfig(Values):
    """The five losses of the specification, and how the pixel losses are gated."""

    mask_l2: LossTerm = LossTerm(weight=1.0)
    identity: LossTerm = LossTerm(weight=0.1)
    lpips: LossTerm = LossTerm(weight=0.1)
    gram: LossTerm = LossTerm(weight=0.1)
    style: LossTerm = LossTerm(weight=0.02)
    anchor: LossTerm = Field(LossTerm(weight=0.0), description="keeps the base's prediction outside mask and face")
    context: LossTerm = Field(
        LossTerm(weight=0.0),
        description="plain L2 outside mask and face: finetune_blocks would drift there under a loss in the hair alone",
    )
    min_snr_gamma: float | None = Field(
        None,
        gt=0,
        description="per-sample min-SNR weighting of mask_l2 and context; on a base with zero terminal SNR it leaves "
        "the first steps of a drawing nearly untrained (weight 0 at the last timestep)",
    )
    pixel_max_t: float = Field(0.35, gt=0, le=1, description="pixel losses only where t < pixel_max_t * T")
    pixel_every: int = Field(4, ge=1, description="pixel losses at every so many optimizer steps of each kind of batch")
    pixel_batch: int = Field(1, ge=1, description="at most this many samples of a micro-batch are decoded")
    pixel_crop: float = Field(
        0.625,
        gt=0,
        le=1,
        description="side of the largest decoded window of hair, as share of the image's",
    )


class StageConfig(Values):
    """One training stage of the inpainting model; the defaults are the specification's section 6."""

    resolution: int = Field(512, ge=32, multiple_of=8, description="pixels")
    epochs: int = Field(60, ge=1, description="times every whole image is seen; Stage 1's patches come on top")
    max_steps: int | None = Field(None, ge=1, description="stop after so many optimizer steps, whatever the epochs say")
    batch_size: int = Field(4, ge=1, description="samples per micro-batch")
    gradient_accumulation_steps: int = Field(
        4,
        ge=1,
        description="micro-batches per optimizer step, of all processes: effective batch = this x batch_size",
    )
    learning_rate: float = Field(1e-4, gt=0, description="new layers: LoRA, IP-Adapter, style projection")
    learning_rate_deep: float = Field(1e-5, gt=0, description="UNet blocks named in finetune_blocks")
    finetune_blocks: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        (), description="UNet parameter name prefixes trained in full"
    )
    weight_decay: float = Field(0.01, ge=0)
    warmup_fraction: float = Field(0.05, ge=0, lt=1, description="share of the steps with rising learning rate")
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    gradient_checkpointing: bool = True
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    compile: bool = False
    max_grad_norm: float = Field(1.0, gt=0)
    ema_decay: float = Field(0.9995, ge=0, lt=1)
    drop_style: float = Field(0.075, ge=0, le=1, description="probability that only the style is dropped")
    drop_identity: float = Field(0.075, ge=0, le=1, description="probability that only the identity is dropped")
    drop_both: float = Field(0.05, ge=0, le=1)
    mask_identity: bool = Field(
        True,
        description="the identity acts in the face only; false is for ablations of training (drawing always masks)",
    )
    mask_variants: int = Field(4, ge=1, description="differently grown masks cached per image (Stage 2)")
    patch_fraction: float = Field(0.5, ge=0, le=1, description="share of patch batches among Stage 1 batches")
    patch_resolution: int = Field(
        128, ge=32, multiple_of=8, description="side at which patches are trained (Stage 1), pixels"
    )
    checkpoint_every: int = Field(500, ge=1, description="optimizer steps between checkpoints")
    keep_checkpoints: int = Field(3, ge=1)
    validate_every: int | None = Field(
        None, ge=1, description="optimizer steps between validations; left out: one per epoch"
    )
    validation_images: int = Field(64, ge=1, description="at most this many held-out images per validation")
    gradient_norm_every: int = Field(50, ge=0, description="log each loss's gradient norm so often; 0: never")
    workers: int = Field(4, ge=0, description="data loading processes")
    seed: Seed = 0
    losses: LossesConfig = LossesConfig()

    @model_validator(mode="after")
    def _check_dropout(self) -> StageConfig:
        if self.drop_style + self.drop_identity + self.drop_both > 1:
            raise ValueError("drop_style + drop_identity + drop_both is more than 1")
        return self

    @model_validator(mode="after")
    def _check_anchor(self) -> StageConfig:
        if self.losses.anchor.weight > 0 and self.finetune_blocks:
            raise ValueError(
                "losses.anchor needs the base's own weights, which finetune_blocks changes: use losses.context instead"
            )
        return self


class EvaluationConfig(Values):
    """Validation report."""

    steps: int = Field(30, ge=1, le=1000, description="sampler steps; the noise schedule has 1000")
    scheduler: Literal["ddim", "dpm++"] = "ddim"
    guidance_scale: float = Field(2.0, ge=0, description="1: no guidance")
    batch_size: int = Field(4, ge=1)
    max_images: int | None = Field(
        2000,
        ge=1,
        description="evaluate at most this many validation images, of all people by turns, four pictures each: own and "
        "another style, by the model and by the base; null: all (some 22,000 of K-Hairstyle)",
    )
    grid_rows: int = Field(8, ge=1)
    leakage_images: int = Field(
        16,
        ge=0,
        description="transfers drawn again with the old hair swapped; 0: none, and no model is released then",
    )
    seed: Seed = 0


class AbTestConfig(Values):
    """A/B verdict."""

    min_improvement: float = 0.05
    identity_margin: float = Field(0.01, ge=0, description="identity may not be worse by more than this")
    lpips_margin: float = Field(
        0.05, ge=0, description="hair-region LPIPS may not be worse by more than this share of the old model's"
    )
    min_people: int = Field(
        5, ge=5, description="with fewer people the verdict is inconclusive; fewer than 5 give no interval"
    )
    first_opponent: str = Field("untrained", description="compared with while nothing is in production: a SPEC")
    max_artifacts: float = Field(
        0.0, ge=0, le=1, description="share of the new model's pictures with artifacts that a blind review tolerates"
    )
    bootstrap_samples: int = Field(2000, ge=100)
    seed: Seed = 0


class AutomationConfig(Values):
    """What sensors and schedules do once they are switched on."""

    interval_seconds: int = Field(60, ge=1, description="seconds between two looks of a sensor")
    settle_looks: int = Field(
        2, ge=1, description="looks in a row that must find the input folders the same before the catalog is built"
    )
    retrain_new_people: int = Field(
        100, ge=1, description="so many processed people that the model in training has not seen make it train again"
    )
    retrain_cron: str = Field("0 3 * * 0", description="when the weekly re-training starts, as cron (UTC)")
    observe_cron: str = Field("0 2 * * *", description="when the inputs are looked at in full, as cron (UTC)")
    attempts: int = Field(3, ge=1, description="runs that may fail before an automation waits for a person")


class ReleaseConfig(Values):
    """How the server learns that another version is in production. All of it is optional."""

    server_config: Path | None = Field(None, description="file the server reads; written at every promotion")
    server_template: Path | None = Field(
        None, description="Jinja template of server_config ({{ version }}, {{ folder }}); JSON without one"
    )
    restart_commands: tuple[Annotated[tuple[str, ...], Field(min_length=1)], ...] = Field(
        (), description="run one after the other after a promotion, e.g. to restart the Celery worker and the API"
    )
    restart_timeout: float = Field(120.0, gt=0, description="seconds after which one restart command counts as failed")
    health_url: str | None = Field(
        None, description="must answer 200 after the restart; if its JSON has a version, with the new one"
    )
    health_command: tuple[str, ...] = Field((), description="must exit with 0 after the restart")
    health_timeout: float = Field(60.0, gt=0, description="seconds the server has to become healthy")

    @model_validator(mode="after")
    def _template_of_something(self) -> Self:
        if self.server_template is not None and self.server_config is None:
            raise ValueError("server_template is set, but not server_config, the file to be written from it")
        return self


class Profile(Values):
    """All values of one profile."""

    name: str
    gpu_memory_gib: float = Field(24.0, gt=0, description="memory of the card it is meant for, for plan-memory")
    inputs: InputsConfig = InputsConfig()
    processing: ProcessingConfig = ProcessingConfig()
    models: ModelsConfig = ModelsConfig()
    base_training: BaseTrainingConfig | None = Field(None, description="only in the recipe of the sample models")
    patch_encoder: PatchEncoderConfig = PatchEncoderConfig()
    classifier: ClassifierConfig = ClassifierConfig()
    style_vectors: StyleVectorConfig = StyleVectorConfig()
    stage1: StageConfig = StageConfig()
    stage2: StageConfig = StageConfig(epochs=120)
    evaluation: EvaluationConfig = EvaluationConfig()
    ab_test: AbTestConfig = AbTestConfig()
    release: ReleaseConfig = ReleaseConfig()
    automation: AutomationConfig = AutomationConfig()


class _EachNameOnce(yaml.SafeLoader):
    """Refuses a name that stands twice in one group, of which PyYAML would take the last without a word."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        names = [name for name, _ in node.value if name.tag != "tag:yaml.org,2002:merge"]
        for place, name in enumerate(names):
            if any(name.value == earlier.value for earlier in names[:place]):
                raise yaml.MarkedYAMLError(problem=f"{name.value} stands twice", problem_mark=name.start_mark)
        return node


def load_profile(name_or_path: str | Path) -> Profile:
    """Read a profile by name (`sample`, `rtx24gb`, `h100`) or from a YAML file.

    Raises:
        PipelineError: no such profile, or a value in it is not allowed; the message names it.
    """
    path = PROFILES_DIR / f"{name_or_path}.yaml" if name_or_path in PROFILE_NAMES else Path(name_or_path)
    try:
        values: Any = yaml.load(path.read_text(encoding="utf-8"), _EachNameOnce)
    except OSError as error:
        raise PipelineError(
            f"no such profile ({error.strerror})", file=path, remedy=f"choose one of {', '.join(PROFILE_NAMES)}"
        ) from error
    except UnicodeDecodeError as error:
        raise PipelineError("is not UTF-8 text", file=path, remedy="save the file as UTF-8") from error
    except yaml.YAMLError as error:
        raise PipelineError(f"is not YAML: {error}", file=path, remedy="mend the file") from error
    if not isinstance(values, dict):
        found = "is empty" if values is None else f"holds a {type(values).__name__} instead of named values"
        raise PipelineError(
            f"the profile {found}", file=path, remedy="begin with a copy of hair_pipeline/profiles/rtx24gb.yaml"
        )
    try:
        return Profile.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        group = isinstance(first.get("input"), dict)  # several values together, too many to show
        what = name if group else f"{name} = {first.get('input')!r} is not allowed"
        raise PipelineError(f"{what}: {first['msg']}", file=path, remedy=f"correct {name}") from error
