"""What can be measured only in a process that has done nothing else: loading, the first word, the most memory ever held.

Tests    tests/test_bench.py

`minivl2 bench` starts it: python -m minivl2.afresh DIR DTYPE QUANTIZE PACK THREADS
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path

import torch
from PIL import Image

from minivl2.config import Config
from minivl2.conversation import about
from minivl2.experts import MixtureOfExperts
from minivl2.generation import generate
from minivl2.heap import keep_freed
from minivl2.model import DeepSeekVL2
from minivl2.processor import Processor
from minivl2.quantize import stored
from minivl2.roofline import seconds
from minivl2.weights import load

PICTURE, WORDS = (640, 480), 64     # the question of which the whole time is taken: 5 tiles and 1,023 visual tokens


def start_afresh(folder: Path, dtype: str, quantize: str | None, pack: bool, threads: int) -> dict[str, float]:
    """Load, say one word about nothing, answer about a picture: the seconds and the memory, in a process that did nothing
    else."""
    command = [sys.executable, "-m", "minivl2.afresh", str(folder), dtype, quantize or "", "pack" * pack, str(threads)]
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


if __name__ == "__main__":
    keep_freed()
    print(json.dumps(afresh(*sys.argv[1:])))
