"""Letters small enough that it takes the tiles to read them.

The global view squeezes the whole picture into one tile. Letters are sized so that capitals stand less than
3 pixels high there and at least 8 in the tiles; a picture two tiles long leaves no such size and gets 7,
which shrink to less than 4. To the eye little of that is left. A trained network gets more out of grey levels
than the eye does: from the shorter pictures expect it to guess some letters without tiles, from those four
tiles long or longer few.
"""

import math
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from . import canvas

FACES = (  # all ship with matplotlib
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
)
GLOBAL_LIMIT = 3  # capital height in the global view, in pixels, stays below this where it can
SMALLEST, LEGIBLE, LARGEST = 7, 8, 10  # capital height in the tiles, in pixels: if need be, wanted, at most

LETTERS = "ABCDEFGHKLMNPRSTUVWXYZ"  # no I, O, Q, which look like 1 and 0; no J, which dips below the line
DIGITS = "34679"  # in codes: those that look like no letter
WORDS = (  # noqa: SIM905 (seventy quoted words would be hard to read)
    "apple bank bean bird boat book bread cake cat chair clock coat coin corn cup desk dog door duck "
    "farm fish fork goat hat horse house key lamp leaf lemon milk moon mouse nut park pear pen pig plum "
    "rain ring road rock rose salt ship shoe snow soap sock soup star stone sugar sun table tea tent "
    "train tree wolf wood"
).split()


@dataclass(frozen=True)
class Line:
    """One line as written, the box of its inked pixels (edges in pixels, right and bottom exclusive), the middle (x, y)
    of every character, and the lines to its left and above that it belongs with: a table's cell with the names of its
    row and its column, a field's value with its label, a bar's letter with its number."""

    text: str
    box: tuple[int, int, int, int]
    middles: tuple[tuple[float, float], ...] = ()
    left: "Line | None" = None
    above: "Line | None" = None


def capital_height(rng, size):
    """A capital height in pixels that reads in a picture of ``size`` but hardly in its global view."""
    limit = GLOBAL_LIMIT * max(size) / canvas.TILE
    highest = max(SMALLEST, min(math.ceil(limit) - 1, LARGEST))
    return rng.randint(min(LEGIBLE, highest), highest)


@cache
def font(face, capital):
    """The face at the largest size whose "H" stands no more than ``capital`` pixels high."""
    path = Path(matplotlib.get_data_path(), "fonts", "ttf", face + ".ttf")
    found = None
    for quarter_points in range(24, 12 * capital):
        points = quarter_points / 4  # whole sizes skip some heights
        tried = ImageFont.truetype(str(path), points, layout_engine=ImageFont.Layout.BASIC)
        left, top, right, bottom = tried.getbbox("H")
        if bottom - top > capital:
            break
        found = tried
    return found


@lru_cache(maxsize=8192)
def inked(face, capital, text):
    """Coverage of the written text as an "L" picture, and the x of every character's middle in it.

    Cropped to the ink at the sides; above the capitals and below the baseline is room of one capital height.
    """
    written = font(face, capital)
    mask = Image.new("L", (math.ceil(written.getlength(text)) + 2 * capital, 3 * capital))
    ImageDraw.Draw(mask).text((capital, 2 * capital), text, fill=255, font=written, anchor="ls")
    left, _, right, _ = mask.getbbox()
    ends = [capital - left + written.getlength(text[:i]) for i in range(len(text) + 1)]
    middles = tuple((start + end) / 2 for start, end in zip(ends, ends[1:], strict=False))
    return mask.crop((left, 0, right, mask.height)), middles


@dataclass(frozen=True)
class Pen:
    """Writes on a picture with one face, one capital height in pixels and one ink colour."""

    picture: Image.Image
    face: str
    capital: int
    ink: tuple[int, int, int]
    written: list[Line] = field(default_factory=list)

    @property
    def pitch(self):
        """Pixels from one line to the next."""
        return self.capital + 4

    def width(self, text):
        return inked(self.face, self.capital, text)[0].width

    def write(self, x, y, text, left=None, above=None):
        """Writes with the first inked column at ``x`` and the tops of the capitals at ``y``."""
        mask, middles = inked(self.face, self.capital, text)
        top = y - self.capital
        self.picture.paste(self.ink, (x, top), mask)
        _, upper, _, lower = mask.getbbox()
        box = (x, top + upper, x + mask.width, top + lower)
        middles = tuple((x + middle, y + self.capital / 2) for middle in middles)
        self.written.append(Line(text, box, middles, left, above))
        return self.written[-1]

    def write_pair(self, x, y, name, value):
        """A name and its value in one line of print: two lines of letters, of which the second has the first on its left."""
        both = self.write(x, y, f"{name} {value}")
        left, top, right, bottom = both.box
        first = Line(name, (left, top, left + self.width(name), bottom), both.middles[: len(name)])
        second = Line(value, (right - self.width(value), top, right, bottom), both.middles[len(name) + 1 :], left=first)
        self.written[-1:] = first, second
        return second


def sheet(rng, size, faces=FACES):
    """A paper of ``size`` pixels and a pen for it: dark ink on light paper, or at times the reverse."""
    if rng.random() < 0.25:
        paper, inks = rng.randint(30, 60), ((250, 250, 250), (255, 240, 150), (170, 230, 255))
    else:
        paper, inks = rng.randint(205, 230), ((10, 10, 10), (20, 20, 120), (120, 0, 20), (0, 70, 30))
    picture = canvas.background(rng, size, paper)
    return picture, Pen(picture, rng.choice(faces), capital_height(rng, size), rng.choice(inks))


def code(rng, longest=5):
    letters = [rng.choice(LETTERS) for _ in range(rng.randint(2, longest))]
    if rng.random() < 0.3:
        letters[rng.randrange(len(letters))] = rng.choice(DIGITS)
    return "".join(letters)


def number(rng, longest=4):
    digits = rng.randint(1, longest)
    return str(rng.randint(10 ** (digits - 1) if digits > 1 else 0, 10**digits - 1))
