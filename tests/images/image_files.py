"""Image files that are written out for tests, and what both ways of reading must give."""

import io
import struct
import zlib

import cv2
import numpy as np
import PIL.Image
import pytest
import tifffile

from basicsr.images.reader import decode_image, read_image
from basicsr.utils.errors import DataError, ImageFileError

RNG = np.random.default_rng(0)
GREY = cv2.resize(RNG.integers(0, 256, (4, 6), np.uint8), (30, 20), interpolation=cv2.INTER_CUBIC)
RGB = cv2.resize(RNG.integers(0, 256, (4, 6, 3), np.uint8), (30, 20), interpolation=cv2.INTER_CUBIC)
RGBA = np.dstack([RGB, GREY])
GREY_ALPHA = np.dstack([GREY, 255 - GREY])
KINDS = {'grey': GREY, 'grey alpha': GREY_ALPHA, 'rgb': RGB, 'rgba': RGBA}
LUMA = np.array([0.299, 0.587, 0.114])


def deep(pixels):
    """16 bits, not all of them 257 times 8 bits."""
    return pixels.astype(np.uint16) * 257 - (pixels > 9)


def pillow(image, kind, **options):
    file = io.BytesIO()
    image = PIL.Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image.save(file, kind, **options)
    return file.getvalue()


def tiff(pixels, **options):
    """A TIFF by tifffile; (H, W, samples), or (samples, H, W) with planarconfig='separate'."""
    file = io.BytesIO()
    channels = 1 if pixels.ndim == 2 else pixels.shape[0 if options.get('planarconfig') == 'separate' else 2]
    options.setdefault('photometric', 'rgb' if channels > 2 else 'minisblack')
    if channels in (2, 4):
        options.setdefault('extrasamples', ['unassalpha'])
    tifffile.imwrite(file, pixels, **options)
    return file.getvalue()


def chunk(kind, body):
    return struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))


COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # by number of channels


def png(pixels, *chunks, after=b'', depth=None, colour_type=0):
    """A PNG written out: unfiltered rows, `chunks` before the pixels, `after` behind them. Without `depth`, `pixels`
    are uint8 or uint16; else rows of packed samples."""
    if depth is None:
        height, width, *channels = pixels.shape
        depth, colour_type = 8 * pixels.itemsize, COLOUR_TYPES[(channels or [1])[0]]
        rows = [row.astype(pixels.dtype.newbyteorder('>')).tobytes() for row in pixels]
    else:
        rows = [bytes(row) for row in pixels]
        height, width = len(rows), 8 * len(rows[0]) // depth
    header = struct.pack('>IIBBBBB', width, height, depth, colour_type, 0, 0, 0)
    parts = [chunk(b'IHDR', header), *chunks, chunk(b'IDAT', compressed(rows)), after, chunk(b'IEND', b'')]
    return b'\x89PNG\r\n\x1a\n' + b''.join(parts)


def compressed(rows):
    return zlib.compress(b''.join(b'\0' + row for row in rows))


def check(data, expected, tolerance=0):
    """The demo gets all of it, datasets its colours or grey."""
    found = decode_image(data, 'a').pixels
    assert found.dtype == expected.dtype and found.flags.c_contiguous
    assert found.shape == expected.shape
    np.testing.assert_allclose(found.astype(int), expected, atol=tolerance, rtol=0)
    colours = expected if expected.ndim == 3 else expected[..., None]
    colours = colours[..., : 3 if colours.shape[2] > 2 else 1]
    rgb, grey = (decode_image(data, 'a', channels).pixels for channels in (3, 1))
    assert rgb.dtype == grey.dtype == expected.dtype
    assert rgb.shape == (*colours.shape[:2], 3) and grey.shape == (*colours.shape[:2], 1)
    np.testing.assert_allclose(rgb.astype(int), np.broadcast_to(colours, rgb.shape), atol=tolerance, rtol=0)
    luma = colours @ LUMA if colours.shape[2] == 3 else colours[..., 0].astype(float)
    # Rounded, with weights in fixed point.
    assert np.abs(grey[..., 0] - luma).max() <= tolerance + (0.51 if expected.dtype == np.uint8 else 2)


def refusal(act):
    """The message of the error that `act` must raise."""
    with pytest.raises(ImageFileError) as caught:
        act()
    assert isinstance(caught.value, DataError)
    assert '\n' not in str(caught.value)
    return str(caught.value)


def refused(data):
    """Why bytes are refused, by both ways of reading."""
    sentences = {refusal(lambda: decode_image(data, 'x.png', channels)) for channels in (None, 3, 1)}  # noqa: B023
    (sentence,) = sentences
    assert sentence.startswith('x.png: ')
    return sentence.removeprefix('x.png: ')


def read(path):
    return read_image(path).pixels
