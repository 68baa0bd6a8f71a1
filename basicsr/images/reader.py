"""Image files in, PNG files out: every orientation, depth, palette and profile that photographs come in.

Pillow reads, as it knows all of those and reports a file that is cut short; OpenCV is used where Pillow keeps
only 8 bits of 16, and to write, for the same reason (but for grey with alpha, which it cannot).
"""

from __future__ import annotations

import io
import os
import stat
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import PIL.PngImagePlugin
import torch

from basicsr.images.decode import IMAGE_SUFFIXES
from basicsr.utils.errors import ImageFileError
from basicsr.utils.memory import free_memory
from basicsr.utils.overrides import Overrides

_KINDS = ', '.join(suffix[1:] for suffix in IMAGE_SUFFIXES)
_FORMATS = ('PNG', 'JPEG', 'BMP', 'TIFF', 'WEBP')  # Pillow's names of those

# Also OpenCV's own limit. A larger one is a mistake or an attack, as it unpacks to several GB.
MAX_PIXELS = 1 << 30


_EXIF_ORIENTATION = 0x0112
_TIFF_BITS, _TIFF_PHOTOMETRIC, _TIFF_SAMPLES, _TIFF_PLANAR = 258, 262, 277, 284  # tags
_TIFF_EXTRA_SAMPLES, _TIFF_SAMPLE_FORMAT = 338, 339
_TIFF_WHITE_IS_ZERO = 0
_TIFF_NO_MEANING, _TIFF_MULTIPLIED = (
    0,
    1,
)  # of an extra sample: no alpha, and alpha by which colours are multiplied
_PNG_DEPTH, _PNG_COLOUR_TYPE = 24, 25  # places in the file: the header is the first chunk, and of fixed size
_PNG_GREY_ALPHA = 4
_TIFF_DATA = ((273, 279), (324, 325))  # of offsets and sizes: strips, tiles
_UPRIGHT = {  # EXIF orientation → what turns the stored pixels upright
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: np.rot90(pixels),
}


@dataclass(frozen=True, eq=False)
class Image:
    """`pixels` (H, W), (H, W, 2) grey and alpha, (H, W, 3) or (H, W, 4); uint8 or uint16, RGB order, upright and
    contiguous."""

    pixels: np.ndarray
    icc_profile: bytes | None = None


