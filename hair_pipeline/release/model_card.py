"""The model card: README.md of an exported version.

Belongs here: its text. Does not belong here: the files it describes (`export`).
"""

from __future__ import annotations

from typing import Any

from hair_pipeline.profile import Profile


def model_card(card: dict[str, Any], metrics: dict[str, Any], profile: Profile) -> str:
    """Markdown: what the model is, how to load it, how it was judged, what may be done with it.

    Args:
        card: content of hair_pipeline.json. metrics: entries of metrics.json (may be empty).
    """
    verdict = card["verdict"]
    rows = "\n".join(
        f"| {m['title']} | {_number(m)} | {m['n']} | {m['extractor'] or '-'} |"
        for m in metrics.values()
        if m["value"] is not None
    )
    table = (
        f"| Metric | Value (95% interval) | Images | Judge |\n|---|---|---|---|\n{rows}\n"
        if rows
        else "No validation report was made for this version.\n"
    )
    return f"""---
library_name: diffusers
pipeline_tag: image-to-image
license: other
license_name: research-use-see-below
tags: [hair, inpainting, virtual-try-on, lora, ip-adapter]
---

# Hair inpainting model {card["version"]}

Redraws the hair of a photo in a given style, for virtual hair try-on. A 9-channel inpainting UNet with LoRA, style
tokens in the cross-attention, and an IP-Adapter FaceID whose attention is masked to the face. Base: `{card["base"]}`.
Made for {card["resolution"]} x {card["resolution"]} pixels; photos of any size are cropped, redrawn and pasted back,
byte-identical outside the feathered mask.

## Use

```python
from hair_pipeline.release.serving import load
try_on = load("production")           # or this folder's path
result = try_on.redraw(person, style)  # two photos with their masks, see hair_pipeline.release.serving.Request
```

With stock diffusers: `UNet2DConditionModel.from_pretrained(folder, subfolder="unet")` reads the merged UNet (with
`variant="fp16", torch_dtype=torch.float16` in half precision);
`adapters/pytorch_lora_weights.safetensors` and `adapters/ip_adapter.safetensors` are read by `load_lora_weights` and
`load_ip_adapter(..., image_encoder_folder=None)` on the base, whose blocks that were trained in full are first replaced
by `unet.load_state_dict(load_file("adapters/unet_finetuned.safetensors"), strict=False)`, where there is that file;
`ip_adapter_masks` then takes `hair_pipeline.models.masks.for_every_level(face_mask)`, the mask that each level of the
UNet reads as its area average. `style_projection/` turns a style vector into what stands in `prompt_embeds`.
`style_patch_encoder.pt` loads with `torch.load(path, weights_only=True)`.

Inputs: an RGB photo, hair mask and face mask as training_face makes them, its 512-dimensional InsightFace embedding
(optional), and a style vector from `{card["style_source"]}`.

## Judged

A/B verdict **{verdict["verdict"]}** against {verdict["against"]} (test `{verdict["id"]}`).
{" ".join(verdict["reasons"])}

{table}
Stand-in judges are small networks trained on rendered people; their numbers must not be set beside
published ones.

## Limits

Old hair and its surroundings inside the mask are invented anew. Quality outside the training data's views, ages,
hair types and skin tones has not been shown. Not for identification, nor for pictures of people who have not agreed.

## Licences

- **K-Hairstyle** (training data of a production model): research use only. A model trained on it inherits that limit.
- **insightface** model packs (recogniser of the identity loss and metric, and training_face's embeddings):
  non-commercial research use.
- The base model has its own licence (Stable Diffusion: CreativeML Open RAIL-M).
- This project's code: Apache-2.0. Profile `{profile.name}`; a model trained on the embedded sample has seen rendered
  people only.

## Provenance

Stage 2 run `{card["stage2_run"]}`, trained on `{card["trained_on"]}`. Versions and settings: `hair_pipeline.json`.
"""


def _number(metric: dict[str, Any]) -> str:
    interval = "" if metric["ci_low"] is None else f" ({metric['ci_low']:.3f} to {metric['ci_high']:.3f})"
    return f"{metric['value']:.3f}{interval}"
