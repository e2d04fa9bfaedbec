"""Exercises on minivl2/tiling.py, of lesson 01. Graded by tests/test_tiling.py."""

import small
import torch

from minivl2 import tiling
from minivl2.config import paper_candidates
from minivl2.grading.exercise import Exercise, Mistake

# ------------------------------------------------------------------------------------------ choosing


def some_sizes():
    return [tiling.effective_resolution((w, h), candidate) for w, h in ((640, 480), (1000, 333), (300, 301), (2000, 500))
            for candidate in ((384, 384), (768, 384), (384, 1152))]


def some_choices():
    lists = paper_candidates(), paper_candidates()[::-1], [(768, 384), (384, 768)]
    sizes = (100, 100), (640, 480), (800, 600), (1920, 1080), (300, 4000), (1000, 1000), (384, 700)
    return [list(tiling.select_best_resolution(size, candidates)) for size in sizes for candidates in lists]


# ------------------------------------------------------------------------------------------ cutting


def a_split():
    return tiling.split(torch.arange(3 * 4 * 6.0).view(3, 4, 6), (3, 2))


def some_views():
    return [tiling.cut(small.picture(*size), (2, 1), 8, (0.5, 0.25, 0.1), (0.5, 1.0, 2.0)) for size in ((16, 8), (7, 9))]


