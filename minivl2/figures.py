"""Pictures of how the model works, drawn by the code that they explain: for the README, the lessons and the X-ray page.

Tests    tests/test_figures.py

    python -m minivl2.figures lessons/overview.png              draws the picture at the top of the README
    python -m minivl2.figures docs/roofline.png bench.txt       draws what minivl2 bench --json has written there

A figure belongs to no window and to no pyplot: it can be saved, and a notebook shows the one that ends a cell.
"""

import base64
import io
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle
from PIL import Image
from torch import Tensor

from minivl2 import toyworld
from minivl2.batch import Batch
from minivl2.config import Config
from minivl2.conversation import BEGIN, END
from minivl2.places import Place
from minivl2.processor import Processor
from minivl2.tiling import cut, fit, grid_of
from minivl2.visual_tokens import count

GLOBAL, LOCAL, NEWLINE, SEPARATOR, TEXT, ANSWER = "#f4a261", "#4d9de0", "#555555", "#d62246", "#e9e4d8", "#3bb273"
NEUTRAL = "#8a8f98"     # to be seen on white and on black
TEXT_ON_WHITE = "#222222"


class Drawing(Figure):
    """A figure that a notebook can show even where pyplot was never used."""

    def _repr_png_(self) -> bytes:
        png = io.BytesIO()
        self.savefig(png, format="png", dpi=100)
        return png.getvalue()


def overview(sample: toyworld.Sample, config: Config) -> Figure:
    """From picture to answer: the tiles, the tokens in their order, the decoder. The figure of the paper, on our toy."""
    picture, question = sample.images[0], min(sample.questions, key=lambda question: len(question.text))
    grid = grid_of(picture.size, config.candidate_resolutions, config.vision.image_size)
    figure = Drawing(figsize=(12.5, 4.4), layout="constrained")
    parts = figure.subfigures(1, 4, width_ratios=(1.1, 1.3, 1.7, 1.6), wspace=0.02)
    _show(parts[0].subplots(), picture, f"1  a picture\n{picture.width} x {picture.height} pixels")
    draw_tiles(parts[1], picture, grid, config)
    draw_tokens(parts[2].subplots(), grid, config.tokens_per_side)
    draw_decoder(parts[3].subplots(), question.text, question.answer, config)
    return figure


def draw_tiles(figure: Figure, picture: Image.Image, grid: tuple[int, int], config: Config) -> None:
    """The global view, and the local tiles with a gap between them."""
    w, h = grid
    views = cut(picture, grid, config.vision.image_size, (0.5,) * 3, (0.5,) * 3)
    views = ((views / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1) * 255).byte().numpy()
    top, bottom = figure.subfigures(2, 1, height_ratios=(1, 1.1 * h))
    _show(top.subplots(), views[0], "2  seen twice: whole, in one tile ...", GLOBAL)
    axes = np.atleast_2d(bottom.subplots(h, w, squeeze=False))
    for axis, tile in zip(axes.flat, views[1:], strict=True):
        _show(axis, tile, "", LOCAL)
    bottom.suptitle(f"... and enlarged, in {w} x {h} tiles", fontsize=9)


def draw_tokens(axis: Axes, grid: tuple[int, int], side: int) -> None:
    """Every visual token as a square, in the plane it comes from, with its newlines and the separator."""
    w, h = grid
    def rows(top: int, columns: int, count: int, colour: str) -> None:
        for r in range(count):
            for c in range(columns + 1):
                axis.add_patch(Rectangle((c, -top - r), 0.85, 0.85, color=colour if c < columns else NEWLINE))
    rows(0, side, side, GLOBAL)
    axis.add_patch(Rectangle((0, -side - 0.6), 0.85, 0.85, color=SEPARATOR))
    rows(side + 2, side * w, side * h, LOCAL)
    total = side * (side + 1) + 1 + side * h * (side * w + 1)
    axis.set_title(f"3  read row by row: {total} visual tokens", fontsize=9)
    axis.text(1.3, -side - 0.25, "separator", fontsize=7, va="center", color=SEPARATOR)
    axis.text(side + 1.3, -side / 2 + 0.9, "newlines", fontsize=7, va="center", color=NEWLINE)
    axis.set(xlim=(-0.5, side * w + 2.5), ylim=(-side * (h + 1) - 2.5, 1.6), aspect="equal")
    axis.axis("off")


