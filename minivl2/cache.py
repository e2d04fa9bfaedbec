"""What the decoder remembers of earlier tokens, so that a new token does not read the prompt again.

Lesson   lessons/04_attention.ipynb            Tests   tests/test_cache.py

Room for all tokens is taken once and filled from the left: growing a tensor by concatenation would copy everything
remembered for every token written. What is kept per token differs (keys and values, or a latent); the room does not.
"""

from torch import Tensor


class LayerCache:
    """The memory of one attention layer."""

    def __init__(self, capacity: int):
        self.capacity = capacity
        self.length = 0
        self.rooms: tuple[Tensor, ...] = ()

    def append(self, *new: Tensor) -> tuple[Tensor, ...]:
        """new: tensors (..., T, width) of the next T tokens. Returns each after all earlier tokens, (..., S, width).

        What is returned are views of the room: valid until the cache is thrown away, and not to be written to.
        """
        start, end = self.length, self.length + new[0].shape[-2]
        if end > self.capacity:
            raise ValueError(f"the cache has room for {self.capacity} tokens; token {end} does not fit")
        if not self.rooms:      # only now are batch, heads, width, dtype and device known
            self.rooms = tuple(x.new_empty(*x.shape[:-2], self.capacity, x.shape[-1]) for x in new)
        for room, x in zip(self.rooms, new, strict=True):
            room[..., start:end, :] = x
        self.length = end
        return tuple(room[..., :end, :] for room in self.rooms)


class Cache:
    """The memory of the whole decoder: one LayerCache per layer, and which of the tokens are real."""

    def __init__(self, layers: int, capacity: int):
        self.layers = [LayerCache(capacity) for _ in range(layers)]
        self.which = LayerCache(capacity)       # remembers, of every token, one truth: (B, S, 1)

    @property
    def length(self) -> int:
        return self.which.length

    def append_real(self, real: Tensor) -> Tensor:
        """real: (B, T) bool for the next T tokens, False is padding. Returns it for all S tokens so far."""
        return self.which.append(real[..., None])[0][..., 0]

    def fork(self, rows: int, capacity: int) -> "Cache":
        """The memory of one conversation, for as many that go on from here. This one stays as it is."""
        forked = Cache(len(self.layers), capacity)
        for old, new in zip([*self.layers, self.which], [*forked.layers, forked.which], strict=True):
            new.append(*(room[..., : old.length, :].expand(rows, *room.shape[1:-2], -1, -1) for room in old.rooms))
        return forked

    @property
    def bytes(self) -> int:
        """Memory the rooms take, whether filled or not."""
        return sum(room.nbytes for layer in self.layers for room in layer.rooms)
