"""Exercises on minivl2/projector.py, of lesson 03. Graded by tests/test_projector.py."""

import small
import torch

from minivl2 import projector
from minivl2.config import ProjectorConfig
from minivl2.grading.exercise import Exercise, Mistake

# ------------------------------------------------------------------------------------------ the shuffle


def some_blocks():
    return [projector.pixel_shuffle(torch.arange(1.0, 1 + 2 * side**2 * 3).view(2, side**2, 3), r)
            for side, r in ((4, 2), (5, 2), (4, 3))]


def averaged(x, r=2):
    blocks = projector.F.unfold(_image(x, r), r, stride=r).transpose(1, 2)
    return blocks.unflatten(2, (x.shape[2], r * r)).mean(-1)


def _image(x, r):
    side = round(x.shape[1] ** 0.5)
    return projector.F.pad(x.transpose(1, 2).unflatten(2, (side, side)), (0, -side % r, 0, -side % r))


# ------------------------------------------------------------------------------------------ the MLP


def some_projection():
    cfg = ProjectorConfig(input_dim=3, n_embed=5, depth=3, mlp_ratio=2, downsample_ratio=3)
    return small.randomised(projector.Projector(cfg))(3 * small.numbers(2, 16, 3))


EXERCISES = (
    Exercise("projector.pixel_shuffle", "block_of or channels or odd_grid or unfold", some_blocks, (
        Mistake("channels innermost", {"permute(0, 2, 4, 1, 3, 5)": "permute(0, 2, 4, 3, 5, 1)"},
                "right pixels, wrong order: you put patch behind patch. DeepSeek-VL2 keeps the r * r numbers of a channel "
                "together: channels are outermost."),
        Mistake("padded at the left and the top", {"(0, pad, 0, pad)": "(pad, 0, pad, 0)"},
                "the zeros belong at the right and at the bottom; yours are at the left and the top."),
        Mistake("cropped", {"image = F.pad(image, (0, pad, 0, pad))": "image = image[..., :side // r * r, :side // r * r]"},
                "you drop the last row and column of an odd grid. They are kept, and padded with zeros."),
        Mistake("the edge repeated", {"(0, pad, 0, pad))": '(0, pad, 0, pad), mode="replicate")'},
                "you pad with copies of the edge; it is zeros."),
        Mistake("blocks transposed inside", {"permute(0, 2, 4, 1, 3, 5)": "permute(0, 2, 4, 1, 5, 3)"},
                "inside a block you go down the columns: a c b d. Reading order is a b c d."),
        Mistake("blocks column by column", {"permute(0, 2, 4, 1, 3, 5)": "permute(0, 4, 2, 1, 3, 5)"},
                "the blocks go down the columns. Reading order goes along a row first."),
        Mistake("far apart", {"unflatten(3, (-1, r)).unflatten(2, (-1, r))":
                              "unflatten(3, (r, -1)).unflatten(2, (r, -1)).permute(0, 1, 3, 2, 5, 4)"},
                "your blocks are made of patches half a tile apart: split each axis as (blocks, r), not (r, blocks)."),
        Mistake("channels for patches", {"x.transpose(1, 2).unflatten(2,": "x.reshape(M, W, P).unflatten(2,"},
                "you reshape (M, P, W) to (M, W, P), which mixes patches and channels: transpose."),
        Mistake("averaged", averaged, "you average the block. Nothing is averaged: the vectors stand behind each other."),
        Mistake("padded when even, too", {"pad = -side % r": "pad = r - side % r"}),
        Mistake("always 2", {"-side % r": "-side % 2", "(-1, r)": "(-1, 2)"}),
    )),
    Exercise("projector.Projector", "projector_is or exact_one or published or widths", some_projection, (
        Mistake("the tower's gelu", {"nn.GELU()": 'nn.GELU(approximate="tanh")'},
                "this is the tower's GELU, the one with tanh. The projector's is the exact one."),
        Mistake("relu", {"nn.GELU()": "nn.ReLU()"}, "the bend is another one: a ReLU, where it is a GELU."),
        Mistake("no bend", {"nn.GELU()": "nn.Identity()"}, "there is nothing between the layers: then they are one matrix."),
        Mistake("bend at the end", {"return self.layers(pixel_shuffle(patches, self.ratio))":
                                    "return nn.functional.gelu(self.layers(pixel_shuffle(patches, self.ratio)))"},
                "there is a GELU behind the last layer, too. The decoder's vectors must be free to be negative."),
        Mistake("bend before the first", {"pixel_shuffle(patches, self.ratio))":
                                          "nn.functional.gelu(pixel_shuffle(patches, self.ratio)))"},
                "there is a GELU before the first layer. They stand between layers only."),
        Mistake("ratio always 2", {"pixel_shuffle(patches, self.ratio)": "pixel_shuffle(patches, 2)"}),
        Mistake("inner width without the ratio", {"cfg.n_embed * cfg.mlp_ratio": "cfg.n_embed"}),
        Mistake("inner layers as wide as the input", {"inner = cfg.n_embed * cfg.mlp_ratio":
                                                      "inner = cfg.input_dim * self.ratio**2"}),
        Mistake("no biases", {"nn.Linear(widths[0], widths[1])": "nn.Linear(widths[0], widths[1], bias=False)"}),
        Mistake("two layers always", {"(cfg.depth - 1)": "1"}),
    )),
)
