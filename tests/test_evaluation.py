"""Scores, from answers made up. test_training.py asks a model."""

import math

import pytest

from minivl2 import toyworld
from minivl2.toyworld import Question
from minivl2.training import evaluation
from minivl2.training.evaluation import Answered, scores

SAMPLE = toyworld.draw(0, "grounding")
BOX = "<|ref|>it<|/ref|><|det|>[[100, 100, 200, 200]]<|/det|>"
HALF = BOX.replace("200, 200", "200, 150")          # overlaps by exactly a half
NEAR = BOX.replace("200, 200", "200, 180")


def said(ability, wanted, given, guess=None):
    return Answered(SAMPLE, Question(ability, "?", wanted, guess), given)


ANSWERS = [said("count", "3", "3", 0.25), said("box", BOX, NEAR), said("count", "4", "3", 0.5),
           said("colour", "red", "red", 0.1), said("count", "1", "2", 0.25), said("box", BOX, HALF),
           said("box", BOX, "none"), said("colour", "red", "red", 0.2)]


def test_each_ability_is_scored_by_itself():
    assert scores(ANSWERS)["scores"] == {"colour": 1.0, "count": 0.3333, "box": 0.3333}


def test_beside_the_score_stands_the_mean_guess_and_no_guess_is_none_right():
    assert scores(ANSWERS)["guess"] == pytest.approx({"colour": 0.15, "count": 0.3333, "box": 0.0})


def test_it_says_of_how_many():
    assert scores(ANSWERS)["n"] == {"colour": 2, "count": 3, "box": 3}


def test_abilities_stand_in_the_order_of_the_toy_world_whatever_was_asked_first():
    for part in ("scores", "guess", "n"):
        assert list(scores(ANSWERS)[part]) == list(scores(ANSWERS[::-1])[part]) == ["colour", "count", "box"]


def test_boxes_are_scored_over_the_questions_that_want_one():
    result = scores(ANSWERS)
    assert result["mean_iou"] == pytest.approx((0.8 + 0.5 + 0) / 3, abs=1e-4)
    assert result["iou_50"] == pytest.approx(1 / 3, abs=1e-4)       # a half is not more than a half


def test_without_boxes_there_is_no_overlap_and_without_answers_nothing():
    plain = scores(ANSWERS[:1])
    assert (plain["mean_iou"], plain["iou_50"]) == (None, None)
    assert scores([]) == {"scores": {}, "guess": {}, "n": {}, "mean_iou": None, "iou_50": None}


def test_a_box_in_the_right_place_counts_even_under_a_wrong_name():
    """The overlap is about where; whether the answer is right is about both."""
    result = scores([said("box", BOX, BOX.replace("it<", "that<"))])
    assert (result["scores"], result["mean_iou"], result["iou_50"]) == ({"box": 0.0}, 1.0, 1.0)


# the interval


def chance(right, n, p):
    return math.comb(n, right) * p**right * (1 - p) ** (n - right)


def held(n, p):
    """How probable it is that the interval holds p, if each of n answers is right with probability p."""
    intervals = (evaluation.interval(k / n, n) for k in range(n + 1))
    return sum(chance(k, n, p) for k, (low, high) in enumerate(intervals) if low <= p <= high)


@pytest.mark.parametrize("n", [10, 50, 200])
def test_the_interval_holds_the_truth_95_times_in_100(n):
    """On average over all that the truth could be: for a single one it is now a little more, now a little less."""
    truths = [i / 100 for i in range(1, 100)]
    assert sum(held(n, p) for p in truths) / len(truths) == pytest.approx(0.95, abs=0.012)
    assert min(held(n, p) for p in truths) > 0.82


@pytest.mark.parametrize("score, n, low, high", [
    # by hand from the formula, with z = 1.96
    (0.5, 50, 0.3664, 0.6336), (0.9, 10, 0.5958, 0.9821), (0.2, 100, 0.1334, 0.2888), (0.02, 50, 0.0035, 0.1050)])
def test_the_interval_is_wilsons(score, n, low, high):
    assert evaluation.interval(score, n) == pytest.approx((low, high), abs=2e-4)


@pytest.mark.parametrize("n", [1, 7, 50, 1000])
def test_the_interval_of_none_right_has_a_width_and_stays_between_0_and_1(n):
    low, high = evaluation.interval(0.0, n)
    assert low == pytest.approx(0, abs=1e-12) and high == pytest.approx(1.96**2 / (n + 1.96**2))
    mirrored = evaluation.interval(1.0, n)
    assert mirrored == pytest.approx((1 - high, 1 - low))


def test_four_times_the_questions_halve_the_interval():
    def width(n):
        low, high = evaluation.interval(0.5, n)
        return high - low
    assert width(1600) == pytest.approx(width(400) / 2, rel=0.01)


def test_the_interval_leans_towards_the_middle():
    low, high = evaluation.interval(0.9, 20)
    assert 0.9 - low > high - 0.9 > 0


def test_of_no_questions_the_interval_is_everything():
    assert evaluation.interval(0.0, 0) == (0.0, 1.0)


def test_the_table_has_the_interval_of_each_score():
    rows = {line[:18].strip(): line.split() for line in evaluation.table(scores(ANSWERS)).splitlines()}
    low, high = evaluation.interval(0.3333, 3)
    assert rows["count"][1:] == ["33%", f"{low:.0%}-{high:.0%}", "33%", "3"]
