"""Looking: while it learns to answer, the decoder's layers are told where in the picture to look.

Lesson   lessons/08_training.ipynb                      Tests   tests/test_looking.py

"How much is B?" takes two things at once: a query that finds the B, and something worth finding there. While either is
missing, learning the other makes no answer better, so nothing tells them to begin: on charts of two tiles the toy guessed
for fifty thousand steps. Told where to look, it learns the first for its own sake, and the second follows.

The world knows what a question names (`mentions`), what belongs with what (`Line.left`, `Line.above`), and where each
answer is to be seen (`Question.seen`):

    layer 1     the last token of a name in a question, "cost", "red circle" or "framed", looks at the visual tokens that
                show it, or at itself if nothing does, or the strongest of no matches would look like a match; and every
                token of an answer at what shows that, to know what has been said
    layer 2     a visual token that shows a cell of a table looks at the name of its row; and at that of its column. And
                the tokens of an answer look once more at the thing that has been said: by now it knows which it is, the
                first or the second (noticing.py). And a visual token that shows a thing looks at the thing before it; at
                that before it of its colour; and at that of its shape; or at the first token of all, if there is none.
                "All red things" are said one after the other: the next is the red one that has just seen this one
    layer 3     a token of an answer looks at the visual tokens that show this piece of it; of a box, each of its four
                numbers by a head of its own. A thing's token knows all four edges: had one head to fetch them all, which of
                them is asked for would still have to be found out after the last look. And who has nothing more to
                find looks at itself: the bracket that ends a list, and the last token of an answer. Those few that go on
                to another thing are told so once more, by themselves: of all that are told, they are one in a hundred.
                And so are the next two looks after each: the first digit of the second box had cost four times what that
                of the first one did
    layer 4     where there is one, looks closer. A visual token shows two lines of small print, and all of its characters
                are fetched at once. With four layers the toy of weights/ looked at the right token for 91 of 100 digits that
                it got wrong, and for four in five of these said another digit of that token: it did not know which line.
                Now characters in the upper row of the token's patches are fetched by other heads than those in the lower;
                a head that has nothing to fetch looks at itself. Which row it is, the name beside it tells: so in layer 3
                visual tokens look left once more, by a head for each of their rows. And a row shows up to three characters.
                Fetched by one head, they had to be told apart after the last look: of those alone in their row 2 in 100 were
                read wrong, of two in a row 4, of three 20. Now one head fetches the first, the third, the fifth of a word,
                and another the second and the fourth. (Alone that brought nothing: on the way the letters of such tokens got
                lost, in latents too short for them; see growth.widened.)
                And what is compared: "which is more, A or B?" In layer 3 both letters fetch their values from where these
                are known; so in layer 4 the answer is to be found in the question, at one of the two

How heads are told so, and what is learned from it, is in guidance.py.
"""

import string
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from minivl2.batch import Batch
from minivl2.conversation import ASSISTANT, REF, USER
from minivl2.places import LOCAL, Size, fitted, frames, places
from minivl2.processor import Processor
from minivl2.toyworld import Question, Sample, mentions, values_of
from minivl2.toyworld.lettering import Line
from minivl2.toyworld.things import DIAMETER, Scene, side_by_side
from minivl2.training.tokenizer import spans

# of what a visual token shows: a thing that covers so much of it is there to be seen. A little more than a quarter, which a
# thing can cover exactly: then rounding would decide
MUCH = 0.2501
Box = tuple[float, float, float, float]
NOWHERE: Box = (np.nan,) * 4
STARTING = 3        # looks with which an answer begins with another thing: for "], " and for two digits of its left edge
ALPHANUMERIC = string.ascii_letters + string.digits
ORDERS = ("colour", "shape")        # and that of all things: "the second red thing", "the third star", "the fourth"


class Looks(NamedTuple):
    """Where n tokens are to look, all by the same head."""

    rows: Tensor        # (n,) the conversation
    queries: Tensor     # (n,) the place in it of the token that looks
    shows: Tensor       # (n, T) bool, at which tokens of the conversation


class Told(NamedTuple):
    """What is told, in the order of guidance.HEADS."""

    names: Looks
    said: Looks
    left: Looks
    above: Looks
    answers: Looks      # and the left edges of boxes
    top: Looks
    right: Looks
    bottom: Looks
    again: Looks        # the same as `said`, of things only, and of boxes always
    before: Looks       # of things: the one before, in the orders of ORDERS
    before_of_colour: Looks
    before_of_shape: Looks
    onward: Looks       # those of `answers` that go on to another thing than the tokens before them
    starting: Looks     # and the next two after each, but for those that are for other edges
    values: Looks       # of what is compared
    upper_left: Looks   # of what is in the upper row
    lower_left: Looks
    larger: Looks
    upper_even: Looks   # the first character of its word, the third, ...
    lower_even: Looks
    upper_odd: Looks
    lower_odd: Looks