def reshaped(view, grid):
    w, h = grid
    return view.reshape(w * h, 3, view.shape[1] // h, view.shape[2] // w)


EXERCISES = (
    Exercise("tiling.effective_resolution", "pixels_that_survive or released_models_rule", some_sizes, (
        Mistake("the larger scale", {"min(W / width": "max(W / width"},
                "you scale by the larger of the two ratios. Then the picture fills the candidate and sticks out of it; the "
                "smaller ratio makes it fit."),
        Mistake("enlarging creates pixels", {"min(int(width * scale) * int(height * scale), width * height)":
                                             "int(width * scale) * int(height * scale)"},
                "a picture that is enlarged gains pixels in yours. It has no more to tell than before: never more than "
                "width * height."),
        Mistake("rounded instead of cut off", {"int(": "round("},
                "you round the scaled sides to the nearest pixel. The released code cuts them off: int, not round."),
        Mistake("cut off only at the end", {"int(width * scale) * int(height * scale)":
                                            "int(width * scale * height * scale)"},
                "you cut off once, after multiplying. Each side is cut off by itself: there is no part of a pixel."),
        Mistake("each side by itself", {"int(width * scale) * int(height * scale)": "min(width, W) * min(height, H)"},
                "you clip each side by itself, which changes the picture's shape. One scale goes for both."),
        Mistake("width and height of the candidate swapped", {"(W, H) = image, candidate": "(H, W) = image, candidate"},
                "sizes are (width, height), like Pillow's; you took the candidate's the other way round."),
        Mistake("the smaller of the candidate and the picture", {"int(width * scale) * int(height * scale)": "W * H"}),
    )),
    Exercise("tiling.select_best_resolution", "released_models_rule or published_code or least_waste or earlier",
             some_choices, (
        Mistake("the last of equals", {"max(candidates, key=rank)": "max(reversed(candidates), key=rank)"},
                "among candidates that keep and waste the same you take the last (>= where > was meant, or the end of a "
                "sorted list); the first one wins."),
        Mistake("the paper's sentence", lambda image, candidates: tiling.least_padding(image, candidates),
                "this is the paper's sentence, the least padding. The released model first asks how much of the picture "
                "is kept."),
        Mistake("least waste only", {"return kept, -wasted": "return -wasted"},
                "you choose by waste alone. It only decides between candidates that keep equally much."),
        Mistake("waste not looked at", {"return kept, -wasted": "return kept"},
                "you choose by what is kept alone. Among candidates that keep everything, the one that wastes least wins."),
        Mistake("most waste among equals", {"-wasted": "wasted"},
                "among candidates that keep equally much you take the one that wastes most."),
        Mistake("kept less wasted", {"return kept, -wasted": "return kept - wasted"},
                "you subtract the waste from what is kept. They are two steps: first what is kept, then, only among equals, "
                "the waste."),
        Mistake("part of the candidate that is filled", {"return kept, -wasted":
                                                          "return kept / (candidate[0] * candidate[1])"}),
        Mistake("nearest aspect ratio", lambda image, candidates: min(
            candidates, key=lambda c: abs(c[0] / c[1] - image[0] / image[1])),
                "you choose by shape, the nearest aspect ratio (as other models do); how large the picture is must count."),
        Mistake("only candidates that hold the picture", {"return kept, -wasted":
                "return candidate[0] >= image[0] and candidate[1] >= image[1], -wasted"}),
    )),
    Exercise("tiling.split", "reading_order or squares_row_by_row", a_split, (
        Mistake("reshaped", reshaped,
                "reshape alone reads the pixels in the order in which they lie in memory, and a tile's rows do not lie one "
                "behind the other: split the axes, permute, then join."),
        Mistake("column by column", {"permute(1, 3, 0, 2, 4)": "permute(3, 1, 0, 2, 4)"},
                "right tiles, wrong order: yours go down the columns. Reading order goes along a row first."),
        Mistake("every second pixel", {"unflatten(2, (w, -1)).unflatten(1, (h, -1))":
                "unflatten(2, (-1, w)).unflatten(1, (-1, h)).permute(0, 2, 1, 4, 3)"},
                "your tiles are made of every w-th pixel: you split the axis as (t, w). The larger unit is first: (w, t)."),
        Mistake("tiles transposed", {"permute(1, 3, 0, 2, 4)": "permute(1, 3, 0, 4, 2)"},
                "each tile is mirrored at its diagonal: rows and columns inside the tiles are swapped."),
        Mistake("grid as (h, w)", {"w, h = grid": "h, w = grid"}),
        Mistake("from the bottom", {".flatten(0, 1)": ".flip(0).flatten(0, 1)"}),
    )),
    Exercise("tiling.cut", "tiles_are_cut or both_views or global_view or values or colour", some_views, (
        Mistake("global view last", {"(whole[None], split(local, grid))": "(split(local, grid), whole[None])"},
                "the global view comes first, then the tiles."),
        Mistake("no global view", {"torch.cat((whole[None], split(local, grid)))": "split(local, grid)"},
                "the global view is missing."),
        Mistake("stretched", {"fit(image, (tile, tile), grey)": "image.resize((tile, tile), 3)",
                              "fit(image, (w * tile, h * tile), grey)": "image.resize((w * tile, h * tile), 3)"},
                "the picture is stretched to the tile; its shape must be kept, and the rest padded: fit does both."),
        Mistake("padded with black", {"int(255 * m)": "0"},
                "you pad with black. The colour of the mean, int(255 * mean), is what becomes zero."),
        Mistake("128 for 127", {"int(255 * m)": "round(255 * m + 0.01)"},
                "you round 127.5 up to 128. The published processor cuts it off, and the model learned with 127."),
        Mistake("one grey for all colours", {"int(255 * m)": "int(255 * mean[0])"}),
        Mistake("one deviation for all colours of the tiles", {
            "(w * tile, h * tile), grey), mean, std)": "(w * tile, h * tile), grey), mean, (std[0],) * 3)"}),
        Mistake("tiles of the global view enlarged", {"local = normalised(fit(image, ": "local = normalised(fit(fit(image, "
                                                      "(tile, tile), grey), "},
                "you cut an enlarged global view. The local view is made from the picture itself: that is where its detail "
                "comes from."),
        Mistake("grid as (h, w)", {"w, h = grid": "h, w = grid; grid = w, h"},
                "the grid is (w, h), tiles across and then down; you took it the other way round."),
        Mistake("not normalised", {"mean, std)": "(0.0,) * 3, (1.0,) * 3)"},
                "the pixels are not normalised with mean and std."),
        Mistake("mean not subtracted", {"mean, std)": "(0.0,) * 3, std)"}),
    )),
)
