"""What each metric is called and means: the table behind metrics.json and the report.

Belongs here: titles, units, directions, sources, explanations. Does not belong here: the computations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        name: key in metrics.json and column in per_image.parquet (metrics of whole sets have no column), where a
            stand-in judged with `_stand_in` behind it.
        direction: which values are better.
        threshold: pass mark, if the specification sets one.
        explanation: two or three sentences for the report's reader.
    """

    name: str
    title: str
    unit: str
    direction: Literal["higher", "lower", "zero"]
    source: str
    explanation: str
    threshold: float | None = None
    digits: int = 3

    def passes(self, value: float) -> bool | None:
        """Does a value reach the pass mark? None where there is none."""
        if self.threshold is None:
            return None
        return value >= self.threshold if self.direction == "higher" else value <= self.threshold


METRICS = (
    Metric(
        "identity_raw",
        "Identity similarity before paste-back",
        "cosine, -1 to 1",
        "higher",
        "ArcFace, Deng et al. 2019, doi:10.1109/CVPR.2019.00482",
        "Is it still the same person? Cosine between the face recogniser's embeddings of the original photo and of "
        "what the model drew, before the original pixels are pasted back. Only reliable faces count: no blurred, "
        "missing or strongly turned ones.",
        threshold=0.70,
    ),
    Metric(
        "identity",
        "Identity similarity after paste-back",
        "cosine, -1 to 1",
        "higher",
        "ArcFace, Deng et al. 2019, doi:10.1109/CVPR.2019.00482",
        "The same on the finished picture, as a customer sees it. Close to 1 by construction, since the face outside "
        "the mask is the photo's own; a low value means that hair or mask covers the face.",
        threshold=0.70,
    ),
    Metric(
        "identity_second_raw",
        "Identity similarity before paste-back, second recogniser",
        "cosine, -1 to 1",
        "higher",
        "ArcFace, Deng et al. 2019, doi:10.1109/CVPR.2019.00482",
        "The same by the recogniser of the identity loss, where another one judges. A model may have learnt to please "
        "it: trust the judge more.",
        threshold=0.70,
    ),
    Metric(
        "identity_second",
        "Identity similarity after paste-back, second recogniser",
        "cosine, -1 to 1",
        "higher",
        "ArcFace, Deng et al. 2019, doi:10.1109/CVPR.2019.00482",
        "The same on the finished picture.",
        threshold=0.70,
    ),
    Metric(
        "lpips_hair",
        "Hair-region LPIPS",
        "distance, 0 and up",
        "lower",
        "Zhang et al. 2018, arXiv:1801.03924",
        "How different the redrawn hair looks from the photo's own hair, when its own style is asked for. Both are "
        "cut out with the hair mask; everything else is gray and masked out of the features.",
    ),
    Metric(
        "psnr_hair",
        "PSNR in the hair",
        "dB",
        "higher",
        "10 log10(255² / mean squared error)",
        "Pixel error inside the hair mask, when the photo's own style is asked for. Punishes every strand that lies "
        "elsewhere, so it is low for any redrawn hair: compare models, do not ask for a value.",
        digits=2,
    ),
    Metric(
        "ssim_hair",
        "SSIM in the hair",
        "-1 to 1",
        "higher",
        "Wang et al. 2004, doi:10.1109/TIP.2003.819861",
        "Local structure of the luminance inside the hair mask, when the photo's own style is asked for.",
    ),
    Metric(
        "psnr_background",
        "PSNR outside hair and face, before paste-back",
        "dB",
        "higher",
        "10 log10(255² / mean squared error)",
        "How well the model keeps what it was not asked to change, before the original pixels are pasted back (after "
        "it nothing differs). Bounded by the autoencoder. 100 stands for identical.",
        digits=2,
    ),
    Metric(
        "ssim_background",
        "SSIM outside hair and face, before paste-back",
        "-1 to 1",
        "higher",
        "Wang et al. 2004, doi:10.1109/TIP.2003.819861",
        "The same by local structure.",
    ),
    Metric(
        "frechet_ring",
        "FID in the hair-skin ring",
        "squared feature distance",
        "lower",
        "Heusel et al. 2017, arXiv:1706.08500; torch-fidelity",
        "Distance between the feature distributions of real and generated pictures in a ring where hair meets skin. "
        "Biased upwards with few pictures: compare only at equal N, and distrust it below 2,000.",
    ),
    Metric(
        "kernel_ring",
        "KID in the hair-skin ring",
        "squared MMD",
        "lower",
        "Binkowski et al. 2018, arXiv:1801.01401; torch-fidelity",
        "The same comparison by an estimator without that bias: around 0 (also slightly below) when real and "
        "generated rings cannot be told apart. No photo is compared with the picture made of it.",
        digits=4,
    ),
    Metric(
        "frechet_image",
        "FID of whole images",
        "squared feature distance",
        "lower",
        "Heusel et al. 2017, arXiv:1706.08500; torch-fidelity",
        "The Fréchet distance over whole finished pictures. Most of each picture is the photo itself, so it is lower "
        "than in the ring. The same bias with few pictures.",
    ),
    Metric(
        "kernel_image",
        "KID of whole images",
        "squared MMD",
        "lower",
        "Binkowski et al. 2018, arXiv:1801.01401; torch-fidelity",
        "The kernel distance over whole finished pictures.",
        digits=4,
    ),
    Metric(
        "curl_accuracy",
        "Curl as asked, own style",
        "share of images",
        "higher",
        "evaluation classifier, not the one in the loss",
        "Asked for the photo's own hair, does an independent classifier see the photo's curl class (straight, wavy, "
        "curly) in the result?",
    ),
    Metric(
        "bangs_accuracy",
        "Bangs as asked, own style",
        "share of images",
        "higher",
        "evaluation classifier, not the one in the loss",
        "The same for bangs or no bangs.",
    ),
    Metric(
        "curl_accuracy_transfer",
        "Curl as asked, another person's style",
        "share of images",
        "higher",
        "evaluation classifier, not the one in the loss",
        "Asked for another person's hair style, does the classifier see that person's curl class? This is what a "
        "try-on does, and the hardest of the texture metrics.",
    ),
    Metric(
        "bangs_accuracy_transfer",
        "Bangs as asked, another person's style",
        "share of images",
        "higher",
        "evaluation classifier, not the one in the loss",
        "The same for bangs or no bangs; the forehead is repainted for it.",
    ),
    Metric(
        "curl_accuracy_real",
        "Curl seen in the real photos",
        "share of images",
        "higher",
        "evaluation classifier, not the one in the loss",
        "The classifier's own accuracy on the untouched validation photos: no model can be expected to score higher "
        "than this, and a low value makes the texture metrics worthless.",
    ),
    Metric(
        "halo",
        "Halo along the mask border",
        "Delta E (CIE 1976)",
        "zero",
        "this project, see hair_pipeline.evaluation.metrics.seam",
        "How much more the border of the repainted region shows in the result than in the photo: colour step across "
        "it plus rim colours that lie on neither side. 0 is invisible, about 2.3 just noticeable. Look at the "
        "pictures too: seams at forehead, ears and hair roots are judged by people.",
        digits=2,
    ),
    Metric(
        "rim_sharpness",
        "Sharpness of the hair's edge",
        "octaves of gradient energy",
        "zero",
        "gradient energy, Krotkov 1988",
        "Detail along the hair's outline against the photo: 0 is equal, -1 is half (a blurred rim), +1 double.",
        digits=2,
    ),
    Metric(
        "leakage_swap",
        "Change when the old hair is swapped",
        "gray levels, 0 to 255",
        "lower",
        "this project, see hair_pipeline.evaluation.leakage",
        "The person's old hair is exchanged for another person's under the same mask, and everything is drawn again "
        "with the same style and seed. What differs in the repainted region leaked from the old hair. 0 is none; more "
        "than the rounding of a GPU's kernels must not be.",
        threshold=0.05,
    ),
    Metric(
        "leakage_transfer",
        "Old curl seen in transfers, above chance",
        "share of images",
        "lower",
        "this project, see hair_pipeline.evaluation.leakage; evaluation classifier",
        "Asked for another class, how much more often does the classifier see the person's old class than it does in "
        "other people's results for the same request? 0 is chance.",
    ),
    *(
        Metric(
            f"leakage_bald_{target}",
            f"Old {target} read from the bald image, above chance",
            "balanced accuracy, less 1 / number of classes",
            "lower",
            "this project, see hair_pipeline.processing.leakage; linear probe",
            f"A small probe is trained on the bald images of some people to tell the {target} of the hair that was "
            "removed, and tried on other people. 0 is chance; the note says what the outline of the mask alone gives "
            "away. A property of the removal of hair, not of the model.",
        )
        for target in ("length", "fringe", "curl")
    ),
    Metric(
        "untouched_changed",
        "Changed bytes outside the mask",
        "share of bytes",
        "lower",
        "this project's guarantee",
        "Share of bytes outside the feathered mask that differ from the photo. Must be 0.",
        threshold=0.0,
        digits=4,
    ),
)