def looks(
    processor: Processor, samples: Sequence[Sample], asked: Sequence[Sequence[Question]], batch: Batch
) -> Told:
    """Of every conversation its sample, and the questions asked in it."""
    names, left, above, answers, left_by_row, by_row = [], [], [], ([], [], [], []), ([], []), ([], [], [], [])
    again, values, larger, before, onward, starting = [], [], [], ([], [], []), [], []
    length = batch.input_ids.shape[1]
    for row, (sample, questions) in enumerate(zip(samples, asked, strict=True)):
        view = View(processor, sample)
        visual = np.flatnonzero(batch.image_mask[row])
        written = dict(zip(sample.written, view.letters(sample.written), strict=True))
        beside, below = ([(line, other) for line in sample.written if (other := getattr(line, side))]
                         for side in ("left", "above"))
        for told, ties in ((left, tied(written, beside)), (above, tied(written, below)),
                           *zip(left_by_row, rows_apart(view, written, beside), strict=True)):
            told += [(row, visual[token], visual[shown]) for token, shown in ties]
        first = np.flatnonzero(batch.attention_mask[row])[:1]
        for scene in side_by_side(sample.scenes):
            for told, ties in zip(before, chained(view, scene), strict=True):
                told += [(row, visual[token], first if shown is None else visual[shown]) for token, shown in ties]
        for question, tokens, last in turns(processor, questions, length):
            names += [(row, token, visual[shown] if shown.any() else np.array([token]))
                      for token, shown in named(tokens, view, mentions(question.text, sample))]
            if question.ability == "larger":
                values += [(row, token, visual[shown])
                           for token, shown in named(tokens, view, values_of(question.text, sample))]
                winner = question.text.index(question.answer)
                larger.append((row, last, np.array([tokens[winner]])))
        shown = [(look, i) for i, question in enumerate(questions) for look in where(processor, view, question)]
        at, since = (None, None), 0                 # the last thing that was seen, of which question; and for how long
        for token, ((edge, tokens, rows), i) in zip(np.flatnonzero(batch.learned[row]), shown, strict=True):
            answers[edge].append((row, token, np.array([token]) if tokens is None else visual[tokens]))
            if tokens is not None and not rows:
                again.append((row, token + 1, visual[tokens]))          # what a token is to find, the next one is
                if tokens.any():
                    if i != at[1]:
                        since = STARTING                                # the first thing of an answer
                    elif not (tokens & at[0]).any():
                        since = 0
                    if since < STARTING and not edge:
                        (starting if since else onward).append((row, token, visual[tokens]))
                    at, since = (tokens, i), since + 1
            if questions[i].ability == "larger":
                rows = rows[:2]                                         # by the others the letter in the question is found
            for told, tokens in zip(by_row, rows, strict=False):
                told.append((row, token, visual[tokens] if tokens.any() else np.array([token])))
    said = [(row, token + 1, shown) for told in answers for row, token, shown in told if token not in shown]
    all_told = names, said, left, above, *answers, again, *before, onward, starting, values, *left_by_row, larger, *by_row
    return Told(*(gathered(told, batch) for told in all_told))


def gathered(looks: list[tuple[int, int, ndarray]], batch: Batch) -> Looks:
    """(conversation, who looks, at what) of each as tensors, without those that look at nothing."""
    looks = [look for look in looks if len(look[2])]
    shows = np.zeros((len(looks), batch.input_ids.shape[1]), dtype=bool)
    for i, (_, _, shown) in enumerate(looks):
        shows[i, shown] = True
    rows, queries = (torch.tensor([look[i] for look in looks], dtype=torch.long) for i in (0, 1))
    return Looks(rows, queries, torch.from_numpy(shows))


