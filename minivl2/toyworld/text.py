"""Text: codes, numbers and words on one to three lines, to be read letter by letter from the tiles."""

from dataclasses import dataclass

from .canvas import picture_size
from .lettering import WORDS, Line, code, number, sheet
from .sample import Question, Sample, letters

GRIDS = ((2, 1), (1, 2), (2, 2), (3, 1), (1, 3), (3, 2), (2, 3), (4, 1), (1, 4), (5, 1))
ORDINALS = ("first", "second", "third")


@dataclass(frozen=True)
class Page:
    """The lines from top to bottom."""

    lines: tuple[Line, ...]


def draw(rng, grid):
    size = picture_size(rng, grid)
    picture, pen = sheet(rng, size)
    n = rng.choice((1, 1, 2, 3))
    texts = [something(rng, pen, size[0] - 4) for _ in range(n)]
    pitch = pen.pitch + rng.randint(0, (size[1] - 6) // n - pen.pitch) // 2
    x = rng.randint(2, size[0] - 2 - max(pen.width(text) for text in texts))
    y = rng.randint(3, size[1] - 3 - pitch * n)
    lines = [pen.write(x, y + pitch * i, text) for i, text in enumerate(texts)]
    page = Page(tuple(lines))
    return Sample("text", (picture,), tuple(questions(rng, page)), page, grid, tuple(pen.written))


def something(rng, pen, room):
    """A code, a number or a word at most ``room`` pixels wide."""
    while True:
        text = rng.choice((code, number, a_word))(rng)
        if pen.width(text) <= room:
            return text


def a_word(rng):
    return rng.choice(WORDS)


def questions(rng, page):
    texts = [line.text for line in page.lines]
    phrases = ["what does it say?", "read the text.", "what is written here?"]
    if len(texts) == 1 and texts[0].isdigit():
        phrases = ["what number is written?", "which number is this?", "read the number."]
    asked = [Question("read", rng.choice(phrases), "\n".join(texts), seen=sum(map(letters, page.lines), ()))]
    for ordinal, line in zip(ORDINALS, page.lines, strict=False):
        if len(texts) > 1:
            phrase = rng.choice(("what does the {} line say?", "read the {} line.", "{} line?"))
            asked.append(Question("line", phrase.format(ordinal), line.text, seen=letters(line)))
    rng.shuffle(asked)
    return asked
