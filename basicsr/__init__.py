"""Restormer and what it takes to train, test and use it. See README.md."""

import os

from basicsr.version import __version__

__all__ = ['__version__']

# OpenMP reads this when PyTorch is imported. A thread that waits for the others spins, by default for so long that on
# a machine with other work it holds the very processor that they need: everything takes ten times as long, or more.
# So many turns and then sleep costs about 1 % on an idle machine.
if 'OMP_WAIT_POLICY' not in os.environ:
    os.environ.setdefault('GOMP_SPINCOUNT', '1000')
