"""Serving: a full photo of any size in, the same photo with other hair out.

Belongs here: pasting back into the photo, reading training_face's outputs for a request. Does not belong here: the
square around the head (`inputs.head_crop`), the denoising (`models.pipeline`), web frameworks and queues.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from hair_pipeline import files
from hair_pipeline.errors import PipelineError
from hair_pipeline.evaluation.contenders import NOT_FINITE, ModelContender, resolve
from hair_pipeline.inputs.geometry import letterbox
from hair_pipeline.inputs.hair_rim import with_rim
from hair_pipeline.inputs.head_crop import Crop, cut_photo, head_crop
from hair_pipeline.inputs.k_hairstyle import image_id_of
from hair_pipeline.inputs.samples import Photo, Sample, to_sample
from hair_pipeline.inputs.training_face import BadFace, faces_of, identity_reason, read_embedding
from hair_pipeline.inputs.upright import UprightPhoto, encode_picture, read_face, read_upright
from hair_pipeline.processing.bald import make_bald
from hair_pipeline.processing.compositing import paste_back
from hair_pipeline.processing.fringe import with_forehead
from hair_pipeline.profile import InputsConfig, Profile
from hair_pipeline.settings import Settings, load_settings

MIN_STYLE_PIXELS = 32 * 32
"""Hair pixels that a style photo must have: fewer show no texture, however much they are enlarged."""
_WHITE_HAIR = "give a mask that is white (255) where the hair is"
FEATHER = 0.016
"""Width of the blend at the mask's edge, as a share of the crop's side: 8 pixels at 512."""


class TryOn:
    """A loaded model, ready for requests; these may come from several threads.

    Args:
        contender: a model of this project. profile: removal of the hair and sampler settings.
    """

    def __init__(self, contender: ModelContender, profile: Profile) -> None:
        self.contender, self.profile = contender, profile
        self.version = contender.version

    def style_of(self, image: np.ndarray, hair_mask: np.ndarray, face_mask: np.ndarray | None = None) -> np.ndarray:
        """The style vector (S,) float32 of the hair in an image.

        Args:
            image: uint8 RGB (H, W, 3). hair_mask: bool (H, W).
            face_mask: bool (H, W), where it is known: strands are then seen at the size at which they are drawn.

        Raises:
            PipelineError: the model takes no style, or there is too little hair to see its texture.
        """
        if self.contender.styles is None:
            raise PipelineError(f"{self.contender.label} takes no style", remedy="choose a trained model")
        if np.count_nonzero(hair_mask) < MIN_STYLE_PIXELS:
            raise _too_little_hair()
        blank = np.zeros_like(hair_mask)
        face = blank if face_mask is None else face_mask
        photo = cut_photo(Photo("style", "style", image, hair_mask, face, blank, None), head_crop(hair_mask, face))
        vector = self.contender.styles.vector(to_sample(photo, self.profile.processing.size))
        if vector is None:
            raise _too_little_hair()
        return vector

    def __call__(
        self,
        photo: np.ndarray,
        hair_mask: np.ndarray,
        face_mask: np.ndarray,
        identity: np.ndarray | None,
        style: np.ndarray | None,
        *,
        box: np.ndarray | None = None,
        seed: int = 0,
    ) -> np.ndarray:
        """Redraw the hair.

        Args:
            photo: uint8 RGB (H, W, 3), any size.
            hair_mask, face_mask: bool (H, W), as training_face gives them; the face mask may be empty.
            identity: training_face's InsightFace embedding (512,), or None.
            style: a vector of `style_of`, or None for hair of the model's own choice.
            box: x1, y1, x2, y2 of the face in photo pixels, where it is known.

        Returns:
            uint8 RGB (H, W, 3), byte-identical to the photo outside the grown, feathered hair mask.

        Raises:
            PipelineError: the masks do not fit the photo, the hair mask is empty, or the model draws values that are
                not finite.
        """
        if hair_mask.shape != photo.shape[:2] or face_mask.shape != photo.shape[:2]:
            raise PipelineError(
                f"the masks are {hair_mask.shape[1]}x{hair_mask.shape[0]}, the photo {photo.shape[1]}x{photo.shape[0]}",
                remedy="give masks of the photo's own size",
            )
        crop = head_crop(hair_mask, face_mask)
        head = cut_photo(Photo("photo", "photo", photo, hair_mask, face_mask, np.zeros_like(hair_mask), box), crop)
        sample = to_sample(head, self.profile.processing.size)
        geometry = letterbox(crop.width, crop.height, self.profile.processing.size)
        generated = geometry.image_back(self._draw(sample, identity, style, seed))
        removal = self.profile.processing.bald
        bald, repaint = make_bald(head.image, head.hair_mask, head.face_mask, removal, box=head.box)
        return self._into_photo(photo, crop, generated, bald, repaint)

    def redraw(self, person: Request, style: Request, *, seed: int = 0) -> np.ndarray:
        """Put the hair of one photo on the person of another: a full photo in, a full photo out.

        Where the face's box is known, the forehead is repainted too: a fringe may come or go.

        Args:
            person, style: photos with a hair mask, of `read_request` (from training_face's outputs or a mask) or made
                from arrays.

        Raises:
            PipelineError: as `style_of` and `__call__`.
        """
        if not person.hair_mask.any():  # the forehead alone would be drawn on
            raise PipelineError("the hair mask is empty", remedy=_WHITE_HAIR)
        vector = self.style_of(style.photo, style.hair_mask, style.face_mask)
        hair, face = with_forehead(person.hair_mask, person.face_mask, person.box)
        return self(person.photo, hair, face, person.identity, vector, box=person.box, seed=seed)

    def _draw(self, sample: Sample, identity: np.ndarray | None, style: np.ndarray | None, seed: int) -> np.ndarray:
        """What the model draws for a square, before paste-back; uint8 (S, S, 3)."""
        removal, config = self.profile.processing.bald, self.profile.evaluation
        masks = sample.hair_mask, sample.face_mask
        bald, repaint = make_bald(sample.image, *masks, removal, box=sample.box, window=sample.window)
        output = self.contender.pipeline(
            images=[sample.image],
            hair_masks=[sample.hair_mask],
            face_masks=[sample.face_mask],
            style=None if style is None else torch.from_numpy(style)[None].float(),
            identity=None if identity is None else torch.from_numpy(identity)[None].float(),
            resolution=self.contender.resolution,
            num_inference_steps=config.steps,
            guidance_scale=config.guidance_scale,
            generator=torch.Generator().manual_seed(seed),
            repaint_masks=[repaint],
            bald_images=[bald],
        )
        if not output.finite[0]:
            raise PipelineError(
                f"{self.contender.label}: {NOT_FINITE}",
                remedy="try another photo; if it is so with all, load another version, or go back: "
                "uv run hair-pipeline registry rollback",
            )
        raw: np.ndarray = output.raw[0]
        return raw

    def _into_photo(
        self, photo: np.ndarray, crop: Crop, generated: np.ndarray, bald: np.ndarray, repaint: np.ndarray
    ) -> np.ndarray:
        """Paste a generated crop into the photo, inside the feathered mask only, and over the bald crop.

        The bald crop is the photo outside the mask; over the photo itself the old hair would show in the blend.
        """
        result = photo.copy()
        result[crop.window] = paste_back(bald, generated, repaint, max(1.0, FEATHER * crop.side))
        return result


def load(spec: str | Path = "production", settings: Settings | None = None, profile: Profile | None = None) -> TryOn:
    """Load a model for serving.

    Args:
        spec: "production", "current", a registered version, or an exported folder.
        settings, profile: from the environment when left out.

    Raises:
        PipelineError: nothing is in production, no such version, or its files are broken.
    """
    settings = settings or load_settings()
    profile = profile or settings.profile_values
    contender = resolve(str(spec), settings, profile)
    if not isinstance(contender, ModelContender):
        raise PipelineError("is a folder of pictures, not a model", file=spec, remedy="give an exported version")
    return TryOn(contender, contender.profile)


@dataclass(frozen=True)
class Request:
    """A photo with what training_face says about it.

    Attributes:
        photo: uint8 RGB (H, W, 3), any size, upright.
        hair_mask, face_mask: bool (H, W); the face mask may be empty.
        identity: training_face's InsightFace embedding (512,) float32, or None.
        box: x1, y1, x2, y2 of the face in pixels, or None.
        icc_profile: the photo's colour profile, for the picture that is made of it (`encode_picture`); or None.
    """

    photo: np.ndarray
    hair_mask: np.ndarray
    face_mask: np.ndarray
    identity: np.ndarray | None
    box: np.ndarray | None = None
    icc_profile: bytes | None = None


def try_on_files(
    model: str,
    image: Path,
    style: Path,
    out: Path,
    training_face: Path | None,
    settings: Settings,
    profile: Profile,
    *,
    hair_mask: Path | None = None,
    style_mask: Path | None = None,
) -> Path:
    """Put the hair of one photo on the person of another.

    Masks and embedding come from training_face's outputs `<stem>[/<stem>]/face_NN/...`: right in `training_face`, else
    right beside the photo; of a photo of K-Hairstyle also in the configured training_face root.

    Photos are turned upright by their EXIF orientation, and so is the result, which keeps the photo's colour profile.
    Outputs and masks may be of the upright photo or of the stored pixels: their size tells. Where it does not (square
    photos, and those stored upside down) they are taken for upright.

    Args:
        hair_mask, style_mask: PNGs (white = hair) of the photos' sizes, to be used instead of training_face's masks.
        out: .png keeps the untouched bytes; .jpg does not.

    Returns:
        `out`.

    Raises:
        PipelineError: a file is missing or unreadable, a photo has neither outputs nor a mask, or `out` is one of the
            files read.
    """
    if out.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise PipelineError(
            f"cannot write {out.suffix or 'a file without suffix'}", file=out, remedy="name it .png or .jpg"
        )
    for given in (image, style, hair_mask, style_mask):
        if given is not None and out.resolve() == given.resolve():
            raise PipelineError(
                "the result would overwrite this photo or mask", file=given, remedy="choose another --out"
            )
    request = read_request(image, training_face, hair_mask, settings, profile.inputs, "--hair-mask")
    reference = read_request(style, training_face, style_mask, settings, profile.inputs, "--style-mask")
    result = load(model, settings, profile).redraw(request, reference)
    files.write_bytes(out, encode_picture(result, out.suffix.lower(), request.icc_profile))
    return out


def read_request(
    image: Path, training_face: Path | None, mask: Path | None, settings: Settings, config: InputsConfig, option: str
) -> Request:
    """Read a photo with its masks and, where it is reliable, its embedding. See `try_on_files`."""
    photo = _read(image)
    drawn = None if mask is None else _read_mask(mask, photo)
    stem = image_id_of(image.name)
    roots = [training_face] if training_face else _usual_roots(image, settings)
    problem = "no output of training_face"
    for root in roots:
        try:
            paths = faces_of(root, stem)
        except OSError as error:
            raise PipelineError(f"cannot be read ({error.strerror})", file=root, remedy="check its rights") from error
        if not paths:
            continue
        try:
            face, masks = read_face(photo, root, paths, config)
        except BadFace as error:
            problem = str(error).removesuffix(": ")
            continue
        vector = read_embedding(root, face.embedding_path)
        trusted = identity_reason(face, None, False, vector is not None, config) is None
        box = np.array(face.box)
        if drawn is None:
            hair, skin = with_rim(photo.image, masks.hair, masks.face, box)
        else:
            hair, skin = drawn, masks.face & ~drawn
        return Request(photo.image, hair, skin, vector if trusted else None, box, photo.icc_profile)
    if drawn is not None:
        return Request(photo.image, drawn, np.zeros_like(drawn), None, icc_profile=photo.icc_profile)
    looked = " and ".join(str(root / stem) for root in roots)
    raise PipelineError(
        f"no hair mask: {problem} (looked in {looked})",
        file=image,
        remedy=f"run training_face on it and pass --training-face, or pass a mask with {option}",
    )


def _usual_roots(image: Path, settings: Settings) -> list[Path]:
    """Beside the photo; the configured root holds outputs of K-Hairstyle, and may know another photo of this name."""
    in_k_hairstyle = image.resolve().is_relative_to(settings.k_hairstyle_root.resolve())
    return [image.parent, settings.training_face_root] if in_k_hairstyle else [image.parent]


def _read(path: Path) -> UprightPhoto:
    try:
        return read_upright(path)
    except files.UnreadableImage as error:
        raise PipelineError(str(error), file=path, remedy="give a readable JPEG or PNG photo") from error


def _too_little_hair() -> PipelineError:
    return PipelineError(
        "there is too little hair in the style photo to see its texture",
        remedy="give a photo in which the hair fills more of the picture",
    )


def _read_mask(path: Path, photo: UprightPhoto) -> np.ndarray:
    """A mask drawn in white on black, or in the alpha channel, or both."""
    try:
        drawn = files.read_image(path, alpha=True)
    except files.UnreadableImage as error:
        raise PipelineError(str(error), file=path, remedy="give a readable PNG or JPEG mask") from error
    values = np.minimum(drawn[..., :3].max(axis=2), drawn[..., 3])
    mask = photo.upright(values) >= 128
    width, height = photo.size
    if mask.shape != (height, width):
        raise PipelineError(
            f"the mask is {mask.shape[1]}x{mask.shape[0]}, the photo {width}x{height}",
            file=path,
            remedy="give a mask of the photo's own size",
        )
    if not mask.any():
        raise PipelineError(
            f"the hair mask is empty (its largest value is {values.max()})", file=path, remedy=_WHITE_HAIR
        )
    return mask
