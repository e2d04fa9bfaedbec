"""The toy world: endless small pictures with questions, made from a seed and nothing else.

``draw(seed)`` gives the same bytes wherever the same Pillow draws: all choices come from a ``random.Random``
seeded with a string. Each picture is made for one grid of 56-pixel tiles, so what needs tiles is known.
"""

import random

from . import charts, documents, grounding, pairs, primer, scenes, tables, text
from .canvas import MAX_TILES, TILE
from .mentions import mentions, values_of
from .sample import ABILITIES, Question, Sample, messages

MODULES = (scenes, text, documents, tables, charts, grounding, pairs)
KINDS = {module.__name__.rpartition(".")[2]: module.draw for module in MODULES}
PRIMERS = {"page": primer.page, "crowd": primer.crowd}
GRIDS = {name: module.GRIDS for name, module in zip(KINDS, MODULES, strict=True)}

__all__ = ["ABILITIES", "GRIDS", "KINDS", "PRIMERS", "TILE", "Question", "Sample", "draw", "mentions", "messages",
           "values_of"]


def draw(seed, kind=None, grid=None):
    """The sample of this seed (any int or string).

    ``kind`` (a name in KINDS) and ``grid`` (tiles across, tiles down) are chosen by the seed when left out;
    giving the ones the seed would choose gives that same sample. A kind in PRIMERS has one tile and no questions.
    """
    rng = random.Random(f"toy world {seed}")
    chosen = rng.choice(tuple(KINDS))
    kind = kind or chosen
    if kind in PRIMERS:
        return PRIMERS[kind](random.Random(f"toy world {seed} {kind}"))
    if kind not in KINDS:
        raise ValueError(f"no kind of picture is called {kind!r}; there are {', '.join(KINDS)}")
    grid = tuple(grid or rng.choice(GRIDS[kind]))
    check_grid(kind, grid)
    return KINDS[kind](random.Random(f"toy world {seed} {kind} {grid[0]}x{grid[1]}"), grid)


def check_grid(kind, grid):
    across, down = grid
    if across < 1 or down < 1 or across * down > MAX_TILES:
        raise ValueError(f"a grid has 1 to {MAX_TILES} tiles, not {across} x {down}")
    if kind == "text" and across * down == 1:
        raise ValueError("text needs a grid of 2 tiles or more: in one tile the global view shows it as well")
    if kind in ("documents", "tables", "charts") and across < 2 and grid not in GRIDS[kind]:
        raise ValueError(f"{kind} need a grid at least 2 tiles across, this one is {across} x {down}")
