"""What a drawn tile shows: every visual token of it, and every patch. The answers to what sight.py asks.

Lesson   lessons/08_training.ipynb
Tests    tests/test_shown.py
"""

import math
import random
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from minivl2 import toyworld
from minivl2.batch import IGNORED
from minivl2.processor import Processor
from minivl2.toyworld.grounding import per_mille
from minivl2.toyworld.lettering import Line
from minivl2.toyworld.things import COLOURS, DIAMETER, SHAPES, Scene, Thing
from minivl2.training.tokenizer import spans, spellings

# How often, relative to each other, until this fraction of the steps. Letters alone first: they are the harder, and
# mixed in from the start are learned half as well in the same time. Things come quickly to an eye that can read.
WRITTEN = {"page": 8, "text": 1, "documents": 1, "tables": 1, "charts": 1}
THINGS = {"crowd": 10, "scenes": 3, "pairs": 2}
Lessons = tuple[tuple[float, dict[str, float]], ...]
LESSONS: Lessons = (
    (0.3, WRITTEN),
    (1.0, {**THINGS, **WRITTEN}),
)
NO_LETTERS: Lessons = ((1.0, THINGS),)       # for an eye that will only be asked about things
WHOLE = 0.7             # of the pictures with things are seen whole, the others as one of their tiles
CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz:"
NO_CHARACTER = len(CHARACTERS)
SLOTS = 2               # characters a patch can hold: letters are 4 pixels wide and more, patches 8
NAMES = {"colour": COLOURS, "shape": SHAPES, "size": DIAMETER}


class Shown(NamedTuple):
    """What the P' visual tokens of a tile show, and its P patches."""

    words: Tensor       # (P', V) 1.0 where the token shows the word
    rows: Tensor        # (P', r, V) the same of words that are written, for each row of the token's patches
    written: Tensor     # (P',) bool, True where letters are
    edges: Tensor       # (P', 4) left, top, right, bottom of the thing in 0..999 of the picture, or IGNORED
    middles: Tensor     # (P',) of how many things the middle lies on it, or IGNORED where there are letters instead
    letters: Tensor     # (P', r*r*SLOTS) index into CHARACTERS, NO_CHARACTER, or IGNORED where nobody could read
    things: Tensor      # (P, 3) colour, shape and size of the thing, as places in NAMES, or IGNORED
    reach: Tensor       # (P, 4) from the patch's middle to where the thing ends left, above, right and below, in patches