def read_image(path: str | os.PathLike[str]) -> Image:
    """First frame of an image file. Palettes, CMYK and the like become RGB, transparency of any kind an alpha
    channel.

    Raises ImageFileError if it is no image, is damaged or cut short, has other than 8 or 16 bits a channel, or does
    not fit into the memory that is free.
    """
    path = Path(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe may never end
            raise ImageFileError(f'{path} cannot be read: it is no regular file')
        free = free_memory(torch.device('cpu'))
        if free is not None and path.stat().st_size > free:
            raise MemoryError
        data = path.read_bytes()
    except OSError as error:
        raise ImageFileError(f'{path} cannot be read: {error.strerror or error}') from error
    except MemoryError:
        raise ImageFileError(f'{path} does not fit into memory') from None
    if not data:
        raise ImageFileError(f'{path} is empty')
    try:
        # Without formats that run a program (PostScript).
        with _NO_LIMITS.within(), PIL.Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ImageFileError(f'{path} has {image.width}×{image.height} pixels; allowed: {MAX_PIXELS:,}')
            deep = _is_deep(image, data)
            _check_room(image, deep)
            image.load()
            pixels = _decode_deep(data, image) if deep else _to_array(image, data)
            pixels = np.ascontiguousarray(_UPRIGHT.get(_orientation(image), np.asarray)(pixels))
            icc_profile = image.info.get('icc_profile')
    except ImageFileError:
        raise
    except _Unsupported as error:
        raise ImageFileError(f'{path} has {error}; allowed: 8 or 16 bits a channel, grey or RGB') from None
    except PIL.UnidentifiedImageError:
        raise ImageFileError(
            f'{path} is not an image that can be read; allowed: {_KINDS}, 8 or 16 bits'
        ) from None
    except MemoryError:
        raise ImageFileError(f'{path} does not fit into memory') from None
    except Exception as error:  # the bytes decide what fails in a decoder, so it can be nearly anything
        raise ImageFileError(f'{path} is damaged or cut short ({error})') from error
    return Image(pixels, icc_profile or None)


class _Unsupported(Exception):  # noqa: N818
    """Well-formed, but of a kind that has no place in an 8- or 16-bit PNG."""


# Pillow's limits, of a whole process: 179 million pixels, which real photographs exceed, and 1 MB of colour profile or
# text in a PNG.
_NO_LIMITS = Overrides(
    (PIL.Image, 'MAX_IMAGE_PIXELS', None),
    (PIL.PngImagePlugin, 'MAX_TEXT_CHUNK', 1 << 26),
    (PIL.PngImagePlugin, 'MAX_TEXT_MEMORY', 1 << 28),
)


def _check_room(image: PIL.Image.Image, deep: bool) -> None:
    """Raises MemoryError: Linux would kill, not raise."""
    free = free_memory(torch.device('cpu'))
    bands = len(image.getbands())
    stored = 1 if bands == 1 else 4  # bytes of a pixel in Pillow
    if deep:
        needed = stored + 6 * bands  # what OpenCV decodes, and copies of it in another order
    elif image.mode in ('L', 'RGB', 'RGBA'):
        needed = stored + 2 * bands  # Pillow copies in pieces, and joins them
    else:
        needed = stored + 4 + 2 * 4
    if free is not None and needed * image.width * image.height > free:
        raise MemoryError


def _orientation(image: PIL.Image.Image) -> int:
    """1 is upright. To be asked for after load(), which turns a TIFF upright and forgets that it did; so does
    OpenCV."""
    try:
        return image.getexif().get(_EXIF_ORIENTATION, 1)
    except (
        Exception
    ):  # whatever the bytes make of a parser: broken EXIF data say nothing, and the pixels are whole
        return 1


def _is_deep(image: PIL.Image.Image, data: bytes) -> bool:
    """Whether the file has 16 bits a channel, which Pillow's modes do not tell."""
    if image.format == 'PNG':
        return data[_PNG_DEPTH] == 16
    if image.format != 'TIFF':
        return False
    tags = image.tag_v2
    bits = max(tags.get(_TIFF_BITS, (1,)))
    if bits > 16 or set(tags.get(_TIFF_SAMPLE_FORMAT, (1,))) != {1}:
        raise _Unsupported('signed, floating-point or 32-bit channels')
    if bits > 8:
        if tags.get(_TIFF_PLANAR, 1) != 1 and tags.get(_TIFF_SAMPLES, 1) > 1:
            raise _Unsupported('16-bit channels in separate planes')
        # Pillow reads such files only in part, so it may not miss what a cut took.
        for offsets, sizes in _TIFF_DATA:
            pieces = zip(tags.get(offsets, ()), tags.get(sizes, ()), strict=False)  # sizes may be left out
            if any(start + size > len(data) for start, size in pieces):
                raise EOFError('its last pixels are missing')
    return bits > 8


def _to_array(image: PIL.Image.Image, data: bytes) -> np.ndarray:
    grey = image.mode in ('1', 'L', 'LA', 'La')
    if image.format == 'PNG' and image.mode == 'L' and isinstance(image.info.get('transparency'), int):
        # The grey that is transparent: as in the file, where 2 and 4 bits count to 3 and 15.
        image.info['transparency'] *= 255 // ((1 << data[_PNG_DEPTH]) - 1)
    mode = ('L' if grey else 'RGB') + 'A' * image.has_transparency_data
    return np.asarray(image if image.mode == mode else image.convert(mode))


def _decode_deep(data: bytes, image: PIL.Image.Image) -> np.ndarray:
    """What Pillow knows of the file decides: OpenCV would return four inks as if they were red, green, blue and
    alpha."""
    if image.mode in ('CMYK', 'LAB', 'YCbCr'):
        raise _Unsupported(f'16-bit {image.mode} channels')
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16:
        raise _Unsupported('channels of an uncommon kind')
    if pixels.ndim == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB if pixels.shape[2] == 3 else cv2.COLOR_BGRA2RGBA)
    return _meant_by_tiff(pixels, image) if image.format == 'TIFF' else _meant_by_png(pixels, image, data)


def _meant_by_png(pixels: np.ndarray, image: PIL.Image.Image, data: bytes) -> np.ndarray:
    transparent = image.info.get('transparency')
    if pixels.ndim == 2 and isinstance(transparent, int):  # a level of grey, which OpenCV does not look at
        return np.stack([pixels, np.where(pixels == transparent, 0, 65535).astype(np.uint16)], axis=2)
    return pixels[..., [0, 3]] if data[_PNG_COLOUR_TYPE] == _PNG_GREY_ALPHA else pixels


def _meant_by_tiff(pixels: np.ndarray, image: PIL.Image.Image) -> np.ndarray:
    tags = image.tag_v2  # type: ignore[attr-defined]
    if pixels.ndim == 2:
        return 65535 - pixels if tags.get(_TIFF_PHOTOMETRIC) == _TIFF_WHITE_IS_ZERO else pixels
    extra = tags.get(_TIFF_EXTRA_SAMPLES, ())
    if pixels.shape[2] == 4 and extra[:1] == (_TIFF_NO_MEANING,):
        return pixels[..., :3]
    if pixels.shape[2] == 4 and extra[:1] == (_TIFF_MULTIPLIED,):
        alpha = pixels[..., 3:].astype(np.float32)
        colours = pixels[..., :3] * (65535 / np.where(alpha, alpha, np.inf))
        pixels[..., :3] = colours.round().clip(0, 65535)
    return pixels
