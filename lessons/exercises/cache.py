"""Exercises on minivl2/cache.py, of lesson 04. Graded by tests/test_cache.py."""

import small
import torch

from minivl2 import cache
from minivl2.grading.exercise import Exercise, Mistake


def some_memory():
    """Keys and values of 2, 1 and 3 tokens, of different widths; then one too many. All that came back, and the end."""
    memory, seen = cache.LayerCache(6), []
    for n in (2, 1, 3):
        got = memory.append(small.numbers(2, n, 4, seed=n), small.numbers(2, n, 5, seed=10 + n))
        seen += [torch.nan_to_num(x.clone(), 0.0).clamp(-9, 9) for x in got]    # what was never written is anything
    try:
        memory.append(small.numbers(2, 1, 4), small.numbers(2, 1, 5))
        refused = 0.0
    except ValueError:
        refused = 1.0
    return [*seen, torch.tensor([float(memory.length), refused])]


def only_the_last(self, *new):
    end = self.length + new[0].shape[-2]
    if end > self.capacity:
        raise ValueError(f"the cache has room for {self.capacity} tokens; token {end} does not fit")
    self.rooms, self.length = new, end
    return new


def newest_first(self, *new):
    end = self.length + new[0].shape[-2]
    if end > self.capacity:
        raise ValueError(f"the cache has room for {self.capacity} tokens; token {end} does not fit")
    earlier = self.rooms or [x[..., :0, :] for x in new]
    self.rooms = tuple(torch.cat((x, room), dim=-2) for room, x in zip(earlier, new, strict=True))
    self.length = end
    return self.rooms


def grown_by_concatenation(self, *new):
    end = self.length + new[0].shape[-2]
    if end > self.capacity:
        raise ValueError(f"the cache has room for {self.capacity} tokens; token {end} does not fit")
    earlier = self.rooms or [x[..., :0, :] for x in new]
    self.rooms = tuple(torch.cat((room, x), dim=-2) for room, x in zip(earlier, new, strict=True))
    self.length = end
    return self.rooms


EXERCISES = (
    Exercise("cache.LayerCache.append", "not forked", some_memory, (
        Mistake("only the new ones", only_the_last,
                "you give back the new tokens only. Attention wants all of them, the earlier ones first."),
        Mistake("newest first", newest_first, "the newest tokens come first in yours; they belong after the earlier ones."),
        Mistake("written over", {"self.length = end": "self.length = self.length"},
                "self.length never grows, so each call writes over the one before."),
        Mistake("length counts calls", {"self.length = end": "self.length = start + 1"},
                "the length grows by one in each call; it grows by the number of tokens, T, which is many for a prompt."),
        Mistake("one too few", {"if end > self.capacity": "if end >= self.capacity"},
                "the last place is never used: as many tokens as the capacity fit."),
        Mistake("no limit", {"if end > self.capacity": "if start > self.capacity"}),
        Mistake("length before the check", {"if end > self.capacity": "self.length = end\n    if end > self.capacity"},
                "the length grows even when the token is refused: check first, then change things."),
        Mistake("written to the start", {"room[..., start:end, :] = x": "room[..., : end - start, :] = x"}),
        Mistake("whole room", {"room[..., :end, :] for": "room for"}),
        Mistake("grown by concatenation", grown_by_concatenation),
        Mistake("float32 always", {"x.new_empty(": "torch.empty("}),
        Mistake("one width for all", {"self.capacity, x.shape[-1])": "self.capacity, new[0].shape[-1])"}),
        Mistake("tokens in the third dimension", {"new[0].shape[-2]": "new[0].shape[2]"}),
        Mistake("copies given back", {"room[..., :end, :] for": "room[..., :end, :].clone() for"}),
    )),
)
