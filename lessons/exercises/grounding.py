"""Exercises on minivl2/grounding.py and minivl2/toyworld/grounding.py, of lesson 10. Graded by tests/test_grounding.py."""

from minivl2 import grounding, toyworld
from minivl2.grading.exercise import Exercise, Mistake
from minivl2.grounding import Box

# ------------------------------------------------------------------------------------------ pixels and words


def some_words():
    scenes = toyworld.things.Scene(100, 50, ()), toyworld.things.Scene(333, 777, ())
    return [list(toyworld.grounding.per_mille(box, scene)) for box in ((0, 0, 100, 50), (13, 7, 37, 29)) for scene in scenes]


def some_pixels():
    return [list(Box("", *box).pixels(size)) for box in ((0, 0, 999, 999), (123, 456, 789, 900), (1, 2, 3, 4))
            for size in ((640, 480), (50, 2000))]


# ------------------------------------------------------------------------------------------ overlap and reading

BOXES = (Box("", 0, 0, 10, 10), Box("", 5, 2, 20, 8), Box("", 30, 30, 40, 50), Box("", 10, 0, 20, 10), Box("", 2, 2, 4, 9),
         Box("", 5, 5, 5, 9))


def some_overlaps():
    return [float(grounding.iou(a, b)) for a in BOXES for b in BOXES]


def some_boxes():
    return [list(map(list, grounding.parse(text))) for text in (
        "<|ref|> a b <|/ref|><|det|>[[1, 2, 3, 4], [5, 6, 7, 8]]<|/det|> and <|ref|>c<|/ref|><|det|>[[9, 8, 3, 4]]<|/det|>",
        "<|det|>[[-5, 2.6, 3000, 4.4]]<|/det|>", "<|det|>[[1, 2, 3, 4, 5, 6, 7, 8]]", "<|det|>[[1, 2, x, 4], [5, 6, 7, 8]]",
        "<|det|>[[1, 2, 3, 4, 5]]", "<|det|>[[1, 2, 3, 4], [5, 6, 7")]


