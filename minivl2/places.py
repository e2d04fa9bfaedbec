"""Which pixels of a picture a visual token stands for.

Paper    DeepSeek-VL2, section 2.
Lesson   lessons/03_squeezing.ipynb          Tests   tests/test_places.py

The way back from a token to the picture: tokens are squeezed out of 2 x 2 patches, patches lie in a view, and a view is
the picture, scaled and padded. The model has no use for this; who wants to see what it looks at, has.

A view is called GLOBAL or LOCAL here, and the local one is the whole mosaic of w x h tiles.
"""

from __future__ import annotations

from typing import NamedTuple

Size = tuple[int, int]
Rectangle = tuple[float, float, float, float]       # left, top, right, lower

GLOBAL, LOCAL, NEWLINE, SEPARATOR = range(4)
KINDS = ("global view", "local view", "newline", "separator")


class Place(NamedTuple):
    """Where one visual token comes from."""

    kind: int                       # GLOBAL, LOCAL, NEWLINE or SEPARATOR
    view: int                       # GLOBAL or LOCAL: in which of the two views it stands (of a separator: neither, -1)
    row: int                        # in that view, counted in tokens
    column: int
    in_view: Rectangle | None       # its pixels in the view; None for newlines and separators, which see nothing
    in_picture: Rectangle | None    # its pixels in the picture; None where the token sees only padding


def fitted(picture: Size, frame: Size) -> tuple[int, int, int, int]:
    """Left, top, width and height of the picture in a frame that it was scaled to fit, as tiling.cut places it."""
    (width, height), (W, H) = picture, frame
    if width * H > height * W:                  # wider than the frame: bars above and below
        H = round(height / width * W)
    elif width * H < height * W:
        W = round(width / height * H)
    return round((frame[0] - W) * 0.5), round((frame[1] - H) * 0.5), W, H


def frames(grid: Size, tile: int) -> tuple[Size, Size]:
    """Pixels of the global view, and of the local one."""
    return (tile, tile), (grid[0] * tile, grid[1] * tile)


def places(picture: Size, grid: Size, tile: int, patch: int, ratio: int = 2) -> list[Place]:
    """The place of every visual token of a picture, in the order in which the decoder reads them."""
    side = -(-(tile // patch) // ratio)
    whole, local = frames(grid, tile)
    return [
        *_view(GLOBAL, picture, whole, (side, side), tile, patch, ratio),
        Place(SEPARATOR, -1, 0, 0, None, None),
        *_view(LOCAL, picture, local, (side * grid[0], side * grid[1]), tile, patch, ratio),
    ]


def _view(view: int, picture: Size, frame: Size, tokens: Size, tile: int, patch: int, ratio: int) -> list[Place]:
    columns, rows = tokens
    found = []
    for row in range(rows):
        for column in range(columns):
            (left, right), (top, lower) = (_along(n, tile, patch, ratio) for n in (column, row))
            here = (left, top, right, lower)
            found.append(Place(view, view, row, column, here, _back(here, picture, frame)))
        found.append(Place(NEWLINE, view, row, columns, None, None))
    return found


def _along(n: int, tile: int, patch: int, ratio: int) -> Size:
    """From which pixel to which the n-th token along a view reaches. The last token of a tile may cover fewer patches:
    27 patches make 14 tokens, of which the last has one patch and padding. Pixels that fill no patch are nobody's."""
    patches = tile // patch
    side = -(-patches // ratio)
    which, k = divmod(n, side)
    return which * tile + k * ratio * patch, which * tile + min((k + 1) * ratio, patches) * patch


def _back(here: Rectangle, picture: Size, frame: Size) -> Rectangle | None:
    """From the view's pixels to the picture's; what lies outside the picture is cut off."""
    left, top, W, H = fitted(picture, frame)
    x1, x2 = (min(max(edge - left, 0), W) for edge in (here[0], here[2]))
    y1, y2 = (min(max(edge - top, 0), H) for edge in (here[1], here[3]))
    if x1 >= x2 or y1 >= y2:        # asked of whole pixels: scaled, a token beside the picture might keep a sliver
        return None
    width, height = picture
    return x1 * width / W, y1 * height / H, x2 * width / W, y2 * height / H
