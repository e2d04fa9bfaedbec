"""Guidance: heads of the decoder that are told where to look (looking.py), what they look past, and what they fetch.

Lesson   lessons/08_training.ipynb                      Tests   tests/test_guidance.py

Each is a loss, -log of the attention that falls where it should, of one head that is chosen for it beforehand. The others
are free, and how the layers below make it possible is left to them. (Were it the head that looks there most, whichever,
nobody would have to find anything: four heads would look at four columns of a table, and one of them always be right.)

What is fetched in the last layer, where one looks closer, is also asked, as a loss of its own, to say the next token by
itself, as loud as it is heard. Before it was asked that, the heads of the toy of weights/ looked at the right row and
whispered what they had found: a vector of length 9, beside the 124 of all that the layers before had said. No answer was
better for it.

And at first they are guided. As long as a head looks in the wrong places, what it fetches is noise, and the layers learn to
leave it, which has to be unlearned later. So a beginner's attention is laid where it should fall, first all of it, then less
and less: it learns what to do with what is found while it learns to find it. After 360 steps with the same eye the first
digits of boxes cost 0.9 nats each instead of 1.3; and 0.6 where what is fetched had been learned before (sight.py), and the
other layers begin by changing nothing.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from minivl2.attention import attend, shares
from minivl2.batch import Batch
from minivl2.decoder import Decoder
from minivl2.model import DeepSeekVL2
from minivl2.record import overhear
from minivl2.training import team
from minivl2.training.looking import Looks, Told

FETCHED = 0.3   # the weight of what is fetched there, beside that of where it is looked for
# For each of Told, which of the layers that are told, and which head of it: who finds what a question names and what an
# answer has said, looks left, looks up, finds what comes next; who finds the other edges of a box, and what was said, again;
# who finds the thing before, of all, of its colour, and of its shape; and once more, who goes on to the next, and begins it
HEADS = (0, 0), (0, 0), (1, 1), (1, 0), (2, 0), (2, 1), (2, 2), (2, 3), (1, 2), (1, 3), (1, 0), (1, 1), (2, 0), (2, 0)
# and, of a decoder that has a layer to look closer, who finds what is compared, who looks left for each row; and in that
# layer, who finds the larger, and who looks closer
CLOSER = (2, 0), (2, 1), (2, 2), (3, 2), (3, 0), (3, 1), (3, 2), (3, 3)
LAST = 5        # of Told are of that layer
DEEP = 5        # layers: so many have one


class Given(TorchFunctionMode):
    """Keeps how attention was divided, while this is entered. `attend` does not say it, so here it is done by hand. And
    guides it: of the tokens that are told where to look, so much of their attention falls there."""

    def __init__(self, guidance: float):
        super().__init__()
        self.guidance, self.told = guidance, []             # of head, Looks
        self.fetched: Tensor | None = None                  # (n, D) what heads fetch alone, if that is asked for,
        self.residual: Tensor | None = None                 # (B, T, D) and beside what it is to be heard

    def __torch_function__(self, called, types, inputs=(), options=None):
        if called is not attend:
            return called(*inputs, **(options or {}))
        q, k, v, seen, scale = inputs
        self.values = v
        self.shares = guided = shares(q, k, seen, scale or q.shape[-1] ** -0.5)         # (B, H, T, S)
        for head, looks in self.told:
            who = looks.rows, torch.tensor(head), looks.queries
            there = looks.shows / looks.shows.sum(-1, keepdim=True)
            guided = guided.index_put(who, self.shares[who].lerp(there.to(v.dtype), self.guidance))
        return guided @ v


def heads(model: DeepSeekVL2) -> tuple[tuple[int, int], ...]:
    """Layer and head that are told each of Told, all or, of a decoder that has no layer to look closer, all but the last
    eight. The last layers are told; of a toy, all but the first."""
    layers = len(model.decoder.layers)
    told = HEADS + CLOSER if layers >= DEEP else HEADS
    first = layers - 1 - max(layer for layer, _ in told)
    return tuple((first + layer, head) for layer, head in told)


@contextmanager
def listening(model: DeepSeekVL2, told: Told | None = None, guidance: float = 0.0) -> Iterator[list[tuple[Given, int]]]:
    """While the block runs, the layers that are told something are listened to; and guided, from 0, not at all, to 1: the
    heads that are told where to look, look there. Gives for each of Told what its layer has given, and the head."""
    layers = {layer: Given(guidance) for layer, _ in heads(model)}
    heard = [(layers[layer], head) for layer, head in heads(model)]
    if told and guidance:
        for (given, head), looks in zip(heard, told, strict=False):
            given.told.append((head, looks))
    hooks = [hook for layer, given in layers.items() for hook in overhear(model.decoder.layers[layer].attn, given)]
    if told and len(heard) == len(told):
        hooks += fetching(model.decoder, heard[-LAST:], told[-LAST:])
    try:
        yield heard
    finally:
        for hook in hooks:
            hook.remove()


def fetching(decoder: Decoder, heard: list[tuple[Given, int]], told: Sequence[Looks]) -> list:
    """Hooks in the last layer, by which the last matrix of its attention is also given what each of these heads would fetch
    alone, where it should look: rows below the others, cut off again. (Of a model that is divided, the matrix is here only
    now.)"""
    given, _ = heard[0]                 # they are of one layer

    def below(_, inputs: tuple[Tensor]) -> Tensor:
        (x,), H = inputs, given.values.shape[1]
        alone = []
        for (_, head), looks in zip(heard, map(away, told), strict=True):
            share = looks.shows / looks.shows.sum(-1, keepdim=True)
            fetched = torch.einsum("ns,nsv->nv", share.to(x.dtype), given.values[looks.rows, head])
            alone.append(F.pad(fetched[:, None], (0, 0, head, H - 1 - head)).flatten(1))            # (n, H*v)
        return torch.cat((x.flatten(0, 1), *alone))

    def cut_off(_, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        B, T = given.values.shape[0], given.shares.shape[2]
        given.fetched = output[B * T :]
        return output[: B * T].unflatten(0, (B, T))

    def keep(_, inputs: tuple[Tensor]) -> None:
        given.residual = inputs[0].detach()

    o_proj = decoder.layers[-1].attn.o_proj
    return [o_proj.register_forward_pre_hook(below), o_proj.register_forward_hook(cut_off),
            decoder.norm.register_forward_pre_hook(keep)]


def loss(heard: list[tuple[Given, int]], told: Told) -> Tensor:
    """The sum of what each head looks past, a mean over the tokens of the whole team that are told; to be added up over the
    team, and divided by its size."""
    told = told[: len(heard)]
    return added_up([looked_past(given, head, looks) for (given, head), looks in zip(heard, told, strict=True)])


def added_up(losses: Sequence[Tensor]) -> Tensor:
    """The sum of their means over all that the whole team has of each, times what this process has part in it."""
    counts = team.total(torch.tensor([len(each) for each in losses])).clamp(min=1)
    return sum(each.sum() * team.size() / n for each, n in zip(losses, counts, strict=True))


def fetched_loss(model: DeepSeekVL2, heard: list[tuple[Given, int]], told: Told, batch: Batch) -> Tensor:
    """Of the heads of the last layer: what each fetches where it should look is to say the next token, by itself, and as
    loud as it is beside all else that the token knows by then. 0 of a decoder that has none."""
    closer = [away(looks) for looks in told[-LAST:]]
    given, _ = heard[-1]
    if given.fetched is None:
        return torch.zeros(())
    beside = torch.cat([given.residual[looks.rows, looks.queries] for looks in closer])             # (n, D)
    heard_as = given.fetched * beside.square().mean(-1, keepdim=True).rsqrt() * model.decoder.norm.weight
    next_tokens = torch.cat([batch.labels[looks.rows, looks.queries + 1] for looks in closer])
    each = F.cross_entropy(model.decoder.head(heard_as).float(), next_tokens, reduction="none")
    return FETCHED * added_up(each.split([len(looks.rows) for looks in closer]))


def away(looks: Looks) -> Looks:
    """Without those who are to look at themselves."""
    found = ~looks.shows[torch.arange(len(looks.queries)), looks.queries]
    return Looks(*(each[found] for each in looks))


def looked_past(given: Given, head: int, looks: Looks) -> Tensor:
    """-log of the part of each token's attention that falls where it should: (n,)"""
    on_it = (given.shares[looks.rows, head, looks.queries].float() * looks.shows).sum(-1)
    return -(on_it + 1e-6).log()
