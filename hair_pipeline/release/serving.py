"""Serving: a full photo of any size in, the same photo with other hair out.

Belongs here: cropping around the head, pasting back into the photo, reading training_face's outputs for a request.
Does not belong here: the denoising (`models.pipeline`), web frameworks and queues.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from hair_pipeline import files
from hair_pipeline.errors import PipelineError
from hair_pipeline.evaluation.contenders import ModelContender, resolve
from hair_pipeline.inputs.k_hairstyle import image_id_of
from hair_pipeline.inputs.samples import Photo, Sample, to_sample
from hair_pipeline.inputs.training_face import (
    BadFace,
    choose_face,
    identity_reason,
    index_faces,
    read_embedding,
    read_sheet,
)
from hair_pipeline.processing.bald import make_bald, repaint_mask
from hair_pipeline.processing.compositing import paste_back
from hair_pipeline.processing.fringe import with_forehead
from hair_pipeline.profile import BaldConfig, InputsConfig, Profile
from hair_pipeline.settings import Settings, load_settings

MARGIN = 0.25
"""Context kept around hair and face, as a share of their extent."""
FEATHER = 0.016
"""Width of the blend at the mask's edge, as a share of the crop's side: 8 pixels at 512."""


@dataclass(frozen=True)
class Crop:
    """A square around the head in photo pixels; it may reach over the photo's edge."""

    x: int
    y: int
    side: int


def head_crop(hair_mask: np.ndarray, face_mask: np.ndarray) -> Crop:
    """The smallest square that holds hair and face with `MARGIN` around; at most the photo's longer side.

    Raises:
        PipelineError: the hair mask is empty.
    """
    if not hair_mask.any():
        raise PipelineError("the hair mask is empty", remedy="give a mask that is white where the hair is")
    both = hair_mask | face_mask
    x, y, width, height = cv2.boundingRect(both.astype(np.uint8))
    side = min(round(max(width, height) * (1 + 2 * MARGIN)), max(hair_mask.shape))
    side = max(side, width, height)
    left = _placed(x + width / 2 - side / 2, side, hair_mask.shape[1])
    top = _placed(y + height / 2 - side / 2, side, hair_mask.shape[0])
    return Crop(left, top, side)


def _placed(start: float, side: int, limit: int) -> int:
    """Inside the photo where the square fits, else centred on it."""
    if side >= limit:
        return (limit - side) // 2
    return int(np.clip(round(start), 0, limit - side))


def cut(array: np.ndarray, crop: Crop, *, padding: int = cv2.BORDER_REPLICATE) -> np.ndarray:
    """The crop's pixels; beyond the photo's edge its last pixels repeat, or zeros for BORDER_CONSTANT."""
    height, width = array.shape[:2]
    top, left = max(0, -crop.y), max(0, -crop.x)
    bottom, right = max(0, crop.y + crop.side - height), max(0, crop.x + crop.side - width)
    inside = array[max(0, crop.y) : crop.y + crop.side, max(0, crop.x) : crop.x + crop.side]
    if not (top or left or bottom or right):
        return np.ascontiguousarray(inside)
    is_mask = inside.dtype == bool
    padded = cv2.copyMakeBorder(inside.astype(np.uint8), top, bottom, left, right, padding, value=0)
    result: np.ndarray = padded.astype(bool) if is_mask else padded
    return result


