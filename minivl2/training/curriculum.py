"""Which pictures the toy sees when: an endless line of batches, each fixed by (seed, step) alone.

Lesson   lessons/08_training.ipynb
Tests    tests/test_curriculum.py, tests/test_training.py

Everything at once from the start teaches a small model nothing in ten minutes: each ability gets too few examples
before the next one pulls elsewhere. So it begins with large plain things on single tiles and goes on to pictures that
need more tiles, and to letters. A batch holds pictures of one tile grid, so that nothing is padded in vain.
"""

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from minivl2 import toyworld
from minivl2.batch import IGNORED, Batch, in_line
from minivl2.processor import Processor
from minivl2.training.looking import Told, looks
from minivl2.training.noticing import Noticed, noticed
from minivl2.training.optimizers import rate as cosine
from minivl2.training.optimizers import stepped
from minivl2.training.tokenizer import spans
from minivl2.visual_tokens import count

Grid = tuple[int, int]


@dataclass(frozen=True)
class Stage:
    """A part of the training: it lasts until this fraction of all steps, and shows these kinds on these grids."""

    until: float
    kinds: dict[str, float]         # how often, relative to each other
    grids: tuple[Grid, ...]
    oftener: dict[str, dict[Grid, float]] = field(default_factory=dict)     # some of a kind's grids, beside others
    things: int = 6                 # at most so many in a scene
    lists: float = 1 / 3            # how often what lists everything is asked for, and nothing else, where it can be
    frozen: tuple[str, ...] = ()    # parts of the model that do not learn meanwhile
    looking: float = 0.0            # the weight of the loss that tells where to look (looking.py)
    noticing: float = 0.0           # the weight of what visual tokens are to know before anybody asks (noticing.py)
    guided: float = 0.0             # until this fraction of all steps that attention is laid there, less and less of it
    rate: Callable[[float], float] | None = None    # of the full rate, over the stage; None: optimizers.rate over all
    # what only the paper's recipe uses
    told: float = 0.0               # part of the conversations that are about a picture told in words
    all_text: bool = False          # learn the questions, too
    packed: int = 0                 # tokens of a sequence that conversations are packed into; 0: one each
    bias_step: float = 0.001        # of the gates' correction biases, where they have them


SEEING = ("vision", "projector")        # learned before (sight.py), and worth a third of the time
PLAIN: tuple[Grid, ...] = ((1, 1),)
SMALL: tuple[Grid, ...] = ((1, 1), (2, 1), (1, 2))
ALL = tuple(dict.fromkeys(grid for grids in toyworld.GRIDS.values() for grid in grids))
FEW = {"scenes": 2, "grounding": 1}
SOME = {"scenes": 3, "grounding": 2}
EVERYTHING = {"scenes": 2, "grounding": 2, "text": 2, "documents": 2, "tables": 2, "charts": 2, "pairs": 2}
HARD = {"scenes": 6, "grounding": 4, "text": 6, "documents": 6, "tables": 8, "charts": 8, "pairs": 1}
KEPT = {"scenes": 2, "grounding": 4, "text": 4, "documents": 4, "tables": 6, "charts": 3, "pairs": 1}     # to end with
EVEN = {"scenes": 6, "grounding": 7, "text": 6, "documents": 7, "tables": 8, "charts": 8, "pairs": 3}
# Where the toy of weights/ was wrong most often: where letters are smallest (fields on two or four tiles 25 times in a
# hundred, on others 12), and where pictures are long (all boxes of a kind on three tiles in a line 28 times, on one tile 14)
OFTENER = {"grounding": {(1, 3): 2.5, (3, 1): 2.0, (2, 3): 2.0, (1, 2): 1.5},
           "text": {(1, 2): 2.0, (2, 1): 2.0, (2, 2): 2.0},
           "documents": {(2, 1): 2.5, (2, 2): 2.5}, "tables": {(2, 1): 2.0, (2, 2): 2.0}}
