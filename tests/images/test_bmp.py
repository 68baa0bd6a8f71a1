"""Run-length BMP files, encoded here in every way that the format allows."""

import struct

import numpy as np
import pytest
from image_files import RNG, check, refused

PALETTE = RNG.integers(0, 256, (256, 3)).astype(np.uint8)


def run_length_bmp(width, height, bits, body):
    colours = b''.join(bytes([*colour[::-1], 0]) for colour in PALETTE[: 1 << bits].tolist())
    offset = 54 + len(colours)
    head = struct.pack('<IiiHHIIiiII', 40, width, height, 1, bits, 3 - bits // 4, len(body), 0, 0, 0, 0)
    return b'BM' + struct.pack('<IHHI', offset + len(body), 0, 0, offset) + head + colours + body


def nibbles(levels):
    return bytes(high << 4 | low for high, low in zip(levels[::2], [*levels[1::2], 0], strict=False))


def runs(levels, bits):
    return b''.join(bytes([1, level if bits == 8 else level << 4]) for level in levels)


def absolute(levels, bits):
    if len(levels) < 3:  # such numbers mean something else
        return runs(levels, bits)
    packed = bytes(levels) if bits == 8 else nibbles(levels)
    return bytes([0, len(levels)]) + packed + bytes(len(packed) % 2)


@pytest.mark.parametrize('bits', [4, 8])
@pytest.mark.parametrize('encode', [runs, absolute])
@pytest.mark.parametrize('padded', [False, True])
def test_runs_and_literal_pixels_may_cover_the_padding(bits, encode, padded):
    for width in (1, 2, 8, 9, 10, 11, 200):
        levels = RNG.integers(0, 1 << bits, (6, width))
        rows = [row.tolist() + [0] * (-width % 4 * padded) for row in levels[::-1]]
        body = b''.join(encode(row, bits) + b'\0\0' for row in rows)
        for end in (b'', b'\0\1'):  # some writers omit it
            check(run_length_bmp(width, 6, bits, body + end), PALETTE[levels])


@pytest.mark.parametrize('bits', [4, 8])
def test_skipped_pixels_have_the_first_colour(bits):
    five, seven = (level * (17 if bits == 4 else 1) for level in (5, 7))
    step, new_row, end = bytes([0, 2, 2, 1]), b'\0\0', b'\0\1'
    bottom = bytes([2, five])
    for body, levels in (
        (bottom + step + bytes([2, seven]) + end, [[0] * 6, [0, 0, 0, 0, 7, 7], [5, 5, 0, 0, 0, 0]]),
        (bottom + end, [[0] * 6, [0] * 6, [5, 5, 0, 0, 0, 0]]),
        (new_row + new_row + bytes([6, seven]) + end, [[7] * 6, [0] * 6, [0] * 6]),
        (bytes([6, five]) + new_row + new_row + bytes([9, seven]), [[7] * 6, [0] * 6, [5] * 6]),
    ):
        check(run_length_bmp(6, 3, bits, body), PALETTE[np.array(levels)])


@pytest.mark.parametrize('body', [b'', b'\6\5\0\0\3', b'\6\5\0\0\0\6\1', b'\6\5\0\2', b'\2\5\0\0\6\5\0\0\2\5'])
def test_a_run_length_bmp_that_is_cut_short_is_refused(body):
    assert 'is damaged or cut short' in refused(run_length_bmp(6, 3, 8, body))
