"""Noticing: what visual tokens are to know before anybody asks.

Paper    Deeply-Supervised Nets, arXiv:1409.5185: layers inside a network are given losses of their own.
Lesson   lessons/08_training.ipynb                      Tests   tests/test_noticing.py

A decoder reads the picture before the question, so a visual token can know nothing of the question. But it can know what
will be asked for. Some of that takes more than one look, and after the question it is too late to begin:

    edges       Where does the thing begin and end, and in which digits is that told? Left alone, a decoder forgets what the
                eye says of it: by a straight line the box could be told with a mean IoU of 0.71 from a token of the toy's
                eye, of 0.60 from what three layers had made of it; asked for edges, of 0.85
    letters     Which letter of its line stands here first, the third, the fourth? And is the last one here? Two or three
                letters are fetched together: which of them is next, in "9HH4", is known if it is known how many came before
    spelling    Which letters are these, one, two, or three? Asked where the last layer fetches them: there two in a row were
                misread by such heads half as often again as in the eye's own tokens
    order       Is this the first red thing, the second? "Where are all red things?" is answered thing by thing, and which
                one is next has to be found in a single look. It is found if each knows its place among all things, among
                those of its colour, and among those of its shape. And to count them is to find the last
    size        Is the thing big, for its picture? Tiles show parts of pictures, larger or smaller than these: from their
                tokens size could be told 83 times in a hundred, from those of the global view 97 times
    amount      How much is this number? A token knows digits; to compare 87 with 214, their number has to be known, and the
                first of them most of all
    extremes    Is it the largest so far, of its column or its chart? The smallest? Of all, the largest is the last one that
                is the largest so far

So these are asked of the visual tokens inside the decoder, as early as the layers allow, by heads that are thrown away
afterwards. Before this, of 250 questions for all boxes of a kind the toy of weights/ got 93 wrong, 73 of them by their
number: it left one out, named one twice, or went on to things of another kind. Of numbers with as many digits it guessed
which is the larger.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minivl2.batch import Batch
from minivl2.model import DeepSeekVL2
from minivl2.processor import Processor
from minivl2.toyworld import Sample
from minivl2.toyworld.grounding import per_mille
from minivl2.toyworld.lettering import Line
from minivl2.toyworld.things import DIAMETER, Scene, side_by_side
from minivl2.training import guidance
from minivl2.training.looking import ORDERS, View, alone, before
from minivl2.training.shown import CHARACTERS, NO_CHARACTER

MOST = 6                                                # things in a picture
PLACES = 1 + len(ORDERS)                                # among all things, those of its colour, and those of its shape
DIGITS = 2                                              # of every edge's three: the last is less than a pixel
EDGE = 0.25                                             # the weight of all of these together,
DISTANCE = 30                                           # and of how far off they are, in parts of the picture
AMOUNTS = (*range(5, 100, 5), *range(100, 1000, 100))   # a number is told by which of these it reaches
AMOUNT = 0.25                                           # the weight of all of these together
EXTREMES = 2                                            # the largest so far, the smallest so far
ROWS = 2                                                # of patches in a visual token: each has a line of print
LETTERS = 8                                             # of a line: one that is further on counts as the eighth
SPELLED = 3                                             # of a row: more hardly ever stand there
NUMBERS = len(AMOUNTS) + EXTREMES                       # yes or no, of a number


class Noticed(NamedTuple):
    """What n visual tokens are to know of things' places, e of their edges, w of what is written, and m of numbers."""

    things: tuple[Tensor, Tensor]       # the conversation and the place in it, (n,) each
    order: Tensor                       # (n, PLACES) 0 for the first
    size: Tensor                        # (n,) which of DIAMETER
    bounded: tuple[Tensor, Tensor]      # the same, (e,) each
    edges: Tensor                       # (e, 4) per mille of the picture: left, top, right, bottom
    written: tuple[Tensor, Tensor]      # the same, (w,) each
    written_row: Tensor                 # (w,) in which row of its token's patches the letters stand
    letter: Tensor                      # (w,) which letter of its line is the first of them: 0 for the first
    last: Tensor                        # (w,) 0.0 or 1.0: whether the last one is here
    spelled: Tensor                     # (w, SPELLED) index into CHARACTERS, or NO_CHARACTER
    numbers: tuple[Tensor, Tensor]      # the same, (m,) each
    row: Tensor                         # (m,) in which row of its token's patches the number ends
    known: Tensor                       # (m, NUMBERS) 0.0 or 1.0: which of AMOUNTS it reaches, and which extreme it is


