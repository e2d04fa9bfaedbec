"""Exercises on minivl2/training/optimizers.py, of lesson 08. Graded by tests/test_optimizers.py."""

import small
import torch
from torch import nn

from minivl2.grading.exercise import Exercise, Mistake
from minivl2.training import optimizers


def some_rates():
    return torch.tensor([optimizers.rate(progress) for progress in (0, 0.013, 0.02, 0.1, 0.3, 0.5, 0.9, 1)])


def some_orthogonal():
    """A wide one, a tall one, and a stack of two of different sizes."""
    stack = small.numbers(2, 4, 5, seed=2) * torch.tensor([1.0, 30.0])[:, None, None]
    return [optimizers.orthogonal(m) for m in (small.numbers(4, 7), 50 * small.numbers(7, 4, seed=1), stack)]


SHAPES = {
    "decoder.layers.1.mlp.gate_proj.weight": (3, 2), "decoder.layers.1.mlp.gate.weight": (3, 2),
    "decoder.embed.weight": (3, 2), "decoder.head.weight": (3, 2), "vision.patch_embed.weight": (3, 3, 2, 2),
    "vision.pos_embed": (1, 3, 2), "decoder.norm.weight": (3,), "decoder.layers.0.attn.q_proj.weight": (3, 2)}


def some_maps():
    return [float(bool(optimizers.is_map(name, nn.Parameter(torch.zeros(shape))))) for name, shape in SHAPES.items()]


def of_each_row(G, steps=5):
    return G / (G.norm(dim=-1, keepdim=True) + 1e-7)


def q_of_qr(G, steps=5):
    tall = G.shape[-2] > G.shape[-1]
    Q = torch.linalg.qr(G if tall else G.mT)[0]
    return Q if tall else Q.mT


ORTHOGONAL = "test_an_orthogonal or stack or zeros"
EXERCISES = (
    Exercise("training.optimizers.rate", "rate_at or rate_begins", some_rates, (
        Mistake("no warm-up", {"if progress < WARMUP:": "if False:"},
                "there is no rise at the beginning. The first gradients are the largest and the least to be trusted, "
                "and an "
                "optimiser's averages are still empty."),
        Mistake("down to nothing", {"LOWEST + (1 - LOWEST) *": "1.0 *"},
                "your rate ends at 0. LOWEST of it is to be left."),
        Mistake("LOWEST added", {"(1 - LOWEST) *": ""},
                "you add LOWEST to the cosine, so it begins above 1. Scale the cosine by 1 - LOWEST first."),
        Mistake("a straight line down", {"(1 + math.cos(math.pi * fallen)) / 2": "(1 - fallen)"},
                "the rate falls in a straight line. Half a cosine stays high for longer, and ends gently."),
        Mistake("a whole cosine", {"math.pi * fallen": "2 * math.pi * fallen"},
                "a whole cosine rises again in the second half: cos(pi * x), not cos(2 pi * x)."),
        Mistake("the cosine over all steps", {"fallen = (progress - WARMUP) / (1 - WARMUP)": "fallen = progress"},
                "the cosine runs over all steps, so it has already begun to fall when the rise ends. It begins after "
                "WARMUP."),
        Mistake("a shorter cosine", {"/ (1 - WARMUP)": ""}),
        Mistake("rises from LOWEST", {"return progress / WARMUP": "return LOWEST + (1 - LOWEST) * progress / WARMUP"},
                "the rise begins at LOWEST; it is to begin at 0."),
        Mistake("a jump", {"return progress / WARMUP": "return progress"}),
    )),
    Exercise("training.optimizers.orthogonal", ORTHOGONAL, some_orthogonal, (
        Mistake("not made small first", {"X = X / (X.norm(dim=(-2, -1), keepdim=True) + 1e-7)": "X = X + 0"},
                "the matrix must be divided by its norm first: for singular values above about 1.2 the iteration runs "
                "away."),
        Mistake("one norm for the whole stack", {"X.norm(dim=(-2, -1), keepdim=True)": "X.norm()"},
                "you divide a stack of matrices by one norm: those with small gradients are then too small for five "
                "steps. Each "
                "has its own, over the last two dimensions."),
        Mistake("one step", {"range(steps)": "range(1)"}, "one step is not enough. Repeat it `steps` times."),
        Mistake("not turned back", {"(X.mT if tall else X).reshape(G.shape)": "X.view(*G.shape[:-2], *X.shape[-2:])"},
                "a tall matrix comes back lying down: transpose it again at the end."),
        Mistake("rows made long as one", of_each_row,
                "each row has length 1 now, but rows may still be alike. It is the singular values that shall be "
                "equal."),
        Mistake("Q of QR", q_of_qr,
                "that is Q of the QR decomposition: orthogonal too, but its directions follow from the first column. "
                "Wanted is "
                "the nearest one, U V^T."),
        Mistake("only the norm", {"for _ in range(steps):": "for _ in range(0):"},
                "the matrix is only divided by its norm. Its small directions are as small as before."),
        Mistake("cubic only", {"a, b, c = 3.4445, -4.7750, 2.0315": "a, b, c = 1.5, -0.5, 0.0"}),
        Mistake("signs", {"beta=b": "beta=-b"}),
        Mistake("number by number", {"torch.baddbmm(X, B, X, beta=a)": "a * X + b * X**3 + c * X**5"},
                "you take powers number by number. The polynomial is of the matrix: X^3 means X X^T X."),
        Mistake("five steps always", {"range(steps)": "range(5)"}),
        Mistake("a guard too large", {"1e-7": "1e-2"}),
        Mistake("no guard against zero", {" + 1e-7": ""}),
    )),
    Exercise("training.optimizers.is_map", "not_maps", some_maps, (
        Mistake("every matrix", {" and (\"patch_embed\" in name or not any(part in name for part in lists))": ""},
                "every matrix counts with you. The rows of an embedding, of the head and of a gate are one vector for "
                "each "
                "token or expert: lists, and made orthogonal they would all be pushed apart."),
        Mistake("no convolution", {"parameter.ndim in (2, 4)": "parameter.ndim == 2"},
                "patch_embed is left out. For its name? It is no list of vectors. For its four dimensions? A "
                "convolution over "
                "patches is a matrix all the same: the pixels of a patch in, numbers out."),
        Mistake("all gates", {'"gate.weight"': '"gate"'},
                "gate_proj is left out, too: it is a map inside an expert. Only mlp.gate.weight is a list."),
        Mistake("gates are maps", {', "gate.weight"': ""},
                "the gates count as maps; a gate's rows are one vector an expert."),
        Mistake("the head is a map", {', "head"': ""}, "the head counts as a map; its rows are one vector a token."),
        Mistake("vectors too", {"parameter.ndim in (2, 4)": "parameter.ndim in (1, 2, 4)"},
                "vectors count as maps; norms and biases have no directions to make equal."),
        Mistake("positions too", {"parameter.ndim in (2, 4)": "parameter.ndim in (2, 3, 4)"}),
    )),
)
