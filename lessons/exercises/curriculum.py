"""Exercises on minivl2/training/curriculum.py, of lesson 08. Graded by tests/test_curriculum.py."""

import torch

from minivl2.batch import IGNORED, Batch
from minivl2.grading.exercise import Exercise, Mistake
from minivl2.training import curriculum
from minivl2.training.curriculum import Lesson, in_line


def one(length, which):
    ids = 100 * which + torch.arange(length)[None]
    return Lesson(Batch(ids, torch.ones_like(ids, dtype=torch.bool), ids < 0, torch.empty(0, 3, 2, 2),
                        torch.empty(0, 2, dtype=torch.long), ids.masked_fill(ids % 100 != 1, IGNORED)), [str(which)])


def some_lines():
    """Which conversations lie in which line, and what their abilities are said to be."""
    told = []
    for lengths in ([4, 4, 2, 3, 2, 1], [9, 2, 3], [3, 3], [4, 4, 6, 2], [3, 4, 2]):
        lines = curriculum.packed([one(length, which) for which, length in enumerate(lengths)], 6)
        told.append([(line.batch.input_ids[0].tolist(), line.batch.labels[0].tolist(), line.abilities) for line in lines])
    return told


def length(lesson):
    return lesson.batch.input_ids.shape[1]


def merged(lines):
    return [Lesson(in_line([one.batch for one in line]), [name for one in line for name in one.abilities]) for line in lines]


def last_line_only(lessons, room):
    lines = []
    for one in lessons:
        if lines and sum(map(length, lines[-1])) + length(one) <= room:
            lines[-1].append(one)
        else:
            lines.append([one])
    return merged(lines)


def longest_first(lessons, room):
    lines = []
    for one in sorted(lessons, key=length, reverse=True):
        free = [line for line in lines if sum(map(length, line)) + length(one) <= room]
        free[0].append(one) if free else lines.append([one])
    return merged(lines)


def best_fit(lessons, room):
    lines = []
    for one in lessons:
        free = [line for line in lines if sum(map(length, line)) + length(one) <= room]
        max(free, key=lambda line: sum(map(length, line))).append(one) if free else lines.append([one])
    return merged(lines)


EXERCISES = (
    Exercise("training.curriculum.packed", "test", some_lines, (
        Mistake("one conversation a line", {"if free:": "if False:"},
                "every conversation has a line of its own: nothing is packed."),
        Mistake("all in one", {"+ length <= room": "+ length <= 10**9"}, "lines grow beyond `room`."),
        Mistake("never quite full", {"<= room": "< room"},
                "a line that would be full to the last token is refused: at most `room`, so <=."),
        Mistake("one too long", {"+ length <= room": "<= room"},
                "you look whether the line has room before the new conversation, without its own length: lines get "
                "too long."),
        Mistake("the last line only", last_line_only,
                "you look at the last line only. Earlier lines may have room for a short one: try all, in order."),
        Mistake("the last that fits", {"free[0]": "free[-1]"},
                "you take the last line with room; first fit takes the first."),
        Mistake("longest first", longest_first,
                "you sort by length first. That packs better, but conversations would no longer stand in the order "
                "drawn."),
        Mistake("best fit", best_fit),
        Mistake("a new one in front", {"lines.append([one])": "lines.insert(0, [one])"}),
        Mistake("abilities of the first only", {
            "for one in line for name in one.abilities": "for name in line[0].abilities"},
                "only the first conversation's abilities are kept; the list has one for each labelled token of the "
                "line."),
        Mistake("one line at most", {"return [": "return [][:0] or [", "for line in lines]": "for line in lines[:1]]"},
                "only the first line is returned."),
    )),
)
