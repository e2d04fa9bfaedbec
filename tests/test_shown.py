"""What is shown by the visual tokens and patches of a drawn tile."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_training import make

from minivl2 import toyworld
from minivl2.batch import IGNORED
from minivl2.toyworld.lettering import Line
from minivl2.toyworld.things import Scene, Thing
from minivl2.training.shown import (
    CHARACTERS,
    NAMES,
    NO_CHARACTER,
    SLOTS,
    Window,
    by_patch,
    nothing,
    show_lines,
    show_things,
)
from minivl2.training.tokenizer import spans


@pytest.fixture(scope="module")
def processor():
    return make().processor


def scene(width, height, *things, marked=None):
    return Scene(width, height, tuple(Thing("big", colour, shape, box) for colour, shape, box in things), marked)


def shown_things(processor, scene, grid=(1, 1), view=0, edges=True):
    window = Window(processor, (scene.width, scene.height), grid, view)
    shown = nothing(window, processor)
    show_things(shown, window, processor, scene, edges)
    return shown


def tokens_with(processor, shown, word):
    (id, _), *_ = spans(processor.tokenizer, word)      # this small tokenizer cuts rare words in pieces
    return shown.words[:, id].nonzero().flatten().tolist()


# which token shows which pixel: seven patches of 8 pixels are four tokens of 16, half of the last of them padding


def test_a_thing_is_shown_by_the_tokens_it_covers_a_tenth_of(processor):
    """From x = 16 to 33: all of column 1 of row 1, and one pixel, a sixteenth, of column 2."""
    shown = shown_things(processor, scene(56, 56, ("red", "circle", (16, 16, 33, 32))))
    for word in (" red", "red", " big", " circle"):
        assert tokens_with(processor, shown, word) == [5], word
    assert tokens_with(processor, shown, " blue") == tokens_with(processor, shown, " framed") == []


def test_each_thing_has_one_middle(processor):
    """Tokens are of 16 pixels, four in a row. Two middles lie on token 5, one on 6. A page of letters has none to tell."""
    two = ("red", "circle", (16, 16, 33, 32)), ("blue", "star", (17, 17, 24, 30))
    shown = shown_things(processor, scene(56, 56, *two, ("red", "square", (28, 10, 44, 40))))
    assert shown.middles.tolist() == [0, 0, 0, 0, 0, 2, 1, *[0] * 9]
    assert (nothing(Window(processor, (56, 56), (1, 1), 0), processor).middles == IGNORED).all()


def test_a_tile_has_the_middles_that_lie_on_it(processor):
    """Of two tiles side by side the first shows a thing's middle, the second only its right end."""
    wide = scene(112, 56, ("red", "circle", (30, 16, 62, 32)))
    assert shown_things(processor, wide, (2, 1), 1).middles.sum() == 1
    assert shown_things(processor, wide, (2, 1), 2).middles.sum() == 0


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
        shown = nothing(window, processor)
        show_lines(shown, window, processor, sample.written)
        found += [CHARACTERS[i] for i in shown.letters.flatten() if i != NO_CHARACTER]
    written = [c for line in sample.written for c in line.text if c in CHARACTERS]
    assert set(found) == set(written)
    assert len(found) >= 0.9 * len(written)         # now and then three narrow letters share a patch, which has two places


@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_a_written_word_is_in_the_rows_in_which_its_characters_are(data, processor):
    """Character by character, from the piece of its line that it belongs to, with a blank before and without."""
    sample = toyworld.draw(data.draw(st.integers(0, 10**6)), data.draw(st.sampled_from(["text", "documents", "tables"])))
    window = Window(processor, sample.images[0].size, sample.grid, 1)
    shown, wanted = nothing(window, processor), set()
    show_lines(shown, window, processor, sample.written)
    for line in sample.written:
        for before in ("", " "):
            for id, (start, end) in spans(processor.tokenizer, before + line.text):
                for i in range(max(start - len(before), 0), end - len(before)):
                    x, y = window.place(*line.middles[i])
                    if 0 <= x < 56 and 0 <= y < 56 and line.text[i] != " ":
                        wanted.add((int(y // 16) * 4 + int(x // 16), int(y % 16 // 8), id))
    assert {*map(tuple, shown.rows.nonzero().tolist())} == wanted
    assert torch.equal(shown.rows.amax(1), shown.words)


# which patch shows which thing


def test_a_patch_shows_the_thing_that_covers_three_tenths_of_it_and_how_far_it_reaches(processor):
    """From x = 16 to 36, y = 18 to 32: patches 2 to 4 across, of 4 half; 2 and 3 down, of 2 three quarters."""
    shown = shown_things(processor, scene(56, 56, ("red", "circle", (16, 18, 36, 32))))
    here = [7 * row + column for row in (2, 3) for column in (2, 3, 4)]
    assert (shown.things[:, 0] != IGNORED).nonzero().flatten().tolist() == here
    kind = [[*words].index(name) for words, name in zip(NAMES.values(), ("red", "circle", "big"), strict=True)]
    assert shown.things[here].tolist() == [kind] * 6
    assert shown.reach[here[0]].tolist() == [-0.5, -0.25, 2, 1.5]       # the middle of patch (2, 2) is at (20, 20)
    assert shown.reach[here[-1]].tolist() == [-2.5, -1.25, 0, 0.5]      # and that of (3, 4) at (36, 28)


def test_a_thing_reaches_no_further_than_its_tile(processor):
    """A tile of 56 pixels shows the left half of a thing that is 40 wide. What lies beyond, its patches cannot know."""
    wide = scene(112, 56, ("red", "star", (36, 16, 76, 56)))
    left, right = (shown_things(processor, wide, (2, 1), view) for view in (1, 2))
    assert left.reach[7 * 2 + 5].tolist() == [-1, -0.5, 1.5, 4.5]       # patch (2, 5): its middle is at (44, 20)
    assert right.reach[7 * 2 + 1].tolist() == [-1.5, -0.5, 1, 4.5]      # patch (2, 1) of the right tile: at (56 + 12, 20)


# which patch shows which character


def test_characters_of_a_patch_are_read_from_left_to_right(processor):
    window = Window(processor, (112, 56), (2, 1), 1)
    shown = nothing(window, processor)
    line = Line("AB", (0, 0, 8, 8), ((1.0, 4.0), (6.0, 4.0)))
    show_lines(shown, window, processor, (line,))
    assert [CHARACTERS[i] for i in shown.letters[0, :SLOTS]] == ["A", "B"]
    assert tokens_with(processor, shown, "A") == tokens_with(processor, shown, "B") == [0]


def test_characters_of_a_token_lie_on_its_patches(processor):
    """7 x 7 patches in tokens of 2 x 2: the eighth row and column are padding, and show nothing."""
    letters = torch.arange(16 * 4 * SLOTS).view(1, 16, 4 * SLOTS)
    on_patches = by_patch(letters, 49).view(7, 7, SLOTS)
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
