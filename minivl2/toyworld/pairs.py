"""Two or three pictures at once: compare them, or find in the second what the first only points at."""

from dataclasses import replace

from PIL import ImageDraw

from .canvas import picture_size
from .grounding import located, seen_boxes
from .sample import Question, Sample, Seen, at
from .things import COLOURS, DIAMETER, SHAPES, Kind, draw_scene, random_kinds, side_by_side, typical_side

GRIDS = ((1, 1), (1, 1), (1, 1), (2, 1), (1, 2), (2, 2))
FRAME = (255, 0, 255)  # no thing has this colour
ORDINALS = ("first", "second", "third")
ALONE = 3  # questions about what one picture alone shows


def draw(rng, grid):
    if rng.random() < 0.5:
        return in_context(rng, grid)
    # Three pictures or more are shown to the model as global views only, so they must need no tiles.
    return compared(rng, grid, rng.choice((2, 3)) if grid == (1, 1) else 2)


def in_context(rng, grid):
    """A frame marks one thing in the first picture; the second holds the same shapes in other colours.

    Both pictures show the same shapes, each once: only the frame tells which one is meant.
    """
    shapes = rng.sample(SHAPES, rng.randint(2, 4))
    first, second = picture_size(rng, grid), picture_size(rng, grid)
    thick = max(1, round(typical_side(first) / 45))
    scenes, pictures = zip(
        draw_scene(rng, first, kinds_of(rng, shapes), gap=2 * thick + 2),
        draw_scene(rng, second, kinds_of(rng, shapes)),
        strict=True,
    )
    marked = rng.randrange(len(shapes))
    left, top, right, bottom = scenes[0].things[marked].box
    reach = thick + 1
    frame = (left - reach, top - reach, right - 1 + reach, bottom - 1 + reach)
    ImageDraw.Draw(pictures[0]).rectangle(frame, outline=FRAME, width=thick)
    scenes = (replace(scenes[0], marked=marked), scenes[1])
    kind = Kind(shape=scenes[0].things[marked].shape)
    phrase = rng.choice(
        (
            "the first image frames a thing. find its kind in the second image.",
            "find the framed shape of the first image in the second image.",
            "where in the second image is the shape framed in the first image?",
        )
    )
    (found,), (there,) = scenes[1].fitting(kind), side_by_side(scenes)[1].fitting(kind)
    edges = [seen._replace(box=seen.box and there.box) for seen in seen_boxes([found], scenes[1])]
    seen = (Seen(str(kind), scenes[0].things[marked].box), *edges)
    question = Question("in context", "<|grounding|>" + phrase, located(f"the {kind}", [found], scenes[1]), seen=seen)
    return Sample("pairs", pictures, (question,), scenes, grid)


def kinds_of(rng, shapes):
    return [Kind(rng.choice(list(DIAMETER)), rng.choice(list(COLOURS)), shape) for shape in shapes]


def compared(rng, grid, n):
    """``n`` pictures, no two with as many things. Which has most, and which alone shows some colour or shape."""
    counts = rng.sample(range(1, 7), n)
    scenes, pictures = zip(
        *(draw_scene(rng, picture_size(rng, grid), random_kinds(rng, count)) for count in counts), strict=True)
    beside = side_by_side(scenes)
    asked = [most(rng, counts, beside)]
    kinds = [Kind(colour=colour) for colour in COLOURS] + [Kind(shape=shape) for shape in SHAPES]
    for kind in rng.sample(kinds, len(kinds)):
        shows = [i for i, scene in enumerate(scenes) if scene.fitting(kind)]
        if len(shows) == 1 and len(asked) <= ALONE:
            article = "an" if kind.colour == "orange" else "a"
            phrase = rng.choice(("which image shows {} {}?", "which image has {} {}?", "where do you see {} {}?"))
            answer, thing = ORDINALS[shows[0]], beside[shows[0]].fitting(kind)[0]
            asked.append(Question("which image", phrase.format(article, kind), answer, 1 / n, at(thing, answer)))
    rng.shuffle(asked)
    return Sample("pairs", pictures, tuple(asked), scenes, grid)


def most(rng, counts, scenes):
    """How many there are is known at the last of them."""
    phrases = ("which image has more things?", "where are more things?", "more things in which image?")
    if len(counts) == 3:
        phrases = ("which image has the most things?", "where are the most things?", "most things in which?")
    which = counts.index(max(counts))
    seen = at(scenes[which].things[-1], ORDINALS[which])
    return Question("compare", rng.choice(phrases), ORDINALS[which], 1 / len(counts), seen)
