"""The machine's GPUs, in words. Belongs here: asking torch. Does not belong here: what fits on them (training)."""

from __future__ import annotations

import torch


def gpus_in_words() -> list[str]:
    """Name and memory of every GPU that torch can use."""
    cards = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    return [f"{card.name}, {card.total_memory / 2**30:.0f} GiB" for card in cards]
