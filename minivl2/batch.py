"""What travels from the processor to the model: token ids, and the tiles of the images among them.

Lesson   lessons/07_the_whole_model.ipynb       Tests   tests/test_batch.py, tests/test_processor.py
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

IGNORED = -100      # the label of a token that nothing is to be learned from; cross_entropy's own default


@dataclass(frozen=True)
class Batch:
    """B conversations, padded on the left to T tokens. A processor makes these."""

    input_ids: Tensor                   # (B, T)
    attention_mask: Tensor              # (B, T) bool, False where padded
    image_mask: Tensor                  # (B, T) bool, True where a visual token belongs
    tiles: Tensor                       # (M, 3, size, size), of all images in order: global view, then local tiles
    grids: Tensor                       # (images, 2): tiles across and down, of all images in order
    labels: Tensor | None = None        # (B, T), IGNORED where nothing is to be learned; not shifted

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def learned(self) -> Tensor:
        """Which positions are to predict the token after them: (B, T-1) bool.

        Those before a label; but not padding: the first token of all has a label, and nothing before it to learn from.
        """
        return (self.labels[:, 1:] != IGNORED) & self.attention_mask[:, :-1]

    def cut(self, first: int) -> tuple[Batch, Batch]:
        """The first tokens, with all images, and the rest, which must hold none. Not for training: labels are dropped."""
        if self.image_mask[:, first:].any():
            raise ValueError(f"there are visual tokens after the first {first}: images cannot be cut")
        names = ("input_ids", "attention_mask", "image_mask")
        start, rest = ({name: getattr(self, name)[:, part] for name in names} for part in (slice(first), slice(first, None)))
        return Batch(**start, tiles=self.tiles, grids=self.grids), Batch(**rest, tiles=self.tiles[:0], grids=self.grids[:0])

    def to(self, device: torch.device | str) -> Batch:
        return replace(self, **{name: t.to(device) for name, t in vars(self).items() if t is not None})


def in_line(batches: Sequence[Batch]) -> Batch:
    """Conversations of one row each, one behind the other in one row. Nothing separates them but their first tokens."""
    def join(name: str, dim: int) -> Tensor:
        return torch.cat([getattr(b, name) for b in batches], dim)

    labels = [torch.nn.functional.pad(b.labels[:, 1:], (1, 0), value=IGNORED) for b in batches]
    return Batch(join("input_ids", 1), join("attention_mask", 1), join("image_mask", 1), join("tiles", 0), join("grids", 0),
                 torch.cat(labels, 1))


def common_start(batches: Sequence[Batch]) -> int:
    """How many tokens conversations of one row begin with alike; at least one of each is left over."""
    shortest = min(b.input_ids.shape[1] for b in batches) - 1
    ids = torch.cat([b.input_ids[:, :shortest] for b in batches])
    return int((ids == ids[0]).all(0).long().cumprod(0).sum())


def pad_left(batches: Sequence[Batch], pad_id: int) -> Batch:
    """Several batches as one. Padded on the left, so that every conversation ends, and is continued, at the right."""
    if not batches:
        raise ValueError("there are no conversations to put into a batch")
    longest = max(b.input_ids.shape[1] for b in batches)

    def stack(name: str, filler: int | bool) -> Tensor:
        rows = [getattr(b, name) for b in batches]
        return torch.cat([torch.nn.functional.pad(r, (longest - r.shape[1], 0), value=filler) for r in rows])

    labelled = sum(b.labels is not None for b in batches)
    if labelled not in (0, len(batches)):
        raise ValueError("some of these conversations were made with training=True and some were not")
    return Batch(
        input_ids=stack("input_ids", pad_id),
        attention_mask=stack("attention_mask", False),
        image_mask=stack("image_mask", False),
        tiles=torch.cat([b.tiles for b in batches]),
        grids=torch.cat([b.grids for b in batches]),
        labels=stack("labels", IGNORED) if labelled else None,
    )