TOLD = 0.3                              # the weight of being told where to look, beside that of the answers
ASKED = 0.1                             # and of being asked what is noticed
PAPER_FINE = 3.0 / 54                   # the third stage's rate beside that of the first two, for Tiny
COURSES = {
    # what ten minutes are enough for: things. The eye learns no more: when it did in the last quarter, steps that took
    # longer for it left counting at 78 % instead of 88
    "short": (
        Stage(0.50, SOME, PLAIN, lists=0.0, frozen=SEEING, looking=TOLD, guided=0.4, noticing=ASKED),
        Stage(1.00, SOME, SMALL, lists=0.0, frozen=SEEING, looking=TOLD, noticing=ASKED),
    ),
    # the whole toy world, in hours
    "whole": (
        Stage(0.25, FEW, PLAIN, frozen=SEEING),
        Stage(0.65, {**EVERYTHING, "pairs": 1}, (*SMALL, (2, 2)), frozen=SEEING),
        Stage(1.00, EVERYTHING, ALL),
    ),
    # for a toy that has been through "whole": what it finds hardest, first where little lies apart; then everything
    "more": (
        Stage(0.30, HARD, SMALL, looking=TOLD),
        Stage(0.75, HARD, ALL, looking=TOLD),
        Stage(1.00, KEPT, ALL, looking=TOLD),
    ),
    # to end with: everything, at a low rate, most of all what "more" lets slip
    "polish": (
        Stage(1.00, KEPT, ALL, rate=lambda progress: 0.5 * cosine(progress), looking=TOLD),
    ),
    # for a toy whose eye has become sharper meanwhile (--sight): everything, each as often as it is hard to learn. Answers
    # are a coarse teacher: an eye that went on learning from them had lost all of its new sharpness after 3,700 steps
    "again": (
        Stage(1.00, EVEN, ALL, OFTENER, frozen=SEEING, rate=lambda progress: 0.5 * cosine(progress), looking=TOLD,
              noticing=ASKED),
    ),
    # tables 1 and 2 of the paper, in proportion: align the eye with words, learn everything, learn to answer
    "paper": (
        Stage(0.15, {"scenes": 1}, PLAIN, frozen=("decoder",), rate=cosine, bias_step=0.0),
        Stage(0.85, {**FEW, "charts": 1, "text": 1}, SMALL, rate=stepped, told=0.3, all_text=True, packed=512),
        Stage(1.00, {**FEW, "charts": 1, "text": 1}, SMALL, rate=lambda _: PAPER_FINE, packed=512, bias_step=0.0),
    ),
    # one kind of picture for long enough: to find out what a part of the model is worth
    "things": (
        Stage(1.00, FEW, PLAIN, frozen=SEEING),
    ),
    # one ability that needs the tiles
    "reading": (
        Stage(1.00, {"text": 1}, ((2, 1), (1, 2), (2, 2)), frozen=SEEING),
    ),
}
ROOM = 100          # tokens for questions and answers about one picture, or as many as the picture has, if those are more
LISTS = ("caption", "grounded caption", "chart values", "table row")    # tell what most other questions ask for
DERIVED = ("table largest", "tallest", "larger")    # once the values are read out, these can be told without looking
SPARED = 0.25       # so often they are not asked for at all
RIVALS = (("read", "line"), ("field", "label"),     # "the total? 42" answers "which field says 42?", and the other way
          ("tallest", "larger"))
TURN = 6            # tokens that every question costs by itself, for roles, line ends and the end of the answer


def stage_at(progress: float, course: tuple[Stage, ...]) -> Stage:
    """progress from 0 to 1"""
    return next((stage for stage in course if progress < stage.until), course[-1])


def pictures(seed: int, step: int, stage: Stage, size: int, rank: int = 0, team: int = 1) -> list[toyworld.Sample]:
    """The `size` pictures of this step, all on one grid; of a team, those that are this rank's. The same seed and step give
    the same pictures."""
    rng = random.Random(f"batch {seed} {step}")
    shares = kinds_by_grid(stage)
    grid = rng.choices(list(shares), [sum(kinds.values()) for kinds in shares.values()])[0]
    chosen = rng.choices(list(shares[grid]), list(shares[grid].values()), k=size)
    return [picture(f"train {seed} {step} {i}", chosen[i], grid, stage.things) for i in range(rank, size, team)]


def kinds_by_grid(stage: Stage) -> dict[Grid, dict[str, float]]:
    """How often each kind on each grid, so that the kinds come as often as the stage says, each alike on its grids, but for
    those that the stage says come oftener.

    To choose a grid first, all alike, would not do: kinds that are drawn on few grids would hardly ever come.
    """
    shares: dict[Grid, dict[str, float]] = {}
    for kind, share in stage.kinds.items():
        grids = [grid for grid in toyworld.GRIDS[kind] if grid in stage.grids]
        often = [stage.oftener.get(kind, {}).get(grid, 1.0) for grid in grids]
        for grid, part in zip(grids, often, strict=True):
            kinds = shares.setdefault(grid, {})
            kinds[kind] = kinds.get(kind, 0.0) + share * part / sum(often)
    return shares


def picture(seed: str, kind: str, grid: Grid, things: int) -> toyworld.Sample:
    """The first picture from this seed on that does not show too many things."""
    for attempt in itertools.count():
        sample = toyworld.draw(f"{seed} {attempt}", kind, grid)
        if len(getattr(sample.facts, "things", ())) <= things:
            return sample


