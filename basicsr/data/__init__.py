"""Pairs of images in, batches of tensors out. Importing this package registers every dataset in it."""

from basicsr.data import packed_image_dataset, paired_image_dataset, synthetic_blur_dataset

__all__ = ['packed_image_dataset', 'paired_image_dataset', 'synthetic_blur_dataset']
