"""Where networks run: the device of this process, and the machine's GPUs in words.

Belongs here: asking torch. Does not belong here: what fits on them (training).
"""

from __future__ import annotations

import torch


def best_device() -> torch.device:
    """The present GPU of this process, or the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def gpus_in_words() -> list[str]:
    """Name and memory of every GPU that torch can use."""
    cards = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    return [f"{card.name}, {card.total_memory / 2**30:.0f} GiB" for card in cards]
