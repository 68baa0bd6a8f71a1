"""Encoded images as arrays for datasets."""

from __future__ import annotations

import contextlib
import io

import cv2
import numpy as np
import PIL.Image

from basicsr.utils.errors import DataError

IMAGE_SUFFIXES = ('.png', '.jpg', '.jpeg', '.jpe', '.jfif', '.bmp', '.tif', '.tiff', '.webp')


_TIFF_STARTS = (b'II', b'MM')


_TIFF_BITS = 258  # the tag


def decode(encoded: bytes, where: str, channels: int) -> np.ndarray:
    """(H, W, channels) uint8 or uint16, upright, RGB order, without alpha. A view: not contiguous.
    Raises DataError if it is no whole image."""
    # Not IMREAD_GRAYSCALE: each file format has weights of its own for that.
    colour = cv2.IMREAD_COLOR if channels == 3 else cv2.IMREAD_ANYCOLOR
    try:
        pixels = _decode_tiff_with_alpha(encoded)
        if pixels is None:
            pixels = cv2.imdecode(np.frombuffer(encoded, np.uint8), colour | cv2.IMREAD_ANYDEPTH)
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            raise DataError(f'{where}: cannot be decoded in the memory there is') from None
        pixels = None
    if pixels is None or _is_cut_jpeg(encoded):
        raise DataError(f'{where}: is empty, cut short, or not an image')
    if pixels.dtype not in (np.uint8, np.uint16):
        raise DataError(f'{where}: found pixels of type {pixels.dtype}; allowed: 8 or 16 bit')
    if channels == 3:
        return pixels[:, :, ::-1]
    return (pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY))[:, :, None]


def _decode_tiff_with_alpha(encoded: bytes) -> np.ndarray | None:
    """(H, W, 3) in BGR order if it is an 8-bit TIFF with alpha, by which OpenCV would multiply the colours."""
    if encoded[:2] not in _TIFF_STARTS:
        return None
    with contextlib.suppress(Exception), PIL.Image.open(io.BytesIO(encoded), formats=['TIFF']) as image:
        if image.mode == 'RGBA' and max(image.tag_v2[_TIFF_BITS]) == 8:
            return np.asarray(image.convert('RGB'))[:, :, ::-1]
    return None  # whatever is wrong with the file, OpenCV will say


def _is_cut_jpeg(encoded: bytes) -> bool:
    """Whether the mark at the end of the pixels is missing. OpenCV 4 does not mind, and fills with grey."""
    if not encoded.startswith(b'\xff\xd8'):
        return False
    place = 2
    while (mark := encoded[place : place + 2]) not in (b'\xff\xda', b''):  # where the pixels begin
        is_filler = mark == b'\xff\xff'
        place += 1 if is_filler else 2 + int.from_bytes(encoded[place + 2 : place + 4], 'big')
    return encoded.rfind(b'\xff\xd9', place) < 0
