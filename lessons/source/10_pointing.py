# %% [markdown]
# # 10. Pointing
#
# *30 minutes. Module: `minivl2/grounding.py`. You need: regular expressions, a little; nothing of the other lessons.*
#
# Ask the model where something is, and it answers with a box. There is no special part for that. The decoder has only one way
# to say anything, which is to write the next token; so it *writes* the box, as four numbers between two special words. All
# that is left to do is a notation, on one side to teach it, on the other to read it. Reading is harder than it looks: a
# model may write anything.
#
# **In the paper:** [DeepSeek-VL2](https://arxiv.org/abs/2412.10302), section 3.3, "Visual grounding".
#
# **At the end you will have written** boxes as text, the reading of answers, boxes on pixels, and the overlap by which answers are
# scored. All pictures and answers here are drawn, by the toy world, so every answer is the true one; no model is needed.

# %%
import random
import re

import matplotlib.pyplot as plt
import torch
from PIL import Image

from minivl2 import figures, grounding, toyworld
from minivl2.grading import grade
from minivl2.grounding import LARGEST, Box
from minivl2.toyworld.things import Scene, Thing

torch.set_num_threads(1)
figures.where("answer", "boxes")

# %% [markdown]
# ## A notation
#
# Five special tokens, each a single id, so that no ordinary text can be mistaken for them:
#
# - `<|ref|>` ... `<|/ref|>` stand around the words for a thing,
# - `<|det|>` ... `<|/det|>` around its boxes, a list of lists of four numbers,
# - `<|grounding|>` at the beginning of a question: answer with boxes.
#
# Asked for some words between the `ref` tags, the model repeats them, and then says where. One thing has one box; "all
# stars" may have many. A question and its answer, and the same on the picture:

# %%
def ask(ability: str, kind: str = "grounding", start: int = 0):
    """The first picture of the toy world, from this seed on, with a question of this kind."""
    for seed in range(start, start + 500):
        sample = toyworld.draw(f"lesson 10, {seed}", kind)
        for question in sample.questions:
            if question.ability == ability and "det" in question.answer:
                return sample, question


def larger(picture: Image.Image) -> Image.Image:
    return picture.resize([4 * side for side in picture.size], Image.NEAREST)


def show(pictures, titles=("",) * 3) -> None:
    widths = [picture.width / picture.height for picture in pictures]
    figure, axes = plt.subplots(1, len(pictures), figsize=(min(9, 3.2 * sum(widths)), 3.2),
                                width_ratios=widths, squeeze=False, layout="constrained")
    for axis, picture, title in zip(axes[0], pictures, titles, strict=False):
        axis.imshow(picture)
        axis.set_title(title, fontsize=10)
        axis.axis("off")


sample, question = ask("boxes")
print(question.text)
print(question.answer)
picture = larger(sample.images[0])
show([picture, grounding.draw(picture, grounding.parse(question.answer))])

# %% [markdown]
# ## Numbers without a size
#
# Which numbers? Not pixels. The picture has been scaled and padded and cut before the decoder sees any of it (lesson 1), and
# how large the file was, nobody tells it. So the coordinates are relative. The left edge is 0, the right edge 999, whatever
# the width; the upper edge is 0 and the lower 999, whatever the height. x by the width and y by the height: in a long
# picture a step to the right is longer than a step down.
#
# ### Exercise 1: from pixels to words
# This is the side of the teacher: where the toy world knows a box in pixels, what should be the answer? A `Thing` has its box as
# pixel *edges*: one that fills a picture of 100 x 50 has the box (0, 0, 100, 50).

# %% [markdown] tags=["hints"]
# 1. An edge in parts of its side, `edge / side`, is between 0 and 1. Times 999, and rounded to the nearest.
# 2. Edges come as left, top, right, bottom; the sides to divide by are `(width, height, width, height)`.

