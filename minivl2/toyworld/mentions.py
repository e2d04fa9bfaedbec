"""What a question names: things by their kind ("the big red circle"), lines of letters by their words ("cost")."""

import re

from .things import COLOURS, DIAMETER, SHAPES, Kind, side_by_side

SIZE, COLOUR, SHAPE = ("|".join(words) for words in (DIAMETER, COLOURS, SHAPES))
KIND = re.compile(rf"\b(?:(?P<size>{SIZE}) )?(?:(?P<colour>{COLOUR}) )?(?:(?P<shape>{SHAPE})|thing)(?:e?s)?\b")
FRAMED = re.compile(r"\bframe[sd]\b")
WORD = re.compile(r"\w+")


def mentions(text, sample):
    """(character after the name, boxes of what it names), name after name. A letter's box is one of no size.

    No boxes for a thing that is not there; of words only those that stand in the picture.
    """
    return things(text, side_by_side(sample.scenes)) if sample.scenes else words(text, sample.written)


def values_of(text, sample):
    """The same for the letters of a chart, and where each is known together with its value: at whichever comes last."""
    known = [line.left if line.left else line for line in sample.written if line.left or line.above]
    ends = [line for line in sample.written if line.left or line.above]
    stand = {line.text: [middle * 2 for middle in end.middles] for line, end in zip(known, ends, strict=True)}
    return [(word.end(), stand[word.group()]) for word in WORD.finditer(text) if word.group() in stand]


def things(text, scenes):
    found = []
    for name in KIND.finditer(text):
        kind = Kind(**name.groupdict())
        boxes = [thing.box for scene in scenes for thing in scene.fitting(kind)]
        if kind != Kind():        # "the things" names nothing in particular
            found.append((name.end(), boxes))
    marked = [scene.things[scene.marked].box for scene in scenes if scene.marked is not None]
    return sorted(found + [(name.end(), marked) for name in FRAMED.finditer(text)])


def words(text, lines):
    stand = {}
    for line in lines:
        for word in WORD.finditer(line.text):
            letters = line.middles[word.start() : word.end()]
            stand.setdefault(word.group(), []).extend(middle * 2 for middle in letters)
    return [(word.end(), stand[word.group()]) for word in WORD.finditer(text) if word.group() in stand]
