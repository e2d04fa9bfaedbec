"""What all tests share: one thread (tiny tensors lose by more), no deadlines, the same examples every time in CI."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings

from minivl2.grading import exercise, substitute

torch.set_num_threads(1)
# Two tests may train at once, with two threads each to evaluate: on two cores, those that wait must not keep a core busy.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
MINE = pytest.StashKey()

settings.register_profile("quick", deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("quick"), derandomize=True, database=None)
# For grading: one case a failure, the same every time. Hasty: do not look for a smaller one.
settings.register_profile("mine", settings.get_profile("ci"), report_multiple_bugs=False,
                          phases=(Phase.explicit, Phase.generate, Phase.shrink))
settings.register_profile("hasty", settings.get_profile("mine"), phases=(Phase.explicit, Phase.generate))
settings.load_profile("ci" if os.environ.get("CI") else "quick")


def pytest_addoption(parser):
    parser.addoption("--mine", metavar="FILE", type=Path, help=(
        "test your code instead of ours: what FILE defines takes the place of what minivl2 calls the same. "
        "One component at a time: pytest tests/test_experts.py --mine my_experts.py"))


def pytest_configure(config):
    mine = config.getoption("--mine")
    if mine is None:
        return
    files = {Path(argument.partition("::")[0]) for argument in config.args}
    if len(files) != 1:
        raise pytest.UsageError("--mine tests one component at a time: pytest tests/test_experts.py --mine my_experts.py")
    try:
        put = substitute.put_file(mine, files.pop())
    except (ValueError, OSError) as problem:
        raise pytest.UsageError(f"--mine: {problem}") from None
    settings.load_profile("mine")
    config.stash[MINE] = put


def pytest_terminal_summary(terminalreporter, config):
    for name, mine in config.stash.get(MINE, {}).items():
        terminalreporter.write_line(f"Tested yours in place of minivl2.{name}")
        exercises = [e for e in exercise.all_exercises() if e.name == name]
        mistake = exercises[0].recognise(mine) if exercises and terminalreporter.stats.get("failed") else None
        if mistake:
            terminalreporter.write_line(f"The mistake: {mistake}")


@pytest.fixture(autouse=True)
def same_numbers_every_time():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def goldens():
    """Four miniature checkpoints, and what the published implementation answered on them: see goldens/README.md."""
    return Path(__file__).parent / "goldens"


@pytest.fixture(scope="session")
def processor(goldens):
    import small
    return small.processor(goldens)
