# %% [markdown]
# # 1. Tiles
#
# *35 minutes. Modules: `minivl2/tiling.py` and `minivl2/images.py`. You need: tensors in PyTorch, pictures in Pillow.*
#
# The part of the model that sees, the vision tower of lesson 2, was trained on squares of 384 x 384 pixels and takes nothing
# else. Pictures come in all shapes, and what one wants to know of them is often small: a price, a line of print. So
# before any neural network runs, somebody has to decide how a picture is cut into squares. This lesson is that decision.
# Nothing in it is learned, and all that comes later can only see what it leaves.
#
# **In the paper:** [DeepSeek-VL2](https://arxiv.org/abs/2412.10302), section 2, "Dynamic Tiling Strategy".
#
# **At the end you will have written** the rule that chooses a resolution, the cutting, and the count of what a picture costs;
# and you will know where the paper and the released model disagree.

# %%
import io

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.patches import Rectangle
from PIL import Image, ImageChops, ImageDraw, ImageFont, ImageStat
from torch import Tensor

from minivl2 import figures, toyworld
from minivl2.config import paper_candidates
from minivl2.grading import grade
from minivl2.images import open_image
from minivl2.places import fitted
from minivl2.tiling import fit, grid_of, least_padding, normalised
from minivl2.visual_tokens import count

torch.set_num_threads(1)        # tensors this small lose by sharing their work
figures.where("picture", "tiles")

# %% [markdown]
# ## A page, squeezed
#
# Here is a page of print. Squeezed into 384 x 384 pixels, everything is still there except what it was printed for. Below,
# the same corner of the page three times, as it is and as two ways of looking leave it.

# %%
SAYS = ("The vision tower sees squares of 384 x 384 pixels and nothing else. What is printed here "
        "is legible on the page, and illegible once the page is squeezed into one such square. ")


def page(width: int, height: int) -> Image.Image:
    """A sheet of print, its letters eleven pixels high."""
    picture = Image.new("RGB", (width, height), "#fbf7ef")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(size=11)
    words, line, y = (SAYS * 99).split(), "", 24
    for word in words:
        if pen.textlength(f"{line} {word}", font) > width - 60:
            pen.text((30, y), line, "#222222", font)
            line, y = "", y + 18
        if y > height - 40:
            break
        line = f"{line} {word}".strip()
    return picture


def as_seen_in(picture: Image.Image, frame: tuple[int, int]) -> Image.Image:
    """Scaled to fit the frame, and back to its size: what is lost on the way is lost for good."""
    _, _, width, height = fitted(picture.size, frame)
    return picture.resize((width, height), Image.BICUBIC).resize(picture.size, Image.BICUBIC)


sheet = page(1000, 700)
corner = (20, 15, 320, 105)
figure, axes = plt.subplots(3, 1, figsize=(8, 7.5), layout="constrained")
frames = {"as it is": sheet.size, "seen in one tile": (384, 384),
          "seen in 3 x 2 tiles": (1152, 768)}
for axis, (name, frame) in zip(axes, frames.items(), strict=True):
    axis.imshow(as_seen_in(sheet, frame).crop(corner))
    axis.set_title(name, fontsize=10)
    axis.axis("off")

# %% [markdown]
# ## Candidates
#
# A larger picture has to be seen in several tiles, and their number has to end somewhere: each costs time in the tower, and
# tokens in the decoder. DeepSeek-VL2 allows nine. The **candidate resolutions** are all widths and heights of whole tiles
# within that limit,
#
# $$C = \{(384\,m,\ 384\,n) : m \geq 1,\ n \geq 1,\ m\,n \leq 9\}.$$
#
# So a long receipt may have nine tiles, one below the other, and a square photograph three by three. (To read very dense
# infographics the authors raise the limit to 18. Nothing has to be learned anew for that: the tower sees the same tiles,
# only more of them.)

