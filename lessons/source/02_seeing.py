# %% [markdown]
# # 2. Seeing
#
# *35 minutes. Module: `minivl2/vision.py`. You need: tensors in PyTorch; lesson 1 says where tiles come from.*
#
# A tile is 384 x 384 pixels. What the decoder can read is a line of vectors. Between them stands the **vision tower**, a
# transformer that turns a tile into 729 vectors, one for each small square of it. DeepSeek-VL2 took a tower that had
# learned to see before: SigLIP, trained on billions of pictures with their captions. Its architecture is the vision
# transformer (ViT), and every piece of it will come again in the decoder.
#
# **In the paper:** [DeepSeek-VL2](https://arxiv.org/abs/2412.10302), section 2, "Vision Encoder"; the equations are in
# [ViT](https://arxiv.org/abs/2010.11929) (Eqs. 1-4), the training in [SigLIP](https://arxiv.org/abs/2303.15343).
#
# **At the end you will have written** the MLP, attention, the block and the tower; and you will have seen what each is needed
# for, and where a trained tower looks.

# %%
import matplotlib.pyplot as plt
import torch
from matplotlib.patches import Rectangle
from torch import Tensor, nn
from torch.nn import functional as F

from minivl2 import figures, toyworld
from minivl2.config import VisionConfig
from minivl2.grading import grade
from minivl2.vision import Block, SelfAttention, VisionTower

torch.manual_seed(0)
torch.set_num_threads(1)        # tensors this small lose by sharing their work
figures.where("vision")

# %% [markdown]
# ## Patches
#
# Attention compares everything with everything. For 147,456 pixels that would be 22 billion comparisons, and a pixel alone
# says little anyway. So the tile is cut once more, into **patches** of 14 x 14 pixels. 27 of them fit along a side (378
# pixels; the last 6, at the right and at the bottom, fill no patch, and no one ever sees them). That makes $P = 27^2 = 729$.

# %%
vision = VisionConfig()
scene = toyworld.draw("lesson 2", "scenes", (2, 2)).images[0].resize((384, 384))
figure, axis = plt.subplots(figsize=(4.6, 4.6), layout="constrained")
axis.imshow(scene)
for edge in range(0, 379, 14):
    axis.plot((-0.5, 377.5), (edge - 0.5, edge - 0.5), color="white", lw=0.5)
    axis.plot((edge - 0.5, edge - 0.5), (-0.5, 377.5), color="white", lw=0.5)
axis.add_patch(Rectangle((377.5, -0.5), 6, 384, color="#d62246", alpha=0.7))
axis.add_patch(Rectangle((-0.5, 377.5), 384, 6, color="#d62246", alpha=0.7))
axis.set(xticks=[0, 378], yticks=[0, 378],
         title=f"{vision.grid} x {vision.grid} patches; in red what nobody sees");

# %% [markdown]
# A patch is $3 \cdot 14 \cdot 14 = 588$ numbers. One matrix makes a vector of width $W = 1152$ of them, the same matrix for
# every patch. In a loop that reads as it is said. In every library it is written as a convolution, which is the
# same thing if its steps are as long as its window is wide:

# %%
convolution = nn.Conv2d(3, 10, kernel_size=14, stride=14)      # width 10, so that it is quick
tile = torch.randn(3, 384, 384)
vectors = []
with torch.no_grad():
    for row in range(27):
        for column in range(27):
            patch = tile[:, 14 * row : 14 * (row + 1), 14 * column : 14 * (column + 1)]
            vectors.append(convolution.weight.flatten(1) @ patch.flatten() + convolution.bias)
    by_convolution = convolution(tile[None])                   # (1, 10, 27, 27)
torch.testing.assert_close(by_convolution[0].flatten(1).T, torch.stack(vectors))
print("the same:", tuple(by_convolution.shape), "and", len(vectors), "vectors")

