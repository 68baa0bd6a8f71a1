"""Images as PNG files."""

from __future__ import annotations

import os
import struct
import zlib

import cv2
import numpy as np

from basicsr.images import png
from basicsr.utils.errors import ImageFileError
from basicsr.utils.files import atomic_write


def write_png(
    path: str | os.PathLike[str],
    pixels: np.ndarray,
    icc_profile: bytes | None = None,
    colour_chunks: bytes = b'',
) -> None:
    """Writes an `Image` atomically: the old file stays until the new one is complete. The profile is embedded if it is
    for the image's colour space.

    Raises ImageFileError if the file cannot be written, ValueError on other shapes or types of array.
    """
    check_pixels(pixels)
    try:
        data = _encode(np.ascontiguousarray(pixels))
        if icc_profile and icc_profile[16:20] == (b'RGB ' if pixels.shape[2:] in ((3,), (4,)) else b'GRAY'):
            colour_chunks += png.chunk(b'iCCP', b'ICC profile\0\0' + zlib.compress(icc_profile))
        atomic_write(path, data[: png.HEADER_END] + colour_chunks + data[png.HEADER_END :])
    except OSError as error:
        raise ImageFileError(f'{path}: cannot be written: {error.strerror or error}') from error
    except cv2.error as error:
        raise ImageFileError(f'{path}: cannot be written: {error.err}') from error


def check_pixels(pixels: np.ndarray) -> None:
    """Raises ValueError unless the array is as in `Image`."""
    shape = pixels.shape
    if not (pixels.ndim == 2 or (pixels.ndim == 3 and shape[2] in (2, 3, 4))) or 0 in shape:
        raise ValueError(
            f'image: found an array of shape {shape}; allowed: (H, W), (H, W, 2), (H, W, 3), (H, W, 4), not empty'
        )
    if pixels.dtype not in (np.uint8, np.uint16):
        convert = '; for [0, 1]: np.round(255 * image).astype(np.uint8)' if pixels.dtype.kind == 'f' else ''
        raise ValueError(f'image: found an array of {pixels.dtype}; allowed: uint8, uint16{convert}')


def _encode(pixels: np.ndarray) -> bytes:
    height, width, *channels = pixels.shape
    if channels == [2]:
        return _encode_grey_alpha(pixels)
    if channels:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR if channels == [3] else cv2.COLOR_RGBA2BGRA)
    done, data = cv2.imencode('.png', pixels)
    if not done:
        raise OSError(f'OpenCV cannot write a PNG of {width}×{height} pixels')
    return data.tobytes()


def _encode_grey_alpha(pixels: np.ndarray) -> bytes:
    """Neither OpenCV nor Pillow can write this with 16 bits."""
    height, width, _ = pixels.shape
    rows = pixels.astype(pixels.dtype.newbyteorder('>')).view(np.uint8).reshape(height, -1)
    up = np.diff(rows, axis=0, prepend=np.zeros_like(rows[:1]))  # filter type 2
    header = struct.pack('>IIBBBBB', width, height, 8 * pixels.itemsize, png.GREY_ALPHA, 0, 0, 0)
    body = zlib.compress(np.insert(up, 0, 2, axis=1).tobytes())
    return png.SIGNATURE + png.chunk(b'IHDR', header) + png.chunk(b'IDAT', body) + png.chunk(b'IEND', b'')
