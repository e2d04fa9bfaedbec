"""Laying out an image's vectors as a line of tokens ("2D tile tags").

Paper    DeepSeek-VL2, section 2 and figure 3.
Lesson   lessons/03_squeezing.ipynb; `count`, in lessons/01_tiles.ipynb         Tests   tests/test_visual_tokens.py

The decoder reads a line; an image is a plane. So the plane is read row by row with a learned `image_newline` after
each row, and a learned `view_separator` stands between the global view and the local tiles:

    global view, 14 rows of (14 + newline)  |  separator  |  local view, 14h rows of (14w + newline)

The tiles are placed side by side *before* reading, so a row runs across all w tiles of its mosaic row.
"""

import torch
from torch import Tensor


def count(grid: tuple[int, int], side: int) -> int:
    """Tokens an image costs on a grid of (w, h) tiles; `side` tokens (14) along a tile. 2 x 2 tiles: 1023."""
    w, h = grid
    return side * (side + 1) + 1 + side * h * (side * w + 1)


def lay_out(tiles: Tensor, grid: tuple[int, int], newline: Tensor, separator: Tensor) -> Tensor:
    """tiles (1 + w*h, side*side, D), global view first -> (tokens, D). newline and separator: (D,)"""
    w, h = grid
    side = int(tiles.shape[1] ** 0.5)
    if tiles.shape[0] != 1 + w * h:
        raise ValueError(f"a grid of {w}x{h} tiles needs {1 + w * h} views, got {tiles.shape[0]}")
    plane = tiles.unflatten(1, (side, side))                                                # (1+w*h, side, side, D)
    mosaic = plane[1:].unflatten(0, (h, w)).transpose(1, 2).flatten(2, 3).flatten(0, 1)     # (h*side, w*side, D)
    return torch.cat((_read(plane[0], newline), separator[None], _read(mosaic, newline)))


def _read(plane: Tensor, newline: Tensor) -> Tensor:
    """(rows, columns, D) -> (rows * (columns + 1), D): row by row, each ended by a newline."""
    ends = newline.expand(plane.shape[0], 1, -1)
    return torch.cat((plane, ends), dim=1).flatten(0, 1)
