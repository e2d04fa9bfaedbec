"""Exercises on minivl2/compare.py, of lesson 11. Graded by tests/test_compare.py."""

import torch

from minivl2 import compare
from minivl2.compare import Call, difference
from minivl2.grading.exercise import Exercise, Mistake


def call(given, gave):
    return Call([torch.tensor([given, 1.0])], [torch.tensor([gave, 1.0])])


def some_searches():
    """Names, as they come. Each search is one that some mistake gets wrong."""
    first, same, other, late = call(0.5, 0.5), call(0.5, 0.2), call(0.1, 0.9), call(0.1, 0.7)
    found = [
        compare.first_difference({"part": [other], "whole": [first]}, {"part": [late], "whole": [same]}),
        compare.first_difference({"a": [first], "part": [first], "whole": [first]},
                                 {"a": [first], "part": [other], "whole": [same]}),
        compare.first_difference({"a": [first, first]}, {"a": [first, same]}),
        compare.first_difference({"a": [call(0.5, 0.5)]}, {"a": [call(0.5, 0.50001)]}),
        compare.first_difference({"a": [call(0.5, 0.5)]}, {"a": [call(0.500001, 0.6)]}),
        compare.first_difference({"b": [first], "a": [first]}, {"a": [same]}),
        compare.first_difference({"a": [first]}, {"a": [first]}),
        compare.first_difference({"b": [first], "a": [first]}, {"a": [same], "b": [same]}),
    ]
    return [str(name) for name in found]


def deepest_first(calls, others, tolerance=1e-4):
    for name in sorted(calls, key=lambda name: -name.count(".")):
        for one, other in zip(calls[name], others.get(name, []), strict=False):
            if difference(one.given, other.given) <= tolerance < difference(one.gave, other.gave):
                return name
    return None


def the_worst(calls, others, tolerance=1e-4):
    apart = {name: difference(calls[name][0].gave, others[name][0].gave) for name in calls if name in others}
    name = max(apart, key=apart.get, default=None)
    return name if name is not None and apart[name] > tolerance else None


EXERCISES = (
    Exercise("compare.first_difference", "not relative and not wherever and not hooks and not traced", some_searches, (
        Mistake("what went in is not asked", {"difference(one.given, other.given) <= tolerance <": "tolerance <"},
                "you name the first module whose results differ. It may have been given different numbers already: "
                "then the mistake is before it, or around it. Ask for the same input, too."),
        Mistake("exactly the same", {"one.given, other.given) <= tolerance <":
                                     "one.given, other.given) == 0 and tolerance <"},
                "the inputs must not be equal to the last digit: two right implementations add in another order."),
        Mistake("no tolerance", {"<= tolerance < difference": "<= tolerance and 0 < difference"},
                "a difference in the last digit is taken for a mistake: results may differ by the tolerance."),
        Mistake("the worst", the_worst,
                "you look for the largest difference. It is seldom where the mistake is: differences grow from layer "
                "to layer."),
        Mistake("the first call only", {"in zip(calls[name], others.get(name, []), strict=False)":
                                        "in zip(calls[name][:1], others.get(name, [])[:1], strict=False)"},
                "you compare the first call of a module only. It may be called more than once."),
        Mistake("the last one", {"for name in calls:": "for name in reversed(calls):"},
                "you take the last module that fits. The order is that in which they finished: the first is the "
                "smallest and "
                "nearest."),
        Mistake("what only one has", {"others.get(name, [])": "others[name]"},
                "a module that only one of the models has is an error with you: skip it."),
        Mistake("by the other's order", {"for name in calls:": "for name in (n for n in others if n in calls):"}),
        Mistake("by depth", deepest_first),
    )),
)
