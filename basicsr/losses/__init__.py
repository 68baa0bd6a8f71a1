"""Losses. Files named `*_loss.py` register themselves."""
