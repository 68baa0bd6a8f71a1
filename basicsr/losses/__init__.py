"""Losses. Importing this package registers every loss in it."""

from basicsr.losses import pixel_loss

__all__ = ['pixel_loss']
