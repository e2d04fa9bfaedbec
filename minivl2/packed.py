"""One matrix in fewer bits; or in 16, in the order in which the processor reads it fastest.

Source   torch's own products for a CPU: _weight_int8pack_mm, _weight_int4pack_mm_for_cpu, and oneDNN's, which torch brings.
Lesson   lessons/11_the_real_weights.ipynb
Tests    tests/test_quantize.py                 Letters    the legend in minivl2/config.py

To write one word, the decoder multiplies one vector with every matrix on its way: two operations a number, and the number
must be fetched from memory for it. The fetching takes longer, so a number of half the size is almost twice as fast.

    8 bits    every row of a matrix has its own scale: w = q * scale,           q from -127 to 127
    4 bits    every 32 numbers of a row have their own:  w = (q - 8) * scale + zero,  q from 0 to 15

Only weights are rounded; what flows between the layers stays as it is. A prompt is another matter: its thousand vectors
share each number fetched, arithmetic is the limit, and the product of few bits is slower than the plain one. So a matrix
stays packed for few vectors, and is unpacked, used and forgotten for many.
"""

from __future__ import annotations

import functools
import mmap
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

GROUP = 32          # numbers that share a scale, at 4 bits
ROWS = 64           # a multiple of so many rows fits the order of 4 bits (layout) of any processor
BLOCK = 256         # rows of a matrix rounded at a time: what is only in between stays in the processor's cache


@functools.cache
def onednn() -> bool:
    """Does torch have oneDNN, and can it multiply bfloat16 on this processor? Tried: without AVX-512 it often cannot."""
    vector, matrix = torch.zeros(1, 32, dtype=torch.bfloat16), torch.zeros(32, 32, dtype=torch.bfloat16)
    try:
        for weight in (matrix, torch.ops.mkldnn._reorder_linear_weight(matrix, 1)):
            torch.ops.mkldnn._linear_pointwise(vector, weight, None, "gelu", [], "tanh")
    except (RuntimeError, AttributeError):
        return False
    return True


class Packed(nn.Module):
    """One or more linear layers that read the same vectors, their matrices one below the other, packed."""

    few: int        # up to so many vectors at once, the packed matrix is quicker; for more, it is unpacked

    def __init__(self, linears: Sequence[nn.Linear], gelu: bool = False):
        super().__init__()
        self.rows, self.columns = sum(linear.out_features for linear in linears), linears[0].in_features
        self.bias, self.gelu = linears[0].bias, gelu
        self.waiting: list[Tensor | None] = [None] * len(linears)

    def take(self, part: int, weight: Tensor) -> None:
        """One of the matrices. With the last of them, they are packed, and forgotten."""
        self.waiting[part] = weight
        if all(w is not None for w in self.waiting):
            if len(self.waiting) > 1:
                together = own_pages(sum(w.nbytes for w in self.waiting)).view(weight.dtype).view(self.rows, self.columns)
                weight = torch.cat(self.waiting, out=together)
            self.pack(weight)
            self.waiting = []

    def forward(self, x: Tensor) -> Tensor:
        """x (..., D)"""
        vectors = x.flatten(0, -2)
        if len(vectors) > self.few:
            return linear(x, self.unpack(x.dtype), self.bias, self.gelu)
        out = self.multiply(vectors).unflatten(0, x.shape[:-1])
        out = out if self.bias is None else out + self.bias
        return F.gelu(out, approximate="tanh") if self.gelu else out

    def pack(self, weight: Tensor) -> None:
        raise NotImplementedError

    def unpack(self, dtype: torch.dtype) -> Tensor:
        """(rows, columns), as near to the weights as the bits allow."""
        raise NotImplementedError

    def multiply(self, vectors: Tensor) -> Tensor:
        """(n, columns) -> (n, rows), without unpacking."""
        raise NotImplementedError


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    """oneDNN can bend the numbers while it still holds them: they go to memory once, not three times."""
    if gelu and x.dtype == torch.bfloat16 and onednn():
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu", [], "tanh")
    out = F.linear(x, weight, bias)
    return F.gelu(out, approximate="tanh") if gelu else out


class Packed16(Packed):
    """bfloat16, nothing rounded: rows in blocks, pairs side by side, as the processor's instruction wants them.

    A plain matrix is turned into this order at every use. For a prompt that is little beside the product; for a single
    vector it is most of the work. The order is oneDNN's secret, and the matrix, once packed, good for this machine only.
    """

    few = 2**62     # always

    def pack(self, weight: Tensor) -> None:
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), 1)

    def forward(self, x: Tensor) -> Tensor:
        how = ("gelu", [], "tanh") if self.gelu else ("none", [], "")
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, *how)

    def unpack(self, dtype: torch.dtype) -> Tensor:
        return self.weight.to_dense().to(dtype)


class Packed8(Packed):
    few = 8

    def __init__(self, linears: Sequence[nn.Linear], gelu: bool = False):
        super().__init__(linears, gelu)
        self.register_buffer("weight_int8", torch.empty(self.rows, self.columns, dtype=torch.int8, device="meta"))
        self.register_buffer("scale", torch.empty(self.rows, dtype=torch.bfloat16, device="meta"))

    def pack(self, weight: Tensor) -> None:
        self.weight_int8, self.scale = (torch.empty_like(t, device="cpu") for t in (self.weight_int8, self.scale))
        for start in range(0, self.rows, BLOCK):
            rows = slice(start, start + BLOCK)
            self.weight_int8[rows], self.scale[rows] = round8(weight[rows])

    def unpack(self, dtype: torch.dtype) -> Tensor:
        return self.weight_int8.to(dtype).mul_(self.scale[:, None].to(dtype))

    def multiply(self, vectors: Tensor) -> Tensor:
        return torch._weight_int8pack_mm(aligned(vectors.contiguous()), self.weight_int8, self.scale.to(vectors.dtype))