# %%
candidates = paper_candidates()
figure, axis = plt.subplots(figsize=(5, 4.6), layout="constrained")
for m, n in ((width // 384, height // 384) for width, height in candidates):
    axis.add_patch(
        Rectangle((m - 0.45, n - 0.45), 0.9, 0.9, color="#f4a261", alpha=0.25 + 0.08 * m * n))
    axis.text(m, n, f"{m} x {n}", ha="center", va="center", fontsize=8)
axis.set(xlim=(0.4, 9.6), ylim=(9.6, 0.4), aspect="equal", xticks=range(1, 10), yticks=range(1, 10),
         xlabel="m: tiles across", ylabel="n: tiles down",
         title=f"{len(candidates)} candidates; the darker, the more tiles")
axis.spines[["top", "right"]].set_visible(False)

# %% [markdown]
# ## What a candidate keeps
#
# Now each picture must be given one of them. The picture will be scaled until it just fits, its shape kept, and what stays
# empty is padded with grey. Two things can go wrong: the picture is made smaller and loses detail, or much of the candidate is
# padding, for which one pays and gets nothing.
#
# The released model measures the first by the **effective resolution**: of the picture's own pixels, how many survive. For
# a picture $(w, h)$ and a candidate $(W, H)$,
#
# $$s = \min(W / w,\ H / h), \qquad \mathrm{effective} = \min\big(\lfloor w s \rfloor \cdot \lfloor h s \rfloor,\ w h\big).$$
#
# The outer minimum says that enlarging creates nothing: a picture blown up to twice its size has no more to tell.
#
# ### Exercise 1: the effective resolution
# The cell is graded when you run it: `grade` runs minivl2's own tests on your function. Until it passes, the lesson goes on
# with ours.

# %% [markdown] tags=["hints"]
# 1. One scale for both directions, the smaller of the two: with the larger the picture would stick out.
# 2. `int(...)` cuts off what is behind the point, which is what the brackets mean. Each side is cut off before they are
#    multiplied.
# 3. `min(that product, width * height)`.

# %%
@grade("tiling.effective_resolution")
def effective_resolution(image: tuple[int, int], candidate: tuple[int, int]) -> int:
    """Pixels of an image (width, height) that survive when it is scaled to fit the candidate.

    Each scaled side is rounded down to whole pixels. Never more than the image has.
    """
    ### BEGIN SOLUTION
    (width, height), (W, H) = image, candidate
    scale = min(W / width, H / height)
    return min(int(width * scale) * int(height * scale), width * height)
    ### END SOLUTION

# %% [markdown]
# For a photograph of 800 x 600 pixels: what each candidate keeps, and what it would leave empty. Pixels are counted in the
# candidate, so a bar is as long as the candidate is large.

# %%
photograph = (800, 600)
kept = np.array([effective_resolution(photograph, c) for c in candidates]) / 1e6
size = np.array([width * height for width, height in candidates]) / 1e6
names = [f"{width // 384} x {height // 384}" for width, height in candidates]
figure, axis = plt.subplots(figsize=(9, 3), layout="constrained")
axis.bar(names, kept, color="#4d9de0", label="kept: effective resolution")
axis.bar(names, size - kept, bottom=kept, color="#dddddd", label="wasted: the rest of it")
axis.axhline(0.48, color="#d62246", lw=1, ls="--", label="all that 800 x 600 pixels have")
axis.set_ylabel("million pixels")
axis.tick_params("x", rotation=60, labelsize=8)
axis.spines[["top", "right"]].set_visible(False)
axis.legend(frameon=False, fontsize=8);

# %% [markdown]
# Three candidates keep all of it: 3 x 2, and two larger ones, which keep no more and waste more. (2 x 2 is 768 pixels
# wide, just too narrow.) So the rule has two steps.
#
# ### Exercise 2: the released rule
# Take the candidate with the largest effective resolution. Among those that keep equally much, take the one that wastes
# least: its pixels less the effective ones. If even that is equal, the one that stands first in the list.
#
# The published list begins with the smallest candidates, so there the second step seems to be for nothing: the first of
# those that keep everything is the smallest anyway. In a list of another order it is not. And the last sentence is no
# pedantry: a square picture keeps and wastes the same in 1 x 2 as in 2 x 1. A model trained on one answer and asked with the
# other meets what it has never seen.

# %% [markdown] tags=["hints"]
# 1. A loop over candidates, remembering the best so far, replaced only by a *strictly* better one: then the first of equals
#    stays.
# 2. Or give each candidate a pair, `(kept, -wasted)`. Python compares pairs by their first number, and by the second only
#    if the first are equal.
# 3. `max(candidates, key=rank)` returns the first of equal ones. (`sorted(..., reverse=True)[0]` does so too;
#    `sorted(...)[-1]` returns the last.)

# %%
@grade("tiling.select_best_resolution")
def select_best_resolution(image: tuple[int, int], candidates) -> tuple[int, int]:
    """The candidate (width, height) that keeps most of the image's pixels; among equals, the one
    that wastes least; among equals, the first in the list."""
    ### BEGIN SOLUTION
    def rank(candidate):
        kept = effective_resolution(image, candidate)
        return kept, -(candidate[0] * candidate[1] - kept)

    return max(candidates, key=rank)
    ### END SOLUTION

# %% [markdown]
# ## The paper says something else
#
# The paper describes the choice in one sentence: of all candidates, take the one for which the padded area is smallest.
# That is another rule, and `tiling.least_padding` is ours of it. It never asks how large the picture is. A square picture
# leaves no padding in 1 x 1, so it gets one tile, whether it has a hundred pixels or a million.
#
# The released code follows the other rule, and the checkpoints were trained with it; so does minivl2, unless told otherwise.

# %%
for size in ((384, 384), (640, 480), (800, 600), (1000, 1000), (1920, 1080), (300, 4000)):
    by_rule = [grid_of(size, candidates, 384, rule) for rule in ("released", "paper")]
    print("{} x {}: released rule {} x {} tiles, paper's sentence {} x {}".format(
        *size, *by_rule[0], *by_rule[1]))

# %% [markdown]
# For pictures of all sizes up to 2,000 pixels, how many tiles each rule gives them. By the released rule small pictures
# get few tiles and large ones many. (The thin lines: there a large picture has just the shape of 3 x 2 or 2 x 3, and nine
# tiles would keep no more of it.) By the paper's, everything lies on rays: only the shape counts.

# %%
sides = range(40, 2001, 40)
figure, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained", sharey=True)
rules = {"the released rule": select_best_resolution, "the paper's sentence": least_padding}
for axis, (name, rule) in zip(axes, rules.items(), strict=True):
    chosen = [[rule((width, height), candidates) for width in sides] for height in sides]
    tiles = np.array([[w * h // 384**2 for w, h in row] for row in chosen])
    shown = axis.imshow(tiles, cmap="YlOrBr", vmin=0, vmax=9, extent=(20, 2020, 2020, 20))
    axis.set(title=name, xlabel="width of the picture", xticks=(500, 1000, 1500, 2000))
axes[0].set_ylabel("height")
figure.colorbar(shown, ax=axes, label="tiles", ticks=range(1, 10));

# %% [markdown]
# Is more tiles better? We can measure what is lost. Scale the page to each candidate and back to its size, and see how far
# the pixels are from the page. To the right is what the candidate costs (we count that below).

# %%
def lost(picture: Image.Image, frame: tuple[int, int]) -> float:
    """How far a pixel is from what it was, on the mean over pixels and colours, of 255."""
    return np.mean(ImageStat.Stat(ImageChops.difference(picture, as_seen_in(picture, frame))).mean)


sheet = page(1000, 1000)
figure, axis = plt.subplots(figsize=(8, 3.4), layout="constrained")
for width, height in candidates:
    grid = width // 384, height // 384
    point = count(grid, 14), lost(sheet, (width, height))
    axis.plot(*point, "o", color="#bbbbbb")
    if width >= height:         # the upright ones lose as much, and cost a little more
        axis.annotate(f"{grid[0]} x {grid[1]}", point, (-8, 9), textcoords="offset points",
                      fontsize=8, color="#555555")
for name, rule, colour in (("released rule", "released", "#d62246"),
                           ("paper's sentence", "paper", "#4d9de0")):
    grid = grid_of(sheet.size, candidates, 384, rule)
    point = count(grid, 14), lost(sheet, (384 * grid[0], 384 * grid[1]))
    axis.plot(*point, "o", ms=12, mfc="none", color=colour, mew=2,
              label=f"{name}: {grid[0]} x {grid[1]}")
axis.set(xlabel="visual tokens", ylabel="lost per pixel, of 255", ylim=(0, 29),
         title="a square page of 1000 x 1000")
axis.spines[["top", "right"]].set_visible(False)
axis.legend(frameon=False, fontsize=9);

# %% [markdown]
# The released rule picks the lowest point. The paper's picks the leftmost, and most of the print is gone. Between them there
# is 2 x 2, for half the tokens: neither rule would ever think of it for this page, because neither weighs detail against cost.
#
# ## Two views
#
# A tile of a cut picture shows a piece of an arm, and what the arm belongs to is in another tile. So the picture is seen twice.
# The **global view** is the whole of it in one tile; the **local view** fills the chosen resolution, and is cut into
# tiles. Both are padded in the middle of the normalisation, grey 127, which becomes (nearly) zero:
#
# $$x = (\mathrm{pixel} / 255 - 0.5) / 0.5 \quad \text{lies between} -1 \text{ and } 1.$$
#
# `tiling.fit` scales and pads, `tiling.normalised` makes the tensor. What is left is to cut.
#
# ### Exercise 3: cutting
# The local view is one tensor (3, h·t, w·t), and its tiles are wanted in reading order, (w·h, 3, t, t). With two loops it is
# plain:
#
# ```python
# for row in range(h):
#     for column in range(w):
#         tiles.append(view[:, row * t : (row + 1) * t, column * t : (column + 1) * t])
# ```
#
# Hand that in, if you like, and then do it without loops. You will need the same move in lesson 3, twice.
# A warning: `view.reshape(w * h, 3, t, t)` has the right shape, raises no error, and makes strips of porridge.

# %% [markdown] tags=["hints"]
# 1. First split the axes, then order them, then join them. `view.unflatten(2, (w, t))` makes the last axis two: which tile
#    across, and which pixel in it. The larger unit comes first.
# 2. After both splits you have (3, h, t, w, t). Tiles are numbered by h and then w, so those two must come first, beside
#    each other: `permute(1, 3, 0, 2, 4)`.
# 3. `.flatten(0, 1)` joins h and w to one axis of w·h.

# %%
@grade("tiling.split")
def split(view: Tensor, grid: tuple[int, int]) -> Tensor:
    """view (3, h*t, w*t), grid (w, h) -> (w*h, 3, t, t): its tiles in reading order, row by row."""
    ### BEGIN SOLUTION
    w, h = grid
    tiles = view.unflatten(2, (w, -1)).unflatten(1, (h, -1))        # (3, h, t, w, t)
    return tiles.permute(1, 3, 0, 2, 4).flatten(0, 1)
    ### END SOLUTION

# %% [markdown]
# ### Exercise 4: from a picture to what the tower is given
# The global view first, then the local tiles. If the picture has one tile, global and local view are the same pixels, and both
# are handed on all the same: the decoder expects two.

# %% [markdown] tags=["hints"]
# 1. `fit(image, (tile, tile), grey)` is the global view as an image; `normalised(that, mean, std)` makes it a tensor
#    (3, tile, tile).
# 2. The local view: the same two calls with `(w * tile, h * tile)`, then `split(..., grid)`.
# 3. The grey is one number per colour: `tuple(int(255 * m) for m in mean)`. `torch.cat((whole[None], tiles))`.

# %%
@grade("tiling.cut")
def cut(image: Image.Image, grid: tuple[int, int], tile: int, mean, std) -> Tensor:
    """RGB image -> (1 + w*h, 3, tile, tile): the global view, then the tiles in reading order.

    grid is (w, h). mean and std have one number per colour. Both views are padded with the colour
    of the mean, int(255 * mean): 0.5 gives 127, rounded down, as in the published processor.
    """
    ### BEGIN SOLUTION
    w, h = grid
    grey = tuple(int(255 * m) for m in mean)
    whole = normalised(fit(image, (tile, tile), grey), mean, std)
    local = normalised(fit(image, (w * tile, h * tile), grey), mean, std)
    return torch.cat((whole[None], split(local, grid)))
    ### END SOLUTION

# %% [markdown]
# Seven squares, for a picture of the toy world. (Its pictures are small, so its tiles are 56 pixels: the toy model of
# lesson 8 learns on these.)

# %%
scene = toyworld.draw("lesson 1", "scenes", (3, 2)).images[0]
toy_candidates = paper_candidates(tile=56)
grid = grid_of(scene.size, toy_candidates, 56)
views = cut(scene, grid, 56, (0.5,) * 3, (0.5,) * 3)
figure, axes = plt.subplots(1, 8, figsize=(10, 1.7), layout="constrained",
                            width_ratios=[2.2] + [1] * 7)
axes[0].imshow(scene)
axes[0].set_title(f"{scene.width} x {scene.height}", fontsize=9)
for n, (axis, view) in enumerate(zip(axes[1:], views, strict=True)):
    axis.imshow(view.permute(1, 2, 0) / 2 + 0.5)
    axis.set_title(f"tile {n}" if n else "global", fontsize=9)
for axis in axes:
    axis.set(xticks=[], yticks=[])

# %% [markdown]
# ## What a picture costs
#
# To the decoder a picture is a stretch of tokens among those of the text. Lesson 3 makes them: each tile becomes 14 x 14
# vectors; the tiles of the local view are laid side by side, and read row by row; behind each row stands a newline token,
# and one separator between the two views. That is enough to count them:
#
# ```
# global view     14 rows of 14 and a newline
# separator       1
# local view      14 h rows of 14 w and a newline
# ```
#
# ### Exercise 5: counting

# %% [markdown] tags=["hints"]
# 1. For one tile, side 14: 14 rows of 15, one separator, 14 rows of 15: 421.
# 2. The newlines of the local view count by rows, and rows run across all w tiles: 14 h of them, not 14 w h.

# %%
@grade("visual_tokens.count")
def count(grid: tuple[int, int], side: int) -> int:
    """How many tokens a picture costs: grid (w, h) tiles, `side` tokens along each tile."""
    ### BEGIN SOLUTION
    w, h = grid
    return side * (side + 1) + 1 + side * h * (side * w + 1)
    ### END SOLUTION

# %%
figure, axis = plt.subplots(figsize=(9, 2.8), layout="constrained")
grids = [(width // 384, height // 384) for width, height in candidates]
costs = [count(grid, 14) for grid in grids]
axis.bar(names, costs, color="#f4a261")
axis.bar(names, [1 + 14 + 14 * h for w, h in grids], color="#555555",
         label="newlines and separator")
axis.set_ylabel("visual tokens")
axis.tick_params("x", rotation=60, labelsize=8)
axis.spines[["top", "right"]].set_visible(False)
axis.legend(frameon=False, fontsize=8)
print(f"one tile costs {min(costs)} tokens, the dearest candidate {max(costs)}; 4096 fit at all")

# %% [markdown]
# A column of nine tiles is dearer than a row of nine: the same squares, and more rows to end. Two such columns would be
# 4,202 tokens, more than fit. So the processor tiles one picture, or two; when three or more come at once, each is seen
# in its global view and one tile, 421 tokens.
#
# ## Play
#
# If you run this notebook yourself there are three menus below: which picture, how it is cropped, and the rule; and a slider
# for its size in percent. To see a picture of yours cut, take the comment sign away and name it. (Where nothing runs, you see
# one plain picture.)

# %%
pictures = {"a page": page(1000, 700), "a scene": scene.resize((960, 640), Image.NEAREST)}
# pictures["mine"] = open_image("my_photograph.jpg")

crops = {"as it is": None, "square": 1, "wide, 4 : 1": 4, "tall, 1 : 4": 1 / 4}


def tiles_of(picture: str, crop: str, percent: int, rule: str):
    image = pictures[picture]
    shape = crops[crop] or image.width / image.height
    width, height = min(image.width, image.height * shape), min(image.height, image.width / shape)
    left, top = (image.width - width) / 2, (image.height - height) / 2
    image = image.crop([round(edge) for edge in (left, top, left + width, top + height)])
    image = image.resize([max(1, side * percent // 100) for side in image.size])
    return figures.draw_tiling(image, candidates, rule)


figures.Playable(tiles_of, picture=("a page", list(pictures)), crop=("as it is", list(crops)),
                 percent=(100, range(20, 201, 10)), rule=("released", ["released", "paper"]))

# %% [markdown]
# Try to find a size at which the released rule chooses 2 x 2 for the page; and a crop and a size at which both rules agree.
#
# ## Before the tiles: the picture its author saw
#
# One thing comes before everything, and is the commonest way to feed a good model rubbish. A file is not yet a picture.
# Photographs taken with a phone on its side are stored lying down, with a note "turn me" in their EXIF data. Drawings have
# transparent parts, and what Pillow has stored beneath them is often black. Scans may have 16 bits. The colour conversion
# `Image.open(file).convert("RGB")`, which nearly everybody writes, gets all three wrong, and without any error.
# `images.open_image` gets them right:

# %%
def stored(picture: Image.Image, kind: str, **options) -> io.BytesIO:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file


lying = Image.Exif()
lying[0x0112] = 6               # the note: "turn me clockwise by a quarter"
small = scene.resize((240, 160), Image.NEAREST)
drawing = Image.new("RGBA", (240, 160))
ImageDraw.Draw(drawing).text((20, 55), "black on nothing", "black", ImageFont.load_default(size=26))
ramp = Image.fromarray(np.linspace(0, 65535, 240, dtype=np.uint16)[None].repeat(160, 0))
files = {
    "a photograph, held on its side": stored(small.transpose(Image.ROTATE_90), "JPEG", exif=lying),
    "a transparent drawing": stored(drawing, "PNG"),
    "16 bits, from black to white": stored(ramp, "PNG"),
}
figure, axes = plt.subplots(2, 3, figsize=(9, 4.6), layout="constrained")
for (above, below), (name, file) in zip(axes.T, files.items(), strict=True):
    above.imshow(Image.open(file).convert("RGB"))
    below.imshow(open_image(file))
    above.set_title(name, fontsize=10)
for axis in axes.flat:
    axis.set(xticks=[], yticks=[])
axes[0, 0].set_ylabel('.convert("RGB")')
axes[1, 0].set_ylabel("open_image");

# %% [markdown]
# The module is short, and most of it is about files that are broken, too large, or no pictures: read `minivl2/images.py`
# beside `tests/test_images.py`.
#
# ## What you have now
# The way from any file to tensors of one shape: (1 + w·h, 3, 384, 384). For as long as this notebook runs, minivl2 cuts
# pictures with your functions. The next lesson looks at one of those squares.
