# %% [markdown]
# # 3. Squeezing
#
# *35 minutes. Modules: `minivl2/projector.py`, `minivl2/visual_tokens.py` and `minivl2/places.py`. You need: lessons 1 and 2
# say what tiles and patches are.*
#
# The vision tower has left us 729 vectors for each tile, up to 7,290 for a picture. A decoder's work grows with every token
# it reads, and so does its memory; a page of text is perhaps 500. So the vectors of a tile are squeezed to 196, put into the
# decoder's width, and laid out in a line. Each of these three steps is a few lines of code with one decision that nobody
# can see in the shapes.
#
# **In the paper:** [DeepSeek-VL2](https://arxiv.org/abs/2412.10302), section 2, "Vision-Language Adaptor", and figure 3.
#
# **At the end you will have written** the 2 x 2 pixel shuffle, the projector, the layout of visual tokens, and the way back
# from a token to its pixels.

# %%
import matplotlib.pyplot as plt
import torch
from matplotlib.patches import Rectangle
from torch import Tensor, nn
from torch.nn import functional as F

from minivl2 import figures, toyworld
from minivl2.config import ProjectorConfig, paper_candidates
from minivl2.grading import grade
from minivl2.places import places
from minivl2.tiling import cut, grid_of
from minivl2.visual_tokens import count

torch.manual_seed(0)
torch.set_num_threads(1)        # tensors this small lose by sharing their work
figures.where("projector", "tokens")

# %% [markdown]
# ## Four become one
#
# The obvious way to have fewer vectors is to average neighbours. But a mean forgets who was where: "red at the left, blue at
# the right" and the opposite have the same mean. The **pixel shuffle** averages nothing. It lays the vectors of a 2 x 2
# block behind each other and calls that one vector, four times as wide. Everything is still there; only the line has become
# shorter.
#
# A test of that: in blocks of four random vectors, one of the four is marked, by a direction added to it. Which one? A
# linear reader, fitted by least squares, has to say it from the mean, or from all four behind each other.

# %%
width, n = 32, 4000
mark, blocks = torch.randn(width), torch.randn(n, 4, width)
which = torch.randint(4, (n,))
blocks[torch.arange(n), which] += mark
readable = {"mean of the four": blocks.mean(1), "all four behind each other": blocks.flatten(1)}
for name, x in readable.items():
    x = F.pad(x, (0, 1), value=1.0)                            # a bias
    reader = torch.linalg.lstsq(x[:2000], F.one_hot(which[:2000], 4).float()).solution
    right = ((x[2000:] @ reader).argmax(1) == which[2000:]).float().mean()
    print(f"{name}: {right:.0%} right (a guess: 25%)")

# %% [markdown]
# ### The odd edge
# 27 is odd. At the right and at the bottom a row of zeros is added, so that 28 x 28 patches make 14 x 14 blocks. The last
# block of a row has two real patches and two of zeros; the one in the corner has one.
#
# ### The order of the numbers
# The new vector has $4W$ numbers, and there are two natural ways to order them. For a block of patches
# $\begin{smallmatrix}a & b\\ c & d\end{smallmatrix}$ with two channels each:
#
# | | | |
# |---|---|---|
# | channels innermost | a0 a1 b0 b1 c0 c1 d0 d1 | patch after patch |
# | **channels outermost** | a0 b0 c0 d0 a1 b1 c1 d1 | channel after channel: DeepSeek-VL2's |
#
# Neither is better. But the matrix behind was trained on one of them. With the other every shape fits, no error is raised, and
# the model is blind. We will see how blind.
#
# ### Exercise 1: the pixel shuffle
# As a loop it is five loops deep (`tests/reference.py` has it so). The move of lesson 1 does it at once: split axes, order
# them, join them. The cell is graded when you run it, by minivl2's own tests. Until it passes, the lesson goes on with ours.

# %% [markdown] tags=["hints"]
# 1. Make it an image first: `x.transpose(1, 2).unflatten(2, (side, side))` is (M, W, side, side). `F.pad(image, (0, pad, 0, pad))`
#    adds zeros at the right and at the bottom; `-side % r` says how many.
# 2. `.unflatten(3, (-1, r)).unflatten(2, (-1, r))` is (M, W, rows, r, columns, r).
# 3. Which block comes first: rows, columns. Then, within the vector: W, then the two r. So `.permute(0, 2, 4, 1, 3, 5)`, and
#    join the last three, and the two before.
# 4. (`F.unfold(image, r, stride=r)` does all of it, in just this order: it is what the published code calls.)

