"""What there is to write: which tests grade it, and the mistakes that people make in it.

Tests    tests/test_lessons.py

The exercises on minivl2/experts.py stand in lessons/exercises/experts.py, the tests that grade them in
tests/test_experts.py. A mistake is kept as a change to our code, so it stays one line to read and never grows stale:
when our code changes and the line is gone, a test says so.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from minivl2.grading import substitute

ROOT = Path(__file__).resolve().parents[2]
TESTS, EXERCISES = ROOT / "tests", ROOT / "lessons" / "exercises"


@dataclass(frozen=True)
class Mistake:
    """A wrong answer. wrong: what to replace in our source by what; or a whole function or class."""

    label: str                                  # a few words, for us
    wrong: dict[str, str] | Callable
    says: str | None = None                     # for the learner who made it, if it is a classic


@dataclass(frozen=True)
class Exercise:
    name: str                                   # "experts.balance_loss"
    tests: str                                  # those of the component's test file that grade it, as for pytest -k
    probe: Callable[[], Any]                    # uses minivl2.<name> once; what it returns tells the mistakes apart
    mistakes: tuple[Mistake, ...]

    @property
    def file(self) -> Path:
        return TESTS / f"test_{topic(self.name)}.py"

    def wrong(self, mistake: Mistake) -> Any:
        """The wrong answer itself, ready to be put in the place of ours."""
        if not isinstance(mistake.wrong, dict):
            return mistake.wrong
        ours = substitute.ours(self.name)
        source = textwrap.dedent(inspect.getsource(ours))
        for right, wrong in mistake.wrong.items():
            if right not in source:
                raise ValueError(f"{self.name}, mistake {mistake.label!r}: our code has no {right!r} (any more)")
            source = source.replace(right, wrong)
        module, _, attribute = substitute.place(self.name)
        space = dict(vars(module))
        exec(compile(source, f"<{self.name}: {mistake.label}>", "exec"), space)
        return space[attribute]

    def recognise(self, mine: Any) -> str | None:
        """What to say to someone whose answer does, on the probe, exactly what a classic mistake does."""
        did = self.outcome(mine)
        if same(did, self.outcome(substitute.ours(self.name))):
            return None
        for mistake in self.mistakes:
            if mistake.says and same(did, self.outcome(self.wrong(mistake))):
                return mistake.says
        return None

    def outcome(self, thing: Any) -> Any:
        """What the probe returns with `thing` in place of ours; an error is an outcome, too."""
        substitute.put(self.name, thing)
        torch.manual_seed(0)
        try:
            return self.probe()
        except Exception as error:
            return type(error).__name__


def same(a: Any, b: Any) -> bool:
    try:
        torch.testing.assert_close(a, b, check_dtype=False, equal_nan=True)
        return True
    except AssertionError:
        return False
    except (TypeError, ValueError):     # not numbers
        return a == b


def topic(name: str) -> str:
    """The module's own name: "experts" of "experts.Gate.forward", "optimizers" of "training.optimizers.Muon"."""
    return substitute.place(name)[0].__name__.rpartition(".")[2]


def load(topic: str) -> ModuleType:
    """lessons/exercises/<topic>.py. It may use the tests' helpers, as `import small`."""
    if str(TESTS) not in sys.path:
        sys.path.insert(0, str(TESTS))
    path = EXERCISES / f"{topic}.py"
    if not path.exists():
        raise ValueError(f"there are no exercises on minivl2's {topic}: {path} does not exist")
    spec = importlib.util.spec_from_file_location(f"exercises.{topic}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def find(name: str) -> Exercise:
    exercises = load(topic(name)).EXERCISES
    for exercise in exercises:
        if exercise.name == name:
            return exercise
    raise ValueError(f"{name} is not an exercise; these are: {', '.join(e.name for e in exercises)}")


def all_exercises() -> list[Exercise]:
    return [exercise for path in sorted(EXERCISES.glob("[a-z]*.py")) for exercise in load(path.stem).EXERCISES]
