"""Things on a background: what they are, how they are called, where they are put, and their exact pixels.

A pixel belongs to a thing or it does not (no soft edges): a thing's box is exactly that of its drawn pixels.
Things are set like words on lines: rows never overlap vertically, row mates always do. That makes the reading
order, and "above" and "below", a matter of fact instead of taste.
"""

import math
from dataclasses import dataclass, replace
from functools import cache
from itertools import accumulate

from PIL import Image, ImageDraw

from . import canvas

COLOURS = {
    "red": (214, 36, 36),
    "orange": (255, 140, 0),
    "yellow": (255, 232, 50),
    "green": (30, 150, 60),
    "blue": (40, 70, 225),
    "purple": (150, 45, 190),
    "black": (20, 20, 20),
    "white": (252, 252, 252),
}
SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross")
DIAMETER = {"small": (0.22, 0.24), "big": (0.32, 0.34)}  # parts of the picture's typical side
SUPERSAMPLE = 8


@dataclass(frozen=True)
class Kind:
    """A description: each part named or left open, so Kind(colour="red") is any red thing."""

    size: str | None = None
    colour: str | None = None
    shape: str | None = None

    def fits(self, thing):
        return (self.size in (None, thing.size) and self.colour in (None, thing.colour)
                and self.shape in (None, thing.shape))

    def __str__(self):
        return " ".join(part for part in (self.size, self.colour, self.shape or "thing") if part)

    @property
    def plural(self):
        return f"{self}es" if self.shape == "cross" else f"{self}s"


@dataclass(frozen=True)
class Thing(Kind):
    """A drawn thing; ``box`` = (left, top, right, bottom) pixel edges, right and bottom exclusive."""

    box: tuple[int, int, int, int] = (0, 0, 0, 0)


@dataclass(frozen=True)
class Scene:
    """Everything in one picture of width x height pixels, in reading order; ``marked`` indexes the framed."""

    width: int
    height: int
    things: tuple[Thing, ...]
    marked: int | None = None

    def fitting(self, kind):
        return [thing for thing in self.things if kind.fits(thing)]


def side_by_side(scenes):
    """The scenes, with every box where it is when their pictures stand side by side, the first at the left."""
    found = []
    for scene, left in zip(scenes, accumulate([0] + [scene.width for scene in scenes]), strict=False):
        boxes = [(x1 + left, y1, x2 + left, y2) for x1, y1, x2, y2 in (thing.box for thing in scene.things)]
        things = tuple(replace(thing, box=box) for thing, box in zip(scene.things, boxes, strict=True))
        found.append(replace(scene, things=things))
    return found


def random_kinds(rng, n, theme=None, among=0):
    """``n`` complete kinds, of which exactly ``among`` fit ``theme`` (a colour or a shape)."""
    kinds = []
    while len(kinds) < n:
        kind = Kind(rng.choice(list(DIAMETER)), rng.choice(list(COLOURS)), rng.choice(SHAPES))
        if theme and len(kinds) < among:
            kind = Kind(kind.size, theme.colour or kind.colour, theme.shape or kind.shape)
        elif theme and theme.fits(kind):
            continue
        kinds.append(kind)
    return kinds


def random_theme(rng):
    """Any colour or any shape, as a Kind that leaves the rest open."""
    return rng.choice((Kind(colour=rng.choice(list(COLOURS))), Kind(shape=rng.choice(SHAPES))))


