"""What a run looks like: its curves, and a sheet of pictures with questions and answers.

Tests    tests/test_training.py
"""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")       # files, no windows: training runs where there is no screen
import matplotlib.pyplot as plt

from minivl2 import grounding
from minivl2.toyworld import ABILITIES
from minivl2.training.evaluation import Answered

RIGHT, WRONG, BLUE = "#1a7f37", "#cf222e", "#4363d8"
COLOURS = (BLUE, "#f58231", "#808080", "#911eb4")


def draw_curves(metrics: Sequence[dict], path: Path) -> None:
    """Over the steps: the loss, the loss of each ability, and how the work is divided among the experts."""
    steps = [line["step"] for line in metrics]
    abilities = [name for name in ABILITIES if any(name in line["abilities"] for line in metrics)]
    layers = len(metrics[0]["experts"]) if metrics else 0
    across = 6
    down = -(-len(abilities) // across)
    figure = plt.figure(figsize=(11, 3 + 1.3 * down + 0.9 * layers), layout="constrained")
    top, middle, bottom = figure.subfigures(3, 1, height_ratios=(3, 1.3 * max(down, 1), 0.9 * max(layers, 1)))

    axis = top.subplots()
    loss = [line["loss"] for line in metrics]
    axis.plot(steps, loss, color=BLUE, alpha=0.3, label="each step logged")
    axis.plot(steps, smooth(loss), color=BLUE, label="smoothed")
    axis.set(ylabel="loss of the answers\n(nats a token)", xlabel="step", ylim=(0, None))
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)

    middle.suptitle("of each ability", fontsize=9)
    small = middle.subplots(max(down, 1), across, sharex=True, squeeze=False)
    for axis in small.flat:
        axis.axis("off")
    for axis, ability in zip(small.flat, abilities, strict=False):
        lines = [line for line in metrics if ability in line["abilities"]]
        axis.axis("on")
        axis.plot([line["step"] for line in lines], smooth([line["abilities"][ability] for line in lines], 0.8), color=BLUE)
        axis.set_title(ability, fontsize=8, loc="left")
        axis.set(ylim=(0, None), xlim=(0, max(steps)))
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)

    bottom.suptitle("each expert's load: 1 is its fair share, a row is an expert", fontsize=9)
    maps = bottom.subplots(max(layers, 1), 1, sharex=True, squeeze=False)[:, 0]
    for layer in range(layers):
        shares = list(zip(*(line["experts"][layer] for line in metrics), strict=True))
        drawn = maps[layer].imshow(shares, aspect="auto", vmin=0, vmax=2, cmap="RdBu_r", interpolation="nearest",
                                   extent=(steps[0], steps[-1] + 1, len(shares) - 0.5, -0.5))
        maps[layer].set_ylabel(f"MoE layer {layer + 1}", fontsize=7)
        maps[layer].tick_params(labelsize=7)
    if layers:
        maps[-1].set_xlabel("step", fontsize=8)
        bottom.colorbar(drawn, ax=maps, shrink=0.9)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_comparison(
    title: str, results: Mapping[str, dict], metrics: Mapping[str, Sequence[dict]], path: Path
) -> None:
    """Several runs side by side: the scores of each ability, the loss, and the load of the busiest expert."""
    abilities = list(next(iter(results.values()))["scores"])
    figure = plt.figure(figsize=(11, 2 + 0.32 * len(abilities) * len(results) ** 0.5), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplot_mosaic([["scores", "loss"], ["scores", "load"]])
    thick = 0.8 / len(results)
    for i, (name, colour) in enumerate(zip(results, COLOURS, strict=False)):
        at = [row + (i + 0.5) * thick - 0.4 for row in range(len(abilities))]
        axes["scores"].barh(at, [results[name]["scores"][a] for a in abilities], height=thick, color=colour, label=name)
        steps = [line["step"] for line in metrics[name]]
        axes["loss"].plot(steps, smooth([line["loss"] for line in metrics[name]]), color=colour)
        axes["load"].plot(steps, smooth([line["load"] for line in metrics[name]]), color=colour)
    guess = next(iter(results.values()))["guess"]
    axes["scores"].vlines([guess[a] for a in abilities], [row - 0.45 for row in range(len(abilities))],
                            [row + 0.45 for row in range(len(abilities))], color="black", linewidth=1, label="a blind guess")
    axes["scores"].set(yticks=range(len(abilities)), yticklabels=abilities, xlim=(0, 1), xlabel="right")
    axes["scores"].invert_yaxis()
    figure.legend(loc="outside lower center", frameon=False, ncols=len(results) + 1)
    axes["loss"].set(ylabel="loss (nats a token)", ylim=(0, None))
    axes["load"].set(ylabel="busiest expert\n(× its fair share)", xlabel="step", ylim=(0, None))
    for axis in axes.values():
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
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
