"""Two models that should be the same and are not: the first module at which they part.

Lesson   lessons/11_the_real_weights.ipynb          Tests   tests/test_compare.py

The last layer's numbers say only that something is wrong. Some module before it was given the same as its twin in the
other model, and gave something else: the mistake is in that module, and in no other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Call(NamedTuple):
    """What a module was given, and what it gave: all tensors among its arguments and its results, in order."""

    given: list[Tensor]
    gave: list[Tensor]


def trace(model: nn.Module, run: Callable[[nn.Module], Any]) -> dict[str, list[Call]]:
    """The calls of every module while run(model) lasts, by name, in the order in which modules finished for the first
    time: a module's parts stand before it."""
    calls: dict[str, list[Call]] = {}

    def listen(name: str) -> Callable:
        def heard(_, arguments: tuple, named: dict, result: Any) -> None:
            calls.setdefault(name, []).append(Call(tensors((arguments, named)), tensors(result)))
        return heard

    hooks = [module.register_forward_hook(listen(name), with_kwargs=True) for name, module in model.named_modules()]
    try:
        with torch.no_grad():
            run(model)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def tensors(thing: Any) -> list[Tensor]:
    """All tensors in tuples, lists, dictionaries and dataclasses, in order, as they are now."""
    if isinstance(thing, Tensor):
        return [thing.detach().clone()]
    if isinstance(thing, dict):
        return tensors(list(thing.values()))
    if hasattr(thing, "__dataclass_fields__"):
        return tensors(list(vars(thing).values()))
    return [t for part in thing for t in tensors(part)] if isinstance(thing, (tuple, list)) else []


def difference(some: list[Tensor], others: list[Tensor]) -> float:
    """The largest difference, relative to the largest number of that tensor. Infinite where shapes differ."""
    if [t.shape for t in some] != [t.shape for t in others]:
        return torch.inf
    worst = 0.0
    for a, b in zip(some, others, strict=True):
        if a.numel():
            a, b = a.double(), b.double()
            apart = ((a - b).abs().max() / b.abs().max().clamp(min=1e-30)).item()
            worst = max(worst, torch.inf if apart != apart else apart)      # nan is no number to be near to
    return worst


def first_difference(calls: dict[str, list[Call]], others: dict[str, list[Call]], tolerance: float = 1e-4) -> str | None:
    """The name of the first module that was given the same in both models and gave something else. None: there is none.

    First in the order in which they finished, so of a module and its part, both of which fit, it is the part. Modules
    that only one of the models has are skipped, and so are further calls than both have.
    """
    for name in calls:
        for one, other in zip(calls[name], others.get(name, []), strict=False):
            if difference(one.given, other.given) <= tolerance < difference(one.gave, other.gave):
                return name
    return None
