"""Which pictures the toy sees when: an endless line of batches, each fixed by (seed, step) alone.

Tests    tests/test_training.py

Everything at once from the start teaches a small model nothing in ten minutes: each ability gets too few examples
before the next one pulls elsewhere. So it begins with large plain things on single tiles and goes on to pictures that
need more tiles, and to letters. A batch holds pictures of one tile grid, so that nothing is padded in vain.
"""

import itertools
import random
from dataclasses import dataclass
from typing import NamedTuple

from minivl2 import toyworld
from minivl2.batch import Batch
from minivl2.processor import Processor

Grid = tuple[int, int]


@dataclass(frozen=True)
class Stage:
    """A part of the training: it lasts until this fraction of all steps, and shows these kinds on these grids."""

    until: float
    kinds: dict[str, float]         # how often, relative to each other
    grids: tuple[Grid, ...]
    things: int = 6                 # at most so many in a scene
    frozen: tuple[str, ...] = ()    # parts of the model that do not learn meanwhile


SEEING = ("vision", "projector")        # learned before (sight.py), and worth a third of the time
PLAIN: tuple[Grid, ...] = ((1, 1),)
SMALL: tuple[Grid, ...] = ((1, 1), (2, 1), (1, 2))
ALL = tuple(dict.fromkeys(grid for grids in toyworld.GRIDS.values() for grid in grids))
FEW = {"scenes": 2, "grounding": 1}
EVERYTHING = {"scenes": 2, "grounding": 2, "text": 2, "documents": 1, "tables": 1, "charts": 1, "pairs": 2}
COURSES = {
    # what ten minutes are enough for
    "short": (
        Stage(0.65, FEW, PLAIN, frozen=SEEING),
        Stage(1.00, {**FEW, "charts": 1, "text": 1}, SMALL, frozen=SEEING),
    ),
    # the whole toy world, in hours
    "whole": (
        Stage(0.20, FEW, PLAIN, frozen=SEEING),
        Stage(0.50, {**EVERYTHING, "pairs": 1}, (*SMALL, (2, 2)), frozen=SEEING),
        Stage(1.00, EVERYTHING, ALL),
    ),
    # one ability that needs the tiles
    "reading": (
        Stage(1.00, {"text": 1}, ((2, 1), (1, 2), (2, 2)), frozen=SEEING),
    ),
}
ROOM = 100          # tokens for questions and answers about one picture: seeing costs more than asking, padding is wasted
TURN = 6            # tokens that every question costs by itself, for roles, line ends and the end of the answer


def stage_at(progress: float, course: tuple[Stage, ...]) -> Stage:
    """progress from 0 to 1"""
    return next((stage for stage in course if progress < stage.until), course[-1])


def pictures(seed: int, step: int, stage: Stage, size: int) -> list[toyworld.Sample]:
    """The `size` pictures of this step, all on one grid. The same seed and step give the same pictures."""
    rng = random.Random(f"batch {seed} {step}")
    grid = rng.choice(stage.grids)
    kinds = [kind for kind in stage.kinds if grid in toyworld.GRIDS[kind]]
    chosen = rng.choices(kinds, [stage.kinds[kind] for kind in kinds], k=size)
    return [picture(f"train {seed} {step} {i}", kind, grid, stage.things) for i, kind in enumerate(chosen)]


def picture(seed: str, kind: str, grid: Grid, things: int) -> toyworld.Sample:
    """The first picture from this seed on that does not show too many things."""
    for attempt in itertools.count():
        sample = toyworld.draw(f"{seed} {attempt}", kind, grid)
        if len(getattr(sample.facts, "things", ())) <= things:
            return sample


def interview(processor: Processor, sample: toyworld.Sample, rng: random.Random) -> list[toyworld.Question]:
    """As many questions about one picture as there is room for, in random order, but captions last: they give away
    what the other questions ask for."""
    asked, room = [], ROOM
    for question in rng.sample(sample.questions, len(sample.questions)):
        size = len(processor.tokenizer.encode(question.text + question.answer)) + TURN
        if not asked or size <= room:
            asked.append(question)
            room -= size
    return sorted(asked, key=lambda question: "caption" in question.ability)


class Lesson(NamedTuple):
    """A batch, and of each of its labelled tokens, row after row, to the answer of which ability it belongs."""

    batch: Batch
    abilities: list[str]


def lesson(
    processor: Processor, seed: int, step: int, stage: Stage, size: int, rank: int = 0, team: int = 1
) -> Lesson:
    """What is learned from in this step; of a team, the part that is this rank's."""
    samples = pictures(seed, step, stage, size)
    batches, abilities = [], []
    for i in range(rank, size, team):
        asked = interview(processor, samples[i], random.Random(f"questions {seed} {step} {i}"))
        talk = toyworld.messages(asked, images=len(samples[i].images))
        batches.append(processor(talk, samples[i].images, training=True))
        labelled = batches[-1].learned[0].tolist()
        answers = [len(list(run)) for learned, run in itertools.groupby(labelled) if learned]
        for question, tokens in zip(asked, answers, strict=True):
            abilities += [question.ability] * tokens
    return Lesson(processor.batch(batches), abilities)
