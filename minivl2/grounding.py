"""Pointing: boxes in what the model writes, and boxes on the picture.

Paper    DeepSeek-VL2, section 3.3 "Visual grounding".
Lesson   lessons/10_pointing.ipynb          Tests   tests/test_grounding.py

Asked `<|ref|>the red car<|/ref|>`, the model writes `<|ref|>the red car<|/ref|><|det|>[[x1, y1, x2, y2], ...]<|/det|>`
with coordinates 0 to 999, whatever the size of the picture. A model may write anything, so this reads with regular
expressions what can be read and skips the rest; nothing of it is ever evaluated.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

LARGEST = 999       # coordinate of the right and the lower edge
COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#f032e6")

# An optional label, then a list of boxes that ends with its end tag, at the next tag, or where the text breaks off.
_ANSWER = re.compile(r"(?:<\|ref\|>(?P<label>[^<]*)(?:<\|/ref\|>)?\s*)?<\|det\|>(?P<boxes>[^<]*)")
_BRACKETS = re.compile(r"\[([^\[\]]*)\]")
_NUMBER = re.compile(r"-?\d{1,6}(?:\.\d{1,6})?", re.ASCII)


class Box(NamedTuple):
    """label, and two corners from 0 (left, top) to 999 (right, bottom)."""

    label: str
    x1: int
    y1: int
    x2: int
    y2: int

    def pixels(self, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """The corners on a picture of this (width, height)."""
        scale = (size[0] / LARGEST, size[1] / LARGEST) * 2
        return tuple(round(c * s) for c, s in zip(self[1:], scale, strict=True))


def parse(text: str) -> list[Box]:
    """All boxes in an answer, in order. Four numbers in brackets are a box, eight are two; other lists are skipped.

    Corners outside the picture are moved to its edge, and corners given in the wrong order are swapped.
    """
    found = []
    for answer in _ANSWER.finditer(text):
        for brackets in _BRACKETS.findall(answer["boxes"]):
            parts = [part.strip() for part in brackets.split(",")]
            if len(parts) % 4 or not all(_NUMBER.fullmatch(part) for part in parts):
                continue
            numbers = [float(part) for part in parts]
            for i in range(0, len(numbers), 4):
                x1, y1, x2, y2 = (round(min(max(n, 0), LARGEST)) for n in numbers[i : i + 4])
                label = (answer["label"] or "").strip()
                found.append(Box(label, min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)))
    return found


def iou(a: Box, b: Box) -> float:
    """Intersection over union: 1 for the same box, 0 for boxes that do not touch."""
    width, height = min(a.x2, b.x2) - max(a.x1, b.x1), min(a.y2, b.y2) - max(a.y1, b.y1)
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    areas = ((box.x2 - box.x1) * (box.y2 - box.y1) for box in (a, b))
    return both / (sum(areas) - both)


def draw(image: Image.Image, boxes: Iterable[Box]) -> Image.Image:
    """A copy of the image with the boxes and their labels on it; each label has its own colour."""
    picture = image.convert("RGB")
    pen = ImageDraw.Draw(picture)
    line = max(1, round(min(picture.size) / 150))
    font = ImageFont.load_default(size=max(10, round(min(picture.size) / 28)))
    colours: dict[str, str] = {}
    for box in boxes:
        colour = colours.setdefault(box.label, COLOURS[len(colours) % len(COLOURS)])
        x1, y1, x2, y2 = box.pixels(picture.size)
        right, lower = max(x1, min(x2, picture.width - 1)), max(y1, min(y2, picture.height - 1))
        pen.rectangle((x1, y1, right, lower), None, colour, line)
        if box.label:
            _, _, width, height = pen.textbbox((0, 0), box.label, font)
            x = max(0, min(x1, picture.width - width - 2 * line))           # labels stay on the picture,
            y = y1 - height - line if y1 > height + line else y1 + line     # above the box if there is room
            pen.rectangle((x, y, x + width + 2 * line, y + height + line), colour)
            pen.text((x + line, y), box.label, "white", font)
    return picture
