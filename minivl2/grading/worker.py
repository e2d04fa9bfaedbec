"""Running the tests on an answer in a process of its own, which may do what it likes.

Tests    tests/test_grading.py

Starting Python, torch and pytest takes seconds. A server process does it once; every answer is tested in a fork of it,
which lasts some tenths of a second, begins with minivl2 as it was written, and dies with all that the answer did.
(On Windows there is no fork: each answer waits for a new process.)

What is limited is the time an answer computes, not the time that passes: on a busy machine a right answer would else be
too late. One that sleeps computes nothing, so a clock on the wall, with much patience, stops it. (On Windows that clock
stops an endless loop, too.)
"""

from __future__ import annotations

import linecache
import math
import multiprocessing
import os
import sys
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from minivl2.grading import exercise, substitute
from minivl2.grading.report import Report, explain

START_SECONDS = 300         # for Python, torch and pytest, on a busy machine
PATIENCE = 10               # seconds that may pass for one of computing
OUT_OF_TIME = -24           # the signal SIGXCPU, as multiprocessing writes it
MEMORY, FILE = 8 << 30, 64 << 20        # bytes that an answer may take, and write


@dataclass(frozen=True)
class Job:
    name: str
    pickled: bytes = b""        # the learner's function or class, with all that it uses from its notebook
    cells: tuple[tuple[str, str], ...] = ()         # of each of its functions: file and source, to show the failing line
    mistake: str = ""           # instead: the label of one of the exercise's mistakes
    hasty: bool = False         # stop at the first failure, and do not look for a smaller case

    @classmethod
    def of(cls, name: str, mine: Any) -> Job:
        import cloudpickle  # only graders need it
        for function in substitute.functions(mine):     # it may call itself, by a name that is still an earlier answer's
            function.__globals__[mine.__name__] = mine
        files = [code.co_filename for code in substitute.codes(mine)]
        return cls(name, cloudpickle.dumps(mine), tuple((file, "".join(linecache.getlines(file))) for file in files))


def run(job: Job, seconds: float) -> Report:
    """Test the answer in another process; stop it after so many seconds of computing."""
    report = Report(job.name)
    kind = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(kind)
    if kind == "forkserver":
        context.set_forkserver_preload(["minivl2.grading.warm"])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(sender, job, seconds), daemon=True)
    process.start()
    sender.close()
    end = time.monotonic() + START_SECONDS
    try:
        while True:
            if not wait([receiver, process.sentinel], max(0, end - time.monotonic())):
                report.problem = (f"it had not ended after {seconds * PATIENCE:g} seconds, and was stopped. "
                                  "Does it sleep, or wait for something that does not come? Or is this machine too busy?")
                break
            if not receiver.poll():         # ended without a word
                raise EOFError
            what, value = receiver.recv()
            if what == "end":
                break
            if what == "ready":             # only now does the learner's time begin
                end = time.monotonic() + seconds * PATIENCE
            elif what == "test":
                report.tests |= value
                report.running = None
            else:
                setattr(report, what, value)
    except EOFError:
        process.join()
        report.problem = (f"it had not ended after {seconds:g} seconds of computing, and was stopped"
                          if process.exitcode == OUT_OF_TIME else
                          f"it ended the process that tested it ({ending(process.exitcode)})")
    finally:
        process.kill()
        process.join()
    return report


def ending(code: int) -> str:
    """Exit codes below zero are signals."""
    return {-11: "a segmentation fault", -9: "killed, perhaps for lack of memory"}.get(code, f"exit code {code}")


def work(sender: Connection, job: Job, seconds: float) -> None:
    """In the other process: put the answer in place of ours, run its tests, tell what happens as it happens."""
    def tell(what: str, value: Any = None) -> None:
        sender.send((what, value))

    silence()
    os.chdir(exercise.ROOT)
    try:
        import pytest
        task = exercise.find(job.name)
    except (ImportError, ValueError) as why:
        tell("problem", f"{why}. The tests' tools come with: pip install -e '.[lessons,test]'"
             if isinstance(why, ImportError) else str(why))
        tell("end")
        return
    tell("ready")
    limit_computing(seconds)
    if job.mistake:
        mine = task.wrong(next(m for m in task.mistakes if m.label == job.mistake))
    elif job.pickled:
        import cloudpickle
        mine = cloudpickle.loads(job.pickled)
        for function, (file, source) in zip(substitute.functions(mine), job.cells, strict=True):
            linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
            function.__code__ = function.__code__.replace(co_filename=file)     # pickling has forgotten it
    else:
        mine = substitute.ours(job.name)
    substitute.put(job.name, mine)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"      # half of the time would go to plugins nobody uses here
    watcher = Watcher(tell, task, {code.co_filename for code in substitute.codes(mine)})
    arguments = [
        str(task.file), "-k", task.tests, "-c", str(exercise.ROOT / "pyproject.toml"), "-p", "_hypothesis_pytestplugin",
        "-p", "no:cacheprovider", "--tb=native", "--hypothesis-profile", "hasty" if job.hasty else "mine"]
    if job.hasty:
        arguments.append("-x")
    status = pytest.main(arguments, plugins=[watcher])
    if watcher.failed:
        tell("mistake", task.recognise(mine))
    elif status != 0 or watcher.passed < watcher.expected:
        tell("problem", f"the tests could not be run to the end ({getattr(status, 'name', status)})")
    tell("end")


class Watcher:
    """A pytest plugin that tells how the tests go."""

    def __init__(self, tell, task: exercise.Exercise, theirs: set[str]):
        self.tell, self.task, self.theirs = tell, task, theirs
        self.failed, self.passed, self.expected = False, 0, 1

    def pytest_collection_finish(self, session) -> None:
        self.expected = len(session.items)
        self.tell("expected", self.expected)

    def pytest_runtest_setup(self, item) -> None:
        self.tell("running", item.name)

    def pytest_runtest_makereport(self, item, call) -> None:
        error = call.excinfo
        if error is not None:
            if not self.failed:
                printed = "".join(text for when, kind, text in item._report_sections if kind == "stdout")
                self.tell("example", explain(error.value, error.tb, self.task.file, self.theirs, printed))
            self.failed = True
            self.tell("test", {item.name: False})
        elif call.when == "call":
            self.passed += 1
            self.tell("test", {item.name: True})


def limit_computing(seconds: float) -> None:
    """From now on. Then the system sends SIGXCPU, which nothing in Python or pytest waits for."""
    try:
        import resource
        most = math.ceil(time.process_time() + seconds)
        resource.setrlimit(resource.RLIMIT_CPU, (most, resource.getrlimit(resource.RLIMIT_CPU)[1]))
    except (ImportError, ValueError, OSError):      # Windows
        pass


def silence() -> None:
    """What the answer prints goes nowhere (pytest keeps a copy), and it cannot fill memory or disk."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    sys.stdout.flush()
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    try:
        import resource
        for kind, most in ((resource.RLIMIT_DATA, MEMORY), (resource.RLIMIT_FSIZE, FILE), (resource.RLIMIT_CORE, 0)):
            resource.setrlimit(kind, (most, resource.getrlimit(kind)[1]))
    except (ImportError, ValueError, OSError):      # Windows has no limits, and a system may already have lower ones
        pass
