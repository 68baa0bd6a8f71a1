"""Restormer and what it takes to train, test and use it. See README.md."""

from basicsr.version import __version__

__all__ = ['__version__']
