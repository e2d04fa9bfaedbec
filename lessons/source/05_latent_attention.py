# %% [markdown]
# # 5. Latent attention
#
# *40 minutes. Modules: `minivl2/attention.py` (the latent part), `minivl2/rope.py`. You need: lesson 4.*
#
# The cache of lesson 4 remembers a key and a value for every head. Small has 16 heads of 128 and 27 layers: that would
# be 4096 numbers a token and layer. Latent attention (MLA, for *multi-head latent attention*) remembers 576 in their
# place, and yet every head has keys and values of its own. There are two tricks in it. The first is to remember not
# what is needed, but something short from which it can be made. The second is never to make it.
#
# **In the paper:** DeepSeek-VL2, section 2, "DeepSeekMoE LLM"; the equations are in
# [DeepSeek-V2](https://arxiv.org/abs/2405.04434), section 2.1 (Eqs. 9-19). Small and Base use it; Tiny does not.
#
# **At the end you will have written** the rotary embedding in its second pairing, latent attention in both of its
# forms, and the layer that compresses, remembers, and chooses between them; and you will have measured what each costs.

# %%
import dataclasses
import time

import matplotlib.pyplot as plt
import torch
from torch import Tensor
from torch.nn import functional as F

from minivl2 import Config, cost, figures
from minivl2.attention import LatentAttention, MultiHeadAttention, Rotation, attend
from minivl2.cache import Cache, LayerCache
from minivl2.decoder import Decoder
from minivl2.grading import grade
from minivl2.rope import rotation

torch.manual_seed(0)
torch.set_num_threads(1)        # tensors this small lose by sharing their work
figures.where("attention")

# %% [markdown]
# ## Something short to remember
#
# All keys and values of a token are made from its one vector $x$ by matrices. So one could remember $x$ itself and make
# them anew, for every token of the context, whenever one is written. That is short (2048 numbers in Small) and slow.
# Latent attention goes further in both directions. First, $x$ is squeezed to a **latent** $c$ of $C = 512$ numbers, and
# that is remembered. A second matrix unpacks it for each head $h$ (Eqs. 9-11):
#
# $$c_t = \mathrm{RMSNorm}(W^{DKV} x_t), \qquad k^C_{t,h} = W^{UK}_h c_t, \qquad v_{t,h} = W^{UV}_h c_t$$
#
# (D is for down, U for up. The norm is not in Eq. 9; section 3.1.2 adds it, because such a bottleneck trains more
# steadily with one.) What is the rest of the 576? That comes below: 64 numbers for the position. To scale, for Small:

# %%
lang = Config.named("small").language
H, C, N, R, v_width = 16, 512, 128, 64, 128
figure, axis = plt.subplots(figsize=(9, 2.3), layout="constrained")
axis.barh(0, lang.hidden_size, color="#e9e4d8")
axis.text(lang.hidden_size / 2, 0, "the token's vector x: 2048", ha="center", va="center")
axis.barh(1, C, color="#4d9de0")
axis.barh(1, R, left=C, color="#d62246")
axis.text(C + R + 40, 1, "remembered: latent 512 + position 64", va="center")
for h in range(H):
    axis.barh(2, N, left=h * (N + v_width), color="#8fc1ef", edgecolor="white")
    axis.barh(2, v_width, left=h * (N + v_width) + N, color="#d7e8f8", edgecolor="white")
axis.text(2048, 2.62, "unpacked when needed, a key and a value for each of 16 heads: 4096",
          ha="center", va="center")
axis.set(yticks=(), xticks=(), ylim=(2.85, -0.5), xlim=(0, 4100))
axis.spines[:].set_visible(False)

# %% [markdown]
# What does a token lose in the narrow place? That depends on how much there is to say. Here is the task of lesson 4
# again: random tokens of 16 kinds, and at each the model shall say which stood one before and which six before. We
# train one layer with latents of 1, 2, 4 and 16 numbers. (Multi-head attention with these heads would remember 64.)