# %% [markdown]
# Look at the two shapes. The convolution answers as an image with $W$ channels; a transformer wants a list of $P$ vectors. The
# way from one to the other (`flatten`, `T`) is where the order of the patches is decided, and where a `reshape` would
# raise no error and mix up everything.
#
# ## The MLP
#
# A transformer's block has two halves. In one, patches look at each other; in the other, each thinks by itself, in an MLP:
#
# $$\mathrm{MLP}(x) = W_2\ \mathrm{gelu}(W_1 x + b_1) + b_2$$
#
# GELU is a smooth ReLU, $x$ times the probability that a normal number is below $x$. There are two in use: the exact one, and
# an approximation with tanh from times when the exact one was slow. They differ by 0.0005 at most. SigLIP learned
# with the approximation, so that is what its weights fit. (The projector, in lesson 3, has the exact one.)

# %%
x = torch.linspace(-4, 4, 400)
figure, axes = plt.subplots(1, 2, figsize=(8, 2.4), layout="constrained")
axes[0].plot(x, F.relu(x), color="#cccccc", label="ReLU")
axes[0].plot(x, F.gelu(x), color="#4d9de0", label="GELU")
axes[0].legend(frameon=False)
axes[1].plot(x, F.gelu(x, approximate="tanh") - F.gelu(x), color="#d62246")
axes[1].set(title="tanh GELU less exact GELU", ylim=(-6e-4, 6e-4))
for axis in axes:
    axis.spines[["top", "right"]].set_visible(False)

# %% [markdown]
# ### Exercise 1: the MLP
# The inner width is `cfg.mlp_width`: 4304, an odd number that comes from the search that found this architecture. The cell is
# graded when you run it, by minivl2's own tests. Until it passes, the lesson goes on with ours.

# %% [markdown] tags=["hints"]
# 1. Two `nn.Linear`, with biases, under the names `fc1` (W to mlp_width) and `fc2` (back). `super().__init__()` first.
# 2. `F.gelu(..., approximate="tanh")` between them, and nothing behind the second. The residual sum is the block's business.

# %%
@grade("vision.MLP")
class MLP(nn.Module):
    def __init__(self, cfg: VisionConfig):
        """Makes fc1 (cfg.width -> cfg.mlp_width) and fc2 (back), both with biases."""
        ### BEGIN SOLUTION
        super().__init__()
        self.fc1 = nn.Linear(cfg.width, cfg.mlp_width)
        self.fc2 = nn.Linear(cfg.mlp_width, cfg.width)
        ### END SOLUTION

    def forward(self, x: Tensor) -> Tensor:
        """x (..., W) -> (..., W): fc2(gelu(fc1(x))), with the tanh GELU."""
        ### BEGIN SOLUTION
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
        ### END SOLUTION

# %% [markdown]
# ## Attention
#
# A patch in the middle of a red square sees nothing but red. Whether it belongs to a square, a star or a stop sign, only
# other patches can tell. So each patch asks. It makes a **query** $q$, what it looks for; every patch makes a **key** $k$,
# what it has to offer, and a **value** $v$, what it would say. Where query and key match, their dot product is large, and
# the value counts much:
#
# $$\mathrm{out}_i = \sum_j a_{ij}\, v_j, \qquad a_{ij} = \mathrm{softmax}_j\left(\frac{q_i \cdot k_j}{\sqrt d}\right)$$
#
# The weights $a_{ij}$ of a patch are positive and add up to 1. The root keeps the dot products from growing with
# the width $d$: softmax of large numbers is all or nothing, and then nothing is learned.
#
# One such question at a time is little. So the width is divided among $H$ **heads** (16 of $d = 72$), each with queries, keys
# and values of its own; their answers are joined again, and one more matrix, `proj`, mixes them.
#
# Nothing is masked: a picture has no future. (The decoder of lesson 4 is the same with a mask.)
#
# ### Exercise 2: attention
# All three come from one matrix, `qkv`, and the checkpoint has an opinion about their order: of its $3W$ outputs the first $W$
# are the queries, all heads one behind the other; then come the keys; then the values. For the formula itself write the
# three lines, or use `attend(q, k, v)`, which wants (M, H, P, d). Lesson 4 is about that function.

