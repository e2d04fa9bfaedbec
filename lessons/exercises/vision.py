"""Exercises on minivl2/vision.py, of lesson 02. Graded by tests/test_vision.py."""

import small
from torch import nn
from torch.nn import functional as F

from minivl2 import vision
from minivl2.config import VisionConfig
from minivl2.grading.exercise import Exercise, Mistake

TINY = VisionConfig(image_size=13, patch_size=4, width=6, layers=2, heads=2, mlp_ratio=1.5)     # 3 x 3 patches


def some_mlp():
    return small.randomised(vision.MLP(TINY))(2 * small.numbers(3, 6))


def some_attention():
    return small.randomised(vision.SelfAttention(TINY))(small.numbers(2, 5, 6))


def some_block():
    return small.randomised(vision.Block(TINY))(small.numbers(2, 5, 6))


def some_tower():
    return small.randomised(vision.VisionTower(TINY))(small.numbers(2, 3, 13, 13))


class GatedMLP(nn.Module):
    """The decoder's kind of MLP, squeezed into two matrices."""

    def __init__(self, cfg):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(cfg.width, cfg.mlp_width), nn.Linear(cfg.mlp_width, cfg.width)

    def forward(self, x):
        inner = self.fc1(x)
        return self.fc2(F.gelu(inner, approximate="tanh") * inner)


