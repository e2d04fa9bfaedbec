"""What the server process loads before it forks, so that no answer waits for it: torch, and all of pytest that would be
loaded later.

Tests    tests/test_grading.py
"""

import importlib

import _hypothesis_pytestplugin  # noqa: F401
import hypothesis  # noqa: F401
import torch
from _pytest.config import default_plugins

import minivl2.grading.worker  # noqa: F401

torch.set_num_threads(1)
torch.testing.assert_close(torch.zeros(1), torch.zeros(1))      # loads torch.distributed, once
for plugin in default_plugins:
    importlib.import_module(f"_pytest.{plugin}")