# %%
def decoder(latent: int) -> Decoder:
    """One layer: two heads of 16 numbers, and 8 for the position."""
    small = {"vocab_size": 32, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
             "n_routed_experts": None, "num_attention_heads": 2, "kv_lora_rank": latent,
             "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16}
    return Decoder(dataclasses.replace(Config.named("toy").language, **small))


def train(model: Decoder, steps: int = 200) -> Tensor:
    """Returns the loss at each step."""
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0), []
    for _ in range(steps):
        ids = torch.randint(16, (32, 32))
        hidden, _ = model(model.embed(ids), torch.ones_like(ids, dtype=torch.bool))
        said = model.head(hidden)[:, 6:].unflatten(-1, (2, 16))     # 16 logits for each question
        wanted = torch.stack((ids[:, 5:-1], ids[:, :-6]), dim=-1)
        loss = F.cross_entropy(said.flatten(0, 2), wanted.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


figure, axis = plt.subplots(figsize=(8, 2.3), layout="constrained")
for latent, colour in ((1, "#d62246"), (2, "#f4a261"), (4, "#8fc1ef"), (16, "#123f6d")):
    torch.manual_seed(0)
    axis.plot(train(decoder(latent)), color=colour, label=f"C = {latent}")
axis.axhline(torch.tensor(16.0).log(), color="grey", linewidth=1, linestyle=(0, (4, 3)))
axis.text(199, 2.8, "guessing", ha="right", va="bottom", color="grey", fontsize=8)
axis.set(xlabel="step", ylabel="loss", xlim=(0, 200), ylim=(0, None))
axis.spines[["top", "right"]].set_visible(False)
axis.legend(frameon=False, fontsize=8, loc="center right");

# %% [markdown]
# Two numbers already tell 16 kinds of token apart, given time to arrange them. One does not: after the norm, only its
# sign is left. (With three seeds, the same.) In Small the latent is four times shorter than the token's vector and eight
# times shorter than what is made of it, and DeepSeek-V2's appendix D finds it no worse than full multi-head attention.
#
# ## Where does the position go?
#
# Rotary embedding turns keys by their position. A key made from the latent could be turned when it is unpacked; but
# this would spoil the second trick, in which keys are never unpacked at all. So position gets a place of its own. Each
# token makes, straight from $x$, **one** small key of $R = 64$ numbers, which is turned, remembered beside the latent,
# and shared by all heads. Each head's query has a second part to match it (Eqs. 14-17):
#
# $$q_{t,h} = [\,q^C_{t,h};\; \mathrm{RoPE}(q^R_{t,h})\,], \qquad
# k_{s,h} = [\,k^C_{s,h};\; \mathrm{RoPE}(W^{KR} x_s)\,]$$
#
# A dot product of joined vectors is the sum of two: what a token is, plus where it stands. The code calls the parts
# `nope` ("no position") and `rope`.
#
# ### Exercise 1: turn neighbours
# In this attention, in Small and Base, a pair is two neighbours, $(x_0, x_1), (x_2, x_3), \ldots$, as RoFormer wrote
# it, and not the halves of lesson 4. (What happens if one mixes them up, you have seen there.)

# %% [markdown] tags=["hints"]
# 1. The first of every pair: `x[..., 0::2]`. The second: `x[..., 1::2]`. Both are as wide as cos and sin.
# 2. `torch.stack((first, second), dim=-1)` puts them side by side, (..., R/2, 2); `.flatten(-2)` makes that (..., R)
#    again, in turns.
# 3. First: $a \cos - b \sin$. Second: $b \cos + a \sin$. Then `.type_as(x)`.

# %%
@grade("rope.rotate_interleaved")
def rotate_interleaved(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (B, H, T, R), turned: number 2i is paired with number 2i + 1. In the type of x.

    cos, sin (B, 1, T, R/2): of pair i's angle.
    """
    ### BEGIN SOLUTION
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2).type_as(x)
    ### END SOLUTION

# %% [markdown]
# ### Exercise 2: unpack, then attend
# Given queries in their two parts, and what is remembered of all tokens, attend as in lesson 4. `kv_up` is both
# matrices in one, as the checkpoints store it: its output is, head after head, $N$ numbers of key and then $v$ of
# value. The scale belongs to the whole query, both parts together: `self.scale` is $1/\sqrt{N + R}$.

# %% [markdown] tags=["hints"]
# 1. `self.kv_up(latent[:, 0])` is (B, S, H\*(N+v)). Cut the last dimension into heads, (H, N+v), swap it with S, and
#    split into keys and values.
# 2. There is one rotary key for all heads: `k_rope.expand(-1, self.H, -1, -1)`. Join it to the keys, and the two parts
#    of the query in the same order.
# 3. `attend(q, k, value, seen, self.scale)`; values may be narrower or wider than keys.

# %%
@grade("attention.LatentAttention.expanded")
def expanded(self: LatentAttention, q_nope: Tensor, q_rope: Tensor, latent: Tensor,
             k_rope: Tensor, seen: Tensor) -> Tensor:
    """Attend with a key and a value for every head, unpacked from the latents: (B, H, T, v).

    q_nope (B, H, T, N), q_rope (B, H, T, R), already turned. Of all S tokens: latent (B, 1, S, C),
    already normalised, and k_rope (B, 1, S, R), already turned. seen (B, 1, T, S) bool.
    self.kv_up: C -> H * (N + v), for each head its key's N numbers, then its value's v.
    self.H, self.N, self.v: numbers. self.scale: what scores are multiplied by.
    """
    ### BEGIN SOLUTION
    kv = self.kv_up(latent[:, 0]).unflatten(-1, (self.H, self.N + self.v)).transpose(1, 2)
    k_nope, value = kv.split([self.N, self.v], dim=-1)                      # (B, H, S, ..)
    q = torch.cat((q_nope, q_rope), dim=-1)
    k = torch.cat((k_nope, k_rope.expand(-1, self.H, -1, -1)), dim=-1)
    return attend(q, k, value, seen, self.scale)
    ### END SOLUTION

# %% [markdown]
# ## Never unpack
#
# Now memory is saved, and time is lost: for every token that is written, keys and values of *all* earlier tokens are
# unpacked anew. Here is the second trick. A score is $q \cdot (W^{UK} c)$. The brackets can be moved:
#
# $$q \cdot (W^{UK} c) = (W^{UK\top} q) \cdot c$$
#
# Not the many keys are unpacked; the one query is packed. It then meets the latents directly, as if they were keys. And
# the values:
#
# $$\sum_s a_s\, (W^{UV} c_s) = W^{UV} \Big(\sum_s a_s\, c_s\Big)$$
#
# The mean of unpacked latents is the unpacked mean latent: unpack once, at the end. The two matrices are **absorbed**
# into query and output, and nothing of size $S \cdot H$ is ever built but the attention weights. It is the same sum,
# in another order:

# %%
W, query, latents = torch.randn(128, 512), torch.randn(128), torch.randn(1000, 512)
unpacked_keys = latents @ W.T                   # 1000 x 512 x 128 products
packed_query = query @ W                        #    1 x 512 x 128 products
torch.testing.assert_close(unpacked_keys @ query, latents @ packed_query, atol=0.01, rtol=1e-4)
print("Scores of 1000 tokens, from keys or from latents: the same.")

# %% [markdown]
# And now one sees why position had to go elsewhere. With a rotation between the two,
# $q \cdot \big(\mathrm{RoPE}_{t-s}\, W^{UK} c\big)$, what is to be packed into the query would be another matrix for
# each distance $t - s$.
#
# ### Exercise 3: absorb
# The rotary part needs no packing: there the query meets the key as it is, and the two scores are added.

# %% [markdown] tags=["hints"]
# 1. `self.kv_up.weight` is (H\*(N+v), C). `.unflatten(0, (self.H, -1))` makes it (H, N+v, C); split that into $W^{UK}$
#    (H, N, C) and $W^{UV}$ (H, v, C).
# 2. `torch.einsum("bhtn,hnc->bhtc", q_nope, W_uk)` packs the queries. Scores: this times `latent.mT`, plus
#    `q_rope @ k_rope.mT`; all of it times `self.scale`, which is still that of the unpacked query.
# 3. Mask and softmax as in lesson 4. Mean latents: `weights @ latent`, (B, H, T, C). Unpack each with its head's
#    $W^{UV}$: `"bhtc,hvc->bhtv"`.

# %%
@grade("attention.LatentAttention.absorbed")
def absorbed(self: LatentAttention, q_nope: Tensor, q_rope: Tensor, latent: Tensor,
             k_rope: Tensor, seen: Tensor) -> Tensor:
    """What `expanded` gives, without a key or a value for any of the S tokens: (B, H, T, v).

    q_nope (B, H, T, N), q_rope (B, H, T, R), latent (B, 1, S, C), k_rope (B, 1, S, R),
    seen (B, 1, T, S) bool. self.kv_up.weight (H * (N + v), C): for each head N rows that make its
    key, then v rows that make its value. self.H, self.N, self.v, self.scale as above.
    """
    ### BEGIN SOLUTION
    W_uk, W_uv = self.kv_up.weight.unflatten(0, (self.H, -1)).split([self.N, self.v], dim=1)
    q_latent = torch.einsum("bhtn,hnc->bhtc", q_nope, W_uk)
    scores = (q_latent @ latent.mT + q_rope @ k_rope.mT) * self.scale       # (B, H, T, S)
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    mean_latent = weights @ latent                                          # (B, H, T, C)
    return torch.einsum("bhtc,hvc->bhtv", mean_latent, W_uv)
    ### END SOLUTION

# %% [markdown]
# ### Exercise 4: the layer
# What comes before and after: queries in two parts, the latent and the rotary key, what goes into the cache and in
# which state, and which of the two forms to take. Unpacking costs work for each *remembered* token, absorbing for each
# *new* one: many new tokens (a prompt, or training) share the unpacked keys; a single one does better to absorb. So:
# absorb if there is a cache and one new token, unpack otherwise. (Ours counts the work of both for the tokens at hand,
# `few`, and so absorbs a short question after a long picture, too. The answers are the same.)

# %% [markdown] tags=["hints"]
# 1. `self.query(x)` is (B, T, H\*(N+R)), head after head, each with its N content numbers first. Cut it into heads,
#    bring them before T, split, and turn the rotary part.
# 2. `self.kv_down(x)` is (B, T, C+R): the latent, then the rotary key. `self.kv_norm` goes on the latent only, and
#    `rotate_interleaved` on the rotary key only. Give both a dimension for heads, of size 1: `[:, None]`.
# 3. Norm and turn come *before* the cache: what is remembered is ready to use, and its position is then known.
#    `latent, k_rope = cache.append(latent, k_rope)`.
# 4. `form = self.absorbed if cache is not None and x.shape[1] == 1 else self.expanded`; then as in lesson 4:
#    `.transpose(1, 2).flatten(2)` and `self.o_proj`.

# %%
@grade("attention.LatentAttention.forward")
def forward(self: LatentAttention, x: Tensor, rotation: Rotation, seen: Tensor,
            cache: LayerCache | None = None) -> Tensor:
    """x (B, T, D) -> (B, T, D), attended.

    rotation: cos and sin, for rotate_interleaved. seen (B, 1, T, S): who may look at whom.
    self.query(x) (B, T, H * (N + R)): for each head its content part, then its rotary part.
    self.kv_down: D -> C + R, latent and rotary key. self.kv_norm: of the latent.
    self.expanded and self.absorbed(q_nope, q_rope, latent, k_rope, seen) -> (B, H, T, v), as above;
    absorbed is for one new token with a cache. self.o_proj: H * v -> D.
    cache.append(latent, k_rope) takes those of the new tokens, (B, 1, T, C) normalised and
    (B, 1, T, R) turned, and returns those of all tokens so far. Without a cache S = T.
    """
    ### BEGIN SOLUTION
    q = self.query(x).unflatten(-1, (self.H, self.N + self.R)).transpose(1, 2)
    q_nope, q_rope = q.split([self.N, self.R], dim=-1)
    q_rope = rotate_interleaved(q_rope, *rotation)

    latent, k_rope = self.kv_down(x).split([self.C, self.R], dim=-1)
    latent = self.kv_norm(latent)[:, None]
    k_rope = rotate_interleaved(k_rope[:, None], *rotation)
    if cache is not None:
        latent, k_rope = cache.append(latent, k_rope)

    form = self.absorbed if cache is not None and x.shape[1] == 1 else self.expanded
    mixed = form(q_nope, q_rope, latent, k_rope, seen)
    return self.o_proj(mixed.transpose(1, 2).flatten(2))
    ### END SOLUTION

# %% [markdown]
# ## What it buys: memory
#
# For the published models, from their configurations alone. Above in each pair, what multi-head attention with the same
# heads would remember for a token in one layer; below, what is remembered.

# %%
figure, axis = plt.subplots(figsize=(8, 1.8), layout="constrained")
figures.draw_memory(axis, {
    name.capitalize(): (cost.cache_numbers(lang), cost.multi_head_numbers(lang))
    for name in ("small", "base") for lang in [Config.named(name).language]
})
for name in ("tiny", "small", "base"):
    lang = Config.named(name).language
    each = 2 * cost.cache_numbers(lang) * lang.num_hidden_layers
    print(f"{name:>5}: {each:,} bytes a token in bfloat16, "
          f"{cost.human(each * lang.max_position_embeddings)} for a full context")

# %% [markdown]
# Tiny, with the fewest layers and the fewest heads, remembers the most: it has no latents. (One could also let heads
# share keys and values, as some models do. 576 numbers are as few as $2\tfrac14$ heads of keys and values would be;
# with latents there are 16, or 32 in Base.)
#
# ## What it buys: time
#
# One layer as large as Small's, with random weights and a cache already full of random numbers. On the left, what one
# new token costs, for three ways to remember and compute. On the right, several new tokens after 1024 others, in the
# two forms of latent attention.

# %%
@torch.no_grad()
def milliseconds(attention, new: int, context: int) -> float:
    """For `new` tokens after `context` others: the best of three."""
    cache, took = LayerCache(context + 3 * new), []
    latent = isinstance(attention, LatentAttention)
    shapes = ((1, C), (1, R)) if latent else ((H, 128), (H, 128))
    cache.append(*(torch.randn(1, heads, context, width) for heads, width in shapes))
    for _ in range(3):
        place = torch.arange(cache.length, cache.length + new)
        turn = rotation(place[None], R if latent else 128, 10000.0)
        seen = (torch.arange(cache.length + new) <= place[:, None])[None, None]
        x = torch.randn(1, new, 2048)
        start = time.process_time()
        attention(x, turn, seen, cache)
        took.append(1000 * (time.process_time() - start))
    return min(took)


small = Config.named("small").language
multi_head = MultiHeadAttention(dataclasses.replace(small, use_mla=False))
unpacking, absorbing = LatentAttention(small), LatentAttention(small)
unpacking.absorbed = unpacking.expanded         # always in the one form
absorbing.expanded = absorbing.absorbed         # and always in the other

contexts, news = (128, 512, 1024, 2048, 4000), (1, 32, 64, 128, 256, 400)
ways = {"latent, unpacked": (unpacking, "#f4a261"), "multi-head": (multi_head, "#8a8f98"),
        "latent, absorbed": (absorbing, "#4d9de0")}
figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 2.7), layout="constrained")
for name, (attention, colour) in ways.items():
    took = [milliseconds(attention, 1, S) for S in contexts]
    left.plot(contexts, took, ".-", color=colour, label=name)
    if attention is not multi_head:
        right.plot(news, [milliseconds(attention, T, 1024) for T in news], ".-", color=colour)
left.set(xlabel="tokens remembered", ylabel="milliseconds for one new token", ylim=0, xlim=0)
right.set(xlabel="new tokens, after 1024", ylabel="milliseconds for all of them", ylim=0, xlim=0)
left.legend(frameon=False, fontsize=8)
for axis in (left, right):
    axis.spines[["top", "right"]].set_visible(False)

# %% [markdown]
# On the left: unpacking pays for every remembered token again and again. Absorbing is not only far cheaper than that;
# it beats multi-head attention, too, although it computes more: it reads 576 numbers of every remembered token, not
# 4096.
#
# On the right: unpacking starts high and rises slowly, absorbing starts low and rises fast, because dot products of
# width 512 + 64 with a latent are dearer than those of 128 + 64 with a key. Somewhere they cross. Training has no
# remembered tokens at all, and a prompt few, so there one unpacks.
#
# ## What you have now
# All of `LatentAttention` but its constructor. For as long as this notebook runs, this is a decoder with your attention
# in it; it reads in the one form and writes in the other, and the two must agree:

# %%
model = Decoder(Config.named("toy").language)
ids = torch.randint(640, (1, 40))
with torch.no_grad():
    x, real = model.embed(ids), torch.ones(1, 40, dtype=torch.bool)
    whole, _ = model(x, real)
    cache = Cache(4, 40)
    pieces = [model(x[:, t:t + 1], real[:, t:t + 1], cache)[0] for t in range(40)]
print(f"largest difference: {(torch.cat(pieces, dim=1) - whole).abs().max():.1e}; "
      f"bytes remembered: {cache.bytes:,}")

# %% [markdown]
# **Try:** take the norm of the latent away (`torch.nn.Identity()` in the place of `kv_norm`) in `decoder(1)` and
# `decoder(2)`, and train again. And let `milliseconds` run in bfloat16, if your processor likes it.
