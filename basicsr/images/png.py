"""The chunks of PNG files (https://www.w3.org/TR/png-3)."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

SIGNATURE = b'\x89PNG\r\n\x1a\n'
HEADER_END = 33  # the header is the first chunk and has a fixed size

GREY, RGB, PALETTE, GREY_ALPHA = 0, 2, 3, 4  # colour types
_LEVELS = {GREY: 2, RGB: 6}  # bytes of the one transparent level or colour

_COLOUR = (b'cHRM', b'gAMA', b'sRGB', b'cICP')  # the colour space, beside or instead of an ICC profile
_TEXTS = (b'tEXt', b'zTXt', b'iTXt')
_EXIF_TEXT, _OLD_EXIF_TEXT = b'Raw profile type exif\0', b'Raw profile type APP1\0'  # written by ImageMagick
_ORIENTATION_TEXTS = (_EXIF_TEXT, _OLD_EXIF_TEXT, b'XML:com.adobe.xmp\0')


class PNG(NamedTuple):
    data: bytes  # a file with the pixels of the default image, its orientation and ICC profile
    depth: int  # bits a sample
    colour_type: int
    transparent: tuple[int, ...]  # the one transparent level of grey or colour, as stored; () if there is none
    colour_chunks: bytes


def read_png(data: bytes) -> PNG:
    """Rebuilds a PNG file so that any decoder gives its default image: without the frames of an animation, and without
    damaged chunks that do not change pixels. Raises EOFError if it is cut short, NotImplementedError on Apple's own
    compression; decoders find other damage."""
    before, pixels, colour = [], [], []
    header, transparent = b'', b''
    for kind, part in _chunks(data):
        body = part[8:-4]
        if kind == b'CgBI':
            raise NotImplementedError("Apple's own PNG compression (CgBI), which is not supported")
        if kind in (b'IHDR', b'PLTE'):
            header = header or body
            before.append(part)
        elif kind in (b'IDAT', b'IEND'):
            pixels.append(part)
        elif part != chunk(kind, body):  # a wrong checksum
            continue
        elif kind in _COLOUR:
            colour.append(part)
        elif kind == b'tRNS' and header[9] in _LEVELS:
            transparent = body if len(body) == _LEVELS[header[9]] else b''
        elif kind == b'iCCP' and not re.match(rb'[^\0]+\0\0', body):
            continue
        elif kind in (b'tRNS', b'iCCP', b'eXIf') or (kind in _TEXTS and body.startswith(_ORIENTATION_TEXTS)):
            before.append(chunk(kind, body.replace(_OLD_EXIF_TEXT, _EXIF_TEXT)))
    if len(pixels) < 2:
        raise EOFError('its pixels are missing')
    depth, colour_type = header[8:10]
    levels = struct.unpack(f'>{len(transparent) // 2}H', transparent)
    return PNG(SIGNATURE + b''.join(before + pixels), depth, colour_type, levels, b''.join(colour))


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Name of each chunk, and all of its bytes, up to the IEND chunk."""
    place, kind = len(SIGNATURE), b''
    while kind != b'IEND':
        if len(data) < place + 12:
            raise EOFError('its end is missing')
        size, kind = struct.unpack_from('>I4s', data, place)
        yield kind, data[place : place + 12 + size]
        place += 12 + size


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))
