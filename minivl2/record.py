"""What happens inside one answer, written down while it is given.

Source   hooks of torch modules, and torch.overrides.TorchFunctionMode.
Lesson   lessons/00_what_it_does.ipynb        Tests    tests/test_record.py        Letters    the legend in config.py

    with watch(model) as record:
        tokens = list(write(model, batch, 60))
    record.steps[3].attention       # (L, H, S): where each head looked when the fourth token was chosen

The model knows nothing of this. While the block runs, hooks stand beside its modules; afterwards they are gone. One
thing no hook can see: `attend` does not give away its weights, and its fastest kernel never writes them down. So, while an
attention module runs, `Ears` listens to its calls: the weights are computed from the very queries and keys that `attend`
was given, and its own answer is passed on untouched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from minivl2.attention import attend
from minivl2.cache import LayerCache
from minivl2.experts import MixtureOfExperts, Routing
from minivl2.model import DeepSeekVL2


class Step(NamedTuple):
    """One token of the answer."""

    logits: Tensor                  # (V,) of which it was chosen
    attention: Tensor | None        # (L, H, S) of the last token read, at all S so far; None after the first `most_steps`


@dataclass
class Record:
    """What was seen. Layers of the decoder and blocks of the tower are counted from 0."""

    ids: list[int] = field(default_factory=list)                        # all tokens read: prompt, then answer
    seeing: dict[int, Tensor] = field(default_factory=dict)             # block: (views, H, P, P), who looks at whom
    features: dict[int, Tensor] = field(default_factory=dict)           # block: (M, P, W), what left it
    steps: list[Step] = field(default_factory=list)
    gates: dict[int, list[Routing]] = field(default_factory=dict)       # layer: as its gate gave them, call by call
    remembered: dict[int, tuple[int, int]] = field(default_factory=dict)    # layer: numbers a token, bytes a number

    def routing(self, layer: int) -> Routing:
        """Of all tokens read, in order."""
        return Routing(*(torch.cat(parts) for parts in zip(*self.gates[layer], strict=True)))


def likeliest(logits: Tensor, k: int) -> list[tuple[int, float]]:
    """logits (V,) -> the k likeliest tokens, the likeliest first, each with its probability among all V."""
    probabilities, tokens = logits.float().softmax(-1).topk(k)      # bfloat16 has 3 digits: too few to add up to 1
    return list(zip(tokens.tolist(), probabilities.tolist(), strict=True))


@contextmanager
def watch(
    model: DeepSeekVL2, views: Sequence[int] | None = None, blocks: Sequence[int] | None = None, most_steps: int = 1000
) -> Iterator[Record]:
    """Fill a Record while the model answers one conversation.

    views, blocks    of which tiles and blocks of the vision tower to keep the attention (None: all). Ten tiles at full
                     size have 10 * 27 * 16 maps of 729 x 729: 9 GB. The features are kept of all tiles, in these blocks
    most_steps       keep the attention of so many tokens of the answer
    """
    record = Record()
    rows: dict[int, Tensor] = {}        # layer: the last token's attention, in the pass that is under way

    def read(_, inputs, __):
        ids = inputs[0]
        if len(ids) != 1:
            raise ValueError(f"only one conversation can be watched at a time; this batch has {len(ids)}")
        record.ids += ids[0].tolist()

    def speak(_, __, logits):
        full = len(record.steps) >= most_steps
        attention = None if full else torch.stack([rows[i] for i in sorted(rows)])
        record.steps.append(Step(logits[0].detach().cpu(), attention))

    def see(block: int, weights: Tensor):
        record.seeing[block] = weights.cpu()

    def look(layer: int, weights: Tensor):
        rows[layer] = weights[0, :, -1].cpu()

    def leave(block: int, out: Tensor):
        record.features[block] = out.detach().cpu()

    def remember(layer: int, cache: LayerCache | None):
        if cache is not None:
            numbers = sum(room[0, ..., 0, :].numel() for room in cache.rooms)
            record.remembered[layer] = numbers, cache.rooms[0].element_size()

    def route(layer: int, routing: Routing):
        record.gates.setdefault(layer, []).append(Routing(*(t.detach().cpu() for t in routing)))

    hooks = [model.decoder.embed.register_forward_hook(read), model.decoder.head.register_forward_hook(speak)]
    for i, block in enumerate(model.vision.blocks):
        if blocks is None or i in blocks:
            those = slice(None) if views is None else list(views)
            hooks += overhear(block.attn, Ears(those, slice(None), lambda weights, i=i: see(i, weights)))
            hooks.append(block.register_forward_hook(lambda _, __, out, i=i: leave(i, out)))
    for i, layer in enumerate(model.decoder.layers):
        hooks += overhear(layer.attn, Ears(slice(None), slice(-1, None), lambda weights, i=i: look(i, weights)))
        hooks.append(layer.attn.register_forward_hook(lambda _, inputs, __, i=i: remember(i, inputs[3])))
        if isinstance(layer.mlp, MixtureOfExperts):
            hooks.append(layer.mlp.gate.register_forward_hook(lambda _, __, routing, i=i: route(i, routing)))
    try:
        yield record
    finally:
        for hook in hooks:
            hook.remove()


def overhear(module: nn.Module, ears: TorchFunctionMode) -> list:
    """Whenever this module runs, the ears hear the calls of torch it makes. Returns the hooks, to be removed."""
    def enter(*_):              # a hook that returned something would change the module's input or output
        ears.__enter__()

    def leave(*_):
        ears.__exit__(None, None, None)

    return [module.register_forward_pre_hook(enter), module.register_forward_hook(leave, always_call=True)]


class Ears(TorchFunctionMode):
    """Hears every call of torch made while it is entered, in this thread. `keep` gets the weights of attention, of some
    rows of the batch and some of the queries."""

    def __init__(self, rows: slice | list[int], queries: slice, keep: Callable[[Tensor], None]):
        self.rows, self.queries, self.keep = rows, queries, keep

    def __torch_function__(self, called, types, inputs=(), options=None):
        out = called(*inputs, **(options or {}))
        if called is attend:
            self.keep(self.weights(*inputs, **(options or {})))
        elif called is torch.Tensor.softmax:            # latent attention absorbs: here the weights are
            self.keep(out[self.rows][:, :, self.queries].detach())
        return out

    @torch.no_grad()
    def weights(self, q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None = None, scale: float | None = None) -> Tensor:
        """What the values are multiplied with, from what `attend` was given. (rows, H, queries, S)"""
        q, k = q[self.rows][:, :, self.queries], k[self.rows]
        at_least_float32 = torch.promote_types(q.dtype, torch.float32)
        scores = q.to(at_least_float32) @ k.to(at_least_float32).mT * (scale or q.shape[-1] ** -0.5)
        if seen is not None:
            scores = scores.masked_fill(~seen[self.rows][:, :, self.queries], -torch.inf)
        return scores.softmax(-1)