def interview(
    processor: Processor, sample: toyworld.Sample, rng: random.Random, lists: float = Stage.lists
) -> list[toyworld.Question]:
    """As many questions about one picture as there is room for, in random order, of every ability one before any second,
    but none after another that gives its answer away: what follows from values is asked before the values or, now and then,
    not at all, and of two abilities that tell each other's answers only one is asked about. What lists everything is asked
    for in some of the conversations, and nothing else in those. Or it would be answered from the text: when lists came last,
    the toy read the whole chart out from what had been said of it, five times as surely as from the chart."""
    abilities = {question.ability for question in sample.questions}
    left_out = {rng.choice(rivals) for rivals in RIVALS if abilities.issuperset(rivals)}
    everything = abilities.intersection(LISTS)
    left_out |= abilities - everything if everything and rng.random() < lists else everything
    left_out |= abilities.intersection(DERIVED) if rng.random() < SPARED else set()
    order = rng.sample(sample.questions, len(sample.questions))
    nth = [sum(other.ability == question.ability for other in order[:i]) for i, question in enumerate(order)]
    asked, room = [], max(ROOM, len(sample.images) * count(sample.grid, processor.config.side))
    for _, question in sorted(zip(nth, order, strict=True), key=lambda pair: pair[0]):
        size = len(spans(processor.tokenizer, question.text)) + len(spans(processor.tokenizer, question.answer)) + TURN
        if question.ability not in left_out and (not asked or size <= room):
            asked.append(question)
            room -= size
    return sorted(asked, key=lambda question: question.ability not in DERIVED)


class Lesson(NamedTuple):
    """A batch, and of each of its labelled tokens, row after row, to the answer of which ability it belongs."""

    batch: Batch
    abilities: list[str]
    told: Told | None = None            # where to look, if the stage tells
    noticed: Noticed | None = None      # what visual tokens are to know, if it asks


def lesson(
    processor: Processor, seed: int, step: int, stage: Stage, size: int, rank: int = 0, team: int = 1
) -> Lesson:
    """What is learned from in this step; of a team, the part that is this rank's."""
    alone, about = [], []
    for i, sample in zip(range(rank, size, team), pictures(seed, step, stage, size, rank, team), strict=True):
        rng = random.Random(f"questions {seed} {step} {i}")
        if stage.told and rng.random() < stage.told:
            talk, abilities, images = in_words(toyworld.draw(f"told {seed} {step} {i}", "scenes"), rng)
        else:
            asked = interview(processor, sample, rng, stage.lists)
            talk, abilities = toyworld.messages(asked, len(sample.images)), [question.ability for question in asked]
            about.append((sample, asked))
            images = sample.images
        alone.append(labelled(processor(talk, images, training=True), abilities, stage.all_text))
    if stage.packed:
        alone = packed(alone, stage.packed)
    batch = processor.batch([one.batch for one in alone])
    where = looks(processor, *zip(*about, strict=True), batch) if stage.looking else None
    known = noticed(processor, [sample for sample, _ in about], batch) if stage.noticing else None
    return Lesson(batch, [name for one in alone for name in one.abilities], where, known)


def labelled(batch: Batch, abilities: list[str], all_text: bool) -> Lesson:
    """One conversation, and to which answer its tokens belong."""
    if all_text:
        batch = replace(batch, labels=batch.input_ids.masked_fill(batch.image_mask, IGNORED))
        return Lesson(batch, ["text"] * int(batch.learned.sum()))
    answers = [len(list(run)) for learned, run in itertools.groupby(batch.learned[0].tolist()) if learned]
    return Lesson(batch, [name for name, tokens in zip(abilities, answers, strict=True) for _ in range(tokens)])


def in_words(sample: toyworld.Sample, rng: random.Random) -> tuple[list[dict], list[str], tuple]:
    """A conversation about a picture that is not shown but told: its caption, then a question."""
    caption = next(question for question in sample.questions if question.ability == "caption")
    question = rng.choice([question for question in sample.questions if question is not caption])
    talk = toyworld.messages([replace(question, text=f"{caption.answer}. {question.text}")], images=0)
    return talk, [question.ability], ()


def packed(lessons: list[Lesson], room: int) -> list[Lesson]:
    """Conversations in as few sequences of `room` tokens as the first fit finds. A token may look at the conversations
    before its own, as in DeepSeek's own pre-training (DeepSeek-V3, arXiv:2412.19437, section 4.1)."""
    lines: list[list[Lesson]] = []
    for one in lessons:
        length = one.batch.input_ids.shape[1]
        free = [line for line in lines if sum(other.batch.input_ids.shape[1] for other in line) + length <= room]
        if free:
            free[0].append(one)
        else:
            lines.append([one])
    return [Lesson(in_line([one.batch for one in line]), [name for one in line for name in one.abilities])
            for line in lines]
