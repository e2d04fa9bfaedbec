"""Sight: the vision tower learns what is where, in words the decoder knows, before anyone asks it a question.

Lesson   lessons/08_training.ipynb
Tests    tests/test_sight.py

The real vision tower comes trained: SigLIP has seen billions of pictures. Ours starts from noise, and answers alone
teach it slowly: after twenty thousand pictures it could tell colours and not a single shape. So for a first part of
the time every visual token is asked directly what it shows:

    words      which colour, which shape, which size; and of the whole vocabulary, which words. The visual token is
               compared with the words' own embeddings, so that the decoder finds things under the names it knows
    edges      where the thing it shows begins and ends, as digits of the numbers that boxes are written in
    letters    which characters stand on each of its patches, from left to right
    glyphs     the same, asked of the patches themselves, before the projector: so near to the pixels it is learned
               sooner, and what the patches know is then easier to keep (two thirds of the letters became four fifths)

The heads for edges, letters and glyphs are thrown away. The embeddings stay.
"""

import itertools
import math
import random
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import trange

from minivl2 import toyworld
from minivl2.batch import IGNORED
from minivl2.model import DeepSeekVL2
from minivl2.processor import Processor
from minivl2.toyworld.grounding import per_mille
from minivl2.toyworld.lettering import Line
from minivl2.toyworld.things import COLOURS, DIAMETER, SHAPES, Scene, Thing
from minivl2.training import optimizers, team

BATCH = 32              # tiles a step
RATE = 1e-2             # of Muon: eyes learn well at a rate that is too high for the decoder
# How often, relative to each other, until this fraction of the steps. Letters alone first: they are the harder, and
# mixed in from the start are learned half as well in the same time. Things come quickly to an eye that can read.
WRITTEN = {"page": 8, "text": 1, "documents": 1, "tables": 1, "charts": 1}
THINGS = {"crowd": 10, "scenes": 3, "pairs": 2}
Lessons = tuple[tuple[float, dict[str, int]], ...]
LESSONS: Lessons = (
    (0.3, WRITTEN),
    (1.0, {**THINGS, **WRITTEN}),
)
NO_LETTERS: Lessons = ((1.0, THINGS),)       # for an eye that will only be asked about things
WHOLE = 0.7             # of the pictures with things are seen whole, the others as one of their tiles
CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz:"
NO_CHARACTER = len(CHARACTERS)
SLOTS = 2               # characters a patch can hold: letters are 4 pixels wide and more, patches 8


NAMES = {"shape": SHAPES, "colour": COLOURS, "size": DIAMETER}
# What is easy has little weight: colours would drown shapes.
WEIGHTS = {"shape": 2, "colour": 0.3, "size": 1, "words": 0.5, "digits": 2, "edges": 4, "letters": 8, "glyphs": 24}


class Shown(NamedTuple):
    """What the P' visual tokens of a tile show."""

    words: Tensor       # (P', V) 1.0 where the token shows the word
    written: Tensor     # (P',) bool, True where letters are
    edges: Tensor       # (P', 4) left, top, right, bottom of the thing in 0..999 of the picture, or IGNORED
    letters: Tensor     # (P', r*r*SLOTS) index into CHARACTERS, or NO_CHARACTER