def noticed(processor: Processor, samples: Sequence[Sample], batch: Batch) -> Noticed:
    """Of every conversation its sample."""
    things, bounded, written, numbers = [], [], [], []
    for row, sample in enumerate(samples):
        view, visual = View(processor, sample), np.flatnonzero(batch.image_mask[row])
        for own, scene in zip(sample.scenes, side_by_side(sample.scenes), strict=True):
            things += [(row, visual[token], *known) for token, *known in orders(view, scene)]
            bounded += [(row, visual[token], *known) for token, *known in edges(view, scene, own)]
        written += [(row, visual[token], *known) for token, *known in letters(view, sample.written)]
        if sample.kind in ("tables", "charts"):
            numbers += [(row, visual[token], *known) for token, *known in amounts(view, groups(sample))]
    n, e, w, m = (torch.tensor(np.array(found, dtype=int).reshape(-1, 2 + known)) for found, known in
                  ((things, PLACES + 1), (bounded, 4), (written, 3 + SPELLED), (numbers, 1 + NUMBERS)))
    return Noticed((n[:, 0], n[:, 1]), n[:, 2:-1], n[:, -1], (e[:, 0], e[:, 1]), e[:, 2:],
                   (w[:, 0], w[:, 1]), w[:, 2], w[:, 3], w[:, 4].float(), w[:, 5:],
                   (m[:, 0], m[:, 1]), m[:, 2], m[:, 3:].float())


def orders(view: View, scene: Scene) -> list[tuple[int, ...]]:
    """(visual token, its thing's places in the three orders, and its size) of every token that shows one thing and comes
    after the middles of those before it."""
    _, single = alone(view, scene)
    places = [(*map(len, earlier), [*DIAMETER].index(thing.size))
              for earlier, thing in zip(before(scene), scene.things, strict=True)]
    return [(token, *places[thing]) for token, thing in single]


def edges(view: View, scene: Scene, own: Scene) -> list[tuple[int, ...]]:
    """(visual token, its thing's edges per mille) of every token of the global view that shows one thing: there edges
    are looked for. `own`: the scene in its own picture."""
    shown = view.showing([thing.box for thing in scene.things]) & ~view.local
    told = [per_mille(thing.box, own) for thing in own.things]
    return [(int(token), *told[int(shown[:, token].argmax())]) for token in np.flatnonzero(shown.sum(0) == 1)]


def letters(view: View, lines: Sequence[Line]) -> list[tuple[int, ...]]:
    """(visual token, row of its patches, which letter of its line is the first there, whether the last is there, and which
    these are) of all that show letters of one line in this row."""
    there = defaultdict(list)
    for line in lines:
        tokens = view.showing([middle * 2 for middle in line.middles]).argmax(1)
        for i, (token, (_, y)) in enumerate(zip(tokens, line.middles, strict=True)):
            there[int(token), view.row(y)].append((i, line))
    return [(*where, found[0][0], found[-1][0] == len(line.text) - 1, *spelled(line.text[i] for i, _ in found))
            for where, found in there.items() for line in [found[0][1]] if all(other is line for _, other in found)]


def spelled(text: Iterable[str]) -> list[int]:
    """The first SPELLED of its characters, as indices, without the blanks between words."""
    found = [CHARACTERS.index(character) for character in text if character in CHARACTERS]
    return [*found, *[NO_CHARACTER] * SPELLED][:SPELLED]


def groups(sample: Sample) -> list[list[Line]]:
    """Numbers that can be compared: of a column, or of a chart."""
    together = defaultdict(list)
    for line in sample.written:
        if line.text.isdigit():
            together[line.above.text if line.above else ""].append(line)
    return [*together.values()]


def amounts(view: View, groups: list[list[Line]]) -> list[tuple[float, ...]]:
    """(visual token, row of its patches, what is known of the number) of every token in which a number ends. Numbers that
    end before it or in it are known there."""
    found = []
    for lines in groups:
        last = [line.middles[-1] for line in lines]
        tokens = view.showing([middle * 2 for middle in last])
        ends = np.where(tokens.any(1), tokens.argmax(1), -1)
        values = np.array([int(line.text) for line in lines])
        for end, (_, y), value in zip(ends, last, values, strict=True):
            if end >= 0:
                known = values[(ends <= end) & (ends >= 0)]
                extremes = value == known.max(), value == known.min()
                found.append((int(end), view.row(y), *(value >= np.array(AMOUNTS)), *extremes))
    return found