# %%
@grade("toyworld.grounding.per_mille")
def per_mille(box: tuple[int, int, int, int], scene: Scene) -> list[int]:
    """(left, top, right, bottom), pixels of scene.width x scene.height -> four integers, 0 to 999.

    The right and the lower edge of the picture are 999. Rounded to the nearest.
    """
    ### BEGIN SOLUTION
    sides = (scene.width, scene.height, scene.width, scene.height)
    return [round(999 * edge / side) for edge, side in zip(box, sides, strict=True)]
    ### END SOLUTION

# %% [markdown]
# ### Exercise 2: and back
# `Box` holds a label and the four numbers, as the model wrote them. To draw it, it needs pixels of a picture of some size.

# %% [markdown] tags=["hints"]
# 1. Multiply by `size[0] / 999` for x, by `size[1] / 999` for y, and round.
# 2. `self.x1`, `self.y1`, `self.x2`, `self.y2`; or all four at once, `self[1:]`. 999 must come out as the width itself.

# %%
@grade("grounding.Box.pixels")
def pixels(self: Box, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The corners x1, y1, x2, y2 on a picture of this (width, height), rounded to whole pixels."""
    ### BEGIN SOLUTION
    width, height = size
    x1, y1, x2, y2 = self[1:]
    scaled = (x1 * width, y1 * height, x2 * width, y2 * height)
    return tuple(round(number / 999) for number in scaled)
    ### END SOLUTION

# %% [markdown]
# ## How well does a box fit?
#
# An answer is rarely right to the pixel, so right and wrong are not enough. The usual measure is **intersection over union**:
# the area that both boxes share, in parts of the area that either covers.
#
# $$\mathrm{IoU}(a, b) = \frac{|a \cap b|}{|a \cup b|} = \frac{|a \cap b|}{|a| + |b| - |a \cap b|}$$
#
# It is 1 for the same box and 0 for boxes that do not touch, and it punishes a box that is too large like one that is too
# small. Above 0.5 an answer usually counts as right.
#
# ### Exercise 3: intersection over union
# The trap: two boxes that lie apart in both directions have a negative width in common, and a negative height, and the
# product of the two is positive.

# %% [markdown] tags=["hints"]
# 1. What they share is a box, too: from the larger of the left edges to the smaller of the right ones.
# 2. If its width or its height is not above 0, they share nothing: return 0.0 there. That also covers boxes without area.
# 3. Edges, not pixels: a box from 0 to 10 is 10 wide, not 11.

# %%
@grade("grounding.iou")
def iou(a: Box, b: Box) -> float:
    """Shared area over covered area; 0.0 if they share none. x1 <= x2 and y1 <= y2, edges."""
    ### BEGIN SOLUTION
    width = min(a.x2, b.x2) - max(a.x1, b.x1)
    height = min(a.y2, b.y2) - max(a.y1, b.y1)
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box.x2 - box.x1) * (box.y2 - box.y1) for box in (a, b)]
    return width * height / (sum(areas) - width * height)
    ### END SOLUTION

# %% [markdown]
# To get a feeling for it: a box (green) and answers that are off by so many parts of its side, to the right and downwards. 0.5 is
# stricter than it sounds: off by a fifth both ways is already wrong.

# %%
true = Box("", 300, 300, 700, 700)
shifts = [0, 0.1, 0.2, 0.3, 0.5]
figure, axes = plt.subplots(1, 6, figsize=(10, 2.1), layout="constrained",
                            width_ratios=[1] * 5 + [1.8])
for axis, shift in zip(axes, shifts, strict=False):
    given = Box("", *(edge + round(400 * shift) for edge in true[1:]))
    for box, colour in ((true, "#3bb273"), (given, "#d62246")):
        axis.add_patch(plt.Rectangle(box[1:3], 400, 400, fc=colour, alpha=0.4))
    axis.set(xlim=(250, 950), ylim=(950, 250), aspect="equal", xticks=[], yticks=[])
    axis.set_title(f"off by {shift:.0%}\nIoU {iou(true, given):.2f}", fontsize=9)
parts = [n / 100 for n in range(101)]
both = [iou(true, Box("", *(edge + round(400 * part) for edge in true[1:]))) for part in parts]
one = [iou(true, Box("", 300 + round(400 * part), 300, 700 + round(400 * part), 700))
       for part in parts]
axes[5].plot(parts, one, color="#4d9de0", label="one way")
axes[5].plot(parts, both, color="#d62246", label="both ways")
axes[5].axhline(0.5, color="#999999", lw=0.8, ls="--")
axes[5].set(xlabel="off by, of its side", ylabel="IoU")
axes[5].spines[["top", "right"]].set_visible(False)
axes[5].legend(frameon=False, fontsize=8);

# %% [markdown]
# ## Why a thousand?
#
# Whole numbers from 0 to 999 are a choice. Fewer would be shorter to write, more would be finer. What does rounding cost? We draw
# a thousand boxes, write each with so many steps, read it back, and see how well it still fits. What counts is how large the thing is
# in the picture.

# %%
def cost_of_rounding(steps: int, side: float, n: int = 1000) -> float:
    """Mean IoU of boxes with sides of this part of the picture with their own rounded selves."""
    rng, total = random.Random(0), 0.0
    for _ in range(n):
        left, top = rng.uniform(0, 1 - side), rng.uniform(0, 1 - side)
        edges = (left, top, left + side, top + side)
        rounded = (round(edge * steps) / steps for edge in edges)
        total += iou(Box("", *edges), Box("", *rounded))
    return total / n


sides = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5]
figure, axis = plt.subplots(figsize=(7, 2.8), layout="constrained")
for steps, colour in ((10, "#d62246"), (100, "#f4a261"), (999, "#3bb273")):
    axis.semilogx(sides, [cost_of_rounding(steps, side) for side in sides], "o-", color=colour,
                  label=f"0 to {steps}")
axis.axhline(0.5, color="#999999", lw=0.8, ls="--")
axis.set(xlabel="side of the box, of the picture's side", ylabel="IoU after rounding",
         xticks=sides, xticklabels=[f"{side:.0%}" for side in sides], ylim=(0, 1.05))
axis.minorticks_off()
axis.spines[["top", "right"]].set_visible(False)
axis.legend(frameon=False, fontsize=9);

# %% [markdown]
# With a hundred steps, things of a few hundredths of the picture are already blurred; with a thousand, a letter on a page
# keeps most of its box (at 1% of the side, an IoU of about 0.9). With three digits rounding is hardly ever what is wrong.
#
# ## Reading what a model wrote
#
# Now the other side. A well-behaved answer is easy. But a model that is still learning, or that ran out of tokens, writes
# this:
#
# ```
# <|det|>[[1, 2, 3, 4], [5, 6, 7           broken off
# <|ref|>a<|det|>[[1, 2, 3, 4]]            a tag forgotten
# <|det|>[[9, 8, 3, 4]]<|/det|>            corners the wrong way round
# <|det|>[[-5, 2.4, 3000, 4.6]]<|/det|>    outside the picture
# <|det|>[[1, 2, x, 4]]<|/det|>            no box at all
# ```
#
# Two things must not happen: that one bad box makes an exception and the good ones are lost; and that text from a model is
# evaluated. `eval(answer)` reads a list of lists perfectly, and also runs whatever else stands there. A model repeats
# what it has read, and somebody else may have written that.
#
# So: find what looks like a box, skip what does not. Three patterns are given.

# %%
# an optional label, then everything up to the next tag or the end of the text
ANSWER = re.compile(r"(?:<\|ref\|>(?P<label>[^<]*)(?:<\|/ref\|>)?\s*)?<\|det\|>(?P<boxes>[^<]*)")
BRACKETS = re.compile(r"\[([^\[\]]*)\]")                                    # innermost brackets
NUMBER = re.compile(r"-?\d{1,6}(?:\.\d{1,6})?", re.ASCII)                   # for fullmatch

for text in ("<|ref|>a star<|/ref|><|det|>[[1, 2, 3, 4], [5, 6, 7, 8]]<|/det|>",
             "<|det|>[[1, 2, 3, 4], [5, 6"):
    for answer in ANSWER.finditer(text):
        print(answer["label"], BRACKETS.findall(answer["boxes"]))

# %% [markdown]
# ### Exercise 4: parse

# %% [markdown] tags=["hints"]
# 1. Three loops: over `ANSWER.finditer(text)`, over `BRACKETS.findall(answer["boxes"])`, and over the numbers in a bracket, four by
#    four.
# 2. `[part.strip() for part in brackets.split(",")]`. Skip the bracket if their count is not a multiple of four, or if
#    `NUMBER.fullmatch` fails for any. (An empty bracket is one empty part: 1 is no multiple of 4.)
# 3. `round(min(max(float(part), 0), 999))` puts a number on the picture. Then `min(x1, x2)`, `min(y1, y2)`, and the two `max`.
# 4. `answer["label"]` is None where there is none: `(answer["label"] or "").strip()`.

# %%
@grade("grounding.parse")
def parse(text: str) -> list[Box]:
    """All boxes in an answer, in order, as Box(label, x1, y1, x2, y2).

    Four numbers in innermost brackets are a box, eight are two, and so on; a bracket with any other
    count, or with anything that is not a NUMBER, is skipped as a whole. A number is moved to 0 or
    999 if it lies outside, and rounded. Corners may come in the wrong order: x1 <= x2, y1 <= y2.
    The label is that of ANSWER without the spaces around it, "" if there is none.
    """
    ### BEGIN SOLUTION
    found = []
    for answer in ANSWER.finditer(text):
        label = (answer["label"] or "").strip()
        for brackets in BRACKETS.findall(answer["boxes"]):
            parts = [part.strip() for part in brackets.split(",")]
            if len(parts) % 4 or not all(NUMBER.fullmatch(part) for part in parts):
                continue
            numbers = [round(min(max(float(part), 0), LARGEST)) for part in parts]
            for i in range(0, len(numbers), 4):
                x1, y1, x2, y2 = numbers[i : i + 4]
                found.append(Box(label, min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)))
    return found
    ### END SOLUTION

# %% [markdown]
# There and back again, with your functions if you wrote them: a thing in pixels, in words, in a box, in pixels. As long as the
# picture is not wider or higher than 999 pixels, nothing is lost.

# %%
scene = Scene(640, 480, (Thing("big", "red", "star", (37, 111, 205, 300)),))
words = toyworld.grounding.located("the red star", scene.things, scene)
print(scene.things[0].box, "->", words, "->", grounding.parse(words)[0].pixels((640, 480)))

# %% [markdown]
# ## What can be asked with it
#
# **Grounded conversation.** With `<|grounding|>` before a question, the answer has its boxes among its words: every thing that is
# named is also pointed at.

# %%
sample, question = ask("grounded caption", start=1)
print(question.text)
for part in question.answer.split("<|/det|>"):
    if part:
        print("   ", part.removeprefix(", ") + "<|/det|>")
picture = larger(sample.images[0])
show([grounding.draw(picture, grounding.parse(question.answer))])

# %% [markdown]
# **In-context grounding.** The question needs no words for the thing at all. Two pictures: in the first something is framed,
# and the model is to find its like in the second. That there is no name for it, or that the asker does not know one, does not
# matter. The box belongs to the second picture, which nothing in the notation says; it is a matter of having been trained so.

# %%
sample, question = ask("in context", kind="pairs")
print(question.text)
print(question.answer)
first, second = (larger(picture) for picture in sample.images)
show([first, grounding.draw(second, grounding.parse(question.answer))],
     ("first, framed", "second, answered"))

# %% [markdown]
# **What is not there.** Asked for something that is not in the picture, a model that has only seen answers with boxes will
# put one somewhere. It has to learn to say no. The toy world asks for absent things in a fifth of its questions, and answers "none";
# `parse` finds no box in that, as it should.
#
# ## What you have now
# `minivl2/grounding.py`, but for its drawing. Nothing in it is about neural networks. Pointing is a habit of writing, learned
# from examples like these, and all the seeing it needs is what lessons 1 to 3 prepared: vectors that say what is *where*.
