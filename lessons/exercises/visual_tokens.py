"""Exercises on minivl2/visual_tokens.py, of lessons 01 and 03. Graded by tests/test_visual_tokens.py."""

import small
import torch

from minivl2 import visual_tokens
from minivl2.grading.exercise import Exercise, Mistake

# ------------------------------------------------------------------------------------------ counting


def some_counts():
    return [visual_tokens.count(grid, side) for grid in ((1, 1), (3, 2), (1, 4), (5, 1)) for side in (14, 3)]


# ------------------------------------------------------------------------------------------ laying out


def some_lines():
    newline, separator = small.numbers(2, 3, seed=1)
    return [visual_tokens.lay_out(small.numbers(7, 9, 3), grid, newline, separator) for grid in ((3, 2), (2, 3))]


def tile_by_tile(tiles, grid, newline, separator):
    side = round(tiles.shape[1] ** 0.5)
    whole, *local = (visual_tokens._read(tile.unflatten(0, (side, side)), newline) for tile in tiles)
    return torch.cat((whole, separator[None], *local))


def newlines_first(tiles, grid, newline, separator):
    w, h = grid
    side = round(tiles.shape[1] ** 0.5)
    plane = tiles.unflatten(1, (side, side))
    mosaic = plane[1:].unflatten(0, (h, w)).transpose(1, 2).flatten(2, 3).flatten(0, 1)
    whole, local = (torch.cat((newline.expand(len(view), 1, -1), view), 1).flatten(0, 1) for view in (plane[0], mosaic))
    return torch.cat((whole, separator[None], local))


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
    Exercise("visual_tokens.lay_out", "the_line_is or row_runs or width_then_height or laid_out or newlines_and",
             some_lines, (
        Mistake("tile by tile", tile_by_tile,
                "you read tile by tile, each with newlines of its own. The tiles are laid side by side first; a row runs "
                "across all of them."),
        Mistake("newline before each row", newlines_first, "the newline stands after each row; yours stands before it."),
        Mistake("tiles not brought side by side", {".transpose(1, 2).flatten(2, 3).flatten(0, 1)":
                                                   ".reshape(h * side, w * side, -1)"},
                "a reshape does not lay tiles side by side: split into (h, w, side, side), bring w to the columns, join."),
        Mistake("grid as (h, w)", {"w, h = grid": "h, w = grid"},
                "the grid is (w, h), tiles across and then down; you took it the other way round."),
        Mistake("no newlines in the global view", {"_read(plane[0], newline)": "plane[0].flatten(0, 1)"},
                "the rows of the global view end with newlines, too."),
        Mistake("no newlines in the local view", {"_read(mosaic, newline)": "mosaic.flatten(0, 1)"},
                "the rows of the local view end with newlines, too."),
        Mistake("no separator", {" separator[None],": ""}, "the separator between the two views is missing."),
        Mistake("local view first", {"(_read(plane[0], newline), separator[None], _read(mosaic, newline))":
                                     "(_read(mosaic, newline), separator[None], _read(plane[0], newline))"},
                "the global view comes first, then the separator, then the local view."),
        Mistake("separator at the end", {"separator[None], _read(mosaic, newline))":
                                         "_read(mosaic, newline), separator[None])"},
                "the separator stands between the two views, not behind them."),
        Mistake("global view among the tiles", {"plane[1:].unflatten": "plane[:-1].unflatten"}),
        Mistake("columns first", {"_read(mosaic, newline)": "_read(mosaic.transpose(0, 1), newline)"}),
        Mistake("no gradient to the newline", {"_read(mosaic, newline)": "_read(mosaic, newline.detach())"}),
    )),
)
