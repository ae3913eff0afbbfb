"""A head start for a small VAE: at its first step it already passes block averages of the colours through.

Belongs here: the starting weights. Does not belong here: training (`trainers.inpainting_base`). From random weights a
VAE of this size spends most of a CPU minute on learning what colour is; from these it spends it on strands.

How: residual branches start at zero, so that every block is its shortcut; five carrier channels (red, green, blue, and
two constants of opposite sign) run through all shortcuts and resamplers; the constants dominate the last GroupNorm (one
group), which makes it an affine map, and the activation after it is used where it is nearly linear.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from torch import nn

CARRIERS = 5
_CONSTANT = 4.0
_OFFSET = 3.0
"""Added before the last SiLU, whose slope is about 1 there."""
_BINOMIAL = torch.tensor([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]]) / 16


def single_group(vae: AutoencoderKL, seed: int) -> AutoencoderKL:
    """A new VAE of the same shape whose GroupNorms have one group, as `start_from_averages` needs."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        new: AutoencoderKL = AutoencoderKL.from_config(dict(vae.config) | {"norm_num_groups": 1})
    return new


@torch.no_grad()
def start_from_averages(vae: AutoencoderKL) -> None:
    """Set the starting weights of a VAE with three image channels, at least three latent ones and one norm group."""
    for module in vae.modules():
        if hasattr(module, "conv2") and hasattr(module, "conv1"):
            module.conv2.weight.zero_()
            module.conv2.bias.zero_()
            if module.conv_shortcut is not None:
                _carry(module.conv_shortcut)
    for block in vae.encoder.down_blocks:
        for sampler in block.downsamplers or []:
            _carry(sampler.conv)
            for channel in range(CARRIERS):  # the mean of 2 x 2; the rows padded with zeros are not touched
                sampler.conv.weight[channel, channel] = 0
                sampler.conv.weight[channel, channel, :2, :2] = 0.25
    for block in vae.decoder.up_blocks:
        for sampler in block.upsamplers or []:
            _carry(sampler.conv)
            for channel in range(3):  # nearest-neighbour enlargement, then a binomial: a smooth interpolation
                sampler.conv.weight[channel, channel] = _BINOMIAL
    _spread(vae.encoder.conv_in)
    _spread(vae.decoder.conv_in)
    latent = int(vae.config.latent_channels)
    _gather(vae.encoder)
    vae.encoder.conv_out.weight[latent:] *= 0.1
    vae.encoder.conv_out.bias[latent:] = -6.0
    _gather(vae.decoder)
    for convolution in (vae.quant_conv, vae.post_quant_conv):
        if convolution is not None:
            nn.init.dirac_(convolution.weight)
            nn.init.zeros_(convolution.bias)


def _middle(convolution: nn.Conv2d) -> tuple[int, int]:
    return convolution.kernel_size[0] // 2, convolution.kernel_size[1] // 2


def _carry(convolution: nn.Conv2d) -> None:
    """Carrier channels go through unchanged and take nothing from the others."""
    y, x = _middle(convolution)
    convolution.weight[:CARRIERS] = 0
    convolution.bias[:CARRIERS] = 0  # type: ignore[index]
    for channel in range(CARRIERS):
        convolution.weight[channel, channel, y, x] = 1


def _spread(convolution: nn.Conv2d) -> None:
    """The first three inputs become the colour carriers; the constants come from the bias."""
    y, x = _middle(convolution)
    convolution.weight[:CARRIERS] = 0
    convolution.bias[:CARRIERS] = torch.tensor([0.0, 0.0, 0.0, _CONSTANT, -_CONSTANT])  # type: ignore[index]
    for channel in range(3):
        convolution.weight[channel, channel, y, x] = 1


def _gather(part: nn.Module) -> None:
    """Undo the last norm: colour minus the mean of the two constants, times the norm's scale."""
    norm, out = part.conv_norm_out, part.conv_out
    assert isinstance(norm, nn.GroupNorm)
    assert isinstance(out, nn.Conv2d)
    # with two constants of +-K among n channels and little else, the group's deviation is about K sqrt(2 / n), and
    # the constants themselves come to +-sqrt(n / 2); their offsets put all carriers where SiLU is nearly linear
    constant = (norm.num_channels / 2) ** 0.5
    scale = _CONSTANT / constant
    norm.bias[:4] = _OFFSET
    norm.bias[4] = _OFFSET + 2 * constant
    at_zero = nn.functional.silu(torch.tensor(_OFFSET)) - nn.functional.silu(torch.tensor(_OFFSET + constant))
    y, x = _middle(out)
    out.weight[:3] = 0
    out.bias[:3] = -scale * at_zero  # type: ignore[index]
    for channel in range(3):
        out.weight[channel, channel, y, x] = scale
        out.weight[channel, 3:CARRIERS, y, x] = -scale / 2
