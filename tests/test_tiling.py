"""Choosing a resolution, and cutting an image into tiles."""

import numpy as np
import pytest
import reference
import small
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.testing import assert_close

from minivl2.config import paper_candidates
from minivl2.tiling import cut, effective_resolution, grid_of, select_best_resolution, split

NINE = paper_candidates()
HALF = (0.5,) * 3
SIDES = st.integers(1, 6000)


@settings(max_examples=200)
@given(SIDES, SIDES, st.sampled_from([NINE, paper_candidates(most_tiles=18), paper_candidates(56)]))
def test_the_released_models_rule(width, height, candidates):
    image = (width, height)
    assert select_best_resolution(image, candidates) == reference.choose_resolution(image, candidates)
    for candidate in candidates[:5]:
        assert effective_resolution(image, candidate) == reference.effective_resolution(image, candidate)


@pytest.mark.parametrize("image, candidate, survive", [
    ((384, 384), (384, 384), 384 * 384),
    ((640, 480), (384, 384), 384 * 288),
    ((480, 640), (768, 384), 288 * 384),        # height decides
    ((500, 400), (768, 768), 500 * 400),        # enlarged: no more than it has
    ((1000, 333), (384, 384), 384 * 127),       # 127.87 pixels high: the part of a pixel is cut off
    ((4000, 2), (384, 384), 0),
])
def test_pixels_that_survive(image, candidate, survive):
    assert effective_resolution(image, candidate) == survive


@pytest.mark.parametrize("image, chosen", [
    ((384, 384), (384, 384)), ((500, 500), (768, 768)), ((800, 600), (1152, 768)), ((1024, 1024), (1152, 1152)),
    ((1920, 1080), (1536, 768)), ((1080, 1920), (768, 1536)), ((4000, 300), (3456, 384)), ((300, 4000), (384, 3456)),
    ((640, 480), (768, 768)),       # the paper's sentence, "minimise the padded area", would say 384 x 384
])
def test_images_whose_resolution_the_published_code_was_asked_for(image, chosen):
    assert select_best_resolution(image, NINE) == chosen
    assert grid_of(image, NINE, 384) == (chosen[0] // 384, chosen[1] // 384)


@pytest.mark.parametrize("image, chosen", [
    ((640, 480), (384, 384)),       # the same tile padded by a quarter, whether it is 384 or 768 wide: the smaller area
    ((800, 400), (768, 384)),
    ((400, 1200), (384, 1152)),
    ((1000, 1000), (384, 384)),     # every square leaves nothing empty: the first, where the released rule says 1152
])
def test_the_papers_sentence_pads_least(image, chosen):
    assert grid_of(image, NINE, 384, "paper") == (chosen[0] // 384, chosen[1] // 384)


@given(SIDES, SIDES)
def test_by_the_papers_sentence_no_candidate_would_pad_less(width, height):
    def padded(candidate):
        scale = min(candidate[0] / width, candidate[1] / height)
        return candidate[0] * candidate[1] - (width * scale) * (height * scale)
    chosen = grid_of((width, height), NINE, 384, "paper")
    assert padded((384 * chosen[0], 384 * chosen[1])) <= min(map(padded, NINE)) + 1e-3


def test_the_least_waste_wins_wherever_it_stands():
    """In the published list smaller candidates stand first, so there it would win anyway."""
    three = [(1152, 1152), (768, 384), (384, 384)]
    assert select_best_resolution((384, 300), three) == select_best_resolution((384, 300), three[::-1]) == (384, 384)
    assert select_best_resolution((700, 300), three) == select_best_resolution((700, 300), three[::-1]) == (768, 384)


def test_the_earlier_candidate_wins_a_tie():
    upright, lying = (384, 768), (768, 384)
    assert select_best_resolution((100, 100), [upright, lying]) == upright
    assert select_best_resolution((100, 100), [lying, upright]) == lying


def test_nothing_to_choose_for_or_from_is_an_error():
    with pytest.raises(ValueError, match="an image of 0x5 has no pixels"):
        select_best_resolution((0, 5), NINE)
    with pytest.raises(ValueError, match="no candidate resolutions"):
        select_best_resolution((5, 5), [])


# ------------------------------------------------------------------------------------------ cutting


def pixels(image):
    """(height, width, 3) as the model's numbers: -1 black, 1 white."""
    return torch.from_numpy(np.array(image)).double() / 255 * 2 - 1


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4))
def test_the_tiles_of_a_view_are_its_squares_row_by_row(w, h, t):
    view = torch.arange(3.0 * h * t * w * t).view(3, h * t, w * t)
    squares = [view[:, y:y + t, x:x + t] for y in range(0, h * t, t) for x in range(0, w * t, t)]
    assert torch.equal(split(view, (w, h)), torch.stack(squares))


