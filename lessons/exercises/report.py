"""Exercises on minivl2/training/report.py, of lesson 12. Graded by tests/test_report.py."""

from minivl2.grading.exercise import Exercise, Mistake
from minivl2.training import report


def some_curves():
    falling = [9.0, 7.0, 8.0, 4.0, 5.0, 1.0, 2.0, 2.0]
    return [report.smooth(falling, 0.7), report.smooth(falling), report.smooth([2.0, 2.0, 2.0], 0.5)]


def from_the_first(values, memory=0.95):
    out = []
    for value in values:
        out.append(memory * out[-1] + (1 - memory) * value if out else value)
    return out


def of_a_window(values, memory=0.95):
    width = max(1, round(1 / (1 - memory)))
    return [sum(values[max(0, i + 1 - width):i + 1]) / len(values[max(0, i + 1 - width):i + 1]) for i in range(len(values))]


def backwards(values, memory=0.95):
    out, total, weight = [], 0.0, 0.0
    for value in reversed(values):
        total, weight = memory * total + value, memory * weight + 1
        out.append(total / weight)
    return out[::-1]


EXERCISES = (
    Exercise("training.report.smooth", "smoothing", some_curves, (
        Mistake("starts from nothing", {"total / weight": "total * (1 - memory)"},
                "the curve starts near zero and climbs to the values: at the beginning the weights do not yet sum to 1. "
                "Divide by what they do sum to."),
        Mistake("clings to the first", from_the_first,
                "the first value counts as much as a whole endless past: the curve starts at it and leaves it slowly. The "
                "first value is to weigh less than the second."),
        Mistake("forgets nothing", {"memory * total": "total", "memory * weight": "weight"},
                "this is the mean of everything so far: the noisy beginning is never forgotten."),
        Mistake("memory turned round", {"memory * total + value, memory * weight + 1":
                                        "(1 - memory) * total + value, (1 - memory) * weight + 1"},
                "a memory of 0.95 forgets nearly everything: you multiply the past by 1 - memory."),
        Mistake("looks ahead", backwards,
                "this curve knows the future: it is smoothed from the end. A value may depend on earlier ones only."),
        Mistake("a window", of_a_window,
                "this is the mean of the last few values, all counting alike. The older is to count less, by `memory` "
                "for each value in between."),
        Mistake("forgets the sum only", {"memory * weight + 1": "weight + 1"},
                "the values are forgotten, but not their weights: the curve sinks towards zero."),
        Mistake("one late", {"total, weight = memory * total + value, memory * weight + 1\n": "pass\n",
                             "out.append(total / weight)": "out.append(total / weight if weight else value); "
                             "total, weight = memory * total + value, memory * weight + 1"}),
        Mistake("forgets too much", {"memory * total": "memory**2 * total", "memory * weight": "memory**2 * weight"}),
        Mistake("only the end", {"return out": "return out[-1:]"}),
    )),
)
