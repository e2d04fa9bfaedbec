"""Exercises on minivl2/places.py, of lesson 03. Graded by tests/test_places.py."""

from minivl2 import places
from minivl2.grading.exercise import Exercise, Mistake


def some_fits():
    return [list(places.fitted(picture, frame)) for picture in ((100, 70), (33, 100), (10, 10), (301, 77), (31, 299), (7, 9))
            for frame in ((42, 42), (126, 42), (42, 85), (84, 84))]


def unscaled(picture, frame):
    """Only ever made smaller."""
    left, top, W, H = places_fitted(picture, frame)
    W, H = min((W, H), picture)
    return round((frame[0] - W) * 0.5), round((frame[1] - H) * 0.5), W, H


places_fitted = places.fitted

EXERCISES = (
    Exercise("places.fitted", "where_tiling_puts_it", some_fits, (
        Mistake("stretched", lambda picture, frame: (0, 0, *frame),
                "yours fills the frame whatever the picture's shape. The shape is kept, and the rest is padding."),
        Mistake("not centred", {"return round((frame[0] - W) * 0.5), round((frame[1] - H) * 0.5)": "return 0, 0"},
                "the picture lies in the corner; it is put into the middle, with half of the padding on each side."),
        Mistake("filled and cut off", {"width * H > height * W": "width * H < height * W",
                                       "elif width * H < height * W": "elif width * H > height * W"},
                "yours fills the frame and sticks out of it. It must fit: the longer side fills, the other leaves padding."),
        Mistake("never enlarged", unscaled, "a small picture is enlarged to fit, too; yours only makes pictures smaller."),
        Mistake("sides cut off", {"H = round(": "H = int(", "W = round(": "W = int("},
                "you cut off the part of a pixel of the scaled side. Pillow rounds it."),
        Mistake("all of the padding on one side", {" * 0.5": ""},
                "what is left over is divided by two: yours puts all of it at the left or the top."),
        Mistake("offsets cut off", {"return round((frame[0] - W) * 0.5), round((frame[1] - H) * 0.5)":
                                    "return (frame[0] - W) // 2, (frame[1] - H) // 2"}),
        Mistake("width and height swapped", {"* 0.5), W, H": "* 0.5), H, W"}),
    )),
)
