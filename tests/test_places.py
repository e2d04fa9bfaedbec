"""From a visual token back to the pixels it stands for."""

import numpy as np
import pytest
import small
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from minivl2 import figures
from minivl2.model import DeepSeekVL2
from minivl2.places import GLOBAL, KINDS, LOCAL, NEWLINE, SEPARATOR, fitted, frames, places
from minivl2.processor import ProcessorConfig
from minivl2.tiling import cut
from minivl2.visual_tokens import count, lay_out

sizes = st.tuples(st.integers(8, 300), st.integers(8, 300))
grids = st.sampled_from([(1, 1), (2, 1), (1, 3), (2, 2), (3, 3), (4, 2)])
T = small.TILE


@given(sizes, grids)
def test_the_picture_lies_where_tiling_puts_it(size, grid):
    """A red picture on grey padding: exactly the red pixels are the fitted rectangle, in both views."""
    views = cut(Image.new("RGB", size, (255, 0, 0)), grid, T, (0.5,) * 3, (0.5,) * 3)
    w, h = grid
    mosaic = views[1:].unflatten(0, (h, w)).permute(2, 0, 3, 1, 4).flatten(1, 2).flatten(2, 3)      # (3, h*t, w*t)
    for view, frame in zip((views[0], mosaic), frames(grid, T), strict=True):
        left, top, width, height = fitted(size, frame)
        wanted = torch.zeros(frame[1], frame[0], dtype=torch.bool)
        wanted[top : top + height, left : left + width] = True
        assert torch.equal(view[0] > 0.9, wanted)


@given(sizes, grids)
def test_there_is_a_place_for_every_token_in_the_order_of_reading(size, grid):
    """Laid out by the model's own function: each vector carries its view, row and column, to be found again."""
    side = ProcessorConfig.of(small.config()).side
    found = places(size, grid, T, 14)
    assert len(found) == count(grid, side)
    w, h = grid
    tiles = torch.zeros(1 + w * h, side, side, 3)
    for m in range(1 + w * h):
        tile_row, tile_column = (0, 0) if m == 0 else divmod(m - 1, w)
        for r in range(side):
            for c in range(side):
                tiles[m, r, c] = torch.tensor([float(m > 0), tile_row * side + r, tile_column * side + c])
    line = lay_out(tiles.flatten(1, 2), grid, torch.full((3,), float(NEWLINE)), torch.full((3,), float(SEPARATOR)))
    for place, vector in zip(found, line.tolist(), strict=True):
        if place.kind in (GLOBAL, LOCAL):
            assert vector == [place.kind, place.row, place.column]
        else:
            assert vector[0] == place.kind and place.in_view is place.in_picture is None
    assert {KINDS[place.kind] for place in found} == set(KINDS)


def test_tokens_cover_the_patches_and_each_pixel_once():
    """42 pixels are 3 patches of 14 and so 2 tokens: one of two patches, and one of a single patch and padding."""
    found = [place for place in places((84, 42), (2, 1), T, 14) if place.kind == LOCAL]
    assert [place.in_view for place in found[:4]] == [(0, 0, 28, 28), (28, 0, 42, 28), (42, 0, 70, 28), (70, 0, 84, 28)]
    assert [place.in_picture for place in found] == [place.in_view for place in found]      # the picture fits as it is
    covered = torch.zeros(42, 84)
    for left, top, right, lower in (place.in_view for place in found):
        covered[top:lower, left:right] += 1
    assert torch.equal(covered, torch.ones(42, 84))


@given(sizes, grids)
@example((213, 215), (1, 3))        # the picture's edge is a token's: 213 / 380 * 380 is not quite 213
def test_back_in_the_picture_tokens_cover_it_once_however_it_was_padded(size, grid):
    """Middles of tokens of a view, row by row: each lies in the pixels of that token and of no other. Areas add up."""
    for view in (GLOBAL, LOCAL):
        found = [place.in_picture for place in places(size, grid, T, 14) if place.kind == view and place.in_picture]
        assert sum((r - x) * (b - y) for x, y, r, b in found) == pytest.approx(size[0] * size[1])
        assert (min(x for x, *_ in found), min(y for _, y, *_ in found)) == (0, 0)
        assert (max(r for *_, r, _ in found), max(b for *_, b in found)) == pytest.approx(size)
        for x, y, r, b in found:
            assert sum(left <= (x + r) / 2 < e and t <= (y + b) / 2 < f for left, t, e, f in found) == 1


@given(sizes, grids)
def test_a_token_shows_what_is_there_in_the_picture(size, grid):
    """Red grows to the right, green downwards. So the mean colour of a token's pixels in its view says where in the
    picture they come from."""
    width, height = size
    across, down = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    picture = Image.fromarray((np.stack((across, down, 0 * down), -1) * 255).round().astype(np.uint8))
    views = figures.views_of(cut(picture, grid, T, (0.5,) * 3, (0.5,) * 3), grid, (0.5,) * 3, (0.5,) * 3)
    for place in places(size, grid, T, 14):
        if place.in_view is None:
            continue
        view = views[place.view]
        left, top, w, h = fitted(size, view.size)
        x1, y1, x2, y2 = place.in_view
        if left <= x1 and top <= y1 and x2 <= left + w and y2 <= top + h and min(size) > 30:    # no padding, no few pixels
            red, green, _ = np.array(view.crop(place.in_view)).mean((0, 1)) / 255
            x1, y1, x2, y2 = place.in_picture
            assert (red, green) == pytest.approx(((x1 + x2) / 2 / width, (y1 + y2) / 2 / height), abs=0.03)


def test_pixels_that_fill_no_patch_belong_to_nobody():
    """384 pixels are 27 patches of 14, and 6 pixels over: the published tower never sees those."""
    whole = [place for place in places((384, 384), (1, 1), 384, 14) if place.kind == GLOBAL]
    assert len(whole) == 196 and whole[-1].in_view == (364, 364, 378, 378)


def test_a_token_that_sees_only_padding_has_no_pixels():
    """A line 84 x 10 in one tile: it lies across the middle, and the upper row's tokens begin above it."""
    found = places((84, 10), (1, 1), T, 7)
    rows = {place.row: place.in_picture for place in found if place.kind == GLOBAL and place.column == 0}
    assert rows[0] is None and rows[1] is not None and rows[1][1] == 0


@torch.no_grad()
def test_only_pixels_of_its_tile_change_a_token():
    """Blind the vision tower to all but itself (no attention): a token changes exactly if a pixel of its place does."""
    model = small.randomised(DeepSeekVL2(small.config()))
    for block in model.vision.blocks:
        block.attn.proj.weight.zero_()
    config = ProcessorConfig.of(model.config)
    grid, size = (2, 1), (84, 42)
    plain = small.picture(*size)

    def tokens(picture):
        tiles = cut(picture, grid, T, config.image_mean, config.image_std).double()
        return model.see(tiles, torch.tensor([grid]))[0]
    before = tokens(plain)
    for point in [(0, 0), (30, 20), (41, 41), (42, 0), (83, 30)]:
        changed = plain.copy()
        changed.putpixel(point, tuple(255 - value for value in plain.getpixel(point)))
        different = (tokens(changed) != before).any(1).tolist()
        for place, moved in zip(places(size, grid, T, 14), different, strict=True):
            if place.kind == LOCAL:
                left, top, right, lower = place.in_picture
                assert moved == (left <= point[0] < right and top <= point[1] < lower)