class Packed4(Packed):
    few = 64

    def __init__(self, linears: Sequence[nn.Linear], gelu: bool = False):
        super().__init__(linears, gelu)
        N, D = self.rows, self.columns
        self.register_buffer("weight_int4", torch.empty(N, D // 2, dtype=torch.uint8, device="meta"))
        self.register_buffer("scale", torch.empty(D // GROUP, N, 2, dtype=torch.bfloat16, device="meta"))     # and zero

    def pack(self, weight: Tensor) -> None:
        self.weight_int4, self.scale = (torch.empty_like(t, device="cpu") for t in (self.weight_int4, self.scale))
        for start in range(0, self.rows, BLOCK):
            rows = slice(start, start + BLOCK)
            q, self.scale[:, rows] = round4(weight[rows])
            self.weight_int4[rows] = in_order(q, layout())

    def unpack(self, dtype: torch.dtype) -> Tensor:
        # Taken apart first: of what lies in every second place, torch multiplies number by number.
        scale, zero = (t.contiguous() for t in self.scale.to(dtype).unbind(-1))         # (D/32, N)
        q = out_of_order(self.weight_int4, layout()).unflatten(0, (-1, GROUP)).sub_(8).to(dtype)    # (D/32, 32, N)
        return torch.addcmul(zero[:, None], q, scale[:, None], out=q).flatten(0, 1).T

    def multiply(self, vectors: Tensor) -> Tensor:
        return torch._weight_int4pack_mm_for_cpu(
            vectors.contiguous(), self.weight_int4, GROUP, self.scale.to(vectors.dtype))


def own_pages(size: int) -> Tensor:
    """(size,) bytes, not set, in pages of their own, which go back to the system whole when the tensor is let go.

    The usual heap would keep them. Where something large is let go after something smaller was made from it, again and
    again, as when weights are packed while loading, that leaves holes: half as much again as the weights.
    """
    return torch.frombuffer(mmap.mmap(-1, max(1, size)), dtype=torch.uint8)[:size]


def aligned(t: Tensor) -> Tensor:
    """At an address that is a multiple of 16: from another, the product of 8 bits ends the program without a word."""
    return t if t.data_ptr() % 16 == 0 else t.clone()


# ------------------------------------------------------------------------------------ rounding


def round8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(N, D) -> whole numbers (N, D), and the scale of each row (N,). The scale is rounded first, so that the numbers are
    the best for the scale they will really be multiplied with."""
    w = weight.float()
    scale = (w.abs().amax(1) / 127).clamp(min=1e-30).bfloat16()
    return (w / scale.float()[:, None]).round_().clamp_(-127, 127).to(torch.int8), scale


def round4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(N, D) -> whole numbers from 0 to 15 (N, D); and scale and zero of each group, (D/32, N, 2), as the kernel wants."""
    w = weight.float().unflatten(1, (-1, GROUP))                                        # (N, D/32, 32)
    low, high = w.amin(-1, keepdim=True), w.amax(-1, keepdim=True)      # (aminmax takes four times as long)
    scale = ((high - low) / 15).clamp(min=1e-30).bfloat16().float()
    zero = (low + 8 * scale).bfloat16().float()
    q = ((w - zero) / scale).round_().add_(8).clamp_(0, 15).to(torch.uint8)
    return q.flatten(1), torch.cat((scale, zero), dim=-1).transpose(0, 1).bfloat16()


Layout = tuple[int, bool]       # rows in a block; whether a byte holds a row of each half, or two neighbours


@functools.cache
def layout() -> Layout | None:
    """The order in which torch's product wants numbers of 4 bits differs from processor to processor. None: neither.

    It is found by trying: torch is given a matrix to pack, and we look who packs the same.
    """
    q = (torch.arange(128 * 32, dtype=torch.int32) * 7919 % 61 % 16).view(128, 32)
    try:
        theirs = torch._convert_weight_to_int4pack_for_cpu(q, 1)
    except RuntimeError:        # no such product on this processor
        return None
    orders = [(block, halves) for block in (64, 32, 16) for halves in (True, False)]
    return next((order for order in orders if torch.equal(in_order(q.to(torch.uint8), order), theirs)), None)


def in_order(q: Tensor, order: Layout) -> Tensor:
    """(N, D) numbers from 0 to 15 -> (N, D/2) bytes, two numbers in each."""
    block, halves = order
    columns = q.unflatten(0, (-1, block)).transpose(1, 2)                               # (N/block, D, block)
    low, high = columns.chunk(2, dim=-1) if halves else (columns[..., 0::2], columns[..., 1::2])
    return (low | high << 4).reshape(q.shape[0], -1)


def out_of_order(packed: Tensor, order: Layout) -> Tensor:
    """And back, transposed, which comes more naturally: (N, D/2) bytes -> (D, N) numbers."""
    block, halves = order
    N, D = packed.shape[0], 2 * packed.shape[1]
    pairs = packed.view(N // block, D, block // 2).transpose(0, 1)                      # (D, N/block, block/2)
    q = torch.empty(D, N // block, *((2, block // 2) if halves else (block // 2, 2)), dtype=torch.int8)
    low, high = q.unbind(2 if halves else 3)
    low.copy_(pairs & 15)
    high.copy_(pairs >> 4)
    return q.flatten(1)