# %%
@grade("projector.pixel_shuffle")
def pixel_shuffle(x: Tensor, r: int = 2) -> Tensor:
    """x (M, P, W), the patches of square tiles -> (M, P', W*r*r), one vector for each r x r block.

    A side that r does not divide is padded with zeros at the right and at the bottom. Blocks are in
    reading order. In a vector, channels are outermost: the r*r numbers of channel 0 first, in
    reading order, then those of channel 1.
    """
    ### BEGIN SOLUTION
    side = round(x.shape[1] ** 0.5)
    pad = -side % r
    image = F.pad(x.transpose(1, 2).unflatten(2, (side, side)), (0, pad, 0, pad))
    blocks = image.unflatten(3, (-1, r)).unflatten(2, (-1, r))      # (M, W, rows, r, columns, r)
    return blocks.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
    ### END SOLUTION

# %% [markdown]
# A tile of 3 x 3 patches with one channel, numbered 1 to 9, and what becomes of it:

# %%
before = torch.arange(1, 10).view(1, 9, 1)
after = pixel_shuffle(before)
figure, axes = plt.subplots(1, 2, figsize=(7, 2.6), layout="constrained", width_ratios=(1, 1.5))
for i, number in enumerate(before.flatten().tolist()):
    x, y = i % 3, i // 3
    axes[0].add_patch(Rectangle((x, y), 1, 1, fc=plt.cm.Set3(x // 2 + y // 2 * 2), ec="white"))
    axes[0].text(x + 0.5, y + 0.5, number, ha="center", va="center")
axes[0].add_patch(Rectangle((0, 0), 4, 4, fill=False, ec="#999999", ls="--"))
axes[0].set(xlim=(-0.1, 4.1), ylim=(4.1, -0.1), aspect="equal", title="patches; dashed: with zeros")
for row, vector in enumerate(after[0].tolist()):
    for x, number in enumerate(vector):
        axes[1].add_patch(Rectangle((x, row), 1, 1, fc=plt.cm.Set3(row), ec="white"))
        axes[1].text(x + 0.5, row + 0.5, number, ha="center", va="center")
axes[1].set(xlim=(-0.1, 4.1), ylim=(4.1, -0.1), aspect="equal",
            title="four vectors, four times as wide")
for axis in axes:
    axis.axis("off")

# %% [markdown]
# ## Into the decoder's width
#
# Then an MLP, the **projector**, makes of each wide vector one of the decoder's width $D$ (1280, 2048 or 2560):
#
# $$\mathrm{project}(x) = W_2\ \mathrm{gelu}(W_1 x + b_1) + b_2, \qquad W_1: 4 \cdot 1152 \to D, \quad W_2: D \to D$$
#
# It is the only part that was made for this marriage and started from nothing: in the first stage of training, tower and
# decoder both know their trade already, and little else but this has to be learned. GELU is the exact one here.
#
# ### Exercise 2: the projector
# `cfg.depth` says how many linear layers there are (published: 2), with a GELU between each and the next. All but the last give
# `cfg.n_embed * cfg.mlp_ratio` numbers. They live in one `nn.Sequential` called `layers`, so that their names are those of the
# checkpoints: `layers.0`, `layers.2`.

# %% [markdown] tags=["hints"]
# 1. What goes into the first is `cfg.input_dim * cfg.downsample_ratio**2` wide.
# 2. A list of widths helps: input, then `depth - 1` times the inner one, then `cfg.n_embed`. Each linear layer leads from one to
#    the next; put an `nn.GELU()` before each but the first.
# 3. `forward`: `self.layers(pixel_shuffle(patches, ratio))`. Keep the ratio in `__init__`.

# %%
@grade("projector.Projector")
class Projector(nn.Module):
    def __init__(self, cfg: ProjectorConfig):
        """Makes self.layers: cfg.depth linear layers (0, 2, 4, ...) with exact GELUs between them.

        input_dim * downsample_ratio**2 -> n_embed * mlp_ratio -> ... -> n_embed
        """
        ### BEGIN SOLUTION
        super().__init__()
        self.ratio = cfg.downsample_ratio
        inner = [cfg.n_embed * cfg.mlp_ratio] * (cfg.depth - 1)
        widths = [cfg.input_dim * self.ratio**2, *inner, cfg.n_embed]
        layers = []
        for width, following in zip(widths, widths[1:], strict=False):
            layers += [nn.GELU(), nn.Linear(width, following)]
        self.layers = nn.Sequential(*layers[1:])
        ### END SOLUTION

    def forward(self, patches: Tensor) -> Tensor:
        """patches (M, P, input_dim) -> (M, P', n_embed): shuffled by the ratio, then layers."""
        ### BEGIN SOLUTION
        return self.layers(pixel_shuffle(patches, self.ratio))
        ### END SOLUTION

# %% [markdown]
# Now for the blindness. One projector, the same patches, shuffled in the right order and in the other. How alike are the
# vectors that come out? (1 is the same direction, 0 is nothing in common.) Then we put the columns of its first matrix into
# the other order too, and all is well again: the order is arbitrary, but there is only one for each checkpoint.

# %%
projector = Projector(ProjectorConfig(input_dim=64, n_embed=128))
patches = torch.randn(1, 36, 64)
channels_outermost = pixel_shuffle(patches)
channels_innermost = channels_outermost.unflatten(2, (64, 4)).mT.flatten(2)
with torch.no_grad():
    right = projector.layers(channels_outermost)
    wrong = projector.layers(channels_innermost)
    first = projector.layers[0]
    first.weight.copy_(first.weight.unflatten(1, (64, 4)).mT.flatten(1))
    mended = projector.layers(channels_innermost)
for name, out in (("the other order", wrong), ("the other order, matrix too", mended)):
    centred = [x - x.mean((0, 1)) for x in (right, out)]
    print(f"{name}: {F.cosine_similarity(*centred, dim=-1).mean():.2f}")

# %% [markdown]
# ## A plane in a line
#
# The decoder reads a line. What is in the plane *below* a token comes many tokens later in the line, and how many depends on
# the grid. Worse, the line does not say what the grid was. Four tiles in a row, in a column, or two by two: without more,
# all give 4 · 196 = 784 local vectors. So DeepSeek-VL2 adds two learned vectors that stand for no pixels: a **newline** after
# every row, and a **separator** between the global and the local view.
#
# ```
# global view, 14 rows of (14 + newline)  |  separator  |  local view, 14 h rows of (14 w + newline)
# ```
#
# Small, with 2 x 2 tokens a tile, for the three grids of four tiles:

# %%
figure, axes = plt.subplots(1, 3, figsize=(9, 4), layout="constrained", width_ratios=(1.5, 1, 0.8))
for axis, grid in zip(axes, ((4, 1), (2, 2), (1, 4)), strict=True):
    figures.draw_tokens(axis, grid, 2)
    axis.set_title(f"{grid[0]} x {grid[1]} tiles: {count(grid, 2)} tokens", fontsize=10)
    for text in axis.texts:
        text.set_visible(False)
print("with 14 a side:", {f"{w} x {h}": count((w, h), 14) for w, h in ((4, 1), (2, 2), (1, 4))})

# %% [markdown]
# (Orange: the global view. Blue: the local view. Grey: newlines. Red: the separator.)
#
# One decision is hidden here, too. The local view could be read tile by tile, each with its own newlines. It is not: the tiles
# are first laid side by side, and a row runs across all of them. So a line of print that was cut by the edge of a tile is whole
# again, and in the order in which one reads it.
#
# ### Exercise 3: the layout

# %% [markdown] tags=["hints"]
# 1. `tiles.unflatten(1, (side, side))` makes planes: (1 + w*h, side, side, D). The first is the global view.
# 2. The mosaic of the others is the cutting of lesson 1 backwards: `.unflatten(0, (h, w))` is (h, w, side, side, D);
#    w must come beside the columns of a tile: `.transpose(1, 2)`. Then join: (h*side, w*side, D).
# 3. Write a small function for "row by row, with a newline after each": `newline.expand(rows, 1, -1)` is one more column for
#    the plane; `torch.cat((plane, ends), dim=1).flatten(0, 1)`. Use it twice.

# %%
@grade("visual_tokens.lay_out")
def lay_out(tiles: Tensor, grid: tuple[int, int], newline: Tensor, separator: Tensor) -> Tensor:
    """tiles (1 + w*h, side*side, D) -> (tokens, D): the line that the decoder reads.

    tiles: the global view first, then the local ones in reading order. grid is (w, h).
    newline (D,) stands after every row of both views, separator (D,) once between the views.
    """
    ### BEGIN SOLUTION
    w, h = grid
    side = round(tiles.shape[1] ** 0.5)

    def read(plane: Tensor) -> Tensor:
        ends = newline.expand(len(plane), 1, -1)
        return torch.cat((plane, ends), dim=1).flatten(0, 1)

    plane = tiles.unflatten(1, (side, side))
    mosaic = plane[1:].unflatten(0, (h, w)).transpose(1, 2).flatten(2, 3).flatten(0, 1)
    return torch.cat((read(plane[0]), separator[None], read(mosaic)))
    ### END SOLUTION

# %% [markdown]
# The same four tokens a tile, as numbers: tile 0 is the global view, the local tiles 1 and 2 stand side by side, 31 and so on
# are the tokens of tile 3 below them. `|` is a newline, `/` the separator.

# %%
line = lay_out(torch.tensor([[10.0 * m + p for p in (1, 2, 3, 4)] for m in range(5)])[..., None],
               (2, 2), torch.tensor([-1.0]), torch.tensor([-2.0]))
signs = {-1: "|", -2: "/"}
print(" ".join(signs.get(int(n), f"{int(n):02}") for n in line.flatten()))

# %% [markdown]
# ## And back
#
# The model never asks where a token came from. We do, whenever we want to see what it looks at: the X-ray page colours the
# picture by attention. The way back is all of the way so far, backwards: a token is 2 x 2 patches, a patch lies in a view,
# and in the view lies the picture, scaled and padded (lesson 1). The last of these is the one with decisions in it.
#
# ### Exercise 4: where the picture lies
# The picture is scaled, up or down, until it just fits into the frame, its shape kept, and put into the middle. One side fills
# the frame exactly; the other is rounded to whole pixels. What is left is divided by two and rounded, as Pillow does: with
# Python's `round`.

# %% [markdown] tags=["hints"]
# 1. Compare shapes without dividing: the picture is wider than the frame if `width * H > height * W`.
# 2. If it is, it is W wide, and `round(height / width * W)` high; if it is taller, the other way round; if neither, it fills
#    the frame.
# 3. `left = round((frame_width - scaled_width) * 0.5)`, and `top` likewise.

# %%
@grade("places.fitted")
def fitted(picture: tuple[int, int], frame: tuple[int, int]) -> tuple[int, int, int, int]:
    """Left, top, width and height, in pixels, of a picture scaled to fit into a frame, centred.

    picture and frame are (width, height).
    """
    ### BEGIN SOLUTION
    (width, height), (W, H) = picture, frame
    if width * H > height * W:
        H = round(height / width * W)
    elif width * H < height * W:
        W = round(width / height * H)
    return round((frame[0] - W) * 0.5), round((frame[1] - H) * 0.5), W, H
    ### END SOLUTION

# %% [markdown]
# With it `places.places` finds the pixels of every token. Here are three visual tokens of a picture of the toy world, in
# the view that the tower saw, and back in the picture. In the toy a tile is 56 pixels and a patch 8, so 7 x 7 patches become
# 4 x 4 tokens. The last token of a row has only one column of patches: the odd edge.

# %%
sample = toyworld.draw("lesson 3", "scenes", (2, 1))
picture = sample.images[0]
grid = grid_of(picture.size, paper_candidates(tile=56), 56)
half = (0.5,) * 3
views = figures.views_of(cut(picture, grid, 56, half, half), grid, half, half)
found = places(picture.size, grid, tile=56, patch=8)
shown = {6: "#d62246", 32: "#3bb273", 42: "#4d9de0"}           # numbers in the line, and colours
figure, axes = plt.subplots(1, 3, figsize=(9.5, 2.6), layout="constrained", width_ratios=(1, 2, 2))
titles = ("global view", "local view, 2 x 1 tiles",
          f"the picture, {picture.width} x {picture.height}")
for axis, image, title in zip(axes, (*views, picture), titles, strict=True):
    axis.imshow(image)
    axis.set_title(title, fontsize=10)
    axis.set(xticks=[], yticks=[])
for number, colour in shown.items():
    place = found[number]
    for axis, (left, top, right, lower) in ((axes[place.view], place.in_view),
                                            (axes[2], place.in_picture)):
        axis.add_patch(Rectangle((left - 0.5, top - 0.5), right - left, lower - top,
                                 fill=False, ec=colour, lw=2.5))
for number in shown:
    left, top, right, lower = found[number].in_view
    print(f"token {number} of {len(found)}: {right - left} x {lower - top} pixels of its view")

# %% [markdown]
# ## What you have now
# `minivl2/projector.py`, `minivl2/visual_tokens.py` and the heart of `minivl2/places.py`. A picture has become a line of vectors of
# the decoder's width, and from here on the model treats them like words: `model.py` writes them into the places of the
# `<image>` tokens of the text. The decoder, from the next lesson on, cannot tell the difference.
