"""Blank pictures: their size, which decides the tile grid, and their low-contrast backgrounds."""

from PIL import Image

TILE = 56  # pixels along one side of a tile
MAX_TILES = 9
SLACK = 8  # a picture may be this many pixels smaller than its grid, in each direction


def picture_size(rng, grid):
    """A (width, height) in pixels that the tiling rule sends to ``grid`` (tiles across, tiles down).

    Why this is certain: every grid that contains the picture keeps all of its pixels, so these tie on
    effective resolution and the one with the least waste wins, the smallest; and the smallest to contain a
    picture with its width in (56(m-1), 56m] and its height in (56(n-1), 56n] is m x n itself.
    """
    across, down = grid
    return TILE * across - rng.randint(0, SLACK), TILE * down - rng.randint(0, SLACK)


def background(rng, size, level):
    """A plain, sloping or noisy RGB picture of ``size`` whose channels stay within about 30 of ``level``."""

    def tint():
        shade = level + rng.randint(-10, 10)
        return tuple(shade + rng.randint(-10, 10) for _ in range(3))

    style = rng.choice(("plain", "slope", "noise"))
    picture = Image.new("RGB", size, tint())
    if style == "slope":
        ramp = Image.linear_gradient("L").rotate(rng.choice((0, 90, 180, 270))).resize(size)
        picture = Image.composite(Image.new("RGB", size, tint()), picture, ramp)
    if style == "noise":
        width, height = size
        grain = Image.frombytes("L", size, rng.randbytes(width * height))
        picture = Image.blend(picture, Image.merge("RGB", (grain,) * 3), 0.08)
    return picture
