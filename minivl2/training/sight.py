"""Sight: the vision tower learns what is where, in words the decoder knows, before anyone asks it a question.

Lesson   lessons/08_training.ipynb
Tests    tests/test_sight.py

The real vision tower comes trained: SigLIP has seen billions of pictures. Ours starts from noise, and answers alone
teach it slowly: after twenty thousand pictures it could tell colours and not a single shape. So for a first part of
the time every visual token is asked directly what it shows (shown.py):

    words      which colour, which shape, which size; and of the whole vocabulary, which words. The visual token is
               compared with the words' own embeddings, so that the decoder finds things under the names it knows
    said       the same of what the decoder's last layer fetches from the token, by the head that will fetch what is
               said next; and of the four heads that will fetch the edges of boxes (guidance.py), the digits these begin with
    edges      where the thing it shows begins and ends
    middles    of how many things the middle lies on it. Several tokens show a thing, it has one middle: adding them up is
               counting
    letters    which characters stand on each of its patches, from left to right

And the patches themselves are asked, before the projector. So near to the pixels it is learned sooner, and what the
patches know is then easier to keep:

    things     colour, shape and size of the thing on the patch, and how far it reaches from there. After the same 600
               steps the tokens, too, tell shapes for 0.27 nats instead of 0.72
    glyphs     the letters: two thirds of them became four fifths

The heads for edges, middles, letters, things and glyphs are thrown away. The embeddings stay, and so does what the last
layer fetches: when the decoder learns where to look, there is something to be found.

How an eye goes on learning when a decoder has learned to read it is told in sharper.py.
"""

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import trange

from minivl2.batch import IGNORED
from minivl2.model import DeepSeekVL2
from minivl2.processor import Processor
from minivl2.training import optimizers, team
from minivl2.training.shown import CHARACTERS, LESSONS, NAMES, SLOTS, WRITTEN, Lessons, Shown, by_patch, draw
from minivl2.training.tokenizer import spans, spellings

BATCH = 32              # tiles a step
RATE = 1e-2             # of Muon: eyes learn well at a rate that is too high for the decoder
# What is easy has little weight: colours would drown shapes.
WEIGHTS = {"colour": 0.3, "shape": 2, "size": 1, "words": 0.5, "digits": 4, "edges": 30, "middles": 10,
           "letters": 16, "patch colour": 0.3, "patch shape": 4, "patch size": 1, "reach": 20, "glyphs": 48}


class Eye(nn.Module):
    """Vision tower and projector, with heads on every visual token and every patch. `letters`: of an eye that is to read."""

    def __init__(self, model: DeepSeekVL2, letters: bool = True):
        super().__init__()
        self.vision, self.projector = model.vision, model.projector
        width, patches = model.config.language.hidden_size, model.config.projector.downsample_ratio**2
        self.head_edges = nn.Linear(width, 4)
        self.head_things = nn.Linear(model.config.vision.width, sum(map(len, NAMES.values())) + 4)
        if letters:
            self.head_letters = nn.Linear(width, patches * SLOTS * (len(CHARACTERS) + 1))
            self.head_glyphs = nn.Linear(model.config.vision.width, SLOTS * (len(CHARACTERS) + 1))
        self.letters = letters

    def losses(self, tiles: Tensor, shown: Shown) -> dict[str, Tensor]:
        """tiles (M, 3, size, size), and what their M * P' tokens and M * P patches show. Each loss is a mean over the tokens
        or patches it is about, of the whole team; to be added up over the team, and divided by its size."""
        patches = self.vision(tiles.to(self.vision.pos_embed.dtype))                                # (M, P, W)
        tokens = self.projector(patches).flatten(0, 1)                                              # (M*P', D)
        losses = {**self.of_tokens(tokens, shown), **self.of_patches(patches.flatten(0, 1), shown)}
        if self.letters:
            glyphs = by_patch(shown.letters, patches.shape[1])
            losses["letters"] = character_loss(self.head_letters(tokens), shown.letters)
            losses["glyphs"] = character_loss(self.head_glyphs(patches), glyphs)
        count = team.total(torch.tensor([len(loss) for loss in losses.values()])).clamp(min=1)
        return {name: loss.sum() * team.size() / n for (name, loss), n in zip(losses.items(), count, strict=True)}

    def of_tokens(self, tokens: Tensor, shown: Shown) -> dict[str, Tensor]:
        edges = shown.edges.flatten(0, 1)
        found = edges[:, 0] != IGNORED
        return {"edges": (self.head_edges(tokens[found]).float() - edges[found] / 1000).abs().flatten()}

    def of_patches(self, patches: Tensor, shown: Shown) -> dict[str, Tensor]:
        found = shown.things.flatten(0, 1)[:, 0] != IGNORED
        things, reach = shown.things.flatten(0, 1)[found], shown.reach.flatten(0, 1)[found]
        *told, far = self.head_things(patches[found]).float().split([*map(len, NAMES.values()), 4], dim=-1)
        losses = {f"patch {name}": F.cross_entropy(logits, thing, reduction="none")
                  for name, logits, thing in zip(NAMES, told, things.T, strict=True)}
        losses["reach"] = (far - reach).abs().flatten()
        return losses

    def loss(self, tiles: Tensor, shown: Shown) -> Tensor:
        return sum(WEIGHTS[name.removeprefix("said ")] * loss for name, loss in self.losses(tiles, shown).items())


