"""Scores, from answers made up. test_training.py asks a model."""

import pytest

from minivl2 import toyworld
from minivl2.toyworld import Question
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
