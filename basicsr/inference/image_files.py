"""Image files in, PNG files out: every orientation, depth, palette and profile that photographs come in.

Pillow reads, as it knows all of those and reports a file that is cut short; OpenCV is used where Pillow keeps
only 8 bits of 16, and to write, for the same reason.
"""

from __future__ import annotations

import io
import os
import struct
import threading
import unicodedata
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
from natsort import natsorted

from basicsr.data.sources import IMAGE_SUFFIXES
from basicsr.utils.files import atomic_write

_KINDS = ', '.join(suffix[1:] for suffix in IMAGE_SUFFIXES)
_FORMATS = ('PNG', 'JPEG', 'BMP', 'TIFF', 'WEBP')  # Pillow's names of those

# Also OpenCV's own limit. A larger one is a mistake or an attack, as it unpacks to several GB.
MAX_PIXELS = 1 << 30

_EXIF_ORIENTATION = 0x0112
_TIFF_BITS, _TIFF_SAMPLE_FORMAT = 258, 339  # tags
_TIFF_DATA = ((273, 279), (324, 325))  # of offsets and sizes: strips, tiles
_ICC_SPACE = {2: b'GRAY', 3: b'RGB '}  # of the profile that pixels with so many axes may have
_UPRIGHT = {  # EXIF orientation → what turns the stored pixels upright
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: np.rot90(pixels),
}


class ImageFileError(ValueError):
    """An image that cannot be read or written, or a place without images."""


@dataclass(frozen=True, eq=False)
class Image:
    """`pixels` (H, W), (H, W, 3) or (H, W, 4), uint8 or uint16, RGB order, upright and contiguous."""

    pixels: np.ndarray
    icc_profile: bytes | None = None


def read_image(path: str | os.PathLike[str]) -> Image:
    """First frame of an image file. Palettes, CMYK and the like become RGB, transparency of any kind an alpha
    channel.

    Raises ImageFileError if it is no image, is damaged or cut short, or has other than 8 or 16 bits a channel.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ImageFileError(f'{path} cannot be read: {error.strerror or error}') from error
    if not data:
        raise ImageFileError(f'{path} is empty')
    try:
        with _open(data) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ImageFileError(f'{path} has {image.width}×{image.height} pixels; allowed: {MAX_PIXELS:,}')
            deep = _is_deep(image, data)
            image.load()
            pixels = _decode_deep(data, image.mode) if deep else _to_array(image)
            # After load(), which turns a TIFF upright and forgets its orientation. So does OpenCV.
            pixels = _UPRIGHT.get(image.getexif().get(_EXIF_ORIENTATION, 1), np.asarray)(pixels)
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
    return Image(np.ascontiguousarray(pixels), icc_profile or None)


class _Unsupported(Exception):  # noqa: N818
    """Well-formed, but of a kind that has no place in an 8- or 16-bit PNG."""


_open_lock = threading.Lock()  # the limit that _open changes for a moment is the whole process's


def _open(data: bytes) -> PIL.Image.Image:
    """Header only. Without Pillow's limit of 179 million pixels, which real photographs exceed, and without
    formats that run a program (PostScript)."""
    with _open_lock:
        limit, PIL.Image.MAX_IMAGE_PIXELS = PIL.Image.MAX_IMAGE_PIXELS, None
        try:
            return PIL.Image.open(io.BytesIO(data), formats=_FORMATS)
        finally:
            PIL.Image.MAX_IMAGE_PIXELS = limit


def _is_deep(image: PIL.Image.Image, data: bytes) -> bool:
    """Whether the file has 16 bits a channel, which Pillow's modes do not tell."""
    if image.format == 'PNG':
        return data[24] == 16  # the bit depth's place in the header is fixed
    if image.format != 'TIFF':
        return False
    tags = image.tag_v2
    bits = max(tags.get(_TIFF_BITS, (1,)))
    if bits > 16 or set(tags.get(_TIFF_SAMPLE_FORMAT, (1,))) != {1}:
        raise _Unsupported('signed, floating-point or 32-bit channels')
    if bits > 8:
        # Pillow reads such files only in part, so it may not miss what a cut took.
        for offsets, sizes in _TIFF_DATA:
            pieces = zip(tags.get(offsets, ()), tags.get(sizes, ()), strict=False)  # sizes may be left out
            if any(start + size > len(data) for start, size in pieces):
                raise EOFError('its last pixels are missing')
    return bits > 8


def _to_array(image: PIL.Image.Image) -> np.ndarray:
    mode = 'RGBA' if image.has_transparency_data else 'L' if image.mode in ('1', 'L') else 'RGB'
    return np.asarray(image if image.mode == mode else image.convert(mode))


