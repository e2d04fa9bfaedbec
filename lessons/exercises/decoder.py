"""Exercises on minivl2/decoder.py, of lessons 04 and 09. Graded by tests/test_decoder.py."""

import torch

from minivl2 import decoder
from minivl2.grading.exercise import Exercise, Mistake

REAL = torch.tensor([[True] * 6, [False] * 2 + [True] * 4])


def some_masks():
    return [decoder.visible(REAL, start).int() for start in (0, 3, 5)]


def some_positions():
    return [decoder.positions(REAL), decoder.positions(torch.tensor([[False, True, True]]))]


EXERCISES = (
    Exercise("decoder.visible", "sees_itself or mask_by_hand", some_masks, (
        Mistake("the future", {"every <= new": "every >= new"},
                "the triangle is the wrong way round: each token sees what comes *after* it."),
        Mistake("one ahead", {"every <= new": "every <= new + 1"},
                "each token sees one token too far: the very one it is to predict."),
        Mistake("no triangle", {"(every <= new) & real[:, None, :]": "real[:, None, :]"},
                "every real token is seen by all; a token may look at nothing that comes after it."),
        Mistake("padding seen", {"(every <= new) & real[:, None, :]": "(every <= new) & (real | True)[:, None, :]"},
                "padding is looked at. Only what is real may be seen, except by itself."),
        Mistake("padding sees nothing", {" | (every == new)": ""},
                "padding sees nothing at all, not even itself: its softmax is 0/0, and one NaN spoils the batch."),
        Mistake("nobody sees itself", {"every <= new": "every < new", " | (every == new)": ""},
                "nobody sees itself. A token looks at itself and at what comes before."),
        Mistake("start forgotten", {"torch.arange(start, S": "torch.arange(0, S"},
                "start is not used: the mask has a row for each of the S tokens; only those from `start` on are new."),
        Mistake("new tokens counted from 0", {"torch.arange(start, S": "torch.arange(0, S - start"},
                "the new tokens are counted from 0, as if nothing had come before; the first of them is number `start`."),
        Mistake("padding masks the rows", {"real[:, None, :]": "real[:, start:, None]"},
                "you mask the rows of padding, who looks, and not the columns, who is looked at."),
        Mistake("keys and queries swapped", {"| (every == new))[:, None]": "| (every == new)).mT[:, None]"}),
        Mistake("no place for the heads", {"| (every == new))[:, None]": "| (every == new))"}),
        Mistake("as numbers", {"| (every == new))[:, None]": "| (every == new))[:, None].float()"}),
    )),
    Exercise("decoder.positions", "positions_count or padding_changes or decoder_is_the_papers", some_positions, (
        Mistake("padding counted", {"(real.cumsum(1) - 1).clamp(min=0)": "torch.arange(real.shape[1]).expand(real.shape)"},
                "padding is counted, so it shifts the sentence. Count real tokens only."),
        Mistake("counted from 1", {"(real.cumsum(1) - 1).clamp(min=0)": "real.cumsum(1)"},
                "the first real token has position 0: nothing real stands before it."),
        Mistake("below 0", {".clamp(min=0)": ""}, "padding on the left gets position -1; say 0 there."),
        Mistake("from the end", {"real.cumsum(1)": "real.flip(1).cumsum(1).flip(1)"},
                "counted from the right end: the *last* token has position 0 in yours."),
        Mistake("down the batch", {"real.cumsum(1)": "real.cumsum(0)"},
                "counted down the batch; count along each row, dimension 1."),
        Mistake("one row for all", {"(real.cumsum(1) - 1)": "(real.cumsum(1) - 1)[:1].expand(real.shape)"},
                "all rows get the positions of the first one; each has padding of its own."),
        Mistake("real or not", {"real.cumsum(1)": "real.long()"}),
    )),
)
