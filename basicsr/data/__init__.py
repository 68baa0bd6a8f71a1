"""Pairs of images in, batches of tensors out. Files named `*_dataset.py` register themselves."""