class Sight(nn.Module):
    """Vision tower, projector and embeddings, with a head on every visual token."""

    def __init__(self, model: DeepSeekVL2, processor: Processor):
        super().__init__()
        self.vision, self.projector, self.embed = model.vision, model.projector, model.decoder.embed
        width, patches = model.config.language.hidden_size, model.config.projector.downsample_ratio**2
        self.head_edges = nn.Linear(width, 4 * (10 + 1))
        self.head_letters = nn.Linear(width, patches * SLOTS * (len(CHARACTERS) + 1))
        self.head_glyphs = nn.Linear(model.config.vision.width, SLOTS * (len(CHARACTERS) + 1))
        self.head_scale = nn.Parameter(torch.tensor(10.0).log())        # how sharply words are told apart
        self.names = {name: [spellings(processor, word)[0] for word in words] for name, words in NAMES.items()}

    def losses(self, tiles: Tensor, shown: Shown) -> dict[str, Tensor]:
        """tiles (M, 3, size, size), and what their M * P' tokens show. Each loss is a mean over the tokens it is about,
        of the whole team; to be added up over the team, and divided by its size."""
        seen = self.vision(tiles.to(self.vision.pos_embed.dtype))                                # (M, P, W)
        x = self.projector(seen).flatten(0, 1)                                                   # (M*P', D)
        match = (self.head_scale.exp() * (x @ self.embed.weight.T)).float()                         # (M*P', V)
        digits, places = self.head_edges(x).float().split([40, 4], dim=-1)
        letters = self.head_letters(x).float().view(-1, len(CHARACTERS) + 1)
        edges, words, written = shown.edges.flatten(0, 1), shown.words.flatten(0, 1), shown.written.flatten()
        found = edges[:, 0] != IGNORED
        losses = {name: choice_loss(match[:, ids], words[:, ids]) for name, ids in self.names.items()}
        losses["words"] = choice_loss(match[written], words[written])
        losses["digits"] = F.cross_entropy(digits[found].view(-1, 10), edges[found].flatten() // 100, reduction="none")
        losses["edges"] = (places[found] - edges[found] / 1000).abs().flatten()
        losses["letters"] = F.cross_entropy(letters, shown.letters.flatten(), reduction="none")
        glyphs = self.head_glyphs(seen).float().view(-1, len(CHARACTERS) + 1)
        losses["glyphs"] = F.cross_entropy(glyphs, by_patch(shown.letters, seen.shape[1]).flatten(), reduction="none")
        count = team.total(torch.tensor([len(loss) for loss in losses.values()])).clamp(min=1)
        return {name: loss.sum() * team.size() / n for (name, loss), n in zip(losses.items(), count, strict=True)}

    def loss(self, tiles: Tensor, shown: Shown) -> Tensor:
        return sum(WEIGHTS[name] * loss for name, loss in self.losses(tiles, shown).items())


def by_patch(letters: Tensor, patches: int) -> Tensor:
    """(M, P', r*r*SLOTS) characters of every visual token -> (M, P, SLOTS), of every patch, without the padding."""
    side, grid = math.isqrt(letters.shape[1]), math.isqrt(patches)
    r = math.isqrt(letters.shape[2] // SLOTS)
    square = letters.unflatten(2, (r, r, SLOTS)).unflatten(1, (side, side)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
    return square[:, :grid, :grid].flatten(1, 2)


def choice_loss(logits: Tensor, shown: Tensor) -> Tensor:
    """Cross-entropy of choosing a word that is shown, whichever. (n, words) -> one for each row that shows any."""
    some = shown.sum(1) > 0
    logits, shown = logits[some], shown[some]
    return F.cross_entropy(logits, shown / shown.sum(1, keepdim=True), reduction="none")


class Window:
    """One tile as a window onto a picture: which visual token shows which of its pixels."""

    def __init__(self, processor: Processor, picture: tuple[int, int], grid: tuple[int, int], view: int):
        cfg, (width, height) = processor.config, picture
        across, down = (1, 1) if view == 0 else grid            # view 0 is the whole, then tiles in reading order
        self.scale = min(across * cfg.tile / width, down * cfg.tile / height)      # enlarged to fit, and centred
        column, row = ((view - 1) % grid[0], (view - 1) // grid[0]) if view else (0, 0)
        self.left = (across * cfg.tile - width * self.scale) / 2 - column * cfg.tile
        self.top = (down * cfg.tile - height * self.scale) / 2 - row * cfg.tile
        self.tile, self.patch, self.ratio, self.side = cfg.tile, cfg.patch_size, cfg.downsample_ratio, cfg.side

    def place(self, x: float, y: float) -> tuple[float, float]:
        """From pixels of the picture to pixels of the tile."""
        return x * self.scale + self.left, y * self.scale + self.top

    def patch_at(self, x: float, y: float) -> tuple[int, int] | None:
        """(visual token, patch within it) that show this point of the picture, or None if it is outside."""
        x, y = self.place(x, y)
        if not (0 <= x < self.tile and 0 <= y < self.tile):
            return None
        column, row = int(x // self.patch), int(y // self.patch)
        r = self.ratio
        return row // r * self.side + column // r, row % r * r + column % r

    def covered(self, box: tuple[int, int, int, int]) -> dict[int, float]:
        """How much of each visual token's square a box covers, in parts of the square; only tokens it touches."""
        size = self.patch * self.ratio
        (x1, y1), (x2, y2) = self.place(*box[:2]), self.place(*box[2:])
        x1, y1, x2, y2 = (min(max(edge, 0), self.tile) for edge in (x1, y1, x2, y2))
        parts = {}
        for row in range(int(y1 // size), min(int(y2 // size) + 1, self.side)):
            for column in range(int(x1 // size), min(int(x2 // size) + 1, self.side)):
                across = min(x2, (column + 1) * size) - max(x1, column * size)
                down = min(y2, (row + 1) * size) - max(y1, row * size)
                if across > 0 and down > 0:
                    parts[row * self.side + column] = across * down / size**2
        return parts


def draw(processor: Processor, seed: str, progress: float = 1.0, lessons: Lessons = LESSONS) -> tuple[Tensor, Shown]:
    """A tile, (3, size, size), and what it shows."""
    rng = random.Random(f"sight {seed}")
    kinds = next((kinds for until, kinds in lessons if progress < until), lessons[-1][1])
    kind, = rng.choices(list(kinds), kinds.values())
    sample = toyworld.draw(f"sight {seed}", kind)
    which = rng.randrange(len(sample.images))
    picture = sample.images[which]
    views, (grid,) = processor.tile([picture])
    if kind in toyworld.PRIMERS:
        view = 0
    elif sample.written:      # through the tile that holds some letter: many others are blank
        x, y = rng.choice(rng.choice(sample.written).middles)
        view = next(n for n in range(1, len(views)) if Window(processor, picture.size, grid, n).patch_at(x, y))
    else:
        view = 0 if rng.random() < WHOLE else rng.randrange(1, len(views))
    window = Window(processor, picture.size, grid, view)
    shown = nothing(window, processor)
    if sample.written:
        show_lines(shown, window, processor, sample.written)
    else:
        scene = sample.facts if isinstance(sample.facts, Scene) else sample.facts[which]
        show_things(shown, window, processor, scene, edges=view == 0)
    return views[view], shown


def nothing(window: Window, processor: Processor) -> Shown:
    tokens = window.side**2
    return Shown(torch.zeros(tokens, processor.tokenizer.get_vocab_size()),
                 torch.zeros(tokens, dtype=torch.bool),
                 torch.full((tokens, 4), IGNORED),
                 torch.full((tokens, window.ratio**2 * SLOTS), NO_CHARACTER))


def show_things(shown: Shown, window: Window, processor: Processor, scene: Scene, edges: bool) -> None:
    """Each token shows the thing that covers most of it, if that is a tenth of it or more."""
    most: dict[int, tuple[float, Thing]] = {}
    for thing in scene.things:
        for token, part in window.covered(thing.box).items():
            if part > max(0.1, most[token][0] if token in most else 0):
                most[token] = part, thing
    for token, (_, thing) in most.items():
        marked = scene.marked is not None and thing is scene.things[scene.marked]
        names = (thing.size, thing.colour, thing.shape, *["framed"] * marked)
        shown.words[token, [id for name in names for id in spellings(processor, name)]] = 1
        if edges:
            shown.edges[token] = torch.tensor(per_mille(thing.box, scene))


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
            for id, (start, end) in spans(processor, before + line.text):
                for i in range(max(start - len(before), 0), end - len(before)):
                    if seen[i] and line.text[i] != " ":
                        shown.words[seen[i][0], id] = 1
                        shown.written[seen[i][0]] = True


@lru_cache(maxsize=100_000)
def spans(processor: Processor, text: str) -> tuple[tuple[int, tuple[int, int]], ...]:
    """The tokens of a text, and the characters that each stands for."""
    encoded = processor.tokenizer.encode(text, add_special_tokens=False)
    return tuple(zip(encoded.ids, encoded.offsets, strict=True))


def spellings(processor: Processor, word: str) -> list[int]:
    """The tokens of a word: inside a sentence, and at its beginning."""
    return [spans(processor, before + word)[0][0] for before in (" ", "")]


def batch(
    processor: Processor, seed: int, step: int, progress: float = 1.0, lessons: Lessons = LESSONS
) -> tuple[Tensor, Shown]:
    """This process's part of the batch of this step."""
    drawn = [draw(processor, f"{seed} {step} {i}", progress, lessons) for i in range(team.rank(), BATCH, team.size())]
    tiles, shown = zip(*drawn, strict=True)
    return torch.stack(tiles), Shown(*map(torch.stack, zip(*shown, strict=True)))


def learn(
    model: DeepSeekVL2, processor: Processor, seed: int, steps: int, dtype: str = "float32", show: bool = True,
    lessons: Lessons = LESSONS,
) -> float:
    """Train the vision tower, the projector and the embeddings, in place. Returns the last loss.

    All of a team take the same steps.
    """
    torch.manual_seed(seed)
    whole = Sight(model, processor)
    learner = optimizers.Learner(whole, getattr(torch, dtype), optimizers.fast(whole, RATE))
    value = math.nan
    for step in (bar := trange(steps, desc="learning to see", disable=team.rank() > 0 or not show)):
        loss = learner.working.loss(*batch(processor, seed, step, step / steps, lessons))
        loss.backward()
        learner.step(optimizers.rate(step / steps))
        learner.hand_out()
        value = team.total(loss.detach().double()).item() / team.size()
        if step % 10 == 0:
            bar.set_postfix(loss=f"{value:.2f}")
    settle(model, processor)
    return value


@torch.no_grad()
def settle(model: DeepSeekVL2, processor: Processor) -> None:
    """Words are known by all their spellings, and the words it sees are the words it says."""
    embed = model.decoder.embed.weight
    for word in itertools.chain(*NAMES.values()):
        embed[spellings(processor, word)] = embed[spellings(processor, word)[0]].clone()
    model.decoder.head.weight.copy_(embed)
