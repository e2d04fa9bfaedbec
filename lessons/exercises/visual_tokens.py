"""Exercises on minivl2/visual_tokens.py, of lessons 01 and 03. Graded by tests/test_visual_tokens.py."""

from minivl2 import visual_tokens
from minivl2.grading.exercise import Exercise, Mistake

# ------------------------------------------------------------------------------------------ counting


def some_counts():
    return [visual_tokens.count(grid, side) for grid in ((1, 1), (3, 2), (1, 4), (5, 1)) for side in (14, 3)]


EXERCISES = (
    Exercise("visual_tokens.count", "counted or cost", some_counts, (
        Mistake("no newlines", {"(side + 1)": "side", "(side * w + 1)": "(side * w)"},
                "the newlines are missing: one behind each row, in both views."),
        Mistake("newlines of tiles", {"(side * w + 1)": "(side + 1) * w"},
                "you give each tile newlines of its own. The tiles are laid side by side first: a row runs across all of "
                "them and ends once."),
        Mistake("no separator", {" + 1 + side": " + side"}, "the separator between the two views is missing."),
        Mistake("no global view", {"side * (side + 1) + 1 + ": ""}, "the global view and the separator are not counted."),
        Mistake("w and h swapped", {"w, h = grid": "h, w = grid"},
                "the grid is (w, h): 14 h rows of 14 w. You took it the other way round."),
        Mistake("no newlines in the global view", {"side * (side + 1)": "side * side"},
                "the rows of the global view end with newlines, too."),
        Mistake("a newline before each view", {" + 1 + side": " + 3 + side"}),
    )),
)
