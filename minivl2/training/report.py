"""What a run looks like: its curves, and a sheet of pictures with questions and answers. And several runs, compared.

Lesson   lessons/12_what_each_idea_buys.ipynb
Tests    tests/test_report.py, tests/test_training.py
"""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from minivl2 import grounding
from minivl2.figures import Drawing
from minivl2.toyworld import ABILITIES
from minivl2.training.evaluation import Answered, interval

RIGHT, WRONG, BLUE = "#1a7f37", "#cf222e", "#4363d8"
COLOURS = (BLUE, "#f58231", "#911eb4", "#808080")      # of compared runs


def draw_curves(metrics: Sequence[dict], path: Path) -> None:
    """Over the steps: the loss, the loss of each ability, and how the work is divided among the experts."""
    steps = [line["step"] for line in metrics]
    abilities = [name for name in ABILITIES if any(name in line["abilities"] for line in metrics)]
    layers = len(metrics[0]["experts"]) if metrics else 0
    across = 6
    down = -(-len(abilities) // across)
    figure = Drawing(figsize=(11, 3 + 1.3 * down + 0.9 * layers), layout="constrained")
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


def draw_comparison(
    title: str, results: Mapping[str, dict], metrics: Mapping[str, Sequence[dict]], path: Path
) -> None:
    comparison(title, results, metrics).savefig(path, dpi=110)


def comparison(title: str, results: Mapping[str, dict], metrics: Mapping[str, Sequence[dict]]) -> Figure:
    """Several runs side by side, each in its colour: how they learned each ability, what they score in the end, and how
    busy their busiest expert was."""
    abilities = [name for name in ABILITIES if any(name in result["scores"] for result in results.values())]
    colours = dict(zip(results, COLOURS, strict=False))
    across = 4
    down = -(-len(abilities) // across)
    height = max(2.2 + 1.5 * down, 0.3 * len(abilities) * len(results) ** 0.5)
    figure = Drawing(figsize=(12, 1.2 + height), layout="constrained")
    figure.suptitle(title)
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.7))
    draw_scores(left.subplots(), results, colours)

    top, bottom = right.subfigures(2, 1, height_ratios=(2.2, 1.5 * down))
    loss, load = top.subplots(1, 2)
    small = bottom.subplots(down, across, sharex=True, squeeze=False)
    for axis in small.flat[len(abilities):]:
        axis.axis("off")
    for name, colour in colours.items():
        draw_line(loss, metrics[name], colour, lambda line: line["loss"])
        draw_line(load, metrics[name], colour, lambda line: line["load"])
        for axis, ability in zip(small.flat, abilities, strict=False):
            heard = [line for line in metrics[name] if ability in line["abilities"]]
            draw_line(axis, heard, colour, lambda line, ability=ability: line["abilities"][ability])
    loss.set(title="loss of all answers", ylabel="nats a token")
    load.set(title="load of the busiest expert", ylabel="times its fair share", xlabel="step")
    for axis, ability in zip(small.flat, abilities, strict=False):
        axis.set_title(f"loss: {ability}")
    for axis in (loss, load, *small.flat):
        axis.title.set_fontsize(8)
        axis.xaxis.label.set_fontsize(8)
        axis.tick_params(labelsize=7)
        axis.yaxis.label.set_fontsize(8)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_ylim(0, None)
    for axis in (loss, *small.flat):        # the fall of the first steps would make everything after it flat
        later = [y for line in axis.lines for x, y in line.get_xydata() if x > axis.dataLim.x1 / 10]
        axis.set_ylim(0, 1.1 * max(later, default=1.0))
    load.axhline(1, color="black", linewidth=0.6, linestyle=":")
    return figure


def draw_scores(axis: Axes, results: Mapping[str, dict], colours: Mapping[str, str]) -> None:
    """A dot for each score, and as a line where the luck of the questions could have put it: 95 %."""
    abilities = [name for name in ABILITIES if any(name in result["scores"] for result in results.values())]
    apart = 0.66 / len(results)
    for row, ability in enumerate(abilities):
        if row % 2:
            axis.axhspan(row - 0.5, row + 0.5, color="#f2f2f2", zorder=0)
        guesses = [result["guess"][ability] for result in results.values() if ability in result["guess"]]
        axis.vlines(guesses, row - 0.45, row + 0.45, color="black", linewidth=1, linestyle=":",
                    label=None if row else "a blind guess")
    for i, (name, colour) in enumerate(colours.items()):
        scores, n = results[name]["scores"], results[name]["n"]
        rows = [row + (i + 0.5) * apart - 0.33 for row, ability in enumerate(abilities) if ability in scores]
        shown = [ability for ability in abilities if ability in scores]
        low, high = zip(*(interval(scores[ability], n[ability]) for ability in shown), strict=True)
        axis.hlines(rows, low, high, color=colour, linewidth=2, alpha=0.5)
        axis.plot([scores[ability] for ability in shown], rows, "o", color=colour, markersize=4, label=name)
    axis.set(yticks=range(len(abilities)), yticklabels=abilities, ylim=(len(abilities) - 0.5, -0.5), xlim=(-0.02, 1.02))
    axis.set_xlabel("right, with 95 % intervals of the questions' luck", fontsize=8)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False, fontsize=8)


def draw_line(axis: Axes, lines: Sequence[dict], colour: str, value: Callable[[dict], float]) -> None:
    """Smoothed over a twentieth of the run; behind it, pale, what was measured."""
    steps, values = [line["step"] for line in lines], [value(line) for line in lines]
    axis.plot(steps, values, color=colour, alpha=0.2, linewidth=0.8)
    axis.plot(steps, smooth(values, 1 - min(1.0, 20 / max(1, len(values)))), color=colour, linewidth=1.4)


def smooth(values: Sequence[float], memory: float = 0.95) -> list[float]:
    """A running mean that forgets: each value before counts `memory` times what the one after it counts."""
    out, total, weight = [], 0.0, 0.0
    for value in values:
        total, weight = memory * total + value, memory * weight + 1
        out.append(total / weight)
    return out


def draw_sheet(answered: Sequence[Answered], path: Path, columns: int = 4) -> None:
    """Pictures with the question, the model's answer, and the truth where it differs; boxes are drawn as answered."""
    rows = -(-len(answered) // columns)
    figure = Drawing(figsize=(3.4 * columns, 3.5 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
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
