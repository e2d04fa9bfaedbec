"""Sharper: an eye that a decoder has learned to read goes on learning to see, and still says it as before.

Paper    Learning without Forgetting, arXiv:1606.09282: what a network said before is a second teacher.
Lesson   lessons/08_training.ipynb                      Tests   tests/test_sharper.py

Asked directly what it sees (sight.py), an eye learns to read far faster than by answers. But left to itself it finds other
ways to put that into its tokens, and the decoder, which knows the old ones, understands nothing. To teach it the new ones
takes longer than the eye took. So the eye has to see better in the old way:

    letters, edges      are asked by heads that have learned from the old tokens how these are said, and then stay so
    keep                each token stays near what it was; where the two contradict each other, the letters are stronger
    rows                of the words that are written, which stand in the upper row of its patches, and which in the lower.
                        Small print has two lines in a token. To say which letters are there is not enough: the decoder knew
                        both values and both names, and not which value is whose

What the toy of weights/ answered after seven minutes of that on one core, its decoder untouched (26 abilities, 50 questions
each): 85.5 %. With the heads alone, and free to move otherwise: 48.0 %.
"""

import copy

import torch
from torch import Tensor, nn

from minivl2.model import DeepSeekVL2
from minivl2.processor import Processor
from minivl2.training import optimizers, sight
from minivl2.training.shown import Lessons, Shown

# An eye that reads already: most of all what it misreads. Of a page it learns three times what it learns of a document:
# it shows 25 letters, a tile of a document 9, of a text 3
LESSONS: Lessons = ((1.0, {"page": 8, "text": 2, "documents": 4, "tables": 4, "charts": 1.5,
                           "crowd": 5, "scenes": 1.5, "pairs": 1}),)
PAGES = 0.25            # of the pictures with letters, seen whole: of those nothing is asked but that they look as before
RATE = 3e-3             # of Muon
KEEP = 10               # the weight of the distance from the old tokens, beside sight.WEIGHTS
ROWS = 3                # and the weight of which word is in which row
LISTENING = 500         # steps in which the heads learn how the old tokens say it
HIDDEN = 256            # numbers inside such a head: a decoder, too, reads with more than one matrix
HEADS = ("head_letters", "head_edges")


class Sharper(sight.Eye):
    """The eye, the eye it was, and heads that know how it spoke."""

    def __init__(self, model: DeepSeekVL2):
        super().__init__(model)
        for name in HEADS:
            head = getattr(self, name)
            setattr(self, name, nn.Sequential(nn.Linear(head.in_features, HIDDEN), nn.GELU(),
                                              nn.Linear(HIDDEN, head.out_features)))
        width, self.ratio = model.config.language.hidden_size, model.config.projector.downsample_ratio
        self.head_rows = nn.Linear(width, self.ratio * width)
        self.head_scale = nn.Parameter(torch.tensor(-1.0))          # how sharply words are told apart: its logarithm
        self.embed = model.decoder.embed
        self.was = copy.deepcopy(nn.Sequential(self.vision, self.projector))

    def losses(self, tiles: Tensor, shown: Shown) -> dict[str, Tensor]:
        with torch.no_grad():
            self.before = self.was(tiles.to(self.vision.pos_embed.dtype)).flatten(0, 1)             # (M*P', D)
        return super().losses(tiles, shown)

    def of_tokens(self, tokens: Tensor, shown: Shown) -> dict[str, Tensor]:
        """The distance from what they were is one of each token, squared, in parts of how much the old ones differ."""
        before = self.before.float()
        distance = (tokens.float() - before).square().mean(1) / before.var(0).mean()
        rows = self.head_rows(tokens).unflatten(1, (self.ratio, -1)) @ self.embed.weight.T * self.head_scale.exp()
        said = sight.choice_loss(rows.float().flatten(0, 1), shown.rows.flatten(0, 2))              # (M*P'*r, V)
        return {**super().of_tokens(tokens, shown), "keep": distance, "rows": said}

    def loss(self, tiles: Tensor, shown: Shown) -> Tensor:
        weights = {**sight.WEIGHTS, "keep": KEEP, "rows": ROWS}
        return sum(weights[name] * loss for name, loss in self.losses(tiles, shown).items())


def learn(
    model: DeepSeekVL2, processor: Processor, seed: int, steps: int, dtype: str = "float32", show: bool = True,
    listening: int = LISTENING,
) -> float:
    """Train the vision tower and the projector of a model that speaks, in place. Returns the last loss.

    First, for some steps more, only the heads listen. All of a team take the same steps.
    """
    torch.manual_seed(seed)
    whole = Sharper(model)
    learner = optimizers.Learner(whole, getattr(torch, dtype), optimizers.fast(whole, RATE))

    def lesson(step: int) -> tuple[Tensor, Shown]:
        return sight.batch(processor, seed, step, lessons=LESSONS, pages=PAGES)

    learner.freeze(("was", "embed", "vision", "projector"))
    sight.teach(learner, lambda step: lesson(steps + step), listening, "listening to what it sees" if show else "")
    learner.freeze(("was", "embed", *HEADS))
    return sight.teach(learner, lesson, steps, "learning to see sharper" if show else "")
