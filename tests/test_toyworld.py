"""The toy world as a whole: its interface, its seeds, its grids, and the conversations made from it."""

import os
import random
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minivl2 import toyworld

KINDS = list(toyworld.KINDS)
SEEDS = st.integers(0, 10**9)
GRIDS = [(m, n) for m in range(1, 10) for n in range(1, 10) if m * n <= 9]
ONE_TILE_WIDE = [grid for grid in GRIDS if grid[0] == 1]


def tiles_chosen(width, height):
    """The released tiling rule, as plain loops: most effective pixels, then least waste, then earliest."""
    best = None
    for across, down in sorted(GRIDS, key=lambda grid: grid[0] * grid[1]):
        wide, high = 56 * across, 56 * down
        scale = min(wide / width, high / height)
        effective = min(int(width * scale) * int(height * scale), width * height)
        waste = wide * high - effective
        if best is None or effective > best[0] or (effective == best[0] and waste < best[1]):
            best = (effective, waste, (across, down))
    return best[2]


@settings(deadline=None, max_examples=150)
@given(SEEDS, st.sampled_from(KINDS))
def test_every_picture_has_the_grid_it_promises(seed, kind):
    sample = toyworld.draw(seed, kind)
    for image in sample.images:
        assert tiles_chosen(*image.size) == sample.grid


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("grid", GRIDS)
def test_every_grid_can_be_asked_for_or_says_why_not(kind, grid):
    too_small = grid == (1, 1) and kind == "text"
    too_small |= grid in ONE_TILE_WIDE and kind in ("documents", "tables", "charts") and (kind, grid) != ("charts", (1, 1))
    for seed in range(3):
        if too_small:
            with pytest.raises(ValueError, match="need"):
                toyworld.draw(seed, kind, grid)
        else:
            sample = toyworld.draw(seed, kind, grid)
            assert {tiles_chosen(*image.size) for image in sample.images} == {grid}


def test_errors_name_what_there_is():
    with pytest.raises(ValueError, match="scenes"):
        toyworld.draw(0, "landscapes")
    with pytest.raises(ValueError, match="1 to 9 tiles"):
        toyworld.draw(0, "scenes", (4, 4))


@settings(deadline=None, max_examples=50)
@given(SEEDS)
def test_same_seed_same_sample(seed):
    once, twice = toyworld.draw(seed), toyworld.draw(seed)
    assert [image.tobytes() for image in once.images] == [image.tobytes() for image in twice.images]
    assert (once.questions, once.facts, once.grid) == (twice.questions, twice.facts, twice.grid)
    spelled_out = toyworld.draw(seed, once.kind, once.grid)
    assert spelled_out.questions == once.questions
    assert [image.tobytes() for image in spelled_out.images] == [image.tobytes() for image in once.images]


DIGEST = """
import hashlib, random
from minivl2 import toyworld
random.seed()
digest = hashlib.sha256()
for seed in range(40):
    sample = toyworld.draw(seed)
    digest.update(repr((sample.questions, sample.facts, sample.grid)).encode())
    for image in sample.images:
        digest.update(image.tobytes())
print(digest.hexdigest())
"""


def test_another_process_draws_the_same_bytes():
    """Neither the order of string hashes nor the global random state may show."""
    printed = set()
    for hash_seed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        run = subprocess.run(
            [sys.executable, "-c", DIGEST], env=env, capture_output=True, text=True, check=True
        )
        printed.add(run.stdout)
    assert len(printed) == 1


def test_every_ability_occurs_and_none_is_unknown():
    seen = {q.ability for seed in range(60) for kind in KINDS for q in toyworld.draw(seed, kind).questions}
    assert seen == set(toyworld.ABILITIES)


@settings(deadline=None, max_examples=100)
@given(SEEDS)
def test_text_is_short_and_lower_case_but_for_what_is_read_letter_by_letter(seed):
    sample = toyworld.draw(seed)
    spelled = sample.kind in ("text", "documents", "charts")
    for question in sample.questions:
        assert 0 < len(question.text) <= 90
        assert question.answer
        assert question.guess is None or 0 < question.guess < 1
        if not spelled:
            assert question.text == question.text.lower()
            assert question.answer == question.answer.lower()


def test_every_question_has_several_phrasings():
    """Words that come from the picture are struck out; what remains is the phrasing."""
    from minivl2.toyworld.things import COLOURS, SHAPES

    filled = {*COLOURS, *SHAPES, "crosses", "big", "small", *(shape + "s" for shape in SHAPES)}
    phrasings = {}
    for kind in ("scenes", "grounding", "pairs"):
        for seed in range(150):
            for question in toyworld.draw(seed, kind).questions:
                words = question.text.replace("<|", " <|").replace("|>", "|> ").replace("?", " ?").split()
                left = " ".join(word for word in words if word.strip(".") not in filled)
                phrasings.setdefault(question.ability, set()).add(left)
    assert all(len(ways) >= 3 for ways in phrasings.values()), phrasings


@pytest.mark.parametrize("kind", KINDS)
def test_conversation_shows_the_pictures_once(kind):
    sample = toyworld.draw(5, kind)
    messages = sample.conversation()
    assert [message["role"] for message in messages] == ["user", "assistant"] * len(sample.questions)
    assert messages[0]["content"] == "<image>\n" * len(sample.images) + sample.questions[0].text
    assert sum(message["content"].count("<image>") for message in messages) == len(sample.images)
    assert [m["content"] for m in messages[1::2]] == [question.answer for question in sample.questions]


def test_conversation_length_and_order():
    sample = toyworld.draw(5, "scenes")
    assert len(sample.conversation(2)) == 4
    assert len(sample.conversation(99)) == 2 * len(sample.questions)
    shuffled = [sample.conversation(1, random.Random(i))[1]["content"] for i in range(30)]
    assert len(set(shuffled)) > 1
