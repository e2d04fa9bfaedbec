"""The cache: what is put in comes out, in order, in one room that does not grow."""

import pytest
import small
import torch
from hypothesis import given
from hypothesis import strategies as st

from minivl2.cache import Cache, LayerCache


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.integers(0, 3))
def test_all_tokens_so_far_come_back_in_order(sizes, spare):
    T = sum(sizes)
    keys, values = small.numbers(2, 3, T, 4), small.numbers(2, 3, T, 5, seed=1)
    cache, start = LayerCache(T + spare), 0
    for n in sizes:
        got = cache.append(keys[:, :, start:start + n], values[:, :, start:start + n])
        start += n
        assert cache.length == start
        assert torch.equal(got[0], keys[:, :, :start]) and torch.equal(got[1], values[:, :, :start])


def test_room_is_taken_once():
    """Growing by concatenation would copy everything for every token."""
    cache = LayerCache(5)
    places = {cache.append(torch.zeros(1, 1, 1, 2))[0].data_ptr() for _ in range(5)}
    assert len(places) == 1


def test_a_full_cache_says_so_and_keeps_what_it_has():
    cache = LayerCache(3)
    cache.append(torch.ones(1, 1, 2, 1))
    with pytest.raises(ValueError, match="the cache has room for 3 tokens; token 4 does not fit"):
        cache.append(torch.zeros(1, 1, 2, 1))
    assert cache.length == 2
    assert cache.append(torch.zeros(1, 1, 1, 1))[0].flatten().tolist() == [1, 1, 0]


def test_the_room_has_the_kind_of_what_is_put_in():
    got, = LayerCache(2).append(torch.ones(1, 1, 1, 1, dtype=torch.bfloat16))
    assert got.dtype == torch.bfloat16


def test_layers_remember_apart_and_the_cache_counts_tokens_and_bytes():
    cache = Cache(layers=2, capacity=7)
    assert cache.length == 0 and cache.bytes == 0
    first, second = torch.tensor([[True, False]]), torch.tensor([[True]])
    assert cache.append_real(first).tolist() == [[True, False]]
    assert cache.append_real(second).tolist() == [[True, False, True]]
    assert cache.length == 3
    cache.layers[0].append(torch.zeros(2, 1, 3, 4), torch.zeros(2, 1, 3, 2, dtype=torch.bfloat16))
    assert cache.layers[1].length == 0
    assert cache.bytes == 2 * 7 * (4 * 4 + 2 * 2)       # the whole room, filled or not


@given(st.integers(1, 4), st.integers(1, 3))
def test_a_forked_memory_is_the_same_for_every_row_and_its_own_afterwards(tokens, rows):
    cache = Cache(layers=2, capacity=tokens)
    real = torch.tensor([[t > 0 for t in range(tokens)]])
    cache.append_real(real)
    for i, layer in enumerate(cache.layers):
        layer.append(small.numbers(1, 2, tokens, 4, seed=i), small.numbers(1, 1, tokens, 3, seed=9 + i))
    forked = cache.fork(rows, capacity=tokens + 1)
    assert forked.length == tokens
    assert forked.append_real(torch.ones(rows, 1, dtype=torch.bool)).tolist() == [[*real[0].tolist(), True]] * rows
    for old, new in zip(cache.layers, forked.layers, strict=True):
        got = new.append(torch.ones(rows, 2, 1, 4), torch.ones(rows, 1, 1, 3))
        for room, whole in zip(old.rooms, got, strict=True):
            assert whole.shape[0] == rows and all(torch.equal(row[..., :-1, :], room[0]) for row in whole)
            assert (whole[..., -1, :] == 1).all()
        assert old.length == tokens     # and has no room for more: nothing was written there


@given(st.lists(st.integers(1, 3), max_size=3))
def test_tokens_are_counted_along_the_last_dimension_but_one(before):
    x, cache = small.numbers(*before, 3, 2), LayerCache(3)
    cache.append(x[..., :1, :])
    assert torch.equal(cache.append(x[..., 1:, :])[0], x) and cache.length == 3
