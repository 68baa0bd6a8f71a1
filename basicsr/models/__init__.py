"""One training step: models, optimizers, learning-rate schedules. Files named `*_model.py` register themselves."""
