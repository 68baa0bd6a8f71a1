"""Samples of TIFF files (TIFF 6.0, https://www.itu.int/itudoc/itu-t/com16/tiff-fx/docs/tiff6.pdf).

Pillow has no mode for most layouts of 16 bits or of separate planes, and libtiff does not check what it inflates.
"""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import PIL.Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

SIGNATURES = (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER, ORIENTATION = 256, 257, 258, 259, 262, 266, 274
SAMPLES, ROWS_PER_STRIP, PLANES, PREDICTOR, COLOUR_MAP = 277, 278, 284, 317, 320
TILE_WIDTH, TILE_HEIGHT, EXTRA_SAMPLES, SAMPLE_FORMAT, ICC_PROFILE = 322, 323, 338, 339, 34675
KIND, OTHER_IMAGES = 254, 330
STRIP_OFFSETS, STRIP_SIZES, TILE_OFFSETS, TILE_SIZES = 273, 279, 324, 325

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE = range(4)  # photometric interpretations
CMYK, YCBCR = 5, 6
NO_ALPHA, PREMULTIPLIED = 0, 1  # kinds of extra samples
PREVIEW = 1  # a bit of KIND

RAW, LZW, PACKBITS = 1, 5, 32773
DEFLATE = (8, 32946)
LIBTIFF = (LZW, PACKBITS, 34925, 50000)  # also LZMA and Zstandard
PILLOW = (2, 3, 4, 6, 7)  # fax and JPEG
_COMPRESSIONS = {
    34712: 'JPEG 2000', 34887: 'LERC', 34933: 'PNG', 34934: 'JPEG XR', 50001: 'WebP', 50002: 'JPEG XL', 52546: 'JPEG XL'
}  # fmt: skip

ALLOWED = 'allowed: 8 or 16 bits a channel, grey or RGB'
_FORMATS = {2: 'signed', 3: 'floating-point', 5: 'complex', 6: 'complex'}
_COLOURS = {
    4: 'mask ', CMYK: 'CMYK ', YCBCR: 'YCbCr ', 8: 'Lab ', 9: 'Lab ', 10: 'Lab ', 32803: 'sensor ', 34892: 'sensor '
}  # fmt: skip

_REVERSED = bytes(int(f'{byte:08b}'[::-1], 2) for byte in range(256))


def read_tags(data: bytes) -> dict[int, Any]:
    """The tags of the first image. Raises NotImplementedError if that is a preview of another one."""
    is_big = 43 in data[2:4]
    # Pillow looks for the version of BigTIFF where little-endian files have it.
    directory = ImageFileDirectory_v2(b'II+\0' + data[4:16] if is_big else data[:8], prefix=data[:2])
    file = io.BytesIO(data)
    file.seek(directory.next)
    directory.load(file)
    tags = dict(directory)
    if not {WIDTH, HEIGHT} <= tags.keys():
        raise EOFError('its directory is missing')
    if tags.get(KIND, 0) & PREVIEW and (directory.next or OTHER_IMAGES in tags):
        raise NotImplementedError(
            "a preview as its first image, like a camera's raw file; allowed: the image itself, as TIFF or PNG"
        )
    return tags


def is_plain(tags: dict[int, Any]) -> bool:
    """Whether `decode` can decode it; if not, Pillow can. Raises NotImplementedError if neither can."""
    all_bits, formats = tags.get(BITS, (1,)), {*tags.get(SAMPLE_FORMAT, (1,))}
    bits, code, photometric = max(all_bits), tags.get(COMPRESSION, RAW), tags.get(PHOTOMETRIC, -1)
    if kinds := formats & _FORMATS.keys():
        raise NotImplementedError(f'{bits}-bit {_FORMATS[min(kinds)]} channels; {ALLOWED}')
    if code not in (RAW, *DEFLATE, *LIBTIFF, *PILLOW):
        raise NotImplementedError(
            f'{_COMPRESSIONS.get(code, f"unknown ({code!s:.20})")} compression, which is not supported'
        )
    plain = (
        code not in PILLOW
        and photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE)
        and {*all_bits} in ({1}, {2}, {4}, {8}, {16})
        and (tags.get(PREDICTOR, 1) == 1 or (tags[PREDICTOR] == 2 and bits >= 8))
    )
    mixed = len({*all_bits}) > 1 or bits not in (1, 2, 4, 8)
    if not plain and (mixed or photometric not in (*range(4), CMYK, YCBCR)):
        raise NotImplementedError(f'{bits}-bit {_COLOURS.get(photometric, "")}channels; {ALLOWED}')
    if photometric == CMYK and {*tags.get(EXTRA_SAMPLES, ())} - {NO_ALPHA}:
        raise NotImplementedError(f'CMYK channels and alpha; {ALLOWED}')
    return plain


def allocation(tags: dict[int, Any]) -> tuple[int, int, int]:
    """Width and height of what `decode` allocates, and bytes a pixel."""
    size = (max(tags[side], tags.get(tile, 1)) for side, tile in ((WIDTH, TILE_WIDTH), (HEIGHT, TILE_HEIGHT)))
    channels = 4 if tags[PHOTOMETRIC] == PALETTE else tags.get(SAMPLES, 1)
    return *size, channels * (2 if tags.get(BITS, (1,))[0] == 16 else 1)


