# %% [markdown]
# # 4. Attention and its cache
#
# *40 minutes. Modules: `minivl2/attention.py` (multi-head), `minivl2/rope.py`, `minivl2/cache.py`, and the mask of
# `minivl2/decoder.py`. You need: tensors in PyTorch, softmax, matrix products.*
#
# Pictures have become tokens (lesson 3), and words are tokens anyway. From here on the model no longer knows which is
# which: there is one line of vectors, read by a decoder, layer after layer. A layer has two halves. In one, each token
# is thought about by itself (lesson 6). This is the other: the only place in the whole decoder where a token learns
# anything about another.
#
# **In the paper:** [Attention Is All You Need](https://arxiv.org/abs/1706.03762), section 3.2, and
# [RoFormer](https://arxiv.org/abs/2104.09864), section 3.2, for the positions. DeepSeek-VL2 Tiny uses exactly this;
# Small and Base use a form that remembers less, which is lesson 5.
#
# **At the end you will have written** attention, its mask, the rotary embedding, a multi-head attention layer, and the
# cache that makes writing a long answer affordable.

# %%
import dataclasses
import time
from unittest import mock

import matplotlib.pyplot as plt
import torch
from torch import Tensor
from torch.nn import functional as F

from minivl2 import Config, cost, figures
from minivl2.attention import MultiHeadAttention, Rotation
from minivl2.cache import Cache, LayerCache
from minivl2.decoder import Decoder, visible
from minivl2.grading import grade
from minivl2.rope import rotate_interleaved, rotation

torch.manual_seed(0)
torch.set_num_threads(1)        # tensors this small lose by sharing their work
figures.where("attention")

# %% [markdown]
# ## Asking the other tokens
#
# Think of a dictionary that answers softly. Every token $s$ puts in an entry: a **key** $k_s$, which says what it can
# be found under, and a **value** $v_s$, what it has to say. A token $t$ that wants to know something makes a **query**
# $q_t$. An ordinary dictionary would return the value of the one key that equals the query. This one compares the
# query with *all* keys, by dot products, and returns the mean of all values, weighted by how well their keys match:
#
# $$o_t = \sum_s a_{ts}\, v_s, \qquad a_{ts} = \mathrm{softmax}_s\Big(\frac{q_t \cdot k_s}{\sqrt d}\Big)$$
#
# For one query, as it is said:

# %%
def one_query(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q (d,), k (S, d), v (S, width) -> (width,)"""
    scores = torch.stack([q @ key for key in k]) / len(q) ** 0.5
    weights = scores.softmax(0)
    return sum(a * value for a, value in zip(weights, v, strict=True))


def at(angle: Tensor) -> Tensor:
    return torch.stack((angle.cos(), angle.sin()), dim=-1)


keys = at(torch.tensor([90.0, 210.0, 330.0]).deg2rad())
angles = torch.arange(361)
figure, axes = plt.subplots(1, 2, figsize=(8, 2.2), layout="constrained", sharey=True)
for axis, length in zip(axes, (1, 10), strict=True):
    weights = (length * at(angles.deg2rad()) @ keys.T / 2**0.5).softmax(-1)
    axis.stackplot(angles, weights.T, colors=["#4d9de0", "#8fc1ef", "#d7e8f8"])
    for where, word in zip((90, 210, 330), "ABC", strict=True):
        axis.text(where, 0.08 if word == "A" else 0.5 if word == "B" else 0.85, word, ha="center")
    axis.set(title=f"a query of length {length}", xlabel="direction of the query, degrees",
             xlim=(0, 360), ylim=(0, 1), xticks=(0, 90, 210, 330))
axes[0].set_ylabel("weights of keys\nA, B, C");

# %% [markdown]
# Three keys, in three directions of the plane. As the query turns, the weights pass from one to the next. A short
# query asks everybody a little; a long one asks the best match and nearly nobody else. How sharp to be is for the
# model to learn, and that is why the scores are divided by $\sqrt d$: a dot product of two random vectors of width $d$
# is itself about $\sqrt d$ large. Undivided, a wide model would begin its life with sharp questions about nothing, and
# a softmax that is nearly 0 or 1 everywhere has nearly no gradient to learn from:

# %%
figure, axes = plt.subplots(1, 2, figsize=(8, 2.2), layout="constrained", sharey=True)
for axis, scaled in zip(axes, (False, True), strict=True):
    for d, colour in ((4, "#d7e8f8"), (64, "#4d9de0"), (1024, "#123f6d")):
        q, k = torch.randn(200, 1, d), torch.randn(200, 16, d)
        scores = (q @ k.mT)[:, 0] / (d**0.5 if scaled else 1)
        axis.plot(range(1, 17), scores.softmax(-1).sort(-1, descending=True).values.mean(0),
                  color=colour, marker=".", label=f"d = {d}")
    axis.set(title="divided by √d" if scaled else "not divided",
             xlabel="16 random keys, best first", xticks=(1, 4, 8, 12, 16))
    axis.spines[["top", "right"]].set_visible(False)
axes[0].set(ylabel="mean weight", ylim=(0, 1))
axes[1].legend(frameon=False, fontsize=8);

# %% [markdown]
# ### Exercise 1: attend
# Now for all queries, all heads (what a head is comes soon) and all rows of a batch at once: two matrix products with a
# softmax between them. Not every query may look at every key: where `seen` is False, the weight is exactly 0, and the
# other weights still add up to 1.

# %% [markdown] tags=["hints"]
# 1. `k.mT` swaps the last two dimensions of k. `q @ k.mT` is (B, H, T, S): a row of scores for each query.
# 2. The softmax goes over the keys, the last dimension. A weight becomes 0 *and* the rest add up to 1 if the score is
#    $-\infty$ **before** the softmax: `scores.masked_fill(~seen, -torch.inf)`.
# 3. If `scale` is None it is `q.shape[-1] ** -0.5`. `seen` may be None, too: then everything may be seen.

# %%
@grade("attention.attend")
def attend(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None = None,
           scale: float | None = None) -> Tensor:
    """softmax(q k^T * scale) v, (B, H, T, width of v), in the type of q.

    q (B, H, T, d), k (B, H, S, d), v (B, H, S, any width). None of them is changed.
    seen (B, 1, T, S) bool: which keys a query may look at (at least one); None: all.
    scale: what the dot products are multiplied by; None: 1 / sqrt(d).
    """
    ### BEGIN SOLUTION
    if scale is None:
        scale = q.shape[-1] ** -0.5
    scores = (q * scale) @ k.mT                             # (B, H, T, S)
    if seen is not None:
        scores = scores.masked_fill(~seen, -torch.inf)
    return scores.softmax(-1) @ v
    ### END SOLUTION

# %%
q, k, v = torch.randn(3, 5, 8)
torch.testing.assert_close(attend(q[None, None], k[None, None], v[None, None])[0, 0],
                           torch.stack([one_query(token, k, v) for token in q]))
print("All queries at once, or one by one in a loop: the same.")

# %% [markdown]
# (minivl2's own `attend` hands float32 to a fused kernel of PyTorch, which never writes all (T, S) scores to memory, and
# computes bfloat16 a few queries at a time. The sum is the same.)
#
# ## Nobody looks ahead
#
# The decoder learns by predicting, at every token, the next one. A text of 1000 tokens is a thousand exercises at once.
# But then no token may see what comes after it: the answer to its exercise is the very next entry of the dictionary. So
# the mask is a triangle.
#
# Two things make it less than trivial. In a batch, shorter texts are padded on the left, and nobody may look at
# padding. And when the text is read in pieces, the new tokens are only the last rows of the triangle. Below: three
# tokens of padding; the right picture shows the last two tokens alone, the others having been read before.

# %%
real = torch.tensor([[False] * 3 + [True] * 5])
figure, axes = plt.subplots(1, 2, figsize=(8, 2.8), layout="constrained")
for axis, start in zip(axes, (0, 6), strict=True):
    shown = visible(real, start)[0, 0]
    axis.pcolormesh(shown, cmap="Blues", vmin=0, vmax=1.6, edgecolors="white", linewidth=2)
    axis.set(title=f"start = {start}", xlabel="key s (the first three are padding)",
             ylabel="query t", aspect="equal", xticks=torch.arange(8) + 0.5, xticklabels=range(8),
             yticks=torch.arange(8 - start) + 0.5, yticklabels=range(start, 8))
    axis.invert_yaxis()

# %% [markdown]
# One oddity: padding may look at itself. Somebody has to be looked at, or the softmax divides 0 by 0. Nobody cares what
# padding thinks, but one NaN would find its way: 0 times NaN is NaN.
#
# ### Exercise 2: the mask

# %% [markdown] tags=["hints"]
# 1. Number the tokens: `every = torch.arange(S)` and `new = torch.arange(start, S)[:, None]`. Comparing the two gives a
#    (T, S) table of bools.
# 2. A key may be seen if it is not later than the query *and* real, *or* if it is the query itself. `real[:, None, :]`
#    is (B, 1, S): one row for all queries.
# 3. `&` binds more tightly than `|`, and both more tightly than `<=`: put comparisons in brackets. At the end make
#    room for the heads, `[:, None]`.

# %%
@grade("decoder.visible")
def visible(real: Tensor, start: int) -> Tensor:
    """Which of all S tokens each new token may look at: (B, 1, T, S) bool.

    real (B, S) bool: False is padding. The new tokens are those from `start` on, T = S - start.
    A token may look at itself, always, and at what is real and comes before it.
    """
    ### BEGIN SOLUTION
    S = real.shape[1]
    new, every = torch.arange(start, S)[:, None], torch.arange(S)
    return ((every <= new) & real[:, None, :] | (every == new))[:, None]
    ### END SOLUTION

# %% [markdown]
# What happens without? We let a decoder of one layer predict the next of random tokens. There are 16 kinds, and
# nothing can be known about the next: the best loss possible is $\ln 16$. Watch who beats it.

# %%
def decoder(heads: int = 2) -> Decoder:
    """One layer of 32 numbers a token, with a plain MLP instead of experts."""
    small = {"vocab_size": 32, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
             "n_routed_experts": None, "use_mla": False, "num_attention_heads": heads,
             "num_key_value_heads": heads}
    return Decoder(dataclasses.replace(Config.named("toy").language, **small))


def train(model: Decoder, loss_of, steps: int = 200) -> list[float]:
    """loss_of(logits (B, T, 32), ids (B, T)), on random ids of 16 kinds."""
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0), []
    for _ in range(steps):
        ids = torch.randint(16, (32, 32))
        hidden, _ = model(model.embed(ids), torch.ones_like(ids, dtype=torch.bool))
        loss = loss_of(model.head(hidden), ids)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def next_token(logits: Tensor, ids: Tensor) -> Tensor:
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def all_seen(real: Tensor, start: int) -> Tensor:
    return torch.ones(1, 1, real.shape[1] - start, real.shape[1], dtype=torch.bool)


torch.manual_seed(0)
honest = train(decoder(), next_token)
with mock.patch("minivl2.decoder.visible", all_seen):
    cheat = train(decoder(), next_token)
figure, axis = plt.subplots(figsize=(8, 2.2), layout="constrained")
axis.plot(honest, color="#4d9de0", label="with the triangle")
axis.plot(cheat, color="#d62246", label="without")
axis.axhline(torch.tensor(16.0).log(), color="grey", linewidth=1, linestyle=(0, (4, 3)))
axis.text(100, 2.6, "ln 16: guessing", ha="center", va="top", color="grey", fontsize=8)
axis.set(xlabel="step", ylabel="loss", ylim=(0, None), xlim=(0, 200))
axis.spines[["top", "right"]].set_visible(False)
axis.legend(frameon=False, fontsize=8, loc="center right");

# %% [markdown]
# A loss of nearly 0 on pure chance: it has learned to look one to the right. When it is to *write*, there is nothing to
# the right, and it has learned nothing else. A loss that falls far too fast is the first sign of a leaking mask.
#
# ## Where things stand
#
# Look at the formula again: nothing in it knows the order of the tokens. Shuffle keys and values together and the sum
# is the same. "The dog bites the man" would be "the man bites the dog".

# %%
shuffled = torch.randperm(5)
q, k, v = torch.randn(3, 1, 1, 5, 8)
torch.testing.assert_close(attend(q, k, v), attend(q, k[:, :, shuffled], v[:, :, shuffled]))
print("The tokens in the order", shuffled.tolist(), "give the same.")

# %% [markdown]
# The cure of RoFormer: take the numbers of a query or key in pairs, and let every pair be the hand of a clock. A token
# at position $p$ has its hands turned by $p$ steps. Each pair has its own speed, the first fast, the last very slow:
#
# $$\theta_i = \mathrm{base}^{-2i/d}, \qquad
# \begin{pmatrix} a' \\ b' \end{pmatrix} =
# \begin{pmatrix} \cos p\,\theta_i & -\sin p\,\theta_i \\ \sin p\,\theta_i & \cos p\,\theta_i \end{pmatrix}
# \begin{pmatrix} a \\ b \end{pmatrix}$$
#
# If two hands are turned by $p$ and by $p'$, the angle *between* them has changed by $p - p'$, wherever they both
# stand. And a dot product knows only lengths and the angle between. So scores depend on how far apart two tokens are,
# not on where they are: what has been learned about neighbours holds on every page.

# %%
cos, sin = rotation(torch.arange(200)[None], 16, 100.0)     # (1, 1, 200, 8)
figure, axes = plt.subplots(1, 4, figsize=(10, 2.3), layout="constrained",
                            width_ratios=(1, 1, 1, 1.6))
for i, axis in zip((0, 2, 5), axes[:3], strict=True):
    for p in range(6):
        x, y = cos[0, 0, p, i], sin[0, 0, p, i]
        arrow = {"arrowstyle": "-|>", "color": plt.cm.Blues(1 - p / 7)}
        axis.annotate("", (x, y), (0, 0), arrowprops=arrow)
        axis.text(1.2 * x, 1.2 * y, p, ha="center", va="center", fontsize=7)
    axis.set(xlim=(-1.3, 1.3), ylim=(-1.3, 1.3), aspect="equal")
    axis.set_title(f"hand {i} at positions 0 to 5", fontsize=9)
    axis.axis("off")
axes[3].plot(cos[0, 0].sum(-1) * 2, color="#4d9de0")
axes[3].set_title("two vectors of ones, so far apart", fontsize=9)
axes[3].set(xlabel="distance", ylabel="dot product", xlim=(0, 200))
axes[3].spines[["top", "right"]].set_visible(False)

# %% [markdown]
# On the right: all speeds together make what is near match best, unless the model learns otherwise. (Base 100 here, so
# that one sees something; DeepSeek's is 10,000, and the slowest hand goes round once in tens of thousands of tokens.)
#
# ### Exercise 3: the angles
# Compute in `dtype`, float32 or better, even when the model is in bfloat16. That has 8 bits of precision: positions
# 256 and 257 would be the same number.

# %% [markdown] tags=["hints"]
# 1. The exponents $-2i/d$ of all pairs: `torch.arange(0, width, 2, dtype=dtype) / width`, negated.
# 2. `positions[:, None, :, None]` is (B, 1, T, 1): a place for the heads, who all turn alike, and one for the pairs.
#    Times the speeds it is (B, 1, T, width/2).
# 3. Return `angles.cos(), angles.sin()`, in this order. One angle a *pair*, not one a number.

# %%
@grade("rope.rotation")
def rotation(positions: Tensor, width: int, base: float,
             dtype=torch.float32) -> tuple[Tensor, Tensor]:
    """Cosine and sine of every pair's angle, two tensors (B, 1, T, width/2) of type dtype.

    positions (B, T), whole numbers. Pair i turns by position * base^(-2i/width).
    """
    ### BEGIN SOLUTION
    frequencies = 1.0 / base ** (torch.arange(0, width, 2, dtype=dtype) / width)
    angles = positions[:, None, :, None].to(dtype) * frequencies
    return angles.cos(), angles.sin()
    ### END SOLUTION

# %% [markdown]
# ### Exercise 4: turn
# Which two numbers are a pair? RoFormer says the neighbours: $(x_0, x_1), (x_2, x_3), \ldots$ Llama's code, and Tiny's
# after it, cuts the vector in halves instead and pairs $(x_0, x_{d/2}), (x_1, x_{d/2+1}), \ldots$ For a model that is
# trained from scratch it does not matter at all. Here you write the second; remember that there are two.

# %% [markdown] tags=["hints"]
# 1. `a, b = x.chunk(2, dim=-1)`: all first numbers of the pairs, and all second ones. `cos` and `sin` fit both.
# 2. The new halves are $a \cos - b \sin$ and $b \cos + a \sin$; `torch.cat` joins them.
# 3. The angles are in float32 even if x is in bfloat16, and so is the product: `.type_as(x)`.

# %%
@grade("rope.rotate_half_split")
def rotate_half_split(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (B, H, T, d), turned: number i is paired with number i + d/2. In the type of x.

    cos, sin (B, 1, T, d/2): of pair i's angle.
    """
    ### BEGIN SOLUTION
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).type_as(x)
    ### END SOLUTION

