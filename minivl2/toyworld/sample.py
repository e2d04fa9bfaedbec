"""What a drawn sample is: pictures, the questions asked of them, and the plain facts both were made from."""

from dataclasses import dataclass
from typing import Any

from PIL import Image

from .lettering import Line

ABILITIES = (
    "colour", "shape", "size", "count", "exists", "relation", "largest", "caption",  # scenes
    "read", "line",  # text
    "title", "field", "label",  # documents
    "table", "table row", "table largest",  # tables
    "chart", "chart values", "tallest", "larger",  # charts
    "box", "boxes", "grounded caption",  # grounding
    "in context", "compare", "which image",  # pairs
)  # fmt: skip


@dataclass(frozen=True)
class Question:
    """One question with its one right answer.

    ``guess`` is the probability that the best guess made without looking at the picture is right (1/2 for a
    balanced yes/no, 1/8 for a colour), the level a score has to beat; None where guessing is hopeless.
    """

    ability: str
    text: str
    answer: str
    guess: float | None = None


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

    def conversation(self, n=None, rng=None):
        """The first ``n`` questions (None: all) as user and assistant messages; ``rng`` picks and shuffles.

        Only the first user turn carries the pictures, a line "<image>" for each.
        """
        n = len(self.questions) if n is None else min(n, len(self.questions))
        asked = rng.sample(self.questions, n) if rng else self.questions[:n]
        return messages(asked, len(self.images))


def messages(questions, images=1):
    """Questions about the same ``images`` pictures and their answers, as user and assistant messages."""
    turns = []
    for i, question in enumerate(questions):
        pictures = "<image>\n" * images if i == 0 else ""
        turns.append({"role": "user", "content": pictures + question.text})
        turns.append({"role": "assistant", "content": question.answer})
    return turns
