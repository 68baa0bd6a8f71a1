"""What several tests need. Helpers that tests import stand beside them as plain modules."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import signal
import sys
from pathlib import Path

import pytest
import torch

# Before anything imports Triton: without a GPU its interpreter runs the kernels (tests/ops).
if not torch.cuda.is_available():
    os.environ.setdefault('TRITON_INTERPRET', '1')

sys.path.insert(0, str(Path(__file__).parent))

import kill_and_resume

from basicsr.utils.logger import get_logger


@pytest.fixture(autouse=True, scope='session')
def one_thread():
    """The tests are small: a second thread gains little, and on a busy machine each waits for the other."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope='session')
def interruptible():
    """A shell starts what it does in the background deaf to Ctrl-C, and what that starts is deaf, too."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope='session')
def forked_workers():
    """What a test has changed is so in its workers, too. Python 3.14 does not fork by itself."""
    if 'fork' in multiprocessing.get_all_start_methods():
        multiprocessing.set_start_method('fork', force=True)


@pytest.fixture(autouse=True)
def own_log():
    """Restore the handlers and the level that a program changes."""
    logger = get_logger()
    handlers, propagate, level = [*logger.handlers], logger.propagate, logger.level
    yield
    logger.handlers[:], logger.propagate = handlers, propagate
    logger.setLevel(level)


@pytest.fixture
def small_files(monkeypatch):
    """`small_files(n)`: within that, no file can be longer than n bytes, as on a full disk."""
    # Python 3.11 would keep half of a compiled module and take it for whole.
    monkeypatch.setattr(sys, 'dont_write_bytecode', True)

    @contextlib.contextmanager
    def small_files(size):
        usual, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (usual, most))

    return small_files


@pytest.fixture
def runs(tmp_path):
    """Makes option files of short runs; their folders in experiments/ and results/ are removed at the end."""
    made = kill_and_resume.Runs(tmp_path)
    yield made
    made.clean()
