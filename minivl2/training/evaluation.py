"""How good is it? Each ability on pictures never trained on, beside what a blind guess would score.

Lesson   lessons/08_training.ipynb, lessons/12_what_each_idea_buys.ipynb
Tests    tests/test_evaluation.py, tests/test_training.py
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from itertools import groupby

from PIL import Image
from tqdm import tqdm

from minivl2 import toyworld
from minivl2.generation import generate
from minivl2.grounding import iou, parse
from minivl2.model import DeepSeekVL2
from minivl2.processor import Processor

LONGEST_ANSWER = 160        # tokens: a caption of six things with boxes
TOGETHER = 32               # questions answered in one batch
SURE = 1.96                 # standard deviations: 95 in 100 of a normal distribution lie within so many


@dataclass(frozen=True)
class Answered:
    """A question, and what the model answered."""

    sample: toyworld.Sample
    question: toyworld.Question
    answer: str

    @property
    def images(self) -> tuple[Image.Image, ...]:
        return self.sample.images

    @property
    def overlap(self) -> float | None:
        """Mean IoU of the boxes asked for with the boxes given, in order. None where no box is asked for."""
        wanted, given = parse(self.question.answer), parse(self.answer)
        if not wanted:
            return None
        pairs = zip(wanted, given, strict=False)
        return sum(iou(a, b) for a, b in pairs) / max(len(wanted), len(given))

    @property
    def right(self) -> bool:
        """The same text; where boxes are asked for, the same labels, and every box overlaps its own by over a half."""
        wanted, given = parse(self.question.answer), parse(self.answer)
        if not wanted:
            return self.answer == self.question.answer
        return [box.label for box in wanted] == [box.label for box in given] and all(
            iou(a, b) > 0.5 for a, b in zip(wanted, given, strict=True))


def questions(seed: int, per_ability: int, kinds: tuple[str, ...], grids: tuple[tuple[int, int], ...] | None = None):
    """At most `per_ability` (sample, question) of every ability of these kinds, one of an ability from each picture."""
    found = []
    for kind in kinds:
        counts: dict[str, int] = {}
        possible = [grid for grid in grids or toyworld.GRIDS[kind] if grid in toyworld.GRIDS[kind]]
        for i in range(per_ability * 4):
            sample = toyworld.draw(f"evaluation {seed} {kind} {i}", kind, possible[i % len(possible)])
            asked = list({q.ability: q for q in sample.questions}.values())
            for question in asked:
                if counts.setdefault(question.ability, 0) < per_ability:
                    counts[question.ability] += 1
                    found.append((sample, question))
    return found


def answer_all(model: DeepSeekVL2, processor: Processor, asked) -> list[Answered]:
    """Every question alone, without the ones before it, which might give its answer away."""
    def shape(pair):        # a batch of pictures with equal numbers of tiles has no padding but the text's
        sample, _ = pair
        return len(sample.images), sample.grid

    answered = []
    bar = tqdm(total=len(asked), desc="evaluating", unit="question", leave=False)
    with bar:
        for _, alike in groupby(sorted(asked, key=shape), shape):
            alike = sorted(alike, key=lambda pair: len(pair[1].answer))     # long answers together
            for i in range(0, len(alike), TOGETHER):
                part = alike[i : i + TOGETHER]
                batch = processor.batch([
                    processor(toyworld.messages([question], len(sample.images))[:1], sample.images)
                    for sample, question in part])
                tokens = generate(model, batch, LONGEST_ANSWER)
                answered += [
                    Answered(sample, question, processor.decode(row.tolist()))
                    for (sample, question), row in zip(part, tokens, strict=True)]
                bar.update(len(part))
    random.Random(0).shuffle(answered)
    return answered


def scores(answered: list[Answered]) -> dict:
    """{"scores": {ability: fraction right}, "guess": {...}, "n": {...}, "mean_iou": x, "iou_50": x}"""
    by_ability: dict[str, list[Answered]] = {}
    for one in answered:
        by_ability.setdefault(one.question.ability, []).append(one)
    by_ability = {ability: by_ability[ability] for ability in toyworld.ABILITIES if ability in by_ability}
    overlaps = [one.overlap for one in answered if one.overlap is not None]
    return {
        "scores": {ability: mean([one.right for one in ones]) for ability, ones in by_ability.items()},
        "guess": {ability: mean([one.question.guess or 0.0 for one in ones]) for ability, ones in by_ability.items()},
        "n": {ability: len(ones) for ability, ones in by_ability.items()},
        "mean_iou": mean(overlaps),
        "iou_50": mean([overlap > 0.5 for overlap in overlaps]),
    }


def mean(values: list) -> float | None:
    return round(sum(values) / len(values), 4) if values else None


def interval(score: float, n: int) -> tuple[float, float]:
    """What endlessly many such questions could have scored, if `score` of n were right: all but the least likely 5 %.

    Wilson's interval. The usual score ± 1.96 standard errors is no interval at all where all or none are right.
    """
    if n == 0:
        return 0.0, 1.0
    z2 = SURE**2 / n
    middle, half = score + z2 / 2, math.sqrt(z2 * score * (1 - score) + z2**2 / 4)
    return (middle - half) / (1 + z2), (middle + half) / (1 + z2)


def table(result: dict) -> str:
    """The scores as a person reads them, each with its 95 % interval."""
    lines = [f"{'ability':<18}{'right':>8}{'between':>12}{'guess':>8}{'of':>6}"]
    for ability, score in result["scores"].items():
        low, high = interval(score, result["n"][ability])
        between = f"{low:.0%}-{high:.0%}"
        lines.append(f"{ability:<18}{score:>8.0%}{between:>12}{result['guess'][ability]:>8.0%}{result['n'][ability]:>6}")
    if result["mean_iou"] is not None:
        lines.append(f"boxes: mean IoU {result['mean_iou']:.2f}, {result['iou_50']:.0%} above 0.5")
    return "\n".join(lines)


def table_by_grid(answered: list[Answered]) -> str:
    """How the score depends on the number of tiles the pictures are cut into."""
    lines = [f"{'tiles':<18}{'right':>8}{'of':>14}{'mean IoU':>10}"]
    for across, down in sorted({one.sample.grid for one in answered}, key=lambda grid: (grid[0] * grid[1], grid)):
        ones = [one for one in answered if one.sample.grid == (across, down)]
        overlap = mean([one.overlap for one in ones if one.overlap is not None])
        lines.append(f"{across} x {down:<14}{mean([one.right for one in ones]):>8.0%}{len(ones):>14}"
                     f"{'' if overlap is None else f'{overlap:.2f}':>10}")
    return "\n".join(lines)
