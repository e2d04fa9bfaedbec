"""What came out of grading, in words.

Tests    tests/test_grading.py
"""

from __future__ import annotations

import textwrap
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

WIDTH = 116       # letters of a line


@dataclass
class Report:
    name: str
    unwritten: bool = False                     # the stub is still a stub
    tests: dict[str, bool] = field(default_factory=dict)        # passed?, in the order they ran
    expected: int = 0                           # how many were to run
    running: str | None = None                  # the test that has begun and not ended
    example: list[str] = field(default_factory=list)            # the first that failed, explained
    mistake: str | None = None                  # its name, if it is a classic
    problem: str | None = None                  # why the tests could not be run to the end

    @property
    def passed(self) -> bool:
        return not self.problem and self.expected > 0 and len(self.tests) == self.expected and all(self.tests.values())

    def __str__(self) -> str:
        if self.unwritten:
            return f"{self.name}: not yet. Write it in place of the NotImplementedError, then run this cell again."
        lines = []
        if self.passed:
            lines.append(f"{self.name}: correct. It passes {count(self.expected)}:")
        elif self.expected:
            lines.append(f"{self.name}: not yet. It passes {sum(self.tests.values())} of {count(self.expected)}:")
        else:
            lines.append(f"{self.name}: not graded.")
        lines += [f"  {'✓' if passed else '✗'} {sentence(test)}" for test, passed in merged(self.tests).items()]
        if self.mistake:
            lines += ["", *wrapped(self.mistake, "  The mistake: ")]
        if self.example:
            lines += ["", *(f"  {line}" for line in self.example)]
        if self.problem:
            end = "" if self.problem.endswith("?") else "."
            lines += ["", *wrapped(self.problem[0].upper() + self.problem[1:] + end, "  ")]
            if self.running:
                lines.append(f"  It was in the test \"{sentence(self.running)}\".")
        return "\n".join(lines)


def count(tests: int) -> str:
    return "1 test" if tests == 1 else f"{tests} tests"


def sentence(test: str) -> str:
    """test_an_mlp_is_swiglu[1-2] -> an mlp is swiglu [1-2]"""
    name, bracket, case = test.partition("[")
    return name.removeprefix("test_").replace("_", " ") + (" [" + case if bracket else "")


def merged(tests: dict[str, bool]) -> dict[str, bool]:
    """The cases of a test that passed them all, as one."""
    lines = {}
    for test, passed in tests.items():
        whole = test.partition("[")[0]
        all_passed = all(ok for other, ok in tests.items() if other.partition("[")[0] == whole)
        lines[whole if all_passed else test] = passed
    return lines


def wrapped(text: str, first: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=" " * len(first))


def explain(error: BaseException, trace: TracebackType, tests: Path, theirs: set[str], printed: str) -> list[str]:
    """A failed test in a few lines: the case, as small as hypothesis could make it; where; what was wrong."""
    lines = []
    for note in getattr(error, "__notes__", []):
        if note.startswith(("Failing test case", "Falsifying example", "Draw ")):
            lines += case(note)
    if lines:
        lines.insert(0, "The smallest case found:")
    last = {}
    for frame in traceback.extract_tb(trace):
        if frame.filename == str(tests) and frame.line:
            last["test"] = f"{tests.parent.name}/{tests.name}, line {frame.lineno}:   {frame.line}"
        elif frame.filename in theirs and frame.line:
            last["mine"] = f"your code, line {frame.lineno}:   {frame.line}"
    lines += [line[:WIDTH] for line in last.values()]
    said = [line for line in str(error).splitlines() if line.strip()]
    first = f"{type(error).__name__}: " if not isinstance(error, AssertionError) else ""
    lines += [f"    {line[:WIDTH]}" for line in [first + (said[0] if said else ""), *said[1:7]]]
    if printed.strip():
        lines += ["it printed:", *(f"    {line[:WIDTH]}" for line in printed.strip().splitlines()[:5])]
    return lines


def case(note: str) -> list[str]:
    """hypothesis' note: "Failing test case: test_x(\n    width=1,\n    seed=0,\n)", or "Draw 1: 3"."""
    if note.startswith("Draw "):
        return [f"    {note[:WIDTH]}"]
    inside = note.partition("(")[2].rpartition(")")[0]
    arguments = ", ".join(line.strip().rstrip(",") for line in inside.splitlines() if line.strip())
    return textwrap.wrap(arguments, WIDTH, initial_indent="    ", subsequent_indent="    ", max_lines=5)
