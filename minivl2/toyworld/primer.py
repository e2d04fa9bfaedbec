"""A primer: single tiles full of letters or of things, for learning to see. Nobody asks questions about them.

A page of the toy world shows a dozen characters; a page of the primer shows forty, for the same look at it. Most are small
and stand close: of fields, those whose capitals are 7 pixels high were misread by the toy twice as often as those with 8.
"""

from dataclasses import replace

from . import documents, tables
from .canvas import SLACK, TILE
from .lettering import WORDS, code, number, sheet
from .sample import Sample
from .things import draw_scene, random_kinds

NAMES = (*WORDS, *documents.TITLES, *(field + ":" for field in documents.FIELDS), *tables.COLUMNS)


def page(rng):
    """Lines over the whole tile and beyond its edges, as tiles cut letters in two."""
    picture, pen = sheet(rng, (TILE, TILE))
    pen = replace(pen, capital=rng.choice((7, 7, 7, 8, 9, 10)))
    y = rng.randint(-4, 6)
    while y < TILE:
        x = rng.randint(-6, 8)
        while x < TILE:
            if rng.random() < 0.35:
                text = rng.choice(NAMES)
                pen.write(x, y, text)
                x += pen.width(text)
            else:
                for character in rng.choice((code, number))(rng):   # one by one: drawn characters are kept, codes differ
                    pen.write(x, y, character)
                    x += pen.width(character) + 1
            x += rng.randint(4, 10)
        y += pen.pitch + rng.choice((0, 0, 0, 1, 2, 4))
    return Sample("page", (picture,), (), None, (1, 1), tuple(pen.written))


def crowd(rng):
    """Four to seven things, at times in a long picture, which the global view shows small."""
    width, height = (TILE - rng.randint(0, SLACK) for _ in range(2))
    if rng.random() < 0.4:
        width, height = rng.choice(((width, height // rng.randint(2, 3)), (width // rng.randint(2, 3), height)))
    scene, picture = draw_scene(rng, (width, height), random_kinds(rng, rng.randint(4, 7)))
    return Sample("crowd", (picture,), (), scene, (1, 1))
