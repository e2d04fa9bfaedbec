"""An image's vectors as a line of tokens."""

import pytest
import reference
import small
import torch
from hypothesis import given
from hypothesis import strategies as st

from minivl2.visual_tokens import count, lay_out

GRIDS = st.tuples(st.integers(1, 4), st.integers(1, 4))


@given(GRIDS, st.integers(1, 4))
def test_the_line_is_that_of_the_papers_figure(grid, side):
    w, h = grid
    tiles = small.numbers(1 + w * h, side * side, 3)
    newline, separator = small.numbers(2, 3, seed=1)
    assert torch.equal(lay_out(tiles, grid, newline, separator), reference.lay_out(tiles, grid, newline, separator))


def test_a_row_runs_across_all_tiles_before_the_next_begins():
    """Two tiles side by side, 2 x 2 each: left 4 5 6 7, right 8 9 10 11, global view 0 1 2 3. -1 newline, -2 separator."""
    tiles = torch.arange(12.0).view(3, 4, 1)
    line = lay_out(tiles, (2, 1), torch.tensor([-1.0]), torch.tensor([-2.0]))
    assert line.flatten().tolist() == [0, 1, -1, 2, 3, -1, -2, 4, 5, 8, 9, -1, 6, 7, 10, 11, -1]


def test_the_grid_is_width_then_height():
    tiles = torch.arange(3.0).view(3, 1, 1)         # one token a tile
    newline, separator = torch.tensor([-1.0]), torch.tensor([-2.0])
    assert lay_out(tiles, (2, 1), newline, separator).flatten().tolist() == [0, -1, -2, 1, 2, -1]
    assert lay_out(tiles, (1, 2), newline, separator).flatten().tolist() == [0, -1, -2, 1, -1, 2, -1]


@given(GRIDS, st.integers(1, 14))
def test_as_many_tokens_are_laid_out_as_were_counted(grid, side):
    w, h = grid
    line = lay_out(torch.zeros(1 + w * h, side * side, 1), grid, torch.zeros(1), torch.zeros(1))
    assert len(line) == count(grid, side) == reference.visual_token_count(w, h, side)


@pytest.mark.parametrize("grid, tokens", [
    ((1, 1), 421), ((2, 2), 1023), ((3, 2), 1415), ((3, 3), 2017), ((4, 2), 1807), ((2, 4), 1835), ((9, 1), 1989),
    ((1, 9), 2101),
])
def test_what_images_cost_in_the_published_models(grid, tokens):
    assert count(grid, side=14) == tokens


def test_the_wrong_number_of_views_is_refused():
    with pytest.raises(ValueError, match="a grid of 2x3 tiles needs 7 views, got 6"):
        lay_out(torch.zeros(6, 4, 1), (2, 3), torch.zeros(1), torch.zeros(1))


def test_newlines_and_separator_learn_from_every_place_they_stand_in():
    newline, separator = torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    lay_out(torch.zeros(3, 4, 1), (1, 2), newline, separator).sum().backward()
    assert newline.grad == 2 + 4 and separator.grad == 1
