"""Boxes in answers, whatever the answer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from minivl2.grounding import Box, draw, iou, parse
from minivl2.toyworld.grounding import located, per_mille
from minivl2.toyworld.things import Scene, Thing

COORDINATE = st.integers(0, 999)
CORNERS = st.tuples(COORDINATE, COORDINATE, COORDINATE, COORDINATE)
LABEL = st.text(st.sampled_from("aBc .É-狐\n"), min_size=1, max_size=9)


def ordered(label, x1, y1, x2, y2):
    return Box(label.strip(), min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2))


@given(st.lists(st.tuples(LABEL, st.lists(CORNERS, min_size=1, max_size=3)), max_size=3),
       st.sampled_from(["", ", ", " and\n"]))
def test_what_was_written_is_read(answers, between):
    text = between.join(
        f"<|ref|>{label}<|/ref|><|det|>{[list(corners) for corners in boxes]}<|/det|>" for label, boxes in answers)
    assert parse(text) == [ordered(label, *corners) for label, boxes in answers for corners in boxes]


@pytest.mark.parametrize("text, boxes", [
    ("<|ref|>a<|/ref|><|det|>[[1, 2, 3, 4]]<|/det|>", [Box("a", 1, 2, 3, 4)]),
    ("<|det|>[[1, 2, 3, 4]]<|/det|>", [Box("", 1, 2, 3, 4)]),                               # no label
    ("<|ref|>a<|/ref|><|det|>[[1, 2, 3, 4]", [Box("a", 1, 2, 3, 4)]),                       # broken off
    ("<|ref|>a<|/ref|><|det|>[[1, 2, 3, 4], [5, 6, 7", [Box("a", 1, 2, 3, 4)]),
    ("<|ref|>a<|det|>[[1, 2, 3, 4]]", [Box("a", 1, 2, 3, 4)]),                              # a tag forgotten
    ("<|det|>[1, 2, 3, 4]<|/det|>", [Box("", 1, 2, 3, 4)]),                                 # one bracket
    ("<|det|>[[1, 2, 3, 4, 5, 6, 7, 8]]<|/det|>", [Box("", 1, 2, 3, 4), Box("", 5, 6, 7, 8)]),
    ("<|ref|>a<|/ref|><|det|>[[1, 2, 3, 4, 5, 6, 7, 8]]<|/det|>", [Box("a", 1, 2, 3, 4), Box("a", 5, 6, 7, 8)]),
    ("<|det|>[[9, 8, 3, 4]]<|/det|>", [Box("", 3, 4, 9, 8)]),                               # wrong corners
    ("<|det|>[[-5, 2.4, 3000, 4.6]]<|/det|>", [Box("", 0, 2, 999, 5)]),                     # over the edge
    ("<|det|>[[1, 2, 3]]<|/det|>", []), ("<|det|>[[1, 2, 3, 4, 5]]<|/det|>", []), ("<|det|>[[]]<|/det|>", []),
    ("<|det|>[[1, 2, x, 4]]<|/det|>", []), ("<|det|>[[1, 2, , 4]]<|/det|>", []),
    ("<|det|>[[1x, 2, 3, 4]]<|/det|>", []), ("<|det|>[[1 2 3 4]]<|/det|>", []),
    ("<|det|>[[1, 2, 1.2.3, 4]]<|/det|>", []), ("<|det|>[[1, 2, 12345678, 4]]<|/det|>", []),
    ("[[1, 2, 3, 4]]", []), ("<|ref|>a<|/ref|>", []), ("", []),
    ("<|det|>[[__import__('os').abort(), 2, 3, 4]]<|/det|>", []),                           # never evaluated
    ("<|det|>[[1, 2, 3, 4], [1, 2], [5, 6, 7, 8]]", [Box("", 1, 2, 3, 4), Box("", 5, 6, 7, 8)]),
])
def test_whatever_can_be_read_is_read_and_the_rest_is_skipped(text, boxes):
    assert parse(text) == boxes


SCRAPS = ["<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>", "[", "]", ",", " ", "1", "-", ".", "9" * 30, "[[1,2,3,4]]", "٣"]


@given(st.lists(st.sampled_from(SCRAPS), max_size=30).map("".join))
def test_no_text_is_an_error_and_every_box_lies_on_the_picture(text):
    for box in parse(text):
        assert 0 <= box.x1 <= box.x2 <= 999 and 0 <= box.y1 <= box.y2 <= 999


def test_the_last_coordinate_is_the_last_edge():
    assert Box("", 0, 0, 999, 999).pixels((640, 480)) == (0, 0, 640, 480)
    assert Box("", 333, 0, 666, 999).pixels((999, 300)) == (333, 0, 666, 300)       # x by the width, y by the height


@given(st.tuples(st.integers(1, 999), st.integers(1, 999)), st.randoms(use_true_random=False))
def test_what_the_toy_writes_is_read_back_to_the_pixel(size, rng):
    width, height = size
    (x1, x2), (y1, y2) = sorted(rng.choices(range(width + 1), k=2)), sorted(rng.choices(range(height + 1), k=2))
    thing = Thing("big", "red", "star", (x1, y1, x2, y2))
    box, = parse(located("the star", [thing], Scene(width, height, (thing,))))
    assert box.label == "the star" and box.pixels(size) == thing.box


def test_the_toys_edges_are_0_and_999_and_each_number_the_nearest():
    assert per_mille((0, 0, 200, 100), Scene(200, 100, ())) == [0, 0, 999, 999]
    assert per_mille((50, 50, 151, 51), Scene(200, 100, ())) == [250, 500, 754, 509]    # 249.75, 499.5, 754.245, 509.49


@given(CORNERS, CORNERS)
def test_overlap_is_shared_area_over_all_area(a, b):
    """Counted on a coarse picture, pixel by pixel."""
    a, b = (ordered("", *(n // 50 for n in corners)) for corners in (a, b))

    def covered(box):
        return {(x, y) for x in range(box.x1, box.x2) for y in range(box.y1, box.y2)}

    either = covered(a) | covered(b)
    assert iou(a, b) == pytest.approx(len(covered(a) & covered(b)) / len(either) if either else 0)


def test_boxes_are_drawn_on_a_copy_in_one_colour_a_label():
    image = Image.new("L", (200, 100), 255)
    picture = draw(image, [Box("", 0, 0, 499, 499), Box("a", 500, 500, 999, 999), Box("", 600, 100, 900, 300)])
    assert set(image.tobytes()) == {255}            # the original is clean
    assert picture.mode == "RGB" and picture.size == (200, 100)
    first, second, third = picture.getpixel((0, 0)), picture.getpixel((199, 99)), picture.getpixel((120, 10))
    assert first == third != second != (255, 255, 255) != first
    assert picture.getpixel((50, 25)) == (255, 255, 255)        # inside stays visible


@given(st.lists(st.builds(ordered, LABEL, COORDINATE, COORDINATE, COORDINATE, COORDINATE), max_size=3),
       st.tuples(st.integers(1, 60), st.integers(1, 60)))
def test_any_box_can_be_drawn_on_any_picture(boxes, size):
    assert draw(Image.new("RGB", size), boxes).size == size