class Window:
    """One tile as a window onto a picture: which visual token shows which of its pixels."""

    def __init__(self, processor: Processor, picture: tuple[int, int], grid: tuple[int, int], view: int):
        cfg, (width, height) = processor.config, picture
        across, down = (1, 1) if view == 0 else grid            # view 0 is the whole, then tiles in reading order
        self.scale = min(across * cfg.tile / width, down * cfg.tile / height)      # enlarged to fit, and centred
        column, row = ((view - 1) % grid[0], (view - 1) // grid[0]) if view else (0, 0)
        self.left = (across * cfg.tile - width * self.scale) / 2 - column * cfg.tile
        self.top = (down * cfg.tile - height * self.scale) / 2 - row * cfg.tile
        self.tile, self.patch, self.ratio = cfg.tile, cfg.patch_size, cfg.downsample_ratio
        self.side, self.grid = cfg.side, cfg.tile // cfg.patch_size

    def place(self, x: float, y: float) -> tuple[float, float]:
        """From pixels of the picture to pixels of the tile."""
        return x * self.scale + self.left, y * self.scale + self.top

    def within(self, box: tuple[int, int, int, int]) -> tuple[float, ...]:
        """A box of the picture in pixels of the tile: what of it the tile shows."""
        return tuple(min(max(edge, 0), self.tile) for edge in (*self.place(*box[:2]), *self.place(*box[2:])))

    def patch_at(self, x: float, y: float) -> tuple[int, int] | None:
        """(visual token, patch within it) that show this point of the picture, or None if it is outside."""
        x, y = self.place(x, y)
        if not (0 <= x < self.tile and 0 <= y < self.tile):
            return None
        column, row = int(x // self.patch), int(y // self.patch)
        r = self.ratio
        return row // r * self.side + column // r, row % r * r + column % r

    def covered(self, box: tuple[int, int, int, int], size: int, side: int) -> dict[int, float]:
        """Of `side` x `side` squares of `size` pixels, how much of each a box covers, in parts of the square; only those it
        touches."""
        x1, y1, x2, y2 = self.within(box)
        parts = {}
        for row in range(int(y1 // size), min(int(y2 // size) + 1, side)):
            for column in range(int(x1 // size), min(int(x2 // size) + 1, side)):
                across = min(x2, (column + 1) * size) - max(x1, column * size)
                down = min(y2, (row + 1) * size) - max(y1, row * size)
                if across > 0 and down > 0:
                    parts[row * side + column] = across * down / size**2
        return parts

    def mostly(self, things: Sequence[Thing], size: int, side: int, least: float) -> dict[int, Thing]:
        """Which thing covers most of each square; only squares of which that is `least` or more."""
        most: dict[int, tuple[float, Thing]] = {}
        for thing in things:
            for square, part in self.covered(thing.box, size, side).items():
                if part > max(least, most[square][0] if square in most else 0):
                    most[square] = part, thing
        return {square: thing for square, (_, thing) in most.items()}


def draw(
    processor: Processor, seed: str, progress: float = 1.0, lessons: Lessons = LESSONS, pages: float = 0.0
) -> tuple[Tensor, Shown]:
    """A tile, (3, size, size), and what it shows. Of the pictures with letters this part (`pages`) is seen whole, too small
    to be read; nothing is asked of those."""
    rng = random.Random(f"sight {seed}")
    kinds = next((kinds for until, kinds in lessons if progress < until), lessons[-1][1])
    kind, = rng.choices(list(kinds), kinds.values())
    sample = toyworld.draw(f"sight {seed}", kind)
    which = rng.randrange(len(sample.images))
    picture = sample.images[which]
    views, (grid,) = processor.tile([picture])
    whole_page = sample.written and kind not in toyworld.PRIMERS and pages and rng.random() < pages
    if kind in toyworld.PRIMERS or whole_page:
        view = 0
    elif sample.written:      # through the tile that holds some letter: many others are blank
        x, y = rng.choice(rng.choice(sample.written).middles)
        view = next(n for n in range(1, len(views)) if Window(processor, picture.size, grid, n).patch_at(x, y))
    else:
        view = 0 if rng.random() < WHOLE else rng.randrange(1, len(views))
    window = Window(processor, picture.size, grid, view)
    shown = nothing(window, processor)
    if whole_page:
        shown.letters.fill_(IGNORED)
    elif sample.written:
        show_lines(shown, window, processor, sample.written)
    else:
        show_things(shown, window, processor, sample.scenes[which], edges=view == 0)
    return views[view], shown


def nothing(window: Window, processor: Processor) -> Shown:
    tokens, patches = window.side**2, window.grid**2
    return Shown(torch.zeros(tokens, processor.tokenizer.get_vocab_size()),
                 torch.zeros(tokens, window.ratio, processor.tokenizer.get_vocab_size()),
                 torch.zeros(tokens, dtype=torch.bool),
                 torch.full((tokens, 4), IGNORED),
                 torch.full((tokens,), IGNORED),
                 torch.full((tokens, window.ratio**2 * SLOTS), NO_CHARACTER),
                 torch.full((patches, len(NAMES)), IGNORED),
                 torch.zeros(patches, 4))


def show_things(shown: Shown, window: Window, processor: Processor, scene: Scene, edges: bool) -> None:
    """A token shows the thing that covers most of it, if that is a tenth of it or more; a patch, if it is three tenths. And
    a token has the middles that lie on it."""
    for token, thing in window.mostly(scene.things, window.patch * window.ratio, window.side, 0.1).items():
        marked = scene.marked is not None and thing is scene.things[scene.marked]
        names = (thing.colour, thing.shape, thing.size, *["framed"] * marked)
        shown.words[token, [id for name in names for id in spellings(processor.tokenizer, name)]] = 1
        if edges:
            shown.edges[token] = torch.tensor(per_mille(thing.box, scene))
    shown.middles.zero_()
    for x1, y1, x2, y2 in (thing.box for thing in scene.things):
        if at := window.patch_at((x1 + x2) / 2, (y1 + y2) / 2):
            shown.middles[at[0]] += 1
    for patch, thing in window.mostly(scene.things, window.patch, window.grid, 0.3).items():
        names = (thing.colour, thing.shape, thing.size)
        shown.things[patch] = torch.tensor([[*words].index(name) for words, name in zip(NAMES.values(), names, strict=True)])
        middle = (patch % window.grid + 0.5, patch // window.grid + 0.5) * 2
        shown.reach[patch] = torch.tensor(window.within(thing.box)) / window.patch - torch.tensor(middle)


def show_lines(shown: Shown, window: Window, processor: Processor, lines: tuple[Line, ...]) -> None:
    """Each patch shows the characters whose middles lie on it; its token, the words they are part of."""
    for line in lines:
        seen = [window.patch_at(*middle) for middle in line.middles]
        for character, at in zip(line.text, seen, strict=True):
            if at and character in CHARACTERS:
                token, patch = at
                slots = shown.letters[token, patch * SLOTS : (patch + 1) * SLOTS]
                empty = (slots == NO_CHARACTER).nonzero()
                if len(empty):
                    slots[empty[0]] = CHARACTERS.index(character)
        for before in ("", " "):        # a word has two tokens: one to begin an answer, one to follow another word
            for id, (start, end) in spans(processor.tokenizer, before + line.text):
                for i in range(max(start - len(before), 0), end - len(before)):
                    if seen[i] and line.text[i] != " ":
                        token, patch = seen[i]
                        shown.words[token, id] = 1
                        shown.rows[token, patch // window.ratio, id] = 1
                        shown.written[token] = True


def by_patch(letters: Tensor, patches: int) -> Tensor:
    """(M, P', r*r*SLOTS) characters of every visual token -> (M, P, SLOTS), of every patch, without the padding."""
    side, grid = math.isqrt(letters.shape[1]), math.isqrt(patches)
    r = math.isqrt(letters.shape[2] // SLOTS)
    square = letters.unflatten(2, (r, r, SLOTS)).unflatten(1, (side, side)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
    return square[:, :grid, :grid].flatten(1, 2)
