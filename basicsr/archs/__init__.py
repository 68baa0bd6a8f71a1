"""Networks. Importing this package registers every architecture in it."""

from basicsr.archs import restormer_arch

__all__ = ['restormer_arch']
