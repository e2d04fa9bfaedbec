"""A checkpoint to measure where there are no weights: random numbers in the published layout.

Tests    tests/test_bench.py

A product of matrices takes as long whatever stands in them. They are written to a file all the same, so that loading is
measured, too; and kept, so that the next run need not write them again.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from minivl2 import cost
from minivl2.config import SIZES, Config
from minivl2.files import written_whole
from minivl2.model import NothingDrawn, build
from minivl2.processor import Processor, ProcessorConfig
from minivl2.training.tokenizer import sentences, train_tokenizer
from minivl2.weights import write_checkpoint


def checkpoint(target: str, dtype: str, layers: int | None, say: Callable[[str], None]) -> tuple[Path, Config]:
    """The folder to load, and its configuration. For a name of a size: random weights, written once."""
    if target not in SIZES:
        if not Path(target).is_dir():
            raise ValueError(f"there is no folder {target}, and no size of that name: the sizes are {', '.join(SIZES)}")
        if layers is not None:
            raise ValueError("--layers is for the named sizes, whose weights are random; a checkpoint has those it has")
        return Path(target), Config.from_file(target)
    config = Config.named(target)
    if layers is not None:
        config = dataclasses.replace(config, language=dataclasses.replace(config.language, num_hidden_layers=layers))
    folder = Path("weights") / f"random-{target}-{dtype}{f'-{layers}-layers' * (layers is not None)}"
    if not (folder / "config.json").exists():
        size = sum(p.total for p in cost.parts(config)) * getattr(torch, dtype).itemsize
        free = shutil.disk_usage(Path.cwd()).free
        if size > 0.95 * free:      # a full disk is no good to anybody
            raise ValueError(f"the random weights of {target} need {cost.human(size)}, and the disk here has "
                             f"{cost.human(free)} free. With --layers 4 or so, fewer layers are written; or free some space")
        say(f"writing {cost.human(size)} of random weights to {folder.resolve()}, once. They are kept for the next time; "
            "delete that folder when you have measured enough")
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
