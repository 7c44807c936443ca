"""Probes that run in their own process: python -m commands.doctor.probes NAME

A library that is broken, or that kills its process, then costs one line of the report. A probe
prints what it found, or ends with the reason as the last line on standard error.
"""

from __future__ import annotations

import json
import logging
import sys

LARGEST_ERROR = 0.2  # of a weight between -1 and 1, in 4 bits


def torch_and_cards() -> None:
    """Print PyTorch's version and the GPUs it sees, as JSON."""
    import torch

    cards = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        card = torch.cuda.get_device_properties(index)
        capability = [card.major, card.minor]
        cards.append({"name": card.name, "capability": capability, "bytes": card.total_memory})
    versions = {"version": torch.__version__, "cuda": torch.version.cuda}
    print(json.dumps({**versions, "cards": cards}))


def four_bits() -> None:
    """Quantize weights to 4 bits and back."""
    import torch
    from bitsandbytes import functional

    device = "cuda" if torch.cuda.is_available() else "cpu"
    weights = torch.linspace(-1, 1, 4096, device=device).reshape(64, 64)
    packed, state = functional.quantize_4bit(weights, quant_type="nf4")
    error = (functional.dequantize_4bit(packed, state) - weights).abs().max().item()
    if not error < LARGEST_ERROR:
        sys.exit(f"wrong by {error:.2f}")


def triton() -> None:
    """Run TRL's fused loss with Triton's kernels."""
    import torch

    from library.llm.patches import set_up_fused_head

    logging.disable()
    if not set_up_fused_head(torch.device("cuda")):
        sys.exit("its kernels do not run here")


PROBES = {probe.__name__: probe for probe in (torch_and_cards, four_bits, triton)}


if __name__ == "__main__":
    PROBES[sys.argv[1]]()
