"""The one reader of image files: for the demo, training, validation, testing and evaluation.

Pillow opens the files, as it knows their orientations, palettes and colour profiles. OpenCV decodes the pixels of PNG,
of which Pillow would keep 8 bits, and of JPEG, for which it gives the same pixels in half the time.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.util
import io
import os
import re
import stat
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL.Image
import PIL.PngImagePlugin
import torch
from PIL import ImageCms

from basicsr.images import bmp, png, tiff
from basicsr.utils.errors import ImageFileError
from basicsr.utils.memory import free_memory
from basicsr.utils.overrides import Overrides

warnings.filterwarnings('ignore', module='PIL')  # about damaged metadata

IMAGE_SUFFIXES: tuple[str, ...] = ('.png', '.jpg', '.jpeg', '.jpe', '.jfif', '.bmp', '.tif', '.tiff', '.webp')
_FORMATS = ['PNG', 'JPEG', 'BMP', 'TIFF', 'WEBP']  # their names in Pillow
if importlib.util.find_spec('pillow_heif'):  # as in the extra `heif`
    importlib.import_module('pillow_heif').register_heif_opener()
    IMAGE_SUFFIXES += ('.heic', '.heif')
    _FORMATS.append('HEIF')
KINDS = ', '.join(suffix[1:] for suffix in IMAGE_SUFFIXES)

MAX_PIXELS = 1 << 30  # OpenCV's limit; a larger file is a mistake or an attack
_SMALL = 1 << 26  # bytes; asking how much memory is free takes longer than decoding a small image

_EXIF_ORIENTATION = 0x0112
_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {  # orientation → turns the stored pixels upright
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: np.rot90(pixels),
}

_JPEG, _JPEG_END = b'\xff\xd8', b'\xff\xd9'
_JPEG_MARKER = re.compile(rb'\xff+([^\x00\xff])')
_JPEG_SCAN = 0xDA
_JPEG_WITHOUT_LENGTH = (0x01, *range(0xD0, 0xD9))
_JPEG_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_JPEG_PROCESSES = {0xF7: 'JPEG-LS', 0xCB: 'lossless arithmetic'} | dict.fromkeys(
    (0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF), 'hierarchical'
)

_HEIC = rb'....ftyp(?!mif1.{4,24}avif)(heic|heix|heim|heis|hevc|hevx|mif1|msf1)'
_SUPPORTED = rb'\x89PNG|\xff\xd8|BM|II[*+]\0(?!.{4}CR\x02)|MM\0[*+]|RIFF....WEBP'
if 'HEIF' in _FORMATS:
    _SUPPORTED += b'|' + _HEIC
_UNSUPPORTED = {  # start of a file → what it is
    _HEIC: 'a HEIC image; `pip install pillow-heif` makes it readable',
    rb'....ftyp(avi[fs]|mif1.{4,24}avif)': 'an AVIF image',
    rb'GIF8': 'a GIF image',
    rb'8BPS': 'a Photoshop file',
    rb'P[1-7]\s': 'a PNM image',
    rb'II\xbc': 'a JPEG XR image',
    rb'v/1\x01': 'an OpenEXR image',
    rb'....ftypcrx|II\*\0.{4}CR\x02|FUJIFILM|IIU\0|IIR[OS]': "a camera's raw file",
    rb'....ftyp|.{8}AVI ': 'a video',
    rb'%PDF': 'a PDF file',
    rb'....jP  |\xff\x4f\xff\x51': 'a JPEG 2000 image',
    rb'\xff\x0a|....JXL ': 'a JPEG XL image',
    rb'version https://git-lfs': 'a Git LFS pointer, not the image itself; `git lfs pull` downloads that',
    rb'(\xef\xbb\xbf)?\s*<[!?a-z]': 'a web page or XML, not an image: the download failed',
}


@dataclass(frozen=True, eq=False)
class Image:
    """Pixels, and what a PNG of them needs to show the same colours.

    pixels: (H, W), (H, W, 2) grey and alpha, (H, W, 3) or (H, W, 4); uint8 or uint16, RGB order, upright, contiguous,
        alpha not premultiplied.
    colour_chunks: the chunks of a PNG that describe its colour space (gAMA and the like), as they are in the file.
    """

    pixels: np.ndarray
    icc_profile: bytes | None = None
    colour_chunks: bytes = b''


def _silent_c_library() -> list[tuple[Any, str, Any]]:
    """Points stderr of the C library at /dev/null: libjpeg and libtiff print warnings there."""
    with contextlib.suppress(AttributeError, TypeError, ValueError):  # a C library without this name
        library = ctypes.CDLL(None)
        library.fopen.restype = ctypes.c_void_p
        if nowhere := library.fopen(os.devnull.encode(), b'w'):
            return [(ctypes.c_void_p.in_dll(library, 'stderr'), 'value', nowhere)]
    return []


# Settings of the process while it decodes. Real files exceed Pillow's limits: 179 million pixels, 1 MB of profile.
_SETTINGS = Overrides(
    (PIL.Image, 'MAX_IMAGE_PIXELS', None),
    (PIL.PngImagePlugin, 'MAX_TEXT_CHUNK', 1 << 26),
    (PIL.PngImagePlugin, 'MAX_TEXT_MEMORY', 1 << 28),
    *_silent_c_library(),
)


def read_image(path: str | os.PathLike[str]) -> Image:
    """Reads an image file; see `decode_image`."""
    path = Path(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe may never end
            raise ImageFileError(f'{path}: cannot be read: not a regular file')
        _check_room(path.stat().st_size)
        data = path.read_bytes()
    except OSError as error:
        raise ImageFileError(f'{path}: cannot be read: {error.strerror or error}') from error
    except MemoryError:
        raise ImageFileError(f'{path}: does not fit into memory') from None
    return decode_image(data, str(path))


def decode_image(data: bytes, name: str, channels: int | None = None) -> Image:
    """Decodes an image file (of an animation, its default image). Palettes, CMYK and the like become RGB,
    transparency of any kind an alpha channel.

    Args:
        name: the file, for messages.
        channels: 3 or 1 for pixels (H, W, channels): alpha is dropped without blending, grey is repeated, colours
            become 0.299 R + 0.587 G + 0.114 B. None: pixels as in the file.

    Raises ImageFileError if it is not an image, is damaged or cut short, has samples of other than 1 to 8 or 16 bits,
    or does not fit into free memory.
    """
    if not data:
        raise ImageFileError(f'{name}: is empty')
    try:
        with _SETTINGS.within():
            image = _decode(data)
    except NotImplementedError as error:
        raise ImageFileError(f'{name}: has {error}') from None
    except MemoryError:
        raise ImageFileError(f'{name}: does not fit into memory') from None
    except Exception as error:  # decoders raise anything, depending on the bytes
        raise ImageFileError(f'{name}: {_kind_of(data) or _damage(error)}') from None
    if channels is None:
        return image
    return Image(_with_channels(image.pixels, channels))


def _kind_of(data: bytes) -> str:
    """A predicate for a file that is not an image of a supported format, else ''."""
    if re.match(_SUPPORTED, data, re.DOTALL):
        return ''
    for start, kind in _UNSUPPORTED.items():
        if re.match(start, data, re.DOTALL | re.IGNORECASE):
            return f'is {kind}; allowed: {KINDS}'
    return f'is not an image; allowed: {KINDS}'


def _damage(error: Exception) -> str:
    if isinstance(error, PIL.UnidentifiedImageError):
        return 'is damaged or cut short'
    text = ' '.join(str(error).split())
    is_unsupported = text.startswith('Unsupported')  # the word of Pillow's decoders
    return f'is {"of a kind that is not supported" if is_unsupported else "damaged or cut short"} ({text})'


def _decode(data: bytes) -> Image:
    if data.startswith(tiff.SIGNATURES):
        tags = tiff.read_tags(data)
        if tiff.is_plain(tags):
            _check_size(*tiff.allocation(tags))
            pixels = _upright(tiff.decode(data, tags), tags.get(tiff.ORIENTATION, 1))
            return Image(pixels, tags.get(tiff.ICC_PROFILE))
    elif data.startswith(png.SIGNATURE):
        file = png.read_png(data)
        pixels_of = _by_pillow if file.colour_type == png.PALETTE else lambda _: _png_pixels(file)
        return replace(_open(file.data, pixels_of, file.depth), colour_chunks=file.colour_chunks)
    elif runs := bmp.read_header(data):
        _check_size(runs.width, runs.height, 1)
        data = bmp.without_runs(data, runs)
    elif data.startswith(_JPEG):
        data = _without_junk(data)
        return _open(data, lambda image: _by_opencv(data) if image.mode in ('L', 'RGB') else _by_pillow(image))
    return _open(data, _by_pillow)


def _open(data: bytes, pixels_of: Callable[[PIL.Image.Image], np.ndarray], depth: int = 8) -> Image:
    # Without PostScript, for which Pillow would run a program.
    with PIL.Image.open(io.BytesIO(data), formats=_FORMATS) as image:
        bands = 4 if image.mode == 'P' else len(image.getbands())
        _check_size(image.width, image.height, bands * max(depth // 8, 1))
        pixels = pixels_of(image)
        orientation = 1
        with contextlib.suppress(Exception):  # damaged EXIF data; the pixels are intact
            # Only now: Pillow turns TIFF upright while it decodes, and then forgets the orientation. Its method for
            # PNG would decode the pixels, too.
            orientation = PIL.Image.Image.getexif(image).get(_EXIF_ORIENTATION, 1)
        icc_profile = image.info.get('icc_profile') if image.mode != 'CMYK' else None
    return Image(_upright(pixels, orientation), icc_profile or None)


def _by_opencv(data: bytes) -> np.ndarray:
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            raise MemoryError from None
        pixels = None
    if pixels is None:
        raise ValueError('its pixels cannot be decoded')
    if pixels.ndim == 2:
        return pixels
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB if pixels.shape[2] == 3 else cv2.COLOR_BGRA2RGBA)


def _by_pillow(image: PIL.Image.Image) -> np.ndarray:
    if image.mode == 'CMYK':
        return np.asarray(_to_srgb(image))
    if image.mode not in ('1', 'L', 'LA', 'La', 'P', 'PA', 'RGB', 'RGBX', 'RGBA', 'RGBa', 'YCbCr'):
        raise NotImplementedError(f'channels of kind {image.mode}; {tiff.ALLOWED}')
    image.load()
    mode = ('L' if image.mode in ('1', 'L', 'LA', 'La') else 'RGB') + 'A' * image.has_transparency_data
    return np.asarray(image if image.mode == mode else image.convert(mode))


def _to_srgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """Converts CMYK by its profile, or by the plain formula if it has none that works."""
    with contextlib.suppress(ImageCms.PyCMSError):
        profile = ImageCms.getOpenProfile(io.BytesIO(image.info.get('icc_profile') or b''))
        converted = ImageCms.profileToProfile(image, profile, ImageCms.createProfile('sRGB'), outputMode='RGB')
        if converted is not None:
            return converted
    return image.convert('RGB')


def _png_pixels(file: png.PNG) -> np.ndarray:
    pixels = _by_opencv(file.data)
    if file.colour_type == png.GREY_ALPHA:
        return pixels[..., [0, 3]]
    if not file.transparent:
        return pixels
    full = np.iinfo(pixels.dtype).max
    levels = np.array(file.transparent) * (255 // ((1 << file.depth) - 1) if file.depth < 8 else 1)
    pixels = np.atleast_3d(pixels)
    alpha = np.where((pixels == levels).all(axis=2, keepdims=True), 0, full).astype(pixels.dtype)
    return np.concatenate([pixels, alpha], axis=2)


def _without_junk(data: bytes) -> bytes:
    """Removes the bytes between a JPEG's segments, which decoders warn of. Raises NotImplementedError if no decoder
    knows its compression; EOFError if its end is missing: decoders fill up with grey, or stop at a thumbnail's end."""
    parts, place = [data[:2]], 2
    while marker := _JPEG_MARKER.search(data, place):
        (code,) = marker[1]
        place = marker.end()
        if code == _JPEG_SCAN and data.rfind(_JPEG_END, place) >= 0:
            return b''.join([*parts, data[place - 2 :]])
        if code not in _JPEG_WITHOUT_LENGTH:
            size, depth = int.from_bytes(data[place : place + 2], 'big'), data[place + 2 : place + 3]
            if code in _JPEG_PROCESSES:
                raise NotImplementedError(f'{_JPEG_PROCESSES[code]} compression, which is not supported')
            if code in _JPEG_FRAMES and depth > b'\x08':
                raise NotImplementedError(f'{depth[0]}-bit channels; allowed: 8 bits a channel in JPEG')
            parts.append(data[place - 2 : place + size])
            place += size
    raise EOFError('its end is missing')


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    return np.ascontiguousarray(_UPRIGHT.get(orientation, np.asarray)(pixels))


def _with_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    if pixels.ndim == 2 or pixels.shape[2] == 2:
        grey = pixels if pixels.ndim == 2 else np.ascontiguousarray(pixels[..., 0])
        return grey[..., None] if channels == 1 else cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB)
    colours = pixels if pixels.shape[2] == 3 else np.ascontiguousarray(pixels[..., :3])
    return colours if channels == 3 else cv2.cvtColor(colours, cv2.COLOR_RGB2GRAY)[..., None]


def _check_size(width: int, height: int, pixel_bytes: int) -> None:
    if width * height > MAX_PIXELS:
        raise NotImplementedError(f'{width}×{height} pixels; allowed: {MAX_PIXELS:,}')
    _check_room(4 * pixel_bytes * width * height)  # the result, and up to three copies while it is converted


def _check_room(size: int) -> None:
    """Raises MemoryError if so many bytes are not free: Linux would kill, not raise."""
    if size > _SMALL:
        free = free_memory(torch.device('cpu'))
        if free is not None and size > free:
            raise MemoryError
