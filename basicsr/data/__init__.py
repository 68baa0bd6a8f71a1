"""Pairs of images in, batches of tensors out. Importing this package registers every dataset in it."""

from basicsr.data import paired_image_dataset

__all__ = ['paired_image_dataset']
