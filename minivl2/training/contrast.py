"""Sight as SigLIP got it: no labels on patches, only which caption belongs to which picture.

Paper    Sigmoid Loss for Language Image Pre-Training, arXiv:2303.15343, section 3.2 and algorithm 1.
Lesson   lessons/08_training.ipynb
Tests    tests/test_contrast.py

A picture and a caption each become one vector. For every pair of the batch, matching or not, a yes or no is learned:
do they belong together? Each pair is judged alone, where a softmax would compare it with all others of the batch.
The text tower and the pooling are thrown away afterwards; the vision tower stays.
"""

import itertools
import random

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import trange

from minivl2 import toyworld
from minivl2.model import DeepSeekVL2
from minivl2.processor import Processor
from minivl2.training import optimizers, team

BATCH = 64              # pairs a step: the more captions a picture is compared with, the more it has to tell
KINDS = ("scenes", "scenes", "charts")      # what can be seen in the global view
LONGEST = 64            # tokens of a caption that are read


class Contrast(nn.Module):
    """A vision tower, a text tower, and the two numbers that turn a likeness into a probability."""

    def __init__(self, model: DeepSeekVL2):
        super().__init__()
        vision, words = model.config.vision, model.config.language.vocab_size
        self.vision = model.vision
        self.head_picture = nn.Linear(vision.width, vision.width)
        self.text_embed = nn.Embedding(words, vision.width)
        self.text_positions = nn.Parameter(torch.zeros(LONGEST, vision.width))
        layer = nn.TransformerEncoderLayer(
            vision.width, vision.heads, vision.mlp_width, dropout=0, batch_first=True, norm_first=True)
        self.text = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head_text = nn.Linear(vision.width, vision.width)
        self.temperature = nn.Parameter(torch.tensor(10.0).log())       # both as in the paper: at first nothing
        self.bias = nn.Parameter(torch.tensor(-10.0))                   # belongs together, which is nearly right

    def loss(self, tiles: Tensor, captions: Tensor) -> Tensor:
        """tiles (B, 3, size, size); captions (B, L) token ids, -1 after the end. Row i of both belongs together."""
        seen = self.head_picture(self.vision(tiles.to(self.vision.pos_embed.dtype)).mean(1))            # (B, W)
        real = (captions >= 0)[..., None]
        x = self.text_embed(captions.clamp(min=0)) + self.text_positions[: captions.shape[1]]
        x = self.text(x, src_key_padding_mask=~real[..., 0])
        said = self.head_text((x * real).sum(1) / real.sum(1))                                          # (B, W)
        same = (captions[:, None] == captions[None]).all(-1)        # two pictures may deserve the same caption
        return pairwise(seen.float(), said.float(), same, self.temperature.exp().float(), self.bias.float())


def pairwise(seen: Tensor, said: Tensor, same: Tensor, temperature: Tensor, bias: Tensor) -> Tensor:
    """Algorithm 1: -log sigmoid(z (t x.y + b)) summed over all pairs, per picture. z is 1 where `same`, else -1."""
    logits = temperature * F.normalize(seen, dim=-1) @ F.normalize(said, dim=-1).T + bias
    z = 2.0 * same - 1
    return -F.logsigmoid(z * logits).sum() / len(seen)


def draw(processor: Processor, seed: str) -> tuple[Tensor, list[int]]:
    """The global view of a picture, and its caption's tokens; a chart's caption is all that is asked and said of it."""
    rng = random.Random(f"contrast {seed}")
    sample = toyworld.draw(f"contrast {seed}", rng.choice(KINDS))
    views, _ = processor.tile(list(sample.images))
    captions = [question.answer for question in sample.questions if question.ability == "caption"]
    caption = "".join(captions) or " ".join(f"{question.text} {question.answer}" for question in sample.questions)
    return views[0], processor.tokenizer.encode(caption, add_special_tokens=False).ids[:LONGEST]


def batch(processor: Processor, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """This process's part of the pairs of this step. It compares its own pictures with its own captions."""
    drawn = [draw(processor, f"{seed} {step} {i}") for i in range(team.rank(), BATCH, team.size())]
    tiles, captions = zip(*drawn, strict=True)
    padded = itertools.zip_longest(*captions, fillvalue=-1)
    return torch.stack(tiles), torch.tensor(list(padded)).T.contiguous()


def learn(
    model: DeepSeekVL2, processor: Processor, seed: int, steps: int, dtype: str = "float32", show: bool = True
) -> None:
    """Train the vision tower, in place. All of a team take the same steps."""
    torch.manual_seed(seed)
    contrast = Contrast(model)
    learner = optimizers.Learner(contrast, getattr(torch, dtype), optimizers.paper(contrast, vision=1.0))
    for step in (bar := trange(steps, desc="matching captions", disable=team.rank() > 0 or not show)):
        loss = learner.working.loss(*batch(processor, seed, step))
        loss.backward()
        learner.step(optimizers.rate(step / steps))
        learner.hand_out()
        if step % 10 == 0:
            bar.set_postfix(loss=f"{loss.item():.2f}")
