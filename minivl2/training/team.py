"""Several processes that train one model: each sees a part of every batch, and all take the same step.

Tests    tests/test_training.py

    torchrun --standalone --nproc-per-node 2 train_tiny.py

Two processes of one thread each train half as fast again as one process of two threads: the toy's operations are too
small to be worth dividing, its pictures are not. Started without torchrun, a process is a team of one. Each keeps the whole
model; in shard.py, a part of it.
"""

import os
from collections.abc import Callable, Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor


def join() -> None:
    """Meet the others, if torchrun started us."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        dist.init_process_group("gloo", timeout=timedelta(minutes=30))


def leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def total(value: Tensor) -> Tensor:
    """The sum of everybody's value. In place."""
    if dist.is_initialized():
        dist.all_reduce(value)
    return value


def average(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by the mean of everybody's. Sent as one: a message has a price, however short."""
    if size() == 1:
        return
    joined = total(torch.cat([t.flatten() for t in tensors])) / size()
    for t, mean in zip(tensors, joined.split([t.numel() for t in tensors]), strict=True):
        t.copy_(mean.view_as(t))


def everybodys(tensor: Tensor) -> Tensor:
    """(N, ...) what each has, in order: tensors of one shape."""
    everybody = [torch.empty_like(tensor) for _ in range(size())]
    dist.all_gather(everybody, tensor)
    return torch.stack(everybody)


def divided(work: Callable[[Tensor], Tensor], stacks: Sequence[Tensor]) -> list[Tensor]:
    """work(stack) of each, of which every process does its part: for work that takes rows one by one, and gives as many
    back, of the same shape. Everybody has all stacks, and gets all answers."""
    if size() == 1 or not stacks:
        return [work(stack) for stack in stacks]
    parts, answers = [-(-len(stack) // size()) for stack in stacks], []
    for stack, part in zip(stacks, parts, strict=True):
        own = stack[rank() * part : (rank() + 1) * part]
        answers.append(torch.cat((work(own), own.new_zeros(part - len(own), *own.shape[1:]))))
    joined = torch.cat([answer.flatten() for answer in answers])
    all_answers = everybodys(joined).split([answer.numel() for answer in answers], dim=1)
    return [theirs.reshape(-1, *stack.shape[1:])[: len(stack)] for theirs, stack in zip(all_answers, stacks, strict=True)]


def as_the_first_says(value):
    """The first process's value, for all."""
    if size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]
