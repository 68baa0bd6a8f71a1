"""Training: the step, the schedule, validation, the run's folder. Importing this package registers the models."""

from basicsr.models import image_clean_model

__all__ = ['image_clean_model']