# %% [markdown]
# ## Heads
#
# One softmax gives one mean. If a token wants to know two things, who is the subject *and* what stood just before, it
# needs two. So queries, keys and values, $D$ numbers wide, are cut into $H$ heads of $d = D/H$. Each head attends by
# itself; their answers are laid side by side again, and a last matrix `o_proj` mixes them.
#
# ### Exercise 5: multi-head attention
# Everything so far in eight lines. `cache` may be None; if it is not, it remembers the keys and values of earlier
# tokens (you write it in the next exercise). There may be fewer heads of keys than of queries: then neighbouring query
# heads share one, and the cache is smaller. (Tiny has as many of both.)

# %% [markdown] tags=["hints"]
# 1. `self.q_proj(x)` is (B, T, H\*d), head after head. `.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)` makes it
#    (B, H, T, d). Likewise keys and values.
# 2. Turn q and k with `rotate_half_split(..., *rotation)`, never v: positions belong into *who* is asked, not into what
#    is said. Then, if there is a cache, `k, v = cache.append(k, v)`.
# 3. `sharing = q.shape[1] // k.shape[1]`. Heads 0 and 1 share key head 0, heads 2 and 3 key head 1:
#    `k.repeat_interleave(sharing, 1)`, not `repeat`.
# 4. `attend(q, k, v, seen)` is (B, H, T, d). Back: `.transpose(1, 2).flatten(2)`, then `self.o_proj`.

