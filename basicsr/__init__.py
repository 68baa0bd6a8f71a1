"""Restormer: networks, training and inference for image restoration. See README.md."""

from basicsr.version import __version__

__all__ = ['__version__']
