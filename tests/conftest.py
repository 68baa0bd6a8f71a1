"""What several tests need. Helpers that tests import stand beside them as plain modules."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

import kill_and_resume


@pytest.fixture(autouse=True, scope='session')
def one_thread():
    """The tests are small: a second thread gains little, and on a busy machine each waits for the other."""
    torch.set_num_threads(1)


@pytest.fixture
def runs(tmp_path):
    """Makes option files of short runs; their folders in experiments/ and results/ are removed at the end."""
    made = kill_and_resume.Runs(tmp_path)
    yield made
    made.clean()