# %%
@grade("attention.MultiHeadAttention.forward")
def forward(self: MultiHeadAttention, x: Tensor, rotation: Rotation, seen: Tensor,
            cache: LayerCache | None = None) -> Tensor:
    """x (B, T, D) -> (B, T, D), attended.

    self.head_dim is d. self.q_proj, self.o_proj: D -> D; self.k_proj, self.v_proj: D -> d times
    the number of key heads, which divides that of query heads.
    rotation: cos and sin, for rotate_half_split. seen (B, 1, T, S): who may look at whom.
    cache.append(k, v) takes the new keys (turned) and values, (B, key heads, T, d), and returns
    those of all tokens so far, (B, key heads, S, d). Without a cache S = T.
    """
    ### BEGIN SOLUTION
    q, k, v = (
        proj(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)          # (B, H, T, d)
        for proj in (self.q_proj, self.k_proj, self.v_proj)
    )
    q, k = rotate_half_split(q, *rotation), rotate_half_split(k, *rotation)
    if cache is not None:
        k, v = cache.append(k, v)                                           # (B, H, S, d)
    sharing = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(sharing, 1), v.repeat_interleave(sharing, 1)
    mixed = attend(q, k, v, seen)
    return self.o_proj(mixed.transpose(1, 2).flatten(2))
    ### END SOLUTION