# %% [markdown] tags=["hints"]
# 1. `self.qkv(x).unflatten(-1, (3, self.heads, -1))` is (M, P, 3, H, d): the largest unit first.
# 2. `.permute(2, 0, 3, 1, 4)` makes it (3, M, H, P, d), which unpacks: `q, k, v = ...`.
# 3. `(q @ k.mT) * d**-0.5`, `.softmax(-1)`, `@ v`: the softmax goes over the keys, the last axis. `d` is the width of one head.
# 4. (M, H, P, d) back to (M, P, W): first `transpose(1, 2)`, then `flatten(2)`. Then `self.proj`.

# %%
@grade("vision.SelfAttention.forward")
def forward(self: SelfAttention, x: Tensor) -> Tensor:
    """x (M, P, W) -> (M, P, W): every patch looks at every patch of its tile.

    self.qkv makes queries, keys and values, in this order (W -> 3W), self.heads is H,
    self.proj (W -> W) mixes the joined heads. Scores are scaled by the root of the width of a head.
    """
    ### BEGIN SOLUTION
    q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
    weights = ((q @ k.mT) * q.shape[-1] ** -0.5).softmax(-1)                # (M, H, P, P)
    return self.proj((weights @ v).transpose(1, 2).flatten(2))
    ### END SOLUTION

# %% [markdown]
# ## The block
#
# Both halves get two things more. A **LayerNorm** before each brings every vector to the same length and middle, so that what
# comes in is never too loud. And each half only *adds* to what is there, so a straight way leads from the patches to the end
# (the residual stream):
#
# $$x \leftarrow x + \mathrm{attn}(\mathrm{norm}_1(x)), \qquad x \leftarrow x + \mathrm{mlp}(\mathrm{norm}_2(x))$$
#
# Ours has one thing that the paper does not mention. The last matrix of each half starts as zeros: a new block changes nothing
# at all, and learns by and by what to add.
#
# ### Exercise 3: the block

# %% [markdown] tags=["hints"]
# 1. What goes into attention is `self.norm1(x)`. What it is added to is `x`, without the norm.
# 2. The second line starts from the result of the first.

# %%
@grade("vision.Block.forward")
def forward(self: Block, x: Tensor) -> Tensor:
    """x (M, P, W) -> (M, P, W). It has self.norm1, self.attn, self.norm2 and self.mlp."""
    ### BEGIN SOLUTION
    x = x + self.attn(self.norm1(x))
    return x + self.mlp(self.norm2(x))
    ### END SOLUTION

# %% [markdown]
# ## Positions
#
# Something is missing. Attention is a sum over patches, and a sum has no order. Put the patches of a tile in another order, and
# each gets the same vector as before: to the tower it is the same tile. That can be checked with a tower that is
# ours in all but this, its positions set to zero.

# %%
def shuffled(tiles: Tensor, order: Tensor, size: int) -> Tensor:
    """The same patches, in another order."""
    side = tiles.shape[-1] // size
    patches = tiles.unflatten(3, (side, size)).unflatten(2, (side, size)).transpose(3, 4)
    patches = patches.flatten(2, 3)[:, :, order].unflatten(2, (side, side))
    return patches.transpose(3, 4).flatten(4).flatten(2, 3)


def awake(tower: VisionTower) -> VisionTower:
    """New blocks change nothing; for this test they shall."""
    for block in tower.blocks:
        nn.init.normal_(block.attn.proj.weight, std=0.2)
        nn.init.normal_(block.mlp.fc2.weight, std=0.2)
    return tower