class Noticing(nn.Module):
    """The heads that ask. Small as they are, they compute in float32, whatever the model computes in."""

    def __init__(self, width: int):
        super().__init__()
        self.head_order = nn.Linear(width, PLACES * MOST)
        self.head_size = nn.Linear(width, len(DIAMETER))
        self.head_edges = nn.Linear(width, 4 * (DIGITS * 10 + 1))
        self.head_letters = nn.Linear(width, ROWS * (LETTERS + 1))
        self.head_spelling = nn.Linear(width, ROWS * SPELLED * (NO_CHARACTER + 1))
        self.head_numbers = nn.Linear(width, ROWS * NUMBERS)

    def losses(self, early: Tensor, later: Tensor, latest: Tensor, noticed: Noticed) -> dict[str, Tensor]:
        """early, later, latest (B, T, D): what left the layer that is asked about order and size, that about spelling
        (latest), and that about all else. Each loss is one of every token it is about."""
        width = early.shape[-1:]
        things = F.rms_norm(early[noticed.things].float(), width)
        size = F.cross_entropy(self.head_size(things), noticed.size, reduction="none")
        order = self.head_order(things).unflatten(1, (PLACES, MOST))
        order = F.cross_entropy(order.transpose(1, 2), noticed.order.clamp(max=MOST - 1), reduction="none")    # (n, PLACES)
        edges = self.head_edges(F.rms_norm(later[noticed.bounded].float(), width))
        off = (edges[:, :4] - noticed.edges / 1000).abs()                                                   # (e, 4)
        digits = edges[:, 4:].unflatten(1, (DIGITS, 10, 4))
        wanted = torch.stack([noticed.edges // 10**place % 10 for place in range(2, 2 - DIGITS, -1)], 1)    # (e, DIGITS, 4)
        digits = F.cross_entropy(digits.transpose(1, 2), wanted, reduction="none")
        written = self.head_letters(F.rms_norm(later[noticed.written].float(), width)).unflatten(1, (ROWS, LETTERS + 1))
        *letter, last = written[torch.arange(len(written)), noticed.written_row].unbind(1)                  # (w,) each
        letter = F.cross_entropy(torch.stack(letter, 1), noticed.letter.clamp(max=LETTERS - 1), reduction="none")
        last = F.binary_cross_entropy_with_logits(last, noticed.last, reduction="none")
        spelling = self.head_spelling(F.rms_norm(latest[noticed.written].float(), width)).unflatten(1, (ROWS, SPELLED, -1))
        spelling = spelling[torch.arange(len(spelling)), noticed.written_row]                               # (w, SPELLED, K)
        spelling = F.cross_entropy(spelling.transpose(1, 2), noticed.spelled, reduction="none")             # (w, SPELLED)
        numbers = self.head_numbers(F.rms_norm(later[noticed.numbers].float(), width)).unflatten(1, (ROWS, NUMBERS))
        numbers = numbers[torch.arange(len(numbers)), noticed.row]
        numbers = F.binary_cross_entropy_with_logits(numbers, noticed.known, reduction="none")              # (m, NUMBERS)
        amount, extremes = numbers.split([len(AMOUNTS), EXTREMES], dim=1)
        return {"order": order.sum(1), "size": size, "edges": EDGE * digits.sum((1, 2)) + DISTANCE * off.sum(1),
                "letters": letter + last, "spelling": spelling.sum(1),
                "amount": AMOUNT * amount.sum(1), "extremes": extremes.sum(1)}


@contextmanager
def overheard(model: DeepSeekVL2) -> Iterator[list[Tensor]]:
    """While the block runs: what leaves the first of the layers that are told where to look (guidance.py), the second, and
    each up to the last but one.

    The first is early enough for an answer to find, in the second, which thing it has just named, and in the third the next.
    Numbers have to be gathered from several tokens first. And from what leaves the last but one, letters are fetched."""
    first = guidance.heads(model)[0][0]
    left: list[Tensor] = []
    hooks = [layer.register_forward_hook(lambda _, __, output: left.append(output[0]))
             for layer in model.decoder.layers[first:-1]]
    try:
        yield left
    finally:
        for hook in hooks:
            hook.remove()


def loss(heads: Noticing, left: Sequence[Tensor], noticed: Noticed) -> Tensor:
    """To be added up over the team, and divided by its size."""
    return guidance.added_up([*heads.losses(left[0], left[1], left[-1], noticed).values()])
