"""What limits a model on a machine, and how near a measured figure comes.

Tests    tests/test_bench.py                 Letters    the legend in minivl2/config.py

Two things limit a model. Where many vectors share every weight (a tile's patches, a prompt), it is how many multiplications
a second the processor can do; where one vector is alone (each word of an answer), how many bytes a second come from memory.
Both are measured by the plainest program there is, before and after every figure: the memory of a machine that others use,
too, has not one speed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from minivl2 import cost
from minivl2.config import Config, LanguageConfig

STEADY = 0.1            # limits before and after a figure may differ by this much


# ------------------------------------------------------------------------------------ the machine's limits


@dataclass
class Machine:
    """The two limits, measured again and again. large: enough work for a figure that means something."""

    dtype: torch.dtype
    large: bool
    flops: list[float] = field(default_factory=list)        # multiplications and additions a second
    bytes: list[float] = field(default_factory=list)        # read a second

    def __post_init__(self):
        n = 4096 if self.large else 256
        self.a, self.b = (torch.randn(n, n).to(self.dtype) for _ in range(2))
        self.memory = torch.ones(2**28 if self.large else 2**20)        # 1 GB: no cache holds it

    def measure(self, kind: str) -> float:
        if kind == "flops":
            rate = 2 * len(self.a) ** 3 / seconds(lambda: self.a @ self.b)
        else:
            rate = self.memory.nbytes / seconds(self.memory.sum)
        getattr(self, kind).append(rate)
        return rate


def seconds(run: Callable[..., object], *inputs) -> float:
    start = time.perf_counter()
    run(*inputs)
    return time.perf_counter() - start


# ------------------------------------------------------------------------------------ what each figure costs


def vision_flops(config: Config) -> float:
    """Of a tile: every matrix of the tower is multiplied with every patch, and every patch looks at every patch."""
    v, P = config.vision, config.vision.grid**2
    block = 4 * v.width**2 + 2 * v.width * v.mlp_width
    return 2 * P * (v.layers * block + 3 * v.patch_size**2 * v.width) + 4 * P * P * v.width * v.layers


def prompt_flops(config: Config, tokens: int) -> float:
    """Of a whole prompt: the activated weights, for each token; attention, of which causality halves the scores; and the
    head, for the last token alone."""
    lang, weights = config.language, layer_numbers(config)
    if lang.use_mla:
        widths = lang.num_attention_heads * (lang.qk_nope_head_dim + lang.qk_rope_head_dim + lang.v_head_dim)
    else:
        widths = 2 * lang.hidden_size
    attention = lang.num_hidden_layers * tokens * tokens * widths
    return 2 * tokens * weights + attention + 2 * lang.hidden_size * lang.vocab_size


def word_flops(config: Config, context: int) -> float:
    """Of one word: two operations for every weight it meets, and for everything remembered that it is compared with."""
    lang = config.language
    if lang.use_mla:        # absorbed: queries of every head against the latents themselves, and the latents' mean
        compared = lang.num_attention_heads * (2 * lang.kv_lora_rank + lang.qk_rope_head_dim)
    else:
        compared = 2 * lang.hidden_size
    return 2 * (layer_numbers(config) + lang.vocab_size * lang.hidden_size + lang.num_hidden_layers * context * compared)


def layer_numbers(config: Config) -> int:
    """Weights that a token meets in the decoder's layers."""
    met = ("attention", "dense MLP", "gate and shared experts", "routed experts")
    return sum(part.activated for part in cost.parts(config) if part.name in met)


def plain_word_bytes(config: Config, context: int, dtype: torch.dtype) -> float:
    """To write one word: every weight it meets, kept plainly, and all that is remembered."""
    lang = config.language
    return (layer_numbers(config) + lang.vocab_size * lang.hidden_size) * dtype.itemsize + cache_bytes(lang, context, dtype)


def cache_bytes(lang: LanguageConfig, context: int, dtype: torch.dtype) -> float:
    return cost.cache_numbers(lang) * context * lang.num_hidden_layers * dtype.itemsize


@dataclass
class Figure:
    """work: done by one run, in `unit`, with so many operations on so many bytes. limit: which of the two counts."""

    name: str
    unit: str
    work: float
    flops: float
    bytes: float
    limit: str
    run: Callable[[], float]        # returns its seconds
    rates: list[float] = field(default_factory=list)
    fractions: list[float] = field(default_factory=list)
    steady: bool = True

    def take(self, machine: Machine) -> None:
        before = machine.measure(self.limit)
        taken = self.run()
        after = machine.measure(self.limit)
        self.rates.append(self.work / taken)
        self.fractions.append(getattr(self, self.limit) / taken / ((before + after) / 2))
        self.steady &= abs(before - after) <= STEADY * max(before, after)
