"""Sight: the vision tower learns what is where, before anyone asks it a question.

Tests    tests/test_training.py

The real vision tower comes trained: SigLIP has seen billions of pictures. Ours starts from noise, and answers alone
teach it slowly: after twenty thousand pictures it could tell colours and not a single shape. So for a first part of
the time every visual token is asked directly what it shows: the shape, the colour and the edges of the thing that
covers most of it. The heads that answer are thrown away.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import trange

from minivl2 import toyworld
from minivl2.config import Config
from minivl2.model import DeepSeekVL2
from minivl2.processor import Processor
from minivl2.toyworld.things import COLOURS, SHAPES, Scene
from minivl2.training import optimizers, team

BATCH = 64              # pictures a step: each is one tile, and no text
NOTHING = 0             # the class of a token that shows only background


class Sight(nn.Module):
    """Vision tower and projector with a head on every visual token."""

    def __init__(self, model: DeepSeekVL2):
        super().__init__()
        self.vision, self.projector = model.vision, model.projector
        self.sizes = [1 + len(SHAPES), 1 + len(COLOURS), 4]
        self.heads = nn.Linear(model.config.language.hidden_size, sum(self.sizes))

    def loss(self, tiles: Tensor, shapes: Tensor, colours: Tensor, edges: Tensor) -> Tensor:
        """tiles (M, 3, size, size); per visual token: shapes and colours (M, P'), edges (M, P', 4) in parts of a tile."""
        shape, colour, edge = self.heads(self.projector(self.vision(tiles))).split(self.sizes, dim=-1)
        something = shapes != NOTHING
        return (F.cross_entropy(shape.flatten(0, 1), shapes.flatten())
                + F.cross_entropy(colour.flatten(0, 1), colours.flatten())
                + 4 * F.l1_loss(edge[something], edges[something]))


def what_is_where(scene: Scene, side: int, width: float) -> tuple[Tensor, Tensor, Tensor]:
    """For each of side x side visual tokens of the global view: shape and colour class, and edges of what it shows most.

    Edges and the width of a token are in parts of the tile. The last tokens stand out over its edge, as 4 x 2 patches
    are more than 7.
    """
    scale = 1 / max(scene.width, scene.height)      # the picture is padded to a square, and centred
    left, top = (1 - scene.width * scale) / 2, (1 - scene.height * scale) / 2
    shapes, colours = (torch.full((side * side,), NOTHING) for _ in range(2))
    edges, most = torch.zeros(side * side, 4), torch.zeros(side * side)
    corner = torch.arange(side) * width
    for thing in scene.things:
        x1, y1, x2, y2 = (place * scale + start for place, start in zip(thing.box, (left, top, left, top), strict=True))
        across = (corner + width).clamp(max=x2) - corner.clamp(min=x1)
        down = (corner + width).clamp(max=y2) - corner.clamp(min=y1)
        covered = (down.clamp(min=0)[:, None] * across.clamp(min=0)).flatten()
        shown = covered > most.clamp(min=0.1 * width**2)        # a tenth of the token, and more than any other thing
        shapes[shown], colours[shown] = 1 + SHAPES.index(thing.shape), 1 + list(COLOURS).index(thing.colour)
        edges[shown] = torch.tensor([x1, y1, x2, y2])
        most[shown] = covered[shown]
    return shapes, colours, edges


def batch(processor: Processor, config: Config, seed: int, step: int) -> tuple[Tensor, ...]:
    """This process's part of the batch of this step."""
    side, width = config.tokens_per_side, config.projector.downsample_ratio / config.vision.grid
    samples = [toyworld.draw(f"sight {seed} {step} {i}", "scenes", (1, 1)) for i in range(team.rank(), BATCH, team.size())]
    tiles = torch.stack([processor.tile(sample.images)[0][0] for sample in samples])        # the global views
    targets = zip(*(what_is_where(sample.facts, side, width) for sample in samples), strict=True)
    return (tiles, *(torch.stack(target) for target in targets))


def learn(model: DeepSeekVL2, processor: Processor, seed: int, steps: int, show: bool = True) -> float:
    """Train the vision tower and the projector, in place. Returns the last loss. All of a team take the same steps."""
    torch.manual_seed(seed)
    sight = Sight(model)
    both = optimizers.make(sight)
    loss = torch.tensor(float("nan"))
    for step in (bar := trange(steps, desc="learning to see", disable=team.rank() > 0 or not show)):
        loss = sight.loss(*batch(processor, model.config, seed, step))
        loss.backward()
        team.average([p.grad for p in sight.parameters()])
        torch.nn.utils.clip_grad_norm_(sight.parameters(), 1.0)
        for optimizer in both:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * optimizers.rate(step / steps)
            optimizer.step()
            optimizer.zero_grad()
        if step % 10 == 0:
            bar.set_postfix(loss=f"{loss.item():.2f}")
    return loss.item()
