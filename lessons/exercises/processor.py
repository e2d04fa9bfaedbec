"""Exercises on minivl2/processor.py, of lessons 00 and 07. Graded by tests/test_processor.py."""

import small

from minivl2.batch import IGNORED
from minivl2.conversation import BEGIN, END, IMAGE, Piece
from minivl2.grading.exercise import TESTS, Exercise, Mistake
from minivl2.visual_tokens import count

LINE = [Piece(BEGIN, False), Piece("<|User|>: th", False), Piece(IMAGE, False), Piece("e ", False), Piece(IMAGE, False),
        Piece("\n\n<|Assistant|>:", False), Piece("a fox", True), Piece(END, True)]


def a_spelling():
    return small.processor(TESTS / "goldens").spell(LINE, [(2, 1), (1, 2)])


def in_one_go(self, line, grids):
    """Joined, then tokenised: what is right only where nothing merges across the cuts."""
    text = "".join(piece.text for piece in line)
    ids, remaining = [], iter(grids)
    for i in self.tokenizer.encode(text.replace(IMAGE, ""), add_special_tokens=False).ids:
        ids.append(i)
    image = [self.special_ids[IMAGE]] * sum(count(grid, self.config.side) for grid in remaining)
    return [*ids[:2], *image, *ids[2:]], [IGNORED] * (len(ids) + len(image))


def one_length_for_all(self, line, grids):
    ids, labels = [], []
    for text, learned in line:
        if text == IMAGE:
            new = [self.special_ids[text]] * count(grids[0], self.config.side)
        else:
            new = self.tokenizer.encode(text, add_special_tokens=False).ids
        ids += new
        labels += new if learned else [IGNORED] * len(new)
    return ids, labels


def some_answers():
    processor = small.processor(TESTS / "goldens")
    end = processor.special_ids[END]
    ids = processor.tokenizer.encode("<|ref|>狐 the fox<|/ref|>", add_special_tokens=False).ids
    return [processor.decode(row) for row in ([*ids, end], ids, [end], [*ids, end, *ids[:3], end])]


def letter_by_letter(self, ids):
    text = ""
    for i in ids:
        if i == self.special_ids[END]:
            break
        text += self.tokenizer.decode([i], skip_special_tokens=False)
    return text


def to_the_last_end(self, ids):
    ids, end = list(ids), self.special_ids[END]
    if end in ids:
        ids = ids[: len(ids) - 1 - ids[::-1].index(end)]
    return self.tokenizer.decode(ids, skip_special_tokens=False)


EXERCISES = (
    Exercise("processor.Processor.decode", "decoding", some_answers, (
        Mistake("the end is said", {"ids.index(end)]": "ids.index(end) + 1]"},
                "the end token is part of your text. It says that the answer is over, and is no part of it."),
        Mistake("tags dropped", {"skip_special_tokens=False": "skip_special_tokens=True"},
                "<|ref|> and the like are gone: the tokenizer leaves special tokens out unless told "
                "skip_special_tokens=False. Without them a box cannot be read."),
        Mistake("there is always an end", {" if end in ids else ids": ""},
                "an answer that was cut off has no end token, and yours is an error there. Then all of it is the answer."),
        Mistake("the end taken out", {"ids[: ids.index(end)] if end in ids else ids": "[i for i in ids if i != end]"},
                "you take the end tokens out and keep what stands behind. Nothing after the first end is the answer's."),
        Mistake("the last is always the end", {"ids[: ids.index(end)] if end in ids else ids": "ids[:-1]"},
                "you drop the last token, whatever it is. Look for the end: it may come earlier, or not at all."),
        Mistake("token by token", letter_by_letter,
                "you decode each token by itself. A token may be half of a letter, which by itself is no text: decode "
                "all of them together."),
        Mistake("to the last end", to_the_last_end,
                "you stop at the last end. The answer is over at the first."),
        Mistake("what comes after", {"ids[: ids.index(end)]": "ids[ids.index(end) + 1 :]"}),
        Mistake("padding for the end", {"self.special_ids[talk.END]": "self.special_ids[talk.PAD]"}),
    )),
    Exercise("processor.Processor.spell",
             "(ids_are or each_image or nothing_is_merged or learned or tokenizers_own) and not padding", a_spelling, (
        Mistake("one token an image", {" * count(next(remaining), self.config.side)": ""},
                "an image gets one id. It needs one for every vector it will become: count(grid, side), hundreds of "
                "them."),
        Mistake("tokens of one tile", {"count(next(remaining), self": "count((1, 1), self"},
                "every image gets the tokens of a single tile. How many it needs depends on its own grid."),
        Mistake("the first image's for all", one_length_for_all,
                "every image gets as many tokens as the first one. Each has its own grid."),
        Mistake("without newlines and separator", {"count(next(remaining), self.config.side)":
                                                   "(lambda w, h: (1 + w * h) * self.config.side**2)(*next(remaining))"},
                "you counted the vectors of the tiles, and forgot the newline after each row and the separator: use "
                "count()."),
        Mistake("all is learned", {"new if learned else [IGNORED] * len(new)": "new"},
                "every id is its own label, also those of the question. Where a piece is not learned, the label is "
                "IGNORED."),
        Mistake("the end is not learned", {"new if learned": "new if learned and text != END"},
                "the end of the answer has no label. Its piece is marked as learned: treat it like any other."),
        Mistake("labels already shifted", {"return ids, labels": "return ids, labels[1:] + [IGNORED]"},
                "your labels are shifted by one. Here the label of a token is the token itself; the loss does the "
                "shifting, and twice is once too often."),
        Mistake("zeros for ignored", {"[IGNORED]": "[0]"},
                "what is not learned has label 0, which is a token like any other. Use IGNORED."),
        Mistake("tokenised in one go", in_one_go),
        Mistake("the tokenizer's own begin", {"add_special_tokens=False": "add_special_tokens=True"}),
        Mistake("one label a piece", {"[IGNORED] * len(new)": "[IGNORED]"},
                "a piece that is not learned gets one label, however many ids it has: the two lists run apart."),
    )),
)