def decode(data: bytes, tags: dict[int, Any]) -> np.ndarray:
    """Pixels as in `Image`, but not turned upright; for files that are `is_plain`."""
    samples = _samples(data, tags)
    bits, photometric = tags.get(BITS, (1,))[0], tags[PHOTOMETRIC]
    count = 3 if photometric == RGB else 1
    colours, extra = samples[..., :count], samples[..., count:]
    full = np.iinfo(samples.dtype).max
    if photometric == PALETTE:
        palette = np.array(tags[COLOUR_MAP]).reshape(3, -1).T
        # Some writers store 8 bits, as libtiff assumes, too, if no entry is larger.
        colours = (palette >> 8 if palette.max() > 255 else palette).astype(np.uint8)[colours[..., 0]]
    else:
        if bits < 8:
            colours = colours * np.uint8(255 // ((1 << bits) - 1))
        if photometric == WHITE_IS_ZERO:
            colours = full - colours
    # OpenCV writes alpha without saying so.
    kinds = tags.get(EXTRA_SAMPLES) or (2,) * extra.shape[2]
    alphas = [number for number, kind in enumerate(kinds[: extra.shape[2]]) if kind != NO_ALPHA]
    if alphas and bits >= 8 and colours.dtype == samples.dtype:
        alpha = extra[..., alphas[0], None]
        if kinds[alphas[0]] == PREMULTIPLIED:
            straight = colours * float(full) / np.where(alpha, alpha, np.inf)
            colours = np.minimum(np.round(straight), full).astype(samples.dtype)
        colours = np.concatenate([colours, alpha], axis=2)
    return colours[..., 0] if colours.shape[2] == 1 else colours


def _samples(data: bytes, tags: dict[int, Any]) -> np.ndarray:
    """(H, W, samples) as stored: uint16 for 16 bits, else uint8."""
    width, height, bits = tags[WIDTH], tags[HEIGHT], tags.get(BITS, (1,))[0]
    count = tags.get(SAMPLES, 1)
    planes, inner = (count, 1) if tags.get(PLANES, 1) == 2 else (1, count)
    tiled = TILE_WIDTH in tags
    if tiled:
        part_width, part_height = tags[TILE_WIDTH], tags[TILE_HEIGHT]
    else:
        part_width, part_height = width, min(tags.get(ROWS_PER_STRIP, height), height)
    across, down = -(-width // part_width), -(-height // part_height)
    offsets = tags[TILE_OFFSETS if tiled else STRIP_OFFSETS]
    sizes = tags.get(TILE_SIZES if tiled else STRIP_SIZES) or (len(data),) * len(offsets)  # may be left out
    if len(offsets) < planes * across * down or len(sizes) < len(offsets):
        raise EOFError('strips or tiles are missing')

    order = '<' if data.startswith(b'II') else '>'
    row_bytes = (part_width * inner * bits + 7) // 8
    samples = np.empty((height, width, count), np.uint16 if bits == 16 else np.uint8)
    for number in range(planes * across * down):
        plane, place = divmod(number, across * down)
        top, left = place // across * part_height, place % across * part_width
        rows = part_height if tiled else min(part_height, height - top)
        part = _unpacked(data, offsets[number], sizes[number], tags, rows, row_bytes)
        values = np.frombuffer(
            part, f'{order}u2' if bits == 16 else np.uint8, rows * row_bytes * 8 // max(bits, 8)
        )
        if bits < 8:
            single = np.unpackbits(values.reshape(rows, row_bytes), axis=1)[:, : part_width * inner * bits]
            values = single.reshape(-1, bits) @ (1 << np.arange(bits, dtype=np.uint8)[::-1])
        values = values.reshape(rows, part_width, inner)
        if tags.get(PREDICTOR, 1) == 2:
            values = values.cumsum(axis=1, dtype=samples.dtype)
        room = samples[top : top + rows, left : left + part_width, plane * inner : (plane + 1) * inner]
        room[:] = values[: room.shape[0], : room.shape[1]]
    return samples


def _unpacked(data: bytes, start: int, size: int, tags: dict[int, Any], rows: int, row_bytes: int) -> bytes:
    """The bytes of a strip or tile, `rows * row_bytes` at least. Raises ValueError or OSError on damage."""
    code = tags.get(COMPRESSION, RAW)
    needed = rows * row_bytes
    part = data[start : start + (needed if code == RAW else size)]
    if tags.get(FILL_ORDER, 1) == 2:
        part = part.translate(_REVERSED)
    if code in DEFLATE:
        stream = zlib.decompressobj()
        part = stream.decompress(part, 2 * needed + 1024)  # some writers fill up the last strip
        if not stream.eof:
            raise EOFError('a strip or tile ends too early')
    elif code != RAW:
        part = _unpacked_by_libtiff(part, code, rows, row_bytes)
    return part


def _unpacked_by_libtiff(part: bytes, code: int, rows: int, row_bytes: int) -> bytes:
    """Decodes it as the only strip of a grey image of 8 bits: compression is of bytes, whatever they mean."""
    tags = {
        WIDTH: row_bytes, HEIGHT: rows, BITS: 8, COMPRESSION: code, PHOTOMETRIC: BLACK_IS_ZERO, STRIP_OFFSETS: 8,
        SAMPLES: 1, ROWS_PER_STRIP: rows, STRIP_SIZES: len(part),
    }  # fmt: skip
    directory = struct.pack('<H', len(tags)) + b''.join(
        struct.pack('<HHII', tag, 4, 1, tags[tag]) for tag in tags
    )
    file = b'II*\0' + struct.pack('<I', 8 + len(part)) + part + directory + bytes(4)
    with PIL.Image.open(io.BytesIO(file), formats=['TIFF']) as image:
        return image.tobytes()
