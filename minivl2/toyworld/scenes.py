"""Scenes: one to six coloured things, and what can be asked of them."""

from .canvas import picture_size
from .sample import Question, Sample, Seen, at
from .things import COLOURS, SHAPES, Kind, draw_scene, random_kinds, random_theme

GRIDS = ((1, 1), (1, 1), (2, 1), (1, 2), (2, 2), (3, 1), (1, 3), (3, 2), (2, 3))
MOST = 6  # things in a picture
DIRECTIONS = {"left of": (0, 1), "right of": (0, -1), "above": (1, 1), "below": (1, -1)}  # axis, sign
ONE_KIND = 1 / (len(COLOURS) * len(SHAPES))  # chance of guessing a colour and a shape at once


def draw(rng, grid):
    n = rng.randint(1, MOST)
    theme = random_theme(rng)
    among = rng.randint(0, min(n, 4))
    scene, picture = draw_scene(rng, picture_size(rng, grid), random_kinds(rng, n, theme, among))
    asked = [ask(rng, scene) for ask in (colour, shape, size, exists, relation) for _ in range(2)]
    asked += [ask(rng, scene) for ask in (count, largest, caption)]
    asked.append(count_theme(rng, scene, theme))
    questions = list(dict.fromkeys(question for question in asked if question))     # none twice
    rng.shuffle(questions)
    return Sample("scenes", (picture,), tuple(questions), scene, grid)


def only(rng, scene, *makers):
    """A random thing and a description, built by a maker, that fits nothing else; None if there is none."""
    choices = [(thing, make(thing)) for thing in scene.things for make in makers]
    choices = [(thing, kind) for thing, kind in choices if len(scene.fitting(kind)) == 1]
    return rng.choice(choices) if choices else None


def any_name(rng, scene):
    """As ``only``, with every way to call a thing."""
    return only(
        rng,
        scene,
        lambda t: Kind(colour=t.colour, shape=t.shape),
        lambda t: Kind(t.size, t.colour, t.shape),
        lambda t: Kind(shape=t.shape),
        lambda t: Kind(colour=t.colour),
    )


def colour(rng, scene):
    found = only(rng, scene, lambda t: Kind(shape=t.shape), lambda t: Kind(t.size, shape=t.shape))
    if found:
        thing, kind = found
        phrase = rng.choice(("what colour is the {}?", "the {} has which colour?", "colour of the {}?"))
        return Question("colour", phrase.format(kind), thing.colour, 1 / len(COLOURS), at(thing, thing.colour))


def shape(rng, scene):
    found = only(rng, scene, lambda t: Kind(colour=t.colour), lambda t: Kind(t.size, t.colour))
    if found:
        thing, kind = found
        phrase = rng.choice(("what shape is the {}?", "the {} has which shape?", "shape of the {}?"))
        return Question("shape", phrase.format(kind), thing.shape, 1 / len(SHAPES), at(thing, thing.shape))


def size(rng, scene):
    found = only(rng, scene, lambda t: Kind(colour=t.colour, shape=t.shape), lambda t: Kind(shape=t.shape))
    if found:
        thing, kind = found
        phrase = rng.choice(("is the {} big or small?", "what size is the {}?", "size of the {}?"))
        return Question("size", phrase.format(kind), thing.size, 1 / 2, at(thing, thing.size))


def count(rng, scene):
    phrase = rng.choice(("how many things are there?", "count the things.", "how many things do you see?"))
    return counted(phrase, scene.things, 1 / MOST)


def count_theme(rng, scene, theme):
    if len(scene.things) >= 4:  # only then is every count from 0 to 4 equally likely
        phrase = rng.choice(("how many {} are there?", "count the {}.", "how many {} do you see?"))
        return counted(phrase.format(theme.plural), scene.fitting(theme), 1 / 5)


def counted(text, things, guess):
    """How many there are is known at the last of them."""
    answer = str(len(things))
    return Question("count", text, answer, guess, at(things[-1], answer) if things else (Seen(answer, None),))


def exists(rng, scene):
    """Yes and no are equally likely; the "no" borrows a colour or a shape from the picture when it can."""
    thing = rng.choice(scene.things)
    kind = Kind(colour=thing.colour, shape=thing.shape)
    answer = rng.choice(("yes", "no"))
    while answer == "no" and scene.fitting(kind):
        borrowed = rng.choice(scene.things)
        kind = rng.choice(
            (
                Kind(colour=borrowed.colour, shape=rng.choice(SHAPES)),
                Kind(colour=rng.choice(list(COLOURS)), shape=borrowed.shape),
            )
        )
    article = "an" if kind.colour == "orange" else "a"
    phrase = rng.choice(("is there {} {}?", "do you see {} {}?", "does the picture show {} {}?"))
    return Question("exists", phrase.format(article, kind), answer, 1 / 2)


def beyond(scene, thing, direction):
    """The things that lie ``direction`` of ``thing``; None when for some it is a matter of opinion."""
    axis, sign = DIRECTIONS[direction]
    side = (scene.width, scene.height)[axis]
    inside = []
    for other in scene.things:
        near, far = (other, thing) if sign > 0 else (thing, other)
        gap = far.box[axis] - near.box[axis + 2]  # pixels between the two, negative when they overlap
        ahead = (far.box[axis] + far.box[axis + 2] - near.box[axis] - near.box[axis + 2]) / 2
        if gap >= 0 and ahead > 0.12 * side:
            inside.append(other)
        elif ahead > 0.05 * side:
            return None
    return inside


def relation(rng, scene):
    named = any_name(rng, scene)
    if named is None:
        return None
    thing, kind = named
    choices = [(way, beyond(scene, thing, way)) for way in DIRECTIONS]
    choices = [(way, others[0]) for way, others in choices if others and len(others) == 1]
    if choices:
        way, other = rng.choice(choices)
        phrase = rng.choice(("what is {} the {}?", "which thing is {} the {}?", "name what is {} the {}."))
        answer = f"{other.colour} {other.shape}"
        return Question("relation", phrase.format(way, kind), answer, ONE_KIND, at(other, answer))


def largest(rng, scene):
    big = scene.fitting(Kind(size="big"))
    if len(big) == 1 and len(scene.things) > 1:
        phrase = rng.choice(("what is the largest thing?", "which thing is biggest?", "largest thing?"))
        answer = f"{big[0].colour} {big[0].shape}"
        return Question("largest", phrase, answer, ONE_KIND, at(big[0], answer))


def caption(rng, scene):
    phrase = rng.choice(("what does the picture show?", "describe the picture.", "name everything in order."))
    seen = tuple(Seen(str(Kind(thing.size, thing.colour, thing.shape)), thing.box) for thing in scene.things)
    return Question("caption", phrase, ", ".join(piece for piece, *_ in seen), seen=seen)