def _decode_deep(data: bytes, mode: str) -> np.ndarray:
    """`mode` is Pillow's: OpenCV would return four inks as if they were red, green, blue and alpha."""
    if mode in ('CMYK', 'LAB', 'YCbCr'):
        raise _Unsupported(f'16-bit {mode} channels')
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16:
        raise _Unsupported('channels of an uncommon kind')
    if pixels.ndim == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB if pixels.shape[2] == 3 else cv2.COLOR_BGRA2RGBA)
    return pixels[..., :3] if mode == 'RGBX' else pixels  # X is a fourth channel without a meaning


def write_png(path: str | os.PathLike[str], pixels: np.ndarray, icc_profile: bytes | None = None) -> None:
    """`pixels` as in `Image`. Atomic: an old file stays whole until the new one is. The profile is embedded if
    it is of the image's colour space (the profile of a CMYK file does not describe the RGB that it became).

    Raises ImageFileError if the file cannot be written, ValueError on other shapes or types of array.
    """
    check_pixels(pixels)
    bgr = np.ascontiguousarray(pixels)
    if pixels.ndim == 3:
        bgr = cv2.cvtColor(bgr, cv2.COLOR_RGB2BGR if pixels.shape[2] == 3 else cv2.COLOR_RGBA2BGRA)
    try:
        data = cv2.imencode('.png', bgr)[1].tobytes()
        if icc_profile and icc_profile[16:20] == _ICC_SPACE[pixels.ndim]:
            data = _with_profile(data, icc_profile)
        atomic_write(path, data)
    except OSError as error:
        raise ImageFileError(f'{path} cannot be written: {error.strerror or error}') from error
    except cv2.error as error:
        raise ImageFileError(f'{path} cannot be written: {error.err}') from error


def check_pixels(pixels: np.ndarray) -> None:
    """Raises ValueError unless the array is as in `Image`."""
    shape = pixels.shape
    if not (pixels.ndim == 2 or (pixels.ndim == 3 and shape[2] in (3, 4))) or 0 in shape:
        raise ValueError(
            f'image: found an array of shape {shape}; allowed: (H, W), (H, W, 3), (H, W, 4), not empty'
        )
    if pixels.dtype not in (np.uint8, np.uint16):
        raise ValueError(f'image: found an array of {pixels.dtype}; allowed: uint8, uint16')


def _with_profile(png: bytes, icc_profile: bytes) -> bytes:
    """Inserts an iCCP chunk after the header, which always takes the first 33 bytes."""
    body = b'iCCP' + b'ICC profile\0' + b'\0' + zlib.compress(icc_profile)
    chunk = struct.pack('>I', len(body) - 4) + body + struct.pack('>I', zlib.crc32(body))
    return png[:33] + chunk + png[33:]


def list_images(file_or_folder: str | os.PathLike[str]) -> list[Path]:
    """The file itself, of whatever name, or the folder's images in natural order (2 before 10), without hidden
    ones and those of folders in it. Raises ImageFileError if there are none."""
    path = Path(file_or_folder)
    try:
        if not path.is_dir():
            if not path.exists():
                raise ImageFileError(f'{path}: there is no such file or folder')
            return [path]
        found = [
            file
            for file in sorted(path.iterdir())
            if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith('.') and not file.is_dir()
        ]
    except OSError as error:
        raise ImageFileError(f'{path} cannot be read: {error.strerror or error}') from error
    if not found:
        raise ImageFileError(f'{path} has no images in it; allowed: {_KINDS}')
    return natsorted(found, key=lambda file: file.name)


def output_names(paths: Iterable[Path]) -> dict[Path, str]:
    """A PNG file name for each path: `<stem>.png`, or `<stem>.<ext>.png` where stems collide, or, where even
    those do, a number more. No two are the same file, on a file system that ignores letter case either."""
    paths = list(dict.fromkeys(paths))
    stems = [_folded(path.stem) for path in paths]
    names: dict[Path, str] = {}
    taken: set[str] = set()
    for path, stem in zip(paths, stems, strict=True):
        base = path.stem if stems.count(stem) == 1 else path.name
        name, number = f'{base}.png', 1
        while _folded(name) in taken:
            number += 1
            name = f'{base}-{number}.png'
        taken.add(_folded(name))
        names[path] = name
    return names


def _folded(name: str) -> str:
    """The same for two names that some file system takes for one."""
    return unicodedata.normalize('NFC', name.casefold())
