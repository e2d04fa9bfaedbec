"""Exercises on minivl2/training/evaluation.py, of lessons 08 and 12. Graded by tests/test_evaluation.py."""

import math

from minivl2 import toyworld
from minivl2.grading.exercise import Exercise, Mistake
from minivl2.toyworld import Question
from minivl2.training import evaluation
from minivl2.training.evaluation import Answered

SAMPLE = toyworld.draw(0, "grounding")
BOX = "<|ref|>it<|/ref|><|det|>[[0, 0, 100, 100]]<|/det|>"


def some_scores():
    answers = [Answered(SAMPLE, Question(ability, "?", wanted, guess), given) for ability, wanted, given, guess in (
        ("count", "3", "3", 0.25), ("box", BOX, BOX.replace("100, 100", "100, 50"), None), ("count", "4", "3", 0.5),
        ("colour", "red", "red", 0.125), ("box", BOX, BOX.replace("100, 100", "100, 90"), None), ("count", "1", "2", 0.25),
        ("box", BOX, "none", None), ("box", BOX, BOX.replace("100, 100", "100, 30"), None),
        ("box", BOX, BOX.replace("it<", "that<"), None))]
    told = evaluation.scores(answers)
    return [(part, list(value.items()) if isinstance(value, dict) else value) for part, value in told.items()]


def some_intervals():
    return [list(map(float, evaluation.interval(score, n))) for score, n in ((0.5, 50), (0.9, 20), (0.0, 7), (0.02, 100))]


def usual(score, n, z=1.96):
    half = z * math.sqrt(score * (1 - score) / n) if n else 1.0
    return score - half, score + half


def usual_inside(score, n):
    low, high = usual(score, n)
    return max(0.0, low), min(1.0, high)


HALF = "math.sqrt(z2 * score * (1 - score) + z2**2 / 4)"
EXERCISES = (
    Exercise("training.evaluation.interval", "interval", some_intervals, (
        Mistake("the usual one", usual,
                "this is score ± 1.96 standard errors. With none of 7 right it says that the score is 0 for certain, and "
                "with 18 of 20 it goes beyond 1. Wilson's interval asks which true scores make what was seen likely."),
        Mistake("one standard error", {"SURE**2 / n": "1 / n"},
                "z is 1: the truth would be inside two times of three only. For 95 % it is 1.96."),
        Mistake("one side only", {"SURE**2 / n": "1.645**2 / n"},
                "z = 1.645 leaves 5 % out on each side. The interval has two sides: 2.5 % each, z = 1.96."),
        Mistake("z, not its square", {"SURE**2 / n": "SURE / n"},
                "the formula has z squared over n, also under the root."),
        Mistake("no root", {HALF: "(z2 * score * (1 - score) + z2**2 / 4)"},
                "the root is missing: that is a variance, and a width is a standard deviation."),
        Mistake("the middle stays", {"score + z2 / 2": "score"},
                "the interval's middle is not the score: it lies nearer to a half, by z² / 2n."),
        Mistake("not divided", {" / (1 + z2)": ""},
                "both ends are to be divided by 1 + z²/n; yours reach beyond 1."),
        Mistake("whole width", {"(middle - half)": "(middle - 2 * half)", "(middle + half)": "(middle + 2 * half)"},
                "it is twice as wide as it should be."),
        Mistake("the small term forgotten", {" + z2**2 / 4": ""},
                "under the root z⁴/4n² is missing. Without it the interval has no width where none or all are right."),
        Mistake("the usual one, cut off", usual_inside),
        Mistake("fails without questions", {"if n == 0": "if n < 0"}),
    )),
    Exercise("training.evaluation.scores", "test and not interval", some_scores, (
        Mistake("all abilities together", {"mean([one.right for one in ones])": "mean([one.right for one in answered])"},
                "every ability gets the score of all answers together."),
        Mistake("counts, not fractions", {"mean([one.right for one in ones])": "sum(one.right for one in ones)"},
                "the scores are numbers of right answers; they are to be fractions."),
        Mistake("one guess for all", {"mean([one.question.guess or 0.0 for one in ones])": "ones[0].question.guess or 0.0"},
                "the guess of the first question stands for all. It differs: with four things a count is guessed more "
                "often "
                "than with six. Take the mean."),
        Mistake("no guess is skipped", {"mean([one.question.guess or 0.0 for one in ones])":
                                        "mean([one.question.guess for one in ones if one.question.guess])"},
                "questions that cannot be guessed (guess None) are left out; they count as 0."),
        Mistake("a half is enough", {"overlap > 0.5": "overlap >= 0.5"},
                "a box that overlaps by exactly a half counts as found; it is to be more than a half."),
        Mistake("no box is zero", {"[one.overlap for one in answered if one.overlap is not None]":
                                   "[one.overlap or 0.0 for one in answered]"},
                "questions that ask for no box count as overlap 0. Leave them out of the boxes' scores."),
        Mistake("any overlap", {"overlap > 0.5": "overlap > 0"},
                "any overlap counts as found; it is to be more than a half."),
        Mistake("in order of asking", {
            "for ability in toyworld.ABILITIES if ability in by_ability": "for ability in by_ability"},
                "abilities stand in the order in which they were asked. Order them as toyworld.ABILITIES does, so "
                "that two "
                "tables can be laid side by side."),
        Mistake("misses left out", {"if one.overlap is not None": "if one.overlap"}),
        Mistake("of all", {"len(ones) for": "len(answered) for"},
                "n says how many answers there are in all, for each ability."),
        Mistake("boxes where the text is right", {"overlap > 0.5 for overlap in overlaps":
                                                  "one.right for one in answered if one.overlap is not None"}),
    )),
)
