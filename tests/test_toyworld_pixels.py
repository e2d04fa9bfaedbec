"""What is claimed of a picture is looked up in its pixels: boxes are tight, small print is small print."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minivl2 import toyworld
from minivl2.toyworld import lettering
from minivl2.toyworld.pairs import FRAME
from minivl2.toyworld.things import COLOURS

SEEDS = st.integers(0, 10**9)


def pixels(image):
    """(height, width, 3) whole numbers."""
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).reshape(*image.size[::-1], 3).int()


def extent(mask):
    """Left, top, right, bottom edges of the true pixels of a (height, width) mask."""
    rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
    return columns.min().item(), rows.min().item(), columns.max().item() + 1, rows.max().item() + 1


def painted(image, colour):
    return (pixels(image) == torch.tensor(colour)).all(-1)


def check_boxes(image, scene):
    for thing in scene.things:
        left, top, right, bottom = thing.box
        assert 0 < left < right < image.width and 0 < top < bottom < image.height
        around = painted(image, COLOURS[thing.colour])[top - 1 : bottom + 1, left - 1 : right + 1]
        assert extent(around) == (1, 1, right - left + 1, bottom - top + 1)


@settings(deadline=None, max_examples=100)
@given(SEEDS, st.sampled_from(("scenes", "grounding", "pairs")))
def test_boxes_are_those_of_the_drawn_pixels(seed, kind):
    """Looked for one pixel around the box, the thing's colour fills exactly the box: no side can move."""
    sample = toyworld.draw(seed, kind)
    scenes = sample.facts if kind == "pairs" else [sample.facts]
    for image, scene in zip(sample.images, scenes, strict=True):
        assert image.size == (scene.width, scene.height)
        check_boxes(image, scene)


@settings(deadline=None, max_examples=100)
@given(SEEDS)
def test_written_coordinates_lead_back_to_the_pixels(seed):
    sample = toyworld.draw(seed, "grounding")
    width, height = sample.images[0].size
    for question in sample.questions:
        for numbers in re.findall(r"\[(\d+), (\d+), (\d+), (\d+)\]", question.answer):
            numbers = list(map(int, numbers))
            assert all(0 <= number <= 999 for number in numbers)
            back = [n / 999 * side for n, side in zip(numbers, (width, height) * 2, strict=True)]
            rounding = 0.51 * max(width, height) / 999
            assert any(
                all(abs(edge - pixel) < rounding for edge, pixel in zip(back, thing.box, strict=True))
                for thing in sample.facts.things
            )


@settings(deadline=None, max_examples=60)
@given(SEEDS)
def test_the_frame_marks_one_thing_and_touches_none(seed):
    sample = toyworld.draw(seed, "pairs")
    first = sample.facts[0]
    frame = painted(sample.images[0], FRAME)
    if first.marked is None:
        assert not frame.any()
        return
    assert not painted(sample.images[1], FRAME).any()
    left, top, right, bottom = extent(frame)
    for i, thing in enumerate(first.things):
        inside = left < thing.box[0] and top < thing.box[1] and thing.box[2] < right and thing.box[3] < bottom
        assert inside == (i == first.marked)
        assert not frame[thing.box[1] : thing.box[3], thing.box[0] : thing.box[2]].any()


@pytest.mark.parametrize("kind", ["scenes", "grounding"])
def test_things_can_be_seen_in_the_global_view(kind):
    """Squeezed into one tile, up to two tiles a side, the smallest thing is still 4 pixels across."""
    for seed in range(100):
        for grid in ((1, 1), (2, 1), (1, 2), (2, 2)):
            sample = toyworld.draw(seed, kind, grid)
            scale = 56 / max(sample.images[0].size)
            for thing in sample.facts.things:
                left, top, right, bottom = thing.box
                assert max(right - left, bottom - top) * scale >= 4


@settings(deadline=None, max_examples=150)
@given(SEEDS)
def test_codes_read_in_the_tiles_but_not_in_the_global_view(seed):
    """Capitals and digits, measured in inked pixels.

    At least 8 high in the picture, which the tiles show at full size or slightly larger, and less than 3 in
    the global view; on grids two tiles long there is no such size, and the bounds are 7 and 4.
    """
    sample = toyworld.draw(seed, "text")
    image = sample.images[0]
    shades = pixels(image).float().mean(-1)
    for line in sample.facts.lines:
        left, top, right, bottom = line.box
        assert 0 <= left < right <= image.width and 0 <= top < bottom <= image.height
        ink = (shades - shades.median()).abs()[top:bottom, left:right] > 60
        assert ink.any()
        if line.text == line.text.upper():
            _, highest, _, lowest = extent(ink)
            high = lowest - highest
            in_tiles, in_global_view = (8, 3) if max(sample.grid) > 2 else (7, 4)
            assert high >= in_tiles
            assert high * 56 / max(image.size) < in_global_view


def test_every_face_keeps_to_the_asked_height():
    for face in lettering.FACES:
        for capital in range(lettering.SMALLEST, lettering.LARGEST + 1):
            top, bottom = lettering.font(face, capital).getbbox("H")[1::2]
            assert bottom - top == capital


@settings(deadline=None, max_examples=60)
@given(SEEDS, st.sampled_from(("text", "documents", "tables", "charts")))
def test_nothing_is_cut_off_at_the_edge(seed, kind):
    """The outermost pixels are paper: they stay within the paper's own range of shades."""
    image = toyworld.draw(seed, kind).images[0]
    shades = pixels(image).float().mean(-1)
    edge = torch.cat((shades[0], shades[-1], shades[:, 0], shades[:, -1]))
    assert (edge - edge.median()).abs().max() < 70


@settings(deadline=None, max_examples=100)
@given(SEEDS, st.sampled_from(toyworld.GRIDS["charts"]))
def test_what_is_written_in_a_chart_does_not_touch(seed, grid):
    boxes = [line.box for line in toyworld.draw(seed, "charts", grid).written]
    for i, one in enumerate(boxes):
        for two in boxes[:i]:
            across = max(one[0], two[0]) - min(one[2], two[2])
            down = max(one[1], two[1]) - min(one[3], two[3])
            assert max(across, down) >= 2
