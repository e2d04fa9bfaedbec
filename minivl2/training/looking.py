"""Looking: while it learns to answer, the decoder's last two layers are told where in the picture to look.

Lesson   lessons/08_training.ipynb                      Tests   tests/test_looking.py

"How much is B?" takes two things at once: a query that finds the B, and something worth finding there. While either is
missing, learning the other makes no answer better, so nothing tells them to begin: on charts of two tiles the toy guessed
for fifty thousand steps. Told where to look, it learns the first for its own sake, and the second follows.

The world knows where each answer is to be seen (`Question.seen`), and what belongs to what (`Line.of`):

    last layer          a token of an answer looks at the visual tokens that show this piece of it
    the one before      a visual token that shows a cell of a table looks at the names of its row and its column

Both are losses, -log of the attention that falls where it should, of the head where that is most. One head is enough; the
others are free. How the layers below make it possible is left to them.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from minivl2.attention import attend
from minivl2.batch import Batch
from minivl2.model import DeepSeekVL2
from minivl2.places import LOCAL, places
from minivl2.processor import Processor
from minivl2.record import overhear
from minivl2.toyworld import Question, Sample
from minivl2.training import team
from minivl2.training.sight import spans

MUCH = 0.25     # of what a visual token shows: a thing that covers so much of it is there to be seen
Box = tuple[float, float, float, float]


class Looks(NamedTuple):
    """Where n tokens are to look."""

    rows: Tensor        # (n,) the conversation
    queries: Tensor     # (n,) the place in it of the token that looks
    shows: Tensor       # (n, T) bool, at which tokens of the conversation


def looks(
    processor: Processor, samples: Sequence[Sample], asked: Sequence[Sequence[Question]], batch: Batch
) -> tuple[Looks, Looks]:
    """For the last layer but one, and for the last. Of every conversation its sample, and the questions asked in it."""
    ties, answers = [], []
    for row, (sample, questions) in enumerate(zip(samples, asked, strict=True)):
        view = View(processor, sample)
        visual = batch.image_mask[row].nonzero().flatten()[: len(view.local)]       # of the first picture
        ties += [(row, int(visual[token]), visual[shown]) for token, shown in tied(view, sample)]
        predicting = batch.learned[row].nonzero().flatten().tolist()
        shown = [tokens for question in questions for tokens in where(processor, view, question)]
        answers += [(row, token, visual[tokens]) for token, tokens in zip(predicting, shown, strict=True)]
    return gathered(ties, batch), gathered(answers, batch)


def gathered(looks: list[tuple[int, int, Tensor]], batch: Batch) -> Looks:
    """(conversation, who looks, at what) of each as tensors, without those that look at nothing."""
    looks = [look for look in looks if len(look[2])]
    shows = torch.zeros(len(looks), batch.input_ids.shape[1], dtype=torch.bool)
    for i, (_, _, shown) in enumerate(looks):
        shows[i, shown] = True
    rows, queries = (torch.tensor([look[i] for look in looks], dtype=torch.long) for i in (0, 1))
    return Looks(rows, queries, shows)


class View:
    """Which of a picture's visual tokens show what of it. Of several pictures, the first."""

    def __init__(self, processor: Processor, sample: Sample):
        cfg, nowhere = processor.config, (torch.nan,) * 4
        line = places(sample.images[0].size, sample.grid, cfg.tile, cfg.patch_size, cfg.downsample_ratio)
        self.rectangles = torch.tensor([place.in_picture or nowhere for place in line])     # (visual tokens, 4)
        self.local = torch.tensor([place.view == LOCAL for place in line])

    def showing(self, boxes: Sequence[Box]) -> Tensor:
        """The tokens in which the middle of a box lies, or of which it covers much: (boxes, visual tokens) bool. A letter
        is a box without width: it is looked for in the tiles only."""
        left, top, right, lower = self.rectangles.T
        x1, y1, x2, y2 = torch.tensor(boxes).view(-1, 4, 1).unbind(1)
        x, y = (x1 + x2) / 2, (y1 + y2) / 2
        middle = (left <= x) & (x < right) & (top <= y) & (y < lower)
        covered = (right.minimum(x2) - left.maximum(x1)).relu() * (lower.minimum(y2) - top.maximum(y1)).relu()
        much = covered > MUCH * (right - left) * (lower - top)
        return (middle | much) & (self.local | (x1 < x2))


def where(processor: Processor, view: View, question: Question) -> list[Tensor]:
    """For each token of the answer, and its end, which visual tokens show it (bool); none where the world does not say."""
    pieces, end = [], 0
    for piece, _ in question.seen:
        start = question.answer.index(piece, end)
        end = start + len(piece)
        pieces.append((start, end))
    shown = view.showing([box for _, box in question.seen])
    return [shown[[start < last and first < end for start, end in pieces]].any(0)
            for _, (first, last) in (*spans(processor, question.answer), (None, (end, end)))]


def tied(view: View, sample: Sample) -> list[tuple[int, Tensor]]:
    """Of each line of letters that belongs to others, every visual token that shows some of it, with those (bool) that
    show some of one of the others and come before it: a token cannot see those after it."""
    lines = sample.written
    letters = [(x, y, x, y) for line in lines for x, y in line.middles]
    shown = dict(zip(lines, view.showing(letters).split([len(line.middles) for line in lines]), strict=True))
    shown = {line: tokens.any(0) for line, tokens in shown.items()}
    before = torch.arange(len(view.local))
    return [(token, shown[other] & (before <= token)) for line in lines for other in line.of
            for token in shown[line].nonzero().flatten().tolist()]


class Given(TorchFunctionMode):
    """What `attend` was given, while this is entered: it does not give away its weights."""

    def __torch_function__(self, called, types, inputs=(), options=None):
        if called is attend:
            self.q, self.k, _, self.seen, self.scale = inputs
        return called(*inputs, **(options or {}))

    def weights(self, rows: Tensor, queries: Tensor) -> Tensor:
        """The attention of some tokens: (n, H, S). All scores are computed once more, as keys for every token of its own
        would be more to move than that is to compute."""
        scores = (self.q * self.scale @ self.k.mT)[rows, :, queries].float()
        return scores.masked_fill(~self.seen[rows, :, queries], -torch.inf).softmax(-1)


@contextmanager
def last_layers(model: DeepSeekVL2) -> Iterator[list[Given]]:
    """While the block runs, the decoder's last two layers are listened to."""
    heard = [Given(), Given()]
    hooks = [hook for layer, given in zip(model.decoder.layers[-2:], heard, strict=True)
             for hook in overhear(layer.attn, given)]
    try:
        yield heard
    finally:
        for hook in hooks:
            hook.remove()


def loss(heard: list[Given], looks: tuple[Looks, Looks]) -> Tensor:
    """The sum over both layers of the mean over the tokens of the whole team that are to look somewhere; to be added up
    over the team, and divided by its size."""
    counts = team.total(torch.tensor([len(each.rows) for each in looks])).clamp(min=1)
    return sum(minus_log(given, each).sum() * team.size() / n for given, each, n in zip(heard, looks, counts, strict=True))


def minus_log(given: Given, looks: Looks) -> Tensor:
    """-log of the part of each token's attention that falls where it should, of the head where that is most: (n,)"""
    on_it = (given.weights(looks.rows, looks.queries) * looks.shows[:, None]).sum(-1).amax(1)
    return -(on_it + 1e-6).log()
