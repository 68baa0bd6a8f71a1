"""Images as PNG files."""

from __future__ import annotations

import io
import os
import struct
import zlib

import cv2
import numpy as np
import PIL.Image
import PIL.PngImagePlugin

from basicsr.utils.errors import ImageFileError
from basicsr.utils.files import atomic_write


def write_png(path: str | os.PathLike[str], pixels: np.ndarray, icc_profile: bytes | None = None) -> None:
    """`pixels` as in `Image`. Atomic: an old file stays whole until the new one is. The profile is embedded if
    it is of the image's colour space (the profile of a CMYK file does not describe the RGB that it became). Grey with
    alpha of 16 bits becomes RGB with alpha, as no library here writes it.

    Raises ImageFileError if the file cannot be written, ValueError on other shapes or types of array.
    """
    check_pixels(pixels)
    try:
        data, space = _encoded(np.ascontiguousarray(pixels))
        if icc_profile and icc_profile[16:20] == space:
            data = _with_profile(data, icc_profile)
        atomic_write(path, data)
    except OSError as error:
        raise ImageFileError(f'{path} cannot be written: {error.strerror or error}') from error
    except cv2.error as error:
        raise ImageFileError(f'{path} cannot be written: {error.err}') from error


def _encoded(pixels: np.ndarray) -> tuple[bytes, bytes]:
    """The file, and the colour space that its profile may be of."""
    grey = pixels.ndim == 2 or pixels.shape[2] == 2
    if pixels.ndim == 3 and grey:
        if pixels.dtype == np.uint8:
            file = io.BytesIO()
            PIL.Image.fromarray(pixels, 'LA').save(file, 'PNG')
            return file.getvalue(), b'GRAY'
        pixels, grey = pixels[..., [0, 0, 0, 1]], False
    if not grey:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR if pixels.shape[2] == 3 else cv2.COLOR_RGBA2BGRA)
    done, data = cv2.imencode('.png', pixels)
    if not done:
        height, width = pixels.shape[:2]
        raise OSError(f'OpenCV writes no PNG of {width}×{height} pixels')
    return data.tobytes(), b'GRAY' if grey else b'RGB '


def check_pixels(pixels: np.ndarray) -> None:
    """Raises ValueError unless the array is as in `Image`."""
    shape = pixels.shape
    if not (pixels.ndim == 2 or (pixels.ndim == 3 and shape[2] in (2, 3, 4))) or 0 in shape:
        raise ValueError(
            f'image: found an array of shape {shape}; allowed: (H, W), (H, W, 2), (H, W, 3), (H, W, 4), not empty'
        )
    if pixels.dtype not in (np.uint8, np.uint16):
        raise ValueError(f'image: found an array of {pixels.dtype}; allowed: uint8, uint16')


def _with_profile(png: bytes, icc_profile: bytes) -> bytes:
    """Inserts an iCCP chunk after the header, which always takes the first 33 bytes."""
    body = b'iCCP' + b'ICC profile\0' + b'\0' + zlib.compress(icc_profile)
    chunk = struct.pack('>I', len(body) - 4) + body + struct.pack('>I', zlib.crc32(body))
    return png[:33] + chunk + png[33:]
