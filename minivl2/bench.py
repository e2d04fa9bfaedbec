"""How fast the model is on this machine, each figure beside what the machine could do: `minivl2 bench`.

Tests    tests/test_bench.py                 Letters    the legend in minivl2/config.py

Figures are taken in turns, several times, each between two measurements of what limits it (roofline.py); the median counts,
the range is shown. What has no weights yet gets random ones: a matrix takes as long whatever stands in it.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from PIL import Image
from torch import Tensor, nn

from minivl2 import cost, peer
from minivl2.batch import Batch
from minivl2.cache import Cache
from minivl2.config import SIZES, Config
from minivl2.conversation import about
from minivl2.experts import MixtureOfExperts
from minivl2.files import written_whole
from minivl2.generation import generate, read
from minivl2.model import DeepSeekVL2, NothingDrawn, build
from minivl2.processor import Processor, ProcessorConfig
from minivl2.quantize import Packed16
from minivl2.roofline import Figure, Machine, cache_bytes, prompt_flops, seconds, vision_flops, word_flops
from minivl2.training.tokenizer import sentences, train_tokenizer
from minivl2.weights import load, write_checkpoint

PROMPT = 1024           # tokens
TILES = 3               # looked at together
CONTEXTS = (256, 1024, 4096)
GRIDS = ((1, 1), (2, 2), (3, 3))
TOGETHER = 4            # questions answered side by side
PICTURE, WORDS = (640, 480), 64     # the question of which the whole time is taken: 5 tiles and 1,023 visual tokens


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


def stored(module: nn.Module) -> int:
    """Bytes a module's weights take as they are kept."""
    hidden = sum(2 * m.rows * m.columns for m in module.modules() if isinstance(m, Packed16))   # oneDNN's own kind of tensor
    return hidden + sum(t.nbytes for t in module.state_dict().values())


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


def whole_answer(model: DeepSeekVL2, processor: Processor) -> float:
    picture = Image.effect_noise(PICTURE, 60).convert("RGB")
    model.config, config = endless(model.config), model.config
    try:
        return seconds(lambda: generate(model, processor(about("what is this?", 1), [picture]), WORDS))
    finally:
        model.config = config


def endless(config: Config) -> Config:
    """No token ends an answer: random weights might say anything."""
    return dataclasses.replace(config, language=dataclasses.replace(config.language, eos_token_id=-1))


# ------------------------------------------------------------------------------------ in a process of its own


