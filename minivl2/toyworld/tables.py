"""Tables: named columns, named rows, and a number in every cell."""

from dataclasses import dataclass

from PIL import ImageDraw

from .canvas import picture_size
from .lettering import WORDS, number, sheet
from .sample import Question, Sample, Seen, letters

GRIDS = ((2, 1), (2, 2), (3, 1), (3, 2), (2, 3))
COLUMNS = ("age", "cost", "size", "sold", "tax", "rank")
ROWS = tuple(word for word in WORDS if len(word) <= 4)
FACES = ("DejaVuSans", "DejaVuSansMono", "DejaVuSerif")  # the wide faces would leave no room


@dataclass(frozen=True)
class Table:
    """``cells[row][column]`` is a whole number."""

    columns: tuple[str, ...]
    rows: tuple[str, ...]
    cells: tuple[tuple[int, ...], ...]


def draw(rng, grid):
    size = picture_size(rng, grid)
    picture, pen = sheet(rng, size, FACES)
    pitch = pen.pitch
    lines = min((size[1] - 4) // pitch, rng.randint(3, 6))
    across = rng.randint(1, 3)
    columns = rng.sample(COLUMNS, across)
    rows = rng.sample(ROWS, lines - 1)
    cells = [[int(number(rng, 3)) for _ in columns] for _ in rows]
    texts = [["", *columns]] + [[row, *map(str, line)] for row, line in zip(rows, cells, strict=True)]
    widths = [max(pen.width(line[i]) for line in texts if line[i]) for i in range(across + 1)]
    while sum(widths) + 4 * len(widths) > size[0] - 4:  # too wide: leave the last column out
        widths, columns = widths[:-1], columns[:-1]
    table = Table(tuple(columns), tuple(rows), tuple(tuple(line[: len(columns)]) for line in cells))

    gap = min(rng.randint(4, 12), (size[0] - 4 - sum(widths)) // len(widths))
    written = {}
    x = left = rng.randint(2, size[0] - 2 - sum(widths) - gap * (len(widths) - 1))
    top = rng.randint(3, size[1] - 1 - pitch * lines)
    for i, width in enumerate(widths):
        for k, line in enumerate(texts):
            if line[i]:
                flush = 0 if i == 0 else width - pen.width(line[i])  # names to the left, numbers to the right
                names = (written[k, 0], written[0, i]) if i and k else (None, None)
                written[k, i] = pen.write(x + flush, top + k * pitch, line[i], *names)
        x += width + gap
    if rng.random() < 0.6:  # a rule below the header
        y = top + pitch - 2
        ImageDraw.Draw(picture).line((left, y, x - gap, y), fill=(128, 128, 128))
    return Sample("tables", (picture,), tuple(questions(rng, table, written)), table, grid, tuple(pen.written))


def questions(rng, table, written):
    """``written[k, i]`` is what stands in line ``k`` and column ``i``; in the first of each stand the names."""
    asked = []
    for i, (column, values) in enumerate(zip(table.columns, zip(*table.cells, strict=True), strict=True), 1):
        for k, (row, value) in enumerate(zip(table.rows, values, strict=True), 1):
            phrase = rng.choice(("what is the {} of {}?", "{} of {}?", "read the {} of {}."))
            asked.append(Question("table", phrase.format(column, row), str(value), seen=letters(written[k, i])))
        if values.count(max(values)) == 1:
            phrase = rng.choice(("which has the largest {}?", "what has the highest {}?", "largest {}?"))
            best = values.index(max(values))
            # The decoder comes to the row's name before it comes to the value; only the value can know them both. And how
            # much it is, is known where it ends.
            seen = (Seen(table.rows[best], letters(written[1 + best, i])[-1].box),)
            asked.append(Question("table largest", phrase.format(column), table.rows[best], 1 / len(ROWS), seen))
    if len(table.columns) > 1:  # or there would be nothing in a row that "table" does not ask for
        for k, (row, line) in enumerate(zip(table.rows, table.cells, strict=True), 1):
            phrase = rng.choice(("read the row {}.", "what is in the row {}?", "row {}?"))
            seen = sum((letters(written[k, i]) for i in range(1, 1 + len(line))), ())
            asked.append(Question("table row", phrase.format(row), " ".join(map(str, line)), seen=seen))
    rng.shuffle(asked)
    return asked
