"""Restore a set of images, measure it, report it."""
