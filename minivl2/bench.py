"""How fast the model is on this machine, each figure beside what the machine could do: `minivl2 bench`.

Tests    tests/test_bench.py                 Letters    the legend in minivl2/config.py

Figures are taken in turns, several times, each between two measurements of what limits it (roofline.py); the median counts,
the range is shown. What has no weights yet gets random ones (stand_in.py); loading and memory are measured in a process of
their own (afresh.py).
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from PIL import Image
from torch import Tensor

from minivl2 import cost, peer
from minivl2.afresh import PICTURE, WORDS, read_rate, start_afresh, whole_answer
from minivl2.batch import Batch
from minivl2.cache import Cache
from minivl2.conversation import about
from minivl2.experts import MixtureOfExperts
from minivl2.generation import generate, read
from minivl2.model import DeepSeekVL2
from minivl2.processor import Processor
from minivl2.quantize import stored
from minivl2.roofline import Figure, Machine, cache_bytes, prompt_flops, seconds, vision_flops, word_flops
from minivl2.stand_in import checkpoint
from minivl2.weights import load

PROMPT = 1024           # tokens
TILES = 3               # looked at together
CONTEXTS = (256, 1024, 4096)
GRIDS = ((1, 1), (2, 2), (3, 3))
TOGETHER = 4            # questions answered side by side


# ------------------------------------------------------------------------------------ the figures


def figures_of(model: DeepSeekVL2, words: int) -> list[Figure]:
    """Those that have a limit beside them. words: written for each figure of decoding."""
    config, dtype = model.config, model.image_newline.dtype
    lang, size = config.language, config.vision.image_size
    prompt = min(PROMPT, lang.max_position_embeddings // 2)
    tiles = torch.randn(TILES, 3, size, size, dtype=dtype)
    ids = torch.randint(lang.vocab_size, (1, prompt))

    def look() -> float:
        return seconds(lambda: model.vision(tiles))

    def read_prompt() -> float:
        cache = Cache(lang.num_hidden_layers, prompt)
        return seconds(lambda: model.decoder.head(read(model, text(ids), cache)[:, -1]))

    def decode(name: str, context: int, rows: int = 1) -> Figure:
        cache = remembering(model, rows, context - words, words)

        def run() -> float:
            """The median word, the last of which has the whole context behind it."""
            taken = []
            for _ in range(words):
                token = torch.randint(lang.vocab_size, (rows, 1))       # drawn, so that they go to ever other experts
                taken.append(seconds(one_word, model, token, cache))
            forget(cache, context - words)
            return median(taken)
        flops, needed = rows * word_flops(config, context), word_bytes(model, context, rows)
        return Figure(name, "tokens/s", rows, flops, needed, "bytes", run)

    contexts = sorted({min(context, lang.max_position_embeddings) for context in CONTEXTS})
    return [
        Figure("vision", "tiles/s", TILES, TILES * vision_flops(config), stored(model.vision), "flops", look),
        Figure("prompt", "tokens/s", prompt, prompt_flops(config, prompt),
               stored(model.decoder) - stored(model.decoder.embed), "flops", read_prompt),
        decode("decode", prompt),
        *(decode(f"decode at {context}", context) for context in contexts if context != prompt),
        decode(f"decode, {TOGETHER} side by side", prompt, TOGETHER),
    ]


def word_bytes(model: DeepSeekVL2, context: int, rows: int = 1) -> float:
    """To write one word in each of so many rows: every weight they meet, as it is kept, and all that is remembered. Rows
    that chance sends to the same expert share it."""
    lang, decoder = model.config.language, model.decoder
    routed = sum(stored(layer.mlp.experts) for layer in decoder.layers if isinstance(layer.mlp, MixtureOfExperts))
    met = stored(decoder) - stored(decoder.embed) - routed
    met += routed * (1 - (1 - (lang.num_experts_per_tok or 0) / (lang.n_routed_experts or 1)) ** rows)
    return met + cache_bytes(lang, rows * context, model.image_newline.dtype)


def text(ids: Tensor) -> Batch:
    nothing = torch.zeros_like(ids, dtype=torch.bool)
    return Batch(ids, ~nothing, nothing, torch.empty(0), torch.empty(0, 2))


def one_word(model: DeepSeekVL2, token: Tensor, cache: Cache) -> Tensor:
    real = torch.ones_like(token, dtype=torch.bool)
    hidden, _ = model.decoder(model.decoder.embed(token), real, cache)
    return model.decoder.head(hidden[:, -1]).argmax(-1)


def remembering(model: DeepSeekVL2, rows: int, context: int, words: int) -> Cache:
    """A memory of so many tokens that were never read: for how long the next takes, it does not matter what they were."""
    cache = Cache(model.config.language.num_hidden_layers, context + words)
    one_word(model, torch.zeros(rows, 1, dtype=torch.long), cache)
    for layer in cache.layers:
        for room in layer.rooms:
            room.normal_()
    cache.which.rooms[0].fill_(True)
    forget(cache, context)
    return cache


def forget(cache: Cache, context: int) -> None:
    for layer in [*cache.layers, cache.which]:
        layer.length = context


def first_word(model: DeepSeekVL2, processor: Processor, grid: tuple[int, int]) -> float:
    """From a picture that fills the grid to the first word about it, all that `ask` does included."""
    tile = model.config.vision.image_size
    picture = Image.effect_noise((tile * grid[0], tile * grid[1]), 60).convert("RGB")
    return seconds(lambda: generate(model, processor(about("what is this?", 1), [picture]), 1))


# ------------------------------------------------------------------------------------ all together


@torch.no_grad()
def run(target: str, dtype: str = "bfloat16", quantize: str | None = None, pack: bool = False, repeats: int = 5,
        words: int = 16, layers: int | None = None, with_peer: bool = True, say: Callable[[str], None] = print) -> dict:
    """All figures, as the dictionary that --json prints."""
    folder, config = checkpoint(target, dtype, layers, say)
    parameters = sum(p.total for p in cost.parts(config))
    large, threads = parameters > 1e8, torch.get_num_threads()
    say(f"loading {folder}")
    alone = start_afresh(folder, dtype, quantize, pack, threads)
    rate = read_rate(folder)
    machine = Machine(getattr(torch, dtype), large)
    model, processor = load(folder, getattr(torch, dtype), quantize=quantize, pack=pack)
    figures = figures_of(model, words)
    others = peer.figures(config, getattr(torch, dtype), TILES, int(figures[1].work), words, say) if with_peer else []
    everything = [*figures, *others]
    waits: dict[str, list[float]] = {}
    for turn in range(repeats + 1):
        say(f"round {turn} of {repeats}" if turn else "once to warm up")
        for figure in everything:
            figure.take(machine) if turn else figure.run()
        if turn:
            for w, h in GRIDS:
                waits.setdefault(f"first word, {w} x {h} tiles", []).append(first_word(model, processor, (w, h)))
            waits.setdefault("{} x {} picture, {} words".format(*PICTURE, WORDS), []).append(whole_answer(model, processor))
    cache = remembering(model, 1, words, words)
    cached = cache.bytes / model.image_newline.element_size() / (2 * words) / config.language.num_hidden_layers
    rates = {figure.name: median(figure.rates) for figure in everything}
    decoding = [f.name for f in figures if f.name.startswith("decode at")]      # from the shortest context to the longest
    return {
        "limits": {"matrix_gflops": median(machine.flops) / 1e9, "memory_gb_per_second": median(machine.bytes) / 1e9,
                   "file_gb_per_second": rate / 1e9,
                   "range": {"matrix_gflops": [f(machine.flops) / 1e9 for f in (min, max)],
                             "memory_gb_per_second": [f(machine.bytes) / 1e9 for f in (min, max)]}},
        "measured": rates | {"cache_numbers_per_token_and_layer": cached,
                             "longest_over_shortest_context": rates[decoding[0]] / rates[decoding[-1]]},
        "fraction": {figure.name: median(figure.fractions) for figure in everything},
        "range": {figure.name: [min(figure.rates), max(figure.rates)] for figure in everything},
        "unsteady": [figure.name for figure in everything if not figure.steady],
        "memory_gb": {"peak": alone["peak_bytes"] / 1e9, "before loading": alone["empty_bytes"] / 1e9,
                      "weights": alone["weights_bytes"] / 1e9, "cache per 1,000 tokens":
                      1000 * cached * config.language.num_hidden_layers * model.image_newline.element_size() / 1e9},
        "seconds": {"load": alone["load"], "load to first word": alone["load"] + alone["first_word"],
                    "reading what that touches, once": alone["touched_bytes"] / rate,
                    **{name: median(values) for name, values in waits.items()}},
        "needs": {figure.name: {"limit": figure.limit, "flops": figure.flops / figure.work,
                                "bytes": figure.bytes / figure.work} for figure in everything},
        "units": {figure.name: figure.unit for figure in everything},
        "about": {"model": target, "dtype": dtype, "quantize": quantize, "pack": pack, "parameters": parameters,
                  "layers": config.language.num_hidden_layers, "prompt": int(figures[1].work), "threads": threads,
                  "repeats": repeats, "torch": torch.__version__, "processor": processor_name()},
    }


def processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def table(found: dict) -> str:
    """What --json says, for people."""
    limits, lines, threads = found["limits"], [], found["about"]["threads"]
    lines.append(f"this machine, {threads} thread{'s' * (threads > 1)}: {limits['matrix_gflops']:,.0f} GFLOP/s in a matrix "
                 f"product, {limits['memory_gb_per_second']:,.1f} GB/s read from memory")
    lines.append(f"\n{'':<36}{'measured':>12}  {'range':<24}{'of the limit':>12}")
    for name, fraction in found["fraction"].items():
        low, high = found["range"][name]
        doubt = "~" if name in found["unsteady"] else " "
        spread = f"{low:,.2f} to {high:,.2f}"
        lines.append(f"{name:<36}{found['measured'][name]:>12,.2f}  {spread:<24}{doubt}{fraction:>11.1%} "
                     f" {found['units'][name]}")
    if found["unsteady"]:
        lines.append("~ the limit itself moved by more than a tenth meanwhile: something else was running")
    lines.append(f"prompt: of {found['about']['prompt']:,} tokens; decode, where no more is said: after as many")
    lines += ["", *(f"{name:<36}{value:>12,.2f}  seconds" for name, value in found["seconds"].items())]
    lines += ["", *(f"{name:<36}{value:>12,.3f}  GB" for name, value in found["memory_gb"].items())]
    kept = found["measured"]["cache_numbers_per_token_and_layer"]
    lines.append(f"\n{'remembered per token and layer':<36}{kept:>12,.0f}  numbers")
    return "\n".join(lines)

