"""Sight: what each visual token of a drawn picture shows, and that the vision tower learns to tell."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_training import assert_same, make, weights

from minivl2 import toyworld
from minivl2.batch import IGNORED
from minivl2.toyworld.lettering import Line
from minivl2.toyworld.things import Scene, Thing
from minivl2.training import sight
from minivl2.training.sight import CHARACTERS, NO_CHARACTER, SLOTS, Window


@pytest.fixture(scope="module")
def processor():
    return make().processor


def scene(width, height, *things, marked=None):
    return Scene(width, height, tuple(Thing("big", colour, shape, box) for colour, shape, box in things), marked)


def shown_things(processor, scene, grid=(1, 1), view=0, edges=True):
    window = Window(processor, (scene.width, scene.height), grid, view)
    shown = sight.nothing(window, processor)
    sight.show_things(shown, window, processor, scene, edges)
    return shown


def tokens_with(processor, shown, word):
    (id, _), *_ = sight.spans(processor, word)      # this small tokenizer cuts rare words in pieces
    return shown.words[:, id].nonzero().flatten().tolist()


# which token shows which pixel: seven patches of 8 pixels are four tokens of 16, half of the last of them padding


def test_a_thing_is_shown_by_the_tokens_it_covers_a_tenth_of(processor):
    """From x = 16 to 33: all of column 1 of row 1, and one pixel, a sixteenth, of column 2."""
    shown = shown_things(processor, scene(56, 56, ("red", "circle", (16, 16, 33, 32))))
    for word in (" red", "red", " big", " circle"):
        assert tokens_with(processor, shown, word) == [5], word
    assert tokens_with(processor, shown, " blue") == tokens_with(processor, shown, " framed") == []


def test_its_edges_are_the_numbers_of_the_box_notation(processor):
    shown = shown_things(processor, scene(56, 56, ("red", "circle", (16, 16, 33, 32))))
    assert shown.edges[5].tolist() == [round(edge / 56 * 999) for edge in (16, 16, 33, 32)]
    assert (shown.edges[[i for i in range(16) if i != 5]] == IGNORED).all()


def test_of_two_things_in_a_token_the_larger_counts(processor):
    things = ("red", "circle", (0, 0, 5, 16)), ("blue", "square", (5, 0, 16, 16))
    for order in (things, things[::-1]):
        shown = shown_things(processor, scene(56, 56, *order))
        assert tokens_with(processor, shown, " square") == [0] and tokens_with(processor, shown, " circle") == []


def test_a_framed_thing_is_shown_as_framed(processor):
    two = ("red", "circle", (0, 0, 16, 16)), ("blue", "square", (32, 32, 48, 48))
    assert tokens_with(processor, shown_things(processor, scene(56, 56, *two, marked=1)), " framed") == [10]


def test_a_wide_picture_lies_in_the_middle_of_the_global_view(processor):
    """112 x 56 pixels become 56 x 28: 14 from the top."""
    shown = shown_things(processor, scene(112, 56, ("red", "star", (0, 0, 32, 36))), (2, 1))
    assert tokens_with(processor, shown, " star") == [0, 4]     # y from 14 to 32: an eighth of row 0, all of row 1


def test_a_tile_shows_its_part_of_the_picture(processor):
    wide = scene(112, 56, ("red", "star", (56, 0, 72, 16)))
    assert tokens_with(processor, shown_things(processor, wide, (2, 1), view=1), " star") == []
    assert tokens_with(processor, shown_things(processor, wide, (2, 1), view=2), " star") == [0]


@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_all_tiles_together_show_every_character_once(data, processor):
    """Read patch by patch, the tiles give back the very characters that were written, however they fall on tiles."""
    kind = data.draw(st.sampled_from(["text", "documents", "tables", "charts"]))
    sample = toyworld.draw(data.draw(st.integers(0, 10**6)), kind)
    picture, found = sample.images[0], []
    for view in range(1, 1 + sample.grid[0] * sample.grid[1]):
        window = Window(processor, picture.size, sample.grid, view)
        shown = sight.nothing(window, processor)
        sight.show_lines(shown, window, processor, sample.written)
        found += [CHARACTERS[i] for i in shown.letters.flatten() if i != NO_CHARACTER]
    written = [c for line in sample.written for c in line.text if c in CHARACTERS]
    assert set(found) == set(written)
    assert len(found) >= 0.9 * len(written)         # now and then three narrow letters share a patch, which has two places


def test_characters_of_a_patch_are_read_from_left_to_right(processor):
    window = Window(processor, (112, 56), (2, 1), 1)
    shown = sight.nothing(window, processor)
    line = Line("AB", (0, 0, 8, 8), ((1.0, 4.0), (6.0, 4.0)))
    sight.show_lines(shown, window, processor, (line,))
    assert [CHARACTERS[i] for i in shown.letters[0, :SLOTS]] == ["A", "B"]
    assert tokens_with(processor, shown, "A") == tokens_with(processor, shown, "B") == [0]


def test_characters_of_a_token_lie_on_its_patches(processor):
    """7 x 7 patches in tokens of 2 x 2: the eighth row and column are padding, and show nothing."""
    letters = torch.arange(16 * 4 * SLOTS).view(1, 16, 4 * SLOTS)
    on_patches = sight.by_patch(letters, 49).view(7, 7, SLOTS)
    for row in range(7):
        for column in range(7):
            token, patch = row // 2 * 4 + column // 2, row % 2 * 2 + column % 2
            assert torch.equal(on_patches[row, column], letters[0, token, patch * SLOTS : (patch + 1) * SLOTS])


def test_a_picture_that_is_enlarged_to_fit_its_tile_is_enlarged_here(processor):
    """A picture of 28 x 28 fills its tile at twice the size. `tile` and Window agree on where the red pixel is."""
    picture = Image.new("RGB", (28, 28), "white")
    picture.paste("red", (20, 4, 24, 8))
    views, (grid,) = processor.tile([picture])
    window = Window(processor, picture.size, grid, 0)
    x, y = window.place(22, 6)
    assert views[0][:, int(y), int(x)].tolist() == pytest.approx([1, -1, -1], abs=0.1)
    assert window.patch_at(22, 6) == (2, 3)       # x = 44 is in the sixth patch, y = 12 in the second
    assert window.patch_at(-1, 6) is None


# learning


def test_learning_to_see_is_repeatable_and_lowers_the_loss(monkeypatch):
    monkeypatch.setattr(sight, "BATCH", 8)
    first, second = make(), make()
    losses = [sight.learn(trainer.model, trainer.processor, 0, steps=40, show=False) for trainer in (first, second)]
    assert_same(weights(first), weights(second))
    untrained = make()
    before = sight.Sight(untrained.model, untrained.processor).loss(*sight.batch(untrained.processor, 0, 39))
    assert losses[0] == losses[1] < 0.8 * before.item()
    assert torch.equal(first.model.decoder.head.weight, first.model.decoder.embed.weight)


def test_of_an_empty_tile_only_letters_are_asked_that_there_are_none():
    trainer = make()
    asked = sight.Sight(trainer.model, trainer.processor)
    tiles, _ = sight.draw(trainer.processor, "0")
    window = Window(trainer.processor, (56, 56), (1, 1), 0)
    blank = sight.Shown(*(part[None] for part in sight.nothing(window, trainer.processor)))
    with torch.no_grad():
        losses = asked.losses(tiles[None], blank)
    assert losses.pop("letters") > 0 and losses.pop("glyphs") > 0 and set(map(float, losses.values())) == {0.0}


def test_words_that_are_shown_are_told_from_those_that_are_not():
    """Either of two words that are shown is right: the best a token can do is to give each a half."""
    shown = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    sure = torch.tensor([[9.0, 9.0, -9.0], [5.0, 0.0, 0.0]])
    assert sight.choice_loss(sure, shown).tolist() == [pytest.approx(math.log(2), abs=1e-3)]
    assert sight.choice_loss(-sure, shown).item() > 10
    assert len(sight.choice_loss(sure, torch.zeros(2, 3))) == 0


def test_words_end_with_one_embedding_for_all_spellings():
    trainer = make()
    sight.settle(trainer.model, trainer.processor)
    embed = trainer.model.decoder.embed.weight
    whole = [word for words in sight.NAMES.values() for word in words      # this small tokenizer cuts the others in pieces
             if all(len(sight.spans(trainer.processor, before + word)) == 1 for before in ("", " "))]
    assert len(whole) > 3
    for word in whole:
        inside, first = sight.spellings(trainer.processor, word)
        assert inside != first and torch.equal(embed[inside], embed[first])
