"""Metrics. Importing this package registers every metric in it."""

from basicsr.metrics import psnr_ssim

__all__ = ['psnr_ssim']