class TryOn:
    """A loaded model, ready for requests.

    Args:
        contender: a model of this project. profile: removal of the hair and sampler settings.
    """

    def __init__(self, contender: ModelContender, profile: Profile) -> None:
        self.contender, self.profile = contender, profile
        self.version = contender.version

    def style_of(self, image: np.ndarray, hair_mask: np.ndarray) -> np.ndarray:
        """The style vector (S,) float32 of the hair in an image.

        Args:
            image: uint8 RGB (H, W, 3). hair_mask: bool (H, W).

        Raises:
            PipelineError: the model takes no style, or there is too little hair to see its texture.
        """
        if self.contender.styles is None:
            raise PipelineError(f"{self.contender.label} takes no style", remedy="choose a trained model")
        crop = head_crop(hair_mask, np.zeros_like(hair_mask))
        mask = cut(hair_mask, crop, padding=cv2.BORDER_CONSTANT)
        photo = Photo("style", "style", cut(image, crop), mask, np.zeros_like(mask), np.zeros_like(mask), None)
        vector = self.contender.styles.vector(to_sample(photo, self.profile.processing.size))
        if vector is None:
            raise PipelineError(
                "there is too little hair in the style photo to see its texture",
                remedy="give a photo in which the hair fills more of the picture",
            )
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
            PipelineError: the masks do not fit the photo, or the hair mask is empty.
        """
        if hair_mask.shape != photo.shape[:2] or face_mask.shape != photo.shape[:2]:
            raise PipelineError(
                f"the masks are {hair_mask.shape[1]}x{hair_mask.shape[0]}, the photo {photo.shape[1]}x{photo.shape[0]}",
                remedy="give masks of the photo's own size",
            )
        crop = head_crop(hair_mask, face_mask)
        image = cut(photo, crop)
        hair = cut(hair_mask, crop, padding=cv2.BORDER_CONSTANT)
        face = cut(face_mask, crop, padding=cv2.BORDER_CONSTANT)
        blank = np.zeros_like(hair)
        own_box = None if box is None else (box - [crop.x, crop.y, crop.x, crop.y]).astype(np.float32)
        sample = to_sample(Photo("photo", "photo", image, hair, face, blank, own_box), self.profile.processing.size)
        generated = cv2.resize(
            self._draw(sample, identity, style, seed), (crop.side, crop.side), interpolation=cv2.INTER_CUBIC
        )
        repaint = repaint_mask(hair, face, self.profile.processing.bald, box=own_box)
        return self._into_photo(photo, crop, generated, repaint)

    def redraw(self, person: Request, style: Request, *, seed: int = 0) -> np.ndarray:
        """Put the hair of one photo on the person of another: a full photo in, a full photo out.

        Where the face's box is known, the forehead is repainted too: a fringe may come or go.

        Args:
            person, style: photos with a hair mask, of `read_request` (from training_face's outputs or a mask) or made
                from arrays.

        Raises:
            PipelineError: as `style_of` and `__call__`.
        """
        vector = self.style_of(style.photo, style.hair_mask)
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
        raw: np.ndarray = output.raw[0]
        return raw

    def _into_photo(self, photo: np.ndarray, crop: Crop, generated: np.ndarray, repaint: np.ndarray) -> np.ndarray:
        """Paste a generated crop into the photo, inside the feathered mask only."""
        height, width = photo.shape[:2]
        top, left = max(0, crop.y), max(0, crop.x)
        bottom, right = min(height, crop.y + crop.side), min(width, crop.x + crop.side)
        window = slice(top - crop.y, bottom - crop.y), slice(left - crop.x, right - crop.x)
        result = photo.copy()
        region = result[top:bottom, left:right]
        feather_px = max(1.0, FEATHER * crop.side)
        result[top:bottom, left:right] = paste_back(
            np.ascontiguousarray(region), np.ascontiguousarray(generated[window]), repaint[window], feather_px
        )
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
    return TryOn(contender, _as_exported(profile, contender.card))


def _as_exported(profile: Profile, card: dict[str, Any] | None) -> Profile:
    """The profile with the sampler and bald settings that an exported version was judged with."""
    if card is None:
        return profile
    sampler = {"steps": card["steps"], "guidance_scale": card["guidance_scale"]}
    cutting = {"size": card["size"], "bald": BaldConfig.model_validate(card["bald"])}
    return profile.model_copy(
        update={
            "evaluation": profile.evaluation.model_copy(update=sampler),
            "processing": profile.processing.model_copy(update=cutting),
        }
    )


@dataclass(frozen=True)
class Request:
    """A photo with what training_face says about it.

    Attributes:
        photo: uint8 RGB (H, W, 3), any size.
        hair_mask, face_mask: bool (H, W); the face mask may be empty.
        identity: training_face's InsightFace embedding (512,) float32, or None.
        box: x1, y1, x2, y2 of the face in pixels, or None.
    """

    photo: np.ndarray
    hair_mask: np.ndarray
    face_mask: np.ndarray
    identity: np.ndarray | None
    box: np.ndarray | None = None


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

    Masks and embedding come from training_face's outputs: in `training_face`, else beside the photo
    (`<stem>/face_01/...`), else in the configured training_face root.

    Args:
        hair_mask, style_mask: PNGs (white = hair) of the photos' sizes, to be used instead of training_face's masks.
        out: .png keeps the untouched bytes; .jpg does not.

    Returns:
        `out`.

    Raises:
        PipelineError: a file is missing or unreadable, or a photo has neither outputs nor a mask.
    """
    if out.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise PipelineError(
            f"cannot write {out.suffix or 'a file without suffix'}", file=out, remedy="name it .png or .jpg"
        )
    request = read_request(image, training_face, hair_mask, settings, profile.inputs, "--hair-mask")
    reference = read_request(style, training_face, style_mask, settings, profile.inputs, "--style-mask")
    result = load(model, settings, profile).redraw(request, reference)
    files.write_bytes(out, files.encode_image(result, out.suffix.lower()))
    return out


def read_request(
    image: Path, training_face: Path | None, mask: Path | None, settings: Settings, config: InputsConfig, option: str
) -> Request:
    """Read a photo with its masks and, where it is reliable, its embedding. See `try_on_files`."""
    photo = _read(image)
    height, width = photo.shape[:2]
    stem = image_id_of(image.name)
    roots = [training_face] if training_face else [image.parent, settings.training_face_root]
    problem = "no output of training_face"
    for root in roots:
        paths = index_faces(root).get(stem, []) if root.is_dir() else []
        if not paths:
            continue
        try:
            face = choose_face(root, paths, width, height, config)
            masks = read_sheet(root, face, width, height)
        except BadFace as error:
            problem = str(error).removesuffix(": ")
            continue
        vector = read_embedding(root, face.embedding_path)
        trusted = identity_reason(face, None, False, vector is not None, config) is None
        hair = _read_mask(mask, width, height) if mask else masks.hair
        return Request(photo, hair, masks.face & ~hair, vector if trusted else None, np.array(face.box))
    if mask is not None:
        return Request(photo, _read_mask(mask, width, height), np.zeros((height, width), bool), None)
    looked = " and ".join(str(root / stem) for root in roots)
    raise PipelineError(
        f"no hair mask: {problem} (looked in {looked})",
        file=image,
        remedy=f"run training_face on it and pass --training-face, or pass a mask with {option}",
    )


def _read(path: Path) -> np.ndarray:
    try:
        return files.read_image(path)
    except files.UnreadableImage as error:
        raise PipelineError(str(error), file=path, remedy="give a readable JPEG or PNG photo") from error


def _read_mask(path: Path, width: int, height: int) -> np.ndarray:
    mask = _read(path).max(axis=2) >= 128
    if mask.shape != (height, width):
        raise PipelineError(
            f"the mask is {mask.shape[1]}x{mask.shape[0]}, the photo {width}x{height}",
            file=path,
            remedy="give a mask of the photo's own size",
        )
    return mask
