"""The processor: a conversation and its images become a Batch that the model can read.

Source   the published processor.
Lesson   lessons/07_the_whole_model.ipynb       Tests   tests/test_processor.py, tests/test_goldens.py
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer

from minivl2 import conversation as talk
from minivl2.batch import IGNORED, Batch, pad_left
from minivl2.config import Config, Size, paper_candidates
from minivl2.images import open_image
from minivl2.tiling import cut, grid_of
from minivl2.visual_tokens import count

TILED_UP_TO = 2     # with three or more images nothing is tiled: nine tiles each would fill the context


@dataclass(frozen=True)
class ProcessorConfig:
    """What `processor_config.json` says, under its own names. (What else it says changes nothing.)"""

    candidate_resolutions: tuple[Size, ...] = paper_candidates()
    patch_size: int = 14
    downsample_ratio: int = 2
    image_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    image_std: tuple[float, ...] = (0.5, 0.5, 0.5)
    tile_rule: str = "released"         # not in published files: all published models follow the released rule

    @property
    def tile(self) -> int:
        """Pixels along a tile. The first candidate is one tile, in the published files and so by definition here."""
        return self.candidate_resolutions[0][0]

    @property
    def side(self) -> int:
        """Visual tokens along a tile: 14."""
        return -(-(self.tile // self.patch_size) // self.downsample_ratio)

    @classmethod
    def of(cls, config: Config) -> ProcessorConfig:
        """The processor that fits a model."""
        return cls(config.candidate_resolutions, config.vision.patch_size, config.projector.downsample_ratio)

    @classmethod
    def from_file(cls, path: Path) -> ProcessorConfig:
        published = json.loads(path.read_text(encoding="utf-8"))
        known = {f.name for f in dataclasses.fields(cls)} & published.keys()
        values = {name: published[name] for name in known}
        if "candidate_resolutions" in values:
            values["candidate_resolutions"] = tuple((int(w), int(h)) for w, h in values["candidate_resolutions"])
        for name in known & {"image_mean", "image_std"}:
            values[name] = tuple(values[name])
        return cls(**values)

    def to_dict(self) -> dict:
        """All that the published file says; and the tile rule, if it is another than theirs."""
        ours = dataclasses.asdict(self)
        if self.tile_rule == "released":
            del ours["tile_rule"]
        return {
            "processor_class": "DeepseekVLV2Processor", "sft_format": "deepseek", "normalize": True,
            "image_token": talk.IMAGE, "pad_token": talk.PAD, "ignore_id": IGNORED,
            "add_special_token": False, "mask_prompt": False, **ours,
        }


class Processor:
    def __init__(self, tokenizer: Tokenizer, config: ProcessorConfig):
        self.tokenizer, self.config = tokenizer, config
        missing = [t for t in talk.SPECIAL_TOKENS if tokenizer.token_to_id(t) is None]
        tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in missing])
        ids = {t: tokenizer.token_to_id(t) for t in (*talk.SPECIAL_TOKENS, talk.BEGIN, talk.END)}
        for token in (talk.BEGIN, talk.END):
            if ids[token] is None:
                raise ValueError(f"the tokenizer has no {token}: it is not DeepSeek's")
        self.special_ids: dict[str, int] = ids

    def __call__(
        self, messages: Sequence[Mapping], images: Sequence[Image.Image | str | Path] | None = None, training: bool = False
    ) -> Batch:
        """One conversation as a batch of one.

        messages   dicts with `role` (user, assistant, system) and `content`; each `<image>` in a user's text stands for
                   the next image
        images     Pillow images or paths, in that order. Left out: those named in the messages' own `images`
        training   the last answer is complete, and `labels` say what is to be learned: the answers and their ends

        Raises ConversationError for what is not a conversation, ImageError for what is not an image.
        """
        if images is None:
            images = [image for message in messages for image in message.get("images", ())]
        return self.each([messages], images, training)[0]

    def each(
        self, conversations: Sequence[Sequence[Mapping]], images: Sequence[Image.Image | str | Path], training: bool = False
    ) -> list[Batch]:
        """Several conversations about the same images, as batches of one. The images are cut into tiles once for all."""
        lines = [talk.pieces(messages, training) for messages in conversations]
        for line in lines:
            wanted = sum(piece.text == talk.IMAGE for piece in line)
            if wanted != len(images):
                raise talk.ConversationError(
                    f"the text has {wanted} {talk.IMAGE}, but {len(images)} images came with it: each image needs one")
        tiles, grids = self.tile(images)
        return [self.read(line, tiles, grids, training) for line in lines]

    def read(self, line: Sequence[talk.Piece], tiles: torch.Tensor, grids: Sequence[Size], training: bool) -> Batch:
        """A line of text and images as a batch of one."""
        ids, labels = self.spell(line, grids)
        labels[0] = ids[0]      # as the published processor has it. Nothing comes before it, so nothing is learned.

        input_ids = torch.tensor([ids])
        return Batch(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids, dtype=torch.bool),
            image_mask=input_ids == self.special_ids[talk.IMAGE],
            tiles=tiles,
            grids=torch.tensor(grids, dtype=torch.long).view(-1, 2),
            labels=torch.tensor([labels]) if training else None,
        )

    def spell(self, line: Sequence[talk.Piece], grids: Sequence[Size]) -> tuple[list[int], list[int]]:
        """The ids of a line, and their labels: the same ids where the model is to learn to write them, else IGNORED."""
        ids: list[int] = []
        labels: list[int] = []
        remaining = iter(grids)
        for text, learned in line:
            if text == talk.IMAGE:
                new = [self.special_ids[text]] * count(next(remaining), self.config.side)
            elif text in (talk.BEGIN, talk.END):
                new = [self.special_ids[text]]
            else:
                new = self.tokenizer.encode(text, add_special_tokens=False).ids
            ids += new
            labels += new if learned else [IGNORED] * len(new)
        return ids, labels

    def tile(self, images: Sequence[Image.Image | str | Path]) -> tuple[torch.Tensor, list[Size]]:
        """All views of all images (M, 3, tile, tile), and the grid of each image."""
        cfg = self.config
        opened = [open_image(image) for image in images]
        if len(opened) > TILED_UP_TO:
            grids = [(1, 1)] * len(opened)
        else:
            grids = [grid_of(image.size, cfg.candidate_resolutions, cfg.tile, cfg.tile_rule) for image in opened]
        views = [cut(image, g, cfg.tile, cfg.image_mean, cfg.image_std) for image, g in zip(opened, grids, strict=True)]
        return torch.cat([torch.empty(0, 3, cfg.tile, cfg.tile), *views]), grids

    def batch(self, batches: Sequence[Batch]) -> Batch:
        """Several conversations as one batch, padded on the left."""
        return pad_left(batches, self.special_ids[talk.PAD])

    def decode(self, ids: Sequence[int]) -> str:
        """Token ids as text: up to the end of the answer, with `<|ref|>` and the like kept."""
        ids = list(ids)
        end = self.special_ids[talk.END]
        return self.tokenizer.decode(ids[: ids.index(end)] if end in ids else ids, skip_special_tokens=False)
