"""What each fast way buys: the plain way is put in its place, and both are measured in turns. `minivl2 bench --gains`.

Tests    tests/test_gains.py                 Letters    the legend in minivl2/config.py

That both come to the same is tested where they stand (test_attention.py, test_experts.py, test_generation.py). Which is
quicker depends on the model and on the machine: of the toy, where everything fits the processor's cache, some are slower.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from minivl2 import afresh, attention, bench, heap
from minivl2 import model as whole_model
from minivl2.attention import LatentAttention
from minivl2.cache import Cache, LayerCache
from minivl2.experts import MixtureOfExperts, Routing
from minivl2.generation import answer_each, read
from minivl2.model import DeepSeekVL2
from minivl2.processor import Processor
from minivl2.roofline import seconds
from minivl2.stand_in import checkpoint
from minivl2.weights import load

QUESTIONS = ["what is this?", "how many things are there?", "is it raining?"]


class Gain(NamedTuple):
    phase: str
    change: str
    fast: Callable[[], object]
    plain: Callable[[], object]


# ------------------------------------------------------------------------------------ the plain ways


def every_expert(moe: MixtureOfExperts, tokens: Tensor, routing: Routing) -> Tensor:
    """All tokens through all experts, most of which count for nothing."""
    counts = torch.zeros_like(routing.scores).scatter(1, routing.experts, routing.weights)          # (n, E)
    return sum(counts[:, e, None] * expert(tokens) for e, expert in enumerate(moe.experts)).type_as(tokens)


def asked_in_turn(moe: MixtureOfExperts, tokens: Tensor, routing: Routing) -> Tensor:
    """Each expert looks for the tokens that were sent to it, and adds what it has to say."""
    out = torch.zeros_like(tokens, dtype=routing.weights.dtype)
    for e, expert in enumerate(moe.experts):
        token, place = (routing.experts == e).nonzero(as_tuple=True)
        if len(token):
            out.index_add_(0, token, routing.weights[token, place, None] * expert(tokens[token]))
    return out.type_as(tokens)


def grown(cache: LayerCache, *new: Tensor) -> tuple[Tensor, ...]:
    """Everything remembered, copied behind itself for every word."""
    earlier = [room[..., :cache.length, :] for room in cache.rooms] or [x[..., :0, :] for x in new]
    cache.rooms = tuple(torch.cat(pair, dim=-2) for pair in zip(earlier, new, strict=True))
    cache.length += new[0].shape[-2]
    return cache.rooms


def all_of_them(tiles: Tensor, sizes: list[tuple[int, int]]) -> tuple[list[int], list[int]]:
    return list(range(len(tiles))), list(range(len(tiles)))


def handed_back(run: Callable[[], object]) -> Callable[[], object]:
    """The same run, while free memory goes back to the system when there is as much of it as the C library likes."""
    def slowly() -> object:
        heap.keep_freed(2**26)
        try:
            return run()
        finally:
            heap.keep_freed()
    return slowly


def instead(run: Callable[[], object], owner: object, name: str, plain: Callable) -> Callable[[], object]:
    """The same run, with a function of a module or a class replaced meanwhile."""
    def slowly() -> object:
        fast = getattr(owner, name)
        setattr(owner, name, plain)
        try:
            return run()
        finally:
            setattr(owner, name, fast)
    return slowly


# ------------------------------------------------------------------------------------ what is compared


def gains_of(model: DeepSeekVL2, processor: Processor, words: int) -> list[Gain]:
    config, decoder, lang = model.config, model.decoder, model.config.language
    prompt, size = min(bench.PROMPT, lang.max_position_embeddings // 2), config.vision.image_size
    tiles = torch.randn(bench.TILES, 3, size, size, dtype=model.image_newline.dtype)
    ids = torch.randint(lang.vocab_size, (1, prompt))
    picture = Image.effect_noise((size, size), 60).convert("RGB")
    spoken = torch.randint(lang.vocab_size, (words, 1, 1))
    memory = bench.remembering(model, 1, prompt - words, words)

    def look() -> Tensor:
        return model.vision(tiles)

    def look_at_one_tile() -> Tensor:
        return model.see(tiles[:1].expand(2, -1, -1, -1), torch.tensor([[1, 1]]))[0]

    def hidden() -> Tensor:
        return read(model, bench.text(ids), Cache(lang.num_hidden_layers, prompt))

    def read_prompt() -> Tensor:
        return decoder.head(hidden()[:, -1:])

    def write() -> Tensor:
        bench.forget(memory, prompt - words)
        return torch.stack([bench.one_word(model, word, memory) for word in spoken], dim=1)

    def answers(*together: list[str]) -> list[str]:
        return [answer for asked in together for answer in answer_each(model, processor, asked, [picture], words)]

    all_gains = [
        Gain("three tiles", "attention a few queries at a time", look,
             instead(look, attention, "in_pieces", attention.fused)),
        Gain("one-tile picture", "looked at once", look_at_one_tile,
             instead(look_at_one_tile, whole_model, "without_twins", all_of_them)),
        Gain("prompt", "attention a few queries at a time", read_prompt,
             instead(read_prompt, attention, "in_pieces", attention.fused)),
        Gain("prompt", "the head for the last token only", read_prompt, lambda: decoder.head(hidden())),
        Gain("prompt", "experts grouped, not asked in turn", read_prompt,
             instead(read_prompt, MixtureOfExperts, "routed", asked_in_turn)),
        Gain("prompt", "the chosen experts, not all", read_prompt,
             instead(read_prompt, MixtureOfExperts, "routed", every_expert)),
        Gain("prompt", "freed memory kept", read_prompt, handed_back(read_prompt)),
        Gain("words", "no sorting for a single token", write,
             instead(write, MixtureOfExperts, "direct", MixtureOfExperts.routed)),
        Gain("words", "room for the memory taken once", write, instead(write, LayerCache, "append", grown)),
        Gain("three questions", "the picture read once", lambda: answers(QUESTIONS),
             lambda: answers(*([question] for question in QUESTIONS))),
    ]
    if lang.use_mla:
        all_gains.append(Gain("words", "latents absorbed, not expanded", write,
                              instead(write, LatentAttention, "few", lambda *_: False)))
    if lang.n_routed_experts is None:
        all_gains = [gain for gain in all_gains if "expert" not in gain.change and "sorting" not in gain.change]
    return all_gains


@torch.no_grad()
def run(target: str, dtype: str = "bfloat16", repeats: int = 5, words: int = 16, layers: int | None = None,
        say: Callable[[str], None] = print) -> dict:
    """The seconds of each, both ways, as the dictionary that --json prints."""
    folder, _ = checkpoint(target, dtype, layers, say)
    model, processor = load(folder, getattr(torch, dtype))
    model.config = afresh.endless(model.config)
    lines = []
    for gain in gains_of(model, processor, words):
        say(f"{gain.phase}: {gain.change}")
        gain.fast()                                             # warm
        pairs = [(seconds(gain.fast), seconds(gain.plain)) for _ in range(repeats)]
        fast, plain = (median(taken) for taken in zip(*pairs, strict=True))
        ratios = [slow / quick for quick, slow in pairs]
        lines.append({"phase": gain.phase, "change": gain.change, "seconds": fast, "plain_seconds": plain,
                      "times": median(ratios), "range": [min(ratios), max(ratios)]})
    return {"gains": lines, "about": {
        "model": target, "dtype": dtype, "layers": model.config.language.num_hidden_layers, "prompt": bench.PROMPT,
        "words": words, "threads": torch.get_num_threads(), "repeats": repeats, "torch": torch.__version__,
        "processor": bench.processor_name()}}


def table(found: dict) -> str:
    """What --json says, for people."""
    head = f"{'':<24}{'':<38}{'before':>9}{'after':>9}{'times as fast':>15}"
    lines = [f"{one['phase']:<24}{one['change']:<38}{one['plain_seconds']:>8.2f}s{one['seconds']:>8.2f}s"
             f"{one['times']:>9.2f}  ({one['range'][0]:.2f} to {one['range'][1]:.2f})" for one in found["gains"]]
    return "\n".join([head, *lines])
