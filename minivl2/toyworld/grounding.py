"""Grounding: where things are, answered with boxes in the released model's notation.

A phrase stands between <|ref|> and <|/ref|>, its boxes between <|det|> and <|/det|>: integers from 0 to 999
of the picture's width and height. What is absent is answered with a plain "none".
"""

from . import scenes
from .canvas import picture_size
from .sample import Question, Sample, Seen
from .scenes import any_name
from .things import COLOURS, SHAPES, Kind, draw_scene, random_kinds, random_theme

GRIDS = scenes.GRIDS
FULL = 999
ABSENT = 1 / 5  # share of questions about something that is not there


def draw(rng, grid):
    theme = random_theme(rng)
    among = 0 if rng.random() < ABSENT else rng.randint(1, 4)
    n = max(among, rng.randint(1, 5))
    scene, picture = draw_scene(rng, picture_size(rng, grid), random_kinds(rng, n, theme, among))
    asked = [box(rng, scene), box(rng, scene), boxes(rng, scene, theme)]
    if n <= 4:  # the answer is long enough as it is
        asked.append(grounded_caption(rng, scene))
    questions = list(dict.fromkeys(question for question in asked if question))     # none twice
    rng.shuffle(questions)
    return Sample("grounding", (picture,), tuple(questions), scene, grid)


def per_mille(box, scene):
    """Pixel edges as integers from 0 to 999 of the scene's width and height."""
    sides = (scene.width, scene.height) * 2
    return [round(edge / side * FULL) for edge, side in zip(box, sides, strict=True)]


def located(phrase, things, scene):
    """``<|ref|>phrase<|/ref|><|det|>[[x1, y1, x2, y2], ...]<|/det|>``"""
    return f"<|ref|>{phrase}<|/ref|><|det|>{[per_mille(thing.box, scene) for thing in things]}<|/det|>"


def seen_boxes(things, scene):
    """Every number of a box is seen at its thing; that there is a next box, at the next thing."""
    seen = []
    for i, thing in enumerate(things):
        seen += [Seen("], ", thing.box)] if i else []
        seen += [Seen(str(number), thing.box, edge) for edge, number in enumerate(per_mille(thing.box, scene))]
    return (*seen, Seen("]]", None)) if things else ()


def ask_where(rng, ability, phrase, things, scene):
    where = "where are {}?" if phrase.startswith("all ") else "where is {}?"
    words = rng.choice(("{}", "locate {} in the given image.", where, "find {}."))
    answer = located(phrase, things, scene) if things else "none"
    return Question(ability, words.format(f"<|ref|>{phrase}<|/ref|>"), answer, ABSENT, seen_boxes(things, scene))


def box(rng, scene):
    """One thing, by a name that fits nothing else; or, now and then, a name that fits nothing at all."""
    named = any_name(rng, scene)
    if named is None:
        return None
    thing, kind = named
    if rng.random() >= ABSENT:
        return ask_where(rng, "box", f"the {kind}", [thing], scene)
    while scene.fitting(kind):
        kind = Kind(colour=rng.choice(list(COLOURS)), shape=rng.choice(SHAPES))
    return ask_where(rng, "box", f"the {kind}", [], scene)


def boxes(rng, scene, theme):
    return ask_where(rng, "boxes", f"all {theme.plural}", scene.fitting(theme), scene)


def grounded_caption(rng, scene):
    phrase = rng.choice(("describe the picture.", "what does the picture show?", "name everything in order."))
    names = [str(Kind(t.size, t.colour, t.shape)) for t in scene.things]
    parts = [located(name, [t], scene) for name, t in zip(names, scene.things, strict=True)]
    seen = [(Seen(name, t.box), *seen_boxes([t], scene)) for name, t in zip(names, scene.things, strict=True)]
    return Question("grounded caption", "<|grounding|>" + phrase, ", ".join(parts), seen=sum(seen, ()))