def draw_decoder(axis: Axes, question: str, answer: str, config: Config) -> None:
    """Question and answer around the layers of the decoder."""
    lang = config.language

    def box(y: float, height: float, text: str, colour: str, x: float = 0.05, width: float = 0.9) -> None:
        axis.add_patch(FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0.012", facecolor=colour, edgecolor="none"))
        axis.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=8, parse_math=False)

    kind = "latent" if lang.use_mla else "multi-head"
    box(0.86, 0.09, answer, ANSWER)
    box(0.66, 0.13, f"experts: {lang.n_shared_experts} for every token,\n"
        f"{lang.num_experts_per_tok} of {lang.n_routed_experts} chosen by a gate", "#d9c8f5", 0.12, 0.76)
    box(0.46, 0.13, f"{kind} attention:\n{lang.kv_lora_rank} + {lang.qk_rope_head_dim} numbers a token remembered",
        "#c8e0f5", 0.12, 0.76)
    axis.add_patch(FancyBboxPatch((0.05, 0.43), 0.9, 0.39, boxstyle="round,pad=0.012", fill=False, edgecolor="grey"))
    axis.text(0.945, 0.8, f"x {lang.num_hidden_layers}", fontsize=8, ha="right", va="top", color="grey")
    box(0.25, 0.09, "visual tokens", LOCAL, 0.05, 0.26)
    box(0.25, 0.09, question, TEXT, 0.36, 0.59)
    for y in (0.36, 0.60, 0.80):
        axis.annotate("", (0.5, y + 0.055), (0.5, y), arrowprops={"arrowstyle": "->", "color": "grey"})
    axis.set_title("4  read together with the question", fontsize=9)
    axis.set(xlim=(0, 1), ylim=(0.15, 1))
    axis.axis("off")


def draw_tiling(
    picture: Image.Image, candidates: Sequence[tuple[int, int]], rule: str = "released", side: int = 14
) -> Figure:
    """A picture as the vision tower is given it: the global view, and the local one with its seams. With what it costs,
    `side` visual tokens along a tile. The first candidate is one tile."""
    tile = candidates[0][0]
    grid = w, h = grid_of(picture.size, candidates, tile, rule)
    grey = (127,) * 3
    figure = Drawing(figsize=(10, 3.7), layout="constrained")
    axes = figure.subplots(1, 3, width_ratios=(1, 1, max(1, min(2, w / h))))
    smooth = "antialiased"
    _show(axes[0], picture, f"a picture\n{picture.width} x {picture.height}", interpolation=smooth)
    _show(axes[1], fit(picture, (tile, tile), grey),
          f"global view\n{side} x ({side} + 1) = {side * (side + 1)} tokens", GLOBAL, smooth)
    _show(axes[2], fit(picture, (w * tile, h * tile), grey), f"local view, {w} x {h} tiles\n"
          f"{side * h} x ({side * w} + 1) = {side * h * (side * w + 1)} tokens", LOCAL, smooth)
    for x in range(1, w):
        axes[2].axvline(x * tile - 0.5, color=LOCAL, linewidth=1.5)
    for y in range(1, h):
        axes[2].axhline(y * tile - 0.5, color=LOCAL, linewidth=1.5)
    figure.suptitle(f"{count(grid, side)} visual tokens, with the separator between the views", fontsize=10)
    return figure


# ------------------------------------------------------------------------------------ seen inside an answer