EXERCISES = (
    Exercise("toyworld.grounding.per_mille", "toy_writes or toys_edges", some_words, (
        Mistake("times 1000", {"* FULL": "* 1000"},
                "you multiply by 1000. The right edge is 999: that is the largest number there is."),
        Mistake("in parts of the last pixel", {"edge / side": "edge / (side - 1)"},
                "you divide by the side less one. A box has edges, not pixels: its right edge is at most the width itself."),
        Mistake("all by the width", {"(scene.width, scene.height) * 2": "(scene.width,) * 4"},
                "you divide all by the width. x goes by the width, y by the height."),
        Mistake("by the longer side", {"(scene.width, scene.height) * 2": "(max(scene.width, scene.height),) * 4"},
                "you divide all by the longer side, as if it were square. x goes by the width, y by the height."),
        Mistake("width and height swapped", {"(scene.width, scene.height) * 2": "(scene.height, scene.width) * 2"},
                "width and height are swapped: boxes are left, top, right, bottom, so x comes first."),
        Mistake("cut off", {"round(": "int("}, "you cut off what is behind the point; round to the nearest."),
        Mistake("as width and height", {"in zip(box,": "in zip((box[0], box[1], box[2] - box[0], box[3] - box[1]),"},
                "the last two numbers are the right and the lower edge, not width and height."),
        Mistake("fractions", {"round(edge / side * FULL)": "edge / side"}),
    )),
    Exercise("grounding.Box.pixels", "last_coordinate or toy_writes", some_pixels, (
        Mistake("by 1000", {"/ LARGEST": "/ 1000"},
                "you divide by 1000; the right edge is 999, so 999 must come out as the width."),
        Mistake("width and height swapped", {"(size[0] / LARGEST, size[1] / LARGEST)":
                                                 "(size[1] / LARGEST, size[0] / LARGEST)"},
                "x is scaled by the height and y by the width: a size is (width, height)."),
        Mistake("all by the width", {"size[1] / LARGEST": "size[0] / LARGEST"},
                "y is scaled by the width, too. It goes by the height."),
        Mistake("cut off", {"round(": "int("}, "you cut off what is behind the point; round to the nearest."),
        Mistake("the last pixel", {"size[0] / LARGEST": "(size[0] - 1) / LARGEST",
                                   "size[1] / LARGEST": "(size[1] - 1) / LARGEST"},
                "you scale by the side less one. 999 is the edge of the picture, not its last pixel."),
        Mistake("width and height", {"tuple(round(c * s) for c, s in zip(self[1:], scale, strict=True))":
                "tuple(round(c * s) for c, s in zip((self.x1, self.y1, self.x2 - self.x1, self.y2 - self.y1), scale))"},
                "the last two are the right and the lower edge, not width and height."),
        Mistake("not whole", {"round(c * s)": "c * s"}),
    )),
    Exercise("grounding.iou", "overlap", some_overlaps, (
        Mistake("two negatives", {"width <= 0 or height <= 0": "width * height <= 0"},
                "boxes that lie apart in both directions share a negative width and a negative height, and their product is "
                "positive. Look at each by itself."),
        Mistake("union counts the shared part twice", {"sum(areas) - both": "sum(areas)"},
                "you divide by the sum of both areas, in which what they share is counted twice."),
        Mistake("over the smaller", {"(sum(areas) - both)": "min(areas)"},
                "you divide by the smaller box: then a tiny box inside a large one would fit perfectly."),
        Mistake("over the first", {"(sum(areas) - both)": "next(areas)"},
                "you divide by the first box alone. A box that covers the whole picture would then fit everything."),
        Mistake("pixels counted", {"(a.x1, b.x1), min": "(a.x1, b.x1) + 1, 1 + min",
                                   "box.x2 - box.x1": "box.x2 - box.x1 + 1",
                                   "box.y2 - box.y1": "box.y2 - box.y1 + 1"},
                "you add 1 to widths and heights, as for first and last pixels. These are edges: from 0 to 10 is 10."),
        Mistake("how far apart forgotten", {"if width <= 0 or height <= 0:\n        return 0.0\n": "width = abs(width)\n"}),
        Mistake("squared sides", {"box.y2 - box.y1": "box.x2 - box.x1"}),
        Mistake("shared width only", {"both = width * height": "both = width"}),
    )),
    Exercise("grounding.parse", "was_written or can_be_read or no_text", some_boxes, (
        Mistake("not moved to the edge", {"min(max(n, 0), LARGEST)": "n"},
                "numbers outside the picture stay outside; move them to its edge, 0 or 999."),
        Mistake("only the upper edge", {"min(max(n, 0), LARGEST)": "min(n, LARGEST)"},
                "negative numbers stay negative; move them to 0."),
        Mistake("corners as they come", {"min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)": "x1, y1, x2, y2"},
                "corners in the wrong order are not swapped: x1 must be the smaller."),
        Mistake("corners swapped as pairs", {"min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)":
                                             "*min((x1, y1), (x2, y2)), *max((x1, y1), (x2, y2))"}),
        Mistake("the first box only", {"for brackets in _BRACKETS.findall(answer[\"boxes\"])":
                                       "for brackets in _BRACKETS.findall(answer[\"boxes\"])[:1]"},
                "you read one box of each answer; there may be many."),
        Mistake("the first answer only", {"_ANSWER.finditer(text)": "list(_ANSWER.finditer(text))[:1]"},
                "you read one answer of the text. A grounded caption has many."),
        Mistake("eight numbers are one box", {"range(0, len(numbers), 4)": "range(0, 4, 4)"},
                "eight numbers in one bracket are two boxes; you read the first."),
        Mistake("whole numbers only", {"_NUMBER.fullmatch(part)": "part.isdigit()"},
                "negative numbers and numbers with a point are skipped. NUMBER knows them."),
        Mistake("any count", {"len(parts) % 4": "len(parts) < 4",
                              "range(0, len(numbers), 4)": "range(0, len(numbers) - 3, 4)"},
                "five numbers are no box: a bracket whose count is no multiple of four is skipped as a whole."),
        Mistake("the end may follow", {"_NUMBER.fullmatch": "_NUMBER.match"}),
        Mistake("cut off", {"round(min(": "int(min("}, "numbers are cut off; round them to the nearest."),
        Mistake("spaces kept", {'(answer["label"] or "").strip()': '(answer["label"] or "")'},
                "the label keeps the spaces around it."),
        Mistake("labels in small letters", {'(answer["label"] or "").strip()': '(answer["label"] or "").strip().lower()'}),
        Mistake("label for the first box only", {'(answer["label"] or "").strip()':
                                                 '(answer["label"] or "").strip() if not i else ""'}),
    )),
)
