"""Charts: bars, a line or a pie, with a letter and a written value for every part."""

import itertools
from dataclasses import dataclass

from PIL import ImageDraw

from .canvas import picture_size
from .lettering import LETTERS, sheet
from .sample import Question, Sample, Seen, letters
from .things import COLOURS

GRIDS = ((1, 1), (2, 1), (2, 2), (3, 1), (3, 2), (2, 3))
PAINTS = ("red", "orange", "green", "blue", "purple")
FACES = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif")
NARROW = ("DejaVuSans", "DejaVuSerif")
CLEAR = 6  # two values differ by at least this much, so that the drawing alone shows which is larger
LARGEST = 99


@dataclass(frozen=True)
class Chart:
    """``values[i]`` belongs to ``labels[i]``; ``style`` is "bars", "line" or "pie"."""

    style: str
    labels: tuple[str, ...]
    values: tuple[int, ...]


def draw(rng, grid):
    size = picture_size(rng, grid)
    small = grid == (1, 1)  # no room for more than three values, nor for wide letters
    picture, pen = sheet(rng, size, NARROW if small else FACES)
    n = 3 if small else rng.randint(3, 4 if grid[1] == 1 else 5)
    chart = Chart(rng.choice(("bars", "line", "pie")), tuple(rng.sample(LETTERS, n)), values(rng, n))
    {"bars": draw_bars, "line": draw_line, "pie": draw_pie}[chart.style](rng, chart, pen)
    return Sample("charts", (picture,), tuple(questions(rng, chart, pen.written)), chart, grid, tuple(pen.written))


def values(rng, n):
    """``n`` whole numbers up to LARGEST, in random order, no two closer than CLEAR."""
    room = LARGEST - 5 - CLEAR * (n - 1)
    drawn = [5 + CLEAR * i + step for i, step in enumerate(sorted(rng.randint(0, room) for _ in range(n)))]
    rng.shuffle(drawn)
    return tuple(drawn)


def columns(chart, pen):
    """In pixels: middles of the columns, tops the values reach, the base line, and the width of a column."""
    width, height = pen.picture.size
    line = pen.capital + 3  # room for the value above and the label below
    base = height - line - 1
    slot = (width - 6) / len(chart.values)
    middles = [round(3 + slot * (i + 0.5)) for i in range(len(chart.values))]
    tops = [round(base - value * (base - line - 3) / LARGEST) for value in chart.values]
    return middles, tops, base, slot


def write_values(chart, pen, middles, tops, base, paper):
    """Labels below the base, values above their tops on patches of clean ``paper`` that keep lines off."""
    for middle, top, label, value in zip(middles, tops, chart.labels, chart.values, strict=True):
        half = pen.width(str(value)) // 2
        left, upper = middle - half, top - pen.capital - 3
        patch = (left - 1, upper - 1, middle + half + 2, upper + pen.capital + 1)
        pen.picture.paste(paper.crop(patch), patch)
        number = pen.write(left, upper, str(value))
        pen.write(middle - pen.width(label) // 2, base + 2, label, above=number)


def draw_bars(rng, chart, pen):
    middles, tops, base, slot = columns(chart, pen)
    paper = pen.picture.copy()
    half = max(2, round(slot * rng.uniform(0.2, 0.35)))
    paints = rng.choices(rng.sample(PAINTS, rng.randint(1, 3)), k=len(middles))
    draw = ImageDraw.Draw(pen.picture)
    for middle, top, paint in zip(middles, tops, paints, strict=True):
        draw.rectangle((middle - half, top, middle + half, base), fill=COLOURS[paint])
    write_values(chart, pen, middles, tops, base, paper)


def draw_line(rng, chart, pen):
    middles, tops, base, _ = columns(chart, pen)
    paper = pen.picture.copy()
    draw = ImageDraw.Draw(pen.picture)
    paint = COLOURS[rng.choice(PAINTS)]
    points = list(zip(middles, tops, strict=True))
    draw.line(points, fill=paint)
    for x, y in points:
        draw.ellipse((x - 1, y - 1, x + 1, y + 1), fill=paint)
    write_values(chart, pen, middles, tops, base, paper)


def draw_pie(rng, chart, pen):
    """The pie on the left, its legend of swatches, letters and values on the right."""
    width, height = pen.picture.size
    n = len(chart.values)
    pitch = min(pen.pitch, (height - 4) // n)
    texts = [(label, str(value)) for label, value in zip(chart.labels, chart.values, strict=True)]
    swatch = pen.capital - 1
    legend = swatch + 3 + max(pen.width(" ".join(text)) for text in texts)
    across = min(height - 6, width - legend - 9)
    top = (height - across) // 2
    x, y = across + 7, rng.randint(2, height - 1 - pitch * n)
    draw = ImageDraw.Draw(pen.picture)
    angle = rng.randrange(360)
    paints = rng.sample(PAINTS, n)
    for text, value, paint in zip(texts, chart.values, paints, strict=True):
        sweep = 360 * value / sum(chart.values)
        draw.pieslice((3, top, 3 + across, top + across), angle, angle + sweep, fill=COLOURS[paint])
        draw.rectangle((x, y, x + swatch - 1, y + swatch - 1), fill=COLOURS[paint])
        pen.write_pair(x + swatch + 3, y, *text)
        angle += sweep
        y += pitch


def questions(rng, chart, written):
    # Where a letter and its value are both known: at the one that the decoder comes to last. That is the value on the right
    # of its letter, in a legend, where it ends, and the letter below its value.
    seen_label = {line.text: letters(line) for line in written if line.text in chart.labels}
    if chart.style == "pie":
        seen_value = {line.left.text: letters(line) for line in written if line.left}
        seen_both = {label: (Seen(label, value[-1].box),) for label, value in seen_value.items()}
    else:
        seen_value = {label: (Seen(str(value), seen_label[label][0].box),)
                      for label, value in zip(chart.labels, chart.values, strict=True)}
        seen_both = seen_label

    asked = []
    for label, value in zip(chart.labels, chart.values, strict=True):
        phrase = rng.choice(("what is the value of {}?", "how much is {}?", "{}?"))
        asked.append(Question("chart", phrase.format(label), str(value), seen=seen_value[label]))

    thing = {"bars": "bar", "line": "point", "pie": "slice"}[chart.style]
    most, least = ("tallest", "shortest") if thing == "bar" else ("largest", "smallest")
    for word, value in ((most, max(chart.values)), (least, min(chart.values))):
        phrase = rng.choice(("which {1} is the {0}?", "what is the {0} {1}?", "{0} {1}?"))
        winner = chart.labels[chart.values.index(value)]
        asked.append(Question("tallest", phrase.format(word, thing), winner, 1 / len(LETTERS), seen_both[winner]))

    for one, two in rng.sample(list(itertools.permutations(range(len(chart.labels)), 2)), 2):
        phrase = rng.choice(("which is larger, {} or {}?", "is {} or {} larger?", "{} or {}: which is more?"))
        winner = max(one, two, key=lambda i: chart.values[i])
        text = phrase.format(chart.labels[one], chart.labels[two])
        winner = chart.labels[winner]
        asked.append(Question("larger", text, winner, 1 / 2, seen_both[winner]))

    phrase = rng.choice(("what are the values?", "list all values.", "read the chart."))
    parts = (f"{label} {value}" for label, value in zip(chart.labels, chart.values, strict=True))
    seen = sum((seen_label[label] + seen_value[label] for label in chart.labels), ())
    asked.append(Question("chart values", phrase, ", ".join(parts), seen=seen))
    rng.shuffle(asked)
    return asked
