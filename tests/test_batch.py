"""Conversations side by side in one batch, by hand."""

import pytest
import small
import torch
from hypothesis import given
from hypothesis import strategies as st

from minivl2.batch import IGNORED, Batch, pad_left

PAD = 77


def row(length, images=0, seed=0, training=True):
    """A conversation of so many tokens, of which the first `images` stand for an image, all learned but the first two."""
    ids = torch.randint(100, 400, (1, length), generator=torch.Generator().manual_seed(seed))
    labels = ids.clone()
    labels[:, 1:2] = IGNORED
    tiles, grids = small.numbers(2 * images, 3, 4, 4, seed=seed), torch.full((images, 2), 1 + seed)
    return Batch(ids, torch.ones(1, length, dtype=torch.bool), torch.arange(length)[None] < images, tiles, grids,
                 labels if training else None)


@given(st.lists(st.tuples(st.integers(2, 9), st.integers(0, 2)), min_size=1, max_size=4), st.booleans())
def test_every_conversation_ends_at_the_right_and_padding_is_before_it(sizes, training):
    rows = [row(length, images, seed, training) for seed, (length, images) in enumerate(sizes)]
    batch, longest = pad_left(rows, PAD), max(length for length, _ in sizes)
    for b, (one, (length, _)) in enumerate(zip(rows, sizes, strict=True)):
        before = longest - length
        assert batch.input_ids[b].tolist() == [PAD] * before + one.input_ids[0].tolist()
        assert batch.attention_mask[b].tolist() == [False] * before + [True] * length
        assert batch.image_mask[b].tolist() == [False] * before + one.image_mask[0].tolist()
        assert not training or batch.labels[b].tolist() == [IGNORED] * before + one.labels[0].tolist()
    assert (batch.labels is not None) == training
    assert torch.equal(batch.tiles, torch.cat([one.tiles for one in rows]))
    assert torch.equal(batch.grids, torch.cat([one.grids for one in rows]))
    for name in ("attention_mask", "image_mask"):
        assert getattr(batch, name).dtype == torch.bool
    assert batch.input_ids.dtype == torch.long


def test_batches_that_hold_several_conversations_can_be_joined():
    """A batch of two beside one of a longer conversation: three rows."""
    first, second, third = (row(length, 1, seed) for seed, length in enumerate((3, 5, 8)))
    got, want = pad_left([pad_left([first, second], PAD), third], PAD), pad_left([first, second, third], PAD)
    assert all(torch.equal(getattr(got, name), getattr(want, name)) for name in vars(want))


def test_the_conversations_themselves_are_left_as_they_are():
    rows = [row(3), row(6, seed=1)]
    before = [one.input_ids.clone() for one in rows]
    pad_left(rows, PAD)
    assert all(torch.equal(one.input_ids, ids) for one, ids in zip(rows, before, strict=True))


def test_nothing_and_half_labelled_batches_are_refused():
    with pytest.raises(ValueError, match="no conversations"):
        pad_left([], PAD)
    with pytest.raises(ValueError, match="some .* training=True and some were not"):
        pad_left([row(3), row(3, training=False)], PAD)


def test_a_position_learns_if_the_token_after_it_has_a_label_and_it_is_not_padding():
    """Ids 5 and 6 are an answer; the begin token has a label, too, and nothing real before it."""
    ids = torch.tensor([[PAD, PAD, 1, 4, 5, 6]])
    labels = torch.tensor([[IGNORED, IGNORED, 1, IGNORED, 5, 6]])
    batch = Batch(ids, ids != PAD, ids < 0, torch.empty(0, 3, 4, 4), torch.empty(0, 2), labels)
    assert batch.learned.tolist() == [[False, False, False, True, True]]
