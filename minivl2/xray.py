"""The X-ray page: one answer, and everything that happened inside it, in one file that opens anywhere.

Tests    tests/test_xray.py, tests/test_page.py (in a browser)

    seen = XRay(model, processor, "how many red things are there?", [picture])
    for piece in seen.stream(): print(piece, end="")
    Path("xray.html").write_text(seen.page(), encoding="utf-8")

record.py writes down what happens, panels.py chooses what of it is shown, and xray_page/ holds the page: panels.html says
what is where, page.css how it looks, page.js draws what moves.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import jinja2
import torch
from PIL import Image
from tokenizers.decoders import DecodeStream

from minivl2 import conversation, cost, figures, grounding, panels
from minivl2.generation import write
from minivl2.model import DeepSeekVL2, without_twins
from minivl2.places import KINDS
from minivl2.processor import TILED_UP_TO, Processor
from minivl2.record import Record, watch

PAGE = Path(__file__).parent / "xray_page"
HOUSE = Path(__file__).resolve().parent.parent
LESSONS = {"tiles": "01_tiles", "vision": "02_seeing", "tokens": "03_squeezing", "reading": "04_attention",
           "experts": "06_experts", "memory": "05_latent_attention", "answer": "10_pointing"}

LONGEST_ANSWER = 160


class XRay:
    """One question, answered once while being watched."""

    def __init__(self, model: DeepSeekVL2, processor: Processor, question: str, pictures: Sequence[Image.Image],
                 names: Sequence[str] = ()):
        self.model, self.processor, self.question = model, processor, question
        self.pictures, self.names = list(pictures), [*names, *("picture",) * (len(pictures) - len(names))]
        self.batch = processor(conversation.about(question, len(pictures)), pictures)
        self.sizes = [(int(w), int(h)) for w, h in self.batch.grids]
        # Which views the vision tower looks at, and which of them each view is shown by: equal views are seen once.
        self.kept, self.which = without_twins(self.batch.tiles, self.sizes)
        self.answer: list[int] = []
        self.text = ""
        self.record = Record()

    def stream(self, max_new_tokens: int = LONGEST_ANSWER, **options) -> Iterator[str]:
        """The answer, piece by piece. The options are those of generation.write."""
        lang, vision = self.model.config.language, self.model.config.vision
        longest = self.batch.input_ids.shape[1] + max_new_tokens
        # The beginning of a long answer in many layers is worth more than all of it in few.
        most_steps = max(64, panels.READING_BYTES // (min(lang.num_hidden_layers, 12) * longest))
        self.views, self.blocks = panels.seeing_plan(len(self.kept), vision.layers, vision.heads, self.shown_side() ** 2)
        decoded = DecodeStream(skip_special_tokens=False)
        with watch(self.model, self.views, sorted(self.blocks), most_steps) as self.record:
            for token in write(self.model, self.batch, max_new_tokens, **options):
                self.answer.append(token.item())
                if self.answer[-1] == lang.eos_token_id:
                    return
                piece = decoded.step(self.processor.tokenizer, self.answer[-1])
                if piece:
                    self.text += piece
                    yield piece

    def shown_side(self) -> int:
        """Patches along a tile, as shown."""
        grid = self.model.config.vision.grid
        return grid if grid <= panels.FINEST_SIDE else -(-grid // 2)

    def page(self, folder: Path | None = None) -> str:
        """The HTML. Written into this folder, it links to the lessons if they lie in the same repository."""
        return render("template.html", self.contents(), folder)

    def contents(self) -> dict:
        """All that the page shows: `shown` is written into the HTML, `data` is for page.js."""
        pictures = [panels.picture_of(self, i) for i in range(len(self.pictures))]
        seeing, reading, gates = panels.seeing_of(self), panels.reading_of(self), panels.gates_of(self)
        return {
            "shown": {
                "question": self.question, "answer": self.text, "ended": self.ended, "pictures": pictures,
                "tiled": len(self.pictures) <= TILED_UP_TO, "tokens": len(self.record.ids), "seeing": seeing,
                "reading": reading, "gates": gates, "memory": panels.memory_of(self),
                "boxes": len(grounding.parse(self.text)),
            },
            "data": {
                "pictures": [picture["data"] for picture in pictures], "kinds": KINDS, "line": panels.line_of(self),
                "seeing": seeing["data"] if seeing else None, "reading": reading["data"],
                "gates": gates["data"] if gates else None, "text": self.text, "boxes": panels.boxes_of(self.text),
                "heat": panels.coded(torch.from_numpy(figures.heat_table())),
            },
        }

    @property
    def ended(self) -> bool:
        """Did the model end its answer itself?"""
        return self.answer[-1:] == [self.model.config.language.eos_token_id]


def render(template: str, contents: dict, folder: Path | None = None, **more) -> str:
    """A template filled in. Everything is escaped, so that markup in a question, an answer or a file name is text."""
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(PAGE), autoescape=True, undefined=jinja2.StrictUndefined,
                                     trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"human": cost.human, "percent": lambda share: f"{100 * share:.0f} %"}
    scripts = [(PAGE / name).read_text(encoding="utf-8") for name in ("page.js", *more.pop("scripts", ()))]
    return environment.get_template(template).render(
        **contents, **more, lessons=lesson_links(folder), scripts=scripts,
        css=(PAGE / "page.css").read_text(encoding="utf-8"),
        # The page may run these scripts and no others, whatever an answer says; and it may load nothing.
        hashes=["sha256-" + base64.b64encode(hashlib.sha256(code.encode()).digest()).decode() for code in scripts],
        colours={name: getattr(figures, name) for name in ("GLOBAL", "LOCAL", "NEWLINE", "SEPARATOR", "TEXT", "ANSWER")})


def lesson_links(folder: Path | None) -> dict[str, dict]:
    """Per panel the lesson's file, and a link to it where one can work: from a page inside the repository."""
    links = {}
    for panel, name in LESSONS.items():
        lesson = HOUSE / "lessons" / f"{name}.ipynb"
        inside = folder is not None and folder.resolve().is_relative_to(HOUSE) and lesson.exists()
        links[panel] = {"file": f"lessons/{name}.ipynb",
                        "link": Path(os.path.relpath(lesson, folder.resolve())).as_posix() if inside else None}
    return links
