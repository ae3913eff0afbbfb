"""Customer photos for the A/B test: images of a folder, with training_face's outputs beside them or in its root.

Belongs here: reading them, and saying who is left out and why. Does not belong here: running models on them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hair_pipeline.errors import PipelineError
from hair_pipeline.files import UnreadableImage, decode_image
from hair_pipeline.inputs.inventory import IMAGE_SUFFIXES
from hair_pipeline.inputs.k_hairstyle import Rejected, check_image, image_id_of
from hair_pipeline.inputs.reasons import FaceReason
from hair_pipeline.inputs.samples import Photo, Sample, to_sample
from hair_pipeline.inputs.training_face import (
    MIN_FACE_FRACTION,
    MIN_HAIR_FRACTION,
    BadFace,
    choose_face,
    identity_reason,
    index_faces,
    read_embedding,
    read_sheet,
)
from hair_pipeline.profile import InputsConfig
from hair_pipeline.settings import Settings


@dataclass(frozen=True)
class Customers:
    """The customers that can be used.

    Attributes:
        samples: photo and masks; the person is the image id.
        embeddings: image id -> (512,) float32, only where the identity is reliable.
        missing: file name -> why the customer is left out.
        no_identity: image id -> why there is no embedding, for customers that stand in `samples`.
    """

    samples: list[Sample] = field(default_factory=list)
    embeddings: dict[str, np.ndarray] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    no_identity: dict[str, str] = field(default_factory=dict)


def read_customers(folder: Path, settings: Settings, size: int = 512, config: InputsConfig | None = None) -> Customers:
    """Read `<folder>/<id>.jpg` and training_face's `<folder>/<id>[/<id>]/face_NN/`.

    Outputs not found in the folder are looked for in `settings.training_face_root`.

    Raises:
        PipelineError: no such folder, or no image in it.
    """
    config = config or settings.profile_values.inputs
    if not folder.is_dir():
        remedy = "set HAIR_PIPELINE_CUSTOMERS_ROOT or --customers to a folder of customer photos"
        raise PipelineError("no such folder", file=folder, remedy=remedy)
    names = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not names:
        raise PipelineError(
            "holds no photo", file=folder, remedy="put <id>.jpg and training_face's <id>/face_01/ there"
        )
    roots = [(folder, index_faces(folder))]
    if settings.training_face_root.is_dir():
        roots.append((settings.training_face_root, index_faces(settings.training_face_root)))
    customers = Customers()
    for name in names:
        image_id = image_id_of(name)
        root, faces = next(((root, index[image_id]) for root, index in roots if image_id in index), (folder, []))
        try:
            _read_one(customers, folder / name, image_id, root, faces, size, config)
        except (Rejected, BadFace, UnreadableImage) as error:
            customers.missing[name] = str(error).removesuffix(": ")
    return customers


def _read_one(
    customers: Customers, path: Path, image_id: str, root: Path, faces: list[str], size: int, config: InputsConfig
) -> None:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UnreadableImage(f"cannot be read ({error.strerror})") from error
    width, height = check_image(data)
    face = choose_face(root, faces, width, height, config)
    masks = read_sheet(root, face, width, height)
    if masks.face.mean() < MIN_FACE_FRACTION:
        raise BadFace(FaceReason.NO_FACE_MASK, face.sheet_path)
    if masks.hair.mean() < MIN_HAIR_FRACTION:
        raise BadFace(FaceReason.NO_HAIR_IN_SHEET, face.sheet_path)
    blurred = np.zeros((height, width), bool)
    photo = Photo(
        image_id, image_id, decode_image(data), masks.hair, masks.face, blurred, np.array(face.box, np.float32)
    )
    customers.samples.append(to_sample(photo, size))
    vector = read_embedding(root, face.embedding_path)
    reason = identity_reason(face, None, False, vector is not None, config)
    if vector is not None and reason is None:
        customers.embeddings[image_id] = vector
    else:
        customers.no_identity[image_id] = str(reason)