cfg = VisionConfig(image_size=32, patch_size=8, width=32, layers=2, heads=2, mlp_ratio=2.0)
tower, tiles, order = awake(VisionTower(cfg)), torch.randn(1, 3, 32, 32), torch.randperm(16)
with torch.no_grad():
    for name, scale in (("without positions", 0), ("with positions", 1)):
        tower.pos_embed.mul_(0).add_(scale * torch.randn(1, 16, 32))
        moved = tower(shuffled(tiles, order, 8)) - tower(tiles)[:, order]
        print(f"{name}: shuffling changes the vectors by {moved.abs().max():.4f} at most")

# %% [markdown]
# So a vector is added to each patch before the first block, one for each of the 729 places, learned like all else:
# `pos_embed`. From then on a patch knows where it is, and can say so in its keys and ask for it in its queries.
#
# ### Exercise 4: the tower
# Patches, positions, blocks, and a last norm. What other vision transformers do next, we leave out: SigLIP pools the 729 vectors
# into one for the whole picture (and its pooling head lies in the published checkpoint, unused). The decoder wants to know
# what is *where*, so it gets all of them.

# %% [markdown] tags=["hints"]
# 1. `self.patch_embed(tiles)` is (M, W, rows, columns). `.flatten(2)` joins rows and columns, in reading order.
# 2. `.transpose(1, 2)` makes (M, P, W). Only now the vectors of the patches are in a row; add `self.pos_embed` (1, P, W).
# 3. Each block of `self.blocks` in turn, then `self.norm`.

# %%
@grade("vision.VisionTower.forward")
def forward(self: VisionTower, tiles: Tensor) -> Tensor:
    """tiles (M, 3, image_size, image_size) -> (M, P, W), the patches in reading order.

    It has self.patch_embed (a convolution), self.pos_embed (1, P, W), self.blocks and self.norm.
    """
    ### BEGIN SOLUTION
    x = self.patch_embed(tiles).flatten(2).transpose(1, 2) + self.pos_embed
    for block in self.blocks:
        x = block(x)
    return self.norm(x)
    ### END SOLUTION

# %% [markdown]
# That is all of it: of the real tower, 27 such blocks. How large it is can be said without having it, on the "meta" device, on
# which tensors have shapes and no numbers:

# %%
with torch.device("meta"):
    real = VisionTower(vision)
    out = real(torch.empty(10, 3, 384, 384))        # nine tiles and the global view
print(f"{sum(p.numel() for p in real.parameters()) / 1e6:.0f} million parameters, "
      f"{real.pos_embed.numel() / 1e6:.2f} of them positions; out comes {tuple(out.shape)}")

# %% [markdown]
# ## What each part is for
#
# The tower learned to see from captions (SigLIP: which of these texts belongs to which of these pictures?). We have no billion
# pictures here, but a world of our own, and can ask questions that are easy to grade. On a grey tile lie six coloured
# squares, each on a patch. Each patch is asked two things:
#
# 1. *Has another patch your colour?* For that it has to look at the others, wherever they are.
# 2. *What colour is to the left of you?* For that it also has to know which patch is at its left.
#
# Three towers learn both at once, with your blocks if you have written them: a whole one, one without positions, one
# without attention. It takes some seconds.

# %%
COLOURS = torch.tensor([*toyworld.things.COLOURS.values(), (128, 128, 128)]) / 255
NOTHING = 8