def views_of(tiles: Tensor, grid: tuple[int, int], mean: Sequence[float], std: Sequence[float]) -> list[Image.Image]:
    """What the vision tower was given of a picture, as pictures: the global view, and the local tiles put together."""
    w, h = grid
    colours = tiles * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]
    colours = (colours.clamp(0, 1) * 255).round().byte()                                            # (1+w*h, 3, t, t)
    mosaic = colours[1:].unflatten(0, (h, w)).permute(2, 0, 3, 1, 4).flatten(1, 2).flatten(2, 3)    # (3, h*t, w*t)
    return [Image.fromarray(view.permute(1, 2, 0).contiguous().numpy()) for view in (colours[0], mosaic)]


def principal_colours(features: Tensor) -> Tensor:
    """(M, P, W) vectors of patches -> (M, P, 3) bytes: their first three principal components as red, green and blue.

    Patches of like colour have like vectors. Only directions count: in a trained tower a few vectors are so long that
    they would be all one sees.
    """
    x = torch.nn.functional.normalize(features.flatten(0, 1).float(), dim=-1)
    x = x - x.mean(0)
    # The same components whatever the machine: exact, not torch's randomised pca_lowrank; signs by the largest entry.
    values, directions = torch.linalg.eigh(x.T @ x)
    directions = directions[:, -3:].flip(-1)
    directions = directions * directions.gather(0, directions.abs().argmax(0)[None]).sign()
    x = x @ directions
    low, high = x.quantile(0.01, 0), x.quantile(0.99, 0)
    x = (x - low) / (high - low).clamp(min=0.01 * float((high - low).max()) + 1e-12)    # noise shall not look like more
    return (x.clamp(0, 1) * 255).round().byte().unflatten(0, features.shape[:2])


def heat_table() -> np.ndarray:
    """(256, 4) bytes, red green blue opacity: how attention from none to most is laid over a grey picture."""
    strength = np.linspace(0, 1, 256)
    table = matplotlib.colormaps["inferno"](0.25 + 0.7 * strength)
    table[:, 3] = 0.9 * strength**0.5
    return (table * 255).round().astype(np.uint8)


def draw_heat(axis: Axes, picture: Image.Image, places: Sequence[Place], weights: Tensor, title: str = "") -> None:
    """Attention (one weight per place) over the picture, relative to the largest. Give it the places of one view."""
    table, most = heat_table() / 255, max(float(weights.max()), 1e-12)
    axis.imshow(picture.convert("L"), cmap="gray", vmin=-80, vmax=335)      # paler than black and white
    for place, weight in zip(places, weights.tolist(), strict=True):
        if place.in_picture is not None:
            left, top, right, lower = place.in_picture
            colour = table[round(255 * weight / most)]
            axis.add_patch(Rectangle((left - 0.5, top - 0.5), right - left, lower - top, facecolor=colour, linewidth=0))
    axis.set_title(title, fontsize=9, parse_math=False)
    axis.set(xticks=[], yticks=[])


