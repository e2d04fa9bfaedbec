"""The rotary embedding in both of its conventions, against loops and against transformers."""

import pytest
import reference
import small
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from minivl2.rope import rotate_half_split, rotate_interleaved, rotation

WAYS = {"half-split": rotate_half_split, "interleaved": rotate_interleaved}
each_way = pytest.mark.parametrize("way", WAYS)


@each_way
@given(pairs=st.integers(1, 8), positions=st.lists(st.integers(0, 5000), min_size=1, max_size=4),
       base=st.floats(2, 20000), seed=st.integers(0, 99))
def test_every_pair_turns_as_in_the_paper(way, pairs, positions, base, seed):
    x = small.numbers(2, 3, len(positions), 2 * pairs, seed=seed)
    two = torch.tensor([positions, positions[::-1]])
    got = WAYS[way](x, *rotation(two, 2 * pairs, base, torch.float64))
    for b in range(2):
        for h in range(3):
            for t, position in enumerate(two[b]):
                assert_close(got[b, h, t], reference.rope(x[b, h, t], position, base, way == "interleaved"))


def quarter_turn(way):
    """Of two pairs: (a, b) becomes (-b, a)."""
    x = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 1, 1, 4)
    return way(x, torch.zeros(2), torch.ones(2)).flatten().tolist()


def test_a_quarter_turn_of_halves_by_hand():
    assert quarter_turn(rotate_half_split) == [-3, -4, 1, 2]        # pairs (1, 3) and (2, 4)


def test_a_quarter_turn_of_neighbours_by_hand():
    assert quarter_turn(rotate_interleaved) == [-2, 1, -4, 3]       # pairs (1, 2) and (3, 4)


def test_angles_by_hand():
    """Base 16, width 4: the second pair turns 16^(-2/4), a quarter as fast. There is a place for the heads."""
    cos, sin = rotation(torch.tensor([[0, 1, 2]]), 4, 16.0)
    angles = torch.tensor([[0.0, 0.0], [1.0, 0.25], [2.0, 0.5]])[None, None]
    assert_close(cos, angles.cos())     # in float32, if no other type is asked for
    assert_close(sin, angles.sin())
    cos, sin = rotation(torch.tensor([[4094]]), 4, 16.0, torch.float64)
    assert_close(cos.flatten(), torch.tensor([4094.0, 1023.5], dtype=torch.float64).cos())
    assert_close(sin.flatten(), torch.tensor([4094.0, 1023.5], dtype=torch.float64).sin())


@each_way
@given(st.integers(0, 300), st.integers(0, 300), st.integers(0, 1000), st.integers(0, 99))
def test_a_dot_product_depends_only_on_the_distance(way, m, n, shift, seed):
    q, k = small.numbers(2, 1, 1, 1, 8, seed=seed)

    def dot(m, n):
        turned = [WAYS[way](x, *rotation(torch.tensor([[p]]), 8, 100.0, torch.float64)) for x, p in ((q, m), (k, n))]
        return (turned[0] * turned[1]).sum()

    assert_close(dot(m, n), dot(m + shift, n + shift))


@each_way
def test_turning_keeps_lengths_and_the_dtype(way):
    x = small.numbers(1, 2, 3, 8, dtype=torch.bfloat16)
    got = WAYS[way](x, *rotation(torch.tensor([[0, 7, 4095]]), 8, 10000.0))
    assert got.dtype == torch.bfloat16
    assert_close(got.float().norm(dim=-1), x.float().norm(dim=-1), atol=0.02, rtol=0.01)


def test_neighbours_far_from_the_start_are_told_apart():
    """Angles are float32 whatever the model is in: to bfloat16, 4094 and 4095 are both 4096."""
    cos, sin = rotation(torch.tensor([[4094, 4095]]), 2, 10000.0)
    want = torch.tensor([4094.0, 4095.0], dtype=torch.float64)
    assert_close(cos[0, 0, :, 0].double(), want.cos(), atol=1e-3, rtol=0)
    assert_close(sin[0, 0, :, 0].double(), want.sin(), atol=1e-3, rtol=0)


def test_both_conventions_equal_transformers():
    pytest.importorskip("transformers", reason="compares with a maintained implementation")
    from transformers.models.deepseek_ocr2.modeling_deepseek_ocr2 import apply_rotary_pos_emb
    from transformers.models.deepseek_v2.modeling_deepseek_v2 import apply_rotary_emb
    q, k = small.numbers(2, 2, 3, 4, 8, dtype=torch.float32)
    cos, sin = rotation(torch.tensor([[0, 1, 2, 3], [0, 0, 1, 2]]), 8, 100.0)       # (B, 1, T, 4)

    twice = (torch.cat((t, t), dim=-1)[:, 0] for t in (cos, sin))       # theirs are as wide as a head
    for x, want in zip((q, k), apply_rotary_pos_emb(q, k, *twice), strict=True):
        assert_close(rotate_half_split(x, cos, sin), want)

    as_complex = torch.complex(cos, sin)[:, 0]                          # theirs turns complex numbers
    for x, want in zip((q, k), apply_rotary_emb(q, k, as_complex), strict=True):
        assert_close(rotate_interleaved(x, cos, sin), want)
