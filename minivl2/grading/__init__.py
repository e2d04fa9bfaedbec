"""Grading: a learner's own code under the tests that test ours.

Tests    tests/test_grading.py

    substitute      puts a learner's function or class in the place of ours
    exercise        what there is to write, which tests grade it, which mistakes are known
    worker          runs those tests in a process of its own, for a limited time
    report          what came out, in words

In a notebook, above what the learner writes:

    @grade("experts.balance_loss")
    def balance_loss(routing, real, per_sequence=True):
        ...

From a terminal: pytest tests/test_experts.py --mine my_experts.py (tests/conftest.py).
"""

from __future__ import annotations

from typing import Any

from minivl2.grading import exercise, substitute, worker
from minivl2.grading.report import Report


def grade(name: str, mine: Any = None, seconds: float = 30) -> Any:
    """Run the tests of minivl2.<name> on `mine`, say what came out, and return what to go on with: `mine` if it passes,
    ours if not. From then on minivl2 itself, in this notebook, uses that one too.

    Without `mine` it is a decorator. The tests run in another process: whatever the answer does (crash, print, never
    end), this one goes on; after `seconds` of computing it is stopped.
    """
    if mine is None:
        return lambda mine: grade(name, mine, seconds)
    report = examine(name, mine, seconds)
    print(report)
    better = mine if report.passed else substitute.ours(name)
    substitute.put(name, better)
    return better


def examine(name: str, mine: Any, seconds: float = 30) -> Report:
    """What `grade` prints, as an object."""
    ours = substitute.ours(name)
    if not callable(mine):
        return Report(name, problem=f"expected a function or a class, got {mine!r:.60}")
    if mine is ours:
        return Report(name, problem="this is minivl2's own; write yours, then run the cell in which you define it")
    if unfinished(mine):
        return Report(name, unwritten=True)
    if not exercise.TESTS.is_dir():
        return Report(name, problem=(
            f"the tests that would grade it are not here ({exercise.TESTS}). They come with a clone of the repository: "
            "there, install with pip install -e '.[lessons,test]', and open the notebook in it"))
    try:
        job = worker.Job.of(name, mine)
    except Exception as why:        # whatever pickling meets
        return Report(name, problem=f"it cannot be sent to the process that tests it ({type(why).__name__}: {why}). "
                      "Does it use something defined outside, like an open file or a running thread?")
    return worker.run(job, seconds)


def unfinished(thing: Any) -> bool:
    """Does it still raise NotImplementedError somewhere? Seen in its code, without running it."""
    return any("NotImplementedError" in code.co_names for code in substitute.codes(thing))
