"""Exercises on minivl2/training/evaluation.py, of lesson 08. Graded by tests/test_evaluation.py."""

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


EXERCISES = (
    Exercise("training.evaluation.scores", "test", some_scores, (
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