class Sight(Eye):
    """Also the embeddings and what the decoder's last layer fetches: there a decoder that cannot speak yet finds things."""

    def __init__(self, model: DeepSeekVL2, processor: Processor, letters: bool = True):
        super().__init__(model, letters)
        self.embed = model.decoder.embed
        self.norm, self.attn = model.decoder.layers[-1].attn_norm, model.decoder.layers[-1].attn
        self.heads, self.rotation = model.config.language.num_attention_heads, model.decoder.rotation
        self.head_middles = nn.Linear(model.config.language.hidden_size, 1)
        self.head_scale = nn.Parameter(torch.tensor([10.0, 8.0]).log())     # how sharply words are told apart: seen, said
        self.names = {name: [spellings(processor.tokenizer, word)[0] for word in words] for name, words in NAMES.items()}
        self.digits = [spans(processor.tokenizer, digit)[0][0] for digit in "0123456789"]

    def of_tokens(self, tokens: Tensor, shown: Shown) -> dict[str, Tensor]:
        shows = shown.words.flatten(0, 1).any(1)                                                    # n of them show anything
        x, words = tokens[shows], shown.words.flatten(0, 1)[shows]                                  # (n, D), (n, V)
        edges, written = shown.edges.flatten(0, 1)[shows], shown.written.flatten()[shows]
        found, (seen, said) = edges[:, 0] != IGNORED, self.head_scale.exp()
        fetched = said * self.fetched(x)                                                            # (n, H, D)
        losses = super().of_tokens(tokens, shown)
        for told, vector in {"": seen * x, "said ": fetched[:, 0]}.items():
            match = (vector @ self.embed.weight.T).float()                                          # (n, V)
            losses |= {told + name: choice_loss(match[:, ids], words[:, ids]) for name, ids in self.names.items()}
            losses[told + "words"] = choice_loss(match[written], words[written])
        middles, asked = shown.middles.flatten(), shown.middles.flatten() != IGNORED
        losses["middles"] = (self.head_middles(tokens[asked])[:, 0].float() - middles[asked]).square()
        digits = (fetched[found, :4] @ self.embed.weight[self.digits].T).float()                    # (found, 4, 10)
        losses["digits"] = F.cross_entropy(digits.flatten(0, 1), edges[found].flatten() // 100, reduction="none")
        return losses

    def fetched(self, x: Tensor) -> Tensor:
        """What each head of the last layer fetches from these tokens, if it looks there: (n, D) -> (n, H, D).

        A token that is alone looks at itself, and gets its own value, of each head."""
        values: list[Tensor] = []
        hook = self.attn.o_proj.register_forward_pre_hook(lambda _, inputs: values.append(inputs[0]))
        alone = self.norm(x)[:, None]                                                               # (n, 1, D)
        self.attn(alone, self.rotation(x.new_zeros(len(x), 1), x), x.new_ones(len(x), 1, 1, 1, dtype=torch.bool))
        hook.remove()
        W = self.attn.o_proj.weight.unflatten(1, (self.heads, -1))                                  # (D, H, v)
        return torch.einsum("nhv,dhv->nhd", values[0][:, 0].unflatten(-1, (self.heads, -1)), W)


def choice_loss(logits: Tensor, shown: Tensor) -> Tensor:
    """Cross-entropy of choosing a word that is shown, whichever. (n, words) -> one for each row that shows any."""
    some = shown.sum(1) > 0
    logits, shown = logits[some], shown[some]
    return F.cross_entropy(logits, shown / shown.sum(1, keepdim=True), reduction="none")


def character_loss(logits: Tensor, shown: Tensor) -> Tensor:
    """One for each place of a character that is asked about, of those that show none, too."""
    logits, shown = logits.float().view(-1, len(CHARACTERS) + 1), shown.flatten()
    return F.cross_entropy(logits[shown != IGNORED], shown[shown != IGNORED], reduction="none")


def batch(
    processor: Processor, seed: int, step: int, progress: float = 1.0, lessons: Lessons = LESSONS, pages: float = 0.0
) -> tuple[Tensor, Shown]:
    """This process's part of the batch of this step."""
    drawn = [draw(processor, f"{seed} {step} {i}", progress, lessons, pages) for i in range(team.rank(), BATCH, team.size())]
    tiles, shown = zip(*drawn, strict=True)
    return torch.stack(tiles), Shown(*map(torch.stack, zip(*shown, strict=True)))


def learn(
    model: DeepSeekVL2, processor: Processor, seed: int, steps: int, dtype: str = "float32", show: bool = True,
    lessons: Lessons = LESSONS,
) -> float:
    """Train the vision tower, the projector, the embeddings and what the last layer fetches, in place.

    Returns the last loss. All of a team take the same steps.
    """
    torch.manual_seed(seed)
    read = any(kind in WRITTEN for _, kinds in lessons for kind in kinds)
    whole = Sight(model, processor, read)
    learner = optimizers.Learner(whole, getattr(torch, dtype), optimizers.fast(whole, RATE))
    value = teach(learner, lambda step: batch(processor, seed, step, step / steps, lessons), steps,
                  "learning to see" if show else "")
    settle(model, processor)
    return value


def teach(learner: optimizers.Learner, lesson: Callable[[int], tuple[Tensor, Shown]], steps: int, name: str) -> float:
    """Take so many steps, with a progress bar of this name, or none for "". Returns the last loss."""
    value = math.nan
    for step in (bar := trange(steps, desc=name, disable=team.rank() > 0 or not name)):
        loss = learner.working.loss(*lesson(step))
        loss.backward()
        learner.step(optimizers.rate(step / steps))
        learner.hand_out()
        value = team.total(loss.detach().double()).item() / team.size()
        if step % 10 == 0:
            bar.set_postfix(loss=f"{value:.2f}")
    return value


@torch.no_grad()
def settle(model: DeepSeekVL2, processor: Processor) -> None:
    """Words are known by all their spellings, the words it sees are the words it says, and the decoder's layers begin by
    changing nothing, but for what the last one fetches: so it finds the visual tokens as it knows them."""
    embed = model.decoder.embed.weight
    for word in itertools.chain(*NAMES.values()):
        first, *others = spellings(processor.tokenizer, word)
        embed[others] = embed[first].clone()
    model.decoder.head.weight.copy_(embed)
    for layer in model.decoder.layers:
        for name, weight in layer.named_parameters():
            if "down_proj" in name or "o_proj" in name and layer is not model.decoder.layers[-1]:
                weight.zero_()