def start_afresh(folder: Path, dtype: str, quantize: str | None, pack: bool, threads: int) -> dict[str, float]:
    """Load, say one word about nothing, answer about a picture: the seconds and the memory, in a process that did nothing
    else. `python -m minivl2.bench` is that process."""
    command = [sys.executable, "-m", "minivl2.bench", str(folder), dtype, quantize or "", "pack" * pack, str(threads)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"loading {folder} in a process of its own failed: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


@torch.no_grad()
def afresh(folder: str, dtype: str, quantize: str, pack: str, threads: str) -> dict[str, float]:
    torch.set_num_threads(int(threads))
    found: dict[str, float] = {}
    start, empty = time.perf_counter(), peak_memory()
    model, processor = load(folder, getattr(torch, dtype), quantize=quantize or None, pack=bool(pack))
    found["load"] = time.perf_counter() - start
    touched: list[int] = []
    hooks = [layer.mlp.gate.register_forward_hook(lambda _, __, routing: touched.append(int((routing.load > 0).sum())))
             for layer in model.decoder.layers if isinstance(layer.mlp, MixtureOfExperts)]
    found["first_word"] = seconds(lambda: generate(model, processor(about("what?", 0)), 1))
    for hook in hooks:
        hook.remove()
    routed = sum(stored(layer.mlp.experts) for layer in model.decoder.layers if isinstance(layer.mlp, MixtureOfExperts))
    share = sum(touched) / max(1, len(touched) * (model.config.language.n_routed_experts or 1))
    found["touched_bytes"] = stored(model.decoder) - stored(model.decoder.embed) - routed * (1 - share)
    whole_answer(model, processor)
    found["peak_bytes"], found["empty_bytes"], found["weights_bytes"] = peak_memory(), empty, stored(model)
    return found


def peak_memory() -> int:
    """Bytes this process has ever held at once, the mapped pages it touched among them."""
    if sys.platform == "linux":
        with open("/proc/self/status", encoding="ascii") as status:
            return next(1024 * int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    import resource
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def read_rate(folder: Path) -> float:
    """Bytes a second of reading the files once, from the system's own memory if they are there."""
    room, total, start = bytearray(2**22), 0, time.perf_counter()
    for file in sorted(folder.glob("*.safetensors")):
        with open(file, "rb", buffering=0) as handle:
            while total < 2**31 and (n := handle.readinto(room)):
                total += n
    return total / (time.perf_counter() - start)


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


def checkpoint(target: str, dtype: str, layers: int | None, say: Callable[[str], None]) -> tuple[Path, Config]:
    """The folder to load. For a name: random weights in the published layout, written once and kept."""
    if target not in SIZES:
        if layers is not None:
            raise ValueError("--layers is for the named sizes, whose weights are random; a checkpoint has those it has")
        return Path(target), Config.from_file(target)
    config = Config.named(target)
    if layers is not None:
        config = dataclasses.replace(config, language=dataclasses.replace(config.language, num_hidden_layers=layers))
    folder = Path("weights") / f"random-{target}-{dtype}{f'-{layers}-layers' * (layers is not None)}"
    if not (folder / "config.json").exists():
        size = sum(p.total for p in cost.parts(config)) * getattr(torch, dtype).itemsize
        say(f"writing {cost.human(size)} of random weights to {folder}, once")
        write_random(config, folder, getattr(torch, dtype))
    return folder, config


def write_random(config: Config, folder: Path, dtype: torch.dtype) -> None:
    """Random weights in the published layout, a file at a time: the whole model is never in memory."""
    with torch.device("meta"), NothingDrawn():
        model = build(config).to(dtype)
    pool = torch.randn(2**24).to(dtype)         # drawn once: a real draw of 27 billion numbers takes minutes

    def draw(empty: Tensor) -> Tensor:
        start = int(torch.randint(len(pool) // 2, ()))
        numbers = pool[start:].repeat(-(-empty.numel() // (len(pool) - start)))[:empty.numel()].view(empty.shape)
        return numbers * empty[0].numel() ** -0.5 if empty.ndim > 1 else 1 + 0.1 * numbers

    tokenizer = train_tokenizer(sentences(), 640)       # the toy's: its tokens are few, and fit any vocabulary
    with written_whole(folder) as staged:
        write_checkpoint(model, Processor(tokenizer, ProcessorConfig.of(config)), staged, draw, 10**9)


def processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def table(found: dict) -> str:
    """What --json says, for people."""
    limits, lines = found["limits"], []
    lines.append(f"this machine, {found['about']['threads']} threads: {limits['matrix_gflops']:,.0f} GFLOP/s in a matrix "
                 f"product, {limits['memory_gb_per_second']:,.1f} GB/s read from memory")
    lines.append(f"\n{'':<36}{'measured':>12}  {'range':<20}{'of the limit':>12}")
    for name, fraction in found["fraction"].items():
        low, high = found["range"][name]
        doubt = "  (the limit moved while it was measured)" * (name in found["unsteady"])
        lines.append(f"{name:<36}{found['measured'][name]:>12,.2f}  {f'{low:,.2f} to {high:,.2f}':<20}{fraction:>11.0%} "
                     f" {found['units'][name]}{doubt}")
    lines += ["", *(f"{name:<36}{value:>12,.2f}  seconds" for name, value in found["seconds"].items())]
    lines += ["", *(f"{name:<36}{value:>12,.3f}  GB" for name, value in found["memory_gb"].items())]
    kept = found["measured"]["cache_numbers_per_token_and_layer"]
    lines.append(f"\n{'remembered per token and layer':<36}{kept:>12,.0f}  numbers")
    return "\n".join(lines)


if __name__ == "__main__":
    print(json.dumps(afresh(*sys.argv[1:])))
