"""Looking: while it learns to answer, the decoder's last layer is told where in the picture the answer is.

Lesson   lessons/08_training.ipynb                      Tests   tests/test_looking.py

"How much is B?" takes two things at once: a query that finds the B, and something worth finding there. While either is
missing, learning the other does not make the answer any better, so nothing tells them to begin: the toy's charts of two
tiles stood at the level of guessing for forty thousand steps. Told where to look, the first is learned by itself, and the
second follows: four hundred steps. How it gets there (which lower layer brings what where) is left to the model.

The world knows where each answer is to be seen (`Question.seen`). The loss of a token of an answer is -log of the
attention, averaged over the heads, that falls on the visual tokens which show that piece of the answer. One head that looks
there is enough: the more it does, the more of the gradient is its own.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from minivl2.attention import attend
from minivl2.batch import Batch
from minivl2.model import DeepSeekVL2
from minivl2.processor import Processor
from minivl2.toyworld import Question, Sample
from minivl2.toyworld.lettering import Line
from minivl2.toyworld.sample import letters
from minivl2.training import team
from minivl2.training.sight import Window, spans
from minivl2.visual_tokens import lay_out

MUCH = 0.25     # of a visual token's square: a thing that covers so much of it is shown by it


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
        visual = batch.image_mask[row].nonzero().flatten().tolist()
        ties += [(row, visual[token], [visual[other] for other in others]) for token, others in tied(processor, sample)]
        places = iter(batch.learned[row].nonzero().flatten().tolist())
        for question in questions:
            for shown in [*where(processor, sample, question), set()]:       # the last is the end of the answer
                answers.append((row, next(places), [visual[token] for token in shown]))
    return gathered(ties, batch), gathered(answers, batch)


def gathered(looks: list[tuple[int, int, list[int]]], batch: Batch) -> Looks:
    """(conversation, who looks, at what) of each as tensors, without those that look at nothing."""
    looks = [look for look in looks if look[2]]
    shows = torch.zeros(len(looks), batch.input_ids.shape[1], dtype=torch.bool)
    for i, (_, _, shown) in enumerate(looks):
        shows[i, shown] = True
    rows, queries = (torch.tensor([look[i] for look in looks], dtype=torch.long) for i in (0, 1))
    return Looks(rows, queries, shows)


def tied(processor: Processor, sample: Sample) -> list[tuple[int, set[int]]]:
    """Of each line of letters that belongs to others, every visual token that shows some of it, with those that show one
    of the others and come before it: a token cannot see those after it."""
    found = []
    for line in sample.written:
        for other in line.of:
            shown = on(processor, sample, other)
            for token in on(processor, sample, line):
                found.append((token, {place for place in shown if place <= token}))
    return found


def on(processor: Processor, sample: Sample, line: Line) -> set[int]:
    """The visual tokens that show some letter of a line."""
    return {token for seen in letters(line) for box in seen.boxes for token in showing(processor, sample, box)}


def where(processor: Processor, sample: Sample, question: Question) -> list[set[int]]:
    """For each token of the answer, which of the picture's visual tokens show it; none where the answer does not say."""
    pieces, end = [], 0
    for piece, boxes in question.seen:
        start = question.answer.index(piece, end)
        end = start + len(piece)
        pieces.append((start, end, boxes))
    return [{token for start, end, boxes in pieces if start < last and first < end
             for box in boxes for token in showing(processor, sample, box)}
            for _, (first, last) in spans(processor, question.answer)]


def showing(processor: Processor, sample: Sample, box: tuple[float, float, float, float]) -> set[int]:
    """Which of the picture's visual tokens show this box of it. A letter (a box without width) only those of the tiles."""
    at, (left, top, right, bottom) = order(sample.grid, processor.config.side), box
    found = set()
    for view in range(right == left, len(at)):
        window = Window(processor, sample.images[0].size, sample.grid, view)
        middle = window.patch_at((left + right) / 2, (top + bottom) / 2)
        tokens = {token for token, part in window.covered(box).items() if part > MUCH} if right > left else set()
        found |= {at[view][token] for token in tokens | ({middle[0]} if middle else set())}
    return found


@cache
def order(grid: tuple[int, int], side: int) -> list[list[int]]:
    """Of each view's tokens, how many visual tokens of the picture come before it."""
    views = 1 + grid[0] * grid[1]
    numbers = torch.arange(views * side**2).view(views, side**2, 1)
    nothing = torch.tensor([-1])
    line = lay_out(numbers, grid, newline=nothing, separator=nothing).flatten().tolist()
    places = {number: place for place, number in enumerate(line)}
    return [[places[number] for number in view] for view in numbers.flatten(1).tolist()]


class Given(TorchFunctionMode):
    """What `attend` was given, while this is entered: it does not give away its weights."""

    def __torch_function__(self, called, types, inputs=(), options=None):
        if called is attend:
            self.q, self.k, _, self.seen, self.scale = inputs
        return called(*inputs, **(options or {}))

    def weights(self, rows: Tensor, queries: Tensor) -> Tensor:
        """The attention of some tokens: (n, H, S)."""
        scores = (self.q[rows, :, queries, None] * self.scale @ self.k[rows].mT)[:, :, 0].float()
        return scores.masked_fill(~self.seen[rows, :, queries], -torch.inf).softmax(-1)


@contextmanager
def last_layers(model: DeepSeekVL2) -> Iterator[list[Given]]:
    """While the block runs, the decoder's last two layers are listened to."""
    hooks, heard = [], []
    for layer in model.decoder.layers[-2:]:
        heard.append(given := Given())
        hooks += (layer.attn.register_forward_pre_hook(lambda *_, given=given: given.__enter__() and None),
                  layer.attn.register_forward_hook(lambda *_, given=given: given.__exit__(None, None, None)))
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
