"""Exercises on minivl2/training/loop.py, of lesson 12. Graded by tests/test_loop.py."""

import torch

from minivl2.experts import Routing
from minivl2.grading.exercise import Exercise, Mistake
from minivl2.training import loop
from minivl2.training.loop import relative_load


def routing(chosen, experts):
    chosen = torch.tensor(chosen)
    return Routing(chosen, torch.ones(chosen.shape), torch.full((len(chosen), experts), 1 / experts))


def some_loads():
    """Of layers that differ in how even they are and in who is busy."""
    crowded = routing([[0, 1], [0, 2], [0, 3], [0, 1], [0, 2], [0, 3]], 4)      # 6, 2, 2, 2
    idle = routing([[3, 2], [3, 2], [3, 1], [2, 3], [3, 0]], 5)                 # 1, 1, 3, 5, 0
    return [float(loop.heaviest_load(layers)) for layers in ([crowded], [idle], [crowded, idle], [idle, crowded], [])]


def of_all_layers_together(routings):
    load = sum(routing.load[:4].float() for routing in routings)
    return float((load / load.mean()).max()) if routings else 1.0


EXERCISES = (
    Exercise("training.loop.heaviest_load", "heaviest", some_loads, (
        Mistake("the mean over layers", lambda routings: sum(
            max(relative_load(routing)) for routing in routings) / len(routings) if routings else 1.0,
                "you take the mean over the layers. A layer in which one expert does everything would hide behind layers "
                "that are even: take the worst."),
        Mistake("layers added up", of_all_layers_together,
                "you add the loads of all layers first. Expert 0 of one layer is another network than expert 0 of the "
                "next, and their unevenness cancels out."),
        Mistake("visits, not shares", {"max(relative_load(routing))": "float(routing.load.max())"},
                "these are visits. Divide by a fair share, the mean over the experts, or the number grows with the batch."),
        Mistake("part of all visits", {"max(relative_load(routing))": "(routing.load / routing.load.sum()).max().item()"},
                "this is the busiest expert's part of all visits. A fair share of it is 1/E; it is to count as 1."),
        Mistake("part of the tokens", {"max(relative_load(routing))": "(routing.load / len(routing.experts)).max().item()"},
                "this is the part of the tokens that visit the busiest expert. Each token visits K experts, so a fair "
                "share is K/E; it is to count as 1."),
        Mistake("the idlest", {"max(relative_load(routing))": "min(relative_load(routing))"},
                "this is the expert with the least to do."),
        Mistake("the best layer", {"max((max(": "min((max("},
                "this is the layer that is most even. What all wait for is the worst."),
        Mistake("beside the idlest", {"max(relative_load(routing))":
                                      "(routing.load.max() / routing.load.min().clamp(min=1)).item()"},
                "you compare the busiest with the idlest expert; compare it with a fair share."),
        Mistake("no layers", {", default=1.0": ""}),
        Mistake("the last layer only", lambda routings: max(relative_load(routings[-1])) if routings else 1.0),
        Mistake("a tensor", {"return max(": "return torch.tensor(max(", "default=1.0)": "default=1.0))"}),
    )),
)
