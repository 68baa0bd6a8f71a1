"""Run-length BMP files (https://learn.microsoft.com/en-us/windows/win32/gdi/bitmap-compression).

Pillow and OpenCV lose their place in files that skip pixels, or whose runs cover the padding of rows.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np

_BITS = {1: 8, 2: 4}  # compression → bits a pixel
_LONG_HEADER = 40  # bytes; a shorter one has no field for the compression


class Runs(NamedTuple):
    width: int
    height: int
    bits: int
    colours: int  # entries of the palette
    start: int  # offset of the pixels


def read_header(data: bytes) -> Runs | None:
    """Returns None if it is no run-length BMP file."""
    if not data.startswith(b'BM') or len(data) < 54:
        return None
    start, size, width, height, bits, compression, colours = struct.unpack_from('<10xIIii2xHI12xI', data)
    if size < _LONG_HEADER or _BITS.get(compression) != bits:
        return None
    return Runs(width, abs(height), bits, colours or 1 << bits, start)


def without_runs(data: bytes, runs: Runs) -> bytes:
    """Returns the same image as an uncompressed 8-bit BMP. Raises EOFError if it is cut short."""
    rows = np.zeros((runs.height, -(-runs.width // 4) * 4), np.uint8)
    _unpack(data[runs.start :], runs, rows[:, : runs.width])
    head = bytearray(data[: runs.start])
    struct.pack_into('<HII', head, 28, 8, 0, 0)
    struct.pack_into('<I', head, 46, runs.colours)
    return bytes(head) + rows.tobytes()


def _unpack(stream: bytes, runs: Runs, rows: np.ndarray) -> None:
    """Fills rows of zeros. Drops pixels beyond the end of a row."""
    packed = runs.bits == 4
    x = y = place = 0
    while y < runs.height:
        if len(stream) < place + 2:
            if y == runs.height - 1 and x >= runs.width:  # some writers omit the end marker
                return
            raise EOFError('its end is missing')
        count, value = stream[place : place + 2]
        place += 2
        if count:
            pixels = np.resize([value >> 4, value & 15] if packed else [value], count)
        elif value == 0:  # the end of a row
            x, y = 0, y + 1
            continue
        elif value == 1:  # the end of the image
            return
        elif value == 2:  # a step to the right and up
            right, up = stream[place : place + 2]
            x, y, place = x + right, y + up, place + 2
            continue
        else:  # that many literal pixels, padded to 16 bits
            size = (value + 1) // 2 if packed else value
            pixels = np.frombuffer(stream, np.uint8, size, place)
            if packed:
                pixels = np.stack([pixels >> 4, pixels & 15], axis=1).ravel()[:value]
            place += size + size % 2
        room = rows[y, x : x + len(pixels)]
        room[:] = pixels[: len(room)]
        x += len(pixels)