# %% [markdown]
# ## What heads do
#
# A task for which one must look at two places: say which token stood one before, *and* which stood six before. We
# train it with one head and with two, and draw where they look.

# %%
def one_and_six_back(logits: Tensor, ids: Tensor) -> Tensor:
    """The first 16 logits are about the token before, the other 16 about the sixth before."""
    wanted = torch.stack((ids[:, 5:-1], ids[:, :-6]), dim=-1)
    return F.cross_entropy(logits[:, 6:].unflatten(-1, (2, 16)).flatten(0, 2), wanted.flatten())


def looks(model: Decoder, ids: Tensor) -> Tensor:
    """Where the heads of the first layer look: (H, T, T), the mean over the batch."""
    attn, d = model.layers[0].attn, model.layers[0].attn.head_dim
    x = model.layers[0].attn_norm(model.embed(ids))
    turn = rotation(torch.arange(ids.shape[1])[None], d, model.cfg.rope_theta)
    q, k = (rotate_half_split(proj(x).unflatten(-1, (-1, d)).transpose(1, 2), *turn)
            for proj in (attn.q_proj, attn.k_proj))
    seen = visible(torch.ones_like(ids, dtype=torch.bool), 0)
    scores = q @ k.mT / d**0.5
    return scores.masked_fill(~seen, -torch.inf).softmax(-1).mean(0)


