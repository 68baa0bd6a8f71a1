"""One image in, one image out."""

from basicsr.inference.restorer import Restorer, restore_tensor
from basicsr.utils.errors import RestoreError

__all__ = ['RestoreError', 'Restorer', 'restore_tensor']
