"""Packing conversations into lines, by hand. test_training.py has the courses and what they show."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from minivl2.batch import IGNORED, Batch
from minivl2.training.curriculum import Lesson, packed

LENGTHS = st.lists(st.integers(2, 9), min_size=1, max_size=9)


def one(length, which):
    """A conversation whose ids tell which it is: 100 * which + place. Its last token is learned."""
    ids = 100 * which + torch.arange(length)[None]
    labels = torch.full_like(ids, IGNORED)
    labels[:, 0], labels[:, -1] = ids[:, 0], ids[:, -1]     # the begin token has a label, as the processor has it
    images = which % 2
    batch = Batch(ids, torch.ones_like(ids, dtype=torch.bool), torch.arange(length)[None] < images,
                  torch.full((images, 3, 2, 2), float(which)), torch.full((images, 2), which), labels)
    return Lesson(batch, [f"ability {which}"])


def lines_of(lengths, room):
    return packed([one(length, which) for which, length in enumerate(lengths)], room)


def members(line):
    """Which conversations stand in a line, in order."""
    return list(dict.fromkeys((line.batch.input_ids[0] // 100).tolist()))


def first_fit(lengths, room):
    lines = []
    for which, length in enumerate(lengths):
        for line in lines:
            if sum(lengths[i] for i in line) + length <= room:
                line.append(which)
                break
        else:
            lines.append([which])
    return lines


@given(LENGTHS, st.integers(4, 20))
def test_each_conversation_goes_into_the_first_line_that_has_room(lengths, room):
    assert [members(line) for line in lines_of(lengths, room)] == first_fit(lengths, room)


def test_examples_by_hand():
    assert [members(line) for line in lines_of([4, 4, 2, 3], room=6)] == [[0, 2], [1], [3]]
    assert [members(line) for line in lines_of([3, 3], room=6)] == [[0, 1]]         # full to the last token
    assert [members(line) for line in lines_of([9, 2, 2], room=6)] == [[0], [1, 2]]     # longer than the room: alone, whole


@given(LENGTHS, st.integers(4, 20))
def test_nothing_is_lost_or_cut_and_pictures_and_abilities_stay_with_their_own(lengths, room):
    for line in lines_of(lengths, room):
        alone = [one(lengths[i], i) for i in members(line)]
        for name in ("input_ids", "attention_mask", "image_mask"):
            assert torch.equal(getattr(line.batch, name), torch.cat([getattr(a.batch, name) for a in alone], 1))
        for name in ("tiles", "grids"):
            assert torch.equal(getattr(line.batch, name), torch.cat([getattr(a.batch, name) for a in alone]))
        assert line.abilities == [ability for a in alone for ability in a.abilities]
        assert len(line.abilities) == line.batch.learned.sum()


@given(LENGTHS, st.integers(4, 20))
def test_what_begins_a_conversation_is_not_learned_from_the_one_before(lengths, room):
    for line in lines_of(lengths, room):
        assert (line.batch.labels[0][line.batch.input_ids[0] % 100 == 0] == IGNORED).all()