trained, ids = {}, torch.randint(16, (32, 32))
figure, axes = plt.subplots(1, 3, figsize=(9, 3), layout="constrained")
with torch.random.fork_rng():
    for heads in (1, 2):
        torch.manual_seed(0)
        trained[heads] = decoder(heads)
        loss = train(trained[heads], one_and_six_back)[-1]
        with torch.no_grad():
            weights = looks(trained[heads], ids)
        for h, axis in enumerate(axes[:1] if heads == 1 else axes[1:]):
            axis.imshow(weights[h, :20, :20], cmap="Blues", vmin=0, vmax=1)
            axis.set_title("a single head" if heads == 1 else f"head {h} of two", fontsize=9)
            axis.set(xlabel="looked at", xticks=(0, 6, 12, 18), yticks=(0, 6, 12, 18))
        for h, w in enumerate(weights):
            one, six = (w[6:].diagonal(6 - back).mean().item() for back in (1, 6))
            print(f"{heads} head(s), loss {loss:.4f}. Head {h}: {one:.2f} of its weight one back, "
                  f"{six:.2f} six back")
axes[0].set_ylabel("who looks");

# %% [markdown]
# Nobody told the two heads to share the work. (Of six other seeds, five divided it as cleanly; in the sixth both heads
# looked at both places.) A single head finds a trick: it looks at one place a lot and at the other a little, so that
# the mixture says which is which. (In five of six; in the sixth it was still learning after the 200 steps.) The trick
# gets harder with every further place to look at, and a real token has many.
#
# ## The wrong pairing
#
# Now the trap. Someone has trained the same model with neighbours as pairs. Nothing differs but the order in which the
# rows of `q_proj` and `k_proj` came to stand: where ours has $(x_0, x_{d/2})$, theirs has $(x_0, x_1)$. Their
# checkpoint:

# %%
def reordered(model: Decoder, order: Tensor) -> Decoder:
    """The same model, with the rows of every head's queries and keys in another order."""
    other, d = decoder(2), model.layers[0].attn.head_dim
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    for name in ("layers.0.attn.q_proj.weight", "layers.0.attn.k_proj.weight"):
        weights[name] = weights[name].unflatten(0, (-1, d))[:, order].flatten(0, 1)
    other.load_state_dict(weights)
    return other