class View:
    """Which of a picture's visual tokens show what of it. Several pictures are one to it, side by side. In numpy, which
    takes a third of torch's time for arrays as small as these."""

    def __init__(self, processor: Processor, sample: Sample):
        cfg = processor.config
        pictures = [image.size for image in sample.images]
        lines = [laid_out(picture, sample.grid, cfg.tile, cfg.patch_size, cfg.downsample_ratio) for picture in pictures]
        self.rectangles, self.local = (np.concatenate(parts) for parts in zip(*lines, strict=True))
        lefts = np.cumsum([0, *(width for width, _ in pictures[:-1])])
        self.rectangles[:, ::2] += np.repeat(lefts, [len(local) for _, local in lines])[:, None]
        # letters stand in pictures that are alone
        (_, self.top, _, self.inside), self.height = fitted(pictures[0], frames(sample.grid, cfg.tile)[1]), pictures[0][1]
        self.patch, self.tile, self.ratio = cfg.patch_size, cfg.tile, cfg.downsample_ratio
        self.rows: dict[Box, int] = {}                                      # of boxes asked for before, in `shown`
        self.shown = np.zeros((0, len(self.local)), dtype=bool)             # a picture's questions ask for the same again

    def showing(self, boxes: Sequence[Box]) -> ndarray:
        """The tokens that show each box: (boxes, visual tokens) bool."""
        if new := [box for box in dict.fromkeys(boxes) if box not in self.rows]:
            self.rows |= {box: len(self.rows) + i for i, box in enumerate(new)}
            self.shown = np.concatenate((self.shown, self.look_for(new)))
        return self.shown[[self.rows[box] for box in boxes]]

    def look_for(self, boxes: Sequence[Box]) -> ndarray:
        """The tokens in which the middle of a box lies, or of which it covers much: (boxes, visual tokens) bool. A letter
        is a box without width: it is looked for in the tiles only."""
        left, top, right, lower = self.rectangles.T
        x1, y1, x2, y2 = np.array(boxes, dtype=np.float32).reshape(-1, 4, 1).swapaxes(0, 1)
        x, y = (x1 + x2) / 2, (y1 + y2) / 2
        middle = (left <= x) & (x < right) & (top <= y) & (y < lower)
        across, down = np.minimum(right, x2) - np.maximum(left, x1), np.minimum(lower, y2) - np.maximum(top, y1)
        much = np.maximum(across, 0) * np.maximum(down, 0) > MUCH * (right - left) * (lower - top)
        return (middle | much) & (self.local | (x1 < x2))

    def row(self, y: float) -> int:
        """In the tiles, in which row of its visual token's patches this height of the picture lies: 0 is the upper."""
        in_view = self.top + y * self.inside / self.height
        return int(in_view % self.tile // self.patch) % self.ratio

    def letters(self, lines: Sequence[Line]) -> list[ndarray]:
        """Of each line of letters, which tokens show some of it: (visual tokens,) bool."""
        shown = self.showing([middle * 2 for line in lines for middle in line.middles])
        ends = np.cumsum([len(line.middles) for line in lines], dtype=int)
        return [tokens.any(0) for tokens in np.split(shown, ends)[: len(lines)]]


@lru_cache(maxsize=10_000)
def laid_out(picture: Size, grid: Size, tile: int, patch: int, ratio: int) -> tuple[ndarray, ndarray]:
    """Which rectangle of the picture each visual token shows (visual tokens, 4), and whether in a tile (visual tokens,)."""
    line = places(picture, grid, tile, patch, ratio)
    rectangles = [place.in_picture or NOWHERE for place in line]
    return np.array(rectangles, dtype=np.float32), np.array([place.view == LOCAL for place in line])


def where(
    processor: Processor, view: View, question: Question
) -> list[tuple[int, ndarray | None, list[ndarray]]]:
    """For each token of the answer, and its end, which edge of a box it tells (0 for all else), and which visual tokens show
    it (bool); not one where the world does not say, and None where it says that there is nothing more. And of written
    characters, which visual tokens show those in the upper row that are the first, the third ... of their word; those in the
    lower; and in the upper and the lower the second, the fourth ..."""
    nth = [len(question.answer[:i]) - len(question.answer[:i].rstrip(ALPHANUMERIC)) for i in range(len(question.answer))]
    pieces, end = [], 0
    for piece, *_ in question.seen:
        start = question.answer.index(piece, end)
        end = start + len(piece)
        pieces.append((start, end))
    shown, found = view.showing([box or NOWHERE for _, box, _ in question.seen]), []
    for _, (first, last) in spans(processor.tokenizer, question.answer):
        told = [i for i, (start, end) in enumerate(pieces) if start < last and first < end]
        piece, box, edge = question.seen[told[0]] if told else ("", NOWHERE, 0)
        tokens = None if box is None else shown[told].any(0)
        if (piece.isdigit() and REF in question.answer) or question.answer[first:last].strip() in DIAMETER:
            tokens = tokens & ~view.local       # parts of the picture, or big beside it: only the global view sees it whole
        rows = []
        if box is not None and box[0] == box[2]:
            which = np.array([(view.row(question.seen[i].box[1]) + 2 * (nth[at] % 2), i)
                              for i in told for at in range(max(first, pieces[i][0]), min(last, pieces[i][1]))])
            rows = [shown[which[which[:, 0] == head, 1]].any(0) for head in range(4)]
        found.append((edge, tokens, rows))
    nowhere = np.zeros_like(view.local)
    written = any(rows for *_, rows in found)
    return [*found, (0, None if question.seen else nowhere, [nowhere] * 4 if written else [])]


def turns(
    processor: Processor, questions: Sequence[Question], length: int
) -> Iterator[tuple[Question, dict[int, int], int]]:
    """Of each question, last to first, the places in the conversation, which is padded on the left to this length: of the
    token that holds each of its characters, and of the token after which the answer begins."""
    end = length
    for i, question in reversed([*enumerate(questions)]):
        end -= len(spans(processor.tokenizer, question.answer)) + 1          # and its END
        before = f"{USER}: " if i else "\n"                        # the first comes after a picture
        line = spans(processor.tokenizer, f"{before}{question.text}\n\n{ASSISTANT}:")
        start = end - len(line)
        yield question, {at - len(before): start + k for k, (_, (first, last)) in enumerate(line)
                         for at in range(first, last)}, end - 1
        end = start


def named(
    tokens: dict[int, int], view: View, names: Sequence[tuple[int, Sequence[Box]]]
) -> list[tuple[int, ndarray]]:
    """For the last token of every name in a question, its place in the conversation, and which visual tokens show what it
    names (bool)."""
    return [(tokens[after - 1], view.showing(boxes).any(0)) for after, boxes in names]


def tied(shown: dict[Line, ndarray], pairs: Iterable[tuple[Line, Line]]) -> list[tuple[int, ndarray]]:
    """Of each pair of lines, every visual token that shows some of the first, with those (bool) that show some of the
    second and come before it: a token cannot see those after it."""
    return [(token, shown[other] & (np.arange(len(shown[other])) <= token))
            for line, other in pairs for token in np.flatnonzero(shown[line])]


def rows_apart(
    view: View, shown: dict[Line, ndarray], pairs: Sequence[tuple[Line, Line]]
) -> list[list[tuple[int, ndarray]]]:
    """The same for the upper row of the visual tokens' patches, and for the lower. Those that show some of the first lines,
    but not in this row, with themselves."""
    found = []
    for row in range(2):
        ties = tied(shown, [(line, other) for line, other in pairs if view.row(line.middles[0][1]) == row])
        tokens = np.zeros(len(view.local), dtype=bool)
        for line, _ in pairs:
            tokens |= shown[line]
        tokens[[token for token, _ in ties]] = False
        found.append(ties + [(token, np.arange(len(tokens)) == token) for token in np.flatnonzero(tokens)])
    return found


def alone(view: View, scene: Scene) -> tuple[ndarray, list[tuple[int, int]]]:
    """Which visual tokens show each thing, (things, visual tokens) bool; and (visual token, which thing) of every token that
    shows one thing and comes after the middles of those before it."""
    shown = view.showing([thing.box for thing in scene.things])
    centres = [((x1 + x2) / 2, (y1 + y2) / 2) for x1, y1, x2, y2 in (thing.box for thing in scene.things)]
    first = view.showing([(x - 0.1, y - 0.1, x + 0.1, y + 0.1) for x, y in centres]).argmax(1)  # in the global view
    single = [(int(token), int(shown[:, token].argmax())) for token in np.flatnonzero(shown.sum(0) == 1)]
    return shown, [(token, thing) for token, thing in single if (first[:thing] <= token).all()]


def before(scene: Scene) -> list[tuple[list[int], ...]]:
    """Of each thing, those before it: all, those of its colour, those of its shape."""
    return [(list(range(i)), *([j for j in range(i) if getattr(scene.things[j], name) == getattr(thing, name)]
                               for name in ORDERS)) for i, thing in enumerate(scene.things)]


def chained(view: View, scene: Scene) -> list[list[tuple[int, ndarray | None]]]:
    """For each of the three orders, every visual token that shows one thing, with those (bool) that show the thing before it
    in this order, and stand before the token. None: there is none."""
    shown, single = alone(view, scene)
    until = np.tri(shown.shape[1], dtype=bool)
    return [[(token, shown[earlier[thing][-1]] & until[token] if earlier[thing] else None) for token, thing in single]
            for earlier in zip(*before(scene), strict=True)]