def draw_load(axis: Axes, loads: Mapping[str, Tensor], title: str = "") -> None:
    """How often each expert was chosen, in percent of the choices; each kind of token has its own bars. The line is an
    even share."""
    colours = {"visual": LOCAL, "text": ANSWER}
    loads = {name: load for name, load in loads.items() if load.sum() > 0}
    for n, (name, load) in enumerate(loads.items()):
        share = (100 * load.float() / load.sum()).numpy()
        width = 0.8 / len(loads)
        axis.bar(np.arange(len(share)) + (n - (len(loads) - 1) / 2) * width, share, width, label=name, color=colours[name])
    experts = len(next(iter(loads.values())))
    axis.axhline(100 / experts, color=NEUTRAL, linewidth=1, linestyle=(0, (4, 3)))
    axis.set_title(title, fontsize=10, loc="left")
    axis.set_ylabel("% of choices", fontsize=9)
    axis.set_xticks(range(0, experts, -(-experts // 10)))
    axis.tick_params(labelsize=9, length=0)
    axis.spines[["top", "right", "left"]].set_visible(False)


def draw_memory(axis: Axes, numbers: Mapping[str, tuple[int, int]]) -> None:
    """name: (what is remembered, what multi-head attention with its heads would remember), per token and layer."""
    for row, (kept, multi_head) in enumerate(numbers.values()):
        for y, length, colour in ((row - 0.2, multi_head, NEUTRAL), (row + 0.2, kept, LOCAL)):
            axis.barh(y, length, 0.36, color=colour, alpha=0.5 if colour == NEUTRAL else 1)
            axis.annotate(f"{length:,}", (length, y), (4, 0), textcoords="offset points", va="center", fontsize=9)
    axis.set_yticks(range(len(numbers)), numbers, fontsize=10)
    axis.set_xlim(0, 1.22 * max(max(pair) for pair in numbers.values()))
    axis.set_xticks([])
    axis.invert_yaxis()
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)


def roofline(found: Mapping) -> Figure:
    """What `minivl2 bench --json` found: each figure under the two limits of the machine. Left of the bend, memory is the
    limit; right of it, arithmetic. Filled: minivl2; hollow: transformers."""
    figure = Drawing(figsize=(8.2, 4.6), layout="constrained")
    axis = figure.subplots()
    most, memory = found["limits"]["matrix_gflops"], found["limits"]["memory_gb_per_second"]
    points = {name: (need["flops"] / need["bytes"], need["flops"] / 1e9 * found["measured"][name])
              for name, need in found["needs"].items()}
    left, right = (f([x for x, _ in points.values()] + [most / memory]) for f in (min, max))
    x = np.geomspace(left / 3, right * 8, 200)
    roof = np.minimum(most, memory * x)
    axis.plot(x, roof, color=TEXT_ON_WHITE, linewidth=1.5)
    axis.fill_between(x, roof, most * 2, color=NEUTRAL, alpha=0.12, linewidth=0)
    said = {"textcoords": "offset points", "fontsize": 9}
    axis.annotate(f"arithmetic: {most:,.0f} GFLOP/s", (x[-1], most), (0, 4), ha="right", **said)
    axis.annotate(f"memory: {memory:,.0f} GB/s", (most / memory / 3, most / 3), (-8, 0), ha="right", **said)
    for row, (name, (intensity, rate)) in enumerate(sorted(points.items(), key=lambda point: -point[1][1])):
        ours = not name.startswith("transformers")
        colour = (LOCAL if found["needs"][name]["limit"] == "flops" else ANSWER) if ours else NEUTRAL
        axis.plot([intensity] * 2, [rate, min(most, memory * intensity)], color=colour, linewidth=1, linestyle=(0, (2, 2)))
        axis.plot(intensity, rate, "o", color=colour, markerfacecolor=colour if ours else "white", markersize=7)
        axis.annotate(f"{name}  {found['fraction'][name]:.0%}", (intensity, rate), (1.02, 1 - row / len(points)), ha="left",
                      textcoords=axis.transAxes, va="top", fontsize=8.5, color=TEXT_ON_WHITE,
                      arrowprops={"arrowstyle": "-", "color": NEUTRAL, "linewidth": 0.4})
    axis.set(xscale="log", yscale="log", xlim=(x[0], x[-1]), ylim=(min(rate for _, rate in points.values()) / 2, most * 2),
             xlabel="operations for every byte that comes from memory", ylabel="GFLOP/s")
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=9)
    about = found["about"]
    kept = about["quantize"] or about["dtype"] + ", packed" * bool(about["pack"])
    axis.set_title(f"{about['model']}, {kept}, {about['threads']} threads of {about['processor']}", fontsize=9, loc="left")
    return figure


def svg(draw, *inputs, size: tuple[float, float] = (3.4, 1.9), name: str = "") -> str:
    """A drawing function's picture as SVG to be put into a page: its letters are text, in the page's own colour."""
    ink = "#010203"
    style = {"svg.fonttype": "none", "svg.hashsalt": name, "text.color": ink, "axes.labelcolor": ink, "xtick.color": ink,
             "ytick.color": ink, "axes.edgecolor": ink}
    with matplotlib.rc_context(style):
        figure = Drawing(figsize=size, layout="constrained")
        draw(figure.subplots(), *inputs)
        written = io.StringIO()
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = re.sub(r"<metadata>.*?</metadata>", "", written.getvalue(), flags=re.S)
    return text[text.index("<svg"):].replace(ink, "currentColor")
PLACES = {      # the boxes of the map: what stands in them, their colour, their left edge and width
    "picture": ("a picture", "#e9e4d8", 0.0, 1.0),
    "tiles": ("tiles", GLOBAL, 1.3, 1.0),
    "vision": ("vision\ntower", LOCAL, 2.6, 1.1),
    "projector": ("projector", LOCAL, 4.0, 1.2),
    "tokens": ("line of\ntokens", LOCAL, 5.5, 1.1),
    "attention": ("attention", "#8fc1ef", 7.15, 1.25),
    "experts": ("experts", "#b99aec", 8.7, 1.15),
    "answer": ("answer", ANSWER, 10.45, 1.0),
    "boxes": ("boxes", ANSWER, 11.75, 0.9),
}


def where(*here: str) -> Figure:
    """The model as a row of boxes, with those we are at in colour. No names: all of them."""
    unknown = set(here) - PLACES.keys()
    if unknown:
        raise ValueError(f"the map has no {', '.join(sorted(unknown))}; it has {', '.join(PLACES)}")
    here = here or tuple(PLACES)
    figure = Drawing(figsize=(10.4, 1.55), layout="constrained")
    axis = figure.subplots()

    def box(x: float, y: float, width: float, text: str, colour: str, lit: bool) -> None:
        axis.add_patch(FancyBboxPatch((x, y), width, 0.62, boxstyle="round,pad=0.02,rounding_size=0.1",
                                      facecolor=colour if lit else "#f4f4f4", edgecolor="#333333" if lit else "#cccccc"))
        axis.text(x + width / 2, y + 0.31, text, ha="center", va="center", fontsize=8.5, color="black" if lit else "#777777",
                  weight="bold" if lit else "normal")

    def arrow(x: float, y: float, to_x: float, to_y: float) -> None:
        axis.annotate("", (to_x, to_y), (x, y), arrowprops={"arrowstyle": "->", "color": "#888888"})

    places = list(PLACES.items())
    for name, (text, colour, x, width) in places:
        box(x, 0.69, width, text, colour, name in here)
    for (_, (_, _, x, width)), (_, (_, _, next_x, _)) in zip(places, places[1:], strict=False):
        arrow(x + width, 1, next_x, 1)
    box(2.6, -0.35, 1.1, "a question", "#e9e4d8", len(here) == len(PLACES))
    box(4.0, -0.35, 1.2, "embedding", "#e9e4d8", len(here) == len(PLACES))
    arrow(3.7, -0.04, 4.0, -0.04)
    arrow(5.2, -0.04, 5.95, 0.67)
    axis.add_patch(FancyBboxPatch((7.02, 0.5), 2.96, 1.0, boxstyle="round,pad=0.02", fill=False, edgecolor="#aaaaaa"))
    axis.text(9.98, 0.42, "decoder: layer after layer", fontsize=7.5, ha="right", va="top", color="#777777")
    axis.set(xlim=(-0.1, 12.8), ylim=(-0.45, 1.55))
    axis.axis("off")
    return figure


def rows_of(batch: Batch, processor: Processor, shown: int = 8) -> Figure:
    """A batch token by token: what is given, what is learned, what is a picture (of which the first few tokens are shown),
    and the padding, which fills the rows from the left."""
    colours = {"given": TEXT, "learned": ANSWER, "picture": LOCAL}
    pad = torch.nn.functional.pad
    learned = pad(batch.learned, (1, 0)) if batch.labels is not None else torch.zeros_like(batch.image_mask)
    rows = []
    for ids, *masks in zip(batch.input_ids, batch.attention_mask, batch.image_mask, learned, strict=True):
        row, run = [], 0
        for token, real, seen, wanted in zip(ids.tolist(), *masks, strict=True):
            run = run + 1 if seen else 0
            if real and run <= shown:
                text = processor.tokenizer.decode([token], skip_special_tokens=False).replace("\n", "\u21b5")
                text = "" if seen else text.replace(BEGIN, "<begin>").replace(END, "<end>")
                row.append((text, "picture" if seen else "learned" if wanted else "given"))
        rows.append(row)
    widths = [[max(0.5, 0.75 + len(text)) if text else 0.5 for text, _ in row] for row in rows]
    most = max(map(sum, widths))
    figure = Drawing(figsize=(11, 0.45 + 0.36 * len(rows)), layout="constrained")
    axis = figure.subplots()
    for y, (row, each) in enumerate(zip(rows, widths, strict=True)):
        x = most - sum(each)
        if x > 0:
            axis.add_patch(Rectangle((0, y), x - 0.2, 0.8, facecolor="none", edgecolor="#cccccc", hatch="///", linewidth=0))
        for (text, kind), width in zip(row, each, strict=True):
            axis.add_patch(Rectangle((x, y), width - 0.2, 0.8, color=colours[kind], linewidth=0))
            axis.text(x + width / 2 - 0.1, y + 0.42, text, ha="center", va="center", fontsize=min(8, 1150 / most),
                      family="monospace", parse_math=False)
            x += width
    names = {"given": "#a09880", "learned": ANSWER, "picture": LOCAL, "padding": NEUTRAL}
    for i, (name, colour) in enumerate(names.items()):
        axis.text(0.08 * i * most, -0.2, name, color=colour, fontsize=8, weight="bold")
    axis.set(xlim=(0, most), ylim=(len(rows), -0.9))
    axis.axis("off")
    return figure


class Playable:
    """A picture to play with: draw(**choices), with a slider or a menu for each choice where a notebook runs and has
    ipywidgets, and the plain picture of the first choices everywhere else.

    choices: name=(the first, all of them); all of them are a range, or a list.
    """

    def __init__(self, draw: Callable[..., Figure], **choices: tuple[object, Sequence]):
        self.draw, self.choices = draw, choices

    def _repr_mimebundle_(self, **_) -> dict:
        plain = self.draw(**{name: first for name, (first, _) in self.choices.items()})
        shown = {"image/png": base64.b64encode(plain._repr_png_()).decode(), "text/plain": "a picture to play with"}
        try:
            import ipywidgets
        except ImportError:
            return shown

        def control(first, every):
            if isinstance(every, range):
                return ipywidgets.IntSlider(first, every.start, every[-1], every.step, continuous_update=False)
            return ipywidgets.Dropdown(options=every, value=first)
        controls = {name: control(*choice) for name, choice in self.choices.items()}
        return shown | ipywidgets.interactive(self.draw, {"auto_display": True}, **controls)._repr_mimebundle_()


def _show(axis: Axes, picture, title: str, frame: str | None = None, interpolation: str = "nearest") -> None:
    axis.imshow(picture, interpolation=interpolation)
    axis.set_title(title, fontsize=9)
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set(visible=frame is not None, color=frame, linewidth=2.5)


if __name__ == "__main__":
    target = Path(sys.argv[1])
    if len(sys.argv) > 2:
        last = Path(sys.argv[2]).read_text(encoding="utf-8").splitlines()[-1]
        drawing = roofline(json.loads(last))
    else:
        drawing = overview(toyworld.draw("overview 3", "scenes", (2, 2)), Config.named("toy"))
    drawing.savefig(target, dpi=110)
    print(target)
