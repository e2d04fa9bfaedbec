"""What a run looks like: its curves, and a sheet of pictures with questions and answers.

Tests    tests/test_training.py
"""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")       # files, no windows: training runs where there is no screen
import matplotlib.pyplot as plt

from minivl2 import grounding
from minivl2.training.evaluation import Answered

RIGHT, WRONG = "#1a7f37", "#cf222e"


def draw_curves(metrics: Sequence[dict], path: Path) -> None:
    """Loss and expert load over the steps."""
    steps = [line["step"] for line in metrics]
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(7, 5), sharex=True, height_ratios=(2, 1), layout="constrained")
    loss = [line["loss"] for line in metrics]
    top.plot(steps, loss, color="#4363d8", alpha=0.3, label="each step logged")
    top.plot(steps, smooth(loss), color="#4363d8", label="smoothed")
    top.set(ylabel="loss of the answers (nats a token)", ylim=(0, None))
    top.legend(frameon=False)
    bottom.plot(steps, [line["load"] for line in metrics], color="#f58231")
    bottom.axhline(1, color="grey", linewidth=0.8, linestyle=":")
    bottom.set(ylabel="busiest expert\n(× its fair share)", xlabel="step", ylim=(0, None))
    for axis in (top, bottom):
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def smooth(values: Sequence[float], memory: float = 0.95) -> list[float]:
    """A running mean that forgets."""
    out, total, weight = [], 0.0, 0.0
    for value in values:
        total, weight = memory * total + value, memory * weight + 1
        out.append(total / weight)
    return out


def draw_sheet(answered: Sequence[Answered], path: Path, columns: int = 4) -> None:
    """Pictures with the question, the model's answer, and the truth where it differs; boxes are drawn as answered."""
    rows = -(-len(answered) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3.4 * columns, 3.5 * rows), layout="constrained", squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, one in zip(axes.flat, answered, strict=False):
        picture = one.images[-1]
        picture = picture.resize((picture.width * 4, picture.height * 4), 0)
        axis.imshow(grounding.draw(picture, [box._replace(label="") for box in grounding.parse(one.answer)]))
        said = [one.question.text, f"→ {one.answer}"] + ([] if one.right else [f"(truth: {one.question.answer})"])
        text = "\n".join("\n".join(textwrap.wrap(line, 38)[:4]) for line in said)
        axis.set_title(text, fontsize=8, loc="left", color=RIGHT if one.right else WRONG, parse_math=False)
    figure.savefig(path, dpi=100)
    plt.close(figure)
