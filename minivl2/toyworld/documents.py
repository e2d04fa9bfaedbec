"""Documents: a title, a line of words, and labelled fields such as "total: 42"."""

from dataclasses import dataclass

from .canvas import picture_size
from .lettering import WORDS, code, number, sheet
from .sample import Question, Sample, Seen, letters

GRIDS = ((2, 1), (2, 2), (3, 1), (3, 2), (2, 3))
TITLES = ("bill", "ticket", "order", "letter", "list", "pass", "note", "menu")
FIELDS = ("total", "name", "code", "room", "price", "year", "seat", "gate", "size", "page")


@dataclass(frozen=True)
class Document:
    """Title, filler line (may be empty) and (label, value) fields, from top to bottom."""

    title: str
    line: str
    fields: tuple[tuple[str, str], ...]


def draw(rng, grid):
    size = picture_size(rng, grid)
    picture, pen = sheet(rng, size)
    room = (size[1] - 6) // pen.pitch  # lines that fit
    line = " ".join(rng.sample(WORDS, 2)) if room >= 5 or rng.random() < 0.3 else ""
    line = line if pen.width(line or "-") < size[0] - 8 else ""
    n = min(rng.randint(2, 5), room - 1 - bool(line))
    values = [(code if rng.random() < 0.4 else number)(rng) for _ in range(n)]
    document = Document(rng.choice(TITLES), line, tuple(zip(rng.sample(FIELDS, n), values, strict=True)))

    labels = [label + ":" for label, _ in document.fields]
    column = max(map(pen.width, labels)) + pen.capital  # where values start when set in a column
    aligned = rng.random() < 0.5
    widest = column + max(map(pen.width, values))
    x = rng.randint(3, max(3, size[0] - 3 - widest))
    y = rng.randint(3, size[1] - 2 - pen.pitch * (1 + bool(line) + n) + 2)
    title = pen.write(rng.choice((x, (size[0] - pen.width(document.title)) // 2)), y, document.title)
    if line:
        y += pen.pitch
        pen.write(min(x, size[0] - 3 - pen.width(line)), y, line)
    lines = []
    for label, value in zip(labels, values, strict=True):
        y += pen.pitch
        after = column if aligned else pen.width(label) + pen.capital // 2
        before = pen.write(x, y, label)
        lines.append((before, pen.write(x + after, y, value, left=before)))
    return Sample("documents", (picture,), tuple(questions(rng, document, title, lines)), document, grid, tuple(pen.written))


def questions(rng, document, title, lines):
    """``title``, and the label and value of each field in ``lines``: as written."""
    phrase = rng.choice(("what is the title?", "read the title.", "what kind of paper is this?"))
    asked = [Question("title", phrase, document.title, 1 / len(TITLES), letters(title))]
    values = [value for _, value in document.fields]
    for (label, value), (_, after) in zip(document.fields, lines, strict=True):
        phrase = rng.choice(("what is the {}?", "read the field {}.", "{}?"))
        asked.append(Question("field", phrase.format(label), value, seen=letters(after)))
        if values.count(value) == 1:
            phrase = rng.choice(("which field says {}?", "what is {}?"))
            # The decoder comes to the label before it comes to the value; only the value can know them both.
            seen = (Seen(label, letters(after)[0].box),)
            asked.append(Question("label", phrase.format(value), label, 1 / len(FIELDS), seen))
    rng.shuffle(asked)
    return asked
