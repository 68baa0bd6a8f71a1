"""One image in, one image out."""

from basicsr.inference.restorer import RestoreError, Restorer, restore_tensor

__all__ = ['RestoreError', 'Restorer', 'restore_tensor']
