"""What a drawn sample is: pictures, the questions asked of them, and the plain facts both were made from."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from PIL import Image

from .lettering import Line
from .things import Scene

ABILITIES = (
    "colour", "shape", "size", "count", "exists", "relation", "largest", "caption",  # scenes
    "read", "line",  # text
    "title", "field", "label",  # documents
    "table", "table row", "table largest",  # tables
    "chart", "chart values", "tallest", "larger",  # charts
    "box", "boxes", "grounded caption",  # grounding
    "in context", "compare", "which image",  # pairs
)  # fmt: skip


class Seen(NamedTuple):
    """A piece of an answer, and the box (in pixels) where it is to be seen: of a thing, or of no size, in a letter; None
    where the piece says that there is nothing more. Of several pictures, as if they stood side by side.

    ``edge``: of the numbers of a thing's box, which edge this one tells: 0 left, 1 top, 2 right, 3 bottom.
    """

    piece: str
    box: tuple[float, float, float, float] | None
    edge: int = 0


@dataclass(frozen=True)
class Question:
    """One question with its one right answer.

    ``guess`` is the probability that the best guess made without looking at the picture is right (1/2 for a
    balanced yes/no, 1/8 for a colour), the level a score has to beat; None where guessing is hopeless.
    ``seen`` says where in the picture the answer is, piece by piece, for the answers that are in one place.
    """

    ability: str
    text: str
    answer: str
    guess: float | None = None
    seen: tuple[Seen, ...] = ()


@dataclass(frozen=True)
class Sample:
    """Pictures (RGB, all made for the same tile ``grid``), questions, and ``facts``, from which every answer
    follows without looking at a pixel. ``written``: every line of letters in the picture."""

    kind: str
    images: tuple[Image.Image, ...]
    questions: tuple[Question, ...]
    facts: Any
    grid: tuple[int, int]
    written: tuple[Line, ...] = ()

    @property
    def scenes(self):
        """What each picture shows, of those that show things."""
        scenes = self.facts if isinstance(self.facts, tuple) else (self.facts,)
        return tuple(scene for scene in scenes if isinstance(scene, Scene))

    def conversation(self, n=None, rng=None):
        """The first ``n`` questions (None: all) as user and assistant messages; ``rng`` picks and shuffles.

        Only the first user turn carries the pictures, a line "<image>" for each.
        """
        n = len(self.questions) if n is None else min(n, len(self.questions))
        asked = rng.sample(self.questions, n) if rng else self.questions[:n]
        return messages(asked, len(self.images))


def at(thing, answer):
    """All of ``answer`` is seen at the thing."""
    return (Seen(answer, thing.box),)


def letters(line, text=None):
    """Every character of ``text``, a part of a written line (None: all of it), is seen where it stands."""
    text = text or line.text
    middles = line.middles[line.text.index(text) :]
    return tuple(Seen(character, (x, y, x, y)) for character, (x, y) in zip(text, middles, strict=False))


def messages(questions, images=1):
    """Questions about the same ``images`` pictures and their answers, as user and assistant messages."""
    turns = []
    for i, question in enumerate(questions):
        pictures = "<image>\n" * images if i == 0 else ""
        turns.append({"role": "user", "content": pictures + question.text})
        turns.append({"role": "assistant", "content": question.answer})
    return turns
