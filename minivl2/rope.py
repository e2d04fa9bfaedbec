"""Rotary position embedding: turn pairs of numbers by an angle that grows with the position.

Paper    RoFormer, arXiv:2104.09864, Eqs. 14-15 and 34.
Lesson   lessons/04_attention.ipynb            Tests   tests/test_rope.py

Pair i of a vector of width d turns by position * base^(-2i/d). A dot product of two turned vectors then depends only
on how far apart they stand. Which two numbers form a pair is a convention, and DeepSeek-VL2 uses both:

    half-split    (x0, x_d/2), (x1, x_d/2+1), ...    multi-head attention (Tiny), as in Llama
    interleaved   (x0, x1), (x2, x3), ...            latent attention (Small, Base), as in the paper

Weights trained for one are silently wrong under the other: every shape fits, and the answers are noise.
"""

import torch
from torch import Tensor


def rotation(positions: Tensor, width: int, base: float, dtype=torch.float32) -> tuple[Tensor, Tensor]:
    """Cosine and sine of every pair's angle: positions (B, T) -> two (B, 1, T, width/2).

    The 1 is the place of the heads: all of them turn alike. Never ask for bfloat16 here: with 8 bits of precision,
    positions 256 and 257 are the same number.
    """
    frequencies = 1.0 / base ** (torch.arange(0, width, 2, device=positions.device, dtype=dtype) / width)
    angles = positions[:, None, :, None].to(dtype) * frequencies
    return angles.cos(), angles.sin()


def rotate_half_split(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (B, H, T, d): number i is paired with number i + d/2."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).type_as(x)


def rotate_interleaved(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (B, H, T, R): number 2i is paired with number 2i + 1."""
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2).type_as(x)
