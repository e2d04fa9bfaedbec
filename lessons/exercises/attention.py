"""Exercises on minivl2/attention.py, of lessons 04 and 05. Graded by tests/test_attention.py."""

import small
import torch

from minivl2 import attention
from minivl2.cache import LayerCache
from minivl2.grading.exercise import Exercise, Mistake
from minivl2.rope import rotate_half_split, rotation

# ------------------------------------------------------------------------------------------ attend


def some_attention():
    """With a mask and a scale of its own, and with neither; T, S, d and the values' width all differ."""
    q, k, v = small.numbers(2, 3, 4, 6), small.numbers(2, 3, 5, 6, seed=1), small.numbers(2, 3, 5, 7, seed=2)
    seen = torch.rand(2, 1, 4, 5) < 0.6
    seen[..., 0] = True
    return [attention.attend(q, k, v, seen, 0.7), attention.attend(q, k, v)]


def attending(scale_of=lambda q, v, scale: q.shape[-1] ** -0.5 if scale is None else scale, axis=-1,
              before=lambda scores, seen: scores.masked_fill(~seen, -torch.inf), after=lambda weights, seen: weights):
    """An `attend` that is right but for what is given."""

    def attend(q, k, v, seen=None, scale=None):
        scores = q @ k.mT * scale_of(q, v, scale)
        weights = (scores if seen is None else before(scores, seen)).softmax(axis)
        return (weights if seen is None else after(weights, seen)) @ v

    return attend


def same(scores, seen):
    return scores


# ------------------------------------------------------------------------------------------ multi-head attention


def some_heads():
    """Four heads of queries share two of keys; read in two parts, with padding before one row."""
    attn = small.randomised(attention.MultiHeadAttention(small.language(**small.MULTI_HEAD)))
    x, cache = small.numbers(2, 5, 16), LayerCache(5)
    real = torch.tensor([[True] * 5, [False] * 2 + [True] * 3])
    seen = (torch.ones(5, 5, dtype=torch.bool).tril() & real[:, None] | torch.eye(5, dtype=torch.bool))[:, None]
    cos, sin = rotation(torch.tensor([[3, 4, 5, 6, 7], [0, 0, 0, 1, 2]]), 4, 50.0, torch.float64)
    return [attn(x[:, new], (cos[:, :, new], sin[:, :, new]), seen[:, :, new, :new.stop], cache)
            for new in (slice(0, 3), slice(3, 5))]


