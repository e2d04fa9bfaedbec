"""What a question names: things by their kind ("the big red circle"), lines of letters by their words ("cost")."""

import re

from .things import COLOURS, DIAMETER, SHAPES, Kind, Scene

SIZE, COLOUR, SHAPE = ("|".join(words) for words in (DIAMETER, COLOURS, SHAPES))
KIND = re.compile(rf"\b(?:(?P<size>{SIZE}) )?(?:(?P<colour>{COLOUR}) )?(?:(?P<shape>{SHAPE})|thing)(?:e?s)?\b")
WORD = re.compile(r"\w+")


def mentions(text, sample):
    """(character after the name, boxes of what it names), name after name. A letter's box is one of no size.

    No boxes for a thing that is not there; of words only those that stand in the picture, and nothing where a sample has
    several pictures.
    """
    return things(text, sample.facts) if isinstance(sample.facts, Scene) else words(text, sample.written)


def values_of(text, sample):
    """The same for the letters of a chart, and where each is known together with its value: at whichever comes last."""
    known = [line.left if line.left else line for line in sample.written if line.left or line.above]
    ends = [line for line in sample.written if line.left or line.above]
    stand = {line.text: [middle * 2 for middle in end.middles] for line, end in zip(known, ends, strict=True)}
    return [(word.end(), stand[word.group()]) for word in WORD.finditer(text) if word.group() in stand]


def things(text, scene):
    found = []
    for name in KIND.finditer(text):
        kind = Kind(**name.groupdict())
        boxes = [thing.box for thing in scene.fitting(kind)]
        if kind != Kind():        # "the things" names nothing in particular
            found.append((name.end(), boxes))
    return found


def words(text, lines):
    stand = {}
    for line in lines:
        for word in WORD.finditer(line.text):
            letters = line.middles[word.start() : word.end()]
            stand.setdefault(word.group(), []).extend(middle * 2 for middle in letters)
    return [(word.end(), stand[word.group()]) for word in WORD.finditer(text) if word.group() in stand]