def draw(n: int, random: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Tiles (n, 3, 32, 32); of each patch (n, 16) its own colour, and the one to the left of it."""
    place = torch.rand(n, 16, generator=random).argsort(1)[:, :6]
    colour = torch.full((n, 16), NOTHING)
    colour.scatter_(1, place, torch.randint(8, (n, 6), generator=random))
    left = F.pad(colour.view(n, 4, 4)[:, :, :-1], (1, 0), value=NOTHING).flatten(1)
    pixels = COLOURS[colour].view(n, 4, 4, 3).repeat_interleave(8, 1).repeat_interleave(8, 2)
    pixels = pixels + 0.05 * torch.randn(pixels.shape, generator=random)
    return pixels.permute(0, 3, 1, 2) * 2 - 1, colour, left


def twins(colour: Tensor) -> Tensor:
    """1 where another patch has the same colour, 0 where none has; -100 (not asked) if empty."""
    alike = (colour[:, :, None] == colour[:, None, :]).sum(-1)
    return torch.where(colour == NOTHING, -100, (alike > 1).long())


def train(kind: str, steps: int = 400, seed: int = 0) -> tuple[VisionTower, float, float]:
    """The tower, and how often it is right on new tiles: about twins, about the left neighbour."""
    torch.manual_seed(seed)
    random = torch.Generator().manual_seed(seed)
    tower, answers = VisionTower(cfg), nn.Linear(32, 2 + 9)
    nn.init.normal_(tower.pos_embed, std=0.2)   # larger than is usual: found sooner
    if kind == "no positions":
        tower.pos_embed = nn.Parameter(torch.zeros(1, 16, 32), requires_grad=False)
    if kind == "no attention":
        for block in tower.blocks:
            block.attn = nn.Identity()
            block.norm1 = nn.Identity()         # x + x: the next norm makes nothing of it
    learned = [p for p in (*tower.parameters(), *answers.parameters()) if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=8e-3, weight_decay=0)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 8e-3, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        tiles, colour, left = draw(64, random)
        twin, beside = answers(tower(tiles)).split((2, 9), -1)
        loss = F.cross_entropy(twin.mT, twins(colour)) + F.cross_entropy(beside.mT, left)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
    with torch.no_grad():
        tiles, colour, left = draw(1000, random)
        twin, beside = answers(tower(tiles)).split((2, 9), -1)
    asked, some = colour != NOTHING, left != NOTHING
    return (tower, (twin.argmax(-1) == twins(colour))[asked].float().mean().item(),
            (beside.argmax(-1) == left)[some].float().mean().item())


towers = {kind: train(kind) for kind in ("whole", "no positions", "no attention")}

# %%
tiles, colour, left = draw(1000, torch.Generator().manual_seed(1))
asked = twins(colour)[colour != NOTHING].float().mean().item()
guesses = (max(asked, 1 - asked), 1 / 8)
figure, axes = plt.subplots(1, 3, figsize=(9.5, 2.6), layout="constrained",
                            width_ratios=(0.9, 1, 1))
axes[0].imshow(tiles[0].permute(1, 2, 0).clamp(-1, 1) / 2 + 0.5)
axes[0].set(xticks=[], yticks=[], title="one of the tiles")
titles = ("has another patch your colour?", "what is to the left of you?")
for axis, title, guess, which in zip(axes[1:], titles, guesses, (1, 2), strict=True):
    bars = axis.barh(list(towers), [result[which] for result in towers.values()], color="#4d9de0")
    axis.bar_label(bars, fmt="{:.0%}", padding=3, fontsize=9)
    axis.axvline(guess, color="#d62246", ls="--", lw=1)
    axis.set(title=title, xlim=(0, 1.2), xticks=(0, guess, 1), xticklabels=("0", "guess", "right"))
    axis.title.set_fontsize(10)
    axis.invert_yaxis()
    axis.spines[["top", "right"]].set_visible(False)
axes[2].set_yticks([]);

# %% [markdown]
# Without attention a patch knows nothing of the others, and can only guess. Without positions it finds its twin nearly as
# often as with them: colour is all it takes. But "left" means nothing to it. (To the second question the two weaker towers
# say "nothing", which is the most frequent answer; only patches with a coloured neighbour are counted, so they score next
# to nothing, even less than a guess.)
#
# ## What attention looks at
#
# The weights $a_{ij}$ can be looked at. We take a patch that has a twin, and ask of both heads of both blocks: to whom does it
# listen? Brighter is more; the white frame is the patch that asks.

# %%
@torch.no_grad()
def weights_of(tower: VisionTower, tiles: Tensor) -> list[Tensor]:
    """For each block (M, H, P, P): how much patch i listens to patch j."""
    x = tower.patch_embed(tiles).flatten(2).transpose(1, 2) + tower.pos_embed
    found = []
    for block in tower.blocks:
        qkv = block.attn.qkv(block.norm1(x)).unflatten(-1, (3, block.attn.heads, -1))
        q, k, _ = qkv.permute(2, 0, 3, 1, 4)
        found.append(((q @ k.mT) * q.shape[-1] ** -0.5).softmax(-1))
        x = block(x)
    return found


def show(tile: Tensor, patch: int, weights: list[Tensor]) -> None:
    figure, axes = plt.subplots(1, 5, figsize=(9.5, 2.2), layout="constrained")
    axes[0].imshow(tile.permute(1, 2, 0).clamp(-1, 1) / 2 + 0.5)
    axes[0].set_title("the tile")
    maps = [(f"block {b}, head {h}", w[0, h, patch])
            for b, w in enumerate(weights) for h in range(2)]
    for axis, (name, row) in zip(axes[1:], maps, strict=True):
        axis.imshow(row.view(4, 4), cmap="inferno", vmin=0, vmax=1)
        axis.set_title(name, fontsize=9)
    for axis, size in zip(axes, (8, 1, 1, 1, 1), strict=True):
        corner = (patch % 4 * size - 0.5, patch // 4 * size - 0.5)
        axis.add_patch(Rectangle(corner, size, size, fill=False, ec="white", lw=2))
        axis.set(xticks=[], yticks=[])


# a tile with exactly two alike, and one of them has something to its left
alike = ((twins(colour) == 1).sum(1) == 2)[:, None] & (twins(colour) == 1) & (left != NOTHING)
chosen, patch = alike.nonzero()[0].tolist()
show(tiles[chosen], patch, weights_of(towers["whole"][0], tiles[chosen : chosen + 1]))

# %% [markdown]
# For one patch that is an anecdote. Over a thousand tiles: how much of its attention does a patch that has exactly one twin give
# to itself, to its twin, to its left neighbour, and to all others together?

# %%
weights = weights_of(towers["whole"][0], tiles)
index = torch.arange(16)
same = (colour[:, :, None] == colour[:, None, :]) & (index[:, None] != index)       # (M, P, P)
beside = (index[None, :] == index[:, None] - 1) & (index[:, None] % 4 > 0)
who = (colour != NOTHING) & (same.sum(-1) == 1) & (index % 4 > 0)
who &= ~(same & beside).any(-1)         # the twin shall not be the neighbour
shares = {"itself": torch.eye(16).expand_as(same), "its twin": same,
          "left neighbour": beside.expand_as(same)}
figure, axis = plt.subplots(figsize=(8, 2.2), layout="constrained")
start = torch.zeros(4)
heads = [w[:, h][who] for w in weights for h in range(2)]
names = [f"block {b}, head {h}" for b in range(2) for h in range(2)]
for (name, mask), shade in zip(shares.items(), ("#bbbbbb", "#d62246", "#4d9de0"), strict=True):
    share = torch.stack([(head * mask[who]).sum(-1).mean() for head in heads])
    axis.barh(names, share, left=start, color=shade, label=name)
    start = start + share
axis.barh(names, 1 - start, left=start, color="#eeeeee", label="all others")
axis.invert_yaxis()
axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
axis.spines[["top", "right"]].set_visible(False)

# %% [markdown]
# The first block looks to the left, the second for twins. Nobody told them to share the work like that. **Try**
# `train("whole", seed=1)` and draw both pictures again: which head does what may come out otherwise.
#
# ## What you have now
# A vision tower: `minivl2/vision.py`, nearly every line of it. Each tile went through it by itself: what is cut apart by the edge
# of a tile is put together only later, in the decoder, and that is one reason for the global view. And there are 729
# vectors a tile, up to 7,290 for one picture, far too many for a decoder to read. The next lesson squeezes them.
