"""DeepSeek-VL2: pixels and words in, the next word's probabilities out.

Paper    DeepSeek-VL2, arXiv:2412.10302, figure 2.
Lesson   lessons/07_the_whole_model.ipynb       Tests   tests/test_model.py, tests/test_goldens.py

    tiles -> vision tower -> projector -> laid out as a line of tokens -+
                                                                        +-> decoder -> head -> logits
                             ids -> embedding, with a gap per image ----+
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from minivl2.batch import Batch
from minivl2.config import Config
from minivl2.decoder import Decoder
from minivl2.experts import Routing, balance_loss
from minivl2.projector import Projector
from minivl2.vision import VisionTower
from minivl2.visual_tokens import lay_out


class Loss(NamedTuple):
    """total = text + the configured weight * balance; only total is to be differentiated."""

    total: Tensor
    text: Tensor                # mean cross-entropy over the labelled tokens
    each: Tensor                # (labelled tokens,) cross-entropy of each, row after row
    balance: Tensor             # sum of all layers' balance losses, unweighted
    routings: list[Routing]


class DeepSeekVL2(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.vision = VisionTower(config.vision)
        self.projector = Projector(config.projector)
        self.image_newline = nn.Parameter(torch.empty(config.language.hidden_size))
        self.view_separator = nn.Parameter(torch.empty(config.language.hidden_size))
        self.decoder = Decoder(config.language)
        for vector in (self.image_newline, self.view_separator):
            nn.init.normal_(vector, std=config.language.hidden_size**-0.5)
        self.bits: int | None = None            # of packed weights (quantize.py); None: the weights are as published
        self.unused: dict[str, Tensor] = {}     # vision.attn_pool.*: carried from checkpoint to checkpoint, never run

    def forward(self, batch: Batch) -> Tensor:
        """Logits for the token after each: (B, T, V)."""
        hidden, _ = self.decoder(self.embed(batch), batch.attention_mask)
        return self.decoder.head(hidden)

    def embed(self, batch: Batch) -> Tensor:
        """What the decoder reads: words' embeddings, with the images' vectors in their places. (B, T, D)"""
        x = self.decoder.embed(batch.input_ids)
        if len(batch.grids) == 0:
            return x
        # Images are in reading order and so are the gaps, row by row: one assignment fills the whole batch.
        vectors = torch.cat(self.see(batch.tiles, batch.grids))
        gaps = int(batch.image_mask.sum())
        if gaps != len(vectors):
            raise ValueError(f"the text has room for {gaps} visual tokens, but the images have {len(vectors)}")
        return x.masked_scatter(batch.image_mask[..., None], vectors.type_as(x))

    def see(self, tiles: Tensor, grids: Tensor) -> list[Tensor]:
        """tiles (M, 3, size, size) of several images -> for each image its visual tokens (tokens, D)."""
        sizes = [(int(w), int(h)) for w, h in grids]
        kept, which = without_twins(tiles, sizes)
        squeezed = self.projector(self.vision(tiles[kept].to(self.vision.pos_embed.dtype)))[which]     # (M, 196, D)
        views = squeezed.split([1 + w * h for w, h in sizes])
        return [
            lay_out(view, size, self.image_newline, self.view_separator) for view, size in zip(views, sizes, strict=True)
        ]

    def loss(self, batch: Batch) -> Loss:
        """What training minimises. Each token is asked to predict the label of the one after it."""
        if batch.labels is None:
            raise ValueError("the batch has no labels: make it with processor(messages, images, training=True)")
        hidden, routings = self.decoder(self.embed(batch), batch.attention_mask)
        learned = batch.learned
        logits = self.decoder.head(hidden[:, :-1][learned])                 # only where there is something to learn
        each = F.cross_entropy(logits.float(), batch.labels[:, 1:][learned], reduction="none")
        text = each.mean()
        lang = self.config.language
        balance = sum((balance_loss(r, batch.attention_mask, lang.seq_aux) for r in routings), torch.zeros_like(text))
        return Loss(text + lang.aux_loss_alpha * balance, text, each, balance, routings)


def without_twins(tiles: Tensor, sizes: list[tuple[int, int]]) -> tuple[list[int], list[int]]:
    """Which tiles to look at, and for each of all tiles, which of those shows it.

    A picture of one tile comes twice, as global view and as local view, and the two are the same pixels: looking once
    takes half the time.
    """
    kept: list[int] = []
    which: list[int] = []
    for w, h in sizes:
        first = len(which)
        twins = w * h == 1 and torch.equal(tiles[first], tiles[first + 1])
        kept += [first] if twins else range(first, first + 1 + w * h)
        which += [len(kept) - 1] * 2 if twins else range(len(kept) - 1 - w * h, len(kept))
    return kept, which


class NothingDrawn(TorchFunctionMode):
    """While a model is built under this, its random weights are not drawn: they will be replaced anyway.

    On the meta device torch draws nothing either, but gets ready for it with two seconds of imports.
    """

    def __torch_function__(self, called, types, inputs=(), options=None):
        options = options or {}
        if called in (Tensor.normal_, Tensor.uniform_) or getattr(called, "__module__", "") == "torch.nn.init":
            return inputs[0] if inputs else options["tensor"]
        return called(*inputs, **options)


def build(config: Config | dict[str, Any] | str) -> DeepSeekVL2:
    """A model with random weights, from a Config, the contents of a published `config.json`, or the name of a size.

    Under `torch.device("meta")` it has shapes and no numbers, so that even the 27 B model is built in a second; under
    `NothingDrawn()` as well, in less.
    """
    if isinstance(config, str):
        config = Config.named(config)
    elif isinstance(config, dict):
        config = Config.from_dict(config)
    return DeepSeekVL2(config)