EXERCISES = (
    Exercise("vision.MLP", "mlp or gelu or blocks", some_mlp, (
        Mistake("the exact gelu", {', approximate="tanh"': ""},
                'this is the exact GELU. SigLIP learned with the other one: F.gelu(..., approximate="tanh").'),
        Mistake("relu", {'F.gelu(self.fc1(x), approximate="tanh")': "F.relu(self.fc1(x))"},
                "the bend is another one: a ReLU, where SigLIP has a GELU."),
        Mistake("silu", {'F.gelu(self.fc1(x), approximate="tanh")': "F.silu(self.fc1(x))"},
                "the bend is another one: SiLU is what the decoder's experts use; the tower's is a GELU."),
        Mistake("no bend", {'F.gelu(self.fc1(x), approximate="tanh")': "self.fc1(x)"},
                "there is nothing between the two matrices: then they are one matrix."),
        Mistake("bend at the end", {'self.fc2(F.gelu(self.fc1(x), approximate="tanh"))':
                                    'F.gelu(self.fc2(F.gelu(self.fc1(x), approximate="tanh")), approximate="tanh")'},
                "there is a second GELU behind fc2. The result must be free to be negative."),
        Mistake("residual inside", {"return self": "return x + self"},
                "you add x already here. The block does that; so it is added twice."),
        Mistake("gated", GatedMLP),
        Mistake("four times as wide", {"cfg.mlp_width": "4 * cfg.width"}),
        Mistake("no biases", {"cfg.mlp_width)": "cfg.mlp_width, bias=False)", "cfg.width)": "cfg.width, bias=False)"}),
    )),
    Exercise("vision.SelfAttention.forward", "attention_and_blocks or tower_is_the_papers", some_attention, (
        Mistake("heads before parts", {"(3, self.heads, -1)).permute(2, 0, 3, 1, 4)":
                                       "(self.heads, 3, -1)).permute(3, 0, 2, 1, 4)"},
                "you take queries, keys and values from within each head. In this checkpoint all queries come first, then "
                "all keys, then all values: (3, heads, d)."),
        Mistake("numbers of a head spread", {"(3, self.heads, -1)).permute(2, 0, 3, 1, 4)":
                                             "(3, -1, self.heads)).permute(2, 0, 4, 1, 3)"},
                "a head's numbers lie beside each other: unflatten to (3, heads, d), not (3, d, heads)."),
        Mistake("not scaled", {"attend(q, k, v)": "attend(q, k, v, scale=1.0)"},
                "the scores are not divided by the root of the width of a head."),
        Mistake("scaled by the whole width", {"attend(q, k, v)": "attend(q, k, v, scale=x.shape[-1] ** -0.5)"},
                "you divide by the root of the whole width W. Each head's dot products are sums of d = W / H products."),
        Mistake("scaled without the root", {"attend(q, k, v)": "attend(q, k, v, scale=1 / q.shape[-1])"},
                "you divide by d; it is the root of d."),
        Mistake("softmax over queries", {"attend(q, k, v)": "(((q @ k.mT) * q.shape[-1] ** -0.5).softmax(-2) @ v)"},
                "the softmax goes over the wrong axis: the weights *one query* gives to all keys add up to 1, so it is the "
                "last."),
        Mistake("causal", {"attend(q, k, v)": "F.scaled_dot_product_attention(q, k, v, is_causal=True)"},
                "you mask what comes later. In a picture nothing comes later: every patch sees all."),
        Mistake("heads not joined", {".transpose(1, 2).flatten(2)": ".reshape(x.shape)"},
                "the heads' answers are (M, H, P, d): bring H beside d before you flatten. A reshape alone mixes patches."),
        Mistake("keys first", {"q, k, v =": "k, q, v ="},
                "queries and keys are swapped: the first third of qkv is the queries."),
        Mistake("without proj", {"self.proj(attend(q, k, v).transpose(1, 2).flatten(2))":
                                 "attend(q, k, v).transpose(1, 2).flatten(2)"}, "proj is forgotten."),
        Mistake("across tiles", {"attend(q, k, v)":
                "attend(*(t.transpose(0, 1).flatten(1, 2)[None] for t in (q, k, v)))[0].unflatten(1, x.shape[:2])"
                ".transpose(0, 1)"}),
        Mistake("values for keys", {"attend(q, k, v)": "attend(q, v, v)"}),
        Mistake("residual inside", {"return self": "return x + self"}),
    )),
    Exercise("vision.Block.forward", "attention_and_blocks or tower_is_the_papers or survive", some_block, (
        Mistake("norms after", {"x + self.attn(self.norm1(x))": "self.norm1(x + self.attn(x))",
                                "x + self.mlp(self.norm2(x))": "self.norm2(x + self.mlp(x))"},
                "the norms stand behind the sums, as in the first transformer. Here each half reads a normalised x, and "
                "adds to x as it is."),
        Mistake("no residual", {"x = x + self": "x = self", "return x + self": "return self"},
                "each half must add to x, not replace it."),
        Mistake("added to the normed", {"x = x + self.attn(self.norm1(x))": "x = self.norm1(x); x = x + self.attn(x)",
                                        "return x + self.mlp(self.norm2(x))": "x = self.norm2(x); return x + self.mlp(x)"},
                "you add to the normalised x. The norm is only for what the half reads; the stream itself stays as it is."),
        Mistake("in parallel", {"return x + self.mlp(self.norm2(x))": "return x + self.mlp(self.norm2(was))",
                                "x = x + self": "was = x; x = x + self"},
                "the MLP reads what came into the block. It shall read what attention has made of it."),
        Mistake("one norm for both", {"self.norm2": "self.norm1"}, "each half has a norm of its own: norm1 and norm2."),
        Mistake("no norms", {"self.norm1(x)": "x", "self.norm2(x)": "x"}, "the norms are forgotten."),
        Mistake("mlp first", {"self.attn(self.norm1(x))": "self.mlp(self.norm2(x))",
                              "return x + self.mlp(self.norm2(x))": "return x + self.attn(self.norm1(x))"},
                "attention comes first, then the MLP."),
        Mistake("no residual around the mlp", {"return x + self": "return self"}),
        Mistake("no second norm", {"self.norm2(x)": "x"}),
    )),
    Exercise("vision.VisionTower.forward", "tower_is_the_papers or survive or every_tile or never_seen", some_tower, (
        Mistake("reshaped", {".flatten(2).transpose(1, 2) +": ".reshape(len(tiles), -1, self.pos_embed.shape[-1]) +"},
                "reshape reads the numbers as they lie: channel after channel. A patch's numbers are not beside each other "
                "there: flatten(2), then transpose(1, 2)."),
        Mistake("column by column", {".flatten(2).transpose(1, 2) +": ".mT.flatten(2).transpose(1, 2) +"},
                "your patches go down the columns. Reading order goes along a row first."),
        Mistake("no positions", {" + self.pos_embed": ""}, "the positions are not added."),
        Mistake("positions at the end", {" + self.pos_embed": "", "self.norm(x)": "self.norm(x + self.pos_embed)"},
                "the positions are added after the blocks, where no patch can use them to ask for another: they belong "
                "before the first."),
        Mistake("positions before every block", {" + self.pos_embed  ": "  ",
                                                 "x = block(x)": "x = block(x + self.pos_embed)"}),
        Mistake("no last norm", {"self.norm(x)": "x"}, "the last norm is forgotten."),
        Mistake("norm before the blocks", {"x = block(x)": "x = block(self.norm(x))", "return self.norm(x)": "return x"},
                "the tower's norm stands behind the last block. (CLIP has one before the first; SigLIP has not.)"),
        Mistake("pooled", {"return self.norm(x)": "return self.norm(x).mean(1)"},
                "you average over the patches, which makes one vector of the whole tile. The decoder wants to know what is "
                "where: all P vectors."),
        Mistake("the first block only", {"for block in self.blocks:": "for block in self.blocks[:1]:"}),
        Mistake("the same block again", {"for block in self.blocks:": "for block in [self.blocks[0]] * len(self.blocks):"}),
        Mistake("pooled and normed before", {"return self.norm(x)": "return self.norm(x.mean(1, keepdim=True))"}),
    )),
)