to_neighbours = torch.arange(16).view(2, 8).T.flatten()     # 0, 8, 1, 9, ...
x, turn = torch.randn(1, 1, 5, 16), rotation(torch.arange(5)[None], 16, 100.0)
torch.testing.assert_close(rotate_interleaved(x[..., to_neighbours], *turn),
                           rotate_half_split(x, *turn)[..., to_neighbours])
theirs = reordered(trained[2], to_neighbours)               # right, if it is turned by neighbours
back = reordered(theirs, to_neighbours.argsort())

figure, axis = plt.subplots(figsize=(8, 1.8), layout="constrained")
names = {"ours": trained[2], "theirs, in our code": theirs, "theirs, rows put back": back}
for row, model in enumerate(names.values()):
    with torch.no_grad():
        hidden, _ = model(model.embed(ids), torch.ones_like(ids, dtype=torch.bool))
        said = model.head(hidden)[:, 6:].unflatten(-1, (2, 16)).argmax(-1)
    right = (said == torch.stack((ids[:, 5:-1], ids[:, :-6]), dim=-1)).float().mean((0, 1))
    for n, (share, colour) in enumerate(zip(right, ("#4d9de0", "#123f6d"), strict=True)):
        bar = axis.barh(row - 0.2 + 0.4 * n, share, 0.36, color=colour)
        axis.bar_label(bar, [f" {share:.0%}"])
axis.set(yticks=range(3), yticklabels=names, xlim=(0, 1.1), xticks=(0, 1),
         xticklabels=("0", "all right"))
axis.legend(axis.containers[:2], ("one back", "six back"), frameon=False, fontsize=8,
            loc="center left", bbox_to_anchor=(1, 0.5))
axis.axvline(1 / 16, color="grey", linewidth=1, linestyle=(0, (4, 3)))
axis.invert_yaxis()
axis.spines[["top", "right"]].set_visible(False)

# %% [markdown]
# `load_state_dict` was content: every name and every shape fits. No warning, no NaN, and the answers are near the
# dashed line of guessing. DeepSeek-VL2 uses both conventions, halves in Tiny and neighbours in Small and Base, so
# whoever reads its weights has every chance to fall into this. When all weights have loaded and a model answers
# nonsense, look here first. The cure is a sorting of rows.
#
# ## The cache
#
# To write the next token, the decoder needs the last one's output only. But that token looks at the keys and values of
# all before it. Without a memory one reads the whole text again for every token: an answer of $n$ tokens after a
# prompt of $T$ costs $T + (T{+}1) + \ldots + (T{+}n{-}1)$ readings instead of $T + n - 1$. Keys and values never
# change once they are computed, since nobody looks ahead. So keep them.
#
# ### Exercise 6: remember
# Growing with `torch.cat` would be one line, and would copy everything remembered for each new token. Take the room
# for all once, when the first tokens come and say what they look like, and fill it from the left. (Why not in
# `__init__`? There, nobody knows the batch, the width, the type or the device yet.)

# %% [markdown] tags=["hints"]
# 1. `start = self.length`, `end = start + new[0].shape[-2]`. If `end > self.capacity`, raise before you change
#    anything.
# 2. If `self.rooms` is empty, make one for each tensor: `x.new_empty(*x.shape[:-2], self.capacity, x.shape[-1])` has
#    the type and device of x.
# 3. Write `room[..., start:end, :] = x` for each, set `self.length = end`, and return the views `room[..., :end, :]`
#    as a tuple.

