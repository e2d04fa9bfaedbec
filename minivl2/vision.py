"""The vision tower: SigLIP's vision transformer turns one tile into one vector per patch.

Paper    SigLIP, arXiv:2303.15343 (training); ViT, arXiv:2010.11929, Eqs. 1-4 (architecture).
         DeepSeek-VL2, section 2 "Vision encoder".
Lesson   lessons/02_seeing.ipynb         Tests   tests/test_vision.py

SO400M/14 at 384 pixels: 27 x 27 patches of 14 pixels (the last 6 pixels of a tile fill no patch and are never
seen), 27 blocks. No class token, and no pooling: the decoder wants to know what is *where*.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minivl2.attention import attend
from minivl2.config import VisionConfig


class SelfAttention(nn.Module):
    """Every patch looks at every patch of its tile; nothing is masked. (M, P, W) -> (M, P, W)"""

    def __init__(self, cfg: VisionConfig):
        super().__init__()
        self.heads = cfg.heads
        self.qkv = nn.Linear(cfg.width, 3 * cfg.width)
        self.proj = nn.Linear(cfg.width, cfg.width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)     # each (M, H, P, d)
        return self.proj(attend(q, k, v).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, cfg: VisionConfig):
        super().__init__()
        self.fc1 = nn.Linear(cfg.width, cfg.mlp_width)
        self.fc2 = nn.Linear(cfg.mlp_width, cfg.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))    # SigLIP's GELU is the tanh one


class Block(nn.Module):
    def __init__(self, cfg: VisionConfig):
        super().__init__()
        self.norm1 = nn.LayerNorm(cfg.width, eps=1e-6)
        self.attn = SelfAttention(cfg)
        self.norm2 = nn.LayerNorm(cfg.width, eps=1e-6)
        self.mlp = MLP(cfg)
        for last in (self.attn.proj, self.mlp.fc2):     # a block begins by changing nothing: training starts faster
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTower(nn.Module):
    def __init__(self, cfg: VisionConfig):
        super().__init__()
        self.patch_embed = nn.Conv2d(3, cfg.width, kernel_size=cfg.patch_size, stride=cfg.patch_size)
        self.pos_embed = nn.Parameter(torch.empty(1, cfg.grid**2, cfg.width))
        nn.init.normal_(self.pos_embed, std=0.02)
        self.blocks = nn.ModuleList(Block(cfg) for _ in range(cfg.layers))
        self.norm = nn.LayerNorm(cfg.width, eps=1e-6)

    def forward(self, tiles: Tensor) -> Tensor:
        """tiles: (M, 3, image_size, image_size), values -1 to 1. Returns (M, P, W), patches in reading order."""
        x = self.patch_embed(tiles).flatten(2).transpose(1, 2) + self.pos_embed     # (M, P, W)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)