def in_heads(self, x):
    return [proj(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for proj in (self.q_proj, self.k_proj, self.v_proj)]


def heads_first_in_memory(self, x, rotation, seen, cache=None):
    B, T, _ = x.shape
    q, k, v = (proj(x).view(B, -1, T, self.head_dim) for proj in (self.q_proj, self.k_proj, self.v_proj))
    q, k = rotate_half_split(q, *rotation), rotate_half_split(k, *rotation)
    if cache is not None:
        k, v = cache.append(k, v)
    sharing = q.shape[1] // k.shape[1]
    mixed = attention.attend(q, k.repeat_interleave(sharing, 1), v.repeat_interleave(sharing, 1), seen)
    return self.o_proj(mixed.transpose(1, 2).flatten(2))


def remembered_before_turning(self, x, rotation, seen, cache=None):
    q, k, v = in_heads(self, x)
    if cache is not None:
        k, v = cache.append(k, v)
    q = rotate_half_split(q, *rotation)
    new = rotate_half_split(k[:, :, -x.shape[1]:], *rotation)
    k = torch.cat((k[:, :, : -x.shape[1]], new), dim=2)
    sharing = q.shape[1] // k.shape[1]
    mixed = attention.attend(q, k.repeat_interleave(sharing, 1), v.repeat_interleave(sharing, 1), seen)
    return self.o_proj(mixed.transpose(1, 2).flatten(2))


def remembered_once_per_query_head(self, x, rotation, seen, cache=None):
    q, k, v = in_heads(self, x)
    q, k = rotate_half_split(q, *rotation), rotate_half_split(k, *rotation)
    sharing = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(sharing, 1), v.repeat_interleave(sharing, 1)
    if cache is not None:
        k, v = cache.append(k, v)
    return self.o_proj(attention.attend(q, k, v, seen).transpose(1, 2).flatten(2))


# ------------------------------------------------------------------------------------------ latent attention


def in_form(form):
    """Two new tokens of three and of five: keys of 3 + 2 numbers, values of 3, latents of 6, so that most mix-ups fit."""

    def probe():
        attn = small.randomised(attention.LatentAttention(small.language(qk_nope_head_dim=3, v_head_dim=3)))
        outcomes = []
        for S in (3, 5):
            seen = torch.ones(2, S, dtype=torch.bool).tril(S - 2)[None, None].repeat(2, 1, 1, 1)
            seen[1, ..., 0] = False
            outcomes.append(getattr(attn, form)(
                small.numbers(2, 2, 2, 3), small.numbers(2, 2, 2, 2, seed=1), small.numbers(2, 1, S, 6, seed=2),
                small.numbers(2, 1, S, 2, seed=3), seen))
        return outcomes

    return probe


def some_layer():
    """Read in parts of three and of one, with padding before one row: what comes out, and what is remembered."""
    attn = small.randomised(attention.LatentAttention(small.language(qk_nope_head_dim=4, qk_rope_head_dim=4)))
    x, cache = small.numbers(2, 4, 16), LayerCache(4)
    real = torch.tensor([[True] * 4, [False] * 2 + [True] * 2])
    seen = (torch.ones(4, 4, dtype=torch.bool).tril() & real[:, None] | torch.eye(4, dtype=torch.bool))[:, None]
    cos, sin = rotation(torch.tensor([[3, 4, 5, 6], [0, 0, 0, 1]]), 4, 50.0, torch.float64)
    out = [attn(x[:, new], (cos[:, :, new], sin[:, :, new]), seen[:, :, new, :new.stop], cache)
           for new in (slice(0, 3), slice(3, 4))]
    return [*out, *cache.rooms]


def keys_of_all_heads_first(self, q_nope, q_rope, latent, k_rope, seen):
    k_nope, value = self.kv_up(latent[:, 0]).split([self.H * self.N, self.H * self.v], dim=-1)
    k_nope, value = (t.unflatten(-1, (self.H, -1)).transpose(1, 2) for t in (k_nope, value))
    q = torch.cat((q_nope, q_rope), dim=-1)
    k = torch.cat((k_nope, k_rope.expand(-1, self.H, -1, -1)), dim=-1)
    return attention.attend(q, k, value, seen, self.scale)


def without_position(self, q_nope, q_rope, latent, k_rope, seen):
    kv = self.kv_up(latent[:, 0]).unflatten(-1, (self.H, self.N + self.v)).transpose(1, 2)
    k_nope, value = kv.split([self.N, self.v], dim=-1)
    return attention.attend(q_nope, k_nope, value, seen, self.scale)


def expanded_after_all(self, q_nope, q_rope, latent, k_rope, seen):
    return self.expanded(q_nope, q_rope, latent, k_rope, seen)


def keys_only_absorbed(self, q_nope, q_rope, latent, k_rope, seen):
    W_uk, W_uv = self.kv_up.weight.unflatten(0, (self.H, -1)).split([self.N, self.v], dim=1)
    q_latent = torch.einsum("bhtn,hnc->bhtc", q_nope, W_uk)
    scores = (q_latent @ latent.mT + q_rope @ k_rope.mT) * self.scale
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    return weights @ torch.einsum("bsc,hvc->bhsv", latent[:, 0], W_uv)


BY_NUMBER = "self.absorbed if cache is not None and self.few(x.shape[1], latent.shape[2]) else self.expanded"

EXERCISES = (
    Exercise("attention.attend", "to_attend", some_attention, (
        Mistake("no scale", attending(lambda q, v, scale: 1.0 if scale is None else scale),
                "where no scale is given, the scores are not divided by the root of d: the softmax gets too sharp."),
        Mistake("divided by d", attending(lambda q, v, scale: 1 / q.shape[-1] if scale is None else scale),
                "you divide the scores by d; it is the square root of d."),
        Mistake("scale not used", attending(lambda q, v, scale: q.shape[-1] ** -0.5),
                "the scale that was given is not used: 1 / sqrt(d) is only for when it is None."),
        Mistake("the values' width", attending(lambda q, v, scale: v.shape[-1] ** -0.5 if scale is None else scale),
                "d is the width of queries and keys; you take the root of the values' width."),
        Mistake("scale on top", attending(lambda q, v, scale: (scale or 1) * q.shape[-1] ** -0.5),
                "a scale that is given replaces 1 / sqrt(d); you multiply by both."),
        Mistake("softmax over queries", attending(axis=-2),
                "the softmax goes over the keys, the last dimension: each *query's* weights add up to 1. Yours goes over "
                "the queries."),
        Mistake("softmax over heads", attending(axis=1)),
        Mistake("mask upside down", attending(before=lambda scores, seen: scores.masked_fill(seen, -torch.inf)),
                "the mask is upside down: seen is True for the keys that *may* be looked at."),
        Mistake("no mask", attending(before=same), "seen is not used: every query looks at every key."),
        Mistake("masked after the softmax", attending(before=same, after=lambda weights, seen: weights * seen),
                "masked after the softmax, the weights no longer add up to 1. The scores must become -inf before it."),
        Mistake("scores of 0", attending(before=lambda scores, seen: scores * seen),
                "a score of 0 is not a weight of 0: exp(0) is 1. What may not be seen gets the score -inf."),
        Mistake("nearly masked", attending(before=lambda scores, seen: scores - 2.0 * ~seen)),
        Mistake("no gradient to the keys", lambda q, k, v, *how: attending()(q, k.detach(), v, *how)),
        Mistake("answers in float32", lambda q, k, v, *how: attending()(q, k, v, *how).float()),
    )),
    Exercise("attention.MultiHeadAttention.forward", "(multi_head or chunks or distance) and not transformers",
             some_heads, (
        Mistake("queries not turned", {"rotate_half_split(q, *rotation)": "q"},
                "the queries are not turned. Both are, or their dot product does not tell the distance."),
        Mistake("keys not turned", {"rotate_half_split(k, *rotation)": "k"},
                "the keys are not turned. Both are, or their dot product does not tell the distance."),
        Mistake("values turned too", {"q, k = rotate": "v = rotate_half_split(v, *rotation)\n    q, k = rotate"},
                "you turn the values, too. Positions say who is asked, not what is said."),
        Mistake("the other pairing", {"rotate_half_split": "rotate_interleaved"},
                "pairs are neighbours in yours. In multi-head attention it is number i and number i + d/2: "
                "rotate_half_split."),
        Mistake("remembered before turning", remembered_before_turning,
                "keys go into the cache before they are turned, so later tokens meet them unturned. Turn, then remember."),
        Mistake("heads shared in turns", {".repeat_interleave(sharing, 1)": ".repeat(1, sharing, 1, 1)"},
                "with fewer heads of keys, neighbours share one: heads 0, 1 | 2, 3. You share in turns, 0, 2 | 1, 3: use "
                "repeat_interleave, not repeat."),
        Mistake("heads cut across tokens", heads_first_in_memory,
                "a view of (B, T, H*d) as (B, H, T, d) fits in shape, and mixes tokens with heads. Cut the last dimension "
                "into (H, d), then swap T and H."),
        Mistake("heads not brought back", {"mixed.transpose(1, 2).flatten(2)": "mixed.reshape(x.shape)"},
                "on the way back T and H must be swapped again before heads are laid side by side. Yours mixes tokens "
                "with heads."),
        Mistake("heads interleaved", {".unflatten(-1, (-1, self.head_dim)).transpose(1, 2)":
                                      ".unflatten(-1, (self.head_dim, -1)).permute(0, 3, 1, 2)"},
                "the projections give head after head, d numbers each: (H, d), not (d, H)."),
        Mistake("no output projection", {"self.o_proj(mixed": "(mixed"},
                "the heads' answers are laid side by side and not mixed: o_proj is missing."),
        Mistake("mask forgotten", {"attend(q, k, v, seen)": "attend(q, k, v)"},
                "the mask is not handed on: everyone sees everything."),
        Mistake("only the new ones", {"k, v = cache.append(k, v)": "cache.append(k, v)"}),
        Mistake("remembered once per query head", remembered_once_per_query_head),
        Mistake("scaled twice", {"attend(q, k, v, seen)": "attend(q, k, v, seen, 1 / self.head_dim)"}),
    )),
    Exercise("attention.LatentAttention.expanded", "(latent or chunks or both_forms) and not transformers",
             in_form("expanded"), (
        Mistake("value before key", {"k_nope, value": "value, k_nope", "[self.N, self.v]": "[self.v, self.N]"},
                "you take each head's value first and then its key; kv_up gives the N numbers of the key first."),
        Mistake("keys of all heads first", keys_of_all_heads_first,
                "you split before cutting into heads, as if all keys came first and then all values. It is head after "
                "head: cut into H heads of N + v, then split each."),
        Mistake("parts joined in different orders", {"torch.cat((q_nope, q_rope)": "torch.cat((q_rope, q_nope)"},
                "query and key are joined in different orders, so content meets position."),
        Mistake("no position", without_position,
                "the rotary parts are not used: this attention does not know where tokens stand."),
        Mistake("scale of the content", {"self.scale": "self.N ** -0.5"},
                "the scale is that of the whole query, 1 / sqrt(N + R), as self.scale says; yours counts the content only."),
        Mistake("scale of the latent", {"self.scale": "self.C ** -0.5"},
                "the latent is not what queries meet here: the scale is 1 / sqrt(N + R), whatever C is."),
        Mistake("no mask", {"seen, self.scale": "None, self.scale"}, "seen is not handed on: everyone sees everything."),
        Mistake("heads interleaved", {"unflatten(-1, (self.H, self.N + self.v)).transpose(1, 2)":
                                      "unflatten(-1, (self.N + self.v, self.H)).permute(0, 3, 1, 2)"},
                "kv_up gives head after head: cut its output into (H, N + v), not (N + v, H)."),
        Mistake("rotary key divided among heads", {"k_rope.expand(-1, self.H, -1, -1)":
                                                   "k_rope.expand(-1, self.H, -1, -1) / self.H"}),
        Mistake("heads and tokens mixed", {".unflatten(-1, (self.H, self.N + self.v)).transpose(1, 2)":
                                           ".reshape(latent.shape[0], self.H, -1, self.N + self.v)"},
                "a reshape straight to (B, H, S, N + v) fits, and mixes tokens with heads: unflatten the last dimension, "
                "then swap."),
    )),
    Exercise("attention.LatentAttention.absorbed", "(absorbed or chunks or both_forms) and not transformers",
             in_form("absorbed"), (
        Mistake("scale of the latent", {"* self.scale": "* (self.C + self.R) ** -0.5"},
                "the query that meets the latents is C + R wide, but the score is that of a query of N + R: the sum is only "
                "regrouped, so the scale stays self.scale."),
        Mistake("scale on one part", {"F.linear(rotary, r)": "F.linear(rotary, r) / self.scale"},
                "only the content's score is scaled. Both parts are one dot product: scale their sum."),
        Mistake("no position", {" + F.linear(rotary, r)": ""}, "the rotary part of the score is missing."),
        Mistake("keys and values swapped", {"W_uk, W_uv =": "W_uv, W_uk ="},
                "the two matrices are swapped: each head's first N rows make its key, the last v its value."),
        Mistake("no mask", {".masked_fill(~seen, -torch.inf)": ""}, "seen is not used: everyone sees everything."),
        Mistake("mask upside down", {"~seen": "seen"}, "the mask is upside down: seen is True for what may be looked at."),
        Mistake("masked after the softmax", {".masked_fill(~seen, -torch.inf).softmax(-1)": ".softmax(-1) * seen"},
                "masked after the softmax, the weights no longer add up to 1."),
        Mistake("masked with nought", {"masked_fill(~seen, -torch.inf)": "masked_fill(~seen, 0)"},
                "a score of 0 is not a weight of 0: exp(0) is 1. What may not be seen gets the score -inf."),
        Mistake("heads interleaved", {"self.kv_up.weight.unflatten(0, (self.H, -1))":
                                      "self.kv_up.weight.unflatten(0, (-1, self.H)).transpose(0, 1)"},
                "the rows of kv_up are head after head: (H, N + v, C), not (N + v, H, C)."),
        Mistake("one head's matrices for all", {"W_uk)": "W_uk[:1].expand_as(W_uk))"}),
        Mistake("expanded after all", expanded_after_all),
        Mistake("keys only absorbed", keys_only_absorbed),
    )),
    Exercise("attention.LatentAttention.forward",
             "(latent or absorbed or chunks or distance) and not transformers and not both_forms", some_layer, (
        Mistake("latent not normalised", {"self.kv_norm(latent)": "latent"},
                "the latent is not normalised: self.kv_norm goes on it, before it is remembered."),
        Mistake("rotary key not turned", {"rotate_interleaved(k_rope[:, None], *rotation)": "k_rope[:, None]"},
                "the rotary key is not turned."),
        Mistake("query not turned", {"q_rope = rotate_interleaved(q_rope, *rotation)": "pass"},
                "the rotary part of the query is not turned."),
        Mistake("the other pairing", {"rotate_interleaved": "rotate_half_split"},
                "you turn halves. In latent attention a pair is two neighbours: rotate_interleaved."),
        Mistake("rotary part first", {"q_nope, q_rope =": "q_rope, q_nope =", "[self.N, self.R]": "[self.R, self.N]"},
                "of each head's query the content part comes first, N numbers, and then the rotary part."),
        Mistake("rotary key first", {"latent, k_rope = self.kv_down(x).split([self.C, self.R]":
                                     "k_rope, latent = self.kv_down(x).split([self.R, self.C]"},
                "kv_down gives the latent first, C numbers, and then the rotary key."),
        Mistake("no output projection", {"self.o_proj(mixed": "(mixed"}),
        Mistake("heads not brought back", {"mixed.transpose(1, 2).flatten(2)": "mixed.reshape(*x.shape[:2], -1)"},
                "on the way back T and H must be swapped before heads are laid side by side. Yours mixes tokens with "
                "heads."),
        Mistake("heads interleaved", {".unflatten(-1, (self.H, self.N + self.R)).transpose(1, 2)":
                                      ".unflatten(-1, (self.N + self.R, self.H)).permute(0, 3, 1, 2)"},
                "the queries come head after head: cut into (H, N + R), not (N + R, H)."),
        Mistake("mask forgotten", {"k_rope, seen)": "k_rope, torch.ones_like(seen))"},
                "the mask is not handed on: everyone sees everything."),
        Mistake("normalised after remembering", {
            "latent = self.kv_norm(latent)[:, None]": "latent = latent[:, None]",
            "form = self": "latent = self.kv_norm(latent)\n    form = self"},
                "the latent is remembered as it comes and normalised anew for each token. Norm first, then remember."),
        Mistake("always expanded", {BY_NUMBER: "self.expanded"}),
        Mistake("always absorbed", {BY_NUMBER: "self.absorbed"}),
        Mistake("remembered once per head", {"cache.append(latent, k_rope)":
                                             "cache.append(latent, k_rope.expand(-1, self.H, -1, -1))"}),
        Mistake("the cache's answer thrown away", {"latent, k_rope = cache": "cache"}),
    )),
)