@cache
def stencil(shape, diameter):
    """The shape's pixels as a tight "L" mask of 0 and 255: those the ideal shape covers at least half."""
    big = diameter * SUPERSAMPLE
    mask = Image.new("L", (big, big))
    draw = ImageDraw.Draw(mask)
    middle = (big - 1) / 2

    def star(points, inner):
        corners = []
        for k in range(2 * points):
            angle = math.pi * k / points
            radius = middle * (inner if k % 2 else 1)
            corners.append((middle + radius * math.sin(angle), middle - radius * math.cos(angle)))
        return corners

    if shape == "circle":
        draw.ellipse((0, 0, big - 1, big - 1), fill=255)
    elif shape == "square":
        side = round(diameter * 0.88) * SUPERSAMPLE  # a full square would look a size too large
        draw.rectangle((0, 0, side - 1, side - 1), fill=255)
    elif shape == "triangle":
        draw.polygon(((middle, 0), (big - 1, big * 0.9), (0, big * 0.9)), fill=255)
    elif shape == "diamond":
        draw.polygon(((middle, 0), (big * 0.87, middle), (middle, big - 1), (big * 0.13, middle)), fill=255)
    elif shape == "star":
        draw.polygon(star(5, 0.42), fill=255)
    elif shape == "cross":
        arm = big * 0.33
        draw.rectangle((arm, 0, big - 1 - arm, big - 1), fill=255)
        draw.rectangle((0, arm, big - 1, big - 1 - arm), fill=255)
    mask = mask.reduce(SUPERSAMPLE).point([255 if coverage > 127 else 0 for coverage in range(256)])
    return mask.crop(mask.getbbox())


def typical_side(size):
    """What sizes are measured against, in pixels: the side of an equal square, less in long thin pictures."""
    width, height = size
    return min(math.sqrt(width * height), 2 * min(width, height))


def arrange(rng, size, kinds, gap=2):
    """Puts the kinds on rows in a picture of ``size`` pixels, ``gap`` pixels apart at least."""
    width, height = size
    side = typical_side(size)
    diameters = [round(side * rng.uniform(*DIAMETER[kind.size])) for kind in kinds]
    order = list(range(len(kinds)))
    for attempt in range(1000):
        if attempt % 50 == 0:
            shrink = 0.95 ** (attempt // 50)  # hardly ever needed: some row split usually fits
            masks = [stencil(kind.shape, round(d * shrink)) for kind, d in zip(kinds, diameters, strict=True)]
            across, down = [mask.width for mask in masks], [mask.height for mask in masks]
        rng.shuffle(order)
        cuts = sorted(rng.sample(range(1, len(order)), rng.randrange(len(order))))
        rows = [order[a:b] for a, b in zip([0, *cuts], [*cuts, len(order)], strict=True)]
        widths = [[across[i] for i in row] for row in rows]
        heights = [max([down[i] for i in row]) for row in rows]
        fits_across = max([sum(row) + gap * (len(row) + 1) for row in widths]) <= width
        if fits_across and sum(heights) + gap * (len(rows) + 1) <= height:
            break
    else:
        raise ValueError(f"{len(kinds)} things do not fit a picture of {width}x{height} pixels")
    things = []
    for row, row_widths, row_height, top in zip(
        rows, widths, heights, spread(rng, heights, height, gap), strict=True
    ):
        for i, left in zip(row, spread(rng, row_widths, width, gap), strict=True):
            y = top + round((row_height - masks[i].height) * rng.uniform(0.2, 0.8))
            box = (left, y, left + masks[i].width, y + masks[i].height)
            things.append(Thing(kinds[i].size, kinds[i].colour, kinds[i].shape, box))
    return Scene(width, height, tuple(things)), [masks[i] for row in rows for i in row]


def spread(rng, lengths, total, gap):
    """Starts of pieces laid at random in ``total`` pixels, at least ``gap`` apart and from the ends."""
    slack = total - sum(lengths) - gap * (len(lengths) + 1)
    shifts = sorted(rng.randint(0, slack) for _ in lengths)
    return [gap * (i + 1) + sum(lengths[:i]) + shift for i, shift in enumerate(shifts)]


def draw_scene(rng, size, kinds, gap=2):
    """Arranges the kinds and paints them: (scene facts, RGB picture of ``size``)."""
    scene, masks = arrange(rng, size, kinds, gap)
    picture = canvas.background(rng, size, rng.randint(120, 175))
    for thing, mask in zip(scene.things, masks, strict=True):
        picture.paste(COLOURS[thing.colour], thing.box, mask)
    return scene, picture
