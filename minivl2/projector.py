"""The projector ("VL adaptor"): 2 x 2 pixel shuffle, then an MLP into the decoder's width.

Paper    DeepSeek-VL2, section 2 "Vision-language adaptor".
Lesson   lessons/03_squeezing.ipynb          Tests   tests/test_projector.py

A tile of 27 x 27 = 729 vectors is a long read for a decoder. Every 2 x 2 block of neighbours becomes *one* vector,
four times as wide: nothing is averaged away, and 14 x 14 = 196 vectors are left.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from minivl2.config import ProjectorConfig


def pixel_shuffle(x: Tensor, r: int = 2) -> Tensor:
    """(M, P, W) patches of square tiles -> (M, P', W*r*r): every r x r block of neighbours is one vector.

    An odd grid is padded with zeros at the right and the bottom (27 -> 28). Channels are outermost: the r*r values
    of channel 0 come first, then those of channel 1, and so on. [a b; c d] of two channels is
    a0 b0 c0 d0 a1 b1 c1 d1. The other order has the same shape, raises no error, and ruins the checkpoint.
    """
    M, P, W = x.shape
    side = int(P**0.5)
    if side * side != P:
        raise ValueError(f"{P} patches do not form a square")
    pad = -side % r
    image = x.transpose(1, 2).unflatten(2, (side, side))                # (M, W, side, side)
    image = F.pad(image, (0, pad, 0, pad))
    blocks = image.unflatten(3, (-1, r)).unflatten(2, (-1, r))          # (M, W, rows, r, columns, r)
    return blocks.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)    # (M, rows*columns, W*r*r)


class Projector(nn.Module):
    def __init__(self, cfg: ProjectorConfig):
        super().__init__()
        self.ratio = cfg.downsample_ratio
        inner = cfg.n_embed * cfg.mlp_ratio
        widths = [cfg.input_dim * self.ratio**2, *[inner] * (cfg.depth - 1), cfg.n_embed]
        layers: list[nn.Module] = [nn.Linear(widths[0], widths[1])]
        for before, after in zip(widths[1:], widths[2:], strict=False):
            layers += [nn.GELU(), nn.Linear(before, after)]             # here the exact GELU, not the tower's
        self.layers = nn.Sequential(*layers)

    def forward(self, patches: Tensor) -> Tensor:
        """(M, P, W) vectors of the vision tower -> (M, P', D) vectors of the decoder."""
        return self.layers(pixel_shuffle(patches, self.ratio))
