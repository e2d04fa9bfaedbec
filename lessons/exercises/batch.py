"""Exercises on minivl2/batch.py, of lesson 07. Graded by tests/test_batch.py."""

import torch

from minivl2 import batch
from minivl2.batch import IGNORED, Batch
from minivl2.grading.exercise import Exercise, Mistake


def row(ids, images):
    ids = torch.tensor([ids])
    labels = ids.masked_fill(ids < 5, IGNORED)
    images = torch.tensor(images, dtype=torch.long)
    tiles, grids = images.view(-1, 1, 1, 1).expand(-1, 3, 2, 2), images.view(-1, 1).expand(-1, 2)
    return Batch(ids, torch.ones_like(ids, dtype=torch.bool), ids == 4, tiles, grids, labels)


def a_batch():
    rows = [row([1, 4, 4, 8], [1]), row([1, 9], []), row([1, 4, 2, 4, 7, 6], [2, 3])]
    made = batch.pad_left(rows, pad_id=3)
    return [getattr(made, name).long() for name in vars(made)]


EXERCISES = (
    Exercise("batch.pad_left", "not position_learns", a_batch, (
        Mistake("padded on the right", {"(longest - r.shape[1], 0)": "(0, longest - r.shape[1])"},
                "the padding is on the right. Then a short conversation is continued behind its padding; the last "
                "column "
                "must be every row's last token."),
        Mistake("padding is real", {'"attention_mask", False': '"attention_mask", True'},
                "the attention mask says that padding is real; it must be False there."),
        Mistake("padding is an image", {'"image_mask", False': '"image_mask", True'},
                "the image mask is True on padding: the images' vectors would be put there."),
        Mistake("padding is learned", {'"labels", IGNORED': '"labels", pad_id'},
                "the labels of padding are the padding's id: the model would learn to write it. They are IGNORED."),
        Mistake("labels 0", {'"labels", IGNORED': '"labels", 0'},
                "the labels of padding are 0, which is a token. They are IGNORED."),
        Mistake("padded with zeros", {'"input_ids", pad_id': '"input_ids", 0'},
                "the padding has id 0; it is pad_id."),
        Mistake("labels forgotten", {' if labelled else None': ' if False else None'},
                "the labels are lost on the way: where the batches have labels, so has the result."),
        Mistake("cut to the shortest", {"longest = max(": "longest = min("},
                "you cut to the shortest conversation instead of padding to the longest. (Padding by a negative "
                "number cuts.)"),
        Mistake("images backwards", {"[b.tiles for b in batches]": "[b.tiles for b in reversed(batches)]"}),
        Mistake("the first one's images", {"[b.grids for b in batches]": "[batches[0].grids]"}),
        Mistake("half labelled", {"labelled not in (0, len(batches))": "False"}),
        Mistake("a mask of integers", {'stack("image_mask", False)': 'stack("image_mask", False).long()'}),
        Mistake("one row of each", {"[getattr(b, name) for b in batches]": "[getattr(b, name)[:1] for b in batches]"}),
    )),
)