# %%
@grade("cache.LayerCache.append")
def append(self: LayerCache, *new: Tensor) -> tuple[Tensor, ...]:
    """Remember the next T tokens. Returns each tensor after all earlier tokens, (..., S, width).

    new: tensors (..., T, width), in each call the same kinds in the same order (say, keys and
    values); their widths may differ. self.capacity: room for so many tokens. self.length: tokens
    so far, to be kept up to date. self.rooms: a tuple, empty at first, of one tensor
    (..., capacity, width) each, taken at the first call and kept; what is returned are views.
    ValueError, and nothing is changed, if a token does not fit:
    "the cache has room for 3 tokens; token 4 does not fit" (4: how many there would be).
    """
    ### BEGIN SOLUTION
    start, end = self.length, self.length + new[0].shape[-2]
    if end > self.capacity:
        raise ValueError(f"the cache has room for {self.capacity} tokens; token {end} does not fit")
    if not self.rooms:
        self.rooms = tuple(x.new_empty(*x.shape[:-2], self.capacity, x.shape[-1]) for x in new)
    for room, x in zip(self.rooms, new, strict=True):
        room[..., start:end, :] = x
    self.length = end
    return tuple(room[..., :end, :] for room in self.rooms)
    ### END SOLUTION

# %% [markdown]
# ## What it buys
#
# A decoder of four layers writes 150 tokens, with and without. (Processor time of each token, on this machine.)

# %%
@torch.no_grad()
def write(model: Decoder, prompt: Tensor, tokens: int, remember: bool):
    """Returns all ids, and the seconds that each new one took."""
    cache = Cache(model.cfg.num_hidden_layers, prompt.shape[1] + tokens) if remember else None
    ids, new, seconds = prompt, prompt, []
    for _ in range(tokens):
        start = time.process_time()
        hidden, _ = model(model.embed(new), torch.ones_like(new, dtype=torch.bool), cache)
        token = model.head(hidden[:, -1]).argmax(-1, keepdim=True)
        ids = torch.cat((ids, token), dim=1)
        new = token if remember else ids
        seconds.append(time.process_time() - start)
    return ids[0].tolist(), seconds


toy = dataclasses.replace(Config.named("toy").language, use_mla=False, n_routed_experts=None)
model, prompt = Decoder(toy), torch.randint(640, (1, 100))
write(model, prompt, 5, True)                           # the first call is slow for other reasons
(with_cache, fast), (without, slow) = (write(model, prompt, 150, kind) for kind in (True, False))
assert with_cache == without
figure, axis = plt.subplots(figsize=(8, 2.2), layout="constrained")
axis.plot([1000 * s for s in slow], color="#d62246", label="everything read again")
axis.plot([1000 * s for s in fast], color="#3bb273", label="with a cache")
axis.set(xlabel="token of the answer", ylabel="milliseconds", xlim=(0, 150),
         ylim=(0, 1.3e3 * sorted(slow)[-8]))
axis.spines[["top", "right"]].set_visible(False)
axis.legend(frameon=False, fontsize=8);

# %% [markdown]
# The same answer, token for token. The first step reads the prompt either way, and is the one peak of the lower line;
# after it, one line climbs with the text, and the other stays nearly flat. What is bought with time is paid with
# memory:

# %%
tiny = Config.named("tiny").language
numbers = cost.cache_numbers(tiny)
a_token = 2 * numbers * tiny.num_hidden_layers
print(f"Tiny: 2 x {tiny.num_key_value_heads} heads x {tiny.head_dim} = {numbers:,} numbers "
      f"a token and layer, {a_token:,} bytes a token in bfloat16")
print(f"its full context of {tiny.max_position_embeddings:,} tokens: "
      f"{cost.human(a_token * tiny.max_position_embeddings)}, for every conversation")

# %% [markdown]
# And Tiny is tiny. With long contexts for many people at once it is the cache that fills a machine; and for each token
# written, all of it must pass through the processor. To remember less without forgetting is
# [lesson 5](05_latent_attention.ipynb).
#
# ## What you have now
# The multi-head half of `minivl2/attention.py`, half of `minivl2/rope.py`, and `LayerCache`. For as long as this
# notebook runs, `decoder()` is built from your answers.
#
# **Try:** give `one_and_six_back` a third place to look at, and 48 logits to say it with; can one head still do it? And
# train `decoder(2)` with other seeds: do its heads always share the work?
