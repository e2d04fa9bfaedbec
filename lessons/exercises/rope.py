"""Exercises on minivl2/rope.py, of lessons 04 and 05. Graded by tests/test_rope.py."""

import small
import torch

from minivl2 import rope
from minivl2.grading.exercise import Exercise, Mistake

POSITIONS = torch.tensor([[0, 1, 2, 7], [3, 0, 300, 1]])


def some_angles():
    return list(rope.rotation(POSITIONS, 8, 50.0, torch.float64))


def turned(way):
    def probe():
        angles = torch.tensor([[0.3, 1.1, 2.0], [0.0, 0.7, -1.0]], dtype=torch.float64)[None, None]
        return getattr(rope, way)(small.numbers(2, 3, 2, 6), angles.cos(), angles.sin())

    return probe


def by_halves(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).type_as(x)


def by_neighbours(x, cos, sin):
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2).type_as(x)


def read_in_halves_written_in_turns(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    return torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2).type_as(x)


def read_in_turns_written_in_halves(x, cos, sin):
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).type_as(x)


def from_the_ends(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    b = b.flip(-1)
    return torch.cat((a * cos - b * sin, (b * cos + a * sin).flip(-1)), dim=-1).type_as(x)


def one_angle_a_number(positions, width, base, dtype=torch.float32):
    frequencies = 1.0 / base ** (torch.arange(0, width, 2, dtype=dtype) / width)
    angles = (positions[:, None, :, None].to(dtype) * frequencies).repeat(1, 1, 1, 2)
    return angles.cos(), angles.sin()


def turning(*more):
    """Mistakes in turning that are the same for both pairings."""
    return (
        Mistake("backwards", {"a * cos - b * sin": "a * cos + b * sin", "b * cos + a * sin": "b * cos - a * sin"},
                "you turn the other way round: the minus belongs to the first of the pair, a cos - b sin."),
        Mistake("cos and sin swapped", {"a * cos - b * sin": "a * sin - b * cos", "b * cos + a * sin": "b * sin + a * cos"},
                "cos and sin are swapped: at position 0 the angle is 0, and nothing may change."),
        Mistake("mirrored", {"b * cos + a * sin": "a * sin - b * cos"},
                "that is a mirror, not a rotation: the second of the pair becomes b cos + a sin."),
        Mistake("no minus", {"a * cos - b * sin": "a * cos + b * sin"},
                "one of the four terms is negative, or lengths change: a cos - b sin."),
        Mistake("only the first", {"b * cos + a * sin": "b"}, "only the first of each pair is turned."),
        Mistake("first overwritten", {"b * cos + a * sin": "b * cos + (a * cos - b * sin) * sin"},
                "the second of the pair is computed from the new first; both need the old ones."),
        *more,
        Mistake("in the angles' type", {".type_as(x)": ""}),
    )


EXERCISES = (
    Exercise("rope.rotation", "every_pair or neighbours_far or distance or angle", some_angles, (
        Mistake("exponent -i/d", {"torch.arange(0, width, 2,": "torch.arange(0, width // 2,"},
                "the exponents are too small by half: pair i has -2i/width, so that the last pair is nearly base times "
                "slower than the first. Yours has -i/width."),
        Mistake("exponent -4i/d", {"/ width)": "/ (width // 2))"},
                "the exponents are too large: -2i/width, with the width of the whole vector, not of its half."),
        Mistake("faster and faster", {"1.0 / base **": "base **"},
                "the later pairs turn faster in yours; the exponent is negative, they turn slower."),
        Mistake("positions from 1", {".to(dtype) *": ".to(dtype).add(1) *"},
                "the first position is 0, where nothing is turned; you count from 1."),
        Mistake("sin and cos swapped", {"angles.cos(), angles.sin()": "angles.sin(), angles.cos()"},
                "cosine comes first, then sine."),
        Mistake("one angle a number", one_angle_a_number,
                "one angle for every *pair*: the last dimension is width/2. You repeat them for every number."),
        Mistake("all alike", {"* frequencies": "* torch.ones_like(frequencies)"},
                "all pairs turn at the same speed, one step a position: the speeds base^(-2i/width) are not used."),
        Mistake("whole turns", {".to(dtype) *": ".to(dtype) * 2 * torch.pi *"},
                "the angle is position * speed itself, in radians, without 2 pi."),
        Mistake("base fixed", {"base **": "10000.0 **"}, "the base is an argument; you use 10000 always."),
        Mistake("in bfloat16", {"positions[:, None, :, None].to(dtype)": "positions[:, None, :, None].bfloat16()"}),
        Mistake("order of speeds", {"* frequencies": "* frequencies.flip(0)"},
                "the speeds are in the wrong order: pair 0 is the fastest."),
        Mistake("in float32 always", {"* frequencies": "* frequencies.float()"}),
        Mistake("no place for heads", {"[:, None, :, None]": "[:, :, None]"}),
    )),
    Exercise("rope.rotate_half_split", "half-split or quarter_turn_of_halves", turned("rotate_half_split"), turning(
        Mistake("neighbours", by_neighbours,
                "you pair neighbours, (0, 1), (2, 3), ...: that is the other convention. Here number i goes with i + d/2."),
        Mistake("written in turns", read_in_halves_written_in_turns,
                "read from two halves, but written back alternating: what was in a half must return to it."),
        Mistake("from the ends", from_the_ends, "number i goes with i + d/2; you pair it with d - 1 - i."),
    )),
    Exercise("rope.rotate_interleaved", "interleaved or quarter_turn_of_neighbours", turned("rotate_interleaved"), turning(
        Mistake("halves", by_halves,
                "you pair number i with i + R/2: that is the other convention, of multi-head attention. Here it is "
                "neighbours, (0, 1), (2, 3), ..."),
        Mistake("written in halves", read_in_turns_written_in_halves,
                "read in turns, but written back as two halves: all first numbers, then all second ones. Use stack and "
                "flatten, not cat."),
        Mistake("from the ends", from_the_ends, "number 2i goes with 2i + 1; you pair i with R - 1 - i."),
    )),
)
