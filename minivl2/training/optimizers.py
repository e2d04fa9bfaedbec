"""Muon for the matrices inside, AdamW for the rest, and the learning rate over time.

Papers   Muon: arXiv:2502.16982, section 2. AdamW: arXiv:1711.05101.        Tests   tests/test_training.py

Muon replaces a matrix's gradient by the nearest orthogonal one, so that all directions of the matrix learn at the
same speed. It needs no second moment. The toy learns to see several times faster with it than with AdamW alone.
"""

import math

import torch
from torch import nn

MUON_RATE, ADAMW_RATE = 3e-3, 2e-3
WEIGHT_DECAY = 0.01
WARMUP, LOWEST = 0.02, 0.05     # fraction of all steps to warm up; fraction of the rate that is left at the end


def make(model: nn.Module) -> list[torch.optim.Optimizer]:
    """Two optimisers that together step every parameter."""
    inner, rest = [], []
    for name, parameter in model.named_parameters():
        # A row of an embedding or of the head belongs to one token, a row of the gate to one expert: those are
        # lists of vectors, not maps. Experts are small and many: each would cost Muon more time than it saves.
        is_map = parameter.ndim == 2 and not any(part in name for part in ("embed", "head", "gate.weight", ".experts."))
        (inner if is_map else rest).append(parameter)
    # initial_lr is what rate() below is a fraction of
    return [
        torch.optim.Muon([{"params": inner, "initial_lr": MUON_RATE}], lr=MUON_RATE, weight_decay=WEIGHT_DECAY,
                         adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([{"params": rest, "initial_lr": ADAMW_RATE}], lr=ADAMW_RATE, betas=(0.9, 0.95),
                          weight_decay=WEIGHT_DECAY),
    ]


def rate(progress: float) -> float:
    """The fraction of the full learning rate at this progress (0 to 1): a short rise, then half a cosine down."""
    if progress < WARMUP:
        return progress / WARMUP
    fallen = (progress - WARMUP) / (1 - WARMUP)
    return LOWEST + (1 - LOWEST) * (1 + math.cos(math.pi * fallen)) / 2
