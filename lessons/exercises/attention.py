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
        Mistake("mask forgotten", {"(sharing, 1), seen)": "(sharing, 1))"},
                "the mask is not handed on: everyone sees everything."),
        Mistake("only the new ones", {"k, v = cache.append(k, v)": "cache.append(k, v)"}),
        Mistake("remembered once per query head", remembered_once_per_query_head),
        Mistake("scaled twice", {"(sharing, 1), seen)": "(sharing, 1), seen, 1 / self.head_dim)"}),
    )),
)
