"""What all tests share: one thread (tiny tensors lose by more), no deadlines, the same examples every time in CI."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)

settings.register_profile("quick", deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("quick"), derandomize=True, database=None)
settings.load_profile("ci" if os.environ.get("CI") else "quick")


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