@given(st.integers(1, 3), st.integers(1, 3), st.integers(2, 9))
def test_tiles_are_cut_in_reading_order(w, h, tile):
    """An image of exactly the chosen size is neither scaled nor padded: its tiles are its own pixels."""
    image = small.picture(w * tile, h * tile)
    views = cut(image, (w, h), tile, HALF, HALF)
    plane = pixels(image)
    assert len(views) == 1 + w * h
    for row in range(h):
        for column in range(w):
            want = plane[row * tile:(row + 1) * tile, column * tile:(column + 1) * tile]
            assert_close(views[1 + row * w + column].permute(1, 2, 0).double(), want, atol=1e-6, rtol=0)


@given(st.integers(20, 90), st.integers(20, 90), st.sampled_from([(1, 1), (2, 1), (1, 3), (2, 2)]))
def test_both_views_keep_the_shape_centred_on_grey(width, height, grid):
    """Scaled as far as fits, bicubic, the rest on both sides filled with 127."""
    tile, (w, h) = 30, grid
    image = small.picture(width, height)
    views = cut(image, grid, tile, HALF, HALF)
    local = views[1:].view(h, w, 3, tile, tile).permute(0, 3, 1, 4, 2).reshape(h * tile, w * tile, 3)
    for size, got in (((tile, tile), views[0].permute(1, 2, 0)), ((w * tile, h * tile), local)):
        scale = min(size[0] / width, size[1] / height)
        if size[0] / width < size[1] / height:
            scaled = image.resize((size[0], round(height * scale)), Image.Resampling.BICUBIC)
        else:
            scaled = image.resize((round(width * scale), size[1]), Image.Resampling.BICUBIC)
        whole = Image.new("RGB", size, (127, 127, 127))
        whole.paste(scaled, (round((size[0] - scaled.width) * 0.5), round((size[1] - scaled.height) * 0.5)))
        assert_close(got.double(), pixels(whole), atol=1e-6, rtol=0)


def test_the_global_view_comes_first():
    views = cut(Image.new("RGB", (8, 4), "white"), (2, 1), 4, HALF, HALF)
    assert views.shape == (3, 3, 4, 4)
    assert views[0].min() < 0 < views[0].max()      # the only one with padding
    assert (views[1:] == 1).all()


def test_values_go_from_minus_one_to_one():
    black_white = Image.new("RGB", (4, 4))
    black_white.paste("white", (0, 0, 2, 4))
    views = cut(black_white, (1, 1), 4, HALF, HALF)
    assert views.dtype == torch.float32
    assert views.unique().tolist() == [-1, 1]


def test_every_colour_has_its_own_mean_and_deviation():
    views = cut(Image.new("RGB", (2, 2), (255, 0, 51)), (1, 1), 2, (0.5, 0.25, 0.0), (0.5, 0.25, 2.0))
    assert_close(views[:, :, 0, 0], torch.tensor([1.0, -1.0, 0.1]).expand(2, 3))        # in both views


def test_padding_has_the_colour_of_the_mean():
    views = cut(Image.new("RGB", (4, 2), "white"), (1, 1), 4, (0.5, 0.25, 0.0), (1.0, 1.0, 1.0))
    assert_close(views[:, :, 0, 0] * 255 + torch.tensor([127.5, 63.75, 0]), torch.tensor([127.0, 63, 0]).expand(2, 3))


@pytest.mark.parametrize("size", [(1, 2000), (2000, 1)])
def test_an_image_too_thin_to_survive_scaling_is_refused_with_its_size(size):
    """A line of one pixel, 2000 long: in a tile of 384 it would be a fifth of a pixel wide."""
    with pytest.raises(ValueError, match=f"{size[0]}x{size[1]} is too thin"):
        cut(Image.new("RGB", size), (1, 1), 384, HALF, HALF)


def test_an_image_of_one_pixel_fills_a_tile():
    assert (cut(Image.new("RGB", (1, 1), "white"), (1, 1), 14, HALF, HALF) == 1).all()
